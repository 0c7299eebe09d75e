//! Narinfos: pipelining, several servers, and servers that misbehave.

use super::server::{TestServer, ok, status};
use super::{dead_url, hash, impatient, upstreams, with_config};
use crate::upstream::{NarinfoReply, UpstreamConfig, UpstreamError, Upstreams};
use narswarm_protocol::limits::MAX_NARINFO_BYTES;
use narswarm_protocol::store_path::StoreHash;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};
use url::Url;

/// No batch may take longer, whatever the server does.
const PATIENCE: Duration = Duration::from_secs(20);

/// The reply for each hash; fails the test unless each has exactly one.
async fn ask(
    upstreams: &Upstreams,
    numbers: std::ops::Range<usize>,
) -> BTreeMap<StoreHash, NarinfoReply> {
    let mut replies = upstreams.narinfos(numbers.clone().map(hash).collect());
    let mut seen = BTreeMap::new();
    let collected = async {
        while let Some((hash, reply)) = replies.next().await {
            assert!(seen.insert(hash, reply).is_none(), "two replies for {hash}");
        }
    };
    timeout(PATIENCE, collected).await.expect("all replies in bounded time");
    assert_eq!(seen.len(), numbers.len());
    seen
}

async fn ask_one(upstreams: &Upstreams, number: usize) -> NarinfoReply {
    ask(upstreams, number..number + 1).await.remove(&hash(number)).expect("a reply")
}

/// A body that names the path, so that swapped answers are seen.
fn echo(path: &str) -> Vec<u8> {
    ok(format!("narinfo of {path}"))
}

/// Counts the replies that are the server's answer for the very hash.
fn count_right(replies: &BTreeMap<StoreHash, NarinfoReply>, from: usize) -> usize {
    replies
        .iter()
        .filter(|(hash, reply)| {
            matches!(reply, NarinfoReply::Found { upstream, body }
                if *upstream == from && *body == format!("narinfo of /{hash}.narinfo"))
        })
        .count()
}

#[tokio::test]
async fn two_thousand_travel_in_a_few_reads_over_two_connections() {
    let server = TestServer::answering(echo).await;
    let upstreams = upstreams(&[&server.url]);
    let replies = ask(&upstreams, 0..2000).await;
    assert_eq!(count_right(&replies, 0), 2000);
    assert_eq!(server.seen.requests(), 2000);
    assert!(server.seen.connections() <= 2, "{:?}", server.seen);
    // One at a time would be two thousand.
    assert!(server.seen.reads() <= 40, "{:?}", server.seen);
}

#[tokio::test]
async fn a_request_does_not_wait_for_the_answer_before_it() {
    // Answers nothing before it has seen all hundred requests.
    let server = TestServer::start(|_, mut wire| async move {
        let mut paths = Vec::new();
        while paths.len() < 100 {
            paths.push(wire.path().await?);
        }
        for path in paths {
            wire.send(&echo(&path)).await?;
        }
        wire.idle().await
    })
    .await;
    let replies = ask(&upstreams(&[&server.url]), 0..100).await;
    assert_eq!(count_right(&replies, 0), 100);
}

#[tokio::test]
async fn a_second_batch_starts_while_the_first_is_under_way() {
    // The first request is answered when the second batch has arrived.
    let server = TestServer::start(|_, mut wire| async move {
        let first = wire.path().await?;
        let second = wire.path().await?;
        wire.send(&[echo(&first), echo(&second)].concat()).await?;
        wire.idle().await
    })
    .await;
    let upstreams = with_config(&[&server.url], UpstreamConfig { connections: 1, ..impatient() });
    let (one, two) = tokio::join!(ask(&upstreams, 0..1), ask(&upstreams, 1..2));
    assert_eq!((count_right(&one, 0), count_right(&two, 0)), (1, 1));
    assert_eq!(server.seen.connections(), 1);
}

#[tokio::test]
async fn connections_are_reused_and_opened_ahead() {
    let server = TestServer::answering(echo).await;
    let upstreams = upstreams(&[&server.url]);
    upstreams.connect_ahead();
    upstreams.connect_ahead();
    let deadline = Instant::now() + PATIENCE;
    while server.seen.connections() == 0 {
        assert!(Instant::now() < deadline, "no connection was opened ahead");
        tokio::task::yield_now().await;
    }
    for batch in 0..5 {
        let replies = ask(&upstreams, batch * 10..batch * 10 + 10).await;
        assert_eq!(count_right(&replies, 0), 10);
    }
    assert_eq!(server.seen.connections(), 1);
}

