//! HTTP clients that are no guix: odd names, endless lines, thousands of connections.

use narswarm_protocol::narinfo::Compression;
use narswarm_tests::harness::guix::Guix;
use narswarm_tests::harness::http_client::{ClientError, HttpClient};
use narswarm_tests::harness::mirror::Mirror;
use narswarm_tests::harness::node::{Node, Stage};
use narswarm_tests::harness::samples::not_tested;
use narswarm_tests::harness::waiting::soon;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs;
use tokio::net::TcpStream;

/// Memory that a client may make a node hold with one request.
const GAIN_BYTES: u64 = 16 << 20;

/// Connections that are opened at once.
const CONNECTIONS: u64 = 10_000;

/// Memory that one idle connection may take: a few kilobytes and what the allocator rounds up.
const CONNECTION_BYTES: u64 = 16 * 1024;

struct Scene {
    _stage: Stage,
    mirror: Mirror,
    node: Node,
    guix: Guix,
}

async fn scene() -> Scene {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 1);
    mirror.add("hello-2.12.1", 1000, &[Compression::Zstd]);
    stage.import("a", &mirror.key_file(), &[mirror.root()]).await.well();
    // Something that a traversal would find.
    fs::write(stage.path("secret"), "secret").expect("a file");
    let node = stage.node("a").acl(mirror.key_file()).start().await;
    let guix = Guix::new(node.http(), mirror.acl());
    Scene { _stage: stage, mirror, node, guix }
}

impl Scene {
    /// Others are served as if nothing were.
    async fn serves(&self) {
        self.guix.gets_all(self.mirror.holdings()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_paths_lead_nowhere() {
    let scene = scene().await;
    let item = scene.mirror.holdings()[0].item().to_owned();
    let hash = scene.mirror.holdings()[0].hash();
    let mut paths: Vec<String> = [
        "/nar/../../secret",
        "/nar/..%2f..%2fsecret",
        "/nar/%2e%2e/%2e%2e/secret",
        "/../secret",
        "//secret",
        "/nar//etc/passwd",
        "/nar/%2fetc%2fpasswd",
        "/nar/",
        "/nar/%00",
        "/nar/%",
        "/nar/%zz",
        "/nar/zstd/../zstd",
        "/file/../sha256/0",
        "/file/x/sha256/..",
        "/.narinfo",
        "/..narinfo",
        "/node.key",
        "/index",
        "/*",
        "/%ff%fe",
        "/nar/zab5qqb146vi73jmxl23i3ygcy7lsrps",
        "/nar/zab5qqb146vi73jmxl23i3ygcy7lsrps-",
        "/nar/eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee-hello",
    ]
    .map(str::to_owned)
    .into();
    paths.extend([
        format!("/nar/{item}%00"),
        format!("/nar/{item}/"),
        format!("/nar/{item}/../{item}"),
        format!("/nar/./{item}"),
        format!("/nar/{hash}-another-name"),
        format!("/nar/{hash}-.."),
        format!("/nar/{hash}-%2e%2e%2f%2e%2e%2fsecret"),
        format!("/nar/{hash}-{}", "x".repeat(4000)),
        format!("/nar/frobnicate/{item}"),
        format!("/{hash}.narinfo/"),
        format!("/{}.narinfo", hash.to_uppercase()),
        format!("/{hash}x.narinfo"),
        format!("/{hash}.narinfo%00"),
        format!("/nar/{hash}-%c3%a9"),
    ]);
    for path in &paths {
        let reply = scene.guix.get(path).await.unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(matches!(reply.head.status, 400 | 404 | 414), "{path}: {}", reply.head.status);
        assert!(!reply.body.windows(6).any(|octets| octets == b"secret"), "{path}");
    }
    scene.serves().await;
}

/// Sends octets; gets a refusal, or the end of the connection, and nothing else.
async fn is_turned_away(node: &Node, what: &str, octets: &[u8]) {
    let mut client = HttpClient::connect(node.http()).await.expect("the node listens");
    // It may have had enough before all is written.
    let _ = soon(what, client.send(octets)).await;
    match soon(what, client.read_reply()).await {
        Ok(reply) => {
            assert!((400..600).contains(&reply.head.status), "{what}: {}", reply.head.status)
        }
        Err(ClientError::Cut { .. }) => {}
        Err(error) => panic!("{what}: {error}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_and_broken_requests_are_turned_away_in_little_memory() {
    let scene = scene().await;
    scene.serves().await;
    let node = &scene.node;
    let line =
        [b"GET /", &vec![b'a'; 1 << 20][..], b" HTTP/1.1\r\nHost: localhost\r\n\r\n"].concat();
    let field = [b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", &vec![b'b'; 1 << 20][..]].concat();
    let fields = [b"GET / HTTP/1.1\r\n".to_vec(), b"X: y\r\n".repeat(100_000)].concat();
    let body =
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n".to_vec();
    let split = b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\
        Transfer-Encoding: chunked\r\n\r\n";
    for (what, octets) in [
        ("a line of a megabyte", line.clone()),
        ("a field of a megabyte", field),
        ("a hundred thousand fields", fields),
        ("a body without end", [body, vec![b'c'; 1 << 20]].concat()),
        ("two lengths", split.to_vec()),
        ("no HTTP", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".repeat(1000)),
        ("nothing but zeros", vec![0; 1 << 20]),
        ("HTTP of the future", b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n".to_vec()),
        ("no host", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("a foreign host", b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_vec()),
        ("another method", b"DELETE / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
    ] {
        let before = node.forget_peak();
        is_turned_away(node, what, &octets).await;
        let gain = node.peak_resident_bytes().saturating_sub(before);
        assert!(gain < GAIN_BYTES, "{what}: {} MiB more", gain >> 20);
    }
    // A hundred at a time are no more than one.
    let before = node.forget_peak();
    let many = (0..100).map(|_| is_turned_away(node, "a line of a megabyte", &line));
    futures::future::join_all(many).await;
    let gain = node.peak_resident_bytes().saturating_sub(before);
    assert!(gain < 4 * GAIN_BYTES, "{} MiB more", gain >> 20);
    scene.serves().await;
}

/// Whether this process may open so many descriptors.
fn allow_descriptors(count: u64) -> bool {
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|maximum| maximum < count) {
        return false;
    }
    let raised = Rlimit { current: Some(count), ..limit };
    setrlimit(Resource::Nofile, raised).is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_connections_leave_room_for_guix() {
    if !allow_descriptors(CONNECTIONS + 500) {
        return not_tested("this process may not open 10,500 files");
    }
    let scene = scene().await;
    scene.serves().await;
    let before = scene.node.forget_peak();
    let mut connections = Vec::new();
    for number in 0..CONNECTIONS {
        let opened = soon("a connection", TcpStream::connect(scene.node.http())).await;
        let stream = opened.unwrap_or_else(|error| panic!("connection {number}: {error}"));
        // Every other one has begun a request.
        if number % 2 == 0 {
            let _ = stream.try_write(b"GET /nix-cache");
        }
        connections.push(stream);
        if number % 1000 == 999 {
            scene.serves().await;
        }
    }
    let gain = scene.node.peak_resident_bytes().saturating_sub(before);
    assert!(gain < CONNECTIONS * CONNECTION_BYTES, "{} MiB more", gain >> 20);
    drop(connections);
    scene.serves().await;
}
