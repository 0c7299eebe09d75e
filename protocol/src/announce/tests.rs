//! Whole networks of the real machines, over a model of messages: each takes a fixed time, the dead
//! answer nothing.

use super::providers::{ProviderLimits, Providers, Seconds, Sender};
use super::*;
use crate::limits::{
    ANCHOR_CHECK, ANCHOR_LIFE, ANNOUNCED_LIFE, DOUBTFUL_STAGGER, EXPLORE_AGAIN, HOLDER_STAGGER,
    HOLDER_STAGGER_AT_MOST, LOOK_AGAIN_NODES, LOOK_NODES, MAX_ANNOUNCE_RETRY, NEWCOMER_DOUBLINGS,
    NOBODY_LIFE, REANNOUNCE, REANNOUNCE_TO_NEWCOMERS, REPLICAS, RESTART_SPREAD, SAVED_NEIGHBOURS,
};
use std::collections::{BTreeMap, BTreeSet};

/// One way.
const HOP: Duration = Duration::from_millis(25);
/// When a driver gives up on an answer.
const GIVE_UP: Duration = Duration::from_secs(2);

struct Node {
    discovery: Discovery,
    providers: Providers,
    contact: Contact,
    dead: bool,
    /// It names nobody and knows nothing.
    lies: bool,
    received: usize,
}

enum Event {
    Ask { from: usize, to: usize, request: RequestId, bucket: Bucket, message: Message },
    Reply { to: usize, request: RequestId, reply: Reply },
    Failure { to: usize, request: RequestId },
}

struct World {
    nodes: Vec<Node>,
    now: Time,
    events: BTreeMap<(Time, u64), Event>,
    count: u64,
    /// What searches have found, and when.
    found: BTreeMap<SearchId, Vec<(Time, Found)>>,
    done: BTreeMap<SearchId, Time>,
    timers: BTreeSet<(Time, usize)>,
    /// The others only answer.
    only: Option<usize>,
    messages: usize,
    announces: usize,
    /// Who stays connected with whom.
    stays: BTreeSet<(usize, NodeId)>,
}

fn key(bucket: u8, number: u32) -> ItemKey {
    let mut octets = [0; 16];
    octets[0] = bucket << 2;
    octets[8..12].copy_from_slice(&number.to_be_bytes());
    octets[12..].copy_from_slice(&mix(number.into(), 1, 2).to_be_bytes()[..4]);
    ItemKey(octets)
}

fn contact(number: usize) -> Contact {
    let position = Position::of(&(number as u64).to_be_bytes());
    Contact { node: NodeId(number as u64), position, network: Some(number as u64) }
}

impl World {
    /// Nodes that know a few others each, as Kademlia's tables do: some anywhere, and those near.
    fn new(count: usize) -> Self {
        let contacts: Vec<_> = (0..count).map(contact).collect();
        let mut sorted = contacts.clone();
        sorted.sort_by_key(|c| c.position);
        let config = |seed| DiscoveryConfig { seed, max_contacts: 2048, explores: false };
        let nodes = contacts.iter().enumerate().map(|(number, own)| {
            let mut discovery = Discovery::new(config(number as u64), Time::default());
            let mut know = |other: Contact| {
                if other.node != own.node {
                    discovery.handle_contact(other);
                    discovery.handle_connected(other.node, true);
                    discovery.handle_connected(other.node, false);
                }
            };
            for pick in 0..30 {
                know(contacts[mix(number as u64, pick, 7) as usize % count]);
            }
            let place = sorted.iter().position(|c| c.node == own.node).expect("it is there");
            sorted[place.saturating_sub(10)..(place + 10).min(count)].iter().for_each(|c| know(*c));
            let providers = Providers::new(ProviderLimits::default());
            Node { discovery, providers, contact: *own, dead: false, lies: false, received: 0 }
        });
        Self {
            nodes: nodes.collect(),
            now: Time::default(),
            events: BTreeMap::new(),
            count: 0,
            found: BTreeMap::new(),
            done: BTreeMap::new(),
            timers: BTreeSet::new(),
            only: None,
            messages: 0,
            announces: 0,
            stays: BTreeSet::new(),
        }
    }