#[tokio::test]
async fn a_close_in_mid_pipeline_costs_no_reply() {
    // As nginx does with `keepalive_requests 30`, once announced and once not.
    for announcement in ["Connection: close\r\n", ""] {
        let server = TestServer::start(move |_, mut wire| async move {
            for answered in 1..=30 {
                let path = wire.path().await?;
                let body = format!("narinfo of {path}");
                let close = if answered == 30 { announcement } else { "" };
                let length = body.len();
                let answer =
                    format!("HTTP/1.1 200 OK\r\n{close}Content-Length: {length}\r\n\r\n{body}");
                wire.send(answer.as_bytes()).await?;
            }
            // A close with unread requests would be a reset that takes answers with it; well-kept
            // servers linger instead.
            use tokio::io::AsyncWriteExt;
            wire.stream.shutdown().await.ok()?;
            wire.idle().await
        })
        .await;
        let upstreams = upstreams(&[&server.url]);
        let replies = ask(&upstreams, 0..200).await;
        assert_eq!(count_right(&replies, 0), 200, "{announcement:?} {:?}", server.seen);
        assert!(server.seen.connections() <= 10, "{:?}", server.seen);
        // The limit is learned after the first time: little is sent in vain.
        assert!(server.seen.requests() <= 260, "{:?}", server.seen);
    }
}

#[tokio::test]
async fn a_stale_connection_is_replaced_in_silence() {
    let server = TestServer::start(|_, mut wire| async move {
        let path = wire.path().await?;
        wire.send(&echo(&path)).await
    })
    .await;
    let upstreams = upstreams(&[&server.url]);
    for number in 0..5 {
        let reply = ask_one(&upstreams, number).await;
        assert!(matches!(reply, NarinfoReply::Found { .. }), "{number}: {reply:?}");
    }
}

#[tokio::test]
async fn a_connection_cut_in_mid_body_is_tried_thrice_at_most() {
    let server = TestServer::start(|_, mut wire| async move {
        let path = wire.path().await?;
        let whole = echo(&path);
        wire.send(&whole[..whole.len() - 3]).await
    })
    .await;
    let reply = ask_one(&upstreams(&[&server.url]), 0).await;
    assert!(
        matches!(
            reply,
            NarinfoReply::Failed(UpstreamError::Closed { .. } | UpstreamError::Resting { .. })
        ),
        "{reply:?}"
    );
    assert_eq!(server.seen.connections(), 3);
}

#[tokio::test]
async fn misses_say_for_how_long() {
    let server = TestServer::answering(|path| match path {
        p if p.contains(&hash(0).to_string()) => status(404, "Cache-Control: max-age=300\r\n"),
        p if p.contains(&hash(1).to_string()) => status(404, ""),
        p if p.contains(&hash(2).to_string()) => {
            status(302, "Location: /x\r\nCache-Control: max-age=9\r\n")
        }
        _ => status(503, "Cache-Control: max-age=9\r\n"),
    })
    .await;
    let upstreams = upstreams(&[&server.url]);
    let age = |reply| match reply {
        NarinfoReply::NotFound { max_age } => max_age.map(|age| age.as_secs()),
        other => panic!("no miss: {other:?}"),
    };
    assert_eq!(age(ask_one(&upstreams, 0).await), Some(300));
    assert_eq!(age(ask_one(&upstreams, 1).await), None);
    assert_eq!(age(ask_one(&upstreams, 2).await), None);
    let failed = ask_one(&upstreams, 3).await;
    assert!(matches!(failed, NarinfoReply::Failed(UpstreamError::Status { status: 503, .. })));
}

#[tokio::test]
async fn chunked_and_closed_bodies_are_read() {
    let server = TestServer::answering(|path| {
        if path.contains(&hash(0).to_string()) {
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nStore\r\n4\r\nPath\r\n0\r\n\r\n"
                .to_vec()
        } else {
            ok("StorePath")
        }
    })
    .await;
    let until_close = TestServer::start(|_, mut wire| async move {
        wire.path().await?;
        wire.send(b"HTTP/1.1 200 OK\r\n\r\nStorePath").await
    })
    .await;
    for (url, numbers) in [(&server.url, 0..4), (&until_close.url, 0..3)] {
        for (hash, reply) in ask(&upstreams(&[url]), numbers).await {
            assert!(
                matches!(&reply, NarinfoReply::Found { body, .. } if body == "StorePath"),
                "{hash}: {reply:?}"
            );
        }
    }
}

