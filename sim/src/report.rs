//! What came of a run: how long it took against the shortest it could have taken, and where the
//! octets came from.

use crate::agenda::{Nanos, seconds};
use crate::ledger::{Account, durations};
use crate::plan::{Plan, Role};
use crate::world::{Ended, World};
use serde::Serialize;

/// The outcome of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Fetches that were begun.
    pub fetches: usize,
    /// Those that ended well.
    pub done: usize,
    /// Those that ended without the nar.
    pub failed: usize,
    /// Seconds that the slowest must take at least, by the capacities of all links.
    pub lower_bound_s: f64,
    /// Seconds that the slowest took.
    pub last_s: f64,
    /// `last_s` divided by `lower_bound_s`.
    pub ratio: f64,
    /// Seconds that they took on average.
    pub mean_s: f64,
    /// Seconds that the reader waited longest for its first octet.
    pub first_octet_s: f64,
    /// Seconds until the slowest reader had been given half of the nar.
    pub half_read_s: f64,
    /// What the seeds sent, in nars.
    pub seed_egress: f64,
    /// Octets that came though they were held, of all that came from peers.
    pub duplicates: f64,
    /// Octets that were of no use for another reason, of all that came from peers.
    pub waste: f64,
    /// Octets of the nar that came from upstream.
    pub from_upstream: f64,
    /// Octets of upstream that came though they were held, in nars.
    pub upstream_overlap: f64,
    /// Peers that were banned for something.
    pub bans: u32,
    /// Of those, the ones that were honest.
    pub unjust_bans: u32,
    /// Attempts after the first.
    pub retries: u32,
    /// Pieces given to readers that were wrong.
    pub wrong_delivered: u64,
    /// Simulated seconds.
    pub end_s: f64,
    /// Events that it took.
    pub work: u64,
    /// BLAKE3 over the trace.
    pub trace: String,
}

impl Report {
    /// The outcome of a run that is over.
    #[must_use]
    pub fn of(world: &World) -> Self {
        let (plan, ledger) = (&world.plan, &world.ledger);
        let took = durations(ledger);
        let last = took.last().copied().unwrap_or(0);
        let sum = |of: fn(&Account) -> u64| -> u64 { ledger.fetches().map(of).sum() };
        let ended = |well: bool| {
            let ends = ledger.fetches().filter_map(|a| a.ended.as_ref());
            ends.filter(|(_, ended)| (*ended == Ended::Done) == well).count()
        };
        let (peers, upstream) = (sum(|a| a.from_peers), sum(|a| a.from_upstream));
        let (twice, useless) = (sum(|a| a.duplicate), sum(|a| a.useless));
        let came = (peers + twice + useless).max(1) as f64;
        let nar = plan.nar_bytes.max(1) as f64;
        let seeds = (0..).zip(&plan.hosts).filter(|(_, host)| host.role == Role::Seed);
        let egress: u64 = seeds.map(|(index, _)| world.sent_by(index)).sum();
        let bound = lower_bound(plan);
        let longest = |until: fn(&Account) -> Option<Nanos>| {
            let waits = ledger.fetches().filter_map(|a| Some(until(a)? - a.started?));
            seconds(waits.max().unwrap_or(0))
        };
        Self {
            fetches: ledger.fetches().count(),
            done: ended(true),
            failed: ended(false),
            lower_bound_s: bound,
            last_s: seconds(last),
            ratio: seconds(last) / bound,
            mean_s: took.iter().copied().map(seconds).fold(0.0, |sum, took| sum + took)
                / took.len().max(1) as f64,
            first_octet_s: longest(|account| account.first_octet),
            half_read_s: longest(|account| account.half_read),
            seed_egress: egress as f64 / nar,
            duplicates: twice as f64 / came,
            waste: useless as f64 / came,
            from_upstream: upstream as f64 / ((peers + upstream).max(1) as f64),
            upstream_overlap: sum(|a| a.upstream_overlap) as f64 / nar,
            bans: ledger.bans,
            unjust_bans: ledger.unjust_bans,
            retries: ledger.fetches().map(|a| a.retries).sum(),
            wrong_delivered: sum(|a| a.delivered_wrong),
            end_s: seconds(world.now()),
            work: world.work(),
            trace: world.trace.digest(),
        }
    }

