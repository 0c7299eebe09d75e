//! Peers that lie, babble, flood or say nothing: guix gets the right octets from the next source,
//! and the node stays small.

use narswarm_protocol::limits::MAX_NARINFO_BYTES;
use narswarm_protocol::narinfo::Compression;
use narswarm_protocol::piece_set::PieceSet;
use narswarm_protocol::wire::fetch::{Encoding, FetchReply, FetchRequest, Opened, PieceHead};
use narswarm_protocol::wire::query::{Answer, QueryRequest, QueryResponse};
use narswarm_tests::harness::guix::{Guix, is_nar};
use narswarm_tests::harness::holding::{Holding, piece_list};
use narswarm_tests::harness::http_client::{ClientError, Cut, Reply};
use narswarm_tests::harness::liar::{Liar, Lie};
use narswarm_tests::harness::mirror::Mirror;
use narswarm_tests::harness::node::{Node, Stage};
use narswarm_tests::harness::raw_peer::{RawPeer, Speech, Then, encoded, holds, opened};
use narswarm_tests::harness::waiting::until;
use std::path::Path;

/// A dozen pieces.
const SIZE: usize = 3 << 20;

/// Memory that a peer may make a node hold, whatever it sends.
const GAIN_BYTES: u64 = 60 << 20;

/// An honest node that holds the mirror and enters the swarm through `node`.
async fn honest_peer_of(stage: &Stage, mirror: &Path, node: &Node) -> Node {
    let key = mirror.join("signing-key.pub");
    stage.import("honest", &key, &[mirror]).await.well();
    let honest = stage.node("honest").acl(&key).bootstrap(node.peer_address()).start().await;
    honest.has_peers(1).await;
    honest
}

/// Never whole and wrong, never a clean end before the whole.
#[track_caller]
fn is_right_or_refused(what: &str, holding: &Holding, outcome: Result<Reply, ClientError>) {
    match outcome {
        Ok(reply) if reply.head.status == 200 => is_nar(holding, &reply),
        Ok(reply) => assert!(reply.head.status >= 400, "{what}: {}", reply.head.status),
        Err(ClientError::Cut { cut: Cut::Reset, body_bytes }) => {
            assert!(body_bytes < holding.nar_size(), "{what}: the last octet was given");
        }
        Err(error) => panic!("{what}: {error}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alone_a_liar_gets_nothing_through_and_the_honest_peer_is_used_next() {
    for lie in [
        Lie::BadPieces,
        Lie::OtherNar,
        Lie::BrokenFrames,
        Lie::Bombs,
        Lie::NothingHeld,
        Lie::Partial,
    ] {
        let stage = Stage::new();
        let mut mirror = Mirror::create(stage.path("mirror"), 1);
        let holding = mirror.add("hello-2.12.1", SIZE, &[Compression::Zstd]);
        let liar = Liar::start(lie, std::slice::from_ref(&holding)).await;
        let node = stage.node("b").acl(mirror.key_file()).bootstrap(&liar.address()).start().await;
        node.has_peers(1).await;
        let guix = Guix::new(node.http(), mirror.acl());
        guix.gets_narinfos(std::slice::from_ref(&holding)).await;
        let before = node.forget_peak();
        let outcome = guix.nar(&holding).await;
        let refused = !matches!(&outcome, Ok(reply) if reply.head.status == 200);
        assert!(refused, "{lie:?}: nobody had it");
        is_right_or_refused(&format!("{lie:?}"), &holding, outcome);
        assert!(liar.seen().opens() > 0, "{lie:?} was asked");
        let gain = node.peak_resident_bytes().saturating_sub(before);
        assert!(gain < GAIN_BYTES, "{lie:?}: {} MiB more", gain >> 20);

        let _honest = honest_peer_of(&stage, mirror.root(), &node).await;
        let pieces = liar.seen().pieces();
        until("the honest peer to be used", async || {
            let outcome = guix.nar(&holding).await;
            let whole = matches!(&outcome, Ok(reply) if reply.head.status == 200);
            is_right_or_refused(&format!("{lie:?}"), &holding, outcome);
            whole
        })
        .await;
        if matches!(lie, Lie::BadPieces | Lie::OtherNar | Lie::BrokenFrames | Lie::Bombs) {
            assert_eq!(liar.seen().pieces(), pieces, "{lie:?} is avoided from now on");
        }
    }
}

/// The liar is known to hold the item before the honest peer is there, so it is asked first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_the_middle_of_a_fetch_the_honest_peer_takes_over() {
    for lie in [Lie::BadPieces, Lie::BrokenFrames, Lie::Bombs, Lie::NothingHeld, Lie::Partial] {
        let stage = Stage::new();
        let mut mirror = Mirror::create(stage.path("mirror"), 2);
        let holding = mirror.add("hello-2.12.1", SIZE, &[Compression::Zstd]);
        let liar = Liar::start(lie, std::slice::from_ref(&holding)).await;
        let node = stage.node("b").acl(mirror.key_file()).bootstrap(&liar.address()).start().await;
        node.has_peers(1).await;
        let guix = Guix::new(node.http(), mirror.acl());
        guix.gets_narinfos(std::slice::from_ref(&holding)).await;
        let _honest = honest_peer_of(&stage, mirror.root(), &node).await;
        node.has_peers(2).await;
        guix.gets_nar(&holding).await;
        assert!(liar.seen().opens() > 0, "{lie:?} was asked");
    }
}

/// A whole nar of the wrong hash costs one reset; what guix asks next is right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_false_piece_list_costs_time_and_not_twice() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 3);
    let holding = mirror.add("hello-2.12.1", SIZE, &[Compression::Zstd]);
    let liar = Liar::start(Lie::OtherNar, std::slice::from_ref(&holding)).await;
    let node = stage.node("b").acl(mirror.key_file()).bootstrap(&liar.address()).start().await;
    node.has_peers(1).await;
    let guix = Guix::new(node.http(), mirror.acl());
    guix.gets_narinfos(std::slice::from_ref(&holding)).await;
    let _honest = honest_peer_of(&stage, mirror.root(), &node).await;
    node.has_peers(2).await;
    is_right_or_refused("the first time", &holding, guix.nar(&holding).await);
    assert!(liar.seen().opens() > 0, "the liar was asked");
    guix.gets_nar(&holding).await;
}

