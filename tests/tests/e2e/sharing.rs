//! From a mirror into one node, from that to a second, from the second to a third: every octet
//! stays what it was.

use narswarm_protocol::acl::Acl;
use narswarm_protocol::narinfo::Compression;
use narswarm_tests::harness::guix::Guix;
use narswarm_tests::harness::holding::{Holding, read_mirror};
use narswarm_tests::harness::mirror::Mirror;
use narswarm_tests::harness::node::Stage;
use narswarm_tests::harness::samples;
use std::path::Path;

/// Piece size of small nars.
const PIECE: usize = 256 * 1024;

/// A nar of one file is this much longer than the file, if that is a multiple of eight.
const NAR_OVERHEAD: usize = 144;

/// Imports a mirror into A, fetches all through B, and again through C when A is gone.
async fn travels(stage: &Stage, mirror: &Path, acl: &Acl, holdings: &[Holding]) {
    let key = mirror.join("signing-key.pub");
    let imported = stage.import("a", &key, &[mirror]).await;
    let nars = holdings.iter().filter(|holding| holding.nar.is_some()).count();
    let missing = holdings.len() - nars;
    let summary =
        format!("{} narinfos and {nars} nars are held, {missing} left out\n", holdings.len());
    assert_eq!(imported.out, summary, "{}", imported.err);
    assert_eq!(imported.code, Some(i32::from(missing > 0)), "{}", imported.err);

    let a = stage.node("a").acl(&key).start().await;
    Guix::new(a.http(), acl.clone()).gets_all(holdings).await;
    let b = stage.node("b").acl(&key).bootstrap(a.peer_address()).start().await;
    Guix::new(b.http(), acl.clone()).gets_all(holdings).await;
    b.keeps(holdings).await;
    let (ended, _) = a.terminate().await;
    assert!(ended.success(), "{ended}");

    let c = stage.node("c").acl(&key).bootstrap(b.peer_address()).start().await;
    Guix::new(c.http(), acl.clone()).gets_all(holdings).await;
    for node in [&b, &c] {
        let report = node.status().await;
        assert!(report.bytes.from_peers > 0);
        assert_eq!(report.bytes.from_upstream, 0);
        assert_eq!(report.requests.narinfo_hit, holdings.len() as u64);
        assert_eq!(report.requests.nar, nars as u64);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_guix_publishes_travels_from_node_to_node() {
    let Some(server) = samples::substitute_server() else { return };
    let key = std::fs::read(server.join("signing-key.pub")).expect("the mirror's key");
    let acl = Acl::parse(&key).expect("a sound key");
    let holdings = read_mirror(&server, &acl);
    assert!(holdings.len() > 300, "a burst of {} is none", holdings.len());
    travels(&Stage::new(), &server, &acl, &holdings).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generated_mirror_travels_from_node_to_node() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 1);
    let all = [Compression::Gzip, Compression::Lzip, Compression::Zstd, Compression::None];
    for number in 0..300 {
        mirror.add(&format!("small-{number}"), number, &all[number % 4..][..1]);
    }
    // Around the ends of pieces, and with all characters that names may have.
    for (name, size) in [
        ("one-piece-less-8", PIECE - NAR_OVERHEAD - 8),
        ("one-piece", PIECE - NAR_OVERHEAD),
        ("one-piece-and-8", PIECE - NAR_OVERHEAD + 8),
        ("two-pieces+1", 2 * PIECE),
        ("every?=character._+-", 1 << 20),
        ("large", 9 << 20),
    ] {
        mirror.add(name, size, &all);
    }
    for number in 0..10 {
        mirror.add_narinfo(&format!("narinfo-only-{number}"));
    }
    assert_eq!(mirror.holdings().iter().filter(|h| h.nar_size() == PIECE as u64).count(), 1);
    travels(&stage, mirror.root(), &mirror.acl(), mirror.holdings()).await;
}

/// What a node learns of a swarm it also gives on, but not to be a proxy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_shares_nothing() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 2);
    let holding = mirror.add("hello-2.12.1", 1000, &[Compression::Zstd]);
    stage.import("a", &mirror.key_file(), &[mirror.root()]).await.well();
    let a = stage.node("a").acl(mirror.key_file()).start().await;
    let proxy = stage.node("proxy").acl(mirror.key_file()).arg("--role").arg("proxy");
    let proxy = proxy.bootstrap(a.peer_address()).start().await;
    Guix::new(proxy.http(), mirror.acl()).gets_all(std::slice::from_ref(&holding)).await;
    a.terminate().await;
    let b = stage.node("b").acl(mirror.key_file()).bootstrap(proxy.peer_address()).start().await;
    b.has_peers(1).await;
    let status = Guix::new(b.http(), mirror.acl()).narinfo_status(&holding).await;
    assert_eq!(status, 404, "a proxy answers peers as if it had nothing");
    assert_eq!(proxy.status().await.bytes.to_peers, 0);
}

/// Nobody can ask for an item whose narinfo isn't signed by a key that the holder believes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_acl_no_longer_covers_is_neither_served_nor_shared() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 3);
    let other = Mirror::create(stage.path("other"), 4);
    let holding = mirror.add("hello-2.12.1", 1000, &[Compression::Zstd]);
    stage.import("a", &mirror.key_file(), &[mirror.root()]).await.well();
    let a = stage.node("a").acl(other.key_file()).start().await;
    let own = Guix::new(a.http(), mirror.acl());
    assert_eq!(own.narinfo_status(&holding).await, 404);
    assert_eq!(own.nar(&holding).await.expect("an answer").head.status, 404);
    let b = stage.node("b").acl(mirror.key_file()).bootstrap(a.peer_address()).start().await;
    b.has_peers(1).await;
    assert_eq!(Guix::new(b.http(), mirror.acl()).narinfo_status(&holding).await, 404);
    assert_eq!(a.status().await.bytes.to_peers, 0);
}

/// Neither is connected with the other: a third, who holds nothing, keeps what one announces and
/// tells the other. It still does after a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_is_found_through_a_third_who_holds_nothing() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 5);
    let holdings: Vec<_> = (0..20)
        .map(|number| mirror.add(&format!("item-{number}"), 1000 + number, &[Compression::Zstd]))
        .collect();
    stage.import("a", &mirror.key_file(), &[mirror.root()]).await.well();
    let third = || stage.node("third").acl(mirror.key_file());
    let keeper = third().start().await;
    let a = stage.node("a").acl(mirror.key_file()).bootstrap(keeper.peer_address()).start().await;
    a.has_peers(1).await;
    let c = stage.node("c").acl(mirror.key_file()).bootstrap(keeper.peer_address()).start().await;
    c.has_peers(1).await;
    Guix::new(c.http(), mirror.acl()).gets_all(&holdings[..10]).await;
    assert_eq!(keeper.status().await.bytes.to_peers, 0, "it holds nothing");
    c.terminate().await;

    let kept = stage.path("third").join("providers");
    let (ended, _) = keeper.terminate().await;
    assert!(ended.success(), "{ended}");
    assert!(kept.exists(), "what it keeps for others is on disk");
    let keeper = third().start().await;
    let d = stage.node("d").acl(mirror.key_file()).bootstrap(keeper.peer_address()).start().await;
    d.has_peers(1).await;
    Guix::new(d.http(), mirror.acl()).gets_all(&holdings[10..]).await;
}
