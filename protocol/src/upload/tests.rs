//! Uploads under contention, caps and cancellations, by hand and at random.

use super::*;
use crate::limits::{MAX_COUNTED_NARS, MAX_PIECES, MAX_WANTED_PIECES, MIN_PIECE_BYTES};
use proptest::prelude::*;
use std::time::Duration;

const NAR: u32 = 7;
const PIECE: u64 = MIN_PIECE_BYTES;

fn at(millis: u64) -> Time {
    Time(Duration::from_millis(millis))
}

/// A fixed number of slots and no caps.
fn uploads(slots: u32) -> Uploads {
    let config = UploadConfig { slots, most_slots: slots, ..UploadConfig::default() };
    Uploads::new(config, at(0))
}

fn capped(rate: Option<u64>, per_peer_rate: Option<u64>) -> Uploads {
    let config = UploadConfig { slots: 8, most_slots: 8, rate, per_peer_rate };
    Uploads::new(config, at(0))
}

/// Gives all that may be given now; as `(asker, index)`.
fn all(uploads: &mut Uploads, now: Time) -> Vec<(u64, u32)> {
    std::iter::from_fn(|| uploads.poll_give(now)).map(|give| (give.asker.0, give.index)).collect()
}

/// Gives one piece and has the network take `bytes` of it at once.
fn one(uploads: &mut Uploads, bytes: u64, now: Time) -> Option<(u64, u32)> {
    let give = uploads.poll_give(now)?;
    uploads.handle_given(give.asker, bytes, now);
    Some((give.asker.0, give.index))
}

/// How much each of the askers 0, 1, … gets of what is given from now until `until`, when each
/// piece takes `bytes` octets and leaves its slot at once. Time moves as the machine demands.
fn totals(uploads: &mut Uploads, askers: usize, bytes: u64, until: Time) -> Vec<u64> {
    let (mut totals, mut now) = (vec![0; askers], at(0));
    while now < until {
        while let Some((asker, _)) = one(uploads, bytes, now) {
            totals[asker as usize] += bytes;
        }
        while uploads.poll_waiting(now).is_some() {}
        let Some(next) = uploads.poll_timeout() else { break };
        assert!(next > now, "time must move on");
        now = next;
    }
    totals
}

#[test]
fn one_asker_is_given_all_slots_in_the_order_asked() {
    let mut uploads = uploads(4);
    uploads.handle_want(AskerId(1), NAR, 5, 2, at(0));
    uploads.handle_want(AskerId(1), NAR, 0, 9, at(0));
    assert_eq!(all(&mut uploads, at(0)), [(1, 5), (1, 6), (1, 0), (1, 1)]);
    assert_eq!(uploads.poll_give(at(1)), None, "all slots are taken");
    uploads.handle_given(AskerId(1), PIECE, at(2));
    assert_eq!(all(&mut uploads, at(2)), [(1, 2)]);
    assert_eq!(uploads.slots_used(), 4);
}

#[test]
fn without_contention_earlier_askers_do_not_change_the_order() {
    let mut uploads = uploads(1);
    uploads.handle_want(AskerId(1), NAR, 0, 3, at(0));
    while one(&mut uploads, PIECE, at(0)).is_some() {}
    uploads.handle_want(AskerId(2), NAR, 0, 5, at(1));
    let order: Vec<_> = std::iter::from_fn(|| one(&mut uploads, PIECE, at(1))).collect();
    assert_eq!(order, [(2, 0), (2, 1), (2, 2), (2, 3), (2, 4)]);
}

#[test]
fn a_crowd_is_given_every_piece_once_before_any_twice() {
    let (mut uploads, askers, pieces) = (uploads(4), 16, 64);
    for asker in 0..askers {
        uploads.handle_want(AskerId(asker), NAR, 0, pieces, at(0));
    }
    let mut given = vec![0; pieces as usize];
    for _ in 0..pieces {
        let (_, index) = one(&mut uploads, PIECE, at(1)).expect("wanted");
        given[index as usize] += 1;
    }
    assert_eq!(given, vec![1; pieces as usize]);
    for _ in 0..pieces {
        let (_, index) = one(&mut uploads, PIECE, at(1)).expect("wanted");
        given[index as usize] += 1;
    }
    assert!(given.iter().all(|&times| (1..=3).contains(&times)), "{given:?}");
}