    fn seconds(&self) -> Seconds {
        Seconds(1_800_000_000 + self.now.0.as_secs())
    }

    fn push(&mut self, after: Duration, event: Event) {
        self.count += 1;
        self.events.insert((self.now + after, self.count), event);
    }

    /// Does what a node wants, and notes when it wants to be polled again.
    fn poll(&mut self, number: usize) {
        if self.nodes[number].dead || self.only.is_some_and(|only| only != number) {
            return;
        }
        while let Some(action) = self.nodes[number].discovery.poll_action(self.now) {
            match action {
                Action::Ask { request, node, bucket, message } => {
                    self.messages += 1;
                    self.announces += usize::from(matches!(message, Message::Announce { .. }));
                    let (from, to) = (number, node.0 as usize);
                    if to >= self.nodes.len() || self.nodes[to].dead {
                        self.push(GIVE_UP, Event::Failure { to: from, request });
                    } else {
                        self.push(HOP, Event::Ask { from, to, request, bucket, message });
                    }
                }
                Action::Found(found) => {
                    self.found.entry(found.search).or_default().push((self.now, found));
                }
                Action::Done(search) => drop(self.done.insert(search, self.now)),
                Action::Stay { node, stay: true } => {
                    self.stays.insert((number, node));
                    self.nodes[number].discovery.handle_connected(node, true);
                }
                Action::Stay { node, stay: false } => drop(self.stays.remove(&(number, node))),
            }
        }
        if let Some(timeout) = self.nodes[number].discovery.poll_timeout(self.now) {
            self.timers.insert((timeout, number));
        }
    }

    fn answer(&mut self, from: usize, to: usize, bucket: Bucket, message: &Message) -> Reply {
        let (now, seconds) = (self.now, self.seconds());
        let asker = self.nodes[from].contact;
        let node = &mut self.nodes[to];
        node.received += 1;
        if node.lies {
            return Reply { known: vec![1; 4096], ..Reply::default() };
        }
        let mut reply =
            Reply { nearer: node.discovery.near(bucket, 8, from as u64, now), ..Reply::default() };
        reply.nearer.retain(|contact| contact.node != asker.node);
        let peer = (from as u64).to_be_bytes();
        match message {
            Message::Look => {}
            Message::Announce { keys, share } => {
                let (network, share) = (asker.network, *share);
                let sender = Sender { peer: &peer, network, addresses: &[], share };
                reply.known = node.providers.announce(sender, keys, Message::LIFE, seconds);
            }
            Message::Withdraw { keys } => node.providers.withdraw(&peer, keys, seconds),
            Message::Find { keys } => {
                let hits = node.providers.find(keys, from as u64, 4000, seconds);
                reply.providers = hits
                    .iter()
                    .map(|hit| {
                        let peer = hit.provider.peer.first_chunk().expect("eight octets");
                        let provider = NodeId(u64::from_be_bytes(*peer));
                        let (key_index, seen, share) =
                            (hit.key_index, hit.seen, hit.provider.share);
                        ProviderHint { key_index, provider, seen, relayed: false, share }
                    })
                    .collect();
            }
        }
        reply
    }

