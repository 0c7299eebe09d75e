//! Nars: ranges, and what the client sees when a body fails.

use super::*;
use crate::metrics::{AbortCause, AbortedLabels};
use std::io::ErrorKind;

fn aborted(shim: &Shim, cause: AbortCause) -> u64 {
    shim.metrics.nar_aborted.get_or_create(&AbortedLabels { cause }).get()
}

/// Waits until a body has been counted as aborted for `cause`.
async fn until_aborted(shim: &Shim, cause: AbortCause) {
    within(async {
        while aborted(shim, cause) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

fn nar(name: &str) -> String {
    format!("/nar/{}", item(name))
}

#[tokio::test]
async fn a_failure_in_mid_body_resets_the_connection() {
    let shim = Shim::start().await;
    let feed = shim.twin.feed("a", 1000);
    let mut client = shim.client().await;
    client.send(get(&nar("a")).as_bytes()).await;
    feed.send(Ok(pattern(100))).await.expect("fed");
    let head = client.head().await;
    assert!(head.contains("\r\nContent-Length: 1000\r\n"), "{head}");
    while client.buffer.len() < 100 {
        client.read().await.expect("body");
    }
    feed.send(Err(NarAborted::Mismatch)).await.expect("fed");
    assert_eq!(client.until_end().await, (pattern(100).to_vec(), Some(ErrorKind::ConnectionReset)));
    assert_eq!(aborted(&shim, AbortCause::Mismatch), 1);
}

#[tokio::test]
async fn a_failure_before_the_first_byte_is_told_by_its_status() {
    let shim = Shim::start().await;
    let mut client = shim.client().await;
    for name in ["failed", "empty"] {
        let feed = shim.twin.feed(name, 1000);
        client.send(get(&nar(name)).as_bytes()).await;
        if name == "failed" {
            feed.send(Err(NarAborted::SourcesLost)).await.expect("fed");
        }
        drop(feed);
        assert_eq!(client.answer(false).await.status, 502, "{name}");
    }
    // The connection is as good as before.
    client.send(narinfo_request(0).as_bytes()).await;
    assert_eq!(client.answer(false).await.status, 200);
}

#[tokio::test]
async fn a_failure_after_the_head_but_before_the_first_byte_resets() {
    let config = HttpConfig { first_byte_patience: Duration::ZERO, ..HttpConfig::default() };
    let shim = Shim::start_with(config, Twin::default()).await;
    let feed = shim.twin.feed("a", 1000);
    let mut client = shim.client().await;
    client.send(get(&nar("a")).as_bytes()).await;
    client.head().await;
    feed.send(Err(NarAborted::Mismatch)).await.expect("fed");
    assert_eq!(client.until_end().await, (Vec::new(), Some(ErrorKind::ConnectionReset)));
}

#[tokio::test]
async fn a_body_of_another_length_than_announced_resets() {
    let shim = Shim::start().await;
    for (chunks, arrives) in [(vec![400, 500], 900), (vec![400, 601], 400)] {
        let feed = shim.twin.feed("a", 1000);
        let mut client = shim.client().await;
        client.send(get(&nar("a")).as_bytes()).await;
        for length in chunks {
            feed.send(Ok(pattern(length))).await.expect("fed");
        }
        drop(feed);
        client.head().await;
        let (bytes, end) = client.until_end().await;
        assert_eq!((bytes.len(), end), (arrives, Some(ErrorKind::ConnectionReset)));
    }
    assert_eq!(aborted(&shim, AbortCause::Local), 2);
}

#[tokio::test]
async fn a_body_that_stands_still_is_reset() {
    let config = HttpConfig { body_stall: Duration::from_millis(50), ..HttpConfig::default() };
    let shim = Shim::start_with(config, Twin::default()).await;
    let feed = shim.twin.feed("a", 1000);
    let mut client = shim.client().await;
    client.send(get(&nar("a")).as_bytes()).await;
    feed.send(Ok(pattern(100))).await.expect("fed");
    client.head().await;
    let (bytes, end) = client.until_end().await;
    assert_eq!((bytes.len(), end), (100, Some(ErrorKind::ConnectionReset)));
    assert_eq!(aborted(&shim, AbortCause::Sources), 1);
}

#[tokio::test]
async fn shutting_down_resets_bodies_and_ends_idle_connections() {
    let config = HttpConfig { shutdown_grace: Duration::from_millis(50), ..HttpConfig::default() };
    let shim = Shim::start_with(config, Twin::default()).await;
    let feed = shim.twin.feed("a", 1000);
    let mut busy = shim.client().await;
    busy.send(get(&nar("a")).as_bytes()).await;
    feed.send(Ok(pattern(100))).await.expect("fed");
    busy.head().await;
    let mut idle = shim.client().await;
    idle.send(narinfo_request(0).as_bytes()).await;
    idle.answer(false).await;
    shim.stop.cancel();
    assert_eq!(idle.until_end().await, (Vec::new(), None));
    assert_eq!(busy.until_end().await.1, Some(ErrorKind::ConnectionReset));
    within(shim.task).await.expect("no panic").expect("served");
    assert!(feed.is_closed());
}

#[tokio::test]
async fn shutting_down_lets_a_body_finish_that_can() {
    let shim = Shim::start().await;
    let feed = shim.twin.feed("a", 200);
    let mut client = shim.client().await;
    client.send(get(&nar("a")).as_bytes()).await;
    feed.send(Ok(pattern(100))).await.expect("fed");
    client.head().await;
    shim.stop.cancel();
    feed.send(Ok(pattern(100))).await.expect("fed");
    let (bytes, end) = client.until_end().await;
    assert_eq!((bytes.len(), end), (200, None));
}

#[tokio::test]
async fn a_client_that_goes_away_takes_the_body_with_it() {
    let shim = Shim::start().await;
    // It leaves while the body waits for its source.
    let feed = shim.twin.feed("a", 1000);
    let mut client = shim.client().await;
    client.send(get(&nar("a")).as_bytes()).await;
    feed.send(Ok(pattern(100))).await.expect("fed");
    client.head().await;
    drop(client);
    within(feed.closed()).await;
    // It leaves before the body was opened.
    shim.twin.put("never", Script::Never);
    let mut client = shim.client().await;
    client.send(get(&nar("never")).as_bytes()).await;
    drop(client);
    within(async {
        while aborted(&shim, AbortCause::ClientGone) < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_that_stops_reading_is_reset() {
    let config = HttpConfig { write_stall: Duration::from_millis(100), ..HttpConfig::default() };
    let shim = Shim::start_with(config, Twin::default()).await;
    shim.twin.put("huge", Script::Whole(Bytes::from(vec![0; 64 << 20])));
    let mut client = shim.client().await;
    client.send(get(&nar("huge")).as_bytes()).await;
    until_aborted(&shim, AbortCause::ClientStalled).await;
    assert_eq!(client.until_end().await.1, Some(ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_complete_body_ends_without_a_reset() {
    let shim = Shim::start().await;
    let bytes = pattern(9_000_000);
    shim.twin.put("a", Script::Whole(bytes.clone()));
    let mut client = shim.client().await;
    client.send(get_with(&nar("a"), "Connection: close").as_bytes()).await;
    assert_eq!(client.answer(false).await.body, bytes);
    assert_eq!(client.until_end().await, (Vec::new(), None));
    assert_eq!(shim.metrics.sent_to_http_bytes.get(), 9_000_000);
}

#[tokio::test]
async fn refusals_are_complete_answers() {
    let shim = Shim::start().await;
    let busy = NarRefusal::Busy { retry_after: Duration::from_secs(9) };
    shim.twin.put("busy", Script::Refused(busy));
    shim.twin.put("late", Script::Refused(NarRefusal::TimedOut));
    let answer = shim.ask(&get(&nar("busy"))).await;
    assert_eq!((answer.status, answer.field("Retry-After")), (503, Some("9")));
    assert_eq!(shim.ask(&get(&nar("late"))).await.status, 504);
    assert_eq!(shim.ask(&get(&nar("unknown"))).await.status, 404);
    let digest = narswarm_protocol::base32::encode(&[1; 32]);
    assert_eq!(shim.ask(&get(&format!("/file/a.tar/sha256/{digest}"))).await.status, 404);
}

#[tokio::test]
async fn a_nar_that_is_never_opened_is_a_504() {
    let config = HttpConfig { nar_deadline: Duration::from_millis(50), ..HttpConfig::default() };
    let shim = Shim::start_with(config, Twin::default()).await;
    shim.twin.put("never", Script::Never);
    assert_eq!(shim.ask(&get(&nar("never"))).await.status, 504);
}

#[tokio::test]
async fn serves_ranges() {
    let shim = Shim::start().await;
    let bytes = pattern(1_000_000);
    shim.twin.put("a", Script::Whole(bytes.clone()));
    for (range, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=5-99", 5, 100),
        ("bytes=999999-", 999_999, 1_000_000),
        ("bytes=-300000", 700_000, 1_000_000),
        ("bytes=10-9999999", 10, 1_000_000),
    ] {
        let answer = shim.ask(&get_with(&nar("a"), &format!("Range: {range}"))).await;
        assert_eq!(answer.status, 206, "{range}");
        let expected = format!("bytes {from}-{}/1000000", to - 1);
        assert_eq!(answer.field("Content-Range"), Some(expected.as_str()));
        assert!(answer.body == bytes[from..to], "{range}");
    }
    let answer = shim.ask(&get_with(&nar("a"), "Range: bytes=1000000-")).await;
    assert_eq!((answer.status, answer.field("Content-Range")), (416, Some("bytes */1000000")));
    // What cannot be understood is ignored.
    for ignored in ["bytes=0-1,5-6", "lines=1-2", "bytes=9-1"] {
        let answer = shim.ask(&get_with(&nar("a"), &format!("Range: {ignored}"))).await;
        assert_eq!((answer.status, answer.body.len()), (200, 1_000_000), "{ignored}");
    }
}

#[tokio::test]
async fn conditions_compare_the_nars_hash() {
    let shim = Shim::start().await;
    shim.twin.put("a", Script::Whole(pattern(1000)));
    let whole = shim.ask(&get(&nar("a"))).await;
    let tag = format!("\"{}\"", NAR_HASH.to_narinfo());
    assert_eq!(whole.field("ETag"), Some(tag.as_str()));
    assert_eq!(whole.field("Accept-Ranges"), Some("bytes"));
    let ask = async |fields: &str| shim.ask(&get_with(&nar("a"), fields)).await.status;
    assert_eq!(ask(&format!("Range: bytes=0-1\r\nIf-Range: {tag}")).await, 206);
    assert_eq!(ask("Range: bytes=0-1\r\nIf-Range: \"other\"").await, 200);
    assert_eq!(ask("Range: bytes=0-1\r\nIf-Range: Tue, 15 Nov 1994 12:45:26 GMT").await, 200);
    assert_eq!(ask(&format!("If-None-Match: \"x\", W/{tag}")).await, 304);
    assert_eq!(ask("If-None-Match: \"x\"").await, 200);
    // Compressed bytes have no identity.
    let path = format!("/nar/zstd/{}", item("a"));
    assert_eq!(shim.ask(&get(&path)).await.field("ETag"), None);
    let fields = format!("Range: bytes=0-1\r\nIf-Range: {tag}");
    assert_eq!(shim.ask(&get_with(&path, &fields)).await.status, 200);
}

#[tokio::test]
async fn head_tells_the_length_and_sends_nothing() {
    let shim = Shim::start().await;
    shim.twin.put("a", Script::Whole(pattern(1000)));
    let mut client = shim.client().await;
    let request =
        format!("HEAD {} HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-1\r\n\r\n", nar("a"));
    client.send(request.as_bytes()).await;
    client.send(narinfo_request(2).as_bytes()).await;
    let answer = client.answer(true).await;
    assert_eq!((answer.status, answer.field("Content-Length")), (200, Some("1000")));
    assert_eq!(answer.field("Content-Type"), Some("application/x-nix-archive"));
    assert_eq!(client.answer(false).await.status, 404);
}
