//! How the network comes to be, who comes and goes, what befalls at the beginning of the
//! measurement, and what is put down at the end.

use super::{Node, Swarm};
use crate::agenda::{MILLI, Nanos, SECOND, time};
use crate::dht::asleep::Asleep;
use crate::dht::event::Event;
use crate::dht::links::{Nat, Nature};
use crate::dht::population::Habit;
use crate::dht::setup::{Befalls, HOUR, Setup, Wants};
use crate::dht::table::{NodeId, Position};
use narswarm_protocol::announce::providers::{ProviderLimits, Providers};
use narswarm_protocol::announce::{Bucket, Discovery, DiscoveryConfig};
use std::time::Duration;

/// How many of a hundred sessions end in order; the others with the machine or its line.
const IN_ORDER_PERCENT: u64 = 80;

/// Networks over which one operator spreads its nodes.
const SYBIL_NETWORKS: u64 = 3;

/// How far apart searches are, and novelties.
const BETWEEN_SEARCHES: Nanos = 50 * MILLI;
const BETWEEN_NOVELTIES: Nanos = 500 * MILLI;

/// Sessions begin within so long.
const SESSIONS_BEGIN: Nanos = 300 * SECOND;

/// The bucket that one operator crowds around.
pub(super) const CROWDED: u8 = 0;

/// Puts the last nodes around one bucket.
pub(super) fn crowd(setup: &Setup, positions: &mut [Position], networks: &mut [u64]) {
    let Some(bucket) = Bucket::new(CROWDED) else { return };
    let count = positions.len();
    for (number, at) in (count - (setup.sybils as usize).min(count)..count).enumerate() {
        // Nearer than anybody else, and each a little farther than the one before.
        positions[at] = bucket.position().0 ^ (number as u64 + 1);
        networks[at] = u64::MAX - number as u64 % SYBIL_NETWORKS;
    }
}

impl Swarm {
    /// Draws what the nodes are and have, and when they come.
    pub(super) fn populate(&mut self) {
        let setup = self.setup;
        let entry = self.kad.settings.bootstrap;
        let sybils = setup.nodes - setup.sybils..setup.nodes;
        let mut bad: Vec<NodeId> = (entry + 1..sybils.start).collect();
        self.chance.shuffle(&mut bad);
        bad.truncate((setup.nodes * setup.byzantine_percent / 100) as usize);
        let (silent, lying) = bad.split_at(bad.len() / 2);
        for &node in silent {
            self.kad.links.nature[node as usize] = Nature::Silent;
        }
        self.kad.corrupt(lying.iter().copied().chain(sybils.clone()));
        for node in 0..setup.nodes {
            let at = node as usize;
            let fixed = node <= entry || !self.honest(node);
            if !fixed {
                let percent = u64::from(setup.nat_percent);
                self.kad.links.nat[at] = Nat::draw(percent, &mut self.chance);
            }
            let habit =
                if setup.churn && !fixed { Habit::draw(&mut self.chance) } else { Habit::Fixed };
            self.nodes[at].habit = habit;
            self.nodes[at].zone = self.chance.between(0, 23) as u8;
            self.kad.links.part[at] = (node % 2) as u8;
            if self.honest(node) {
                for _ in 0..setup.held {
                    let item = self.catalogue.draw(&mut self.workload);
                    self.hold(node, item);
                }
            }
            let late = node > entry && habit != Habit::Fixed && self.chance.percent(50);
            let when = if node < entry {
                0
            } else if late {
                // Half of those who come and go are away at the beginning.
                habit.absence(self.nodes[at].zone.into(), &mut self.chance)
            } else {
                self.chance.between(SECOND, setup.arrival)
            };
            self.agenda.at(when, Event::Come { node });
        }
        if setup.settled {
            self.lore = self.lore();
            self.keep_the_past();
        }
        self.agenda.at(setup.warm_up, Event::Begin);
    }

    pub(super) fn come(&mut self, node: NodeId) {
        let now = self.agenda.now();
        self.kad.join(node, &mut self.agenda);
        let config = DiscoveryConfig {
            seed: self.seed ^ (u64::from(node) << 20),
            max_contacts: self.setup.contacts as usize,
            explores: true,
        };
        let mut discovery = Box::new(Discovery::new(config, time(now)));
        let wall = self.wall();
        let (announced, away) = match self.nodes[node as usize].asleep.take() {
            Some(asleep) => {
                let kept = Providers::from_snapshot(asleep.kept(), ProviderLimits::default(), wall);
                // It keeps nothing: what it wrote down is nothing that can be read.
                self.nodes[node as usize].providers = kept.ok().map(Box::new);
                asleep.wake(now)
            }
            None => (self.past(node), Duration::from_nanos(now)),
        };
        for near in announced.buckets.iter().flat_map(|bucket| &bucket.near) {
            discovery.handle_contact(self.contact(near.0 as NodeId));
        }
        discovery.restore(&announced, away, time(now));
        let Node { items, habit, .. } = &self.nodes[node as usize];
        for &item in items.iter() {
            discovery.handle_held(self.catalogue.key(item), 0, time(now));
        }
        let session = habit.session(&mut self.chance);
        let this = &mut self.nodes[node as usize];
        this.session += 1;
        this.discovery = Some(discovery);
        if let Some(session) = session {
            self.agenda.after(session, Event::Go { node });
        }
        if let Wants::Daily(daily) | Wants::Waves { daily, .. } = self.setup.wants
            && this.session == 1
            && daily > 0
        {
            let mean = 24 * HOUR / u64::from(daily);
            let first = self.workload.between(0, mean) + self.setup.arrival;
            self.agenda.after(first, Event::Want { node });
        }
        self.poll(node);
    }

