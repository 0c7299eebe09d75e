//! Nodes on hosts of their own, with lines as people have them: a nar moves, a source freezes, and
//! nothing of all that is left behind, however it ends. Needs root.

use narswarm_tests::bench::content::{self, Kind};
use narswarm_tests::harness::mirror::Mirror;
use narswarm_tests::harness::node::Stage;
use narswarm_tests::harness::program;
use narswarm_tests::harness::waiting::{soon, until};
use narswarm_tests::lab::client::fetch_at_last;
use narswarm_tests::lab::line::Line;
use narswarm_tests::lab::needs;
use narswarm_tests::lab::network::Network;
use narswarm_tests::lab::runs::lost_sources::{Mishap, Sources};
use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;
use std::time::Instant;

/// Size of the nars: seconds on these lines, so that something can happen meanwhile.
const NAR_BYTES: u64 = 8_000_000;

/// Rate of the lines, in Mbit/s.
const RATE: f64 = 40.0;

/// Network namespaces that have processes, as the links in `/proc` name them.
fn namespaces() -> BTreeSet<String> {
    let processes = fs::read_dir("/proc").expect("Linux");
    let links = processes.filter_map(|entry| {
        // Processes come and go.
        let link = fs::read_link(entry.ok()?.path().join("ns/net")).ok()?;
        Some(link.to_string_lossy().into_owned())
    });
    links.collect()
}

fn has_processes(namespace: u64) -> bool {
    namespaces().contains(&format!("net:[{namespace}]"))
}

/// This machine's own interfaces.
fn interfaces() -> BTreeSet<String> {
    let table = fs::read_to_string("/proc/net/dev").expect("Linux tells");
    table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nar_moves_over_lines_and_nothing_is_left() {
    if !needs::are_met() {
        return;
    }
    let before = interfaces();
    let stage = Stage::new();
    let mirror = Mirror::create(stage.path("mirror"), 1);
    let item = content::add(&mirror, "moved", &Kind::Incompressible, NAR_BYTES).expect("an item");
    let nar = fs::read(&item.file).expect("a nar").into();
    let key = mirror.key_file();
    stage.import("a", &key, &[mirror.root()]).await.well();

    let mut network = Network::new();
    let hosts = network.add_many(3, Line::of(RATE, RATE));
    let ids: Vec<u64> = hosts.iter().map(|host| host.namespace().id()).collect();
    let a = stage.node("a").on(&hosts[0]).acl(&key).start().await;
    let b = stage.node("b").on(&hosts[1]).acl(&key).bootstrap(a.peer_address()).start().await;
    let c = stage.node("c").on(&hosts[2]).acl(&key).bootstrap(a.peer_address()).start().await;
    let start = Instant::now();
    for node in [&b, &c] {
        node.has_peers(1).await;
        let narinfo = node.connect().await.expect("it listens").get(&item.narinfo_path()).await;
        assert_eq!(narinfo.expect("an answer").head.status, 200);
        let fetched = soon("the nar", fetch_at_last(node, &item, &nar, start)).await;
        assert_eq!(fetched.expect("the nar").wrong, 0);
    }
    // No faster than the lines are, but for what passes at once; and over them.
    let least = NAR_BYTES as f64 * 8.0 / (RATE * 1e6);
    assert!(start.elapsed().as_secs_f64() > 0.9 * least, "{:?}", start.elapsed());
    assert!(hosts[0].carried().sent > NAR_BYTES);
    for host in &hosts[1..] {
        assert!(host.carried().received > NAR_BYTES);
    }
    assert!(ids.iter().all(|id| has_processes(*id)));
    assert_eq!(interfaces(), before);

    drop((a, b, c, hosts, network));
    until("all to be gone", async || !ids.iter().any(|id| has_processes(*id))).await;
    assert_eq!(interfaces(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_does_not_notice_that_a_source_is_lost() {
    if !needs::are_met() {
        return;
    }
    let line = Line::of(RATE, RATE);
    let sources = Sources::prepare(NAR_BYTES, line).await.expect("two sources");
    for mishap in [Mishap::Frozen, Mishap::CutOff] {
        let name = format!("asker-{mishap:?}");
        let lost = soon("the nar", sources.transfer(mishap, &name)).await;
        let lost = lost.unwrap_or_else(|error| panic!("{mishap:?}: {error:#}"));
        assert_eq!(lost.fetched.wrong, 0, "{mishap:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_lab_leaves_nothing() {
    if !needs::are_met() {
        return;
    }
    let stage = Stage::new();
    let scratch = stage.path("scratch");
    fs::create_dir(&scratch).expect("a directory");
    let before = namespaces();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_bench-swarm"));
    command.args(["--rounds", "1", "crowd", "--only", "narswarm", "--peers", "1", "--up", "1"]);
    command.env("NARSWARM_BIN", program::narswarm()).env("TMPDIR", &scratch);
    command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let mut bench = command.spawn().expect("the program can be started");
    // The nodes run: the seed's data is there, and the peer's.
    let is_under_way = || {
        let found = fs::read_dir(&scratch).expect("a directory").flatten();
        found.into_iter().any(|stage| stage.path().join("peer-0-0/run.json").exists())
    };
    until("a crowd", async || is_under_way()).await;
    let made = of_children(bench.id().expect("it runs"));
    assert!(made.len() >= 3 && made.is_disjoint(&before), "{made:?}");
    bench.kill().await.expect("our own process");
    until("all to be gone", async || made.is_disjoint(&namespaces())).await;
}

/// Namespaces of the processes that a process has started, but for its own.
fn of_children(parent: u32) -> BTreeSet<String> {
    let own = fs::read_link("/proc/self/ns/net").expect("Linux");
    let line = format!("PPid:\t{parent}");
    let processes = fs::read_dir("/proc").expect("Linux");
    let links = processes.filter_map(|entry| {
        // Processes come and go.
        let process = entry.ok()?.path();
        let status = fs::read_to_string(process.join("status")).ok()?;
        let link = fs::read_link(process.join("ns/net")).ok()?;
        let is_child = status.lines().any(|known| known == line) && link != own;
        is_child.then(|| link.to_string_lossy().into_owned())
    });
    links.collect()
}
