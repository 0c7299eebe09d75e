//! Many requests at once on one connection.

use super::*;

async fn asks_in_one_write(count: u32, most_batches: usize) {
    let shim = Shim::start().await;
    let client = shim.client().await;
    let requests: String = (0..count).map(narinfo_request).collect();
    let (mut reading, mut writing) = client.stream.into_split();
    let sending = tokio::spawn(async move {
        writing.write_all(requests.as_bytes()).await.expect("sent");
    });
    let mut buffer = Vec::new();
    for n in 0..count {
        let expected = answer_for(hash(n));
        let (status, body) = match &expected {
            NarinfoAnswer::Hit { body, .. } => ("200", body.clone()),
            _ => ("404", Bytes::new()),
        };
        let head_end = loop {
            if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
            assert_ne!(within(reading.read_buf(&mut buffer)).await.expect("answer"), 0);
        };
        while buffer.len() < head_end + body.len() {
            assert_ne!(within(reading.read_buf(&mut buffer)).await.expect("answer"), 0);
        }
        assert_eq!(&buffer[9..12], status.as_bytes(), "answer {n}");
        assert_eq!(&buffer[head_end..head_end + body.len()], body, "answer {n}");
        buffer.drain(..head_end + body.len());
    }
    assert!(buffer.is_empty());
    let batches = shim.twin.batches.borrow();
    let asked: Vec<StoreHash> = batches.concat();
    assert_eq!(asked, (0..count).map(hash).collect::<Vec<_>>());
    assert!(batches.len() <= most_batches, "{} batches", batches.len());
    within(sending).await.expect("sender");
}

#[tokio::test]
async fn a_thousand_requests_are_resolved_together_and_answered_in_order() {
    // One write of 106 kB arrives in a handful of segments, each of which may be seen alone.
    asks_in_one_write(1000, 16).await;
}

#[tokio::test]
async fn three_thousand_requests_exceed_the_queue_and_are_answered_all_the_same() {
    asks_in_one_write(3000, 64).await;
}

