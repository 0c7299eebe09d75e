//! Queries and fetch sessions between well-behaved nodes.

use crate::net::testing::{TestNar, TestResponder, node, soon, wait_until};
use crate::net::{FetchRequests, FetchResponses, Held, Net, PeerError};
use bytes::Bytes;
use narswarm_protocol::hash::{NarHash, Root};
use narswarm_protocol::limits::{MAX_NARINFO_BYTES, MAX_QUERY_HASHES, MIN_PIECE_BYTES};
use narswarm_protocol::piece_set::PieceSet;
use narswarm_protocol::store_path::StoreHash;
use narswarm_protocol::wire::fetch::{FetchRequest, FetchResponse, RefusedReason};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const PIECE: usize = MIN_PIECE_BYTES as usize;

fn store_hash(number: u32) -> StoreHash {
    let mut octets = [0; 20];
    octets[..4].copy_from_slice(&number.to_be_bytes());
    StoreHash(octets)
}

fn held(narinfo: impl Into<Bytes>) -> Held {
    Held { narinfo: narinfo.into(), root: Some(Root([7; 32])), pieces_held: 3 }
}

/// A holder of `responder`'s things, and an asker that is connected to it.
async fn pair(responder: TestResponder) -> (Net, Net) {
    let (holder, _) = node(responder, vec![]).await;
    let (asker, _) = node(TestResponder::default(), holder.listen_addresses()).await;
    (holder, asker)
}

fn open(slot: u32, nar: &TestNar, first: u32, count: u32) -> FetchRequest {
    FetchRequest::Open { slot, nar_hash: nar.hash, nar_size: nar.size(), first, count }
}

async fn next(responses: &mut FetchResponses) -> FetchResponse {
    let next = soon("an answer", responses.next()).await;
    next.expect("the session goes on").expect("no error")
}

async fn opened(responses: &mut FetchResponses) -> PieceSet {
    match next(responses).await {
        FetchResponse::Opened(opened) => opened.held,
        other => panic!("not opened: {other:?}"),
    }
}

