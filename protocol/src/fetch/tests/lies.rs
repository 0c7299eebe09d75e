//! Piece lists that contradict each other, the signed hash, or upstream.

use super::*;

fn hint(root: Root, network: u64) -> PeerHint {
    PeerHint { network, ..near(Some(root)) }
}

#[test]
fn whoever_shows_a_false_root_is_condemned() {
    let mut fetch = fetch(4, UpstreamMode::SwarmOnly, false);
    let lie = list(4, 9);
    for index in opened(&mut fetch, A, &lie, at(1)) {
        fetch.handle_piece(A, index, at(2));
    }
    actions(&mut fetch);
    fetch.handle_nar_hash(&NarHash([8; 32]), at(3));
    let expected = [
        Action::Condemn { root: lie.0 },
        Action::Drop { source: A, fault: Some(Fault::FalseRoot) },
        Action::Failed(Failure::Mismatch { root: Some(lie.0), upstream: false }),
    ];
    assert_eq!(actions(&mut fetch), expected);
    // The next fetch doesn't believe that root again.
    let condemned = vec![lie.0];
    let mut next =
        Fetch::new(FetchConfig { condemned, ..config(4, UpstreamMode::SwarmOnly, false) }, at(3));
    next.handle_peer(A, near(Some(lie.0)), at(3));
    assert_eq!(actions(&mut next), [Action::Drop { source: A, fault: None }]);
}

#[test]
fn a_peer_with_another_list_gets_its_turn_when_the_first_is_gone() {
    let mut fetch = fetch(4, UpstreamMode::SwarmOnly, false);
    let (lie, truth) = (list(4, 1), list(4, 0));
    let owed = opened(&mut fetch, A, &lie, at(1));
    fetch.handle_peer(B, hint(truth.0, 0), at(2));
    fetch.handle_bad_piece(A, owed[0], at(3));
    fetch.handle_opened(B, truth.0, truth.1, PieceSet::all(4), at(4));
    let mut wanted = asked(&actions(&mut fetch), B);
    wanted.sort_unstable();
    assert_eq!(wanted, [0, 1, 2, 3]);
    for index in wanted {
        assert!(fetch.handle_piece(B, index, at(5)));
    }
}

#[test]
fn what_a_peer_with_another_list_gives_is_not_taken() {
    let mut fetch = fetch(40, UpstreamMode::SwarmOnly, false);
    let (truth, other) = (list(40, 0), list(40, 1));
    opened(&mut fetch, A, &truth, at(1));
    fetch.handle_peer(B, near(None), at(2));
    let owed = asked(&actions(&mut fetch), B);
    fetch.handle_opened(B, other.0, other.1, PieceSet::all(40), at(3));
    let index = owed.first().copied().unwrap_or(39);
    assert!(!fetch.handle_piece(B, index, at(4)));
    assert!(!fetch.may_deliver(at(5000)), "two peers, two roots: nobody knows who is right");
}

#[test]
fn the_list_that_more_networks_show_replaces_the_first_and_wrong_pieces_are_forgotten() {
    let mut fetch = fetch(40, UpstreamMode::SwarmOnly, false);
    let (lie, truth) = (list(40, 1), list(40, 0));
    for index in opened(&mut fetch, A, &lie, at(1)) {
        fetch.handle_piece(A, index, at(2));
    }
    actions(&mut fetch);
    let held = fetch.held().len();
    assert!(held > 0);
    fetch.handle_peer(B, hint(truth.0, 1), at(3));
    fetch.handle_peer(C, hint(truth.0, 2), at(5));
    fetch.handle_opened(B, truth.0, truth.1.clone(), PieceSet::all(40), at(5));
    fetch.handle_opened(C, truth.0, truth.1, PieceSet::all(40), at(6));
    let discarded =
        actions(&mut fetch).iter().filter(|a| matches!(a, Action::Discard { .. })).count();
    assert_eq!(discarded as u32, held);
    assert_eq!(fetch.list().expect("a list").0, truth.0);
    assert!(fetch.may_deliver(at(6)));
}

