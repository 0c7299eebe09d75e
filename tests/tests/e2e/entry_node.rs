//! The entry node as a process: newcomers find each other through it, and it takes no part in what
//! they give each other.

use bytes::Bytes;
use libp2p::PeerId;
use libp2p::identity::Keypair;
use narswarm_node::engine::neighbours::find_others;
use narswarm_node::net::{Held, Net, NetConfig, Responder, ServedNar};
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::narinfo::Compression;
use narswarm_protocol::provider_key::provider_key;
use narswarm_protocol::store_path::StoreHash;
use narswarm_tests::harness::guix::Guix;
use narswarm_tests::harness::mirror::Mirror;
use narswarm_tests::harness::node::Stage;
use narswarm_tests::harness::program;
use narswarm_tests::harness::waiting::until;
use std::collections::BTreeSet;
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_know_only_an_entry_node_find_each_other() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 5);
    mirror.add("hello-2.12.1", 700_000, &[Compression::Zstd]);
    let entry = stage.entry_node("entry").start().await;
    stage.import("a", &mirror.key_file(), &[mirror.root()]).await.well();
    let spec = |name: &str| stage.node(name).acl(mirror.key_file()).bootstrap(entry.peer_address());
    let a = spec("a").start().await;
    a.has_peers(1).await;
    let b = spec("b").start().await;
    Guix::new(b.http(), mirror.acl()).gets_all(mirror.holdings()).await;
    assert!(b.status().await.bytes.from_peers > 700_000 / 2, "it came from A");

    let health = entry.get("/healthz").await;
    let health: serde_json::Value = serde_json::from_slice(&health).expect("JSON");
    assert_eq!(health["ok"], true, "{health}");
    assert!(entry.peer_address().ends_with(health["peer_id"].as_str().expect("an id")));
    until("both to enter the table", async || {
        entry.metric("narswarm_bootstrap_table_peers").await == 2
    })
    .await;
    assert!(entry.metric("narswarm_bootstrap_connected_total").await >= 2);
    let run_json = entry.data_dir().join("run.json");
    assert!(run_json.is_file());
    assert!(entry.terminate().await.success());
    assert!(!run_json.exists(), "nothing says that it runs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_node_that_was_restarted_knows_somebody_at_once() {
    let stage = Stage::new();
    let entry = stage.entry_node("entry").start().await;
    let a = stage.node("a").bootstrap(entry.peer_address()).start().await;
    a.has_peers(1).await;
    until("A to enter the table", async || {
        entry.metric("narswarm_bootstrap_table_peers").await == 1
    })
    .await;
    let address = entry.peer_address().to_owned();
    assert!(entry.terminate().await.success());
    let remembered = std::fs::read_to_string(stage.path("entry/peers")).expect("a file");
    assert!(remembered.contains(&a.status().await.peer_id), "{remembered}");

    // Elsewhere, where A doesn't look for it: it has to find A.
    let entry = stage.entry_node("entry").start().await;
    assert_ne!(entry.peer_address(), address);
    until("A to be found again", async || {
        entry.metric("narswarm_bootstrap_table_peers").await == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_entry_node_and_misspelt_settings_are_refused() {
    let stage = Stage::new();
    let entry = stage.entry_node("entry").start().await;
    let mut command = program::bootstrap_command("run");
    command.arg("--data-dir").arg(entry.data_dir()).args(["--http", "127.0.0.1:0"]);
    let refused = program::run(&mut command).await;
    assert_eq!(refused.code, Some(1), "{}", refused.err);
    assert!(refused.err.contains(&format!("process {}", entry.pid())), "{}", refused.err);
    let file = stage.path("bad.toml");
    std::fs::write(&file, "max_conections = 4\n").expect("a file");
    let mut command = program::bootstrap_command("config");
    command.arg("--config").arg(&file);
    let refused = program::run(&mut command).await;
    assert_eq!(refused.code, Some(1), "{}", refused.out);
    assert!(refused.err.contains("max_conections"), "{}", refused.err);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newcomers_find_room_when_all_places_are_taken() {
    let stage = Stage::new();
    let entry = stage.entry_node("entry").configured("max_connections = 16\n").start().await;
    let mut nodes = Vec::new();
    for number in 0..20 {
        let node = stage.node(&format!("node-{number}")).bootstrap(entry.peer_address());
        let node = node.start().await;
        node.has_peers(1).await;
        nodes.push(node);
    }
    assert!(entry.metric("narswarm_bootstrap_shed_total").await > 0);
    assert!(entry.metric("narswarm_bootstrap_connections").await <= 16);
}

/// Knows what it holds, and no more.
struct Holder(Vec<StoreHash>);

impl Responder for Holder {
    fn query(&self, hashes: &[StoreHash]) -> Vec<Option<Held>> {
        let held = Held { narinfo: Bytes::from_static(b"a narinfo"), root: None, pieces_held: 0 };
        hashes.iter().map(|hash| self.0.contains(hash).then(|| held.clone())).collect()
    }

    fn open(&self, _: PeerId, _: &NarHash) -> Option<Arc<dyn ServedNar>> {
        None
    }
}

/// A node that answers no lookups, as those behind NATs don't.
async fn workstation(entry: &str, held: Vec<StoreHash>) -> Net {
    let mut config = NetConfig::new(Keypair::generate_ed25519());
    config.listen = vec!["/ip4/127.0.0.1/tcp/0".parse().expect("an address")];
    config.bootstrap = vec![entry.parse().expect("an address")];
    config.server = false;
    Net::start(config, Arc::new(Holder(held))).await.expect("a free port").0
}

/// Behind NATs, two workstations answer no lookups: the entry node is the only one whom all reach, so
/// what they hold is found through it or not at all; also after it was restarted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workstations_that_nobody_reaches_find_each_others_items_through_an_entry_node() {
    let stage = Stage::new();
    let entry = stage.entry_node("entry").start().await;
    let address = entry.peer_address().to_owned();
    let items: Vec<_> = (0..100).map(|number| StoreHash([number; 20])).collect();
    let keys: Vec<_> = items.iter().map(provider_key).collect();
    let a = workstation(&address, items.clone()).await;
    a.routing().provide(&keys).await.expect("room");
    until("what it holds to be kept", async || {
        entry.metric("narswarm_bootstrap_records").await == 100
    })
    .await;
    let b = workstation(&address, Vec::new()).await;
    until("it to know the entry node", async || b.routing().ready()).await;
    let finds = async |net: &Net| {
        let mut found = net.routing().find(&keys).await;
        let mut named = BTreeSet::new();
        while let Some(provider) = found.recv().await {
            assert_eq!(provider.peer, a.peer_id());
            named.insert(provider.key);
        }
        named.len() == keys.len()
    };
    until("B to find them", async || finds(&b).await).await;
    let answers = b.query(a.peer_id(), &items).await.expect("its address came along");
    assert!(answers.iter().all(Option::is_some));
    assert!(entry.metric("narswarm_bootstrap_answered_total").await > 0);

    assert!(entry.terminate().await.success());
    let spec = stage.entry_node("entry").listen(address.split("/p2p/").next().expect("an address"));
    let entry = spec.start().await;
    assert_eq!(entry.metric("narswarm_bootstrap_records").await, 100, "it still knows");
    let c = workstation(&address, Vec::new()).await;
    until("it to know the entry node", async || c.routing().ready()).await;
    until("C to find them", async || finds(&c).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_node_that_is_told_so_keeps_nothing() {
    let stage = Stage::new();
    let entry = stage.entry_node("entry").configured("records = 0\n").start().await;
    let a = stage.node("a").bootstrap(entry.peer_address()).start().await;
    a.has_peers(1).await;
    until("A to enter the table", async || {
        entry.metric("narswarm_bootstrap_table_peers").await == 1
    })
    .await;
    assert_eq!(entry.metric("narswarm_bootstrap_answered_total").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workstations_that_know_only_an_entry_node_come_to_know_each_other() {
    let stage = Stage::new();
    let entry = stage.entry_node("entry").start().await;
    let mut nets = Vec::new();
    for _ in 0..2 {
        let net = workstation(entry.peer_address(), Vec::new()).await;
        let looking = net.clone();
        tokio::spawn(async move { find_others(&looking, true).await });
        nets.push(net);
    }
    let knows = |net: &Net, other: &Net| {
        net.connected().iter().any(|peer| peer.peer == other.peer_id() && peer.ours)
    };
    until("them to know each other", async || {
        knows(&nets[0], &nets[1]) && knows(&nets[1], &nets[0])
    })
    .await;
}