    /// Lets time pass until `end`.
    fn run_until(&mut self, end: Time) {
        (0..self.nodes.len()).for_each(|number| self.poll(number));
        loop {
            let event = self.events.first_key_value().map(|((at, _), _)| *at);
            let timer = self.timers.first().map(|(at, _)| *at);
            let Some(next) = event.into_iter().chain(timer).min().filter(|at| *at <= end) else {
                break;
            };
            assert!(next >= self.now, "time goes forwards");
            self.now = next;
            if timer == Some(next)
                && let Some((_, number)) = self.timers.pop_first()
            {
                self.poll(number);
            } else if let Some((_, event)) = self.events.pop_first() {
                self.handle(event);
            }
        }
        self.now = end;
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Ask { from, to, request, bucket, message } => {
                if self.nodes[to].dead {
                    return self.push(GIVE_UP, Event::Failure { to: from, request });
                }
                let reply = self.answer(from, to, bucket, &message);
                self.push(HOP, Event::Reply { to: from, request, reply });
            }
            Event::Reply { to, request, reply } => {
                self.nodes[to].discovery.handle_reply(request, &reply, self.now);
                self.poll(to);
            }
            Event::Failure { to, request } => {
                self.nodes[to].discovery.handle_failure(request, self.now);
                self.poll(to);
            }
        }
    }

    fn run_for(&mut self, wait: Duration) {
        self.run_until(self.now + wait);
    }

    fn hold(&mut self, number: usize, keys: &[ItemKey]) {
        for key in keys {
            self.nodes[number].discovery.handle_held(*key, 0, self.now);
        }
        self.poll(number);
    }

    /// Searches, and gives who was found for each key, and how long the first of each took.
    fn search(
        &mut self,
        number: usize,
        keys: &[ItemKey],
    ) -> (BTreeMap<ItemKey, BTreeSet<u64>>, Vec<Duration>) {
        let id = SearchId(self.count + 1_000_000);
        let begin = self.now;
        self.nodes[number].discovery.handle_search(id, keys, 4, self.now);
        self.poll(number);
        // Twenty holders, of whom nothing is ever heard, are named one after the other.
        let end = self.now + DOUBTFUL_STAGGER * 25;
        while !self.done.contains_key(&id) && self.now < end {
            self.run_for(Duration::from_millis(50));
        }
        assert!(self.done.contains_key(&id), "every search ends");
        let mut providers: BTreeMap<ItemKey, BTreeSet<u64>> = BTreeMap::new();
        let mut took = Vec::new();
        for (at, found) in self.found.remove(&id).unwrap_or_default() {
            let known = providers.entry(found.key).or_default();
            if known.is_empty() {
                took.push(at.since(begin));
            }
            assert!(known.insert(found.provider.0), "each provider once a key");
        }
        (providers, took)
    }
}

fn items(count: u32) -> Vec<ItemKey> {
    let mut keys: Vec<_> = (0..count).map(|n| key((n % 64) as u8, n)).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn what_one_announces_another_finds_within_two_seconds() {
    let mut world = World::new(100);
    let keys = items(10);
    world.hold(3, &keys);
    world.run_for(Duration::from_secs(2));
    let (found, took) = world.search(70, &keys);
    let expected: BTreeMap<_, _> = keys.iter().map(|key| (*key, BTreeSet::from([3]))).collect();
    assert_eq!(found, expected);
    assert!(took.iter().all(|took| *took <= Duration::from_millis(200)), "{took:?}");
}

#[test]
fn each_bucket_has_its_keepers_and_they_are_the_nearest() {
    let mut world = World::new(300);
    world.only = Some(5);
    let keys = items(64);
    world.hold(5, &keys);
    world.run_for(Duration::from_secs(20));
    for key in keys {
        let mut all: Vec<_> = world.nodes.iter().collect();
        let target = key.bucket().position();
        all.sort_by_key(|node| node.contact.position.distance(target));
        let nearest = all.iter().filter(|node| node.contact.node != NodeId(5)).take(REPLICAS);
        let kept = nearest.filter(|node| !node.providers.is_empty()).count();
        assert!(kept >= REPLICAS - 1, "{kept} of the nearest of {:?}", key.bucket());
    }
}

#[test]
fn a_day_of_a_workstation_costs_few_messages() {
    let mut world = World::new(400);
    let keys = items(3000);
    world.only = Some(9);
    world.hold(9, &keys);
    world.run_for(Duration::from_secs(60));
    let first_round = world.messages;
    world.run_for(Duration::from_secs(4 * 24 * 3600));
    let a_day = (world.messages - first_round) / 4;
    world.only = None;
    assert!(first_round < 1200, "the first round took {first_round} messages");
    assert!((300..900).contains(&a_day), "{a_day} messages a day");
    // And it is still found.
    let (found, _) = world.search(77, &keys[..1000]);
    assert_eq!(found.len(), 1000);
}

#[test]
fn who_loses_everybody_tries_again_in_patience_until_somebody_is_there() {
    let mut world = World::new(5);
    world.only = Some(1);
    world.nodes[4].dead = true;
    world.hold(1, &items(100));
    world.run_for(Duration::from_secs(3));
    assert!(!world.nodes[0].providers.is_empty(), "some have been told, and one didn't answer");
    [0, 2, 3].into_iter().for_each(|number| world.nodes[number].dead = true);
    let before = world.messages;
    world.run_for(Duration::from_secs(60));
    let alone = world.messages - before;
    assert!((1..1000).contains(&alone), "{alone} messages to nobody");
    let anew = Providers::new(ProviderLimits::default());
    (world.nodes[0].dead, world.nodes[0].providers) = (false, anew);
    world.nodes[1].discovery.handle_contact(contact(0));
    world.poll(1);
    world.run_for(REANNOUNCE_TO_NEWCOMERS + MAX_ANNOUNCE_RETRY);
    assert!(world.nodes[0].providers.len() >= 60, "{}", world.nodes[0].providers.len());
}

#[test]
fn what_is_released_is_withdrawn_and_what_nobody_renews_expires() {
    let mut world = World::new(50);
    let keys = items(100);
    world.hold(1, &keys);
    world.run_for(Duration::from_secs(5));
    for key in &keys[..50] {
        world.nodes[1].discovery.handle_released(*key, world.now);
    }
    world.run_for(Duration::from_secs(60));
    let (found, _) = world.search(40, &keys);
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), keys[50..]);
    world.nodes[1].dead = true;
    world.run_for(ANNOUNCED_LIFE);
    let (found, _) = world.search(41, &keys);
    assert_eq!(found.len(), 0);
    for node in &mut world.nodes {
        node.providers.prune(Seconds(u64::MAX));
        assert!(node.providers.is_empty() && node.providers.owners() == 0);
    }
}