    pub(super) fn go(&mut self, node: NodeId) {
        if !self.kad.links.online[node as usize] {
            return;
        }
        let now = self.agenda.now();
        let in_order = self.chance.percent(IN_ORDER_PERCENT);
        self.drop_out(node, in_order);
        let this = &self.nodes[node as usize];
        let hour = (now / HOUR + u64::from(this.zone)) % 24;
        let away = this.habit.absence(hour, &mut self.chance);
        self.agenda.after(away, Event::Come { node });
    }

    fn drop_out(&mut self, node: NodeId, in_order: bool) {
        let now = self.agenda.now();
        self.kad.leave(node, in_order);
        let wall = self.wall();
        let this = &mut self.nodes[node as usize];
        if let Some(discovery) = this.discovery.take() {
            let kept = this.providers.take().map(|providers| providers.snapshot(wall));
            let announced = discovery.announced(time(now));
            this.asleep = Some(Asleep::new(announced, kept.unwrap_or_default(), now));
        }
        this.poll_at = Nanos::MAX;
        this.session += 1;
    }

    /// The measurement begins.
    pub(super) fn begin(&mut self) {
        let now = self.agenda.now();
        self.measuring = true;
        self.octets_at_begin.clone_from(&self.kad.links.octets);
        self.tally.messages_at_begin.clone_from(&self.kad.messages);
        self.tally.connections_at_begin = self.kad.links.connections;
        let entry = self.kad.settings.bootstrap;
        match self.setup.befalls {
            Befalls::Nothing => {}
            Befalls::Deaths(percent) => {
                let mut all: Vec<NodeId> = (entry + 1..self.setup.nodes).collect();
                self.chance.shuffle(&mut all);
                all.truncate((self.setup.nodes * percent / 100) as usize);
                all.into_iter().for_each(|node| self.drop_out(node, false));
            }
            Befalls::EntryDies => (0..entry).for_each(|node| self.drop_out(node, false)),
            Befalls::Division(length) => {
                self.kad.links.divided = true;
                self.agenda.after(length, Event::Heal);
            }
        }
        match self.setup.wants {
            Wants::Searches(count) => {
                for number in 0..u64::from(count) {
                    let node = self.workload.between(entry.into(), self.setup.nodes as u64 - 1);
                    let at = now + BETWEEN_SEARCHES * number;
                    self.agenda.at(at, Event::Want { node: node as NodeId });
                }
            }
            Wants::Sessions { seekers, searches } => {
                let mut all: Vec<NodeId> = (entry + 1..self.setup.nodes).collect();
                self.workload.shuffle(&mut all);
                for node in all.into_iter().take(seekers as usize) {
                    let mut at = now + self.workload.between(0, SESSIONS_BEGIN);
                    for _ in 0..searches {
                        self.agenda.at(at, Event::Want { node });
                        at += self.workload.between(SECOND, 3 * SECOND);
                    }
                }
            }
            Wants::Novelties(count) => {
                for number in 0..u64::from(count) {
                    self.agenda.at(now + BETWEEN_NOVELTIES * number, Event::Novelty);
                }
            }
            Wants::Waves { .. } => self.wave(0),
            Wants::Crowd => self.crowd(),
            Wants::Daily(_) | Wants::Nothing => {}
        }
    }

    /// Puts down what is known only at the end.
    pub(super) fn close(&mut self) {
        let now = self.agenda.now();
        let open = self.quests.iter().filter(|quest| quest.open);
        let patience = super::wanting::PATIENCE;
        self.tally.overdue = open.filter(|quest| now > quest.began + patience).count() as u64;
        let seconds = self.setup.measured as f64 / SECOND as f64;
        let mut rates = Vec::new();
        for node in 0..self.setup.nodes as usize {
            if self.nodes[node].session == 1 && self.kad.links.online[node] {
                let octets = self.kad.links.octets[node] - self.octets_at_begin[node];
                rates.push(octets as f64 / seconds);
            }
        }
        self.tally.rates = rates;
        self.tally.online = self.kad.links.online.iter().filter(|online| **online).count() as u64;
        self.tally.serving = self.serving() as u64;
        self.tally.questions = self.kad.questions;
        self.tally.connections = self.kad.links.connections;
        let kept = self.nodes.iter().filter_map(|node| node.providers.as_ref());
        let sizes: Vec<u64> = kept.map(|providers| providers.len() as u64).collect();
        self.tally.keepers = sizes.iter().filter(|size| **size > 0).count() as u64;
        self.tally.kept = sizes.iter().sum();
        self.tally.messages = self.kad.messages.clone();
    }
}
