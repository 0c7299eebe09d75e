//! Nodes that end, are killed, and come back: what was held is held.

use libp2p::PeerId;
use libp2p::identity::Keypair;
use narswarm_node::net::{Held, Net, NetConfig, Responder, ServedNar};
use narswarm_protocol::announce::{ItemKey, SavedAnnounced, lonely_key};
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::narinfo::Compression;
use narswarm_protocol::store_path::StoreHash;
use narswarm_tests::harness::compression::OF_GUIX;
use narswarm_tests::harness::guix::Guix;
use narswarm_tests::harness::http_client::HttpClient;
use narswarm_tests::harness::mirror::Mirror;
use narswarm_tests::harness::node::Stage;
use narswarm_tests::harness::program;
use narswarm_tests::harness::throttle::Throttle;
use narswarm_tests::harness::upstream::StaticServer;
use narswarm_tests::harness::waiting::until;
use std::sync::Arc;
use std::time::Duration;

/// How soon a node ends that is told to.
const END: Duration = Duration::from_secs(5);

fn mirror(stage: &Stage) -> Mirror {
    let mut mirror = Mirror::create(stage.path("mirror"), 1);
    for number in 0..100 {
        mirror.add(&format!("small-{number}"), number * 1000, &OF_GUIX[number % 4..][..1]);
    }
    mirror.add("large", 5 << 20, &[Compression::Zstd]);
    mirror
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_fetched_is_served_again_without_a_network() {
    let stage = Stage::new();
    let mirror = mirror(&stage);
    let server = StaticServer::start(mirror.root()).await.expect("a server");
    let node = stage.node("a").acl(mirror.key_file()).upstream(&server.url()).start().await;
    let id = node.status().await.peer_id;
    Guix::new(node.http(), mirror.acl()).gets_all(mirror.holdings()).await;
    node.keeps(mirror.holdings()).await;
    let (ended, took) = node.terminate().await;
    assert!(ended.success() && took < END, "{ended} after {took:?}");
    assert!(!stage.path("a/run.json").exists());

    let node = stage.node("a").acl(mirror.key_file()).start().await;
    let report = node.status().await;
    assert_eq!(report.peer_id, id, "it is the same node");
    assert_eq!(report.items.cached, mirror.holdings().len() as u64);
    Guix::new(node.http(), mirror.acl()).gets_all(mirror.holdings()).await;
    assert_eq!(node.status().await.bytes.from_upstream, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_import_acknowledged_survives_a_kill() {
    let stage = Stage::new();
    let mirror = mirror(&stage);
    // Once through a running node that is killed right after, once at rest.
    let node = stage.node("a").acl(mirror.key_file()).start().await;
    let mut import = program::command("import");
    import.arg("--data-dir").arg(node.data_dir()).arg(mirror.root());
    program::run(&mut import).await.well();
    node.kill().await;
    stage.import("b", &mirror.key_file(), &[mirror.root()]).await.well();
    for name in ["a", "b"] {
        for _ in 0..3 {
            let node = stage.node(name).acl(mirror.key_file()).start().await;
            Guix::new(node.http(), mirror.acl()).gets_all(mirror.holdings()).await;
            node.kill().await;
        }
    }
}

/// A process that dies while it writes leaves nothing that is taken for a nar.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_in_the_middle_of_a_fetch_leaves_nothing_false() {
    let stage = Stage::new();
    let mut mirror = mirror(&stage);
    let large = mirror.add("slow", 16 << 20, &[Compression::Zstd]);
    let server = StaticServer::start(mirror.root()).await.expect("a server");
    for round in 0..3 {
        let throttle = Throttle::start(server.address(), 4 << 20).await.expect("a port");
        let node = stage.node("a").acl(mirror.key_file()).upstream(&throttle.url());
        let node = node.start().await;
        let guix = Guix::new(node.http(), mirror.acl());
        guix.gets_narinfos(std::slice::from_ref(&large)).await;
        let reading = tokio::spawn({
            let (http, path) = (node.http(), large.nar_path());
            async move { HttpClient::connect(http).await.expect("it listens").get(&path).await }
        });
        let least = (1 + round) << 20;
        let some = async || node.status().await.fetches.iter().any(|f| f.done_bytes >= least);
        until("some of the nar", some).await;
        node.kill().await;
        assert!(reading.await.expect("no panic").is_err(), "it was killed before the end");
    }
    let node = stage.node("a").acl(mirror.key_file()).upstream(&server.url()).start().await;
    assert_eq!(node.status().await.items.cached, 0);
    Guix::new(node.http(), mirror.acl()).gets_all(mirror.holdings()).await;
}

/// An import that dies is simply run again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_that_was_killed_is_run_again() {
    let stage = Stage::new();
    let mirror = mirror(&stage);
    let mut import = program::command("import");
    import.arg("--data-dir").arg(stage.path("a")).arg("--acl").arg(mirror.key_file());
    let mut child = import.arg(mirror.root()).spawn().expect("the program can be started");
    until("the import to have begun", async || stage.path("a/nars").exists()).await;
    child.kill().await.expect("our own process");
    let again = stage.import("a", &mirror.key_file(), &[mirror.root()]).await.well();
    let count = mirror.holdings().len();
    assert_eq!(again, format!("{count} narinfos and {count} nars are held, 0 left out\n"));
    let node = stage.node("a").acl(mirror.key_file()).start().await;
    Guix::new(node.http(), mirror.acl()).gets_all(mirror.holdings()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_ends_soon_whatever_it_is_doing() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 2);
    let large = mirror.add("slow", 64 << 20, &[Compression::Zstd]);
    let server = StaticServer::start(mirror.root()).await.expect("a server");
    let throttle = Throttle::start(server.address(), 2 << 20).await.expect("a port");
    let node = stage.node("a").acl(mirror.key_file()).upstream(&throttle.url()).start().await;
    let _peer = stage.node("b").acl(mirror.key_file()).bootstrap(node.peer_address()).start().await;
    node.has_peers(1).await;
    // Idle, half a request, and in the middle of a nar.
    let mut idle = HttpClient::connect(node.http()).await.expect("it listens");
    idle.get("/nix-cache-info").await.expect("an answer");
    let mut half = HttpClient::connect(node.http()).await.expect("it listens");
    half.send(b"GET /nix-ca").await.expect("sent");
    let reading = tokio::spawn({
        let (http, path) = (node.http(), large.nar_path());
        async move { HttpClient::connect(http).await.expect("it listens").get(&path).await }
    });
    until("the fetch to run", async || {
        node.status().await.fetches.iter().any(|fetch| fetch.done_bytes > 1 << 20)
    })
    .await;
    let (ended, took) = node.terminate().await;
    assert!(ended.success() && took < END, "{ended} after {took:?}");
    assert!(!stage.path("a/run.json").exists());
    assert!(!stage.path("a/control.sock").exists());
    let cut = reading.await.expect("no panic").expect_err("it ended before the nar");
    assert!(format!("{cut}").starts_with("Reset"), "{cut}");
}

/// Has nothing, and keeps what others announce.
struct Nothing;

impl Responder for Nothing {
    fn query(&self, hashes: &[StoreHash]) -> Vec<Option<Held>> {
        vec![None; hashes.len()]
    }

    fn open(&self, _: PeerId, _: &NarHash) -> Option<Arc<dyn ServedNar>> {
        None
    }
}

/// What a node has announced outlives it, and a damaged file is no reason not to start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_announced_is_kept_for_the_next_run() {
    let stage = Stage::new();
    let mirror = mirror(&stage);
    let mut config = NetConfig::new(Keypair::generate_ed25519());
    config.listen = vec!["/ip4/127.0.0.1/tcp/0".parse().expect("an address")];
    let (keeper, _) = Net::start(config, Arc::new(Nothing)).await.expect("a free port");
    let keeper_address = keeper.listen_addresses()[0].to_string();
    stage.import("a", &mirror.key_file(), &[mirror.root()]).await.well();
    let spec = || stage.node("a").acl(mirror.key_file()).bootstrap(&keeper_address);
    let file = stage.path("a/announced");
    let told = || {
        let octets = std::fs::read(&file).expect("it was written");
        let mut saved = SavedAnnounced::from_octets(&octets).expect("well written");
        // After a while it also tells that it knows hardly anybody.
        saved.items.retain(|(key, _)| *key != ItemKey::from_provider_key(&lonely_key()));
        saved
    };
    let node = spec().start().await;
    until("everything to be announced", async || keeper.kept_records() >= mirror.holdings().len())
        .await;
    let (ended, _) = node.terminate().await;
    assert!(ended.success());
    assert_eq!(told().items.len(), mirror.holdings().len());
    let buckets = told().buckets.len();
    assert!(buckets > 30, "{buckets}");

    // For a moment only: nothing is announced again, and what was is still known.
    let node = spec().start().await;
    node.has_peers(1).await;
    let (ended, _) = node.terminate().await;
    assert!(ended.success());
    assert_eq!(told().items.len(), mirror.holdings().len());
    assert!(told().buckets.len() >= buckets);

    std::fs::write(&file, b"narswarm announced 1\nnonsense").expect("our own file");
    let node = spec().start().await;
    assert!(node.log().contains("what was announced before is announced anew"));
    let (ended, _) = node.terminate().await;
    assert!(ended.success());
    told();
}
