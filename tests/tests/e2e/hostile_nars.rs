//! Nars that aren't what was signed, from a substitute server: guix never gets the last octet of
//! one, and sees a reset where the answer had begun.

use narswarm_protocol::narinfo::Compression;
use narswarm_tests::harness::compression::{OF_GUIX, compress};
use narswarm_tests::harness::guix::{Guix, is_nar};
use narswarm_tests::harness::holding::Holding;
use narswarm_tests::harness::http_client::{ClientError, Cut, Reply};
use narswarm_tests::harness::mirror::Mirror;
use narswarm_tests::harness::node::{Node, Stage};
use narswarm_tests::harness::upstream::{StaticServer, Temper};
use narswarm_tests::harness::waiting::until;
use std::fs;

/// Several pieces.
const SIZE: usize = 3 << 20;

/// Memory that a nar which unpacks to far more than its size may take.
const GAIN_BYTES: u64 = 60 << 20;

/// Guix goes on to the next URL or server, and has not got the whole.
#[track_caller]
fn is_refused(what: &str, holding: &Holding, outcome: Result<Reply, ClientError>) {
    match outcome {
        Ok(reply) => assert!(reply.head.status >= 400, "{what}: {}", reply.head.status),
        Err(ClientError::Cut { cut: Cut::Reset, body_bytes }) => {
            assert!(body_bytes < holding.nar_size(), "{what}: the last octet was given");
        }
        Err(error) => panic!("{what}: {error}"),
    }
}

/// After the server is repaired, guix gets the nar: at once, or when the node asks there again.
async fn recovers(guix: &Guix, holding: &Holding) {
    until("the nar to be had again", async || match guix.nar(holding).await {
        Ok(reply) if reply.head.status == 200 => {
            is_nar(holding, &reply);
            true
        }
        outcome => {
            is_refused("while it recovers", holding, outcome);
            false
        }
    })
    .await;
}

async fn node_before(stage: &Stage, mirror: &Mirror, server: &StaticServer) -> (Node, Guix) {
    let node = stage.node("a").acl(mirror.key_file()).upstream(&server.url()).start().await;
    let guix = Guix::new(node.http(), mirror.acl());
    (node, guix)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_nar_is_never_given_whole() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 1);
    let holding = |name: &str, c| (name.to_owned(), c);
    let tempers = [
        ("at-its-beginning", Temper::CorruptAt(150)),
        ("in-its-middle", Temper::CorruptAt(SIZE as u64 / 3)),
        ("closed", Temper::CloseAfter(SIZE as u64 / 3)),
        ("reset", Temper::ResetAfter(SIZE as u64 / 3)),
        ("closed-at-once", Temper::CloseAfter(0)),
        ("missing", Temper::Missing),
        ("broken", Temper::Broken),
    ];
    let server = StaticServer::start(mirror.root()).await.expect("a server");
    let (_node, guix) = node_before(&stage, &mirror, &server).await;
    for (name, temper) in tempers {
        for compression in OF_GUIX {
            let (name, compression) = holding(&format!("{name}-{compression}"), compression);
            let holding = mirror.add(&name, SIZE, &[compression]);
            guix.gets_narinfos(std::slice::from_ref(&holding)).await;
            server.answer_nars(temper);
            is_refused(&name, &holding, guix.nar(&holding).await);
            server.answer_nars(Temper::Well);
            recovers(&guix, &holding).await;
        }
    }
}

/// What a server gives as a nar when it gives something else than was signed.
fn others(holding: &Holding) -> Vec<(&'static str, Vec<u8>)> {
    let nar = holding.nar();
    let mut flipped = nar.to_vec();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    vec![
        ("last-octet", flipped),
        ("shorter", nar[..nar.len() - 1].to_vec()),
        ("far-shorter", nar[..1000].to_vec()),
        ("longer", [&nar[..], b"\0"].concat()),
        ("far-longer", [&nar[..], &vec![0; 200 << 20]].concat()),
        ("nothing", Vec::new()),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_nar_in_sound_compression_is_never_given_whole() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 2);
    let server = StaticServer::start(mirror.root()).await.expect("a server");
    let (node, guix) = node_before(&stage, &mirror, &server).await;
    let warm = mirror.add("warm", SIZE, &[Compression::Zstd]);
    guix.gets_all(&[warm]).await;
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let model = mirror.add("model", SIZE, &[compression]);
        for (what, _) in others(&model) {
            let name = format!("{what}-{compression}");
            let holding = mirror.add(&name, SIZE, &[compression]);
            let (_, octets) = others(&holding).into_iter().find(|o| o.0 == what).expect("the same");
            let file = mirror.root().join(&holding.narinfo.sources()[0].url);
            let good = fs::read(&file).expect("the nar");
            fs::write(&file, compress(compression, &octets)).expect("a file");
            guix.gets_narinfos(std::slice::from_ref(&holding)).await;
            let before = node.forget_peak();
            let outcome = guix.nar(&holding).await;
            // What lies behind the signed size need not be looked at.
            match outcome {
                Ok(reply) if what.ends_with("longer") && reply.head.status == 200 => {
                    is_nar(&holding, &reply);
                }
                outcome => is_refused(&name, &holding, outcome),
            }
            let gain = node.peak_resident_bytes().saturating_sub(before);
            assert!(gain < GAIN_BYTES, "{name}: {} MiB more", gain >> 20);
            fs::write(&file, good).expect("a file");
            recovers(&guix, &holding).await;
        }
    }
}

/// A reply that says less than it promised, or stalls, is no reason to wait for ever: guix has no
/// deadline of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stalls_in_the_middle_is_given_up() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 3);
    let holding = mirror.add("stalled", SIZE, &[Compression::Zstd]);
    let server = StaticServer::start(mirror.root()).await.expect("a server");
    let (_node, guix) = node_before(&stage, &mirror, &server).await;
    guix.gets_narinfos(std::slice::from_ref(&holding)).await;
    server.answer_nars(Temper::StallAfter(SIZE as u64 / 4));
    is_refused("stalled", &holding, guix.nar(&holding).await);
    server.answer_nars(Temper::Well);
    recovers(&guix, &holding).await;
}

/// Everyone who waits for the same bad nar is told, and nobody gets it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_readers_of_a_bad_nar_are_all_refused() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 4);
    let holding = mirror.add("bad", SIZE, &[Compression::None]);
    let server = StaticServer::start(mirror.root()).await.expect("a server");
    let (_node, guix) = node_before(&stage, &mirror, &server).await;
    guix.gets_narinfos(std::slice::from_ref(&holding)).await;
    server.answer_nars(Temper::CorruptAt(SIZE as u64));
    let outcomes = futures::future::join_all((0..8).map(|_| guix.nar(&holding))).await;
    for outcome in outcomes {
        is_refused("one of many", &holding, outcome);
    }
    server.answer_nars(Temper::Well);
    recovers(&guix, &holding).await;
}
