//! `/file/NAME/sha256/HASH`: sources by their content, which a node has as fixed-output items.

use narswarm_protocol::base32;
use narswarm_protocol::content_address::ContentAddress;
use narswarm_protocol::narinfo::Compression;
use narswarm_protocol::store_path::StorePath;
use narswarm_tests::harness::guix::Guix;
use narswarm_tests::harness::holding::Holding;
use narswarm_tests::harness::http_client::HttpClient;
use narswarm_tests::harness::mirror::Mirror;
use narswarm_tests::harness::node::Stage;
use narswarm_tests::harness::upstream::StaticServer;
use narswarm_tests::harness::waiting::soon;
use sha2::{Digest, Sha256};

fn path_of(name: &str, sha256: &[u8; 32]) -> StorePath {
    let item = ContentAddress::flat_file(sha256).item("/gnu/store", name, &[], false);
    let path = format!("/gnu/store/{}", item.expect("a name that a store accepts"));
    StorePath::parse(path.as_bytes()).expect("a store path")
}

/// Adds a source; gives its hash and content.
fn add(mirror: &mut Mirror, name: &str, size: usize) -> ([u8; 32], Vec<u8>, Holding) {
    let content = mirror.content(name, size);
    let sha256 = Sha256::digest(&content).into();
    let holding = mirror.add_at(path_of(name, &sha256), &content, &[Compression::Zstd]);
    (sha256, content, holding)
}

fn url(name: &str, sha256: &[u8; 32]) -> String {
    format!("/file/{name}/sha256/{}", base32::encode(sha256))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sources_come_by_their_content_from_upstream_and_from_peers() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 1);
    let sources = [("hello-2.12.1.tar.gz", 700_001), ("empty", 0), ("odd_name%2B1.patch", 17)].map(
        |(name, size)| {
            let stored = name.replace("%2B", "+");
            (name, add(&mut mirror, &stored, size))
        },
    );
    let server = StaticServer::start(mirror.root()).await.expect("a server");
    let a = stage.node("a").acl(mirror.key_file()).upstream(&server.url()).start().await;
    let b = stage.node("b").acl(mirror.key_file()).bootstrap(a.peer_address()).start().await;
    for node in [&a, &b] {
        node.has_peers(1).await;
        let guix = Guix::new(node.http(), mirror.acl());
        for (name, (sha256, content, _)) in &sources {
            let reply = guix.get(&url(name, sha256)).await.expect("an answer");
            assert_eq!(reply.head.status, 200, "{name}");
            assert_eq!(reply.head.content_length(), Some(content.len() as u64), "{name}");
            assert!(reply.body == *content, "{name} differs");
            let hex: String = sha256.iter().map(|octet| format!("{octet:02x}")).collect();
            let reply = guix.get(&format!("/file/{name}/sha256/{hex}")).await.expect("an answer");
            assert!(reply.head.status == 200 && reply.body == *content, "{name} in hexadecimal");
        }
    }
    assert_eq!(b.status().await.bytes.from_upstream, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_that_file_is_never_given_as_such() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 2);
    let foreign = Mirror::create_signing(stage.path("foreign"), 2, 3);
    let (sha256, content, holding) = add(&mut mirror, "source.tar", 300_000);
    // Signed under the name of a hash that its content doesn't have.
    let lie = [9; 32];
    mirror.add_at(path_of("lie.tar", &lie), &content, &[Compression::Zstd]);
    let server = StaticServer::start(mirror.root()).await.expect("a server");
    let a = stage.node("a").acl(mirror.key_file()).upstream(&server.url()).start().await;
    let guix = Guix::new(a.http(), mirror.acl());
    for (what, path) in
        [("another name", url("other.tar", &sha256)), ("another hash", url("source.tar", &[1; 32]))]
    {
        let reply = guix.get(&path).await.expect("an answer");
        assert_eq!(reply.head.status, 404, "{what}");
        assert!(reply.head.max_age().is_some_and(|seconds| seconds <= 60), "{what}");
    }
    // Another connection for each, since a failure ends it.
    let mut client = HttpClient::connect(a.http()).await.expect("the node listens");
    let lied = soon("the lie", client.get(&url("lie.tar", &lie))).await;
    assert!(lied.is_err() || lied.is_ok_and(|reply| reply.head.status >= 400), "it was given");
    let reply = guix.get(&url("source.tar", &sha256)).await.expect("an answer");
    assert!(reply.head.status == 200 && reply.body == content);
    guix.gets_nar(&holding).await;
    // A node that believes another key knows of none of it.
    let b = stage.node("b").acl(foreign.key_file()).upstream(&server.url()).start().await;
    let reply = Guix::new(b.http(), mirror.acl()).get(&url("source.tar", &sha256)).await;
    assert_eq!(reply.expect("an answer").head.status, 404);
}