#[test]
fn the_dead_and_the_liars_do_not_hide_what_there_is() {
    for (share, lies) in [(10, false), (5, true)] {
        let mut world = World::new(300);
        let keys = items(200);
        for number in 0..world.nodes.len() {
            let hit = mix(99, number as u64, 0).is_multiple_of(share) && number > 20;
            (world.nodes[number].dead, world.nodes[number].lies) = (hit && !lies, hit && lies);
        }
        world.hold(2, &keys);
        world.run_for(Duration::from_secs(30));
        let mut found = 0;
        for asker in 10..20 {
            found += world.search(asker, &keys[..100]).0.len();
        }
        assert!(found >= 995, "{found} of 1000, with lies: {lies}");
    }
}

#[test]
fn whoever_did_not_answer_is_told_later_where_there_are_few() {
    let mut world = World::new(4);
    world.nodes[3].dead = true;
    world.hold(1, &items(64));
    world.run_for(Duration::from_secs(20));
    world.nodes[3].dead = false;
    world.run_for(REANNOUNCE_TO_NEWCOMERS * 100);
    let kept = world.nodes.iter().map(|node| node.providers.len());
    assert_eq!(kept.collect::<Vec<_>>(), [64, 0, 64, 64]);
    world.run_for(REANNOUNCE_TO_NEWCOMERS * (4 << NEWCOMER_DOUBLINGS));
    let messages = world.messages;
    world.run_for(Duration::from_secs(4 * 3600));
    assert_eq!(world.messages, messages, "once all have been told nothing is to be said");
}

#[test]
fn what_many_hold_is_announced_by_few() {
    let mut world = World::new(60);
    let keys = items(16);
    for number in 0..40 {
        world.hold(number, &keys);
    }
    world.run_for(Duration::from_secs(60));
    world.run_for(REANNOUNCE * 4);
    let levels: Vec<u8> = world.nodes[..40]
        .iter()
        .flat_map(|node| node.discovery.announced(world.now).items)
        .map(|(_, level)| level)
        .collect();
    let mean = levels.iter().map(|level| f64::from(*level)).sum::<f64>() / levels.len() as f64;
    assert!(mean > 0.5, "thinned by 2^{mean} only");
    let (found, _) = world.search(50, &keys);
    assert_eq!(found.len(), keys.len());
    assert!(found.values().all(|providers| providers.len() >= 4));
}

