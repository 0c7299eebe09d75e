//! A host's fetch: performs what the machine decides, gives the reader what it may have, and
//! begins anew after a failure that another attempt can mend.

use super::{Happening, Session, World};
use crate::agenda::{MILLI, Nanos, SECOND};
use crate::check::Rule;
use crate::content::Version;
use crate::machine::{Machine, Setup};
use crate::message::{Request, SessionId};
use crate::network::HostId;
use crate::plan::{Reader, Role};
use narswarm_protocol::fetch::{Action, Failure, Fault, SourceId};
use narswarm_protocol::hash::Root;
use narswarm_protocol::limits;
use narswarm_protocol::piece_set::PieceSet;
use std::collections::{BTreeMap, BTreeSet};

/// How often the node looks for octets within pieces.
const LOOK_EVERY: Nanos = 200 * MILLI;

/// How often the node looks for peers anew while a fetch lasts.
const LOOK_AROUND_EVERY: Nanos = 3 * SECOND;

/// From the last piece to the verdict: hashing goes along with receiving.
const HASH_TIME: Nanos = 2 * MILLI;

/// From a failure to the next attempt.
const RETRY_AFTER: Nanos = 50 * MILLI;

/// Attempts in one run: more than there are liars to be found out; whoever needs more hasn't ended.
const MAX_ATTEMPTS: u32 = 40;

/// Up to so many pieces the machine's books are audited after every event; with more that takes
/// longer than all the rest.
const AUDITED_PIECES: u32 = 64;

/// How a fetch has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// With the true nar.
    Done,
    /// Without.
    Failed(Failure),
}

/// A peer that a fetch knows of.
#[derive(Debug)]
struct Met {
    peer: HostId,
    session: Option<SessionId>,
    dropped: bool,
    since: Nanos,
}

/// One attempt at the nar, and what is remembered of those before.
#[derive(Debug)]
pub(super) struct Fetching {
    pub(super) attempt: u32,
    pub(super) machine: Machine,
    pub(super) wake: Option<Nanos>,
    pub(super) stream: Option<u32>,
    /// Octets of upstream's flow that were looked at.
    pub(super) stream_seen: u64,
    sources: BTreeMap<SourceId, Met>,
    condemned: Vec<Root>,
    banned: BTreeSet<HostId>,
    bad_upstream: bool,
    /// The next piece for the reader.
    next: u32,
    reading: bool,
    told_reader: Option<u32>,
    /// A failure that another attempt can mend has happened: readers get only what is verified.
    distrusted: bool,
    ended: Option<Ended>,
}

impl Fetching {
    pub(super) fn is_over(&self) -> bool {
        self.ended.is_some()
    }

    /// Whether the reader waits for the first piece, and may have it as it comes.
    pub(super) fn reads_from_the_head(&self, now: Nanos) -> bool {
        self.next == 0 && !self.distrusted && self.machine.may_deliver(now)
    }

    /// A number for a peer that was found, unless it is banned or known.
    pub(super) fn meet(&mut self, peer: HostId, now: Nanos) -> Option<SourceId> {
        let known = self.sources.values().any(|met| met.peer == peer && !met.dropped);
        if known || self.banned.contains(&peer) {
            return None;
        }
        let source = SourceId(self.sources.len() as u32);
        self.sources.insert(source, Met { peer, session: None, dropped: false, since: now });
        Some(source)
    }

    /// A conversation has broken off; its peer may get another number.
    pub(super) fn broken(&mut self, source: SourceId, now: Nanos) {
        let Some(&Met { peer, .. }) = self.sources.get(&source) else { return };
        let again = SourceId(self.sources.len() as u32);
        let dropped = !self.machine.handle_broken(source, again, now);
        self.sources.insert(again, Met { peer, session: None, dropped, since: now });
    }

    pub(super) fn sessions(&self) -> Vec<SessionId> {
        self.sources.values().filter_map(|met| met.session).collect()
    }

    /// The peers that it has known for long enough to have asked them.
    pub(super) fn known_since(&self, at: Nanos) -> impl Iterator<Item = HostId> {
        let old = self.sources.values().filter(move |met| met.since <= at && !met.dropped);
        old.map(|met| met.peer)
    }
}

impl World {
    pub(super) fn fetching_mut(&mut self, host: HostId) -> Option<&mut Fetching> {
        self.host_mut(host).fetching.as_mut()
    }

    /// Tells the machine something and performs what follows.
    pub(super) fn with_machine(&mut self, host: HostId, tell: impl FnOnce(&mut Machine)) {
        if let Some(fetching) = self.fetching_mut(host) {
            tell(&mut fetching.machine);
            self.pump(host);
        }
    }

