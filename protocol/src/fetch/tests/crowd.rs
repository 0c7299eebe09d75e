//! Sources that are themselves still fetching.

use super::super::steal::{TURN_PATIENCE, URGENT_TURN_PATIENCE};
use super::*;

fn partial(
    fetch: &mut Fetch,
    id: SourceId,
    list: &(Root, Arc<PieceList>),
    held: &[u32],
    now: Time,
) {
    let hint = PeerHint { complete: false, ..near(Some(list.0)) };
    let mut set = PieceSet::none(list.1.layout().piece_count());
    held.iter().for_each(|&index| assert!(set.insert(index)));
    fetch.handle_peer(id, hint, now);
    fetch.handle_opened(id, list.0, list.1.clone(), set, now);
}

#[test]
fn a_peer_is_asked_only_for_what_it_has_and_again_when_it_has_more() {
    let mut fetch = fetch(40, UpstreamMode::SwarmOnly, false);
    let list = list(40, 0);
    partial(&mut fetch, A, &list, &[7, 9], at(1));
    let mut wanted = asked(&actions(&mut fetch), A);
    wanted.sort_unstable();
    assert_eq!(wanted, [7, 9]);
    for index in [7, 9] {
        assert!(fetch.handle_piece(A, index, at(2)));
    }
    assert_eq!(actions(&mut fetch), []);
    fetch.handle_have(A, &[(20, 2)], at(3));
    let mut wanted = asked(&actions(&mut fetch), A);
    wanted.sort_unstable();
    assert_eq!(wanted, [20, 21]);
    fetch.handle_missing(A, 20, at(4));
    assert_eq!(fetch.outstanding(A), 1);
}

#[test]
fn members_of_a_crowd_begin_with_different_pieces() {
    let list = list(200, 0);
    let firsts: Vec<Vec<u32>> = (0..4)
        .map(|seed| {
            let config = FetchConfig { seed, ..config(200, UpstreamMode::SwarmOnly, false) };
            let mut fetch = Fetch::new(config, at(0));
            partial(&mut fetch, B, &list, &[], at(0));
            let mut wanted = opened(&mut fetch, A, &list, at(1));
            wanted.sort_unstable();
            wanted
        })
        .collect();
    assert!(firsts.windows(2).all(|pair| pair[0] != pair[1]), "{firsts:?}");
}

#[test]
fn what_the_fewest_have_is_asked_for_first() {
    let mut fetch = fetch(64, UpstreamMode::SwarmOnly, false);
    let list = list(64, 0);
    let common: Vec<u32> = (0..60).collect();
    partial(&mut fetch, B, &list, &common, at(0));
    partial(&mut fetch, C, &list, &common, at(0));
    actions(&mut fetch);
    let wanted = opened(&mut fetch, A, &list, at(1));
    for index in &wanted {
        fetch.handle_piece(A, *index, at(2));
    }
    let next = [wanted, asked(&actions(&mut fetch), A)].concat();
    assert!((60..64).all(|rare| next.contains(&rare)), "{next:?}");
}

#[test]
fn what_has_come_to_others_is_asked_of_them_and_the_seed_is_asked_for_rare_ones() {
    let mut fetch = fetch(64, UpstreamMode::SwarmOnly, false);
    let list = list(64, 0);
    partial(&mut fetch, B, &list, &[], at(0));
    let wanted = opened(&mut fetch, A, &list, at(1));
    let last = *wanted.last().expect("asked for some");
    fetch.handle_have(B, &[(last, 1)], at(10));
    let acted = actions(&mut fetch);
    assert!(acted.contains(&Action::Cancel { source: A, first: last, count: 1 }), "{acted:?}");
    assert_eq!(asked(&acted, A).len(), 1, "something rarer instead");
    assert_eq!(asked(&acted, B), [last]);
}

/// What B, which holds the same, is asked for when A has owed these pieces for so long in silence.
fn asked_of_another_after(silence: Duration, owed: &[u32]) -> Vec<u32> {
    let mut fetch = fetch(64, UpstreamMode::SwarmOnly, false);
    let list = list(64, 0);
    partial(&mut fetch, A, &list, owed, at(0));
    assert_eq!(asked(&actions(&mut fetch), A), owed);
    let now = at(1) + silence;
    fetch.handle_timeout(now);
    partial(&mut fetch, B, &list, owed, now);
    asked(&actions(&mut fetch), B)
}

#[test]
fn in_a_crowd_who_is_silent_is_left_alone_for_longer_unless_the_reader_waits() {
    assert_eq!(asked_of_another_after(limits::FREEZE_AFTER, &[0]), [0]);
    assert_eq!(asked_of_another_after(limits::FREEZE_AFTER, &[40]), []);
    assert_eq!(asked_of_another_after(limits::CROWD_FREEZE_AFTER, &[40]), [40]);
}