/// The node of this number begins anew, an hour after it has ended.
fn restart(world: &mut World, number: usize) {
    let saved = world.nodes[number].discovery.announced(world.now);
    let config = DiscoveryConfig { seed: number as u64, max_contacts: 2048, explores: false };
    let mut discovery = Discovery::new(config, world.now);
    discovery.restore(&saved, Duration::from_secs(3600), world.now);
    for other in (0..40).filter(|other| *other != number) {
        discovery.handle_contact(contact(other));
    }
    world.nodes[number].discovery = discovery;
}

#[test]
fn a_restarted_node_does_not_say_everything_again() {
    let mut world = World::new(60);
    let keys = items(500);
    world.hold(4, &keys);
    world.run_for(Duration::from_secs(30));
    assert_eq!(world.nodes[4].discovery.announced(world.now).items.len(), 500);
    restart(&mut world, 4);
    world.only = Some(4);
    let before = world.announces;
    world.hold(4, &keys);
    world.nodes[4].discovery.handle_all_held(world.now);
    world.run_for(Duration::from_secs(3600));
    assert_eq!(world.announces, before);
    world.run_for(REANNOUNCE);
    assert!(world.announces >= before + 64 * REPLICAS);
}

#[test]
fn whoever_has_slept_announces_in_time_and_says_that_it_was_away() {
    let mut world = World::new(60);
    world.hold(4, &items(64));
    world.run_for(Duration::from_secs(3600));
    world.only = Some(4);
    let (before, now) = (world.announces, world.now);
    world.nodes[4].discovery.handle_slept(Duration::from_secs(3600), now);
    world.run_for(RESTART_SPREAD);
    assert_eq!(world.announces, before, "nothing is due yet");
    let now = world.now;
    let awake = world.nodes[4].discovery.announced(now).presence;
    world.nodes[4].discovery.handle_slept(REANNOUNCE, now);
    assert!(world.nodes[4].discovery.announced(now).presence.share() < awake.share());
    world.run_for(RESTART_SPREAD + Duration::from_secs(30));
    assert!(world.announces >= before + 64 * REPLICAS, "{} after {before}", world.announces);
}

#[test]
fn a_restarted_node_announces_what_is_new_without_looking_around() {
    let mut world = World::new(200);
    world.hold(4, &items(64));
    world.run_for(Duration::from_secs(60));
    restart(&mut world, 4);
    world.only = Some(4);
    let new = key(3, 999);
    let before = (world.messages, world.announces);
    world.hold(4, &[new]);
    world.run_for(Duration::from_secs(5));
    let announces = world.announces - before.1;
    assert!((REPLICAS..REPLICAS + 3).contains(&announces), "{announces}");
    let looks = world.messages - before.0 - announces;
    assert!(looks < 16, "how dense the network is, it knows: {looks}");
    // It says that it was there for a minute and away for an hour.
    let shares = world.nodes.iter_mut().filter_map(|node| {
        let hits = node.providers.find(&[new], 0, 1, Seconds::default());
        hits.first().map(|hit| hit.provider.share)
    });
    let shares: Vec<_> = shares.collect();
    assert!(shares.len() >= REPLICAS);
    assert!(shares.iter().all(|share| (Share::percent(40)..Share::UNKNOWN).contains(share)));
}

#[test]
fn a_restarted_node_knows_who_is_near_without_looking() {
    let mut world = World::new(200);
    world.hold(2, &items(1));
    let config = DiscoveryConfig { seed: 1, max_contacts: 2048, explores: true };
    let begin = |world: &mut World, known: &[NodeId]| {
        let mut discovery = Discovery::new(config, world.now);
        known.iter().for_each(|node| discovery.handle_contact(contact(node.0 as usize)));
        world.nodes[1].discovery = discovery;
    };
    begin(&mut world, &[NodeId(0)]);
    world.poll(1);
    let before = world.messages;
    world.run_for(Duration::from_secs(30));
    assert!(world.messages - before > 64 * LOOK_NODES, "it has looked everywhere");

    let saved = world.nodes[1].discovery.announced(world.now);
    assert!(saved.buckets.iter().all(|bucket| bucket.near.len() == SAVED_NEIGHBOURS));
    let near: Vec<_> = saved.buckets.iter().flat_map(|bucket| bucket.near.clone()).collect();
    begin(&mut world, &near);
    let (now, away) = (world.now, EXPLORE_AGAIN / 2);
    world.nodes[1].discovery.restore(&saved, away, now);
    world.only = Some(1);
    let before = world.messages;
    world.poll(1);
    world.run_for(EXPLORE_AGAIN / 3);
    assert_eq!(world.messages, before);
    let (found, took) = world.search(1, &items(1));
    assert!(found.len() == 1 && took[0] <= HOP * 2, "{found:?} after {took:?}");
    world.run_for(EXPLORE_AGAIN / 3);
    assert!(world.messages - before >= 64 * LOOK_AGAIN_NODES, "in time it looks again");
}