async fn session(asker: &Net, holder: &Net) -> (FetchRequests, FetchResponses) {
    soon("a session", asker.open_fetch(holder.peer_id())).await.expect("a session")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_is_answered_in_order() {
    let items = (0..500).map(|i| (store_hash(2 * i), held(format!("narinfo {i}"))));
    let (holder, asker) = pair(TestResponder::with_items(items)).await;
    let hashes: Vec<_> = (0..MAX_QUERY_HASHES as u32).map(store_hash).collect();
    let answers = asker.query(holder.peer_id(), &hashes).await.expect("answers");
    assert_eq!(answers.len(), hashes.len());
    for (number, answer) in answers.into_iter().enumerate() {
        let expected = (number % 2 == 0).then(|| held(format!("narinfo {}", number / 2)));
        assert_eq!(answer, expected);
    }
    assert_eq!(asker.query(holder.peer_id(), &[]).await, Ok(vec![]));
    let many = vec![store_hash(1); MAX_QUERY_HASHES + 1];
    assert!(matches!(asker.query(holder.peer_id(), &many).await, Err(PeerError::Local { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_answers_are_asked_for_again_and_bounded() {
    let large = Bytes::from(vec![b'x'; MAX_NARINFO_BYTES]);
    let items = (0..200).map(|i| (store_hash(i), held(large.clone())));
    let (holder, asker) = pair(TestResponder::with_items(items)).await;
    let few: Vec<_> = (0..70).map(store_hash).collect();
    let answers = asker.query(holder.peer_id(), &few).await.expect("answers");
    assert!(answers.iter().all(|answer| answer.as_ref() == Some(&held(large.clone()))));
    let many: Vec<_> = (0..200).map(store_hash).collect();
    let answers = asker.query(holder.peer_id(), &many).await.expect("answers");
    let answered = answers.iter().flatten().count();
    assert!((120..128).contains(&answered), "four answers of 8 MiB: {answered}");
    assert!(answers[answered..].iter().all(Option::is_none));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_queries_at_once_are_all_answered() {
    let (holder, asker) = pair(TestResponder::with_items([(store_hash(1), held("one"))])).await;
    let ask = || {
        let (asker, peer) = (asker.clone(), holder.peer_id());
        tokio::spawn(async move { asker.query(peer, &[store_hash(1)]).await })
    };
    let asked: Vec<_> = (0..1000).map(|_| ask()).collect();
    for answer in asked {
        let answer = soon("an answer", answer).await.expect("no panic");
        assert_eq!(answer, Ok(vec![Some(held("one"))]));
    }
    assert_eq!(holder.counters().served_queries.load(Ordering::Relaxed), 1000);
    assert_eq!(holder.stream_counters().refused.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_nars_are_fetched_in_one_session() {
    let nars = [TestNar::new(3 * PIECE + 5, 1), TestNar::new(1, 2), TestNar::new(0, 3)];
    let responder = TestResponder::with_nars(nars);
    let nars: Vec<Arc<TestNar>> = responder.nars.values().cloned().collect();
    let (holder, asker) = pair(responder).await;
    let (requests, mut responses) = session(&asker, &holder).await;
    for (slot, nar) in nars.iter().enumerate() {
        let count = nar.size().div_ceil(MIN_PIECE_BYTES) as u32;
        requests.send(open(slot as u32, nar, 0, count)).await.expect("sent");
    }
    let (mut opened, mut pieces) = (0, BTreeMap::new());
    while opened < 3 || pieces.len() < 5 {
        match next(&mut responses).await {
            FetchResponse::Opened(nar) => {
                assert_eq!(nar.list.root(&nars[nar.slot as usize].hash), nar.root);
                assert!(nar.held.is_all());
                opened += 1;
            }
            FetchResponse::Piece { slot, index, frame } => {
                pieces.insert((slot, index), frame.bytes);
            }
            other => panic!("unexpected: {other:?}"),
        }
    }
    for ((slot, index), bytes) in pieces {
        assert_eq!(bytes, nars[slot as usize].piece(index));
    }
    assert_eq!(requests.wanted(), 0);
    let served = holder.counters().served_bytes.load(Ordering::Relaxed);
    assert_eq!(served, 3 * MIN_PIECE_BYTES + 6);
    assert_eq!(asker.counters().fetched_bytes.load(Ordering::Relaxed), served);

    drop(requests);
    assert_eq!(soon("the end", responses.next()).await, None, "nothing is owed any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_held_is_refused_and_the_session_goes_on() {
    let nar = TestNar::new(PIECE, 1);
    let (hash, size) = (nar.hash, nar.size());
    let (holder, asker) = pair(TestResponder::with_nars([nar])).await;
    let (requests, mut responses) = session(&asker, &holder).await;
    let open = |slot, nar_hash, nar_size| FetchRequest::Open {
        slot,
        nar_hash,
        nar_size,
        first: 0,
        count: 1,
    };
    requests.send(open(1, NarHash([99; 32]), size)).await.expect("sent");
    requests.send(open(2, hash, size + 1)).await.expect("sent");
    let refused = |slot, reason| FetchResponse::Refused { slot, reason };
    assert_eq!(next(&mut responses).await, refused(1, RefusedReason::NotHeld));
    assert_eq!(next(&mut responses).await, refused(2, RefusedReason::SizeDiffers));
    let late = FetchRequest::Want { slot: 1, first: 0, count: 1 };
    requests.send(late).await.expect("dropped silently");
    requests.send(open(3, hash, size)).await.expect("sent");
    assert!(opened(&mut responses).await.is_all());
    assert!(matches!(next(&mut responses).await, FetchResponse::Piece { slot: 3, .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nar_that_is_still_being_fetched_is_shared_as_it_grows() {
    let nar = TestNar::new(8 * PIECE, 1).holding([1, 2]);
    let responder = TestResponder::with_nars([nar]);
    let nar = responder.nars.values().next().expect("one").clone();
    let (holder, asker) = pair(responder).await;
    let (requests, mut responses) = session(&asker, &holder).await;
    requests.send(open(1, &nar, 0, 3)).await.expect("sent");
    assert_eq!(opened(&mut responses).await.iter().collect::<Vec<_>>(), [1, 2]);
    assert_eq!(next(&mut responses).await, FetchResponse::Missing { slot: 1, index: 0 });
    for index in [1, 2] {
        let FetchResponse::Piece { index: found, .. } = next(&mut responses).await else {
            panic!("not a piece")
        };
        assert_eq!(found, index);
    }
    for index in 3..6 {
        nar.gain(index);
    }
    let mut known = PieceSet::none(8);
    while known.len() < 3 {
        let FetchResponse::Have { slot: 1, ranges } = next(&mut responses).await else {
            panic!("not an update")
        };
        for (first, count) in ranges {
            (first..first + count).for_each(|index| assert!(known.insert(index), "told twice"));
        }
    }
    assert_eq!(known.iter().collect::<Vec<_>>(), [3, 4, 5]);
    requests.send(FetchRequest::Want { slot: 1, first: 5, count: 1 }).await.expect("sent");
    assert!(matches!(next(&mut responses).await, FetchResponse::Piece { index: 5, .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_wants_to_know_is_told_when_a_piece_begins_to_come() {
    let responder = TestResponder::with_nars([TestNar::new(3 * PIECE, 1)]);
    let nar = responder.nars.values().next().expect("one").clone();
    let (holder, asker) = pair(responder).await;
    let (requests, responses) = session(&asker, &holder).await;
    let mut responses = responses.telling_of_begun();
    requests.send(open(1, &nar, 0, 3)).await.expect("sent");
    opened(&mut responses).await;
    for expected in 0..3 {
        assert_eq!(next(&mut responses).await, FetchResponse::Begun { slot: 1, index: expected });
        assert!(matches!(
            next(&mut responses).await,
            FetchResponse::Piece { slot: 1, index, frame } if index == expected && !frame.bytes.is_empty()
        ));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_pieces_stop_coming() {
    let nar = TestNar::new(1000 * PIECE, 1);
    let responder = TestResponder::with_nars([nar]);
    let nar = responder.nars.values().next().expect("one").clone();
    let (holder, asker) = pair(responder).await;
    let (requests, mut responses) = session(&asker, &holder).await;
    requests.send(open(1, &nar, 0, 1000)).await.expect("sent");
    opened(&mut responses).await;
    assert!(matches!(next(&mut responses).await, FetchResponse::Piece { index: 0, .. }));
    requests.send(FetchRequest::Cancel { slot: 1, first: 0, count: 999 }).await.expect("sent");
    assert_eq!(requests.wanted(), 1);
    let mut came = 1;
    loop {
        let FetchResponse::Piece { index, .. } = next(&mut responses).await else {
            panic!("not a piece")
        };
        came += 1;
        if index == 999 {
            break;
        }
    }
    assert!(came < 900, "{came} of 1000 came although 999 were cancelled after the first");
    assert_eq!(requests.wanted(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_a_session_frees_it_on_both_sides() {
    let nar = TestNar::new(1000 * PIECE, 1);
    let responder = TestResponder::with_nars([nar]);
    let nar = responder.nars.values().next().expect("one").clone();
    let (holder, asker) = pair(responder).await;
    // Many more than may be open at a time: each must make room for the next.
    for slot in 0..50 {
        let (requests, mut responses) = session(&asker, &holder).await;
        requests.send(open(slot, &nar, 0, 1000)).await.expect("sent");
        opened(&mut responses).await;
    }
    assert_eq!(holder.stream_counters().refused.load(Ordering::Relaxed), 0);
    wait_until("the pieces are let go of", || Arc::strong_count(&nar) == 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_with_its_peer() {
    let nar = TestNar::new(1000 * PIECE, 1);
    let responder = TestResponder::with_nars([nar]);
    let nar = responder.nars.values().next().expect("one").clone();
    let (holder, asker) = pair(responder).await;
    let (requests, mut responses) = session(&asker, &holder).await;
    requests.send(open(1, &nar, 0, 1000)).await.expect("sent");
    opened(&mut responses).await;
    soon("the shutdown", holder.shutdown()).await;
    let error = loop {
        match soon("the end", responses.next()).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("pieces are owed"),
        }
    };
    assert!(matches!(error, PeerError::Closed { .. }), "{error}");
    assert_eq!(responses.next().await, None);
    wait_until("the loss is seen", || asker.connected().is_empty()).await;
    let gone = asker.query(holder.peer_id(), &[store_hash(1)]).await;
    assert!(matches!(gone, Err(PeerError::Unreachable { .. })), "{gone:?}");
}
