//! Fetches played through by hand: peers that give, freeze, lie and vanish, and upstream.

mod crowd;
mod lies;
mod upstream;

use super::*;
use crate::hash::PieceHash;
use crate::piece::hash_piece;
use std::time::Duration;

const NAR: NarHash = NarHash([7; 32]);
const A: SourceId = SourceId(1);
const B: SourceId = SourceId(2);
const C: SourceId = SourceId(3);

fn at(millis: u64) -> Time {
    Time(Duration::from_millis(millis))
}

fn layout(pieces: u64) -> PieceLayout {
    PieceLayout::new(pieces * limits::MIN_PIECE_BYTES).expect("layout")
}

fn list(pieces: u64, tag: u8) -> (Root, Arc<PieceList>) {
    let hashes: Vec<PieceHash> = (0..pieces).map(|i| hash_piece(&[tag, i as u8])).collect();
    let list = PieceList::new(layout(pieces), hashes).expect("list");
    (list.root(&NAR), Arc::new(list))
}

fn config(pieces: u64, mode: UpstreamMode, upstream: bool) -> FetchConfig {
    FetchConfig {
        nar_hash: NAR,
        layout: layout(pieces),
        mode,
        upstream,
        upstream_rate: None,
        condemned: vec![],
        believed: vec![],
        resumed: BTreeMap::new(),
        seed: 1,
    }
}

fn fetch(pieces: u64, mode: UpstreamMode, upstream: bool) -> Fetch {
    Fetch::new(config(pieces, mode, upstream), at(0))
}

fn near(root: Option<Root>) -> PeerHint {
    PeerHint { root, latency: Duration::from_millis(1), network: 0, complete: true }
}

fn actions(fetch: &mut Fetch) -> Vec<Action> {
    std::iter::from_fn(|| fetch.poll_action()).collect()
}

/// The pieces that `source` is asked for in `actions`, in order.
fn asked(actions: &[Action], source: SourceId) -> Vec<u32> {
    let ranges = actions.iter().filter_map(|action| match *action {
        Action::Open { source: s, first, count } | Action::Request { source: s, first, count } => {
            (s == source).then_some(first..first + count)
        }
        _ => None,
    });
    ranges.flatten().collect()
}

/// Answers every request of `source` at once until it asks for nothing more.
fn serve(fetch: &mut Fetch, source: SourceId, now: Time) -> u32 {
    let mut given = 0;
    loop {
        let wanted = asked(&actions(fetch), source);
        if wanted.is_empty() {
            return given;
        }
        for index in wanted {
            given += u32::from(fetch.handle_piece(source, index, now));
        }
    }
}

/// A peer that holds everything comes and shows its list; what it is asked for is returned.
fn opened(
    fetch: &mut Fetch,
    source: SourceId,
    list: &(Root, Arc<PieceList>),
    now: Time,
) -> Vec<u32> {
    fetch.handle_peer(source, near(Some(list.0)), now);
    let all = PieceSet::all(list.1.layout().piece_count());
    fetch.handle_opened(source, list.0, list.1.clone(), all, now);
    asked(&actions(fetch), source)
}

#[test]
fn one_peer_gives_everything() {
    let mut fetch = fetch(100, UpstreamMode::SwarmOnly, false);
    let (root, list) = list(100, 0);
    fetch.handle_peer(A, near(Some(root)), at(0));
    let first = actions(&mut fetch);
    assert!(matches!(first[0], Action::Open { source: A, first: 0, .. }), "{first:?}");
    let first = asked(&first, A);
    assert_eq!(first.len() as u32, limits::FIRST_WINDOW_PIECES);
    fetch.handle_opened(A, root, list, PieceSet::all(100), at(1));
    for &index in &first {
        assert!(fetch.handle_piece(A, index, at(2)));
    }
    assert_eq!(serve(&mut fetch, A, at(3)), 100 - first.len() as u32);
    fetch.handle_nar_hash(&NAR, at(4));
    assert_eq!(actions(&mut fetch).last(), Some(&Action::Done));
}