    /// A host begins to fetch, or begins anew with what it had.
    pub(super) fn start_fetch(&mut self, host: HostId) {
        if self.host(host).gone {
            return;
        }
        let now = self.now();
        let before = self.host_mut(host).fetching.take();
        let attempt = before.as_ref().map_or(0, |fetching| fetching.attempt + 1);
        let (condemned, banned, bad_upstream, distrusted, next) = before
            .map(|f| (f.condemned, f.banned, f.bad_upstream, f.distrusted, f.next))
            .unwrap_or_default();
        let entry = self.host(host);
        let resumed = (0..).zip(&entry.pieces).filter_map(|(i, piece)| piece.map(|p| (i, p)));
        let setup = Setup {
            layout: self.content.layout(),
            mode: self.plan.mode,
            upstream: self.upstream.is_some() && !bad_upstream,
            upstream_rate: self.plan.upstream_rate,
            condemned: condemned.clone(),
            resumed: resumed.collect(),
            seed: self.seed.wrapping_mul(1000).wrapping_add(host.0.into()),
        };
        let fetching = Fetching {
            attempt,
            machine: Machine::new(setup, self.sabotage, now),
            wake: None,
            stream: None,
            stream_seen: 0,
            sources: BTreeMap::new(),
            condemned,
            banned,
            bad_upstream,
            next,
            reading: false,
            told_reader: None,
            distrusted,
            ended: None,
        };
        self.host_mut(host).fetching = Some(fetching);
        self.ledger.starts(host, now);
        self.checker.handle_start(host, now);
        self.trace.add(now, format_args!("{host} starts attempt {attempt}"));
        self.discover(host, attempt);
        self.look_again(host, attempt);
        self.pump(host);
    }

    /// Lets a fetch find whom it may ask, and others find it.
    fn discover(&mut self, host: HostId, attempt: u32) {
        let (least, most) = self.plan.discovery;
        let mut others: Vec<HostId> =
            (0..self.hosts.len() as u32).map(HostId).filter(|&other| other != host).collect();
        others.retain(|&other| match self.host(other).role {
            Role::Seed => true,
            Role::Leech { .. } => self.host(other).fetching.is_some(),
        });
        self.luck.shuffle(&mut others);
        let is_seed = |&other: &HostId| self.host(other).role != Role::Seed;
        others.sort_by_key(is_seed);
        others.truncate(limits::MAX_SOURCES);
        for peer in others {
            let wait = self.luck.between(least, most);
            self.agenda.after(wait, Happening::Found { host, attempt, peer });
            let theirs = self.host(peer).fetching.as_ref().filter(|f| !f.is_over());
            if let Some(attempt) = theirs.map(|f| f.attempt) {
                let wait = self.luck.between(least, most);
                self.agenda.after(wait, Happening::Found { host: peer, attempt, peer: host });
            }
        }
        self.agenda.after(most + MILLI, Happening::FoundAll { host, attempt });
        self.agenda.after(LOOK_AROUND_EVERY, Happening::LooksAround { host, attempt });
    }

    /// Finds again, after a while, whom it lost without fault: the node looks around again while
    /// a fetch lasts.
    pub(super) fn look_around(&mut self, host: HostId, attempt: u32) {
        if self.is_current(host, attempt) {
            self.discover(host, attempt);
        }
    }

    /// Lets the fetches under way hear of a host that is back.
    pub(super) fn find_again(&mut self, peer: HostId) {
        let (least, most) = self.plan.discovery;
        for host in (0..self.hosts.len() as u32).map(HostId).filter(|&host| host != peer) {
            let running = self.host(host).fetching.as_ref().filter(|f| !f.is_over());
            if let Some(attempt) = running.map(|f| f.attempt) {
                let wait = self.luck.between(least, most);
                self.agenda.after(wait, Happening::Found { host, attempt, peer });
            }
        }
    }

    pub(super) fn look_again(&mut self, host: HostId, attempt: u32) {
        self.agenda.after(LOOK_EVERY, Happening::Looks { host, attempt });
    }

