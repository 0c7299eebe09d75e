//! What clients may take up: bytes, time and connections.

use super::*;

#[tokio::test]
async fn a_megabyte_request_line_is_refused_without_being_kept() {
    let shim = Shim::start().await;
    let mut client = shim.client().await;
    let long = [b"GET /".as_slice(), &vec![b'x'; 1 << 20], b" HTTP/1.1\r\n\r\n"].concat();
    client.send(&long).await;
    let answer = client.answer(false).await;
    assert_eq!((answer.status, answer.field("Connection")), (414, Some("close")));
    assert_eq!(client.until_end().await, (Vec::new(), None));
    let mut client = shim.client().await;
    let long = [b"GET / HTTP/1.1\r\nX: ".as_slice(), &vec![b'x'; 1 << 20], b"\r\n\r\n"].concat();
    client.send(&long).await;
    assert_eq!(client.answer(false).await.status, 431);
    assert_eq!(client.until_end().await, (Vec::new(), None));
    assert_eq!(shim.ask(&get("/healthz")).await.status, 200);
}

#[tokio::test]
async fn a_head_that_does_not_end_times_out() {
    let config = HttpConfig { head_timeout: Duration::from_millis(50), ..HttpConfig::default() };
    let shim = Shim::start_with(config, Twin::default()).await;
    let mut client = shim.client().await;
    client.send(b"GET / HTT").await;
    assert_eq!(client.answer(false).await.status, 408);
    assert_eq!(client.until_end().await, (Vec::new(), None));
}

#[tokio::test]
async fn an_idle_connection_is_closed_in_time() {
    let config = HttpConfig { idle_timeout: Duration::from_millis(50), ..HttpConfig::default() };
    let shim = Shim::start_with(config, Twin::default()).await;
    let mut client = shim.client().await;
    client.send(narinfo_request(0).as_bytes()).await;
    client.answer(false).await;
    assert_eq!(client.until_end().await, (Vec::new(), None));
}

#[tokio::test]
async fn at_the_limit_the_oldest_idle_connection_makes_room() {
    let config = HttpConfig { max_connections: 3, ..HttpConfig::default() };
    let shim = Shim::start_with(config, Twin::default()).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = shim.client().await;
        client.send(get("/healthz").as_bytes()).await;
        client.answer(false).await;
        clients.push(client);
    }
    let mut fourth = shim.client().await;
    fourth.send(get("/healthz").as_bytes()).await;
    assert_eq!(fourth.answer(false).await.status, 200);
    let mut rest = clients.split_off(1);
    assert_eq!(clients.remove(0).until_end().await, (Vec::new(), None));
    for client in &mut rest {
        client.send(get("/healthz").as_bytes()).await;
        assert_eq!(client.answer(false).await.status, 200);
    }
}

#[tokio::test]
async fn when_all_are_busy_a_new_connection_is_told_so() {
    let config = HttpConfig { max_connections: 1, ..HttpConfig::default() };
    let shim = Shim::start_with(config, Twin::default()).await;
    let feed = shim.twin.feed("a", 2);
    let mut busy = shim.client().await;
    busy.send(get(&format!("/nar/{}", item("a"))).as_bytes()).await;
    feed.send(Ok("x".into())).await.expect("fed");
    busy.head().await;
    let mut second = shim.client().await;
    assert_eq!(second.answer(false).await.status, 503);
    feed.send(Ok("y".into())).await.expect("fed");
    while busy.buffer.len() < 2 {
        busy.read().await.expect("body");
    }
    assert_eq!(busy.buffer, b"xy");
    assert_eq!(shim.metrics.http_shed.get(), 1);
}