#[test]
fn nobody_looks_around_where_something_is_announced_in_any_case() {
    let messages_of_a_round = |explores| {
        let mut world = World::new(200);
        let config = DiscoveryConfig { seed: 1, max_contacts: 2048, explores };
        let mut discovery = Discovery::new(config, world.now);
        (0..200).filter(|n| *n != 1).for_each(|n| discovery.handle_contact(contact(n)));
        world.nodes[1].discovery = discovery;
        world.hold(1, &items(1000));
        world.run_for(Duration::from_secs(60));
        world.only = Some(1);
        let before = world.messages;
        world.run_for(EXPLORE_AGAIN * 2);
        world.messages - before
    };
    let (announcing, exploring) = (messages_of_a_round(false), messages_of_a_round(true));
    assert!(announcing >= 64 * REPLICAS, "{announcing}");
    assert!(exploring <= announcing * 21 / 20, "{announcing}, {exploring}");
}

#[test]
fn whoever_searches_again_stays_connected_with_keepers_for_a_while() {
    let mut world = World::new(200);
    let keys = items(64);
    world.hold(2, &keys);
    world.run_for(Duration::from_secs(20));
    for number in 1..=3 {
        let now = world.now;
        world.nodes[1].discovery.handle_upkeep_search(SearchId(number), &keys, 4, now);
        world.poll(1);
        world.run_for(Duration::from_secs(5));
    }
    assert!(world.stays.is_empty(), "nobody waits for what is looked for as upkeep");
    assert_eq!(world.search(1, &keys[..1]).0.len(), 1);
    assert!(world.stays.is_empty(), "once is not often");
    assert_eq!(world.search(1, &keys[1..2]).0.len(), 1);
    assert!(world.stays.len() > 20, "{:?}", world.stays);
    world.run_for(ANCHOR_LIFE + ANCHOR_CHECK);
    assert!(world.stays.is_empty(), "{:?}", world.stays);
}

#[test]
fn holders_are_given_out_one_after_the_other() {
    let mut world = World::new(60);
    let keys = items(1);
    (2..8).for_each(|holder| world.hold(holder, &keys));
    world.run_for(Duration::from_secs(2));
    let id = SearchId(1);
    world.nodes[1].discovery.handle_search(id, &keys, 20, world.now);
    world.poll(1);
    world.run_for(HOP * 2 + HOLDER_STAGGER / 2);
    let found = |world: &World| world.found.get(&id).map_or(0, Vec::len);
    assert_eq!(found(&world), 1, "the others wait until this one is late");
    let first = world.found[&id][0].1.provider;
    world.nodes[1].discovery.handle_provider_gone(first, world.now);
    world.poll(1);
    assert_eq!(found(&world), 2, "or was gone");
    world.run_for(HOLDER_STAGGER_AT_MOST);
    assert!(found(&world) >= 3);
    assert!(!world.done.contains_key(&id), "there are more");
}

