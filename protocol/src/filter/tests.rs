//! Filters as seeds make them and others use them.

use super::publisher::{Content, Publisher};
use super::*;
use crate::limits::MAX_DELTA_HISTORY;
use crate::voucher::VoucherSigner;
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

/// The key of an item of this number, as spread out as real ones.
fn key(number: u64) -> ItemKey {
    let mut octets = [0; 16];
    octets.copy_from_slice(&blake3::hash(&number.to_le_bytes()).as_bytes()[..16]);
    ItemKey(octets)
}

fn bits(numbers: std::ops::Range<u64>) -> Vec<u32> {
    numbers.map(|number| leading(&key(number))).collect()
}

fn signer() -> VoucherSigner {
    VoucherSigner::new(&[7; 32])
}

#[test]
fn a_filter_says_yes_to_all_that_is_held_and_seldom_to_what_is_not() {
    for count in [0, 1, 100, 5000, 200_000] {
        let filter = Filter::build(Shape::for_items(count), &mut bits(0..count));
        assert!((0..count).all(|number| filter.says_yes(&key(number))));
        let others = 1_000_000..1_040_000_u64;
        let wrong = others.clone().filter(|number| filter.says_yes(&key(*number))).count();
        assert!(wrong <= 40_000 / 30, "{wrong} of 40,000, with {count} items");
        let bits_each = filter.octets().len() as f64 * 8.0 / count.max(1) as f64;
        assert!(count < 5000 || bits_each < 8.5, "{bits_each} bits an item of {count}");
        let read = Filter::from_octets(filter.shape(), filter.octets().as_ref().clone());
        assert_eq!(read, Ok(filter));
    }
}

#[test]
fn the_form_of_a_filter_stays() {
    let filter = Filter::build(Shape::for_items(10_000), &mut bits(0..10_000));
    let digest = blake3::hash(filter.octets());
    assert_eq!(digest.to_hex().as_str(), FORM);
}

const FORM: &str = "187c0cb22ca2a606977d54dc2fbcf9a84b91b2779fcfcf91f8e07c6e88fb976e";

proptest! {
    #[test]
    fn changes_make_the_same_filter_as_building_it(
        before in btree_set(any::<u32>(), 0..300),
        after in btree_set(any::<u32>(), 0..300),
        both in btree_set(any::<u32>(), 0..300),
        bits in 16_u8..=32,
        part_bits in 0_u8..=4,
    ) {
        let shape = Shape::new(bits, part_bits).expect("a shape");
        let build = |set: &std::collections::BTreeSet<u32>| {
            Filter::build(shape, &mut set.union(&both).copied().collect())
        };
        let (before, after) = (build(&before), build(&after));
        let delta = after.since(&before);
        let read = Delta::from_octets(shape, &delta.to_octets(shape)).expect("as written");
        prop_assert_eq!(&read, &delta);
        prop_assert_eq!(before.apply(&delta), Ok(after.clone()));
        let back = before.since(&after);
        prop_assert_eq!(after.apply(&back), Ok(before.clone()));
        prop_assert!(delta.then(&back).is_empty());
        if !delta.is_empty() {
            prop_assert_eq!(after.apply(&delta), Err(FilterError::Unfitting));
        }
    }

    #[test]
    fn whatever_octets_are_no_filter_or_a_well_made_one(
        octets in vec(any::<u8>(), 0..200),
        bits in 16_u8..=20,
        part_bits in 0_u8..=3,
    ) {
        let shape = Shape::new(bits, part_bits).expect("a shape");
        let _ = Delta::from_octets(shape, &octets);
        if let Ok(filter) = Filter::from_octets(shape, octets.clone()) {
            let _ = filter.says_yes(&key(1));
            let rebuilt = filter.apply(&Delta::default()).expect("nothing changes");
            prop_assert_eq!(rebuilt.octets().as_ref(), &octets);
        }
    }
}

#[test]
fn shapes_that_nobody_makes_are_refused() {
    for (bits, part_bits) in [(0, 0), (15, 0), (33, 0), (255, 255), (20, 12), (32, 24)] {
        assert!(Shape::new(bits, part_bits).is_err(), "{bits} {part_bits}");
    }
    let huge = Shape::for_items(1 << 40);
    assert!(!huge.suffices(1 << 40), "nobody claims that");
}

#[test]
fn a_filter_that_says_yes_to_everything_is_refused() {
    let shape = Shape::new(16, 4).expect("a shape");
    let mut all: Vec<u32> = (0..1_u32 << 16).map(|n| n << 16).collect();
    let filter = Filter::build(shape, &mut all);
    let read = Filter::from_octets(shape, filter.octets().as_ref().clone());
    assert_eq!(read, Err(FilterError::Dense { items: 1 << 16 }));
    let empty = Filter::build(shape, &mut Vec::new());
    let delta = Delta { came: (0..1 << 16).collect(), gone: Vec::new() };
    assert_eq!(empty.apply(&delta), Err(FilterError::Dense { items: 1 << 16 }));
}

