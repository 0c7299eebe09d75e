//! Sources that are themselves still fetching.

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