#[tokio::test]
async fn an_oversize_narinfo_fails_alone() {
    let server = TestServer::answering(|path| {
        if path.contains(&hash(3).to_string()) {
            ok(vec![b'x'; MAX_NARINFO_BYTES + 1])
        } else {
            echo(path)
        }
    })
    .await;
    let mut replies = ask(&upstreams(&[&server.url]), 0..10).await;
    let oversize = replies.remove(&hash(3)).expect("a reply");
    assert!(matches!(oversize, NarinfoReply::Failed(UpstreamError::Protocol { .. })));
    assert_eq!(count_right(&replies, 0), 9);
}

#[tokio::test]
async fn garbage_fails_at_once_and_lets_the_server_rest() {
    let server = TestServer::start(|_, mut wire| async move {
        wire.path().await?;
        wire.send(b"220 mail.example.org ESMTP\r\n\r\n").await?;
        wire.idle().await
    })
    .await;
    let upstreams = upstreams(&[&server.url]);
    for reply in ask(&upstreams, 0..50).await.values() {
        assert!(matches!(reply, NarinfoReply::Failed(UpstreamError::Protocol { .. })), "{reply:?}");
    }
    assert_eq!(server.seen.connections(), 1);
    assert!(!upstreams.is_working(0));
    let reply = ask_one(&upstreams, 99).await;
    assert!(matches!(reply, NarinfoReply::Failed(UpstreamError::Resting { .. })), "{reply:?}");
}

#[tokio::test]
async fn a_dead_port_and_a_silent_server_pass_requests_on() {
    let silent = TestServer::start(|_, mut wire| async move { wire.idle().await }).await;
    let server = TestServer::answering(echo).await;
    let dead = dead_url();
    let upstreams = upstreams(&[&dead, &silent.url, &server.url]);
    let replies = ask(&upstreams, 0..500).await;
    assert_eq!(count_right(&replies, 2), 500);
    assert!(!upstreams.is_working(0) && !upstreams.is_working(1) && upstreams.is_working(2));
    // Resting servers cost nothing: no connection is made to them.
    let silent_connections = silent.seen.connections();
    let replies = ask(&upstreams, 500..600).await;
    assert_eq!(count_right(&replies, 2), 100);
    assert_eq!(silent.seen.connections(), silent_connections);
}

#[tokio::test]
async fn all_dead_is_a_failure_not_a_miss() {
    let reply = ask_one(&upstreams(&[&dead_url()]), 0).await;
    assert!(matches!(reply, NarinfoReply::Failed(_)), "{reply:?}");
    let reply = ask_one(&upstreams(&[]), 0).await;
    assert!(matches!(reply, NarinfoReply::NotFound { max_age: None }), "{reply:?}");
}