#[test]
fn what_the_reader_has_cannot_be_taken_back() {
    let mut fetch = fetch(40, UpstreamMode::SwarmOnly, false);
    let (lie, truth) = (list(40, 1), list(40, 0));
    for index in opened(&mut fetch, A, &lie, at(1)) {
        fetch.handle_piece(A, index, at(2));
    }
    fetch.handle_reader(1, at(2));
    fetch.handle_peer(B, hint(truth.0, 1), at(3));
    fetch.handle_peer(C, hint(truth.0, 2), at(3));
    fetch.handle_opened(B, truth.0, truth.1, PieceSet::all(40), at(4));
    let failed = Action::Failed(Failure::Contradiction { root: None });
    assert_eq!(actions(&mut fetch).last(), Some(&failed));
}

#[test]
fn a_voucher_outdoes_any_number() {
    let (lie, truth) = (list(40, 1), list(40, 0));
    let mut fetch = fetch(40, UpstreamMode::SwarmOnly, false);
    for (id, network) in [(A, 1), (B, 2)] {
        fetch.handle_peer(id, hint(lie.0, network), at(0));
        fetch.handle_opened(id, lie.0, lie.1.clone(), PieceSet::all(40), at(1));
    }
    assert!(fetch.may_deliver(at(1)), "two networks agree");
    fetch.handle_peer(C, hint(truth.0, 3), at(2));
    fetch.handle_voucher(truth.0, at(3));
    fetch.handle_opened(C, truth.0, truth.1, PieceSet::all(40), at(4));
    assert_eq!(fetch.list().expect("a list").0, truth.0);
    assert!(fetch.may_deliver(at(4)));
}

#[test]
fn a_false_nar_is_mended_from_another_list_when_the_reader_has_nothing_of_it() {
    let mut fetch = fetch(8, UpstreamMode::SwarmOnly, false);
    let (lie, truth) = (list(8, 1), list(8, 0));
    let owed = opened(&mut fetch, A, &lie, at(1));
    // Another network says otherwise, too late to matter: one word against one.
    fetch.handle_peer(B, PeerHint { root: None, ..hint(lie.0, 1) }, at(2));
    fetch.handle_opened(B, truth.0, truth.1, PieceSet::all(8), at(3));
    for index in owed {
        fetch.handle_piece(A, index, at(4));
    }
    serve(&mut fetch, A, at(5));
    assert!(fetch.held().is_all());
    assert!(!fetch.may_deliver(at(5)));
    fetch.handle_nar_hash(&NarHash([8; 32]), at(6));
    let acted = actions(&mut fetch);
    assert!(
        acted.contains(&Action::Drop { source: A, fault: Some(Fault::FalseRoot) }),
        "{acted:?}"
    );
    let mut wanted = asked(&acted, B);
    while let Some(index) = wanted.pop() {
        assert!(fetch.handle_piece(B, index, at(7)));
        wanted.extend(asked(&actions(&mut fetch), B));
    }
    fetch.handle_nar_hash(&NAR, at(8));
    assert_eq!(actions(&mut fetch).last(), Some(&Action::Done));
}

#[test]
fn a_lone_list_cannot_speak_against_upstream() {
    let mut fetch = fetch(40, UpstreamMode::Race, true);
    let (lie, truth) = (list(40, 1), list(40, 0));
    fetch.handle_upstream_piece(0, truth.1.hashes()[0], at(1));
    opened(&mut fetch, A, &lie, at(2));
    assert_eq!(fetch.list(), None);
    assert!(fetch.may_deliver(at(3)));
    assert!(fetch.handle_upstream_piece(1, truth.1.hashes()[1], at(4)));
}