    /// The table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let percent = |part: f64| format!("{:.1} %", part * 100.0);
        let rows = [
            ("fetches", format!("{}: {} done, {} failed", self.fetches, self.done, self.failed)),
            ("lower bound", format!("{:.3} s", self.lower_bound_s)),
            ("last finisher", format!("{:.3} s", self.last_s)),
            ("ratio", format!("{:.3}", self.ratio)),
            ("mean", format!("{:.3} s", self.mean_s)),
            ("first octet", format!("{:.3} s", self.first_octet_s)),
            ("half read", format!("{:.3} s", self.half_read_s)),
            ("seed egress", format!("{:.2} × nar", self.seed_egress)),
            ("duplicates", percent(self.duplicates)),
            ("waste", percent(self.waste)),
            ("from upstream", percent(self.from_upstream)),
            ("upstream overlap", format!("{:.2} × nar", self.upstream_overlap)),
            ("bans", format!("{}, {} of them honest", self.bans, self.unjust_bans)),
            ("retries", self.retries.to_string()),
            ("wrong pieces read", self.wrong_delivered.to_string()),
            ("simulated", format!("{:.3} s in {} events", self.end_s, self.work)),
            ("trace", self.trace.clone()),
        ];
        rows.map(|(name, value)| format!("{name:<18} {value}\n")).concat()
    }
}

/// Seconds that the slowest fetch must take at least: what the givers can send once, what the
/// slowest can take, and what all together can send.
fn lower_bound(plan: &Plan) -> f64 {
    let nar = plan.nar_bytes as f64;
    let honest = || plan.hosts.iter().filter(|host| host.nature.is_honest());
    let of_seeds: u64 =
        honest().filter(|host| host.role == Role::Seed).map(|host| host.link.up).sum();
    let first = of_seeds + plan.upstream.map_or(0, |upstream| upstream.rate);
    let leeches = || plan.hosts.iter().filter(|host| host.role != Role::Seed);
    let of_leeches: u64 = leeches().map(|host| host.link.up).sum();
    let slowest = leeches().map(|host| host.link.down).min().unwrap_or(u64::MAX);
    let count = leeches().count() as f64;
    // The rate at which the nar can enter the swarm at all may be nothing; then there is no bound.
    let once = if first == 0 { 0.0 } else { nar / first as f64 };
    let all = count * nar / ((first + of_leeches).max(1) as f64);
    once.max(nar / slowest as f64).max(all).max(1e-9)
}

/// A curve: seconds, and what has been reached by then.
pub type Curve = Vec<(f64, f64)>;

/// Fractions of all pieces held, and of fetches done, over time: the points where they change.
#[must_use]
pub fn curves(world: &World) -> (Curve, Curve) {
    let mut steps: Vec<(Nanos, i64)> = Vec::new();
    let mut ends: Vec<Nanos> = Vec::new();
    for account in world.ledger.fetches() {
        let mut held = 0;
        for &(at, pieces) in &account.curve {
            steps.push((at, i64::from(pieces) - held));
            held = pieces.into();
        }
        ends.extend(account.ended.iter().filter(|(_, e)| *e == Ended::Done).map(|(at, _)| at));
    }
    steps.sort_unstable();
    ends.sort_unstable();
    let fetches = world.ledger.fetches().count().max(1) as f64;
    let all = fetches * f64::from(world.content.layout().piece_count().max(1));
    let mut sum = 0;
    let held = steps.into_iter().map(|(at, step)| {
        sum += step;
        (seconds(at), sum as f64 / all)
    });
    let held = held.collect();
    let done = (1..).zip(ends).map(|(count, at)| (seconds(at), f64::from(count) / fetches));
    (held, done.collect())
}
