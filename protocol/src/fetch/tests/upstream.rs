//! Upstream joins and leaves.

use super::*;

fn hash(index: u32) -> PieceHash {
    hash_piece(&[0, index as u8])
}

#[test]
fn it_joins_when_nobody_is_known_and_goes_on_where_a_dead_peer_stopped() {
    let mut nobody = fetch(10, UpstreamMode::SwarmFirst, true);
    nobody.handle_discovery_done(at(5));
    assert_eq!(actions(&mut nobody), [Action::StartUpstream { from: 0 }]);

    let mut fetch = fetch(8, UpstreamMode::SwarmFirst, true);
    opened(&mut fetch, A, &list(8, 0), at(0));
    for index in 0..3 {
        fetch.handle_piece(A, index, at(2));
    }
    fetch.handle_discovery_done(at(3));
    actions(&mut fetch);
    fetch.handle_source_lost(A, None, at(400));
    let expected = [Action::Drop { source: A, fault: None }, Action::StartUpstream { from: 3 }];
    assert_eq!(actions(&mut fetch), expected);
    for index in 3..8 {
        assert!(fetch.handle_upstream_piece(index, hash(index), at(500)));
    }
    fetch.handle_nar_hash(&NAR, at(501));
    assert_eq!(actions(&mut fetch), [Action::StopUpstream, Action::Done]);
}

#[test]
fn it_is_asked_soon_when_nobody_is_known_and_discovery_takes_its_time() {
    let mut fetch = fetch(10, UpstreamMode::SwarmFirst, true);
    let wake = fetch.poll_timeout(at(0)).expect("a deadline");
    assert_eq!(wake, Time(limits::NOBODY_PATIENCE));
    fetch.handle_timeout(wake);
    assert_eq!(actions(&mut fetch), [Action::StartUpstream { from: 0 }]);
}

#[test]
fn it_waits_for_the_swarm_only_so_long_and_the_late_peer_works_from_the_tail() {
    let mut fetch = fetch(20, UpstreamMode::SwarmFirst, true);
    let far = PeerHint { latency: Duration::from_secs(1), ..near(None) };
    fetch.handle_peer(A, far, at(0));
    actions(&mut fetch);
    assert_eq!(fetch.poll_timeout(at(0)), Some(Time(limits::UPSTREAM_PATIENCE)));
    fetch.handle_timeout(at(299));
    assert_eq!(actions(&mut fetch), []);
    fetch.handle_timeout(at(300));
    assert_eq!(actions(&mut fetch), [Action::StartUpstream { from: 0 }]);
    let (root, list) = list(20, 0);
    fetch.handle_upstream_progress(1, at(340));
    fetch.handle_opened(A, root, list, PieceSet::all(20), at(350));
    assert!(asked(&actions(&mut fetch), A).iter().all(|&index| index >= 8));
}

#[test]
fn a_peer_that_has_nothing_of_what_it_said_to_hold_makes_way_for_it_at_once() {
    let mut fetch = fetch(200, UpstreamMode::SwarmFirst, true);
    let owed = opened(&mut fetch, A, &list(200, 0), at(0));
    fetch.handle_discovery_done(at(1));
    fetch.handle_missing(A, owed[0], at(2));
    assert!(fetch.knows(A), "one piece may have gone");
    actions(&mut fetch);
    fetch.handle_missing(A, owed[1], at(2));
    let expected = [Action::Drop { source: A, fault: None }, Action::StartUpstream { from: 0 }];
    assert_eq!(actions(&mut fetch), expected);
    assert_eq!(fetch.audit(), Ok(()));
}

#[test]
fn a_peer_that_has_given_something_is_asked_on_whatever_it_lacks() {
    let mut fetch = fetch(200, UpstreamMode::SwarmFirst, true);
    let owed = opened(&mut fetch, A, &list(200, 0), at(1));
    fetch.handle_piece(A, owed[0], at(2));
    for &index in &owed[1..] {
        fetch.handle_missing(A, index, at(3));
        assert_eq!(fetch.audit(), Ok(()));
    }
    assert!(fetch.outstanding(A) > 0, "it has others");
}

#[test]
fn it_leaves_when_the_swarm_is_clearly_faster_and_not_before() {
    let mut fetch = fetch(4000, UpstreamMode::SwarmFirst, true);
    let list = list(4000, 0);
    fetch.handle_timeout(at(20));
    assert_eq!(actions(&mut fetch), [Action::StartUpstream { from: 0 }]);
    let mut wanted = opened(&mut fetch, A, &list, at(30));
    let (mut now, mut left_at) = (30, None);
    let mut next = 0;
    while now < 4000 && left_at.is_none() {
        now += 10;
        // Upstream gives a piece in 100 ms, the peer ten.
        if now % 100 == 0 {
            fetch.handle_upstream_progress(limits::MIN_PIECE_BYTES, at(now));
            fetch.handle_upstream_piece(next, list.1.hashes()[next as usize], at(now));
            next += 1;
        }
        if !wanted.is_empty() {
            fetch.handle_piece(A, wanted.remove(0), at(now));
        }
        let acted = actions(&mut fetch);
        wanted.extend(asked(&acted, A));
        left_at = acted.contains(&Action::StopUpstream).then_some(now);
    }
    assert!(left_at.is_some_and(|at| at >= 1000), "{left_at:?}");
}