#[test]
fn a_partial_peer_with_a_false_root_is_not_blamed() {
    let mut fetch = fetch(4, UpstreamMode::SwarmOnly, false);
    let lie = list(4, 9);
    let held = PieceSet::from_bits(&[0b1110_0000], 4).expect("bits");
    fetch.handle_peer(B, PeerHint { complete: false, ..near(Some(lie.0)) }, at(0));
    fetch.handle_opened(B, lie.0, lie.1.clone(), held, at(1));
    serve(&mut fetch, B, at(1));
    for index in opened(&mut fetch, A, &lie, at(2)) {
        fetch.handle_piece(A, index, at(3));
    }
    serve(&mut fetch, A, at(3));
    assert!(fetch.held().is_all());
    fetch.handle_nar_hash(&NarHash([8; 32]), at(4));
    let acted = actions(&mut fetch);
    assert!(acted.contains(&Action::Drop { source: B, fault: None }), "{acted:?}");
    assert!(acted.contains(&Action::Drop { source: A, fault: Some(Fault::FalseRoot) }));
}

#[test]
fn a_frozen_liar_is_given_up_for_a_peer_with_another_list() {
    let mut fetch = fetch(40, UpstreamMode::SwarmOnly, false);
    let (lie, truth) = (list(40, 1), list(40, 0));
    opened(&mut fetch, A, &lie, at(1));
    fetch.handle_peer(B, hint(truth.0, 1), at(2));
    assert_eq!(asked(&actions(&mut fetch), B), [], "one word against one");
    let frozen = at(3) + limits::FREEZE_AFTER;
    fetch.handle_timeout(frozen);
    assert!(actions(&mut fetch).iter().any(|a| matches!(a, Action::Open { source: B, .. })));
    fetch.handle_opened(B, truth.0, truth.1, PieceSet::all(40), frozen);
    assert_eq!(fetch.list().expect("a list").0, truth.0);
    assert!(fetch.outstanding(B) > 0);
    assert_eq!(fetch.audit(), Ok(()));
}

#[test]
fn what_is_asked_of_a_peer_is_taken_back_when_its_list_is_not_used() {
    let mut fetch = fetch(40, UpstreamMode::SwarmOnly, false);
    let (lie, truth) = (list(40, 1), list(40, 0));
    let owed = opened(&mut fetch, A, &lie, at(1));
    for (id, network) in [(B, 1), (C, 2)] {
        fetch.handle_peer(id, hint(truth.0, network), at(2));
    }
    fetch.handle_opened(B, truth.0, truth.1, PieceSet::all(40), at(3));
    let acted = actions(&mut fetch);
    let cancelled: u32 = acted
        .iter()
        .map(|action| match action {
            Action::Cancel { source: A, count, .. } => *count,
            _ => 0,
        })
        .sum();
    assert_eq!(cancelled as usize, owed.len());
    assert_eq!(fetch.audit(), Ok(()));
}

#[test]
fn a_peer_that_misses_a_piece_while_in_reserve_leaves_the_books_right() {
    let mut fetch = fetch(40, UpstreamMode::SwarmOnly, false);
    let (lie, truth) = (list(40, 1), list(40, 0));
    opened(&mut fetch, A, &truth, at(1));
    fetch.handle_peer(B, PeerHint { root: None, ..hint(lie.0, 1) }, at(2));
    let owed = asked(&actions(&mut fetch), B);
    fetch.handle_opened(B, lie.0, lie.1, PieceSet::all(40), at(3));
    for index in owed.into_iter().chain(0..40) {
        fetch.handle_missing(B, index, at(4));
        assert_eq!(fetch.audit(), Ok(()));
    }
}

#[test]
fn claims_of_a_network_that_was_asked_in_vain_count_no_more() {
    let mut fetch = fetch(40, UpstreamMode::SwarmOnly, false);
    let (used, other) = (list(40, 0), list(40, 1));
    opened(&mut fetch, A, &used, at(1));
    fetch.handle_peer(B, hint(other.0, 1), at(2));
    fetch.handle_refused(B, false, at(3));
    fetch.handle_peer(B, hint(other.0, 1), at(4));
    assert!(fetch.may_deliver(at(5000)) || fetch.knows(B));
    fetch.handle_peer(C, hint(other.0, 2), at(5));
    fetch.handle_opened(C, other.0, other.1, PieceSet::all(40), at(6));
    assert_eq!(fetch.list().expect("a list").0, used.0, "one word against one, and an empty one");
}