/// Two who agree on a lie are more than one who is honest; the word of the one who is believed
/// counts for more than theirs. It may have given a nar before they have answered: of so many nars,
/// they are asked for one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn liars_who_agree_are_outdone_by_the_voucher_of_a_believed_peer() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 4);
    let holdings: Vec<_> = (0..16)
        .map(|number| mirror.add(&format!("hello-{number}"), SIZE, &[Compression::Zstd]))
        .collect();
    let key = mirror.key_file();
    stage.import("seed", &key, &[mirror.root()]).await.well();
    let seed = stage.node("seed").acl(&key).start().await;
    let first = Liar::start(Lie::OtherNar, &holdings).await;
    let second = Liar::start(Lie::OtherNar, &holdings).await;
    let seed_id = seed.peer_address().rsplit('/').next().expect("a peer id").to_owned();
    let spec = stage.node("b").acl(&key).arg("--voucher-key").arg(seed_id);
    let node = [seed.peer_address(), &first.address(), &second.address()]
        .into_iter()
        .fold(spec, |spec, address| spec.bootstrap(address))
        .start()
        .await;
    node.has_peers(3).await;
    let guix = Guix::new(node.http(), mirror.acl());
    guix.gets_narinfos(&holdings).await;
    for holding in &holdings {
        guix.gets_nar(holding).await;
    }
    assert!(first.seen().opens() + second.seen().opens() > 0, "the liars were asked");
}

fn piece(slot: u32, index: u32, octets: &[u8]) -> Vec<u8> {
    let len = octets.len() as u32;
    let head = PieceHead { slot, index, encoding: Encoding::Raw, len };
    [encoded(&[FetchReply::Piece(head)]), octets.to_vec()].concat()
}

fn slot_of(request: &FetchRequest) -> u32 {
    match *request {
        FetchRequest::Open { slot, .. }
        | FetchRequest::Want { slot, .. }
        | FetchRequest::Cancel { slot, .. }
        | FetchRequest::Close { slot } => slot,
    }
}

