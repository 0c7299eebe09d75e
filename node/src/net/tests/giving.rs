//! How a node divides what it gives: who is told to wait, who to go elsewhere, who gets what.

use crate::net::streams::{PeerStream, Protocol};
use crate::net::testing::{RawPeer, TestNar, TestResponder, loopback, soon};
use crate::net::{FetchRequests, FetchResponses, Net};
use futures::AsyncWriteExt;
use narswarm_protocol::limits::{MAX_INBOUND_STREAMS, MAX_SERVED_FETCHES, MIN_PIECE_BYTES};
use narswarm_protocol::upload::UploadConfig;
use narswarm_protocol::wire::Message;
use narswarm_protocol::wire::fetch::{FetchReply, FetchRequest, FetchResponse, RefusedReason};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const PIECE: usize = MIN_PIECE_BYTES as usize;

/// A holder of one nar that gives as `upload` says.
async fn holder(pieces: usize, upload: UploadConfig) -> (Net, Arc<TestNar>) {
    let responder = TestResponder::with_nars([TestNar::new(pieces * PIECE, 1)]);
    let nar = responder.nars.values().next().expect("one").clone();
    let mut config = loopback();
    config.upload = upload;
    (Net::start(config, Arc::new(responder)).await.expect("starts").0, nar)
}

async fn asker(holder: &Net) -> Net {
    let responder = Arc::new(TestResponder::default());
    let asker = Net::start(loopback(), responder).await.expect("starts").0;
    asker.learn(holder.peer_id(), holder.listen_addresses());
    asker
}

fn open(nar: &TestNar, first: u32, count: u32) -> FetchRequest {
    FetchRequest::Open { slot: 1, nar_hash: nar.hash, nar_size: nar.size(), first, count }
}

async fn session(asker: &Net, holder: &Net) -> (FetchRequests, FetchResponses) {
    soon("a session", asker.open_fetch(holder.peer_id())).await.expect("a session")
}

async fn next(responses: &mut FetchResponses) -> FetchResponse {
    let next = soon("an answer", responses.next()).await;
    next.expect("the session goes on").expect("no error")
}

/// The next piece's index.
async fn piece(responses: &mut FetchResponses, nar: &TestNar) -> u32 {
    loop {
        if let FetchResponse::Piece { index, frame, .. } = next(responses).await {
            assert_eq!(frame.bytes, nar.piece(index));
            return index;
        }
    }
}

