//! Sources that die, freeze or come back in the middle of a nar.

use narswarm_protocol::limits::MAX_NARINFO_BYTES;
use narswarm_protocol::narinfo::Compression;
use narswarm_tests::harness::guix::Guix;
use narswarm_tests::harness::holding::{Holding, nar_hash};
use narswarm_tests::harness::http_client::{ClientError, Cut, Head, HttpClient};
use narswarm_tests::harness::mirror::Mirror;
use narswarm_tests::harness::node::{Node, Stage};
use narswarm_tests::harness::throttle::Throttle;
use narswarm_tests::harness::upstream::StaticServer;
use narswarm_tests::harness::waiting::soon;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Large enough to be in its middle for seconds at the rate below.
const SIZE: usize = 24 << 20;

/// How fast a source behind a throttle gives.
const RATE_BYTES_PER_S: u64 = 6 << 20;

/// How much guix has got when something happens: past the pieces that are asked for at first.
const MIDDLE_BYTES: usize = 4 << 20;

/// A nar on its way to guix.
struct Transfer {
    middle: Arc<Notify>,
    whole: tokio::task::JoinHandle<(Result<Head, ClientError>, Vec<u8>, Duration)>,
}

impl Transfer {
    fn begin(http: SocketAddr, holding: &Holding) -> Self {
        let (middle, path) = (Arc::new(Notify::new()), holding.nar_path());
        let reached = middle.clone();
        let whole = tokio::spawn(async move {
            let mut client = HttpClient::connect(http).await.expect("the node listens");
            let (mut body, mut last, mut pause) = (Vec::new(), Instant::now(), Duration::ZERO);
            let head = client.get_into(&path, |octets| {
                if !octets.is_empty() {
                    pause = pause.max(last.elapsed());
                    last = Instant::now();
                }
                body.extend_from_slice(octets);
                if body.len() >= MIDDLE_BYTES {
                    reached.notify_one();
                }
            });
            let head = head.await;
            (head, body, pause)
        });
        Self { middle, whole }
    }

    async fn in_its_middle(&self) {
        soon("the middle of the nar", self.middle.notified()).await;
    }

    /// Guix sees the nar as if nothing had happened; returns the longest pause.
    async fn ends_well(self, holding: &Holding) -> Duration {
        let (head, body, pause) = soon("the nar", self.whole).await.expect("no panic");
        let head = head.expect("a whole answer");
        assert_eq!(head.status, 200);
        assert_eq!(nar_hash(&body), holding.narinfo.nar_hash());
        pause
    }

    /// Guix sees a reset before the end.
    async fn ends_in_reset(self, holding: &Holding) {
        let (head, body, _) = soon("the end", self.whole).await.expect("no panic");
        match head {
            Err(ClientError::Cut { cut: Cut::Reset, body_bytes }) => {
                assert_eq!(body_bytes, body.len() as u64);
                assert!(body_bytes < holding.nar_size());
                assert!(holding.nar().starts_with(&body), "what came was right");
            }
            other => panic!("{other:?} after {} octets", body.len()),
        }
    }
}

struct Scene {
    stage: Stage,
    mirror: Mirror,
    holding: Holding,
}

impl Scene {
    fn new() -> Self {
        let stage = Stage::new();
        let mut mirror = Mirror::create(stage.path("mirror"), 1);
        let holding = mirror.add("large", SIZE, &[Compression::Zstd]);
        Self { stage, mirror, holding }
    }

    /// A node that holds the nar, behind a throttle.
    async fn source(&self, name: &str) -> (Node, Throttle, String) {
        let key = self.mirror.key_file();
        self.stage.import(name, &key, &[self.mirror.root()]).await.well();
        let node = self.stage.node(name).acl(&key).start().await;
        let throttle = Throttle::before_peer(node.peer_address(), RATE_BYTES_PER_S).await;
        let (throttle, address) = throttle.expect("a port");
        (node, throttle, address)
    }