#[tokio::test]
async fn a_drop_by_drop_answer_has_a_deadline() {
    let server = TestServer::start(|_, mut wire| async move {
        wire.path().await?;
        loop {
            wire.send(b"HTTP/1.1 200 OK\r\nX-Padding: x\r\n"[..1].as_ref()).await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let reply = ask_one(&upstreams(&[&server.url]), 0).await;
    assert!(matches!(reply, NarinfoReply::Failed(_)), "{reply:?}");
    let server = TestServer::start(|_, mut wire| async move {
        wire.path().await?;
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n").await?;
        loop {
            wire.send(b"x").await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let reply = ask_one(&upstreams(&[&server.url]), 0).await;
    assert!(matches!(reply, NarinfoReply::Failed(UpstreamError::Silent { .. })), "{reply:?}");
}

#[tokio::test]
async fn servers_are_asked_in_order() {
    // The first has the even ones, the second all but every fifth.
    let has = |divisor: usize, wanted: bool| {
        move |path: &str| {
            let found = (0..100).find(|&n| path.contains(&hash(n).to_string())).expect("known");
            if (found % divisor == 0) == wanted {
                echo(path)
            } else {
                status(404, "Cache-Control: max-age=7\r\n")
            }
        }
    };
    let first = TestServer::answering(has(2, true)).await;
    let second = TestServer::answering(has(5, false)).await;
    let upstreams = upstreams(&[&first.url, &second.url]);
    let replies = ask(&upstreams, 0..100).await;
    assert_eq!(count_right(&replies, 0), 50);
    assert_eq!(count_right(&replies, 1), 40);
    let misses = replies.values().filter(|reply| {
        matches!(reply, NarinfoReply::NotFound { max_age: Some(age) } if age.as_secs() == 7)
    });
    assert_eq!(misses.count(), 10);
    assert_eq!((first.seen.requests(), second.seen.requests()), (100, 50));
}

#[tokio::test]
async fn a_server_that_comes_back_is_found_by_a_probe() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let is_well = Arc::new(AtomicBool::new(false));
    let health = Arc::clone(&is_well);
    let server = TestServer::start_on(listener, move |_, mut wire| {
        let health = Arc::clone(&health);
        async move {
            loop {
                let path = wire.path().await?;
                if !health.load(Ordering::Relaxed) {
                    return None;
                }
                wire.send(&echo(&path)).await?;
            }
        }
    });
    let upstreams = upstreams(&[&server.url]);
    assert!(matches!(ask_one(&upstreams, 0).await, NarinfoReply::Failed(_)));
    assert!(!upstreams.is_working(0));
    is_well.store(true, Ordering::Relaxed);
    upstreams.forget_failures();
    let reply = ask_one(&upstreams, 1).await;
    assert!(matches!(reply, NarinfoReply::Found { .. }), "{reply:?}");
    assert!(upstreams.is_working(0));
}

#[tokio::test]
async fn dropping_the_replies_or_the_handle_ends_everything() {
    let server = TestServer::start(|_, mut wire| async move {
        wire.path().await?;
        wire.idle().await
    })
    .await;
    let patient = UpstreamConfig { silence: PATIENCE, answer_timeout: PATIENCE, ..impatient() };
    let upstreams = with_config(&[&server.url], patient);
    drop(upstreams.narinfos((0..10).map(hash).collect()));
    let mut replies = upstreams.narinfos((0..10).map(hash).collect());
    drop(upstreams);
    let mut failed = 0;
    while let Some((_, reply)) = timeout(PATIENCE, replies.next()).await.expect("bounded") {
        assert!(matches!(reply, NarinfoReply::Failed(_)), "{reply:?}");
        failed += 1;
    }
    assert_eq!(failed, 10);
}

#[tokio::test]
async fn https_is_spoken_and_certificates_are_checked() {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let certificate = CertificateDer::from(&include_bytes!("../fixtures/test-server.der")[..]);
    let key = PrivatePkcs8KeyDer::from(&include_bytes!("../fixtures/test-server-key.der")[..]);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], PrivateKeyDer::Pkcs8(key))
        .expect("a certificate and its key");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let server = TestServer::start(move |_, wire| {
        let acceptor = acceptor.clone();
        async move {
            let mut stream = acceptor.accept(wire.stream).await.ok()?;
            let mut input = Vec::new();
            loop {
                while let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n") {
                    input.drain(..end + 4);
                    stream.write_all(&ok("over TLS")).await.ok()?;
                    stream.flush().await.ok()?;
                }
                if stream.read_buf(&mut input).await.ok()? == 0 {
                    return None;
                }
            }
        }
    })
    .await;
    let port = server.url.port().expect("a port");
    let url = Url::parse(&format!("https://localhost:{port}")).expect("a URL");
    let root = CertificateDer::from(&include_bytes!("../fixtures/test-ca.der")[..]);
    let trusting = UpstreamConfig { extra_roots: vec![root], ..impatient() };
    let trusting = with_config(&[&url], trusting);
    for reply in ask(&trusting, 0..300).await.values() {
        assert!(matches!(reply, NarinfoReply::Found { body, .. } if body == "over TLS"));
    }
    let source = narswarm_protocol::narinfo::NarSource {
        url: "nar/x".to_owned(),
        compression: narswarm_protocol::narinfo::Compression::None,
        file_size: None,
    };
    let mut nar = trusting.nar(0, &source, 8).await.expect("headers");
    assert_eq!(nar.next().await.expect("octets").expect("well"), "over TLS");
    if let Ok(wary) = Upstreams::new(vec![url], impatient()) {
        let reply = ask_one(&wary, 0).await;
        assert!(matches!(reply, NarinfoReply::Failed(_)), "{reply:?}");
        assert!(matches!(wary.nar(0, &source, 8).await, Err(UpstreamError::Connect { .. })));
    }
}
