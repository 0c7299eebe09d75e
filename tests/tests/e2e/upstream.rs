//! A node with a substitute server behind it and no peers.

use narswarm_protocol::acl::Acl;
use narswarm_protocol::narinfo::Compression;
use narswarm_tests::harness::compression::OF_GUIX;
use narswarm_tests::harness::guix::Guix;
use narswarm_tests::harness::holding::{Holding, read_mirror};
use narswarm_tests::harness::mirror::Mirror;
use narswarm_tests::harness::node::Stage;
use narswarm_tests::harness::samples;
use narswarm_tests::harness::upstream::StaticServer;
use std::path::Path;

/// Memory that a node may gain while a nar larger than that passes through: what it gathers for
/// readers (16 MiB), what is on its way, and decoders.
const GAIN_BYTES: u64 = 60 << 20;

/// Everything comes through the node, is kept, and is there again when the server is gone.
async fn comes_through(stage: &Stage, mirror: &Path, acl: &Acl, holdings: &[Holding]) {
    let mut server = StaticServer::start(mirror).await.expect("a server");
    let node = stage.node("a").acl(mirror.join("signing-key.pub")).upstream(&server.url());
    let node = node.start().await;
    let guix = Guix::new(node.http(), acl.clone());
    guix.gets_all(holdings).await;
    let nars = holdings.iter().filter(|holding| holding.nar.is_some()).count();
    assert_eq!(server.seen().nars(), nars, "each nar is fetched once");
    let report = node.status().await;
    assert!(report.bytes.from_upstream > 0);
    assert_eq!(report.bytes.from_peers, 0);
    node.keeps(holdings).await;
    server.stop().await;
    guix.gets_all(holdings).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_guix_publishes_comes_through() {
    let Some(mirror) = samples::substitute_server() else { return };
    let key = std::fs::read(mirror.join("signing-key.pub")).expect("the mirror's key");
    let acl = Acl::parse(&key).expect("a sound key");
    let holdings = read_mirror(&mirror, &acl);
    comes_through(&Stage::new(), &mirror, &acl, &holdings).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_compression_comes_through() {
    for (seed, compression) in OF_GUIX.into_iter().enumerate() {
        let stage = Stage::new();
        let mut mirror = Mirror::create(stage.path("mirror"), seed as u8);
        for number in 0..300 {
            mirror.add(&format!("small-{number}"), number, &[compression]);
        }
        mirror.add("medium", 700_000, &[compression]);
        mirror.add("large", 9 << 20, &[compression]);
        comes_through(&stage, mirror.root(), &mirror.acl(), mirror.holdings()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_bounded_however_large_the_nar() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 5);
    let warm = mirror.add("warm", 1 << 20, &OF_GUIX);
    let large: Vec<_> = OF_GUIX.map(|c| mirror.add(&format!("large-{c}"), 160 << 20, &[c])).into();
    let server = StaticServer::start(mirror.root()).await.expect("a server");
    let node = stage.node("a").acl(mirror.key_file()).upstream(&server.url()).start().await;
    let guix = Guix::new(node.http(), mirror.acl());
    guix.gets_nar(&warm).await;
    for holding in &large {
        let before = node.forget_peak();
        guix.gets_nar(holding).await;
        let gain = node.peak_resident_bytes().saturating_sub(before);
        assert!(gain < GAIN_BYTES, "{} took {} MiB more", holding.item(), gain >> 20);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_server_is_asked_for_what_one_lacks_or_breaks() {
    let stage = Stage::new();
    let mut first = Mirror::create(stage.path("first"), 6);
    let mut second = Mirror::create(stage.path("second"), 7);
    let ours = first.add("in-the-first", 300_000, &[Compression::Zstd]);
    let theirs = second.add("in-the-second", 300_000, &[Compression::Gzip]);
    let mut one = StaticServer::start(first.root()).await.expect("a server");
    let two = StaticServer::start(second.root()).await.expect("a server");
    let node = stage.node("a").acl(first.key_file()).acl(second.key_file());
    let node = node.upstream(&one.url()).upstream(&two.url()).start().await;
    let mut acl = first.acl();
    acl.merge(second.acl());
    let guix = Guix::new(node.http(), acl);
    guix.gets_all(&[theirs, ours]).await;
    // A server that is down is no reason to find nothing at the other.
    let late = second.add("later", 300_000, &[Compression::Lzip]);
    one.stop().await;
    guix.gets_all(&[late]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_request_and_a_range_agree_with_the_whole() {
    use narswarm_tests::harness::http_client::HttpClient;
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 8);
    let holding = mirror.add("large", 3 << 20, &[Compression::Zstd]);
    let server = StaticServer::start(mirror.root()).await.expect("a server");
    let node = stage.node("a").acl(mirror.key_file()).upstream(&server.url()).start().await;
    let mut client = HttpClient::connect(node.http()).await.expect("the node listens");
    let path = holding.nar_path();
    let head = client.head(&path).await.expect("an answer");
    assert_eq!((head.status, head.content_length()), (200, Some(holding.nar_size())));
    // Before the nar is held, and after.
    for _ in 0..2 {
        let (from, to) = (1_000_000, 1_600_000);
        let request = client.spell("GET", &path);
        let request = request.replace("\r\n\r\n", &format!("\r\nRange: bytes={from}-{to}\r\n\r\n"));
        client.send(request.as_bytes()).await.expect("sent");
        let part = client.read_reply().await.expect("an answer");
        assert_eq!(part.head.status, 206);
        assert!(part.body == holding.nar().slice(from..=to), "another part");
        Guix::new(node.http(), mirror.acl()).gets_all(std::slice::from_ref(&holding)).await;
        node.keeps(std::slice::from_ref(&holding)).await;
    }
}