/// Ways to answer a request for a nar, by name.
fn bad_fetches(holding: &Holding) -> Vec<(&'static str, Speech<FetchRequest>)> {
    let of = |then, say: fn(&Holding, u32) -> Vec<u8>| {
        let holding = holding.clone();
        Speech::new(then, move |request| say(&holding, slot_of(request)))
    };
    let garbage: Vec<u8> = (0..50_000u32).map(|n| (n * 37 % 253) as u8).collect();
    vec![
        ("garbage", Speech::fixed(Then::Close, garbage.clone())),
        ("endless garbage", Speech::fixed(Then::Repeat, garbage)),
        ("nothing", Speech::fixed(Then::Hang, Vec::new())),
        ("an end at once", Speech::fixed(Then::Close, Vec::new())),
        ("half a head", Speech::fixed(Then::Hang, vec![0, 0])),
        ("a frame without end", Speech::fixed(Then::Repeat, vec![0xff, 0xff, 0xff, 0xff, 17])),
        ("opened, then nothing", of(Then::Hang, |h, slot| encoded(&[opened(h, slot)]))),
        ("opened again and again", of(Then::Repeat, |h, slot| encoded(&[opened(h, slot)]))),
        (
            "more than asked",
            of(Then::Repeat, |h, slot| {
                let first = &h.nar()[..256 * 1024];
                let pieces = (0..8).map(|_| piece(slot, 0, first)).collect::<Vec<_>>().concat();
                [encoded(&[opened(h, slot)]), pieces].concat()
            }),
        ),
        (
            "a piece not asked for",
            of(Then::Hang, |h, slot| {
                let last = &h.nar()[3 << 20..];
                [encoded(&[opened(h, slot)]), piece(slot, 12, last)].concat()
            }),
        ),
        (
            "half a piece",
            of(Then::Hang, |h, slot| {
                let mut half = piece(slot, 0, &h.nar()[..256 * 1024]);
                half.truncate(half.len() / 2);
                [encoded(&[opened(h, slot)]), half].concat()
            }),
        ),
        (
            "a different root",
            of(Then::Hang, |h, slot| {
                let list = piece_list(h.nar());
                let mut root = list.root(&h.narinfo.nar_hash());
                root.0[0] ^= 1;
                let held = PieceSet::all(list.layout().piece_count());
                encoded(&[FetchReply::Opened(Opened {
                    slot,
                    root,
                    list,
                    held,
                    vouchers: Vec::new(),
                })])
            }),
        ),
        (
            "another list than was promised",
            of(Then::Hang, |h, slot| {
                let mut other = h.nar().to_vec();
                other[0] ^= 1;
                let list = piece_list(&other);
                let root = list.root(&h.narinfo.nar_hash());
                let held = PieceSet::all(list.layout().piece_count());
                encoded(&[FetchReply::Opened(Opened {
                    slot,
                    root,
                    list,
                    held,
                    vouchers: Vec::new(),
                })])
            }),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_peer_says_in_a_fetch_the_honest_one_is_used_next() {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 4);
    let model = mirror.add("model", SIZE, &[Compression::Zstd]);
    for (number, (what, _)) in bad_fetches(&model).into_iter().enumerate() {
        let stage = Stage::new();
        let mut mirror = Mirror::create(stage.path("mirror"), 5);
        let holding = mirror.add(&format!("hello-{number}"), SIZE, &[Compression::Zstd]);
        let (_, speech) = bad_fetches(&holding).swap_remove(number);
        let peer = RawPeer::start(holds(&holding), speech).await;
        let node = stage.node("b").acl(mirror.key_file()).bootstrap(peer.address()).start().await;
        node.has_peers(1).await;
        let guix = Guix::new(node.http(), mirror.acl());
        guix.finds(&holding).await;
        let _honest = honest_peer_of(&stage, mirror.root(), &node).await;
        node.has_peers(2).await;
        let before = node.forget_peak();
        let reply = guix.nar(&holding).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(reply.head.status, 200, "{what}");
        is_nar(&holding, &reply);
        assert!(peer.fetches() > 0, "{what} was asked");
        let gain = node.peak_resident_bytes().saturating_sub(before);
        assert!(gain < GAIN_BYTES, "{what}: {} MiB more", gain >> 20);
    }
}

/// Ways to answer a query, by name.
fn bad_queries() -> Vec<(&'static str, Speech<QueryRequest>)> {
    let garbage: Vec<u8> = (0..50_000u32).map(|n| (n * 37 % 253) as u8).collect();
    let large = |index| Answer {
        index,
        narinfo: vec![b'x'; MAX_NARINFO_BYTES],
        root: None,
        pieces_held: 1,
    };
    let frame = move |index, last| {
        encoded(&[QueryResponse { answers: vec![large(index)], last, ask_again_from: None }])
    };
    let beyond = frame(999, true);
    vec![
        ("garbage", Speech::fixed(Then::Close, garbage.clone())),
        ("endless garbage", Speech::fixed(Then::Repeat, garbage)),
        ("nothing", Speech::fixed(Then::Hang, Vec::new())),
        ("an end at once", Speech::fixed(Then::Close, Vec::new())),
        ("an answer to what was not asked", Speech::fixed(Then::Close, beyond)),
        ("the same answer for ever", Speech::fixed(Then::Repeat, frame(0, false))),
        ("a frame without end", Speech::fixed(Then::Repeat, vec![0xff, 0xff, 0xff, 0xff, 2])),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_peer_says_to_a_query_the_honest_one_is_heard() {
    for (what, speech) in bad_queries() {
        let stage = Stage::new();
        let mut mirror = Mirror::create(stage.path("mirror"), 6);
        let holding = mirror.add("hello-2.12.1", SIZE, &[Compression::Zstd]);
        let peer = RawPeer::start(speech, Speech::fixed(Then::Hang, Vec::new())).await;
        let node = stage.node("b").acl(mirror.key_file()).bootstrap(peer.address()).start().await;
        node.has_peers(1).await;
        let _honest = honest_peer_of(&stage, mirror.root(), &node).await;
        node.has_peers(2).await;
        let before = node.forget_peak();
        let guix = Guix::new(node.http(), mirror.acl());
        guix.finds(&holding).await;
        guix.gets_nar(&holding).await;
        assert!(peer.queries() > 0, "{what} was asked");
        let gain = node.peak_resident_bytes().saturating_sub(before);
        assert!(gain < GAIN_BYTES, "{what}: {} MiB more", gain >> 20);
    }
}
