//! What a node takes when it does nothing: time to start, memory, processor, disk for itself.

use anyhow::{Context, ensure};
use clap::Parser;
use narswarm_protocol::narinfo::Compression;
use narswarm_tests::bench::process::{cpu_seconds, resident_bytes};
use narswarm_tests::bench::report::{Aim, Report};
use narswarm_tests::bench::run::{CommonArgs, run};
use narswarm_tests::harness::http_client::HttpClient;
use narswarm_tests::harness::mirror::Mirror;
use narswarm_tests::harness::node::{Node, Stage};
use narswarm_tests::harness::program;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Octets of an item's one file: most of a system's items are small.
const ITEM_BYTES: usize = 2000;

/// Longest time that a node may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a starting node is asked whether it answers.
const INTERVAL: Duration = Duration::from_millis(1);

/// Start-up time, idle memory and processor time, size of the program.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
    /// Items that the idle workstation holds.
    #[arg(long, default_value_t = 3000)]
    items: usize,
    /// How long it is left alone in each round.
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    idle: u64,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    run(&args.common, measure(&args))
}

async fn measure(args: &Args) -> anyhow::Result<Report> {
    let mut report = Report::new("bench-footprint");
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 1);
    for number in 0..args.items {
        mirror.add(&format!("item-{number:05}"), ITEM_BYTES, &[Compression::None]);
    }
    let key = mirror.key_file();
    stage.import("full", &key, &[mirror.root()]).await.well();
    let seed = stage.node("seed").acl(&key).start().await;
    for round in 0..args.common.rounds {
        let empty = start_up(&stage.path(&format!("empty-{round}")), &key).await?;
        report.sample("start, empty", "ms", empty.as_secs_f64() * 1e3);
        let full = start_up(&stage.path("full"), &key).await?;
        report.sample(format!("start, {} items", args.items), "ms", full.as_secs_f64() * 1e3);
        idle(args, &stage, &seed, &key, &mut report).await?;
    }
    report.aim("idle memory", Aim::AtMost(60.0));
    report.aim("idle processor", Aim::AtMost(0.5));
    size_of_program(&mut report)?;
    report.note(format!(
        "start: from the process to the first HTTP answer; idle: a workstation with {} items and \
         one peer, left alone for {} s",
        args.items, args.idle
    ));
    Ok(report)
}

/// Starts a node, stops it, and says how long it took to answer its first request.
async fn start_up(data_dir: &Path, key: &Path) -> anyhow::Result<Duration> {
    let http: SocketAddr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut command = program::command("run");
    command.arg("--data-dir").arg(data_dir).arg("--acl").arg(key);
    command.args(["--listen", "/ip4/127.0.0.1/tcp/0", "--http", &http.to_string()]);
    command.args(["--no-mdns", "--no-default-bootstrap", "--no-upstream"]);
    let start = Instant::now();
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    loop {
        if let Ok(mut client) = HttpClient::connect(http).await
            && let Ok(reply) = client.get("/nix-cache-info").await
            && reply.head.status == 200
        {
            break;
        }
        ensure!(child.try_wait()?.is_none(), "the node has ended at its start");
        ensure!(start.elapsed() < PATIENCE, "the node doesn't answer");
        sleep(INTERVAL).await;
    }
    let took = start.elapsed();
    child.kill().await?;
    Ok(took)
}

async fn idle(
    args: &Args,
    stage: &Stage,
    seed: &Node,
    key: &Path,
    report: &mut Report,
) -> anyhow::Result<()> {
    let node = stage.node("full").acl(key).bootstrap(seed.peer_address()).start().await;
    node.has_peers(1).await;
    // What a start brings with it is over by then.
    sleep(Duration::from_secs(args.idle) / 2).await;
    let (before, start) = (cpu_seconds(node.pid())?, Instant::now());
    sleep(Duration::from_secs(args.idle)).await;
    let share = (cpu_seconds(node.pid())? - before) / start.elapsed().as_secs_f64();
    report.sample("idle memory", "MB", resident_bytes(node.pid())? as f64 / 1e6);
    report.sample("idle processor", "% of a core", share * 100.0);
    node.terminate().await;
    Ok(())
}

fn size_of_program(report: &mut Report) -> anyhow::Result<()> {
    let program = program::narswarm();
    let size = std::fs::metadata(program)?.len();
    report.sample("program with line tables", "MB", size as f64 / 1e6);
    let folder = tempfile::tempdir()?;
    let stripped = folder.path().join("narswarm");
    let strip = std::process::Command::new("strip").arg("-o").arg(&stripped).arg(program).status();
    match strip {
        Ok(status) if status.success() => {
            let size = std::fs::metadata(&stripped).context("strip has written nothing")?.len();
            report.sample("program, stripped", "MB", size as f64 / 1e6);
        }
        _ => report.note("the program could not be stripped here"),
    }
    Ok(())
}