    /// Fetches through a node, and waits until it is in the middle of that.
    async fn in_the_middle(&self, node: &Node) -> Transfer {
        let guix = Guix::new(node.http(), self.mirror.acl());
        guix.gets_narinfos(std::slice::from_ref(&self.holding)).await;
        let transfer = Transfer::begin(node.http(), &self.holding);
        transfer.in_its_middle().await;
        let fetches = node.status().await.fetches;
        let fetch = fetches.first().expect("the fetch still runs");
        assert!(fetch.done_bytes < fetch.total_bytes);
        transfer
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_peer_is_called_again_when_its_connection_breaks() {
    let scene = Scene::new();
    let (_source, line, address) = scene.source("source").await;
    let asker =
        scene.stage.node("asker").acl(scene.mirror.key_file()).bootstrap(&address).start().await;
    asker.has_peers(1).await;
    let transfer = scene.in_the_middle(&asker).await;
    line.cut();
    let pause = transfer.ends_well(&scene.holding).await;
    eprintln!("the longest pause: {pause:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_killed_is_replaced_by_another() {
    let scene = Scene::new();
    let (one, throttle, first) = scene.source("one").await;
    let (two, _other, second) = scene.source("two").await;
    let node = scene.stage.node("b").acl(scene.mirror.key_file());
    let node = node.bootstrap(&first).bootstrap(&second).start().await;
    node.has_peers(2).await;
    let transfer = scene.in_the_middle(&node).await;
    // The one that gives; either may.
    let (gives, stays) =
        if throttle.from_server() > MIDDLE_BYTES as u64 / 4 { (one, two) } else { (two, one) };
    gives.kill().await;
    transfer.ends_well(&scene.holding).await;
    assert!(stays.status().await.bytes.to_peers > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_freezes_is_replaced_before_anybody_notices() {
    let scene = Scene::new();
    let (_one, throttle, first) = scene.source("one").await;
    let (_two, _other, second) = scene.source("two").await;
    let node = scene.stage.node("b").acl(scene.mirror.key_file());
    let node = node.bootstrap(&first).bootstrap(&second).start().await;
    node.has_peers(2).await;
    let transfer = scene.in_the_middle(&node).await;
    throttle.freeze();
    let pause = transfer.ends_well(&scene.holding).await;
    assert!(pause < Duration::from_secs(5), "guix waited for {pause:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_peers_are_gone_upstream_goes_on() {
    let scene = Scene::new();
    let (peer, _throttle, address) = scene.source("one").await;
    let server = StaticServer::start(scene.mirror.root()).await.expect("a server");
    let node = scene.stage.node("b").acl(scene.mirror.key_file());
    let node = node.bootstrap(&address).upstream(&server.url()).start().await;
    node.has_peers(1).await;
    let transfer = scene.in_the_middle(&node).await;
    peer.kill().await;
    transfer.ends_well(&scene.holding).await;
    assert_eq!(server.seen().nars(), 1, "upstream was asked");
}

/// A server that has the nar uncompressed and knows ranges isn't asked for the head a second time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upstream_goes_on_where_the_peers_stopped() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 1);
    let holding = mirror.add("large", SIZE, &[Compression::None]);
    let scene = Scene { stage, mirror, holding };
    let (peer, _throttle, address) = scene.source("one").await;
    let server = StaticServer::start(scene.mirror.root()).await.expect("a server");
    let node = scene.stage.node("b").acl(scene.mirror.key_file());
    let node = node.bootstrap(&address).upstream(&server.url()).start().await;
    node.has_peers(1).await;
    let transfer = scene.in_the_middle(&node).await;
    let before = server.seen().body_bytes();
    peer.kill().await;
    transfer.ends_well(&scene.holding).await;
    let given = server.seen().body_bytes() - before;
    let rest = scene.holding.nar_size() - MIDDLE_BYTES as u64;
    // Its narinfo may be asked for only now.
    let most = rest + MAX_NARINFO_BYTES as u64;
    assert!(given > 0 && given <= most, "{given} octets, where {rest} were missing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_upstream_dies_a_peer_goes_on() {
    let scene = Scene::new();
    let mut server = StaticServer::start(scene.mirror.root()).await.expect("a server");
    let slow = Throttle::start(server.address(), RATE_BYTES_PER_S).await.expect("a port");
    let node = scene.stage.node("b").acl(scene.mirror.key_file());
    let node = node.upstream(&slow.url()).start().await;
    let transfer = scene.in_the_middle(&node).await;
    // It comes when the fetch runs already.
    let key = scene.mirror.key_file();
    scene.stage.import("one", &key, &[scene.mirror.root()]).await.well();
    let peer = scene.stage.node("one").acl(&key).bootstrap(node.peer_address()).start().await;
    peer.has_peers(1).await;
    server.stop().await;
    drop(slow);
    let (head, body, _) = soon("the end", transfer.whole).await.expect("no panic");
    match head {
        // Found in time or not, never wrong; and what is asked next comes from the peer.
        Ok(_) => assert_eq!(nar_hash(&body), scene.holding.narinfo.nar_hash()),
        Err(ClientError::Cut { cut: Cut::Reset, .. }) => {}
        Err(error) => panic!("{error}"),
    }
    Guix::new(node.http(), scene.mirror.acl()).gets_nar(&scene.holding).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_are_dead_guix_sees_a_reset_and_the_next_time_the_rest_is_fetched() {
    let scene = Scene::new();
    let (peer, _throttle, address) = scene.source("one").await;
    let node = scene.stage.node("b").acl(scene.mirror.key_file());
    let node = node.bootstrap(&address).start().await;
    node.has_peers(1).await;
    let transfer = scene.in_the_middle(&node).await;
    peer.kill().await;
    transfer.ends_in_reset(&scene.holding).await;
    let guix = Guix::new(node.http(), scene.mirror.acl());
    let refused = guix.nar(&scene.holding).await.expect("an answer").head.status;
    assert!(refused >= 400, "{refused}");
    let peer = scene.stage.node("one").acl(scene.mirror.key_file());
    let peer = peer.bootstrap(node.peer_address()).start().await;
    peer.has_peers(1).await;
    guix.gets_nar(&scene.holding).await;
}

/// A reader that goes away ends neither the fetch nor the others' reading.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_come_and_go_and_share_one_fetch() {
    let scene = Scene::new();
    let (peer, _throttle, address) = scene.source("one").await;
    let node = scene.stage.node("b").acl(scene.mirror.key_file());
    let node = node.bootstrap(&address).start().await;
    node.has_peers(1).await;
    let first = scene.in_the_middle(&node).await;
    let second = Transfer::begin(node.http(), &scene.holding);
    second.in_its_middle().await;
    first.whole.abort();
    let third = Transfer::begin(node.http(), &scene.holding);
    second.ends_well(&scene.holding).await;
    third.ends_well(&scene.holding).await;
    let sent = peer.status().await.bytes.to_peers;
    assert!(sent < scene.holding.nar_size(), "{sent} octets for one nar that compresses to half");
}