#[test]
fn a_crowd_in_which_nobody_gets_anything_gives_up() {
    let mut fetch = fetch(8, UpstreamMode::SwarmOnly, false);
    let (root, list) = list(8, 0);
    fetch.handle_peer(A, PeerHint { complete: false, ..near(None) }, at(0));
    fetch.handle_opened(A, root, list, PieceSet::none(8), at(1));
    fetch.handle_discovery_done(at(2));
    let mut now = at(2);
    while let Some(next) = fetch.poll_timeout(now) {
        assert!(next > now && next <= at(2) + limits::STANDSTILL_PATIENCE, "{next:?}");
        now = next;
        fetch.handle_timeout(now);
    }
    assert_eq!(actions(&mut fetch).last(), Some(&Action::Failed(Failure::NoSource)));
}

#[test]
fn a_piece_that_a_seed_passes_over_is_asked_of_the_crowd() {
    let mut fetch = fetch(40, UpstreamMode::SwarmOnly, false);
    let shown = list(40, 0);
    let owed = opened(&mut fetch, A, &shown, at(1));
    fetch.handle_peer(B, PeerHint { complete: false, ..near(Some(shown.0)) }, at(2));
    fetch.handle_opened(B, shown.0, shown.1, PieceSet::none(40), at(3));
    actions(&mut fetch);
    assert!(owed.contains(&0) && owed.contains(&1));
    // B gets what the seed was asked for first, and the seed gives what it was asked for later.
    fetch.handle_piece(A, 1, at(4));
    actions(&mut fetch);
    fetch.handle_have(B, &[(0, 1)], at(5));
    let acted = actions(&mut fetch);
    assert!(acted.contains(&Action::Cancel { source: A, first: 0, count: 1 }), "{acted:?}");
    assert_eq!(asked(&acted, B), [0]);
    assert_eq!(fetch.audit(), Ok(()));
}

/// Milliseconds until a piece whose turn doesn't come is moved.
const TURN: u64 = TURN_PATIENCE.as_millis() as u64;
/// The same for one that the reader waits for.
const URGENT_TURN: u64 = URGENT_TURN_PATIENCE.as_millis() as u64;

/// A fetch with two members of a crowd, of which A owes pieces and B, which holds them as well, owes
/// nothing.
fn one_owes_and_another_is_free(owed: &[u32], now: Time) -> Fetch {
    let mut fetch = fetch(200, UpstreamMode::SwarmOnly, false);
    let list = list(200, 0);
    partial(&mut fetch, A, &list, owed, at(0));
    assert_eq!(asked(&actions(&mut fetch), A), owed);
    fetch.handle_have(A, &[], now);
    partial(&mut fetch, B, &list, owed, now);
    fetch
}

#[test]
fn a_piece_whose_turn_does_not_come_is_asked_of_one_that_owes_nothing_unless_it_has_begun() {
    let mut patient = one_owes_and_another_is_free(&[100], at(TURN - 100));
    assert_eq!(asked(&actions(&mut patient), B), [], "its turn may come");
    patient.handle_have(A, &[], at(TURN));
    let acted = actions(&mut patient);
    assert!(acted.contains(&Action::Cancel { source: A, first: 100, count: 1 }), "{acted:?}");
    assert_eq!(asked(&acted, B), [100]);
    assert_eq!(patient.audit(), Ok(()));

    let mut begun = one_owes_and_another_is_free(&[100], at(TURN - 100));
    actions(&mut begun);
    begun.handle_begun(A, 100, at(TURN - 50));
    begun.handle_progress(A, 1, at(TURN + 400));
    begun.handle_have(B, &[], at(TURN + 400));
    assert_eq!(actions(&mut begun), []);
    // For longer and longer it only pretends to.
    for time in (TURN + 600..TURN + 3000).step_by(200).map(at) {
        begun.handle_progress(A, 1, time);
        begun.handle_have(B, &[], time);
    }
    assert_eq!(asked(&actions(&mut begun), B), [], "nobody knows whether B is faster");
}

#[test]
fn what_the_reader_waits_for_is_moved_sooner() {
    let mut fetch = one_owes_and_another_is_free(&[0], at(URGENT_TURN));
    assert_eq!(asked(&actions(&mut fetch), B), [0]);
}

#[test]
fn a_piece_moves_to_each_source_once() {
    let mut fetch = one_owes_and_another_is_free(&[100], at(TURN));
    assert_eq!(asked(&actions(&mut fetch), B), [100]);
    fetch.handle_have(A, &[], at(TURN + 1500));
    fetch.handle_have(B, &[], at(TURN + 1500));
    assert_eq!(actions(&mut fetch), [], "A may be sending it");
}

