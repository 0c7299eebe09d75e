//! Fetches played through by hand: peers that give, freeze, lie and vanish, and upstream.

use super::*;
use crate::hash::PieceHash;
use crate::piece::hash_piece;

const NAR: NarHash = NarHash([7; 32]);
const A: SourceId = SourceId(1);
const B: SourceId = SourceId(2);

fn at(millis: u64) -> Time {
    Time(Duration::from_millis(millis))
}

fn layout(pieces: u64) -> PieceLayout {
    PieceLayout::new(pieces * limits::MIN_PIECE_BYTES).expect("layout")
}

fn list(pieces: u64, tag: u8) -> (Root, PieceList) {
    let hashes: Vec<PieceHash> = (0..pieces).map(|i| hash_piece(&[tag, i as u8])).collect();
    let list = PieceList::new(layout(pieces), hashes).expect("list");
    (list.root(&NAR), list)
}

fn fetch(pieces: u64, mode: UpstreamMode, upstream: bool) -> Fetch {
    Fetch::new(NAR, layout(pieces), mode, upstream, vec![], at(0))
}

fn actions(fetch: &mut Fetch) -> Vec<Action> {
    std::iter::from_fn(|| fetch.poll_action()).collect()
}

/// Answers every request of `source` at once until it asks for nothing more.
fn serve(fetch: &mut Fetch, source: SourceId, now: Time) -> u32 {
    let mut given = 0;
    loop {
        let wanted: Vec<_> = actions(fetch)
            .into_iter()
            .filter_map(|a| match a {
                Action::Open { source: s, first, count }
                | Action::Request { source: s, first, count }
                    if s == source =>
                {
                    Some(first..first + count)
                }
                _ => None,
            })
            .flatten()
            .collect();
        if wanted.is_empty() {
            return given;
        }
        for index in wanted {
            given += u32::from(fetch.handle_piece(source, index, now));
        }
    }
}

#[test]
fn one_peer_gives_everything_in_order() {
    let mut fetch = fetch(100, UpstreamMode::SwarmOnly, false);
    let (root, list) = list(100, 0);
    fetch.handle_peer(A, Some(root), Duration::from_millis(1), at(0));
    let count = limits::FIRST_WINDOW_PIECES;
    assert_eq!(actions(&mut fetch), [Action::Open { source: A, first: 0, count }]);
    fetch.handle_opened(A, root, list, at(1));
    for index in 0..count {
        assert!(fetch.handle_piece(A, index, at(2)));
    }
    assert_eq!(serve(&mut fetch, A, at(3)), 100 - count);
    fetch.handle_nar_hash(&NAR);
    assert_eq!(actions(&mut fetch).last(), Some(&Action::Done));
}

#[test]
fn a_frozen_peer_is_replaced_within_a_second_and_its_late_pieces_are_no_harm() {
    let mut fetch = fetch(20, UpstreamMode::SwarmOnly, false);
    let (root, list) = list(20, 0);
    fetch.handle_peer(A, Some(root), Duration::from_millis(1), at(0));
    fetch.handle_opened(A, root, list.clone(), at(1));
    actions(&mut fetch);
    fetch.handle_peer(B, Some(root), Duration::from_millis(1), at(2));
    fetch.handle_opened(B, root, list, at(3));
    assert!(serve(&mut fetch, B, at(4)) < 20, "A owes the first ones");
    let wake = fetch.poll_timeout().expect("a deadline");
    assert!(wake <= at(1000), "{wake:?}");
    fetch.handle_timeout(wake);
    serve(&mut fetch, B, wake);
    assert_eq!(fetch.held(), 20);
    assert!(!fetch.handle_piece(A, 0, wake), "not new");
    fetch.handle_nar_hash(&NAR);
    assert_eq!(actions(&mut fetch).last(), Some(&Action::Done));
}

#[test]
fn upstream_joins_when_nobody_is_known_and_goes_on_where_a_dead_peer_stopped() {
    let mut nobody = fetch(10, UpstreamMode::SwarmFirst, true);
    nobody.handle_discovery_done(at(5));
    assert_eq!(actions(&mut nobody), [Action::StartUpstream { from: 0 }]);

    let mut fetch = fetch(10, UpstreamMode::SwarmFirst, true);
    let (root, list) = list(10, 0);
    fetch.handle_peer(A, Some(root), Duration::from_millis(1), at(0));
    fetch.handle_opened(A, root, list, at(1));
    for index in 0..3 {
        fetch.handle_piece(A, index, at(2));
    }
    fetch.handle_discovery_done(at(3));
    actions(&mut fetch);
    fetch.handle_source_lost(A, None, at(400));
    let expected = [Action::Drop { source: A, fault: None }, Action::StartUpstream { from: 3 }];
    assert_eq!(actions(&mut fetch), expected);
    for index in 3..10 {
        assert!(fetch.handle_upstream_piece(index, at(500)));
    }
    fetch.handle_nar_hash(&NAR);
    assert_eq!(actions(&mut fetch), [Action::StopUpstream, Action::Done]);
}

#[test]
fn upstream_waits_for_the_swarm_only_so_long() {
    let mut fetch = fetch(10, UpstreamMode::SwarmFirst, true);
    fetch.handle_peer(A, None, Duration::from_millis(1), at(0));
    actions(&mut fetch);
    assert_eq!(fetch.poll_timeout(), Some(Time(limits::UPSTREAM_PATIENCE)));
    fetch.handle_timeout(at(299));
    assert_eq!(actions(&mut fetch), []);
    fetch.handle_timeout(at(300));
    assert_eq!(actions(&mut fetch), [Action::StartUpstream { from: 0 }]);
    // The late peer helps from the tail.
    let (root, list) = list(10, 0);
    fetch.handle_opened(A, root, list, at(350));
    for index in 0..limits::FIRST_WINDOW_PIECES {
        fetch.handle_piece(A, index, at(351));
    }
    assert!(actions(&mut fetch).contains(&Action::Request { source: A, first: 8, count: 2 }));
}