#[test]
fn who_was_too_busy_or_is_gone_still_counts() {
    let mut fetch = fetch(40, UpstreamMode::SwarmOnly, false);
    let (used, other) = (list(40, 0), list(40, 1));
    opened(&mut fetch, A, &used, at(1));
    fetch.handle_peer(B, hint(other.0, 1), at(2));
    fetch.handle_refused(B, true, at(3));
    fetch.handle_peer(C, hint(other.0, 2), at(5));
    fetch.handle_opened(C, other.0, other.1, PieceSet::all(40), at(6));
    assert_eq!(fetch.list().expect("a list").0, other.0);
}

#[test]
fn a_reader_without_a_disk_is_given_what_is_disputed_when_only_it_can_move_on() {
    let mut fetch = fetch(40, UpstreamMode::SwarmOnly, false);
    let (used, other) = (list(40, 0), list(40, 1));
    fetch.handle_horizon(0, 3, at(0));
    let owed = opened(&mut fetch, A, &used, at(1));
    fetch.handle_peer(B, PeerHint { root: None, ..hint(other.0, 1) }, at(2));
    fetch.handle_opened(B, other.0, other.1, PieceSet::all(40), at(3));
    assert!(!fetch.may_deliver(at(5000)));
    for index in owed {
        fetch.handle_piece(A, index, at(4));
    }
    assert!(fetch.may_deliver(at(5000)));
}

#[test]
fn a_reader_without_a_disk_is_not_given_what_two_networks_contradict_while_they_may_come_back() {
    let mut fetch = fetch(40, UpstreamMode::SwarmOnly, false);
    let (used, other) = (list(40, 0), list(40, 1));
    fetch.handle_horizon(0, 3, at(0));
    opened(&mut fetch, A, &used, at(1));
    for (source, network) in [(B, 1), (C, 2)] {
        fetch.handle_peer(source, hint(other.0, network), at(2));
    }
    for source in [B, C] {
        fetch.handle_opened(source, other.0, other.1.clone(), PieceSet::all(40), at(3));
        assert!(fetch.knows(source));
    }
    assert_eq!(fetch.list().expect("a list").0, other.0, "two networks against one");
    let (mut given, mut wanted) = (None, Vec::new());
    for now in (4..40_000).step_by(100).map(at) {
        fetch.handle_have(A, &[], now);
        fetch.handle_timeout(now);
        wanted.extend(asked(&actions(&mut fetch), A));
        // Only A gives, when its turn comes.
        if fetch.list().is_some_and(|(root, _)| root == used.0) {
            wanted.drain(..).for_each(|index| _ = fetch.handle_piece(A, index, now));
        }
        if fetch.held().len() == 3 && fetch.may_deliver(now) {
            given.get_or_insert(now);
        }
    }
    let back_until = Time(limits::FORGET_FROZEN_AFTER);
    assert!(given.is_some_and(|given| given > back_until), "{given:?}");
}

#[test]
fn pieces_of_an_earlier_attempt_give_way_to_the_only_list_there_is() {
    let truth = list(8, 0);
    let mut config = config(8, UpstreamMode::SwarmOnly, false);
    config.resumed = BTreeMap::from([(3, PieceHash([9; 32]))]);
    let mut fetch = Fetch::new(config, at(0));
    opened(&mut fetch, A, &truth, at(1));
    assert_eq!(fetch.list(), None, "one word against what was found before");
    fetch.handle_discovery_done(at(2));
    let acted = actions(&mut fetch);
    assert!(acted.contains(&Action::Discard { index: 3 }), "{acted:?}");
    assert_eq!(asked(&acted, A).len(), 8);
}