#[test]
fn a_piece_that_was_left_out_counts_as_not_given() {
    let mut uploads = uploads(1);
    for asker in 0..2 {
        uploads.handle_want(AskerId(asker), NAR, 0, 4, at(0));
    }
    assert_eq!(one(&mut uploads, 0, at(0)), Some((0, 0)));
    assert_eq!(one(&mut uploads, PIECE, at(0)), Some((0, 1)), "nothing was given to it either");
    assert_eq!(one(&mut uploads, PIECE, at(0)), Some((1, 0)), "the rarest");
}

#[test]
fn other_nars_are_counted_for_themselves() {
    let mut uploads = uploads(1);
    uploads.handle_want(AskerId(0), 1, 0, 2, at(0));
    uploads.handle_want(AskerId(1), 2, 0, 2, at(0));
    let gives = std::iter::from_fn(|| one(&mut uploads, PIECE, at(0)));
    assert_eq!(gives.collect::<Vec<_>>(), [(0, 0), (1, 0), (0, 1), (1, 1)]);
}

#[test]
fn askers_get_equal_shares_by_octets_not_by_pieces() {
    let mut uploads = uploads(1);
    let layout = PieceLayout::new(2 << 30).expect("layout");
    let large = layout.piece_size();
    assert_eq!(large, 2 * PIECE);
    uploads.handle_nar(1, layout, at(0));
    uploads.handle_want(AskerId(0), 1, 0, 1000, at(0));
    uploads.handle_want(AskerId(1), 2, 0, 1000, at(0));
    let mut octets = [0; 2];
    for _ in 0..300 {
        let give = uploads.poll_give(at(0)).expect("wanted");
        let bytes = if give.nar == 1 { large } else { PIECE };
        uploads.handle_given(give.asker, bytes, at(0));
        octets[give.asker.0 as usize] += bytes;
    }
    assert_eq!(octets[0], octets[1]);
}

#[test]
fn whoever_comes_late_or_comes_again_gets_no_more_than_the_others() {
    let mut uploads = uploads(1);
    for asker in 0..2 {
        uploads.handle_want(AskerId(asker), NAR, 0, 500, at(0));
    }
    for _ in 0..200 {
        one(&mut uploads, PIECE, at(0)).expect("wanted");
    }
    uploads.handle_want(AskerId(2), NAR, 0, 500, at(1));
    uploads.handle_gone(AskerId(1));
    uploads.handle_want(AskerId(3), NAR, 0, 500, at(1));
    let mut pieces = [0; 4];
    for _ in 0..300 {
        pieces[one(&mut uploads, PIECE, at(1)).expect("wanted").0 as usize] += 1;
    }
    assert_eq!(pieces, [100, 0, 100, 100]);
}

#[test]
fn an_asker_that_could_not_be_served_does_not_shut_out_the_others_afterwards() {
    let mut uploads = capped(None, None);
    uploads.handle_want(AskerId(0), NAR, 0, 9, at(0));
    assert_eq!(all(&mut uploads, at(0)).len(), 8);
    uploads.handle_want(AskerId(1), NAR, 0, 1000, at(0));
    // The first takes nothing: in the end its slots go to the other.
    let stalled = at(60_000);
    for _ in 0..400 {
        assert_eq!(one(&mut uploads, PIECE, stalled).expect("wanted").0, 1);
    }
    for _ in 0..8 {
        uploads.handle_given(AskerId(0), PIECE, stalled);
    }
    uploads.handle_want(AskerId(0), NAR, 10, 900, stalled);
    let mut first = 0;
    for _ in 0..100 {
        first += u64::from(one(&mut uploads, PIECE, stalled).expect("wanted").0 == 0);
    }
    assert!((50..=50 + MAX_CREDIT_BYTES / PIECE).contains(&first), "{first}");
}