#[test]
fn only_what_the_seed_has_signed_is_its_filter() {
    let filter = Filter::build(Shape::for_items(100), &mut bits(0..100));
    let head = FilterHead::of(&filter, 5, 6);
    let signed = head.sign(&signer());
    let key = signer().key().0;
    assert_eq!(signed.verify(&key), Ok(head));
    assert_eq!(head.check(filter.octets()), Ok(()));
    assert_eq!(head.check(&filter.octets()[1..]), Err(FilterError::Unsigned));
    let other = VoucherSigner::new(&[8; 32]).key().0;
    assert_eq!(signed.verify(&other), Err(FilterError::Unsigned));
    let changed = |change: fn(&mut FilterHead)| {
        let mut head = head;
        change(&mut head);
        SignedHead::new(head, *signed.signature()).verify(&key)
    };
    assert_eq!(changed(|head| head.series += 1), Err(FilterError::Unsigned));
    assert_eq!(changed(|head| head.generation += 1), Err(FilterError::Unsigned));
    assert_eq!(changed(|head| head.items += 1), Err(FilterError::Unsigned));
    assert_eq!(changed(|head| head.hash[0] ^= 1), Err(FilterError::Unsigned));
    assert_eq!(changed(|head| head.shape = Shape::for_items(1 << 20)), Err(FilterError::Unsigned));
}

/// Somebody who follows a seed.
struct Follower {
    filter: Filter,
    have: (u64, u32),
    /// Octets that it was sent.
    received: usize,
}

impl Follower {
    fn follow(&mut self, publisher: &Publisher) {
        let head = publisher.head(&signer()).verify(&signer().key().0).expect("it is signed");
        match publisher.content(Some(self.have)) {
            Content::Same => {}
            Content::Changes(octets) => {
                let delta = Delta::from_octets(self.filter.shape(), &octets).expect("changes");
                self.filter = self.filter.apply(&delta).expect("they fit");
                self.received += octets.len();
            }
            Content::Whole => {
                let octets = publisher.filter().octets().as_ref().clone();
                self.received += octets.len();
                self.filter = Filter::from_octets(head.shape, octets).expect("a filter");
            }
        }
        head.check(self.filter.octets()).expect("it is the one that was signed");
        self.have = (head.series, head.generation);
    }
}

#[test]
fn whoever_follows_a_seed_is_told_what_has_changed() {
    let mut publisher = Publisher::new(1, &mut bits(0..20_000));
    let filter = Filter::build(Shape::for_items(0), &mut Vec::new());
    let mut often = Follower { filter, have: (0, 0), received: 0 };
    often.follow(&publisher);
    let whole = often.received;
    let mut seldom = Follower { filter: often.filter.clone(), have: often.have, received: 0 };
    for round in 0..20 {
        for number in 20_000 + round * 10..20_010 + round * 10 {
            publisher.handle_held(&key(number));
        }
        assert!(publisher.publish());
        often.follow(&publisher);
    }
    assert!(!publisher.publish(), "nothing has changed");
    assert!(often.received - whole < 20 * 60, "{} octets", often.received - whole);
    // Some have gone; and the seed was restarted meanwhile.
    let snapshot = publisher.snapshot();
    let mut publisher = Publisher::from_snapshot(&snapshot).expect("as written");
    assert!(publisher.rebuild(2, &mut bits(100..20_200)));
    often.follow(&publisher);
    seldom.follow(&publisher);
    assert_eq!(often.filter, seldom.filter);
    assert!(seldom.received < 1500, "{} octets", seldom.received);
    assert!(often.filter.says_yes(&key(20_199)));
    let gone = (0..100).filter(|number| !often.filter.says_yes(&key(*number))).count();
    assert!(gone > 90, "{gone} of 100 have gone");
    // When it has grown out of its shape, everything is told anew.
    assert!(publisher.rebuild(3, &mut bits(0..200_000)));
    seldom.follow(&publisher);
    assert_eq!(seldom.have, (3, 1));
    // Who names what there never was gets all.
    for have in [(3, 2), (3, 0), (9, 1)] {
        assert_eq!(publisher.content(Some(have)), Content::Whole);
    }
    assert_eq!(publisher.content(None), Content::Whole);
}

#[test]
fn what_a_seed_remembers_of_its_filters_has_an_end() {
    let mut publisher = Publisher::new(1, &mut bits(0..20_000));
    for round in 0..MAX_DELTA_HISTORY as u64 + 100 {
        publisher.handle_held(&key(1_000_000 + round));
        publisher.publish();
    }
    assert_eq!(publisher.content(Some((1, 2))), Content::Whole);
    assert!(matches!(publisher.content(Some((1, 600))), Content::Changes(_)));
}

#[test]
fn a_damaged_snapshot_is_none() {
    let mut publisher = Publisher::new(1, &mut bits(0..500));
    publisher.handle_held(&key(1000));
    publisher.publish();
    let good = publisher.snapshot();
    let read = Publisher::from_snapshot(&good).expect("as written");
    assert_eq!(read.filter(), publisher.filter());
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert!(Publisher::from_snapshot(&bad).is_err(), "octet {at}");
    }
}