    /// Performs everything that the machine has decided, and sees when it wants to be woken.
    pub(super) fn pump(&mut self, host: HostId) {
        let now = self.now();
        while let Some(action) = self.next_action(host) {
            self.trace.add(now, format_args!("{host} does {action:?}"));
            self.perform(host, action);
        }
        self.serve_what_is_used(host);
        self.read(host);
        let audited = self.content.layout().piece_count() <= AUDITED_PIECES;
        let Some(fetching) = self.fetching_mut(host).filter(|f| !f.is_over()) else { return };
        let attempt = fetching.attempt;
        let held = fetching.machine.held();
        let audit = audited.then(|| fetching.machine.audit().err()).flatten();
        let wake = fetching.machine.poll_timeout(now);
        if let Some(at) = wake
            && fetching.wake.is_none_or(|wake| at < wake)
        {
            fetching.wake = Some(at.max(now));
            self.agenda.at(at, Happening::Wakes { host, attempt });
        }
        if let Some(discrepancy) = audit {
            self.checker.broken(Rule::Books, format!("{host}: {discrepancy}"));
        }
        self.checker.handle_held(host, &held, &self.hosts[host.0 as usize].held);
        if held.is_all() && std::mem::take(&mut self.host_mut(host).unhashed) {
            self.agenda.after(HASH_TIME, Happening::Hashed { host, attempt });
        }
    }

    fn next_action(&mut self, host: HostId) -> Option<Action> {
        let fetching = self.fetching_mut(host)?;
        match fetching.is_over() {
            true => None,
            false => fetching.machine.poll_action(),
        }
    }

    fn perform(&mut self, host: HostId, action: Action) {
        match action {
            Action::Open { source, first, count } => self.open(host, source, first, count),
            Action::Request { source, first, count } => {
                let session = self.session_of(host, source);
                self.checker.handle_request(host, source, session, first, count);
                if let Some(id) = session {
                    self.ask(id, Request::Want { first, count });
                }
            }
            Action::Drop { source, fault } => self.drop_source(host, source, fault),
            Action::StartUpstream { from } => {
                self.checker.handle_upstream_start(host);
                self.start_stream(host, from);
            }
            Action::StopUpstream => {
                self.checker.handle_upstream_stop(host);
                self.stop_stream(host);
            }
            Action::Cancel { source, first, count } => {
                let session = self.session_of(host, source);
                self.checker.handle_cancel(host, session, first, count);
                if let Some(id) = session {
                    self.ask(id, Request::Cancel { first, count });
                }
            }
            Action::Discard { index } => self.discard(host, index),
            Action::Condemn { root } => {
                if let Some(fetching) = self.fetching_mut(host) {
                    fetching.condemned.push(root);
                    // From now on the reader gets only what is verified, as in the node.
                    fetching.distrusted = true;
                }
            }
            Action::Done => self.end(host, Ended::Done),
            Action::Failed(failure) => self.fail(host, failure),
        }
    }

    fn discard(&mut self, host: HostId, index: u32) {
        self.checker.handle_discard(host, index);
        let entry = self.host_mut(host);
        if let Some(piece) = entry.pieces.get_mut(index as usize) {
            *piece = None;
        }
        entry.held.remove(index);
        entry.unhashed = true;
    }

    fn session_of(&mut self, host: HostId, source: SourceId) -> Option<SessionId> {
        self.fetching_mut(host)?.sources.get(&source)?.session
    }

    fn open(&mut self, host: HostId, source: SourceId, first: u32, count: u32) {
        let next = self.sessions.len() as u32;
        let Some(fetching) = self.fetching_mut(host) else { return };
        let attempt = fetching.attempt;
        let met = fetching.sources.get_mut(&source);
        let Some(met) = met.filter(|met| met.session.is_none() && !met.dropped) else {
            return self.checker.handle_odd_open(host, source);
        };
        let peer = met.peer;
        let id = SessionId(next);
        met.session = Some(id);
        let flow = self.network.flow(peer, host);
        let blocked = !self.reaches(peer, host) || self.host(peer).frozen;
        self.network.block(flow, blocked, self.now());
        let seen = self.network.departed(flow, self.now());
        self.sessions.push(Session {
            asker: host,
            attempt,
            holder: peer,
            source,
            flow,
            alive: true,
            version: None,
            seen,
            asked_until: 0,
            told_until: 0,
        });
        self.checker.handle_open(host, source, id, first, count);
        self.ask(id, Request::Open { first, count });
    }

    fn drop_source(&mut self, host: HostId, source: SourceId, fault: Option<Fault>) {
        let Some(fetching) = self.fetching_mut(host) else { return };
        let Some(met) = fetching.sources.get_mut(&source) else { return };
        met.dropped = true;
        let (peer, session) = (met.peer, met.session);
        if fault.is_some() {
            fetching.banned.insert(peer);
            let honest = self.plan.hosts[peer.0 as usize].nature.is_honest();
            self.ledger.bans(honest);
        }
        if let Some(id) = session {
            self.checker.handle_closed(host, id);
            self.close(id);
        }
    }

    /// Shows others the list that the machine goes by.
    fn serve_what_is_used(&mut self, host: HostId) {
        let Some(root) = self.host(host).fetching.as_ref().and_then(|f| f.machine.root()) else {
            return;
        };
        let version = self.content.version_of(root);
        self.serve_version(host, version);
    }

