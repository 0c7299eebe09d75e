//! The harness itself must tell the truth.

use super::delay::DelayProxy;
use super::http_client::{ClientError, Cut, HttpClient};
use super::upstream::{StaticServer, Temper};
use std::time::{Duration, Instant};

/// A site of three hundred narinfos and one large nar.
fn site() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(root.path().join("nar")).expect("a directory");
    std::fs::write(root.path().join("nar/large"), large()).expect("a file");
    for number in 0..300 {
        let file = root.path().join(format!("{number}.narinfo"));
        std::fs::write(file, format!("narinfo {number}")).expect("a file");
    }
    root
}

fn large() -> Vec<u8> {
    (0..3_000_000u32).map(|n| (n >> 5) as u8).collect()
}

fn narinfo_paths() -> Vec<String> {
    (0..300).map(|number| format!("/{number}.narinfo")).collect()
}

#[tokio::test]
async fn a_burst_is_answered_in_order_over_one_connection() {
    let root = site();
    let server = StaticServer::start(root.path()).await.expect("a server");
    let client = HttpClient::connect(server.address()).await.expect("connects");
    let burst = client.burst(&narinfo_paths()).await.expect("answers");
    for (number, reply) in burst.replies.iter().enumerate() {
        assert_eq!(reply.head.status, 200);
        assert_eq!(reply.body, format!("narinfo {number}"));
    }
    assert_eq!((burst.replies.len(), server.seen().narinfos()), (300, 300));
    assert_eq!(server.seen().connections(), 1);
    assert!(burst.first <= burst.total);
}

#[tokio::test]
async fn the_delay_is_a_round_trip_each_and_not_a_rate() {
    let root = site();
    let server = StaticServer::start(root.path()).await.expect("a server");
    let one_way = Duration::from_millis(25);
    let proxy = DelayProxy::start(server.address(), one_way).await.expect("a proxy");
    let start = Instant::now();
    let mut client = HttpClient::connect(proxy.address()).await.expect("connects");
    assert_eq!(client.get("/0.narinfo").await.expect("an answer").head.status, 200);
    // The handshake's round trip and the request's.
    assert!(start.elapsed() >= 4 * one_way, "{:?}", start.elapsed());
    std::fs::write(root.path().join("nar/larger"), vec![1; 16 << 20]).expect("a file");
    let start = Instant::now();
    let reply = client.get("/nar/larger").await.expect("an answer");
    assert_eq!(reply.body.len(), 16 << 20);
    assert!(start.elapsed() >= 2 * one_way);
    // Two hundred and fifty-six reads, one per delay, would take 6.4 s; without, it is a tenth.
    assert!(start.elapsed() < 200 * one_way, "{:?}", start.elapsed());
    assert_eq!(proxy.connections(), 1);
}

#[tokio::test]
async fn reset_and_close_are_told_apart_through_the_proxy_too() {
    let root = site();
    let server = StaticServer::start(root.path()).await.expect("a server");
    let proxy =
        DelayProxy::start(server.address(), Duration::from_millis(1)).await.expect("a proxy");
    for address in [server.address(), proxy.address()] {
        for (temper, expected) in
            [(Temper::ResetAfter(1000), Cut::Reset), (Temper::CloseAfter(1000), Cut::Closed)]
        {
            server.answer_nars(temper);
            let mut client = HttpClient::connect(address).await.expect("connects");
            let error = client.get("/nar/large").await.expect_err("cut");
            let ClientError::Cut { cut, body_bytes } = error else { panic!("{error}") };
            assert_eq!(cut, expected);
            // A reset may overtake octets.
            assert!(body_bytes <= 1000 && (cut == Cut::Reset || body_bytes == 1000));
        }
    }
}

#[tokio::test]
async fn a_server_misbehaves_as_told() {
    let root = site();
    let mut server = StaticServer::start(root.path()).await.expect("a server");
    let mut client = HttpClient::connect(server.address()).await.expect("connects");
    for (temper, status) in [(Temper::Missing, 404), (Temper::Broken, 500), (Temper::Well, 200)] {
        server.answer_narinfos(temper);
        assert_eq!(client.get("/7.narinfo").await.expect("an answer").head.status, status);
    }
    for path in ["/../etc/passwd", "/none.narinfo", "/", "//etc/passwd"] {
        assert_eq!(client.get(path).await.expect("an answer").head.status, 404, "{path}");
    }
    server.answer_nars(Temper::CorruptAt(2_500_000));
    let corrupt = client.get("/nar/large").await.expect("an answer").body;
    let right = large();
    let wrong: Vec<usize> = (0..right.len()).filter(|&at| corrupt[at] != right[at]).collect();
    assert_eq!(wrong, [2_500_000]);
    let head = client.head("/nar/large").await.expect("an answer");
    assert_eq!(head.content_length(), Some(3_000_000));
    server.answer_nars(Temper::StallAfter(10));
    let stalled = tokio::time::timeout(Duration::from_millis(200), client.get("/nar/large")).await;
    assert!(stalled.is_err(), "{stalled:?}");
    server.stop().await;
    assert!(HttpClient::connect(server.address()).await.is_err());
    server.resume().await.expect("the same port");
    server.answer_nars(Temper::Well);
    let mut client = HttpClient::connect(server.address()).await.expect("connects");
    assert_eq!(client.get("/nar/large").await.expect("an answer").body.len(), 3_000_000);
}
