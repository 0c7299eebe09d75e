//! Nars: every compression, and every way in which a download can go wrong.

use super::server::{TestServer, ok, status};
use super::{dead_url, impatient, upstreams, with_config};
use crate::upstream::{RawPart, UpstreamConfig, UpstreamError, UpstreamNar, Upstreams};
use narswarm_protocol::narinfo::{Compression, NarSource};
use std::io::Write;
use std::path::Path;
use std::time::Duration;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

fn source(url: &str, compression: Compression) -> NarSource {
    NarSource { url: url.to_owned(), compression, file_size: None }
}

async fn read_all(mut nar: UpstreamNar) -> Result<Vec<u8>, UpstreamError> {
    let mut octets = Vec::new();
    while let Some(chunk) = timeout(PATIENCE, nar.next()).await.expect("bounded") {
        octets.extend_from_slice(&chunk?);
    }
    Ok(octets)
}

async fn fetch(
    upstreams: &Upstreams,
    compression: Compression,
    nar_size: usize,
) -> Result<Vec<u8>, UpstreamError> {
    read_all(upstreams.nar(0, &source("nar/x", compression), nar_size as u64).await?).await
}

/// What the fixtures decode to.
fn lines() -> Vec<u8> {
    (0..300).map(|n| format!("line {n} of a small nar\n")).collect::<String>().into_bytes()
}

/// Octets that compress to about half.
fn long_nar() -> Vec<u8> {
    let mut state = 1u64;
    (0..3_000_000)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 60) as u8
        })
        .collect()
}

fn gzip(octets: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(octets).expect("memory");
    encoder.finish().expect("memory")
}

fn zstd(octets: &[u8]) -> Vec<u8> {
    zstd::encode_all(octets, 1).expect("memory")
}

fn xz(octets: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 0);
    encoder.write_all(octets).expect("memory");
    encoder.finish().expect("memory")
}

fn bzip2(octets: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(octets).expect("memory");
    encoder.finish().expect("memory")
}

const LZIP: &[u8] = include_bytes!("../fixtures/lines.lz");
const LZIP_MEMBERS: &[u8] = include_bytes!("../fixtures/lines-members.lz");
const XZ: &[u8] = include_bytes!("../fixtures/lines.xz");

/// One well-formed body per compression that is decoded, and what it decodes to.
fn samples() -> Vec<(Compression, Vec<u8>, Vec<u8>)> {
    let (short, long) = (lines(), long_nar());
    let halves = |encode: fn(&[u8]) -> Vec<u8>| {
        let (front, back) = long.split_at(long.len() / 2);
        [encode(front), encode(back)].concat()
    };
    vec![
        (Compression::None, long.clone(), long.clone()),
        (Compression::Gzip, gzip(&long), long.clone()),
        (Compression::Gzip, halves(gzip), long.clone()),
        (Compression::Zstd, zstd(&long), long.clone()),
        (Compression::Zstd, halves(zstd), long.clone()),
        (Compression::Lzip, LZIP.to_vec(), short.clone()),
        (Compression::Lzip, LZIP_MEMBERS.to_vec(), short.clone()),
        (Compression::Xz, XZ.to_vec(), short),
        (Compression::Xz, xz(&long), long.clone()),
        (Compression::Bzip2, bzip2(&long), long.clone()),
        (Compression::Bzip2, halves(bzip2), long.clone()),
    ]
}

#[tokio::test]
async fn each_compression_is_decoded_and_connections_are_reused() {
    for (compression, body, nar) in samples() {
        let server = TestServer::answering(move |_| ok(&body)).await;
        let upstreams = upstreams(&[&server.url]);
        for _ in 0..3 {
            let octets = fetch(&upstreams, compression, nar.len()).await.expect("decodes");
            assert!(octets == nar, "{compression:?}");
        }
        assert_eq!(server.seen.connections(), 1, "{compression:?}");
    }
}

