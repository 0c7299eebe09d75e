//! When upstream joins a fetch, and when it may leave.
//!
//! Upstream is a sequential compressed stream: it can only begin at the head, and to begin anew
//! costs everything it gave before. So it joins quickly when the swarm has nobody, gives nothing,
//! or is slower than upstream is known to be; and it leaves only when the swarm has been clearly
//! faster for a while.

use super::meter::Meter;
use super::source::Stage;
use super::{Action, Fetch, FetchConfig, Time, UpstreamMode};
use crate::limits;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not to be asked: none, not allowed, or given up.
    Out,
    /// May be started.
    Ready,
    Running,
}

/// What is known of upstream.
#[derive(Debug)]
pub(super) struct Upstream {
    state: State,
    /// Whether there is one that may have the nar.
    exists: bool,
    tries: u32,
    /// Whether pieces of it are among those held.
    pub used: bool,
    since: Time,
    last_progress: Time,
    meter: Meter,
    /// When swarm and upstream are next compared if nothing happens before.
    compare_at: Time,
    /// What it gave before, or is known to give.
    known_rate: Option<f64>,
}

/// How much faster than upstream the swarm must be for upstream to leave: enough that noise in
/// the two rates doesn't send upstream away to be missed.
const LEAVE_FACTOR: f64 = 1.5;
/// Below which part of upstream's known rate the swarm counts as slow.
const SLOW_FACTOR: f64 = 0.7;
/// How long the swarm is watched before it is called slow, or fast enough: twice what its rate is
/// measured over.
const WATCH: Duration = Duration::from_secs(1);
/// How often they are compared while nothing else happens.
const COMPARE_EVERY: Duration = Duration::from_millis(500);
/// A swarm that needs at most this long for what is missing isn't worth a second way.
const NEARLY_DONE: Duration = Duration::from_secs(1);
/// When upstream's rate isn't known, a swarm that needs longer than this is compared with it.
const LONG_WAIT: Duration = Duration::from_secs(5);

impl Upstream {
    pub fn new(config: &FetchConfig, now: Time) -> Self {
        let allowed = config.upstream && config.mode != UpstreamMode::SwarmOnly;
        Self {
            state: if allowed { State::Ready } else { State::Out },
            exists: config.upstream,
            tries: 0,
            used: false,
            since: now,
            last_progress: now,
            meter: Meter::new(now),
            compare_at: now + COMPARE_EVERY,
            known_rate: config.upstream_rate,
        }
    }

    /// It may be asked from now on.
    pub fn allow(&mut self) {
        if self.exists && self.tries == 0 {
            self.state = State::Ready;
        }
    }

    pub fn moved(&mut self, bytes: u64, now: Time) {
        self.meter.add(bytes, now);
        self.last_progress = now;
        if now.since(self.since) >= WATCH {
            self.known_rate = self.meter.rate(now).or(self.known_rate);
        }
    }

    pub fn rate(&self) -> Option<f64> {
        self.known_rate
    }

    pub fn ended(&mut self) {
        if self.state == State::Running {
            let again = self.tries < limits::UPSTREAM_TRIES;
            self.state = if again { State::Ready } else { State::Out };
        }
    }

    pub fn is_running(&self) -> bool {
        self.state == State::Running
    }

    pub fn is_out(&self) -> bool {
        self.state == State::Out
    }

    /// Whether it streams, so that the head may be left to it.
    pub fn leads(&self, now: Time) -> bool {
        now < self.leads_until()
    }

    /// Until when it counts as streaming if nothing more comes of it.
    pub fn leads_until(&self) -> Time {
        match self.state {
            State::Running => self.last_progress + limits::FREEZE_AFTER,
            State::Ready | State::Out => Time::default(),
        }
    }
}

impl Fetch {
    pub(super) fn start_upstream(&mut self, now: Time) {
        if self.upstream.state != State::Ready {
            return;
        }
        self.upstream.state = State::Running;
        self.upstream.tries += 1;
        self.upstream.since = now;
        self.upstream.last_progress = now;
        self.upstream.meter = Meter::new(now);
        self.actions.push_back(Action::StartUpstream { from: self.pieces.head() });
    }

    fn stop_upstream(&mut self) {
        if self.upstream.is_running() {
            // It may be missed again later: a stop that was meant isn't a failed try.
            self.upstream.state = State::Ready;
            self.actions.push_back(Action::StopUpstream);
        }
    }

    /// When upstream's part must be reconsidered.
    pub(super) fn upstream_deadline(&self) -> Option<Time> {
        match self.upstream.state {
            State::Ready if !self.swarm_gives() => Some(self.patience_ends()),
            State::Ready | State::Running => Some(self.upstream.compare_at),
            State::Out => None,
        }
    }

    /// Until when the swarm may give nothing without upstream being asked as well.
    fn patience_ends(&self) -> Time {
        let waiting = self.sources.values().filter(|s| s.stage == Stage::Opening);
        let opening = waiting.map(|s| s.opened_at + s.patience()).min();
        let since = self.alone_since.unwrap_or(self.started);
        let nobody = since + limits::NOBODY_PATIENCE;
        opening.unwrap_or(nobody).min(self.swarmless_since + limits::UPSTREAM_PATIENCE)
    }

    /// Lets upstream join or leave; says whether it has left, and what was left to it is to be asked
    /// of peers.
    pub(super) fn consider_upstream(&mut self, now: Time) -> bool {
        if self.upstream.compare_at <= now {
            self.upstream.compare_at = now + COMPARE_EVERY;
        }
        match self.upstream.state {
            State::Out => {}
            State::Ready => {
                if !self.swarm_gives() {
                    let nobody = self.discovery_done && !self.has_prospects();
                    if nobody || now >= self.patience_ends() {
                        self.start_upstream(now);
                    }
                } else if self.swarm_is_slow(now) {
                    self.start_upstream(now);
                }
            }
            State::Running => {
                if self.mode == UpstreamMode::SwarmFirst && self.swarm_suffices(now) {
                    self.stop_upstream();
                    return true;
                }
            }
        }
        false
    }

    fn missing_bytes(&self) -> f64 {
        f64::from(self.pieces.missing_count()) * self.layout.piece_size() as f64
    }

    /// Whether upstream would bring the nar clearly sooner.
    fn swarm_is_slow(&mut self, now: Time) -> bool {
        if now.since(self.gives_since) < WATCH || self.upstream.tries >= limits::UPSTREAM_TRIES {
            return false;
        }
        let Some(rate) = self.swarm.rate(now) else { return false };
        let wait = self.missing_bytes() / rate.max(1.0);
        match self.upstream.known_rate {
            _ if wait <= NEARLY_DONE.as_secs_f64() => false,
            // What it gave before must be streamed again before it helps.
            Some(known) => {
                let behind = f64::from(self.pieces.head()) * self.layout.piece_size() as f64;
                rate < SLOW_FACTOR * known && wait > (behind + self.missing_bytes()) / known
            }
            None => wait > LONG_WAIT.as_secs_f64(),
        }
    }

    /// Whether the swarm alone is clearly faster than upstream.
    fn swarm_suffices(&mut self, now: Time) -> bool {
        if now.since(self.upstream.since) < WATCH || now.since(self.gives_since) < WATCH {
            return false;
        }
        let upstream = self.upstream.meter.rate(now).unwrap_or(0.0);
        self.swarm.rate(now).is_some_and(|rate| rate > 0.0 && rate >= LEAVE_FACTOR * upstream)
    }
}
