//! `narswarm status`: what the node on a data directory is doing.

use crate::config::{AclArgs, CommonArgs, Config, NodeArgs};
use crate::http::StatusReport;
use crate::store::RunInfo;
use anyhow::Context;
use clap::Args;
use std::process::ExitCode;
use std::time::Duration;

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Print what the node's API says, as JSON.
    #[arg(long)]
    json: bool,
    /// Print it again every second, until interrupted.
    #[arg(long)]
    watch: bool,
}

/// How long a node on this machine may take to answer: it does so from memory.
const PATIENCE: Duration = Duration::from_secs(5);

/// Prints the status once, or again and again.
///
/// # Errors
/// When no node runs there, or it doesn't answer.
pub fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.common, &AclArgs::default(), &NodeArgs::default())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        loop {
            let report = fetch(&config).await?;
            if args.json {
                println!("{}", serde_json::to_string(&report)?);
            } else {
                println!("{}", describe(&report));
            }
            if !args.watch {
                return Ok(ExitCode::SUCCESS);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
}

/// What the node on the data directory says of itself.
///
/// # Errors
/// When none runs there, or it doesn't answer.
pub async fn fetch(config: &Config) -> anyhow::Result<StatusReport> {
    let dir = config.data_dir.display();
    let info = RunInfo::read(&config.data_dir)?
        .with_context(|| format!("no node is running on the data directory {dir}"))?;
    let client = reqwest::Client::builder().timeout(PATIENCE).no_proxy().build()?;
    let url = format!("http://{}/api/status", info.http);
    let answer = client.get(&url).send().await;
    let answer = answer.and_then(reqwest::Response::error_for_status).with_context(|| {
        format!("the node on {dir} (process {}) doesn't answer at {url}", info.pid)
    })?;
    Ok(answer.json().await?)
}

/// A few lines for a person.
fn describe(report: &StatusReport) -> String {
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let mut lines = vec![
        format!(
            "{} {} as {}, up {} s",
            report.peer_id, report.version, report.role, report.uptime_s
        ),
        format!("substitute URL   http://{}", report.http),
        format!(
            "peers            {} connected, {} known",
            report.peers.connected, report.peers.known
        ),
        format!(
            "items            {} narinfos, {} nars cached ({})",
            report.items.narinfos,
            report.items.cached,
            mib(report.items.cached_bytes)
        ),
        format!(
            "received         {} from peers, {} from upstream",
            mib(report.bytes.from_peers),
            mib(report.bytes.from_upstream)
        ),
        format!(
            "sent             {} to peers, {} to HTTP clients",
            mib(report.bytes.to_peers),
            mib(report.bytes.to_http)
        ),
        format!(
            "requests         {} narinfos found, {} not, {} nars",
            report.requests.narinfo_hit, report.requests.narinfo_miss, report.requests.nar
        ),
    ];
    if let Some(problem) = &report.acl.problem {
        lines.push(format!("KEYS             the last good ones are used: {problem}"));
    }
    if let Some(store) = &report.store {
        let mut line = format!(
            "store            {} of {} items shared ({})",
            store.shared,
            store.items,
            mib(store.shared_bytes)
        );
        if store.waiting > 0 {
            line += &format!(", {} to be hashed ({})", store.waiting, mib(store.waiting_bytes));
        }
        lines.push(line);
    }
    lines.extend(report.listen.iter().map(|address| format!("listening on     {address}")));
    for fetch in &report.fetches {
        let percent = 100 * fetch.done_bytes / fetch.total_bytes.max(1);
        let (item, sources) = (&fetch.item, fetch.sources);
        lines.push(format!("fetching         {item}: {percent} % from {sources} sources"));
    }
    lines.join("\n")
}
