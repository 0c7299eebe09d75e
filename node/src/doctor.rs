//! What `narswarm doctor` finds out: everything that a node needs, looked at one by one, and for
//! each problem what to do about it. It changes nothing.
//!
//! - `machine`: keys, disk, ports; `upstreams`: substitute servers, and by them the clock;
//! - `swarm`: entry nodes, peers, the DHT, reachability, of the running node or without one.

mod machine;
mod swarm;
mod upstreams;

use crate::config::Config;
use crate::control;
use crate::control::view::{DhtView, NodeView};
use crate::http::StatusReport;
use crate::store::RunInfo;
use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Worth knowing, and nothing wrong.
    Note,
    /// Something is wrong.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: `keys`, `disk`, `ports`, `upstream`, `clock`, `entry`, `peers`, `dht`,
    /// `reachability`, `node`.
    pub check: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it; with every problem.
    pub advice: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, found: found.into(), advice: None }
    }

    fn note(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Note, found: found.into(), advice: None }
    }

    fn problem(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        let (found, advice) = (found.into(), Some(advice.into()));
        Self { check, verdict: Verdict::Problem, found, advice }
    }
}

/// All findings.
#[derive(Debug, Clone, Serialize)]
pub struct Diagnosis {
    /// Whether nothing is wrong.
    pub ok: bool,
    /// Whether a node runs on the data directory.
    pub running: bool,
    /// What is known of the NAT: as in the status, `unknown` without a node.
    pub nat: String,
    /// What is known of the DHT; nothing without a node.
    pub dht: DhtView,
    /// One by one.
    pub findings: Vec<Finding>,
}

/// What a running node says of itself.
struct Running {
    status: StatusReport,
    view: NodeView,
}

/// Looks at everything.
pub async fn diagnose(config: &Config) -> Diagnosis {
    let mut findings = Vec::new();
    let running = running(config, &mut findings).await;
    findings.push(machine::keys(config));
    findings.push(machine::disk(config));
    let (upstreams, swarm) =
        tokio::join!(upstreams::check(config), swarm::check(config, running.as_ref()));
    if running.is_none() {
        findings.extend(machine::ports(config));
    }
    findings.extend(upstreams);
    findings.extend(swarm);
    Diagnosis {
        ok: findings.iter().all(|finding| finding.verdict < Verdict::Problem),
        running: running.is_some(),
        nat: running.as_ref().map_or("unknown", |r| &r.status.nat).to_owned(),
        dht: running.map(|r| r.view.dht).unwrap_or_default(),
        findings,
    }
}

/// The node on the data directory, if one runs and answers.
async fn running(config: &Config, findings: &mut Vec<Finding>) -> Option<Running> {
    const CHECK: &str = "node";
    let info = match RunInfo::read(&config.data_dir) {
        Ok(Some(info)) => info,
        Ok(None) => {
            let dir = config.data_dir.display();
            findings.push(Finding::note(CHECK, format!("none is running on {dir}")));
            return None;
        }
        Err(error) => {
            let advice = "remove the file if no node is running";
            findings.push(Finding::problem(CHECK, error.to_string(), advice));
            return None;
        }
    };
    let dir = config.data_dir.clone();
    let view = tokio::task::spawn_blocking(move || control::view_of(&dir)).await;
    let view = view.map_err(anyhow::Error::from).and_then(|view| view);
    match (crate::cmd::status::fetch(config).await, view) {
        (Ok(status), Ok(view)) => {
            let found = format!("process {}, up {} s", info.pid, status.uptime_s);
            findings.push(Finding::ok(CHECK, found));
            Some(Running { status, view })
        }
        (Err(error), _) | (_, Err(error)) => {
            let found = format!("process {} doesn't answer: {error:#}", info.pid);
            let advice = "if the process is gone, start the node anew; else look at its log";
            findings.push(Finding::problem(CHECK, found, advice));
            None
        }
    }
}