#[test]
fn a_restarted_node_withdraws_what_it_no_longer_holds() {
    let mut world = World::new(60);
    let keys = items(500);
    world.hold(4, &keys);
    world.run_for(Duration::from_secs(30));
    // What was about to be withdrawn when it ended is not forgotten either.
    world.nodes[4].discovery.handle_released(keys[499], world.now);
    restart(&mut world, 4);
    world.hold(4, &keys[..400]);
    assert!(!world.nodes[4].discovery.holds(&keys[400]));
    let kept = world.nodes[4].discovery.announced(world.now);
    assert_eq!(kept.items.len(), 500, "as long as it isn't known what is held");
    world.run_for(Duration::from_secs(60));
    assert_eq!(world.search(30, &keys).0.len(), 500, "nothing is withdrawn for want of time");
    world.nodes[4].discovery.handle_all_held(world.now);
    world.run_for(Duration::from_secs(60));
    assert_eq!(world.nodes[4].discovery.announced(world.now).items.len(), 400);
    let found = world.search(31, &keys).0;
    assert_eq!(found.into_keys().collect::<BTreeSet<_>>(), keys[..400].iter().copied().collect());
}

#[test]
fn what_is_held_again_after_its_bucket_was_announced_is_announced_too() {
    let mut world = World::new(60);
    let keys: Vec<_> = (0..20).map(|n| key(7, n)).collect();
    world.hold(4, &keys);
    world.run_for(Duration::from_secs(30));
    restart(&mut world, 4);
    world.hold(4, &keys[..10]);
    world.run_for(REANNOUNCE);
    // The others are forgotten by now, or soon will be.
    world.hold(4, &keys);
    world.run_for(ANNOUNCED_LIFE - REANNOUNCE + Duration::from_secs(3600));
    assert_eq!(world.search(30, &keys).0.len(), 20);
}

#[test]
fn nobody_is_believed_for_a_moment_only() {
    let mut world = World::new(30);
    let keys = items(1);
    assert!(world.search(1, &keys).0.is_empty());
    let before = world.messages;
    assert!(world.search(1, &keys).0.is_empty());
    assert_eq!(world.messages, before, "nobody was asked again at once");
    world.hold(2, &keys);
    world.run_for(NOBODY_LIFE + Duration::from_millis(1));
    assert_eq!(world.search(1, &keys).0.len(), 1);
}

#[test]
fn a_provider_that_was_gone_is_left_out_for_a_while() {
    let mut world = World::new(30);
    let keys = items(1);
    world.hold(2, &keys);
    world.hold(3, &keys);
    world.run_for(Duration::from_secs(2));
    world.nodes[1].discovery.handle_provider_gone(NodeId(2), world.now);
    let (found, _) = world.search(1, &keys);
    assert_eq!(found[&keys[0]], BTreeSet::from([3]));
    world.nodes[1].discovery.handle_provider_there(NodeId(2));
    let (found, _) = world.search(1, &keys);
    assert_eq!(found[&keys[0]], BTreeSet::from([2, 3]));
}

#[test]
fn whoever_crowds_around_a_meeting_point_does_not_hide_it() {
    let mut world = World::new(1000);
    let bucket = Bucket::all().next().expect("there are some");
    let keys: Vec<_> = (0..20).map(|n| key(0, n)).collect();
    // 45 nodes nearer than anybody honest, known to all, that answer and know nothing.
    let sybils = (0..45_u64).map(|n| Contact {
        node: NodeId(1000 + n),
        position: Position(bucket.position().0 ^ (n + 1)),
        network: Some(5000 + n),
    });
    let sybils: Vec<_> = sybils.collect();
    for sybil in sybils.iter().copied() {
        let discovery = Discovery::new(
            DiscoveryConfig { seed: 0, max_contacts: 10, explores: false },
            Time::default(),
        );
        let providers = Providers::new(ProviderLimits::default());
        let (dead, lies, received) = (false, true, 0);
        world.nodes.push(Node { discovery, providers, contact: sybil, dead, lies, received });
    }
    for number in 0..1000 {
        for sybil in &sybils {
            world.nodes[number].discovery.handle_contact(*sybil);
        }
    }
    world.hold(8, &keys);
    // From other meeting points it is known how dense the network is.
    world.hold(8, &items(640)[10..]);
    world.run_for(Duration::from_secs(20));
    let mut found = 0;
    for asker in 100..120 {
        world.search(asker, &items(64)[1..20]);
        found += world.search(asker, &keys).0.len();
    }
    assert!(found >= 380, "{found} of 400");
}