/// A cap so tight that one piece uses it up for minutes.
fn one_piece() -> UploadConfig {
    UploadConfig { rate: Some(1000), ..UploadConfig::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_is_told_again_and_again_that_it_is_not_forgotten() {
    let (holder, nar) = holder(4, one_piece()).await;
    let asker = asker(&holder).await;
    let (requests, mut responses) = session(&asker, &holder).await;
    requests.send(open(&nar, 0, 4)).await.expect("sent");
    assert!(matches!(next(&mut responses).await, FetchResponse::Opened(_)));
    assert!(matches!(next(&mut responses).await, FetchResponse::Piece { index: 0, .. }));
    for _ in 0..3 {
        let told = FetchResponse::Have { slot: 1, ranges: Vec::new() };
        assert_eq!(next(&mut responses).await, told);
    }
    assert_eq!(requests.wanted(), 3);
    // Somebody else waits as well, although it came later.
    let (requests, mut responses) = session(&asker, &holder).await;
    requests.send(open(&nar, 0, 1)).await.expect("sent");
    assert!(matches!(next(&mut responses).await, FetchResponse::Opened(_)));
    assert!(matches!(next(&mut responses).await, FetchResponse::Have { slot: 1, .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_gets_every_piece_once_before_any_twice() {
    const PIECES: usize = 12;
    let rate = Some(8 * MIN_PIECE_BYTES);
    let (holder, nar) = holder(PIECES, UploadConfig { rate, ..UploadConfig::default() }).await;
    let mut sessions = Vec::new();
    for _ in 0..3 {
        let asker = asker(&holder).await;
        let (requests, responses) = session(&asker, &holder).await;
        requests.send(open(&nar, 0, PIECES as u32)).await.expect("sent");
        sessions.push((asker, requests, responses));
    }
    let (mut came, mut waiting) = (Vec::new(), Vec::new());
    for (_, _, responses) in &mut sessions {
        let nar = &nar;
        waiting.push(async move {
            let mut pieces = Vec::new();
            for _ in 0..PIECES {
                pieces.push(piece(responses, nar).await);
            }
            pieces
        });
    }
    for pieces in futures::future::join_all(waiting).await {
        assert_eq!(pieces.iter().collect::<BTreeSet<_>>().len(), PIECES, "none came twice");
        came.push(pieces);
    }
    // The others were there by the time the first had its third piece at the latest.
    let firsts: BTreeSet<_> = came.iter().flat_map(|pieces| &pieces[..4]).collect();
    assert!(firsts.len() >= PIECES - 2, "{came:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_of_a_session_that_ends_go_to_others() {
    // The one slot goes to an asker that never reads.
    let upload = UploadConfig { slots: 1, most_slots: 1, ..UploadConfig::default() };
    let (holder, nar) = holder(400, upload).await;
    let lazy = RawPeer::start().await;
    let mut stream = lazy.open(&holder, Protocol::Fetch).await;
    send(&mut stream, &open(&nar, 0, 400)).await;
    let reply: FetchReply = RawPeer::receive(&mut stream).await;
    assert!(matches!(reply, FetchReply::Opened(_)), "{reply:?}");
    let asker = asker(&holder).await;
    let (requests, mut responses) = session(&asker, &holder).await;
    requests.send(open(&nar, 0, 4)).await.expect("sent");
    assert!(matches!(next(&mut responses).await, FetchResponse::Opened(_)));
    let waits = FetchResponse::Have { slot: 1, ranges: Vec::new() };
    assert_eq!(next(&mut responses).await, waits, "nothing is given while the slot is taken");
    drop(stream);
    for _ in 0..4 {
        piece(&mut responses, &nar).await;
    }
}

async fn send(stream: &mut PeerStream, request: &FetchRequest) {
    let mut octets = Vec::new();
    request.encode(&mut octets);
    stream.write_all(&octets).await.expect("written");
    stream.flush().await.expect("flushed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_finds_all_places_taken_is_told_to_go_elsewhere() {
    let (holder, nar) = holder(2, UploadConfig::default()).await;
    let (mut peers, mut streams) = (Vec::new(), Vec::new());
    for _ in 0..MAX_SERVED_FETCHES / MAX_INBOUND_STREAMS {
        let peer = RawPeer::start().await;
        for _ in 0..MAX_INBOUND_STREAMS {
            let mut stream = peer.open(&holder, Protocol::Fetch).await;
            send(&mut stream, &open(&nar, 0, 0)).await;
            let reply: FetchReply = RawPeer::receive(&mut stream).await;
            assert!(matches!(reply, FetchReply::Opened(_)), "{reply:?}");
            streams.push(stream);
        }
        peers.push(peer);
    }
    assert_eq!(streams.len(), MAX_SERVED_FETCHES);
    let asker = asker(&holder).await;
    let (requests, mut responses) = session(&asker, &holder).await;
    requests.send(open(&nar, 0, 2)).await.expect("sent");
    let refused = FetchResponse::Refused { slot: 1, reason: RefusedReason::Busy };
    assert_eq!(next(&mut responses).await, refused);
    let again = FetchRequest::Open {
        slot: 2,
        nar_hash: nar.hash,
        nar_size: nar.size(),
        first: 0,
        count: 1,
    };
    requests.send(again).await.expect("sent");
    let refused = FetchResponse::Refused { slot: 2, reason: RefusedReason::Busy };
    assert_eq!(next(&mut responses).await, refused);
    assert_eq!(holder.counters().refused_busy.load(Ordering::Relaxed), 1);
    assert_eq!(soon("the end", responses.next()).await, None, "nothing is owed");

    drop(streams);
    let mut served = false;
    while !served {
        let (requests, mut responses) = session(&asker, &holder).await;
        requests.send(open(&nar, 0, 1)).await.expect("sent");
        served = matches!(next(&mut responses).await, FetchResponse::Opened(_));
    }
}