#[test]
fn a_frozen_peer_is_replaced_within_a_second_and_its_late_pieces_are_no_harm() {
    let mut fetch = fetch(40, UpstreamMode::SwarmOnly, false);
    let list = list(40, 0);
    let owed = opened(&mut fetch, A, &list, at(0));
    assert!(!owed.is_empty());
    let mut given = 0;
    for index in opened(&mut fetch, B, &list, at(3)) {
        given += u32::from(fetch.handle_piece(B, index, at(4)));
    }
    given += serve(&mut fetch, B, at(4));
    assert!(given < 40, "A owes the first ones");
    let mut now = at(4);
    while fetch.held().len() < 40 && now < at(1000) {
        now = fetch.poll_timeout(now).expect("a deadline");
        fetch.handle_timeout(now);
        serve(&mut fetch, B, now);
    }
    assert!(fetch.held().is_all(), "after {now:?}");
    assert!(!fetch.handle_piece(A, owed[0], now), "not new");
    fetch.handle_nar_hash(&NAR, now);
    assert_eq!(actions(&mut fetch).last(), Some(&Action::Done));
}

#[test]
fn a_peer_that_has_others_to_serve_first_is_not_taken_for_frozen() {
    let mut fetch = fetch(40, UpstreamMode::SwarmOnly, false);
    opened(&mut fetch, A, &list(40, 0), at(0));
    for ms in (0..5000).step_by(300) {
        fetch.handle_have(A, &[], at(ms));
        fetch.handle_timeout(at(ms + 299));
    }
    assert_eq!(actions(&mut fetch), []);
    assert_eq!(fetch.active_peers(), 1);
}

#[test]
fn a_frozen_peer_that_moves_again_is_asked_again() {
    let mut fetch = fetch(40, UpstreamMode::SwarmOnly, false);
    let owed = opened(&mut fetch, A, &list(40, 0), at(0));
    fetch.handle_timeout(at(800));
    assert_eq!(fetch.active_peers(), 0);
    let taken_back =
        actions(&mut fetch).iter().filter(|a| matches!(a, Action::Cancel { .. })).count();
    assert_eq!(taken_back, owed.len() - 1, "all but one, by which it shows that it moves");
    assert!(fetch.handle_piece(A, owed[0], at(3000)));
    assert!(!asked(&actions(&mut fetch), A).is_empty());
}

#[test]
fn lists_that_contradict_themselves_and_bad_pieces_are_faults() {
    let mut fetch = fetch(4, UpstreamMode::SwarmOnly, false);
    let (root, good) = list(4, 0);
    let (_, other) = list(4, 1);
    fetch.handle_peer(A, near(Some(root)), at(0));
    fetch.handle_opened(A, root, other, PieceSet::all(4), at(1));
    let bad_list = Action::Drop { source: A, fault: Some(Fault::BadList) };
    assert!(actions(&mut fetch).contains(&bad_list));
    let owed = opened(&mut fetch, B, &(root, good), at(2));
    fetch.handle_bad_piece(B, owed[0], at(4));
    let bad_piece = Action::Drop { source: B, fault: Some(Fault::BadPiece) };
    assert!(actions(&mut fetch).contains(&bad_piece));
}

#[test]
fn with_nobody_to_ask_it_fails_and_says_so() {
    let mut fetch = fetch(4, UpstreamMode::SwarmOnly, true);
    assert_eq!(fetch.poll_timeout(at(0)), Some(Time(limits::NO_SOURCE_PATIENCE)));
    fetch.handle_timeout(Time(limits::NO_SOURCE_PATIENCE));
    assert_eq!(actions(&mut fetch), [Action::Failed(Failure::NoSource)]);
    assert_eq!(fetch.poll_timeout(at(6000)), None);
}

#[test]
fn nothing_beyond_the_horizon_is_asked_for() {
    let mut fetch = fetch(100, UpstreamMode::SwarmOnly, false);
    fetch.handle_horizon(0, 3, at(0));
    let mut first = opened(&mut fetch, A, &list(100, 0), at(1));
    first.sort_unstable();
    assert_eq!(first, [0, 1, 2]);
    for index in 0..3 {
        fetch.handle_piece(A, index, at(2));
    }
    assert_eq!(actions(&mut fetch), []);
    fetch.handle_horizon(2, 3, at(3));
    assert_eq!(asked(&actions(&mut fetch), A), [3, 4]);
}

