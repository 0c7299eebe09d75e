//! Many small nars in one session with a peer.

use crate::net::testing::{TestNar, TestResponder, node, soon, wait_until};
use crate::net::{FetchRequests, NarResponses, Net, PeerError};
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::limits::MAX_FETCH_SLOTS;
use narswarm_protocol::wire::fetch::{FetchRequest, FetchResponse, RefusedReason};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A holder of as many small nars as asked for, and an asker that is connected to it.
async fn pair(count: u8) -> (Net, Net, Vec<Arc<TestNar>>) {
    let nars = (0..count).map(|seed| TestNar::new(100 + usize::from(seed), seed));
    let responder = TestResponder::with_nars(nars);
    let nars = responder.nars.values().cloned().collect();
    let (holder, _) = node(responder, vec![]).await;
    let (asker, _) = node(TestResponder::default(), holder.listen_addresses()).await;
    (holder, asker, nars)
}

async fn slot(asker: &Net, holder: &Net) -> (FetchRequests, NarResponses) {
    let received = Arc::default();
    let opened = asker.open_nar(holder.peer_id(), true, &received);
    soon("a slot", opened).await.expect("a session")
}

async fn ask(requests: &FetchRequests, slot: u32, nar_hash: NarHash, nar_size: u64) {
    let open = FetchRequest::Open { slot, nar_hash, nar_size, first: 0, count: 1 };
    requests.send(open).await.expect("sent");
}

async fn next(responses: &mut NarResponses) -> Option<Result<FetchResponse, PeerError>> {
    soon("an answer", responses.next(&AtomicU64::default())).await
}

/// Reads a nar of one piece, whole.
async fn gets(responses: &mut NarResponses, nar: &TestNar) {
    let opened = next(responses).await.expect("an answer").expect("no error");
    let FetchResponse::Opened(opened) = opened else { panic!("not opened: {opened:?}") };
    assert_eq!(opened.slot, responses.slot());
    let begun = next(responses).await.expect("an answer").expect("no error");
    assert_eq!(begun, FetchResponse::Begun { slot: responses.slot(), index: 0 });
    let piece = next(responses).await.expect("an answer").expect("no error");
    let FetchResponse::Piece { frame, .. } = piece else { panic!("no piece: {piece:?}") };
    assert_eq!(frame.bytes, nar.octets);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_nars_share_one_stream_and_each_gets_its_own() {
    let (holder, asker, nars) = pair(MAX_FETCH_SLOTS as u8).await;
    for _ in 0..2 {
        let mut slots = Vec::new();
        for nar in &nars {
            let (requests, responses) = slot(&asker, &holder).await;
            ask(&requests, responses.slot(), nar.hash, nar.size()).await;
            slots.push(responses);
        }
        for (responses, nar) in slots.iter_mut().zip(&nars) {
            assert!(matches!(responses, NarResponses::Shared(_)));
            gets(responses, nar).await;
        }
        // A round later all slots are free again.
    }
    // Discovery has asked the holder meanwhile, by streams of its own, which are counted when answered.
    let accepted = || holder.stream_counters().accepted.load(Ordering::Relaxed);
    let discovery = || holder.counters().served_announces.load(Ordering::Relaxed);
    wait_until("there to be one stream for all of them", || accepted() == discovery() + 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_finds_no_slot_gets_a_session_of_his_own() {
    let (holder, asker, nars) = pair(1).await;
    let mut slots = Vec::new();
    for _ in 0..MAX_FETCH_SLOTS {
        slots.push(slot(&asker, &holder).await);
    }
    let (requests, mut responses) = slot(&asker, &holder).await;
    assert!(matches!(responses, NarResponses::Own(_)));
    ask(&requests, responses.slot(), nars[0].hash, nars[0].size()).await;
    gets(&mut responses, &nars[0]).await;
    slots.pop();
    let (_, responses) = slot(&asker, &holder).await;
    assert!(matches!(responses, NarResponses::Shared(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_refused_or_dropped_leaves_the_others_alone() {
    let (holder, asker, nars) = pair(2).await;
    let (requests, mut refused) = slot(&asker, &holder).await;
    let (_, dropped) = slot(&asker, &holder).await;
    let (_, mut kept) = slot(&asker, &holder).await;
    ask(&requests, refused.slot(), NarHash([99; 32]), 5).await;
    ask(&requests, dropped.slot(), nars[0].hash, nars[0].size()).await;
    drop(dropped);
    ask(&requests, kept.slot(), nars[1].hash, nars[1].size()).await;
    let answer = next(&mut refused).await.expect("an answer").expect("no error");
    let reason = RefusedReason::NotHeld;
    assert_eq!(answer, FetchResponse::Refused { slot: refused.slot(), reason });
    gets(&mut kept, &nars[1]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_peer_goes_all_are_told_and_the_next_opens_anew() {
    let (holder, asker, nars) = pair(1).await;
    let (requests, mut first) = slot(&asker, &holder).await;
    let (_, mut second) = slot(&asker, &holder).await;
    ask(&requests, first.slot(), nars[0].hash, nars[0].size()).await;
    gets(&mut first, &nars[0]).await;
    holder.shutdown().await;
    for responses in [&mut first, &mut second] {
        let answer = next(responses).await;
        assert!(matches!(answer, Some(Err(PeerError::Closed { .. }))), "{answer:?}");
    }
    wait_until("the connection to be gone", || asker.connected().is_empty()).await;
    let received = Arc::default();
    let again = asker.open_nar(holder.peer_id(), true, &received);
    let again = soon("a refusal", again).await.err();
    assert!(matches!(again, Some(PeerError::Unreachable { .. })), "{again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_are_given_counts_as_a_sign_of_life() {
    let (holder, asker, nars) = pair(2).await;
    let (requests, mut waiting) = slot(&asker, &holder).await;
    let (_, mut given) = slot(&asker, &holder).await;
    ask(&requests, given.slot(), nars[1].hash, nars[1].size()).await;
    gets(&mut given, &nars[1]).await;
    let received = AtomicU64::default();
    let wait = waiting.next(&received);
    let seen = async {
        while received.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        answer = wait => panic!("nothing was asked for: {answer:?}"),
        () = soon("the octets", seen) => {}
    }
    assert_eq!(received.load(Ordering::Relaxed), nars[1].size());
}
