//! The entry node as a process: newcomers find each other through it, and it takes no part in what
//! they give each other.

use narswarm_protocol::narinfo::Compression;
use narswarm_tests::harness::guix::Guix;
use narswarm_tests::harness::mirror::Mirror;
use narswarm_tests::harness::node::Stage;
use narswarm_tests::harness::program;
use narswarm_tests::harness::waiting::until;

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