#[test]
fn what_an_earlier_attempt_left_is_not_asked_for_again() {
    let list = list(10, 0);
    let mut config = config(10, UpstreamMode::SwarmOnly, false);
    config.resumed = (0..6).map(|i| (i, list.1.hashes()[i as usize])).collect();
    // One of them is not what the list says.
    config.resumed.insert(3, PieceHash([9; 32]));
    let mut fetch = Fetch::new(config, at(0));
    assert_eq!(fetch.held().len(), 6);
    fetch.handle_peer(A, near(Some(list.0)), at(0));
    fetch.handle_peer(B, PeerHint { network: 1, ..near(Some(list.0)) }, at(0));
    fetch.handle_opened(A, list.0, list.1.clone(), PieceSet::all(10), at(1));
    let acted = actions(&mut fetch);
    assert!(acted.contains(&Action::Discard { index: 3 }), "{acted:?}");
    let asked = asked(&acted, A);
    assert!(asked.iter().all(|&i| i >= 6 || i == 3), "{asked:?}");
    assert!(asked.contains(&3));
}

#[test]
fn a_slow_peers_work_is_taken_by_a_fast_one() {
    let mut fetch = fetch(40, UpstreamMode::SwarmOnly, false);
    let list = list(40, 0);
    let slow = opened(&mut fetch, A, &list, at(0));
    // A gives one piece in half a second; B everything at once.
    assert!(fetch.handle_piece(A, slow[0], at(500)));
    let first = opened(&mut fetch, B, &list, at(501));
    let mut now = 521;
    for index in first {
        fetch.handle_piece(B, index, at(now));
        now += 1;
    }
    let mut cancelled = 0;
    while !fetch.held().is_all() && now < 1000 {
        let actions = actions(&mut fetch);
        cancelled +=
            actions.iter().filter(|a| matches!(a, Action::Cancel { source: A, .. })).count();
        for index in asked(&actions, B) {
            now += 1;
            fetch.handle_piece(B, index, at(now));
        }
        now += 1;
        fetch.handle_timeout(at(now));
    }
    assert!(fetch.held().is_all(), "{:?} at {now}", fetch.held());
    assert!(cancelled > 0);
}

#[test]
fn many_large_pieces_are_not_asked_for_at_once_however_many_peers_come() {
    // 4 GiB, in pieces of 1 MiB.
    let layout = PieceLayout::new(4096 << 20).expect("layout");
    let config = FetchConfig { layout, ..config(1, UpstreamMode::SwarmOnly, false) };
    let mut fetch = Fetch::new(config, at(0));
    let hashes = (0..4096_u32).map(|i| hash_piece(&i.to_le_bytes())).collect();
    let list = PieceList::new(layout, hashes).expect("list");
    let list = (list.root(&NAR), Arc::new(list));
    let sources: Vec<_> = (0..16).map(SourceId).collect();
    for &source in &sources {
        opened(&mut fetch, source, &list, at(1));
    }
    let outstanding: usize = sources.iter().map(|&source| fetch.outstanding(source)).sum();
    // Everybody may be asked for one.
    let most = limits::MAX_IN_FLIGHT_BYTES / layout.piece_size() + sources.len() as u64;
    assert!((16..=most).contains(&(outstanding as u64)), "{outstanding}");
}

#[test]
fn a_conversation_that_breaks_off_is_begun_anew_if_it_gave_something() {
    let mut fetch = fetch(40, UpstreamMode::SwarmOnly, false);
    let shown = list(40, 0);
    let owed = opened(&mut fetch, A, &shown, at(1));
    assert!(fetch.handle_piece(A, owed[0], at(2)));
    actions(&mut fetch);
    fetch.handle_discovery_done(at(3));
    assert!(fetch.handle_broken(A, B, at(4)));
    let acted = actions(&mut fetch);
    assert_eq!(acted[0], Action::Drop { source: A, fault: None });
    assert!(matches!(acted[1], Action::Open { source: B, .. }), "{acted:?}");
    assert!(!asked(&acted, B).contains(&owed[0]));
    assert_eq!(fetch.audit(), Ok(()));
    fetch.handle_opened(B, shown.0, shown.1, PieceSet::all(40), at(5));
    assert!(fetch.knows(B) && !fetch.knows(A));
    // This time it gave nothing.
    assert!(!fetch.handle_broken(B, C, at(6)));
    assert_eq!(actions(&mut fetch), [Action::Drop { source: B, fault: None }]);
    // It may come back until somebody has looked.
    fetch.handle_discovery_done(at(7));
    assert_eq!(actions(&mut fetch), [Action::Failed(Failure::NoSource)]);
}
