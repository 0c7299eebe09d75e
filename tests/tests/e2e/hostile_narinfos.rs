//! Substitute servers and peers that give narinfos which must not reach guix.

use narswarm_protocol::narinfo::Compression;
use narswarm_tests::harness::guix::Guix;
use narswarm_tests::harness::holding::Holding;
use narswarm_tests::harness::http_client::HttpClient;
use narswarm_tests::harness::liar::{Liar, Lie};
use narswarm_tests::harness::mirror::Mirror;
use narswarm_tests::harness::node::Stage;
use narswarm_tests::harness::upstream::{StaticServer, Temper};
use narswarm_tests::harness::waiting::soon;
use std::fs;

/// Memory that refusing narinfos of any size may take.
const GAIN_BYTES: u64 = 48 << 20;

fn file_of(mirror: &Mirror, holding: &Holding) -> std::path::PathBuf {
    mirror.root().join(&holding.narinfo_path()[1..])
}

/// Spoils narinfos in every way; tells which.
fn spoil_all(mirror: &mut Mirror, foreign: &Mirror) -> Vec<(&'static str, Holding)> {
    let good = mirror.holdings()[0].narinfo.original().to_vec();
    let mut spoilt = Vec::new();
    let mut spoil = |name: &'static str, how: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        let holding = mirror.add(name, 1000, &[Compression::Zstd]);
        fs::write(file_of(mirror, &holding), how(holding.narinfo.original().to_vec()))
            .expect("a file");
        spoilt.push((name, holding));
    };
    let lines = |text: Vec<u8>, keep: &dyn Fn(&str) -> bool| -> Vec<u8> {
        let text = String::from_utf8(text).expect("text");
        text.split_inclusive('\n').filter(|line| keep(line)).collect::<String>().into_bytes()
    };
    spoil("of-another-item", &|_| good.clone());
    spoil("unsigned", &|text| lines(text, &|line| !line.starts_with("Signature")));
    spoil("without-url", &|text| lines(text, &|line| !line.starts_with("URL")));
    spoil("by-a-foreign-key", &|_| {
        foreign.draft("by-a-foreign-key", 1000, &[Compression::Zstd]).narinfo.original().to_vec()
    });
    spoil("altered", &|text| {
        let text = String::from_utf8(text).expect("text");
        text.replace("System: x86_64-linux", "System: i686-linux").into_bytes()
    });
    spoil("cut-off", &|text| text[..text.len() / 2].to_vec());
    spoil("empty", &|_| Vec::new());
    spoil("binary", &|_| (0..4000u32).map(|n| (n * 7 % 251) as u8).collect());
    spoil("nul", &|text| [&b"\0"[..], &text].concat());
    spoil("crlf", &|text| String::from_utf8(text).expect("text").replace('\n', "\r\n").into());
    spoil("latin-1", &|text| [&text[..], b"Comment: \xe9\n"].concat());
    spoil("huge", &|text| [text, vec![b'x'; 300 * 1024]].concat());
    spoil("monstrous", &|_| vec![b'\n'; 64 << 20]);
    spoil("html", &|_| b"<html><body>Welcome to this hotel's network</body></html>\n".to_vec());
    spoilt
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_narinfos_are_misses_and_good_ones_beside_them_are_found() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 1);
    // The same items under another key: hash and name are those that are asked for.
    let foreign = Mirror::create_signing(stage.path("foreign"), 1, 2);
    let first = mirror.add("first", 1000, &[Compression::Zstd]);
    let spoilt = spoil_all(&mut mirror, &foreign);
    let last = mirror.add("last", 1000, &[Compression::Gzip]);
    let server = StaticServer::start(mirror.root()).await.expect("a server");
    let node = stage.node("a").acl(mirror.key_file()).upstream(&server.url()).start().await;
    let before = node.forget_peak();

    let mut paths = vec![first.narinfo_path()];
    paths.extend(spoilt.iter().map(|(_, holding)| holding.narinfo_path()));
    paths.push(last.narinfo_path());
    let client = HttpClient::connect(node.http()).await.expect("the node listens");
    let burst = soon("narinfos", client.burst(&paths)).await.expect("answers to all");
    let guix = Guix::new(node.http(), mirror.acl());
    guix.is_narinfo(&first, &burst.replies[0]);
    guix.is_narinfo(&last, &burst.replies[paths.len() - 1]);
    for ((name, holding), reply) in spoilt.iter().zip(&burst.replies[1..]) {
        assert_eq!(reply.head.status, 404, "{name}");
        assert!(reply.head.max_age().is_some_and(|seconds| seconds <= 60), "{name}");
        let nar = guix.nar(holding).await.expect("an answer");
        assert_eq!(nar.head.status, 404, "the nar of {name}");
    }
    let gain = node.peak_resident_bytes().saturating_sub(before);
    assert!(gain < GAIN_BYTES, "{} MiB more", gain >> 20);

    // Once the server is repaired, all is found, at the latest when the miss has expired.
    for (_, holding) in &spoilt {
        fs::write(file_of(&mirror, holding), holding.narinfo.original()).expect("a file");
    }
    for (_, holding) in &spoilt {
        guix.finds(holding).await;
    }
    guix.gets_all(mirror.holdings()).await;
}