#[test]
fn whoever_shows_a_false_root_is_condemned() {
    let mut fetch = fetch(4, UpstreamMode::SwarmOnly, false);
    let (root, list) = list(4, 9);
    fetch.handle_peer(A, None, Duration::from_millis(1), at(0));
    fetch.handle_opened(A, root, list, at(1));
    for index in 0..4 {
        fetch.handle_piece(A, index, at(2));
    }
    actions(&mut fetch);
    fetch.handle_nar_hash(&NarHash([8; 32]));
    let expected = [
        Action::Drop { source: A, fault: Some(Fault::FalseRoot) },
        Action::Failed(Failure::Mismatch { root: Some(root), upstream: false }),
    ];
    assert_eq!(actions(&mut fetch), expected);
    // The next fetch doesn't believe that root again.
    let mut next = Fetch::new(NAR, layout(4), UpstreamMode::SwarmOnly, false, vec![root], at(3));
    next.handle_peer(A, Some(root), Duration::ZERO, at(3));
    assert_eq!(actions(&mut next), [Action::Drop { source: A, fault: None }]);
}

#[test]
fn lists_that_contradict_themselves_and_bad_pieces_are_faults() {
    let mut fetch = fetch(4, UpstreamMode::SwarmOnly, false);
    let (root, _) = list(4, 0);
    let (_, other) = list(4, 1);
    fetch.handle_peer(A, Some(root), Duration::ZERO, at(0));
    fetch.handle_opened(A, root, other, at(1));
    let bad_list = Action::Drop { source: A, fault: Some(Fault::BadList) };
    assert!(actions(&mut fetch).contains(&bad_list));
    let (root, good) = list(4, 0);
    fetch.handle_peer(B, Some(root), Duration::ZERO, at(2));
    fetch.handle_opened(B, root, good, at(3));
    fetch.handle_bad_piece(B, at(4));
    let bad_piece = Action::Drop { source: B, fault: Some(Fault::BadPiece) };
    assert!(actions(&mut fetch).contains(&bad_piece));
}

#[test]
fn with_nobody_to_ask_it_fails_and_says_so() {
    let mut fetch = fetch(4, UpstreamMode::SwarmOnly, true);
    assert_eq!(fetch.poll_timeout(), Some(Time(limits::NO_SOURCE_PATIENCE)));
    fetch.handle_timeout(Time(limits::NO_SOURCE_PATIENCE));
    assert_eq!(actions(&mut fetch), [Action::Failed(Failure::NoSource)]);
    assert_eq!(fetch.poll_timeout(), None);
}

#[test]
fn nothing_beyond_the_horizon_is_asked_for() {
    let mut fetch = fetch(100, UpstreamMode::SwarmOnly, false);
    fetch.handle_horizon(0, 3, at(0));
    let (root, list) = list(100, 0);
    fetch.handle_peer(A, Some(root), Duration::ZERO, at(0));
    fetch.handle_opened(A, root, list, at(1));
    assert_eq!(actions(&mut fetch), [Action::Open { source: A, first: 0, count: 3 }]);
    for index in 0..3 {
        fetch.handle_piece(A, index, at(2));
    }
    assert_eq!(actions(&mut fetch), []);
    fetch.handle_horizon(2, 3, at(3));
    assert_eq!(actions(&mut fetch), [Action::Request { source: A, first: 3, count: 2 }]);
}

#[test]
fn a_peer_with_another_list_gets_its_turn_when_the_first_is_gone() {
    let mut fetch = fetch(4, UpstreamMode::SwarmOnly, false);
    let ((false_root, false_list), (root, good)) = (list(4, 1), list(4, 0));
    fetch.handle_peer(A, Some(false_root), Duration::ZERO, at(0));
    fetch.handle_opened(A, false_root, false_list, at(1));
    fetch.handle_peer(B, Some(root), Duration::ZERO, at(2));
    fetch.handle_bad_piece(A, at(3));
    assert!(actions(&mut fetch).contains(&Action::Open { source: B, first: 0, count: 4 }));
    fetch.handle_opened(B, root, good, at(4));
    for index in 0..4 {
        assert!(fetch.handle_piece(B, index, at(5)));
    }
}

#[test]
fn what_a_peer_with_another_list_gives_is_not_taken() {
    let mut fetch = fetch(20, UpstreamMode::SwarmOnly, false);
    let ((root, good), (other_root, other)) = (list(20, 0), list(20, 1));
    fetch.handle_peer(A, None, Duration::ZERO, at(0));
    fetch.handle_opened(A, root, good, at(1));
    fetch.handle_peer(B, None, Duration::ZERO, at(2));
    let opened = actions(&mut fetch).into_iter().find_map(|action| match action {
        Action::Open { source: B, first, .. } => Some(first),
        _ => None,
    });
    fetch.handle_opened(B, other_root, other, at(3));
    assert!(!fetch.handle_piece(B, opened.expect("B is opened"), at(4)));
    for index in 0..limits::FIRST_WINDOW_PIECES {
        fetch.handle_piece(A, index, at(5));
    }
    serve(&mut fetch, A, at(6));
    assert_eq!(fetch.held(), 20, "what B owed is asked of A");
}
