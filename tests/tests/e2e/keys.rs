//! The files with the keys change while a node runs.

use narswarm_protocol::acl::Acl;
use narswarm_protocol::narinfo::Compression;
use narswarm_tests::harness::guix::Guix;
use narswarm_tests::harness::mirror::Mirror;
use narswarm_tests::harness::node::{Node, Stage};
use narswarm_tests::harness::upstream::StaticServer;
use narswarm_tests::harness::waiting::{soon, until};
use rustix::process::Signal;
use std::fs;
use std::path::{Path, PathBuf};

/// Guix's list with the keys of these mirrors.
fn list(mirrors: &[&Mirror]) -> String {
    let entry = |mirror: &&Mirror| {
        format!("(entry {} (tag (guix import)))", mirror.key().public_key_sexp())
    };
    format!("(acl {})", mirrors.iter().map(entry).collect::<String>())
}

/// Replaces a file as Guix does.
fn write(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).expect("a file");
    fs::rename(&new, file).expect("renamed");
}

fn keys(stage: &Stage, mirrors: &[&Mirror]) -> PathBuf {
    let file = stage.path("acl");
    write(&file, &list(mirrors));
    file
}

async fn metric(node: &Node, name: &str) -> String {
    let text = String::from_utf8(node.get("/metrics").await.to_vec()).expect("text");
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("narswarm_{name} ")));
    line.unwrap_or_else(|| panic!("no metric {name}")).to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_taken_out_counts_no_more_for_guix_and_for_peers() {
    let stage = Stage::new();
    let (mut gone, mut stays) =
        (Mirror::create(stage.path("gone"), 1), Mirror::create(stage.path("stays"), 2));
    let out = gone.add("taken-out", 3000, &[Compression::Zstd]);
    let kept = stays.add("kept", 3000, &[Compression::Zstd]);
    let acl = keys(&stage, &[&gone, &stays]);
    stage.import("a", &acl, &[gone.root(), stays.root()]).await.well();
    let a = stage.node("a").acl(&acl).start().await;
    let guix = Guix::new(a.http(), Acl::parse(list(&[&gone, &stays]).as_bytes()).expect("keys"));
    guix.gets_all(&[out.clone(), kept.clone()]).await;
    // Somebody else believes both, asks A for everything, and gets it.
    let both = stage.path("both");
    write(&both, &list(&[&gone, &stays]));
    let b = stage.node("b").acl(&both).bootstrap(a.peer_address()).start().await;
    b.has_peers(1).await;
    let other = Guix::new(b.http(), Acl::parse(list(&[&gone, &stays]).as_bytes()).expect("keys"));
    other.gets_all(&[out.clone(), kept.clone()]).await;
    let given = a.status().await.bytes.to_peers;
    b.kill().await;

    write(&acl, &list(&[&stays]));
    until("the key to be forgotten", async || guix.narinfo_status(&out).await == 404).await;
    assert_eq!(guix.nar(&out).await.expect("an answer").head.status, 404);
    guix.gets_all(std::slice::from_ref(&kept)).await;
    assert_eq!(a.status().await.acl.problem, None);
    assert_eq!(metric(&a, "acl_keys").await, "1");
    let c = stage.node("c").acl(&both).bootstrap(a.peer_address()).start().await;
    c.has_peers(1).await;
    let third = Guix::new(c.http(), Acl::parse(list(&[&gone, &stays]).as_bytes()).expect("keys"));
    third.gets_all(std::slice::from_ref(&kept)).await;
    assert_eq!(third.narinfo_status(&out).await, 404, "no peer is told of it");
    assert!(a.status().await.bytes.to_peers > given);

    // It comes back as it went.
    write(&acl, &list(&[&stays, &gone]));
    guix.finds(&out).await;
    guix.gets_all(&[out, kept]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_reading_when_the_key_goes_gets_no_more() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 3);
    let other = Mirror::create(stage.path("other"), 4);
    let holding = mirror.add("large", 24 << 20, &[Compression::Zstd]);
    let acl = keys(&stage, &[&mirror]);
    stage.import("a", &acl, &[mirror.root()]).await.well();
    let a = stage.node("a").acl(&acl).arg("--upload-rate").arg("2MB/s").start().await;
    let own = mirror.key_file();
    let b = stage.node("b").acl(&own).bootstrap(a.peer_address()).start().await;
    b.has_peers(1).await;
    let guix = Guix::new(b.http(), mirror.acl());
    guix.finds(&holding).await;
    let reading = guix.nar(&holding);
    let change = async {
        until("the first pieces", async || a.status().await.bytes.to_peers > 1 << 20).await;
        write(&acl, &list(&[&other]));
    };
    let (read, ()) = soon("the end of the nar", async { tokio::join!(reading, change) }).await;
    assert!(read.is_err() || read.is_ok_and(|reply| reply.head.status != 200), "it got the whole");
    let given = a.status().await.bytes.to_peers;
    assert!(given < 12 << 20, "{given} octets were given");
    assert_eq!(b.status().await.items.cached, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_cannot_be_used_changes_nothing_and_is_complained_of() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 5);
    let holding = mirror.add("hello", 3000, &[Compression::Zstd]);
    let acl = keys(&stage, &[&mirror]);
    stage.import("a", &acl, &[mirror.root()]).await.well();
    let a = stage.node("a").acl(&acl).start().await;
    let guix = Guix::new(a.http(), mirror.acl());
    let small_order = format!(
        "(acl (entry {} (tag (guix import))) (entry (public-key (ecc (curve Ed25519) (q #01{}#))) \
         (tag (guix import))))",
        mirror.key().public_key_sexp(),
        "00".repeat(31)
    );
    for (bad, complaint) in [
        ("(acl (entry", "can't use the keys"),
        ("nonsense", "expected NAME:BASE64"),
        (small_order.as_str(), "neutral element"),
        ("", "trusted-public-keys"),
    ] {
        write(&acl, bad);
        until("a complaint", async || {
            a.status().await.acl.problem.is_some_and(|problem| problem.contains(complaint))
        })
        .await;
        assert_eq!(a.status().await.acl.keys, 1, "{complaint}");
        assert_eq!(metric(&a, "acl_is_stale").await, "1");
        assert!(a.log().contains(complaint), "the log says so: {complaint}");
        assert!(a.log().contains(&acl.display().to_string()), "and names the file");
        guix.gets_all(std::slice::from_ref(&holding)).await;
    }
    fs::remove_file(&acl).expect("a file");
    until("a complaint", async || {
        a.status().await.acl.problem.is_some_and(|problem| problem.contains("can't read"))
    })
    .await;
    guix.gets_all(std::slice::from_ref(&holding)).await;
    write(&acl, &list(&[&mirror]));
    until("all is well", async || a.status().await.acl.problem.is_none()).await;
    assert_eq!(metric(&a, "acl_is_stale").await, "0");
    guix.gets_all(std::slice::from_ref(&holding)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_key_is_believed_and_a_hangup_ends_nothing() {
    let stage = Stage::new();
    let (mut mirror, other) =
        (Mirror::create(stage.path("mirror"), 6), Mirror::create(stage.path("other"), 7));
    let holding = mirror.add("hello", 3000, &[Compression::Zstd]);
    let server = StaticServer::start(mirror.root()).await.expect("a server");
    let acl = keys(&stage, &[&other]);
    let a = stage.node("a").acl(&acl).upstream(&server.url()).start().await;
    let guix = Guix::new(a.http(), mirror.acl());
    assert_eq!(guix.narinfo_status(&holding).await, 404);
    a.signal(Signal::HUP);
    write(&acl, &list(&[&other, &mirror]));
    a.signal(Signal::HUP);
    until("the key to be believed", async || metric(&a, "acl_keys").await == "2").await;
    // What was a miss a moment ago is looked for anew.
    assert_eq!(guix.narinfo_status(&holding).await, 200);
    guix.gets_all(std::slice::from_ref(&holding)).await;
    let (ended, _) = a.terminate().await;
    assert!(ended.success(), "{ended}");
}
