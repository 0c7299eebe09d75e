//! Small nars that a node fetches before its client asks for them.

use narswarm_protocol::narinfo::Compression;
use narswarm_tests::harness::guix::Guix;
use narswarm_tests::harness::holding::Holding;
use narswarm_tests::harness::mirror::Mirror;
use narswarm_tests::harness::node::{Node, Stage};
use narswarm_tests::harness::upstream::StaticServer;
use narswarm_tests::harness::waiting::until;

/// A mirror of small items, a large one in front of the second half.
fn mirror(stage: &Stage, small: usize) -> Mirror {
    let mut mirror = Mirror::create(stage.path("mirror"), 7);
    for number in 0..small {
        if number == small / 2 {
            mirror.add("large", 2 << 20, &[Compression::Zstd]);
        }
        mirror.add(&format!("small-{number:03}"), 1000 + 211 * number, &[Compression::Zstd]);
    }
    mirror
}

async fn counter(node: &Node, name: &str) -> u64 {
    let metrics = node.get("/metrics").await;
    let metrics = String::from_utf8_lossy(&metrics).into_owned();
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    let value = line.unwrap_or_else(|| panic!("no {name} in\n{metrics}"));
    value.trim().parse().expect("a number")
}

async fn caches(node: &Node, count: u64) {
    until("nars to be cached", async || node.status().await.items.cached == count).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_for_in_turn_is_there_already() {
    let stage = Stage::new();
    let mirror = mirror(&stage, 150);
    let (all, key) = (mirror.holdings(), mirror.key_file());
    stage.import("a", &key, &[mirror.root()]).await.well();
    let a = stage.node("a").acl(&key).start().await;
    let b = stage.node("b").acl(&key).bootstrap(a.peer_address()).start().await;
    b.has_peers(1).await;
    let guix = Guix::new(b.http(), mirror.acl());
    guix.gets_narinfos(all).await;
    assert_eq!(b.status().await.items.cached, 0, "narinfos alone are no reason to fetch");
    guix.gets_nar(&all[0]).await;
    caches(&b, 5).await;
    for holding in &all[1..] {
        guix.gets_nar(holding).await;
    }
    b.keeps(all).await;
    // All of the small ones but the first, unless the client was faster than the swarm.
    let ahead = counter(&b, "narswarm_nars_read_ahead_total").await;
    assert!(ahead >= 140, "{ahead} of 149");
    let (given, taken) = (a.status().await.bytes.to_peers, b.status().await.bytes.from_peers);
    assert_eq!(given, taken, "nothing was given that wasn't counted");
    assert_eq!(counter(&b, "narswarm_unneeded_from_peers_bytes_total").await, 0);
}

/// Who holds what was found on disk is asked of peers once a client asks for nars.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_peers_are_asked_for_all_of_them_at_once() {
    let stage = Stage::new();
    let mirror = mirror(&stage, 40);
    let (all, key) = (mirror.holdings(), mirror.key_file());
    stage.import("a", &key, &[mirror.root()]).await.well();
    let a = stage.node("a").acl(&key).start().await;
    let b = stage.node("b").acl(&key).bootstrap(a.peer_address()).start().await;
    b.has_peers(1).await;
    Guix::new(b.http(), mirror.acl()).gets_narinfos(all).await;
    let (ended, _) = b.terminate().await;
    assert!(ended.success(), "{ended}");
    let b = stage.node("b").acl(&key).bootstrap(a.peer_address()).start().await;
    b.has_peers(1).await;
    let guix = Guix::new(b.http(), mirror.acl());
    guix.gets_narinfos(all).await;
    guix.gets_nar(&all[0]).await;
    caches(&b, 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upstream_gives_what_a_peer_that_has_gone_no_longer_can() {
    let stage = Stage::new();
    let mirror = mirror(&stage, 30);
    let (all, key) = (mirror.holdings(), mirror.key_file());
    stage.import("a", &key, &[mirror.root()]).await.well();
    let upstream = StaticServer::start(mirror.root()).await.expect("a port");
    let a = stage.node("a").acl(&key).start().await;
    let b = stage.node("b").acl(&key).bootstrap(a.peer_address());
    let b = b.upstream(&upstream.url()).start().await;
    b.has_peers(1).await;
    let guix = Guix::new(b.http(), mirror.acl());
    guix.gets_narinfos(all).await;
    let by_peers = async || {
        let nar: Vec<&Holding> = all.iter().take(1).collect();
        guix.gets_nar(nar[0]).await;
        b.status().await.bytes.from_peers > 0
    };
    until("a peer to give something", by_peers).await;
    a.kill().await;
    guix.gets_all(all).await;
    assert!(b.status().await.bytes.from_upstream > 0);
    b.keeps(all).await;
}
