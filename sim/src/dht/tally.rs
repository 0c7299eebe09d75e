//! What is counted in a run, and what it comes to.

use super::setup::Demands;
use crate::agenda::{MILLI, Nanos};
use narswarm_protocol::announce::Message;
use narswarm_protocol::limits::MAX_PROVIDER_RECORDS;
use serde::Serialize;

/// Parts into which the measured time is divided, for drawings.
pub const PARTS: usize = 48;

/// Counts.
#[derive(Debug, Default)]
pub struct Tally {
    /// Events.
    pub events: u64,
    /// Messages of discovery by kind: look, announce, withdraw, find; while measured.
    pub letters: [u64; 4],
    /// How long each search took that found a live holder.
    pub took: Vec<u32>,
    /// Searches for what somebody there held.
    pub possible: u64,
    /// Of these, those that found it.
    pub found: u64,
    /// Searches for what nobody there held.
    pub impossible: u64,
    /// Those that were possible and those that found it, in each part of the measured time.
    pub parts: Vec<[u64; 2]>,
    /// Octets that an oracle would have got from peers, and those that were got.
    pub octets: [u64; 2],
    /// Holders asked.
    pub dialled: u64,
    /// Of these, those that weren't there or didn't hold it.
    pub stale: u64,
    /// Of these, those asked for what nobody there held.
    pub stale_hopeless: u64,
    /// Providers probed by keepers.
    pub probes: u64,
    /// Records that one keeper had at most.
    pub most_kept: u64,
    /// Searches open after their deadline, at the end.
    pub overdue: u64,
    /// Things made that nobody had before.
    pub novelties: u32,
    /// Octets a second of each node that was there throughout.
    pub rates: Vec<f64>,
    /// Nodes there at the end.
    pub online: u64,
    /// Of these, those that answer questions.
    pub serving: u64,
    /// Questions of Kademlia.
    pub questions: u64,
    /// Connections.
    pub connections: u64,
    /// Connections before the measurement.
    pub connections_at_begin: u64,
    /// Nodes that keep something, and records kept by all.
    pub keepers: u64,
    /// Records kept by all.
    pub kept: u64,
    /// Messages of each node at the end and at the beginning of the measurement.
    pub messages: Vec<u32>,
    /// The latter.
    pub messages_at_begin: Vec<u32>,
}

impl Tally {
    /// Counts a message of discovery.
    pub fn letter(&mut self, message: &Message, measuring: bool) {
        let kind = match message {
            Message::Look => 0,
            Message::Announce { .. } => 1,
            Message::Withdraw { .. } => 2,
            Message::Find { .. } => 3,
        };
        self.letters[kind] += u64::from(measuring);
    }

    /// Messages of each node a day, when so many days were measured.
    #[must_use]
    pub fn messages_a_day(&self, days: f64) -> Vec<f64> {
        let both = self.messages.iter().zip(&self.messages_at_begin);
        both.map(|(after, before)| f64::from(after - before) / days).collect()
    }

    /// Counts a search that is over.
    ///
    /// `part` is the part of the measured time in which it has ended, counted from zero.
    pub fn quest(&mut self, possible: bool, found: bool, took: Nanos, size: u64, part: usize) {
        if found {
            self.took.push((took / (MILLI / 10)) as u32);
            self.octets[1] += size;
        }
        // What nobody had when it began, and somebody did a moment later, was possible too.
        if possible || found {
            self.possible += 1;
            self.found += u64::from(found);
            self.parts.resize(PARTS, [0; 2]);
            let [possible, successes] = &mut self.parts[part.min(PARTS - 1)];
            (*possible, *successes) = (*possible + 1, *successes + u64::from(found));
            self.octets[0] += size;
        } else {
            self.impossible += 1;
        }
    }
}

