//! How fast thousands of narinfos are answered: warm ÷ nginx with the same files (T2), and cold
//! from an upstream at some distance ÷ asking that upstream without a node (T1).

use anyhow::ensure;
use clap::Parser;
use narswarm_tests::bench::narinfos;
use narswarm_tests::bench::nginx::Nginx;
use narswarm_tests::bench::report::{Aim, Report};
use narswarm_tests::bench::run::{CommonArgs, in_turn, run, settle_disks};
use narswarm_tests::harness::delay::DelayProxy;
use narswarm_tests::harness::mirror::Mirror;
use narswarm_tests::harness::node::{Node, Stage};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Thousands of narinfos through a node ÷ through nginx, warm and cold.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
    /// Narinfos in a query.
    #[arg(long, default_value_t = 2000)]
    narinfos: usize,
    /// Round trip to the upstream of the cold queries.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 50)]
    round_trip: u64,
}

const NGINX: &str = "nginx, warm";
const SEEN: &str = "narswarm, seen before";
const RESTARTED: &str = "narswarm, restarted since";
const IMPORTED: &str = "narswarm, imported and started";
const DIRECT: &str = "upstream itself, cold";
const COLD: &str = "narswarm, cold";

const CONTESTANTS: [&str; 6] = [NGINX, SEEN, RESTARTED, IMPORTED, DIRECT, COLD];

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    run(&args.common, measure(&args))
}

/// What stands around the nodes.
struct Bench {
    stage: Stage,
    key: PathBuf,
    paths: Vec<String>,
    nginx: Nginx,
    far: DelayProxy,
    warm: Node,
}

async fn measure(args: &Args) -> anyhow::Result<Report> {
    let mut report = Report::new("bench-narinfo");
    let bench = prepare(args).await?;
    for round in 0..args.common.rounds {
        for contestant in in_turn(&CONTESTANTS, round) {
            settle_disks().await;
            let took = bench.turn(contestant, round).await?;
            report.sample(*contestant, "ms", took.as_secs_f64() * 1e3);
        }
    }
    report.compare(SEEN, NGINX, Some(Aim::AtMost(1.2)));
    report.compare(RESTARTED, NGINX, None);
    report.compare(IMPORTED, NGINX, None);
    report.compare(COLD, DIRECT, Some(Aim::AtMost(1.0)));
    report.note(format!(
        "{} narinfos a query, 1,000 requests a write, on one new connection; cold: a new node each \
         round, upstream nginx at a round trip of {} ms",
        args.narinfos, args.round_trip
    ));
    Ok(report)
}

async fn prepare(args: &Args) -> anyhow::Result<Bench> {
    let stage = Stage::new();
    let mirror = Mirror::create(stage.path("mirror"), 1);
    let paths = narinfos::add(&mirror, args.narinfos)?;
    let nginx = Nginx::start(mirror.root(), &stage.path("nginx")).await?;
    let one_way = Duration::from_millis(args.round_trip) / 2;
    let far = DelayProxy::start(nginx.address(), one_way).await?;
    let key = mirror.key_file();
    // Their nars are left out, which is no success, so what it says is looked at.
    let imported = stage.import("imported", &key, &[mirror.root()]).await;
    let said = format!("{} narinfos and 0 nars", args.narinfos);
    ensure!(imported.out.contains(&said), "the import failed: {}{}", imported.err, imported.out);
    let seen = stage.node("restarted").acl(&key).upstream(&nginx.url()).start().await;
    narinfos::ask(seen.http(), &paths).await?;
    seen.terminate().await;
    let warm = stage.node("warm").acl(&key).upstream(&nginx.url()).start().await;
    narinfos::ask(warm.http(), &paths).await?;
    Ok(Bench { stage, key, paths, nginx, far, warm })
}

impl Bench {
    async fn turn(&self, contestant: &str, round: u32) -> anyhow::Result<Duration> {
        match contestant {
            NGINX => narinfos::ask(self.nginx.address(), &self.paths).await,
            SEEN => narinfos::ask(self.warm.http(), &self.paths).await,
            RESTARTED => self.ask_started("restarted", &self.nginx.url()).await,
            IMPORTED => self.ask_started("imported", &self.nginx.url()).await,
            DIRECT => narinfos::ask(self.far.address(), &self.paths).await,
            _ => self.ask_started(&format!("cold-{round}"), &self.far.url()).await,
        }
    }

    /// Starts the node of this name, asks it, and ends it.
    async fn ask_started(&self, name: &str, upstream: &str) -> anyhow::Result<Duration> {
        let node = self.stage.node(name).acl(&self.key).upstream(upstream).start().await;
        let took = narinfos::ask(node.http(), &self.paths).await?;
        node.terminate().await;
        Ok(took)
    }
}
