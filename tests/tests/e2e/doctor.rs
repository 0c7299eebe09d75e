//! `narswarm doctor` and `narswarm peers`, and the tools for lists: what an operator is told.

use narswarm_protocol::narinfo::Compression;
use narswarm_tests::harness::guix::Guix;
use narswarm_tests::harness::mirror::Mirror;
use narswarm_tests::harness::node::Stage;
use narswarm_tests::harness::program::{self, Finished};
use narswarm_tests::harness::upstream::StaticServer;
use narswarm_tests::harness::waiting::until;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

async fn doctor(data_dir: &Path, key: &Path, more: &[&str]) -> (Option<i32>, Value) {
    let mut command = program::command("doctor");
    command.arg("--data-dir").arg(data_dir).arg("--acl").arg(key).arg("--json").args(more);
    let said = program::run(&mut command).await;
    let report = serde_json::from_str(&said.out);
    (said.code, report.unwrap_or_else(|error| panic!("{error}: {}\n{}", said.out, said.err)))
}

fn problems(report: &Value) -> Vec<&Value> {
    let findings = report["findings"].as_array().expect("findings").iter();
    findings.filter(|finding| finding["verdict"] == "problem").collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_healthy_node_is_told_apart_from_one_that_is_not() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 6);
    mirror.add("hello-2.12.1", 2_000_000, &[Compression::Zstd]);
    fs::write(mirror.root().join("nix-cache-info"), "StoreDir: /gnu/store\n").expect("a file");
    let mut server = StaticServer::start(mirror.root()).await.expect("a port");
    let (url, key) = (server.url(), mirror.key_file());
    stage.import("a", &key, &[mirror.root()]).await.well();
    let a = stage.node("a").acl(&key).start().await;
    let b = stage.node("b").acl(&key).bootstrap(a.peer_address()).start().await;
    b.has_peers(1).await;
    Guix::new(b.http(), mirror.acl()).gets_all(mirror.holdings()).await;

    let flags = ["--upstream", &url, "--no-mdns"];
    let mut report = Value::Null;
    // The DHT's table is filled when identify has been heard.
    until("a clean bill of health", async || {
        let (code, said) = doctor(b.data_dir(), &key, &flags).await;
        report = said;
        code == Some(0)
    })
    .await;
    assert_eq!(report["ok"], true);
    assert_eq!(report["running"], true);
    assert!(problems(&report).is_empty(), "{report}");
    let checks: Vec<_> = report["findings"].as_array().expect("findings").iter().collect();
    for check in ["node", "keys", "disk", "upstream", "clock", "entry", "peers", "reachability"] {
        assert!(checks.iter().any(|finding| finding["check"] == check), "{check}: {report}");
    }

    // The same node, when its server and its entry node are gone.
    server.stop().await;
    let (ended, _) = a.terminate().await;
    assert!(ended.success());
    until("the loss to be noticed", async || b.status().await.peers.connected == 0).await;
    until("the entry node to be missed", async || {
        let (code, said) = doctor(b.data_dir(), &key, &flags).await;
        assert_eq!(code, Some(1), "{said}");
        report = said;
        ["upstream", "entry", "peers"]
            .iter()
            .all(|check| problems(&report).iter().any(|finding| finding["check"] == *check))
    })
    .await;
    for problem in problems(&report) {
        assert!(problem["advice"].as_str().is_some_and(|advice| advice.len() > 20), "{problem}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_node_entry_and_ports_are_tried() {
    let stage = Stage::new();
    let mirror = Mirror::create(stage.path("mirror"), 7);
    let key = mirror.key_file();
    let entry = stage.entry_node("entry").start().await;
    let flags = ["--no-upstream", "--no-mdns", "--http", "127.0.0.1:0", "--listen"];
    let flags = [&flags[..], &["/ip4/127.0.0.1/tcp/0", "--bootstrap"]].concat();
    let to = |address: &str| [&flags[..], &[address]].concat().join(" ");
    let address = to(entry.peer_address());
    let flags: Vec<_> = address.split(' ').collect();
    let (code, report) = doctor(&stage.path("new"), &key, &flags).await;
    assert_eq!(code, Some(0), "{report}");
    assert_eq!(report["running"], false);
    assert!(report.to_string().contains("1 of 1 are there"), "{report}");
    entry.kill().await;
    let (code, report) = doctor(&stage.path("new"), &key, &flags).await;
    assert_eq!(code, Some(1), "{report}");
    let [problem] = &problems(&report)[..] else { panic!("one problem: {report}") };
    assert_eq!(problem["check"], "entry");
    assert!(!stage.path("new").exists(), "looking leaves nothing behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_are_listed_with_what_is_known_of_them() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 6);
    mirror.add("hello-2.12.1", 1_000_000, &[Compression::Zstd]);
    let key = mirror.key_file();
    stage.import("a", &key, &[mirror.root()]).await.well();
    let a = stage.node("a").acl(&key).start().await;
    let b = stage.node("b").acl(&key).bootstrap(a.peer_address()).start().await;
    Guix::new(b.http(), mirror.acl()).gets_all(mirror.holdings()).await;
    let peers = async |data_dir: &Path| -> Value {
        let mut command = program::command("peers");
        command.arg("--data-dir").arg(data_dir).arg("--json");
        serde_json::from_str(&program::run(&mut command).await.well()).expect("JSON")
    };
    let said = peers(b.data_dir()).await;
    let peer = &said["connected"][0];
    assert_eq!(peer["peer_id"], a.status().await.peer_id);
    assert_eq!(peer["direction"], "out");
    assert!(peer["agent"].as_str().expect("a name").starts_with("narswarm/"), "{peer}");
    assert!(a.peer_address().starts_with(peer["addresses"][0].as_str().expect("an address")));
    assert!(peer["received_bytes"].as_u64().expect("a number") > 500_000, "{peer}");
    assert!(peer["sent_bytes"].as_u64().expect("a number") > 0, "{peer}");
    until("a round trip to be measured", async || {
        peers(b.data_dir()).await["connected"][0]["rtt_ms"].is_number()
    })
    .await;
    assert_eq!(peers(a.data_dir()).await["connected"][0]["direction"], "in");
    let mut command = program::command("peers");
    let refused = program::run(command.arg("--data-dir").arg(stage.path("nobody"))).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("no node is running"), "{}", refused.err);
}

async fn list(arguments: &[&str]) -> Finished {
    program::run(program::bootstrap_command("list").args(arguments)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_are_made_signed_and_checked() {
    let stage = Stage::new();
    let entry = stage.entry_node("entry").start().await;
    let (key, file) = (stage.path("key").display().to_string(), stage.path("list.toml"));
    let public = list(&["key", &key]).await.well().trim().to_owned();
    assert!(public.starts_with("ed25519:"), "{public}");
    let mode = fs::metadata(&key).expect("a file").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    assert_eq!(list(&["key", &key]).await.well().trim(), public, "it stays what it is");
    let path = file.display().to_string();
    list(&["make", "--key", &key, "--output", &path, entry.peer_address()]).await.well();
    let said = list(&["check", "--key", &public, &path]).await.well();
    assert!(said.contains("there (narswarm-bootstrap/"), "{said}");

    // Another's key, an added signature, a changed address, a node that is gone.
    let other = stage.path("other").display().to_string();
    let other_public = list(&["key", &other]).await.well().trim().to_owned();
    let refused = list(&["check", "--key", &other_public, &path]).await;
    assert_eq!(refused.code, Some(1));
    list(&["sign", "--key", &other, &path]).await.well();
    list(&["check", "--key", &other_public, "--no-dial", &path]).await.well();
    list(&["check", "--key", &public, "--no-dial", &path]).await.well();
    let signed = fs::read_to_string(&file).expect("a list");
    fs::write(&file, signed.replace("127.0.0.1", "127.0.0.2")).expect("written");
    let refused = list(&["check", &path]).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("changed after it was signed"), "{}", refused.err);
    fs::write(&file, signed).expect("written");
    entry.kill().await;
    let gone = list(&["check", &path]).await;
    assert_eq!(gone.code, Some(1));
    assert!(gone.out.contains("NOT REACHED"), "{}", gone.out);
    let bare = list(&["make", "--key", &key, "/ip4/127.0.0.1/tcp/1"]).await;
    assert_eq!(bare.code, Some(1));
    assert!(bare.err.contains("/p2p/"), "{}", bare.err);
}