    fn fail(&mut self, host: HostId, failure: Failure) {
        self.stop_stream(host);
        let Some(fetching) = self.fetching_mut(host) else { return };
        let again = match &failure {
            Failure::NoSource => false,
            Failure::Mismatch { root, upstream } => {
                // As the node does it: a root that was set aside because upstream spoke against
                // it was right.
                if *upstream && root.is_none() && !fetching.condemned.is_empty() {
                    fetching.condemned.clear();
                    fetching.bad_upstream = true;
                }
                fetching.condemned.extend(*root);
                true
            }
            Failure::Contradiction { root } => {
                fetching.condemned.extend(*root);
                true
            }
        };
        if !again || fetching.attempt + 1 >= MAX_ATTEMPTS {
            return self.end(host, Ended::Failed(failure));
        }
        fetching.distrusted = true;
        fetching.next = 0;
        fetching.ended = Some(Ended::Failed(failure));
        let sessions = fetching.sessions();
        for id in sessions {
            self.close(id);
        }
        self.ledger.retries(host);
        self.checker.handle_end_of_attempt(host);
        let count = self.content.layout().piece_count();
        let entry = self.host_mut(host);
        entry.pieces.fill(None);
        entry.held = PieceSet::none(count);
        entry.unhashed = true;
        self.serve_version(host, None);
        self.agenda.after(RETRY_AFTER, Happening::Starts(host));
    }

    fn end(&mut self, host: HostId, ended: Ended) {
        let now = self.now();
        let is_true = self.holds_the_truth(host);
        self.checker.handle_end(host, &ended, is_true);
        self.ledger.ends(host, &ended, now);
        self.stop_stream(host);
        let done = ended == Ended::Done;
        if let Some(fetching) = self.fetching_mut(host) {
            fetching.ended = Some(ended);
        }
        for id in self.fetching_mut(host).map(|f| f.sessions()).unwrap_or_default() {
            self.close(id);
        }
        if done {
            self.serve_version(host, Some(Version::True));
        }
        self.has_more(host);
    }

    /// Gives the reader what it may have, as fast as it reads.
    fn read(&mut self, host: HostId) {
        let Role::Leech { reader, .. } = self.host(host).role else { return };
        while self.may_read(host) {
            self.read_one(host);
            if let Some(rate) = reader.rate {
                let wait = self.content.layout().piece_size() * SECOND / rate.max(1);
                let Some(fetching) = self.fetching_mut(host) else { return };
                fetching.reading = true;
                let attempt = fetching.attempt;
                self.agenda.after(wait, Happening::Reads { host, attempt });
            }
        }
        self.tell_reader(host, reader);
    }

    fn may_read(&mut self, host: HostId) -> bool {
        let now = self.now();
        let count = self.content.layout().piece_count();
        let entry = &self.hosts[host.0 as usize];
        let Some(fetching) = &entry.fetching else { return false };
        let last = fetching.next + 1 == count;
        let machine = &fetching.machine;
        !fetching.is_over()
            && !fetching.reading
            && !fetching.distrusted
            && entry.held.contains(fetching.next)
            && machine.may_deliver(now)
            && (!last || machine.may_deliver_last())
    }

    fn read_one(&mut self, host: HostId) {
        let Some(fetching) = self.fetching_mut(host) else { return };
        let index = fetching.next;
        fetching.next += 1;
        let piece = self.host(host).pieces[index as usize];
        let right = piece.is_some_and(|piece| self.content.is_true(index, piece));
        let count = self.content.layout().piece_count();
        let last = index + 1 == count;
        self.ledger.delivers(host, right, count, self.agenda.now());
        self.checker.handle_delivery(host, index, right, last);
    }

    fn tell_reader(&mut self, host: HostId, reader: Reader) {
        let now = self.now();
        let Some(fetching) = self.fetching_mut(host).filter(|f| !f.is_over()) else { return };
        let next = fetching.next;
        if fetching.told_reader.replace(next) != Some(next) {
            // Without a disk, only what is ahead of the reader may be held.
            let ahead = reader.ahead.filter(|_| !fetching.distrusted);
            fetching.machine.handle_reader(next, ahead, now);
            if let Some(ahead) = ahead {
                self.checker.handle_horizon(host, next.saturating_add(ahead));
            }
            self.pump(host);
        }
    }

    pub(super) fn read_on(&mut self, host: HostId, attempt: u32) {
        if self.is_current(host, attempt) {
            if let Some(fetching) = self.fetching_mut(host) {
                fetching.reading = false;
            }
            self.pump(host);
        }
    }
}
