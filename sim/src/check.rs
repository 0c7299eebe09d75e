//! What must hold of every run, whatever befalls it. The first violation ends the run.
//!
//! The checker keeps books of its own, from what passes between each machine and its driver, and
//! believes neither. [`Rule`] lists what it checks.

use crate::agenda::{Nanos, seconds};
use crate::ledger::whole_seconds;
use crate::message::SessionId;
use crate::network::HostId;
use crate::plan::{Demands, Plan};
use crate::world::Ended;
use narswarm_protocol::fetch::SourceId;
use narswarm_protocol::limits;
use narswarm_protocol::piece::PieceLayout;
use narswarm_protocol::piece_set::PieceSet;
use std::collections::{BTreeMap, BTreeSet};

/// Timeouts of one fetch that are always fine, besides some for each second and piece.
const FREE_TIMEOUTS: u64 = 100;
/// Timeouts a second: ten deadlines of its own, and some for each of its sources.
const TIMEOUTS_A_SECOND: u64 = 50;
/// Timeouts a piece.
const TIMEOUTS_A_PIECE: u64 = 4;

/// What is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub enum Rule {
    /// A fetch that says it is done holds the true nar.
    DoneIsTrue,
    /// Nothing wrong is given to the reader where honest holders agree, and never the last piece
    /// before the verdict.
    Delivery,
    /// Every fetch ends before the deadline.
    Ends,
    /// Every fetch ends well that could.
    EndsWell,
    /// No more is outstanding than one source, or one fetch, may owe.
    Window,
    /// A piece isn't asked of a source that owes it already.
    AskedOnce,
    /// Pieces are asked only of sources that were opened and not dropped.
    AskedOfSource,
    /// Pieces are asked only of sources that have them.
    Available,
    /// Nothing is asked for beyond the horizon.
    Horizon,
    /// Machine and driver agree on what is held, and nothing is forgotten but by `Discard`.
    Held,
    /// The machine's own books agree with each other.
    Books,
    /// A fetch doesn't stand still while somebody could give it something.
    Gap,
    /// Upstream is started and stopped in turn, and tried again only so often.
    Upstream,
    /// Timers don't run wild.
    Quiet,
    /// The last finisher isn't too late, by the scenario's demand.
    Ratio,
    /// The last finisher isn't too late, by the clock.
    Late,
    /// No reader waits too long for the first octet.
    FirstOctet,
    /// Readers can follow while a crowd fetches.
    HalfRead,
    /// Seeds don't send much more than the nar once.
    Egress,
    /// Not too much comes twice, by the scenario's demand.
    Duplicates,
    /// Not too much comes for nothing, by the scenario's demand.
    Waste,
}

/// What was wrong, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which rule was broken.
    pub rule: Rule,
    /// When.
    pub at: Nanos,
    /// How.
    pub reason: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} after {:.3} s: {}", self.rule, seconds(self.at), self.reason)
    }
}

impl std::error::Error for Violation {}

/// One conversation, as it passed.
#[derive(Debug)]
struct Talk {
    open: bool,
    opened: bool,
    has: PieceSet,
    /// Asked and not come, taken back or refused.
    owes: BTreeSet<u32>,
    /// The network of an honest holder of the whole nar who has shown the true list.
    witness: Option<u64>,
}

/// One attempt, as it passed.
#[derive(Debug, Default)]
struct Watch {
    talks: BTreeMap<SessionId, Talk>,
    opened_sources: BTreeSet<SourceId>,
    owed: usize,
    horizon: Option<u32>,
    upstream_runs: bool,
    upstream_failures: u32,
    timeouts: u64,
    gains: u64,
    started: Nanos,
    last_octet: Nanos,
    running: bool,
}

/// The books of a run.
#[derive(Debug)]
pub struct Checker {
    demands: Demands,
    pieces: u32,
    most_per_source: usize,
    most_in_all: usize,
    watches: Vec<Watch>,
    now: Nanos,
    violation: Option<Violation>,
}

impl Checker {
    /// Books for the hosts of a plan.
    #[must_use]
    pub fn new(plan: &Plan, layout: PieceLayout) -> Self {
        let fit = |bytes: u64| (bytes / layout.piece_size()).max(2) as usize;
        let most_per_source =
            fit(limits::MAX_WINDOW_BYTES).max(limits::FIRST_WINDOW_PIECES as usize);
        Self {
            demands: plan.demands.clone(),
            pieces: layout.piece_count(),
            most_per_source,
            // Whoever has nothing to do may always be asked for one, beyond the limit.
            most_in_all: fit(limits::MAX_IN_FLIGHT_BYTES) + limits::MAX_SOURCES,
            watches: plan.hosts.iter().map(|_| Watch::default()).collect(),
            now: 0,
            violation: None,
        }
    }

    /// The first thing that was wrong, if something was.
    #[must_use]
    pub fn violation(&mut self) -> Option<Violation> {
        self.violation.take()
    }

    /// Notes the time, for what is found until the next note.
    pub fn at(&mut self, now: Nanos) {
        self.now = now;
    }