/// What a run comes to.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Outcome {
    /// Nodes, and those there and serving at the end.
    pub nodes: u32,
    /// Nodes there at the end.
    pub online: u64,
    /// Of these, those that answer questions.
    pub serving: u64,
    /// Searches for what somebody there held.
    pub searches: u64,
    /// Part of these that found it.
    pub success: f64,
    /// Octets got from peers ÷ what an oracle would get.
    pub offload: f64,
    /// Milliseconds until a holder had answered: median.
    pub p50_ms: f64,
    /// Ninth decile.
    pub p90_ms: f64,
    /// Ninety-ninth percentile.
    pub p99_ms: f64,
    /// Holders dialled in vain for each that was found.
    pub stale: f64,
    /// The part of these that were dialled for what nobody there held.
    pub stale_hopeless: f64,
    /// Messages sent or answered by a node a day: median, Kademlia's included.
    pub messages_a_day: f64,
    /// The same of the node that has most.
    pub most_messages_a_day: f64,
    /// Messages of discovery that a node sends a day: look, announce, withdraw, find.
    pub letters_a_day: [f64; 4],
    /// Octets a second of a node that was there throughout: median.
    pub octets_a_second: f64,
    /// The same of the ninth decile.
    pub octets_a_second_p90: f64,
    /// Connections made by a node an hour.
    pub connections_an_hour: f64,
    /// Nodes that keep something.
    pub keepers: u64,
    /// Records kept by all, and by one at most.
    pub records: u64,
    /// Records kept by one at most.
    pub most_records: u64,
    /// Events.
    pub events: u64,
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    sorted.get(sorted.len().saturating_sub(1) * percent / 100).copied().unwrap_or(0.0)
}

fn part(of: u64, whole: u64) -> f64 {
    if whole == 0 { 1.0 } else { of as f64 / whole as f64 }
}

impl Outcome {
    /// What a tally comes to, of a run with so many nodes, measured for so many days.
    #[must_use]
    pub fn of(tally: &Tally, nodes: u32, days: f64) -> Self {
        let mut took: Vec<f64> =
            tally.took.iter().map(|&tenths| f64::from(tenths) / 10.0).collect();
        took.sort_by(f64::total_cmp);
        let mut rates = tally.rates.clone();
        rates.sort_by(f64::total_cmp);
        let mut messages = tally.messages_a_day(days);
        messages.sort_by(f64::total_cmp);
        let each = f64::from(nodes) * days;
        let made = tally.connections - tally.connections_at_begin;
        Self {
            nodes,
            online: tally.online,
            serving: tally.serving,
            searches: tally.possible,
            success: part(tally.found, tally.possible),
            offload: part(tally.octets[1], tally.octets[0]),
            p50_ms: percentile(&took, 50),
            p90_ms: percentile(&took, 90),
            p99_ms: percentile(&took, 99),
            stale: tally.stale as f64 / tally.found.max(1) as f64,
            stale_hopeless: tally.stale_hopeless as f64 / tally.found.max(1) as f64,
            messages_a_day: percentile(&messages, 50),
            most_messages_a_day: percentile(&messages, 100),
            letters_a_day: tally.letters.map(|letters| letters as f64 / each),
            octets_a_second: percentile(&rates, 50),
            octets_a_second_p90: percentile(&rates, 90),
            connections_an_hour: made as f64 / each / 24.0,
            keepers: tally.keepers,
            records: tally.kept,
            most_records: tally.most_kept,
            events: tally.events,
        }
    }

    /// What is not as it must be: the invariants, and what the scenario demands.
    #[must_use]
    pub fn violations(&self, tally: &Tally, demands: &Demands) -> Vec<String> {
        let mut wrong = Vec::new();
        if tally.overdue > 0 {
            wrong.push(format!("{} searches went on after their deadline", tally.overdue));
        }
        if self.most_records > MAX_PROVIDER_RECORDS as u64 {
            wrong.push(format!("a keeper had {} records", self.most_records));
        }
        let thousandths = |value: f64| value * 1000.0;
        let at_least = [
            ("of a thousand searches succeeded", demands.success, thousandths(self.success)),
            ("thousandths were got from peers", demands.offload, thousandths(self.offload)),
        ];
        for (what, demand, is) in at_least {
            if let Some(least) = demand.filter(|&least| is < f64::from(least)) {
                wrong.push(format!("{is:.1} {what}, {least} are demanded"));
            }
        }
        let at_most = [
            ("ms at the median", demands.p50_ms, self.p50_ms),
            ("ms at the 99th percentile", demands.p99_ms, self.p99_ms),
            ("stale dials for a thousand found", demands.stale, thousandths(self.stale)),
            ("messages of a node a day", demands.messages_a_day, self.messages_a_day),
            ("octets a second", demands.idle_octets, self.octets_a_second),
        ];
        for (what, demand, is) in at_most {
            if let Some(most) = demand.filter(|&most| is > f64::from(most)) {
                wrong.push(format!("{is:.1} {what}, {most} is the bound"));
            }
        }
        wrong
    }
}