#[tokio::test]
async fn a_request_may_come_in_any_pieces() {
    let shim = Shim::start().await;
    let mut client = shim.client().await;
    client.stream.set_nodelay(true).expect("nodelay");
    for _ in 0..3 {
        // As guix writes it: `GET` alone, then the rest.
        let request = narinfo_request(0);
        client.send(&request.as_bytes()[..3]).await;
        tokio::task::yield_now().await;
        client.send(&request.as_bytes()[3..]).await;
        assert_eq!(client.answer(false).await.status, 200);
    }
    for byte in narinfo_request(1).as_bytes() {
        client.send(&[*byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(client.answer(false).await.status, 200);
}

#[tokio::test]
async fn a_slow_answer_holds_back_only_what_follows_it() {
    let shim = Shim::start().await;
    let held = shim.twin.hold(50);
    let mut client = shim.client().await;
    client.send((0..100).map(narinfo_request).collect::<String>().as_bytes()).await;
    for n in 0..50 {
        let answer = client.answer(false).await;
        assert_eq!(answer.status == 404, n % 3 == 2, "{n}");
    }
    assert!(client.buffer.is_empty());
    held.send(NarinfoAnswer::Hit { body: "late".into(), max_age: Duration::ZERO }).expect("held");
    assert_eq!(client.answer(false).await.text(), "late");
    for n in 51..100 {
        assert_eq!(client.answer(false).await.status == 404, n % 3 == 2, "{n}");
    }
}

#[tokio::test]
async fn what_arrives_while_an_answer_is_awaited_is_resolved_at_once() {
    let shim = Shim::start().await;
    let held = shim.twin.hold(0);
    let mut batches = shim.twin.batches.subscribe();
    let mut client = shim.client().await;
    client.send(narinfo_request(0).as_bytes()).await;
    within(batches.wait_for(|b| b.len() == 1)).await.expect("a batch");
    client.send((1..10).map(narinfo_request).collect::<String>().as_bytes()).await;
    within(batches.wait_for(|b| b.concat().len() == 10)).await.expect("all, while 0 is held");
    held.send(answer_for(hash(0))).expect("held");
    for _ in 0..10 {
        client.answer(false).await;
    }
}

#[tokio::test]
async fn what_arrives_during_a_body_is_resolved_at_once() {
    let shim = Shim::start().await;
    let feed = shim.twin.feed("a", 3);
    let mut batches = shim.twin.batches.subscribe();
    let mut client = shim.client().await;
    client.send(get(&format!("/nar/{}", item("a"))).as_bytes()).await;
    feed.send(Ok("x".into())).await.expect("fed");
    client.head().await;
    client.send(narinfo_request(4).as_bytes()).await;
    within(batches.wait_for(|b| b.len() == 1)).await.expect("a batch");
    feed.send(Ok("yz".into())).await.expect("fed");
    while client.buffer.len() < 3 {
        client.read().await.expect("body");
    }
    assert_eq!(client.buffer.drain(..3).collect::<Vec<_>>(), b"xyz");
    assert_eq!(client.answer(false).await.status, 200);
}

#[tokio::test]
async fn narinfos_and_nars_mix_on_one_connection() {
    let shim = Shim::start().await;
    let big = pattern(700_000);
    shim.twin.put("big", Script::Whole(big.clone()));
    shim.twin.put("small", Script::Whole("tiny".into()));
    let mut client = shim.client().await;
    let requests = [
        narinfo_request(0),
        get(&format!("/nar/{}", item("big"))),
        narinfo_request(2),
        get("/nowhere"),
        format!("HEAD /{}.narinfo HTTP/1.1\r\nHost: localhost\r\n\r\n", hash(3)),
        get(&format!("/nar/zstd/{}", item("small"))),
        narinfo_request(1),
    ];
    client.send(requests.concat().as_bytes()).await;
    assert_eq!(client.answer(false).await.status, 200);
    assert_eq!(client.answer(false).await.body, big);
    assert_eq!(client.answer(false).await.status, 404);
    assert_eq!(client.answer(false).await.status, 404);
    let head = client.answer(true).await;
    assert_eq!(head.status, 200);
    assert_ne!(head.field("Content-Length"), Some("0"));
    assert_eq!(client.answer(false).await.text(), "tiny");
    assert_eq!(client.answer(false).await.status, 200);
    assert_eq!(shim.twin.batches.borrow().concat(), [hash(0), hash(2), hash(3), hash(1)]);
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_a_short_lived_miss() {
    let config = HttpConfig {
        narinfo_deadline: Duration::from_millis(50),
        unavailable_max_age: Duration::from_secs(7),
        ..HttpConfig::default()
    };
    let shim = Shim::start_with(config, Twin::default()).await;
    let _held = shim.twin.hold(0);
    let mut client = shim.client().await;
    client.send((narinfo_request(0) + &narinfo_request(1)).as_bytes()).await;
    let answer = client.answer(false).await;
    assert_eq!((answer.status, answer.field("Cache-Control")), (404, Some("max-age=7")));
    assert_eq!(client.answer(false).await.status, 200);
    assert_eq!(shim.metrics.narinfo_unavailable.get(), 1);
}

#[tokio::test]
async fn a_backend_that_forgets_an_answer_does_not_shift_the_others() {
    let twin = Twin { forgets_the_last: true, ..Twin::default() };
    let shim = Shim::start_with(HttpConfig::default(), twin).await;
    let answer = shim.ask(&narinfo_request(0)).await;
    assert_eq!((answer.status, answer.field("Cache-Control")), (404, Some("max-age=10")));
}

#[tokio::test]
async fn a_client_that_closes_its_side_gets_all_answers() {
    let shim = Shim::start().await;
    let held = shim.twin.hold(1);
    let mut batches = shim.twin.batches.subscribe();
    let mut client = shim.client().await;
    client.send((0..3).map(narinfo_request).collect::<String>().as_bytes()).await;
    client.stream.shutdown().await.expect("half closed");
    within(batches.wait_for(|b| b.concat().len() == 3)).await.expect("all");
    assert_eq!(client.answer(false).await.status, 200);
    held.send(answer_for(hash(1))).expect("held");
    assert_eq!(client.answer(false).await.status, 200);
    assert_eq!(client.answer(false).await.status, 404);
    assert_eq!(client.until_end().await, (Vec::new(), None));
}