#[test]
fn a_piece_that_was_moved_often_is_asked_of_two_at_once() {
    let mut fetch = fetch(200, UpstreamMode::SwarmOnly, false);
    let list = list(200, 0);
    let members: Vec<_> = (1..=5).map(SourceId).collect();
    for (&member, time) in members.iter().zip((0..).step_by(TURN as usize)) {
        members.iter().for_each(|&busy| fetch.handle_have(busy, &[], at(time)));
        partial(&mut fetch, member, &list, &[100], at(time));
        let acted = actions(&mut fetch);
        assert_eq!(asked(&acted, member), [100]);
        let cancels = acted.iter().filter(|a| matches!(a, Action::Cancel { .. })).count();
        assert_eq!(cancels, usize::from((2..=4).contains(&member.0)), "{member:?}: {acted:?}");
    }
    let owing = members.iter().filter(|&&member| fetch.outstanding(member) == 1).count();
    assert_eq!((owing, fetch.audit()), (2, Ok(())));
}

#[test]
fn what_comes_though_it_was_taken_back_is_not_asked_of_another() {
    let mut fetch = one_owes_and_another_is_free(&[100], at(TURN));
    actions(&mut fetch);
    fetch.handle_begun(A, 100, at(TURN + 10));
    assert_eq!(actions(&mut fetch), [Action::Cancel { source: B, first: 100, count: 1 }]);
    assert_eq!((fetch.outstanding(A), fetch.outstanding(B)), (1, 0));
    assert_eq!(fetch.audit(), Ok(()));
    assert!(fetch.handle_piece(A, 100, at(TURN + 200)));
    assert_eq!((actions(&mut fetch), fetch.audit()), (vec![], Ok(())));
}

#[test]
fn when_both_have_begun_the_first_is_taken_and_the_other_is_no_harm() {
    let mut fetch = one_owes_and_another_is_free(&[100], at(TURN));
    actions(&mut fetch);
    fetch.handle_begun(B, 100, at(TURN + 10));
    assert_eq!(actions(&mut fetch), []);
    fetch.handle_begun(A, 100, at(TURN + 20));
    assert_eq!(actions(&mut fetch), [], "it comes twice, whatever is done");
    assert!(fetch.handle_piece(A, 100, at(TURN + 100)));
    assert!(!fetch.handle_piece(B, 100, at(TURN + 110)));
    assert_eq!(fetch.audit(), Ok(()));
}

#[test]
fn beginnings_that_make_no_sense_change_nothing() {
    let mut fetch = one_owes_and_another_is_free(&[100], at(1));
    for index in [200, u32::MAX] {
        fetch.handle_begun(A, index, at(2));
    }
    fetch.handle_begun(C, 100, at(2));
    assert!(fetch.handle_piece(A, 100, at(3)));
    fetch.handle_begun(A, 100, at(4));
    assert_eq!((fetch.outstanding(A), fetch.audit()), (0, Ok(())));
}

#[test]
fn a_crowd_asks_roughly_in_order_so_that_readers_can_follow() {
    let mut fetch = fetch(1000, UpstreamMode::SwarmOnly, false);
    let shown = list(1000, 0);
    partial(&mut fetch, B, &shown, &[], at(0));
    let mut wanted = opened(&mut fetch, A, &shown, at(1));
    assert_eq!(wanted.len() as u32, limits::CROWD_WISHES_PIECES);
    let mut order = Vec::new();
    while let Some(index) = wanted.pop() {
        order.push(index);
        assert!(fetch.handle_piece(A, index, at(2)));
        wanted.extend(asked(&actions(&mut fetch), A));
    }
    assert_eq!(order.len(), 1000);
    let early = (0..).zip(&order).map(|(place, &index)| index.saturating_sub(place)).max();
    assert!(early.is_some_and(|early| early > 8 && early < 100), "{early:?}");
}

#[test]
fn a_seed_of_a_crowd_has_enough_to_choose_from_however_slow_it_is() {
    let mut fetch = fetch(200, UpstreamMode::SwarmOnly, false);
    let shown = list(200, 0);
    partial(&mut fetch, B, &shown, &[], at(0));
    let wanted = opened(&mut fetch, A, &shown, at(1));
    for (index, time) in wanted.into_iter().zip((1000..).step_by(1000)) {
        fetch.handle_piece(A, index, at(time));
        let owed = fetch.outstanding(A) as u32;
        assert!(owed >= limits::CROWD_WISHES_PIECES / 2, "{owed}");
    }
}