#[test]
fn a_stalled_asker_frees_its_slots_but_gets_no_more_of_them() {
    let mut uploads = uploads(2);
    uploads.handle_want(AskerId(0), NAR, 0, 100, at(0));
    assert_eq!(all(&mut uploads, at(0)), [(0, 0), (0, 1)]);
    uploads.handle_want(AskerId(1), NAR, 0, 100, at(10));
    assert_eq!(uploads.poll_give(at(999)), None);
    while uploads.poll_waiting(at(999)).is_some() {}
    assert_eq!(uploads.poll_timeout(), Some(at(1000)), "when the stalled slots are given up");
    assert_eq!(all(&mut uploads, at(1000)), [(1, 2), (1, 3)]);
    assert_eq!(uploads.poll_give(at(1001)), None);
    // It takes something again, and is served again once its own pieces are out.
    uploads.handle_given(AskerId(0), PIECE, at(1002));
    uploads.handle_given(AskerId(0), PIECE, at(1003));
    uploads.handle_given(AskerId(1), PIECE, at(1004));
    assert_eq!(all(&mut uploads, at(1005)), [(0, 4)]);
}

#[test]
fn the_cap_on_the_whole_is_kept_and_used_and_shared() {
    let mut uploads = capped(Some(1_000_000), None);
    for asker in 0..4 {
        uploads.handle_want(AskerId(asker), NAR, 0, 1000, at(0));
    }
    let totals = totals(&mut uploads, 4, 100_000, at(20_000));
    let sum: u64 = totals.iter().sum();
    // A burst of a quarter of a second, and one piece into debt.
    assert!((20_000_000..=20_500_000).contains(&sum), "{totals:?}");
    assert!(totals.iter().all(|&octets| octets.abs_diff(sum / 4) <= 200_000), "{totals:?}");
}

#[test]
fn the_cap_on_each_peer_is_kept_and_leaves_the_rest_to_others() {
    let mut uploads = capped(None, Some(500_000));
    for asker in 0..3 {
        uploads.handle_want(AskerId(asker), NAR, 0, 1000, at(0));
    }
    let totals = totals(&mut uploads, 3, 50_000, at(10_000));
    assert!(totals.iter().all(|octets| (5_000_000..=5_250_000).contains(octets)), "{totals:?}");
}

#[test]
fn under_both_caps_the_tighter_one_holds() {
    let mut uploads = capped(Some(900_000), Some(500_000));
    for asker in 0..2 {
        uploads.handle_want(AskerId(asker), NAR, 0, 1000, at(0));
    }
    let totals = totals(&mut uploads, 2, 50_000, at(10_000));
    assert!(totals.iter().all(|octets| (4_400_000..=4_800_000).contains(octets)), "{totals:?}");
}

#[test]
fn a_pause_saves_up_no_more_than_a_burst() {
    let mut uploads = capped(Some(1_000_000), None);
    uploads.handle_want(AskerId(0), NAR, 0, 1000, at(3_600_000));
    let mut given = 0;
    while one(&mut uploads, 10_000, at(3_600_000)).is_some() {
        given += 10_000;
    }
    assert!((250_000..=260_000).contains(&given), "{given}");
}

#[test]
fn what_is_cancelled_is_not_given() {
    let mut uploads = uploads(64);
    uploads.handle_want(AskerId(1), NAR, 0, 10, at(0));
    uploads.handle_want(AskerId(1), 8, 0, 2, at(0));
    uploads.handle_cancel(AskerId(1), NAR, 1, 3);
    uploads.handle_cancel(AskerId(1), NAR, 6, 1);
    uploads.handle_cancel(AskerId(1), NAR, 40, u32::MAX);
    uploads.handle_cancel(AskerId(2), NAR, 0, 9);
    let given: Vec<_> = all(&mut uploads, at(0)).into_iter().map(|(_, index)| index).collect();
    assert_eq!(given, [0, 4, 5, 7, 8, 9, 0, 1]);
}

#[test]
fn who_is_gone_leaves_nothing_behind() {
    let mut uploads = uploads(2);
    uploads.handle_want(AskerId(1), NAR, 0, 10, at(0));
    uploads.handle_want(AskerId(2), NAR, 0, 10, at(0));
    assert_eq!(all(&mut uploads, at(0)).len(), 2);
    uploads.handle_gone(AskerId(1));
    uploads.handle_given(AskerId(1), PIECE, at(1));
    assert_eq!((uploads.slots_used(), uploads.heartbeats.len()), (1, 1));
    uploads.handle_gone(AskerId(2));
    assert_eq!((uploads.slots_used(), uploads.outstanding), (0, 0));
    assert_eq!((uploads.poll_timeout(), uploads.poll_give(at(2))), (None, None));
    assert_eq!((uploads.askers.len(), uploads.counts.askers(NAR)), (0, 0));
}