    /// Notes a violation; the first one counts.
    pub fn broken(&mut self, rule: Rule, reason: String) {
        let at = self.now;
        self.violation.get_or_insert(Violation { rule, at, reason });
    }

    fn watch(&mut self, host: HostId) -> &mut Watch {
        &mut self.watches[host.0 as usize]
    }

    /// An attempt begins.
    pub fn handle_start(&mut self, host: HostId, now: Nanos) {
        *self.watch(host) =
            Watch { started: now, last_octet: now, running: true, ..Watch::default() };
    }

    /// An attempt is over, without a verdict on the fetch.
    pub fn handle_end_of_attempt(&mut self, host: HostId) {
        self.watch(host).running = false;
    }

    /// A source is opened, and pieces asked of it at once.
    pub fn handle_open(
        &mut self,
        host: HostId,
        source: SourceId,
        id: SessionId,
        first: u32,
        count: u32,
    ) {
        let pieces = self.pieces;
        if !self.watch(host).opened_sources.insert(source) {
            self.broken(Rule::AskedOfSource, format!("{host} opens {source:?} twice"));
        }
        let talk = Talk {
            open: true,
            opened: false,
            has: PieceSet::none(pieces),
            owes: BTreeSet::new(),
            witness: None,
        };
        self.watch(host).talks.insert(id, talk);
        if count > 0 {
            self.handle_request(host, source, Some(id), first, count);
        }
    }

    /// A source is opened that is unknown, or open.
    pub fn handle_odd_open(&mut self, host: HostId, source: SourceId) {
        self.broken(Rule::AskedOfSource, format!("{host} opens {source:?}, unknown or open"));
    }

    /// Pieces are asked of a source.
    pub fn handle_request(
        &mut self,
        host: HostId,
        source: SourceId,
        id: Option<SessionId>,
        first: u32,
        count: u32,
    ) {
        let pieces = self.pieces;
        let what = format!("{host} asks {source:?} for {count} from {first}");
        let watch = &mut self.watches[host.0 as usize];
        let Some(talk) = id.and_then(|id| watch.talks.get_mut(&id)).filter(|talk| talk.open) else {
            return self.broken(Rule::AskedOfSource, format!("{what}, dropped or never opened"));
        };
        let mut wrong = None;
        for index in first..first.saturating_add(count) {
            let has = if talk.opened { talk.has.contains(index) } else { index < pieces };
            if !has {
                wrong = Some((Rule::Available, format!("{what}, which has no piece {index}")));
            } else if !talk.owes.insert(index) {
                wrong = Some((Rule::AskedOnce, format!("{what}, which owes {index} already")));
            } else if watch.horizon.is_some_and(|horizon| index >= horizon) {
                wrong = Some((Rule::Horizon, format!("{what}, beyond {:?}", watch.horizon)));
            } else {
                watch.owed += 1;
            }
        }
        let (owes, owed) = (talk.owes.len(), watch.owed);
        if let Some((rule, reason)) = wrong {
            self.broken(rule, reason);
        } else if owes > self.most_per_source || owed > self.most_in_all {
            let reason = format!("{what}: {owes} of it and {owed} of all are outstanding");
            self.broken(Rule::Window, reason);
        }
    }

    fn settle(&mut self, host: HostId, id: SessionId, index: u32) {
        let watch = self.watch(host);
        if watch.talks.get_mut(&id).is_some_and(|talk| talk.owes.remove(&index)) {
            watch.owed -= 1;
        }
    }

    /// Pieces are taken back.
    pub fn handle_cancel(&mut self, host: HostId, id: Option<SessionId>, first: u32, count: u32) {
        let Some(id) = id else { return };
        for index in first..first.saturating_add(count) {
            self.settle(host, id, index);
        }
    }

    /// A conversation is over.
    pub fn handle_closed(&mut self, host: HostId, id: SessionId) {
        let watch = self.watch(host);
        if let Some(talk) = watch.talks.get_mut(&id) {
            talk.open = false;
            watch.owed -= std::mem::take(&mut talk.owes).len();
        }
    }

    /// A source has shown what it has.
    pub fn handle_opened(&mut self, host: HostId, id: SessionId, held: &PieceSet) {
        if let Some(talk) = self.watch(host).talks.get_mut(&id) {
            talk.opened = true;
            talk.has = held.clone();
        }
    }

    /// An honest holder of the whole nar has shown the true list.
    pub fn handle_witness(&mut self, host: HostId, id: SessionId, network: u64) {
        if let Some(talk) = self.watch(host).talks.get_mut(&id) {
            talk.witness = Some(network);
        }
    }

    /// Networks in which somebody who is honest and still there has shown the true list.
    fn witnesses(&self, host: HostId) -> usize {
        let talks = self.watches[host.0 as usize].talks.values().filter(|talk| talk.open);
        talks.filter_map(|talk| talk.witness).collect::<BTreeSet<u64>>().len()
    }