#[tokio::test]
async fn bodies_come_chunked_or_until_close_and_in_small_parts() {
    for (compression, body, nar) in samples() {
        let copy = body.clone();
        let chunked = TestServer::start(move |_, mut wire| {
            let body = copy.clone();
            async move {
                loop {
                    wire.path().await?;
                    wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
                    for part in body.chunks(777) {
                        let head = format!("{:x}\r\n", part.len());
                        wire.send(&[head.as_bytes(), part, b"\r\n"].concat()).await?;
                    }
                    wire.send(b"0\r\n\r\n").await?;
                }
            }
        })
        .await;
        let until_close = TestServer::start(move |_, mut wire| {
            let body = body.clone();
            async move {
                wire.path().await?;
                wire.send(b"HTTP/1.1 200 OK\r\n\r\n").await?;
                wire.send(&body).await
            }
        })
        .await;
        for url in [&chunked.url, &until_close.url] {
            let octets = fetch(&upstreams(&[url]), compression, nar.len()).await.expect("decodes");
            assert!(octets == nar, "{compression:?} from {url}");
        }
    }
}

#[tokio::test]
async fn an_uncompressed_nar_needs_no_end() {
    // As a live `guix publish` does: no length, and the connection stays open.
    let nar = long_nar();
    let body = nar.clone();
    let server = TestServer::start(move |_, mut wire| {
        let body = body.clone();
        async move {
            wire.path().await?;
            wire.send(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            wire.send(&body).await?;
            wire.idle().await
        }
    })
    .await;
    // A wait for the end would last longer than the test.
    let patient = UpstreamConfig { stall_timeout: 4 * PATIENCE, ..impatient() };
    let upstreams = with_config(&[&server.url], patient);
    assert!(fetch(&upstreams, Compression::None, nar.len()).await.expect("whole") == nar);
}

#[tokio::test]
async fn a_nar_of_another_size_is_refused() {
    for (compression, body, nar) in samples() {
        let server = TestServer::answering(move |_| ok(&body)).await;
        let upstreams = upstreams(&[&server.url]);
        let error = fetch(&upstreams, compression, nar.len() - 1).await.expect_err("too long");
        assert!(matches!(error, UpstreamError::TooLong { .. }), "{compression:?}: {error}");
        let error = fetch(&upstreams, compression, nar.len() + 1).await.expect_err("too short");
        assert!(matches!(error, UpstreamError::TooShort { .. }), "{compression:?}: {error}");
    }
}

#[tokio::test]
async fn truncated_and_corrupt_streams_are_refused() {
    for (compression, body, nar) in samples() {
        let half = body[..body.len() / 2].to_vec();
        let server = TestServer::answering(move |_| ok(&half)).await;
        let error =
            fetch(&upstreams(&[&server.url]), compression, nar.len()).await.expect_err("truncated");
        assert!(matches!(error, UpstreamError::TooShort { .. }), "{compression:?}: {error:?}");
        if compression == Compression::None {
            continue;
        }
        let mut corrupt = body.clone();
        for octet in corrupt.iter_mut().skip(4).step_by(7) {
            *octet ^= 0x55;
        }
        let server = TestServer::answering(move |_| ok(&corrupt)).await;
        let error =
            fetch(&upstreams(&[&server.url]), compression, nar.len()).await.expect_err("corrupt");
        assert!(matches!(error, UpstreamError::Corrupt { .. }), "{compression:?}: {error:?}");
    }
}

#[tokio::test]
async fn a_bomb_is_bounded_by_the_size_of_the_nar() {
    let bomb = zstd(&vec![0; 256 << 20]);
    assert!(bomb.len() < 64 << 10);
    let server = TestServer::answering(move |_| ok(&bomb)).await;
    let error =
        fetch(&upstreams(&[&server.url]), Compression::Zstd, 1000).await.expect_err("refused");
    assert!(matches!(error, UpstreamError::TooLong { .. }), "{error:?}");
}

#[tokio::test]
async fn a_cut_or_stalled_body_is_an_error() {
    let cut = TestServer::start(|_, mut wire| async move {
        wire.path().await?;
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n").await?;
        wire.send(&[0; 500]).await
    })
    .await;
    let error = fetch(&upstreams(&[&cut.url]), Compression::None, 1000).await.expect_err("cut");
    assert!(matches!(error, UpstreamError::Transfer { .. }), "{error:?}");
    let stalled = TestServer::start(|_, mut wire| async move {
        wire.path().await?;
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n").await?;
        wire.send(&[0; 500]).await?;
        wire.idle().await
    })
    .await;
    let error =
        fetch(&upstreams(&[&stalled.url]), Compression::None, 1000).await.expect_err("stalled");
    assert!(matches!(error, UpstreamError::Silent { .. }), "{error:?}");
    let silent = TestServer::start(|_, mut wire| async move { wire.idle().await }).await;
    let error =
        fetch(&upstreams(&[&silent.url]), Compression::None, 1000).await.expect_err("silent");
    assert!(matches!(error, UpstreamError::Silent { .. }), "{error:?}");
}

#[tokio::test]
async fn not_here_is_told_from_broken() {
    let server = TestServer::answering(|path| match path {
        "/nar/gone" => status(410, ""),
        "/nar/broken" => status(500, ""),
        "/nar/moved" => status(302, "Location: /elsewhere\r\n"),
        "/elsewhere" => ok("moved"),
        _ => status(404, ""),
    })
    .await;
    let upstreams = upstreams(&[&server.url, &dead_url()]);
    for (url, is_not_here) in [("nar/none", true), ("nar/gone", true), ("nar/broken", false)] {
        let error = upstreams.nar(0, &source(url, Compression::None), 5).await.expect_err(url);
        assert_eq!(error.is_not_here(), is_not_here, "{error}");
    }
    let moved = upstreams.nar(0, &source("nar/moved", Compression::None), 5).await.expect("moved");
    assert_eq!(read_all(moved).await.expect("whole"), b"moved");
    let error = upstreams.nar(1, &source("nar/x", Compression::None), 5).await.expect_err("dead");
    assert!(matches!(error, UpstreamError::Connect { .. }), "{error:?}");
    let error = upstreams.nar(2, &source("nar/x", Compression::None), 5).await.expect_err("none");
    assert!(matches!(error, UpstreamError::NoSuchUpstream { index: 2, count: 2 }));
}

#[tokio::test]
async fn absolute_urls_are_followed_over_http_only() {
    let server = TestServer::answering(|path| ok(path)).await;
    let upstreams = upstreams(&[&dead_url()]);
    let absolute = format!("{}elsewhere", server.url);
    let nar = upstreams.nar(0, &source(&absolute, Compression::None), 10).await.expect("found");
    assert_eq!(read_all(nar).await.expect("whole"), b"/elsewhere");
    for url in ["file:///etc/passwd", "ftp://x/y", "data:,x", "http://u:p@127.0.0.1/x"] {
        let error = upstreams.nar(0, &source(url, Compression::None), 5).await.expect_err(url);
        assert!(matches!(error, UpstreamError::Url { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn dropping_a_nar_ends_its_download() {
    let (sender, mut gone) = tokio::sync::mpsc::channel(1);
    let server = TestServer::start(move |_, mut wire| {
        let sender = sender.clone();
        async move {
            wire.path().await?;
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n").await?;
            while wire.send(&[0; 65536]).await.is_some() {}
            sender.send(()).await.ok()
        }
    })
    .await;
    let upstreams = upstreams(&[&server.url]);
    let mut nar = upstreams
        .nar(0, &source("nar/x", Compression::None), 100_000_000_000)
        .await
        .expect("headers");
    assert!(nar.next().await.expect("octets").is_ok());
    drop(nar);
    timeout(PATIENCE, gone.recv()).await.expect("the server notices").expect("told");
}

#[tokio::test]
async fn raw_nars_give_both_streams_whole() {
    for (compression, body, nar) in samples() {
        let expected = body.clone();
        let server = TestServer::answering(move |_| ok(&body)).await;
        let upstreams = upstreams(&[&server.url]);
        let mut raw = upstreams
            .nar_raw(0, &source("nar/x", compression), nar.len() as u64)
            .await
            .expect("headers");
        assert_eq!(raw.content_length(), Some(expected.len() as u64));
        let (mut compressed, mut decoded) = (Vec::new(), Vec::new());
        while let Some(part) = timeout(PATIENCE, raw.next()).await.expect("bounded") {
            match part.expect("well") {
                RawPart::Compressed(octets) => compressed.extend_from_slice(&octets),
                RawPart::Decoded(octets) => decoded.extend_from_slice(&octets),
            }
        }
        assert!(compressed == expected && decoded == nar, "{compression:?}");
    }
}

/// Nars as real Guix wrote them, where they are at hand.
#[tokio::test]
async fn nars_of_a_real_guix_publish_decode_alike() {
    let nars = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/substitute-server/nar");
    let Ok(entries) = std::fs::read_dir(&nars) else {
        eprintln!("SKIPPED: {} is not there", nars.display());
        return;
    };
    let root = nars.clone();
    let server = TestServer::answering(move |path| {
        std::fs::read(root.join(path.trim_start_matches("/nar/")))
            .map_or_else(|_| status(404, ""), ok)
    })
    .await;
    let upstreams = upstreams(&[&server.url]);
    let mut compared = 0;
    for entry in entries {
        let entry = entry.expect("an entry");
        if !entry.file_type().expect("a type").is_file() {
            continue;
        }
        let plain = std::fs::read(entry.path()).expect("a nar");
        let name = entry.file_name().into_string().expect("ASCII");
        for (directory, compression) in [
            ("nar", Compression::None),
            ("nar/gzip", Compression::Gzip),
            ("nar/lzip", Compression::Lzip),
            ("nar/zstd", Compression::Zstd),
        ] {
            let url = format!("{directory}/{name}");
            let nar = upstreams
                .nar(0, &source(&url, compression), plain.len() as u64)
                .await
                .unwrap_or_else(|error| panic!("{url}: {error}"));
            assert!(read_all(nar).await.expect("decodes") == plain, "{url}");
            compared += 1;
        }
    }
    assert!(compared >= 4, "only {compared} nars were compared");
}

#[tokio::test]
async fn a_connection_for_nars_is_opened_ahead_once_and_used() {
    let body = lines();
    let answer = body.clone();
    let server = TestServer::answering(move |path| match path {
        "/nix-cache-info" => ok("StoreDir: /gnu/store\n"),
        _ => ok(&answer),
    })
    .await;
    let upstreams = upstreams(&[&server.url]);
    upstreams.connect_ahead_for_nars();
    upstreams.connect_ahead_for_nars();
    let asked = async {
        while server.seen.requests() == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, asked).await.expect("a connection is opened ahead");
    // One thread runs both ends, so the answer is read, and the connection free, within a few turns.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    let fetched = fetch(&upstreams, Compression::None, body.len()).await.expect("the nar");
    assert_eq!(fetched, body);
    assert_eq!((server.seen.connections(), server.seen.requests()), (1, 2));
}

/// Answers with `octets` of a nar of `lines()`, said to be in the range `range`.
async fn partial(range: &'static str, octets: Vec<u8>) -> TestServer {
    TestServer::answering(move |_| {
        let length = octets.len();
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: {range}\r\nContent-Length: {length}\r\n\r\n"
        );
        [head.as_bytes(), &octets].concat()
    })
    .await
}

async fn rest(server: &TestServer, from: u64) -> Result<(u64, Vec<u8>), UpstreamError> {
    let (upstreams, size) = (upstreams(&[&server.url]), lines().len() as u64);
    let nar = upstreams.nar_from(0, &source("nar/x", Compression::None), size, from).await?;
    Ok((nar.start(), read_all(nar).await?))
}

#[tokio::test]
async fn an_uncompressed_nar_can_begin_where_it_is_wanted() {
    let nar = lines();
    assert_eq!(nar.len(), 7090);
    for range in ["bytes 1000-7089/7090", "bytes 1000-7089/*"] {
        let server = partial(range, nar[1000..].to_vec()).await;
        let (start, octets) = rest(&server, 1000).await.expect("the rest");
        assert_eq!((start, octets == nar[1000..]), (1000, true), "{range}");
    }
    let server = partial("bytes 1000-7089/7090", nar[1000..7000].to_vec()).await;
    let short = rest(&server, 1000).await;
    assert!(matches!(short, Err(UpstreamError::TooShort { received: 7000, .. })), "{short:?}");
}

#[tokio::test]
async fn another_range_than_the_one_asked_for_is_refused() {
    let nar = lines();
    for range in ["bytes 999-7089/7090", "bytes 1000-7088/7090", "bytes 1000-7089/9000", "x"] {
        let server = partial(range, nar[1000..].to_vec()).await;
        let refused = rest(&server, 1000).await;
        let is_status = matches!(refused, Err(UpstreamError::Status { status: 206, .. }));
        assert!(is_status, "{range}: {refused:?}");
    }
    let server = partial("bytes 0-7089/7090", nar).await;
    assert!(rest(&server, 0).await.is_err(), "no range was asked for");
}

#[tokio::test]
async fn a_server_without_ranges_begins_at_the_head() {
    let server = TestServer::answering(|_| ok(lines())).await;
    let (start, octets) = rest(&server, 1000).await.expect("all of it");
    assert_eq!((start, octets == lines()), (0, true));
}