#[test]
fn who_waits_is_told_every_300_ms_and_for_each_nar() {
    let mut uploads = uploads(1);
    uploads.handle_want(AskerId(1), NAR, 0, 2, at(0));
    uploads.handle_want(AskerId(1), 8, 0, 1, at(10));
    assert!(uploads.poll_give(at(20)).is_some());
    assert_eq!(uploads.poll_waiting(at(309)), None);
    assert_eq!(uploads.poll_timeout(), Some(at(310)));
    assert_eq!(uploads.poll_waiting(at(310)), Some((AskerId(1), 8)));
    assert_eq!(uploads.poll_waiting(at(319)), None, "the other nar was given something since");
    assert_eq!(uploads.poll_waiting(at(320)), Some((AskerId(1), NAR)));
    assert_eq!(uploads.poll_waiting(at(320)), None);
    assert_eq!(uploads.poll_waiting(at(611)), Some((AskerId(1), 8)));
    uploads.handle_cancel(AskerId(1), 8, 0, 1);
    uploads.handle_given(AskerId(1), PIECE, at(612));
    assert!(uploads.poll_give(at(612)).is_some());
    assert_eq!(uploads.poll_waiting(at(9999)), None, "nothing waits");
}

#[test]
fn memory_is_bounded_whatever_is_asked() {
    let mut uploads = uploads(1);
    uploads.handle_want(AskerId(1), NAR, 0, u32::MAX, at(0));
    uploads.handle_want(AskerId(1), NAR, u32::MAX, u32::MAX, at(0));
    uploads.handle_want(AskerId(2), NAR, u32::MAX - 1, 9, at(0));
    uploads.handle_want(AskerId(2), NAR, 9, 0, at(0));
    let mut given = 0;
    while let Some((asker, _)) = one(&mut uploads, PIECE, at(0)) {
        given += u32::from(asker == 1);
    }
    assert_eq!(given, MAX_WANTED_PIECES);
    for nar in 0..3 * MAX_COUNTED_NARS as u32 {
        uploads.handle_want(AskerId(3), nar, MAX_PIECES - 1, 1, at(u64::from(nar)));
        one(&mut uploads, PIECE, at(u64::from(nar))).expect("wanted");
    }
    assert!(uploads.counts.len() <= MAX_COUNTED_NARS);
    assert_eq!(uploads.heartbeats.len(), 0);
}

#[test]
fn few_pieces_of_huge_nars_are_in_slots_at_once() {
    let mut uploads = uploads(32);
    let layout = PieceLayout::new(64 << 30).expect("layout");
    uploads.handle_nar(NAR, layout, at(0));
    uploads.handle_want(AskerId(1), NAR, 0, 100, at(0));
    let expected = MAX_GIVEN_BYTES.div_ceil(layout.piece_size());
    assert!(expected < 32);
    assert_eq!(all(&mut uploads, at(0)).len() as u64, expected);
}

/// A line of `line` octets a second shared by all pieces in slots, to askers that each take at
/// most `each`; gives the number of slots after `pieces` pieces.
fn slots_after(line: f64, each: f64, pieces: u32) -> u32 {
    let config = UploadConfig { slots: 4, most_slots: 32, ..UploadConfig::default() };
    let mut uploads = Uploads::new(config, at(0));
    let (mut now, mut next) = (0.0f64, 900);
    let mut writing: Vec<(u64, f64)> = Vec::new();
    for asker in 0..64 {
        uploads.handle_want(AskerId(asker), asker as u32, 0, 900, at(0));
    }
    for _ in 0..pieces {
        let time = Time(Duration::from_secs_f64(now));
        while let Some(give) = uploads.poll_give(time) {
            writing.push((give.asker.0, PIECE as f64));
        }
        let rate = (line / writing.len() as f64).min(each);
        let least = writing.iter().map(|&(_, left)| left).fold(f64::MAX, f64::min);
        now += least / rate;
        let time = Time(Duration::from_secs_f64(now));
        writing.iter_mut().for_each(|(_, left)| *left -= least);
        let (done, rest) = writing.into_iter().partition(|&(_, left): &(u64, f64)| left < 1.0);
        writing = rest;
        for (asker, _) in done {
            uploads.handle_given(AskerId(asker), PIECE, time);
            uploads.handle_want(AskerId(asker), asker as u32, next, 1, time);
            next += 1;
        }
    }
    uploads.slots()
}

