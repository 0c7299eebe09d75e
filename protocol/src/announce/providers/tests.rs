//! What is kept for others keeps within its bounds, whoever announces what.

use super::*;
use proptest::prelude::*;

const NOW: Seconds = Seconds(1_800_000_000);

fn key(number: u64) -> ItemKey {
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    ItemKey(octets)
}

fn small() -> ProviderLimits {
    ProviderLimits { records: 100, per_peer: 40, per_network: 60, per_item: 5 }
}

fn announce(store: &mut Providers, peer: u64, network: Option<u64>, keys: &[ItemKey]) -> Vec<u8> {
    let peer = peer.to_be_bytes();
    let sender = Sender { peer: &peer, network, addresses: &[], share: Share::UNKNOWN };
    store.announce(sender, keys, ANNOUNCED_LIFE, NOW)
}

fn who(store: &mut Providers, key: ItemKey, now: Seconds) -> BTreeSet<u64> {
    let hits = store.find(&[key], 0, 100, now);
    let peers = hits.iter().map(|hit| hit.provider.peer.first_chunk().expect("eight octets"));
    peers.map(|peer| u64::from_be_bytes(*peer)).collect()
}

/// Whether all that is counted is counted right.
fn audit(store: &Providers) {
    let limits = store.limits;
    assert!(store.records.len() <= limits.records);
    let mut of_owner: BTreeMap<u32, usize> = BTreeMap::new();
    let mut of_network: BTreeMap<u64, usize> = BTreeMap::new();
    let mut of_key: BTreeMap<ItemKey, usize> = BTreeMap::new();
    for (key, slot) in store.records.keys() {
        *of_owner.entry(*slot).or_default() += 1;
        *of_key.entry(*key).or_default() += 1;
        if let Some(network) = store.owners[*slot as usize].provider.network {
            *of_network.entry(network).or_default() += 1;
        }
    }
    assert_eq!(of_network, store.networks);
    assert!(of_key.values().all(|count| *count <= limits.per_item));
    assert!(of_owner.values().all(|count| *count <= limits.per_peer));
    let owners: BTreeMap<_, _> = store.owners.iter().map(|(s, o)| (s as u32, o.records)).collect();
    assert_eq!(owners, of_owner, "nobody without records is remembered");
    let sizes: BTreeSet<_> = owners.iter().map(|(slot, records)| (*records, *slot)).collect();
    assert_eq!(sizes, store.by_size);
    assert_eq!(store.by_peer.len(), store.owners.len());
}

proptest! {
    #[test]
    fn whatever_is_announced_and_withdrawn_the_books_agree(
        steps in prop::collection::vec((0_u8..4, 0_u64..12, 0_u64..4, 0_u64..60, 1_u64..30), 1..60)
    ) {
        let mut store = Providers::new(small());
        let mut now = NOW;
        for (what, peer, network, first, count) in steps {
            let keys: Vec<_> = (first..first + count).map(key).collect();
            let octets = peer.to_be_bytes();
            match what {
                0 | 1 => {
                    let network = (network > 0).then_some(network);
                    let life = Duration::from_secs(count * 1000);
                    let share = Share::percent(first as u8);
                    let sender = Sender { peer: &octets, network, addresses: &[], share };
                    let known = store.announce(sender, &keys, life, now);
                    prop_assert_eq!(known.len(), keys.len());
                }
                2 => store.withdraw(&octets, &keys, now),
                _ => {
                    now = now.after(Duration::from_secs(count * 100));
                    store.prune(now);
                }
            }
            audit(&store);
            let again = Providers::from_snapshot(&store.snapshot(now), small(), now);
            let again = again.expect("what was written");
            audit(&again);
            let live = store.records.values().filter(|expires| !is_over(**expires, now)).count();
            prop_assert_eq!(again.records.len(), live);
        }
    }

    #[test]
    fn any_octets_are_a_snapshot_or_an_error(mut octets in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Providers::from_snapshot(&octets, small(), NOW);
        let mut framed = b"narswarm providers 1\n".to_vec();
        framed.append(&mut octets);
        let hash = blake3::hash(&framed);
        framed.extend(hash.as_bytes());
        if let Ok(store) = Providers::from_snapshot(&framed, small(), NOW) {
            audit(&store);
        }
    }
}

#[test]
fn only_who_announced_can_withdraw() {
    let mut store = Providers::new(small());
    announce(&mut store, 1, None, &[key(1)]);
    announce(&mut store, 2, None, &[key(2)]);
    store.withdraw(&2_u64.to_be_bytes(), &[key(1), key(2)], NOW);
    store.withdraw(&9_u64.to_be_bytes(), &[key(1)], NOW);
    assert_eq!(who(&mut store, key(1), NOW), BTreeSet::from([1]));
    assert_eq!(who(&mut store, key(2), NOW), BTreeSet::new());
    assert_eq!((store.len(), store.owners()), (1, 1));
}