    /// A source has more.
    pub fn handle_have(&mut self, host: HostId, id: SessionId, ranges: &[(u32, u32)]) {
        if let Some(talk) = self.watch(host).talks.get_mut(&id) {
            for index in ranges.iter().flat_map(|&(first, count)| first..first + count) {
                talk.has.insert(index);
            }
        }
    }

    /// A source doesn't have a piece.
    pub fn handle_missing(&mut self, host: HostId, id: SessionId, index: u32) {
        if let Some(talk) = self.watch(host).talks.get_mut(&id) {
            talk.has.remove(index);
        }
        self.settle(host, id, index);
    }

    /// A piece has come, good or bad.
    pub fn handle_piece(&mut self, host: HostId, id: SessionId, index: u32) {
        self.settle(host, id, index);
    }

    /// A piece was taken.
    pub fn handle_gain(&mut self, host: HostId, now: Nanos) {
        let watch = self.watch(host);
        watch.gains += 1;
        watch.last_octet = now;
    }

    /// Octets have come from somebody.
    pub fn handle_octets(&mut self, host: HostId, now: Nanos) {
        self.watch(host).last_octet = now;
    }

    /// A piece is forgotten on purpose.
    pub fn handle_discard(&mut self, host: HostId, index: u32) {
        if index >= self.pieces {
            self.broken(Rule::Held, format!("{host} discards {index}, which doesn't exist"));
        }
    }

    /// What machine and driver say is held.
    pub fn handle_held(&mut self, host: HostId, machine: &PieceSet, driver: &PieceSet) {
        if machine != driver {
            let (more, less) = (machine.ranges_beyond(driver), driver.ranges_beyond(machine));
            let reason =
                format!("{host}: only the machine holds {more:?}, only the driver {less:?}");
            self.broken(Rule::Held, reason);
        }
    }

    /// Nothing at or beyond this may be asked for.
    pub fn handle_horizon(&mut self, host: HostId, horizon: u32) {
        self.watch(host).horizon = Some(horizon);
    }

    /// Upstream is started.
    pub fn handle_upstream_start(&mut self, host: HostId) {
        let watch = self.watch(host);
        let (runs, failures) = (watch.upstream_runs, watch.upstream_failures);
        watch.upstream_runs = true;
        if runs {
            self.broken(Rule::Upstream, format!("{host} starts upstream, which runs"));
        } else if failures >= limits::UPSTREAM_TRIES {
            let reason = format!("{host} starts upstream, which has failed {failures} times");
            self.broken(Rule::Upstream, reason);
        }
    }

    /// Upstream is stopped.
    pub fn handle_upstream_stop(&mut self, host: HostId) {
        let runs = std::mem::take(&mut self.watch(host).upstream_runs);
        if !runs {
            self.broken(Rule::Upstream, format!("{host} stops upstream, which doesn't run"));
        }
    }

    /// Upstream's stream has ended by itself.
    pub fn handle_upstream_ended(&mut self, host: HostId) {
        let watch = self.watch(host);
        if std::mem::take(&mut watch.upstream_runs) {
            watch.upstream_failures += 1;
        }
    }

    /// A timer went off.
    pub fn handle_timer(&mut self, host: HostId, now: Nanos) {
        let pieces = u64::from(self.pieces);
        let watch = self.watch(host);
        watch.timeouts += 1;
        let most = FREE_TIMEOUTS
            + TIMEOUTS_A_SECOND * whole_seconds(now - watch.started)
            + TIMEOUTS_A_PIECE * watch.gains.max(pieces);
        let timeouts = watch.timeouts;
        if timeouts > most {
            let reason = format!("{host} was woken {timeouts} times, {most} at most are sound");
            self.broken(Rule::Quiet, reason);
        }
    }

    /// How long a fetch has stood still.
    #[must_use]
    pub fn standstill(&self, host: HostId, now: Nanos) -> Option<Nanos> {
        let watch = &self.watches[host.0 as usize];
        watch.running.then(|| now - watch.last_octet)
    }

    /// The reader is given a piece.
    pub fn handle_delivery(&mut self, host: HostId, index: u32, right: bool, last: bool) {
        let witnesses = if right { 0 } else { self.witnesses(host) };
        if last {
            let reason = format!("{host} gives out the last piece, {index}, before the verdict");
            self.broken(Rule::Delivery, reason);
        } else if !right && witnesses >= 2 && !self.demands.collusion {
            let reason = format!(
                "{host} gives out a wrong piece {index}, though honest holders in {witnesses} \
                 networks had shown the true list"
            );
            self.broken(Rule::Delivery, reason);
        }
    }

    /// A fetch has ended.
    pub fn handle_end(&mut self, host: HostId, ended: &Ended, is_true: bool) {
        self.watch(host).running = false;
        if *ended == Ended::Done && !is_true {
            self.broken(Rule::DoneIsTrue, format!("{host} is done with another nar"));
        }
    }

    /// The bounds that the scenario sets.
    #[must_use]
    pub fn demands(&self) -> &Demands {
        &self.demands
    }
}