/// What a server does to the connection doesn't keep answers from guix.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_is_answered_whatever_the_server_does() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 3);
    for number in 0..50 {
        mirror.add(&format!("item-{number}"), 100, &[Compression::Zstd]);
    }
    for temper in [
        Temper::Missing,
        Temper::Broken,
        Temper::CloseAfter(0),
        Temper::CloseAfter(100),
        Temper::ResetAfter(0),
        Temper::ResetAfter(100),
        Temper::CorruptAt(60),
        Temper::StallAfter(100),
        Temper::Silent,
    ] {
        let server = StaticServer::start(mirror.root()).await.expect("a server");
        server.answer_narinfos(temper);
        let name = format!("{temper:?}");
        let node = stage.node(&name).acl(mirror.key_file()).upstream(&server.url()).start().await;
        let paths: Vec<_> = mirror.holdings().iter().map(Holding::narinfo_path).collect();
        let client = HttpClient::connect(node.http()).await.expect("the node listens");
        let burst = soon(&name, client.burst(&paths)).await.expect("answers to all");
        for reply in &burst.replies {
            let refused = matches!(reply.head.status, 404 | 502 | 503 | 504);
            assert!(refused, "{temper:?}: {}", reply.head.status);
            assert_eq!(reply.head.content_length(), Some(reply.body.len() as u64), "{temper:?}");
        }
        server.answer_narinfos(Temper::Well);
        let guix = Guix::new(node.http(), mirror.acl());
        for holding in mirror.holdings() {
            guix.finds(holding).await;
        }
        guix.gets_all(mirror.holdings()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_give_narinfos_of_other_items_are_not_believed() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 4);
    let holdings = ["one", "two", "three"].map(|name| mirror.add(name, 1000, &[Compression::Zstd]));
    let liar = Liar::start(Lie::OtherNarinfo, &holdings).await;
    let node = stage.node("b").acl(mirror.key_file()).bootstrap(&liar.address()).start().await;
    node.has_peers(1).await;
    let guix = Guix::new(node.http(), mirror.acl());
    for holding in &holdings {
        assert_eq!(guix.narinfo_status(holding).await, 404, "{}", holding.item());
    }
    assert!(liar.seen().queries() > 0, "the liar was asked");
    // An honest peer beside it is believed.
    stage.import("a", &mirror.key_file(), &[mirror.root()]).await.well();
    let a = stage.node("a").acl(mirror.key_file());
    let honest = a.bootstrap(node.peer_address()).start().await;
    honest.has_peers(1).await;
    for holding in &holdings {
        guix.finds(holding).await;
    }
    guix.gets_all(&holdings).await;
}