#[test]
fn it_joins_when_the_swarm_is_slower_than_it_is_known_to_be() {
    let mut config = config(1000, UpstreamMode::SwarmFirst, true);
    config.upstream_rate = Some(10e6);
    let mut fetch = Fetch::new(config, at(0));
    let mut wanted = opened(&mut fetch, A, &list(1000, 0), at(1));
    let mut joined = None;
    for now in (100..3000).step_by(100) {
        if !wanted.is_empty() {
            fetch.handle_piece(A, wanted.remove(0), at(now));
        }
        fetch.handle_timeout(at(now));
        let acted = actions(&mut fetch);
        wanted.extend(asked(&acted, A));
        if acted.iter().any(|a| matches!(a, Action::StartUpstream { .. })) {
            joined.get_or_insert(now);
        }
    }
    assert!(joined.is_some_and(|at| at < 2000), "{joined:?}");
}

#[test]
fn the_modes_are_kept() {
    let mut only_swarm = fetch(10, UpstreamMode::SwarmOnly, true);
    only_swarm.handle_timeout(at(4000));
    assert_eq!(actions(&mut only_swarm), []);
    let mut race = fetch(10, UpstreamMode::Race, true);
    assert_eq!(actions(&mut race), [Action::StartUpstream { from: 0 }]);
    let mut only_upstream = fetch(10, UpstreamMode::UpstreamOnly, true);
    assert_eq!(actions(&mut only_upstream), [Action::StartUpstream { from: 0 }]);
    only_upstream.handle_peer(A, near(None), at(1));
    assert_eq!(actions(&mut only_upstream), [Action::Drop { source: A, fault: None }]);
}

#[test]
fn a_failed_stream_is_tried_again_and_then_given_up() {
    let mut fetch = fetch(10, UpstreamMode::SwarmFirst, true);
    fetch.handle_discovery_done(at(0));
    assert_eq!(actions(&mut fetch), [Action::StartUpstream { from: 0 }]);
    fetch.handle_upstream_piece(0, hash(0), at(10));
    fetch.handle_upstream_ended(at(20));
    assert_eq!(actions(&mut fetch), [Action::StartUpstream { from: 1 }]);
    fetch.handle_upstream_ended(at(30));
    assert_eq!(actions(&mut fetch), [Action::Failed(Failure::NoSource)]);
}

#[test]
fn a_slow_swarm_is_noticed_by_the_clock_alone() {
    let mut config = config(1000, UpstreamMode::SwarmFirst, true);
    config.upstream_rate = Some(10e6);
    let mut fetch = Fetch::new(config, at(0));
    opened(&mut fetch, A, &list(1000, 0), at(1));
    let (mut now, mut joined) = (at(1), None);
    // As drivers do it: woken when told, they ask again whether it is time. Octets of one piece
    // trickle in.
    while joined.is_none() && now < at(4000) {
        now = fetch.poll_timeout(now).expect("a deadline");
        fetch.handle_progress(A, 1, now);
        if fetch.poll_timeout(now).is_some_and(|due| due <= now) {
            fetch.handle_timeout(now);
        }
        let starts = |action: &Action| matches!(action, Action::StartUpstream { .. });
        joined = actions(&mut fetch).iter().any(starts).then_some(now);
    }
    assert!(joined.is_some_and(|joined| joined <= at(1600)), "{joined:?}");
}

#[test]
fn what_was_left_to_it_is_asked_of_peers_at_once_when_it_leaves() {
    let mut fetch = fetch(64, UpstreamMode::SwarmFirst, true);
    let list = list(64, 0);
    fetch.handle_timeout(at(20));
    // In a crowd the pieces near the head are left to upstream.
    let crowd = PeerHint { complete: false, ..near(Some(list.0)) };
    fetch.handle_peer(B, crowd, at(30));
    fetch.handle_opened(B, list.0, list.1.clone(), PieceSet::none(64), at(30));
    fetch.handle_upstream_progress(1, at(40));
    let mut wanted = opened(&mut fetch, A, &list, at(40));
    let mut left = false;
    for now in (50..4000).step_by(50).map(at) {
        fetch.handle_upstream_progress(1, now);
        if !wanted.is_empty() {
            fetch.handle_piece(A, wanted.remove(0), now);
        } else {
            fetch.handle_have(A, &[], now);
        }
        let acted = actions(&mut fetch);
        wanted.extend(asked(&acted, A));
        left |= acted.contains(&Action::StopUpstream);
        let missing = (0..64).filter(|&index| !fetch.held().contains(index));
        let idle = missing.clone().count() > 0 && fetch.outstanding(A) == 0;
        assert!(!(left && idle), "nothing is asked of a peer that has everything");
    }
    assert!(left && fetch.held().is_all());
}

#[test]
fn upstream_joins_what_was_fetched_ahead_once_it_is_asked_for() {
    let mut fetch = fetch(2, UpstreamMode::SwarmOnly, true);
    let (root, _) = list(2, 0);
    fetch.handle_peer(A, near(Some(root)), at(0));
    assert_eq!(asked(&actions(&mut fetch), A), [0, 1]);
    fetch.handle_timeout(at(600));
    let streams = |actions: &[Action]| {
        actions.iter().any(|action| matches!(action, Action::StartUpstream { .. }))
    };
    assert!(!streams(&actions(&mut fetch)), "nobody waits for it");
    fetch.handle_mode(UpstreamMode::SwarmFirst, at(601));
    assert!(streams(&actions(&mut fetch)), "the swarm has had its time");
}

#[test]
fn there_is_no_upstream_to_join_what_was_fetched_ahead_where_none_is() {
    let mut fetch = fetch(2, UpstreamMode::SwarmOnly, false);
    fetch.handle_mode(UpstreamMode::Race, at(1));
    fetch.handle_discovery_done(at(2));
    assert_eq!(actions(&mut fetch), [Action::Failed(Failure::NoSource)]);
}