#[test]
fn one_peer_has_a_share_and_gives_way_when_all_is_full() {
    let mut store = Providers::new(small());
    let many: Vec<_> = (0..50).map(key).collect();
    let known = announce(&mut store, 1, None, &many);
    assert_eq!(known.iter().filter(|known| **known > 0).count(), 40);
    let others: Vec<_> = (100..140).map(key).collect();
    announce(&mut store, 2, None, &others);
    announce(&mut store, 3, None, &others);
    assert_eq!(store.len(), 100);
    let known = announce(&mut store, 4, None, &[key(500), key(501)]);
    assert_eq!(known, [1, 1], "whoever has little has a place");
    assert_eq!(store.len(), 100);
    audit(&store);
}

#[test]
fn one_network_has_a_share() {
    let mut store = Providers::new(small());
    for peer in 0..3 {
        let keys: Vec<_> = (peer * 30..peer * 30 + 30).map(key).collect();
        announce(&mut store, peer, Some(7), &keys);
    }
    assert_eq!(store.len(), 60);
    assert_eq!(announce(&mut store, 9, Some(8), &[key(1000)]), [1]);
}

#[test]
fn of_one_item_a_few_are_kept_of_several_networks() {
    let mut store = Providers::new(small());
    for peer in 0..5 {
        assert_eq!(announce(&mut store, peer, Some(7), &[key(1)]), [peer as u8 + 1]);
    }
    assert_eq!(announce(&mut store, 5, Some(7), &[key(1)]), [5], "its network has enough");
    assert_eq!(announce(&mut store, 6, Some(8), &[key(1)]), [5]);
    assert_eq!(announce(&mut store, 7, Some(9), &[key(1)]), [5]);
    let found = who(&mut store, key(1), NOW);
    assert_eq!(found.len(), 5);
    assert!(found.contains(&6) && found.contains(&7), "{found:?}");
    assert_eq!(announce(&mut store, 8, Some(10), &[key(1)]), [5], "full, and fair");
    assert!(!who(&mut store, key(1), NOW).contains(&8));
}

#[test]
fn those_seen_lately_come_first_and_the_gone_not_at_all() {
    let mut store = Providers::new(ProviderLimits::default());
    for peer in 0..20 {
        announce(&mut store, peer, Some(peer), &[key(1)]);
    }
    let later = NOW.after(PROBE_AFTER * 4);
    store.handle_seen(&7_u64.to_be_bytes(), later);
    let hits = store.find(&[key(1)], 3, 100, later);
    assert_eq!(hits.len(), 20, "all, in so short an answer");
    assert_eq!(
        (hits[0].provider.peer.as_slice(), hits[0].seen),
        (&7_u64.to_be_bytes()[..], Duration::ZERO)
    );
    let probed: Vec<_> = std::iter::from_fn(|| store.poll_probe()).collect();
    assert_eq!(probed.len(), PROVIDERS_IN_ANSWER - 1, "not the one that was seen");
    store.find(&[key(1)], 3, 100, later);
    assert_eq!(store.poll_probe(), None, "once in a while");
    for gone in &probed {
        store.handle_gone(&gone.peer);
    }
    let others = store.find(&[key(1)], 3, 100, later);
    assert!(others.iter().all(|hit| !probed.contains(hit.provider)));
    assert_eq!(others.len(), 20 - probed.len());
    let many: Vec<_> = (1..=ITEMS_IN_SHORT_ANSWER as u64 + 1).map(key).collect();
    assert_eq!(store.find(&many, 3, 100, later).len(), PROVIDERS_IN_ANSWER);
}

#[test]
fn what_has_expired_is_not_named() {
    let mut store = Providers::new(small());
    announce(&mut store, 1, None, &[key(1)]);
    let over = NOW.after(ANNOUNCED_LIFE);
    assert_eq!(who(&mut store, key(1), Seconds(over.0 - 1)).len(), 1);
    assert_eq!(who(&mut store, key(1), over).len(), 0);
    store.prune(over);
    assert!(store.is_empty() && store.owners() == 0);
}

#[test]
fn damage_is_noticed() {
    let mut store = Providers::new(small());
    let address = vec![vec![1, 2, 3]];
    let share = Share::percent(77);
    let sender = Sender { peer: b"peer", network: Some(3), addresses: &address, share };
    store.announce(sender, &[key(1)], ANNOUNCED_LIFE, NOW);
    let octets = store.snapshot(NOW);
    let again = Providers::from_snapshot(&octets, small(), NOW).expect("whole");
    assert_eq!(again.owners[0].provider, store.owners[0].provider);
    for at in [30, octets.len() - 1] {
        let mut damaged = octets.clone();
        damaged[at] ^= 1;
        let error = Providers::from_snapshot(&damaged, small(), NOW).expect_err("damaged");
        assert_eq!(error, SnapshotError::Damaged);
    }
    assert_eq!(Providers::from_snapshot(b"x", small(), NOW).err(), Some(SnapshotError::Magic));
}