#[test]
fn slots_are_added_as_long_as_that_makes_the_whole_faster() {
    assert_eq!(slots_after(600e6, 600e6, 200), 32, "a fast line");
    let slow_askers = slots_after(125e6, 1e6, 2000);
    assert!(slow_askers >= 19, "slow askers on a fast line: {slow_askers}");
    let uplink = slots_after(2.5e6, 12.5e6, 4000);
    assert!((4..=6).contains(&uplink), "a slow line needs no more: {uplink}");
}

proptest! {
    #[test]
    fn whatever_happens_gives_are_wanted_and_slots_are_kept(
        events in proptest::collection::vec((0..6u8, 0..4u64, 0..3u32, 0..40u32, 0..20u32), 1..300)
    ) {
        let mut uploads = uploads(3);
        let mut wanted: BTreeMap<(u64, u32, u32), u32> = BTreeMap::new();
        let mut in_slots: BTreeMap<u64, u32> = BTreeMap::new();
        for (millis, (event, asker, nar, first, count)) in events.into_iter().enumerate() {
            let (id, now) = (AskerId(asker), at(millis as u64));
            match event {
                0 | 1 => {
                    uploads.handle_want(id, nar, first, count, now);
                    for index in first..first + count {
                        *wanted.entry((asker, nar, index)).or_default() += 1;
                    }
                }
                2 => {
                    uploads.handle_cancel(id, nar, first, count);
                    wanted.retain(|&(of, from, index), _| {
                        (of, from) != (asker, nar) || !(first..first + count).contains(&index)
                    });
                }
                3 => {
                    let freed = in_slots.get_mut(&asker).filter(|slots| **slots > 0);
                    freed.into_iter().for_each(|slots| *slots -= 1);
                    uploads.handle_given(id, PIECE * u64::from(count % 2), now);
                }
                4 if count == 0 => {
                    uploads.handle_gone(id);
                    in_slots.remove(&asker);
                    wanted.retain(|&(of, ..), _| of != asker);
                }
                _ => if let Some(Give { asker, nar, index }) = uploads.poll_give(now) {
                    let times = wanted.get_mut(&(asker.0, nar, index));
                    let times = times.expect("only what is wanted is given");
                    *times -= 1;
                    if *times == 0 {
                        wanted.remove(&(asker.0, nar, index));
                    }
                    *in_slots.entry(asker.0).or_default() += 1;
                },
            }
            prop_assert_eq!(uploads.slots_used(), in_slots.values().sum::<u32>());
            prop_assert!(uploads.slots_used() <= 3);
            let nars: BTreeSet<_> = wanted.keys().map(|&(asker, nar, _)| (asker, nar)).collect();
            prop_assert_eq!(uploads.heartbeats.len(), nars.len());
            let room = uploads.slots_used() < 3 && !wanted.is_empty();
            prop_assert!(!room || uploads.poll_timeout().is_some());
        }
    }
}

#[test]
fn slow_askers_do_not_come_to_hold_all_slots() {
    let mut uploads = uploads(4);
    for asker in 1..=3 {
        uploads.handle_want(AskerId(asker), NAR, 0, 100, at(0));
    }
    // 1 and 2 take nothing; whatever 3 gives back goes to 3 again, though it has got most.
    all(&mut uploads, at(0));
    for round in 1..50 {
        uploads.handle_given(AskerId(3), PIECE, at(round));
        let given = all(&mut uploads, at(round));
        assert!(given.iter().any(|&(asker, _)| asker == 3), "round {round}: {given:?}");
    }
}
