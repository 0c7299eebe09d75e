//! When to dial whom in order to enter the network, and to stay in it.
//!
//! Addresses come from several sources, each with a line of its own: what one of them says, how
//! much, and how long its addresses take to fail delays no other. A few of each line are dialled
//! at a time, and of all lines together; what fails waits longer each time, by pauses that differ
//! from node to node, so that a network which comes back isn't run over.
//!
//! Nodes that the user has named are dialled until they are connected. Those of other sources are
//! dialled while few peers are connected, and let be otherwise: they serve everybody.
//!
//! Time is an argument, so that the schedule is tested without waiting.

use super::pacing::peer_of;
use libp2p::swarm::ConnectionId;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::{Multiaddr, PeerId};
use narswarm_protocol::limits::{
    MAX_ENTRY_DIALS, MAX_ENTRY_DIALS_PER_SOURCE, MAX_SOURCE_ADDRESSES,
};
use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

/// Remembered peers are dialled until this many are connected: enough to find everybody else, few
/// enough not to bother a whole network at every restart.
const WANTED_PEERS: usize = 24;

/// Entry nodes that others share are dialled until this many are connected: they are for those who
/// know nobody.
const ENOUGH_PEERS: usize = 8;

/// Attempts begun with each tick for each source that isn't the user's own.
const DIALS_A_TICK: usize = 4;

/// How much longer than the user's own the addresses of other sources wait after a failure, at
/// first and at most.
const PATIENT: (u32, u32) = (60, 5);

/// Where addresses come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(pub u16);

impl Source {
    /// Nodes that the user has named.
    pub const CONFIGURED: Self = Self(0);
    /// Peers of earlier days.
    pub const REMEMBERED: Self = Self(1);
    /// The first of those that are numbered by whoever feeds them.
    pub const FIRST_OTHER: Self = Self(2);
}

/// How the addresses of a source fare.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceState {
    /// Addresses in use.
    pub addresses: usize,
    /// Those of them whose peers are connected.
    pub connected: usize,
    /// Those whose last attempt has failed.
    pub failing: usize,
    /// Whether any was ever reached.
    pub reached: bool,
    /// What the last attempt that failed came to.
    pub last_failure: Option<String>,
}

/// Whom to dial.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    /// A peer at one address.
    At(Multiaddr),
    /// A peer wherever the book says.
    Known(PeerId),
}

enum State {
    /// To be dialled at this time.
    Waiting(Instant),
    /// Being dialled.
    Dialling(ConnectionId),
    /// Connected to this peer since then.
    Connected(PeerId, Instant),
}

struct Candidate {
    target: Target,
    peer: Option<PeerId>,
    state: State,
    /// How long it waits after the next failure.
    pause: Duration,
    failing: bool,
}

/// The addresses of one source.
#[derive(Default)]
struct Line {
    candidates: Vec<Candidate>,
    reached: bool,
    last_failure: Option<String>,
}

/// See the module.
pub struct Dialing {
    local: PeerId,
    lines: BTreeMap<Source, Line>,
    pauses: (Duration, Duration),
    random: u64,
}

impl Dialing {
    /// Nobody yet. The user's own nodes are redialled with growing pauses within `pauses`; `seed`
    /// makes them differ from node to node.
    pub fn new(local: PeerId, pauses: (Duration, Duration), seed: u64) -> Self {
        Self { local, lines: BTreeMap::new(), pauses, random: seed | 1 }
    }

    /// What a source says now. Addresses that it has said before keep their place, those that it
    /// no longer says are forgotten, and those beyond the limit are not used.
    pub fn offer(
        &mut self,
        source: Source,
        addresses: impl IntoIterator<Item = Multiaddr>,
        now: Instant,
    ) {
        let targets = addresses.into_iter().map(|address| (peer_of(&address), Target::At(address)));
        self.replace(source, targets.collect(), now);
    }

    /// Peers of earlier days, the best first; where they are is in the book.
    pub fn offer_known(&mut self, peers: impl IntoIterator<Item = PeerId>, now: Instant) {
        let targets = peers.into_iter().map(|peer| (Some(peer), Target::Known(peer)));
        self.replace(Source::REMEMBERED, targets.collect(), now);
    }

    fn replace(&mut self, source: Source, offered: Vec<(Option<PeerId>, Target)>, now: Instant) {
        let pause = self.first_pause(source);
        let local = self.local;
        let line = self.lines.entry(source).or_default();
        let mut old = std::mem::take(&mut line.candidates);
        for (peer, target) in offered {
            let is_new = !line.candidates.iter().any(|candidate| candidate.target == target);
            if peer == Some(local) || !is_new || line.candidates.len() == MAX_SOURCE_ADDRESSES {
                continue;
            }
            let before = old.iter().position(|candidate| candidate.target == target);
            line.candidates.push(before.map(|at| old.swap_remove(at)).unwrap_or(Candidate {
                target,
                peer,
                state: State::Waiting(now),
                pause,
                failing: false,
            }));
        }
    }

    /// What to dial now, while `connected` peers are connected.
    pub fn due(&mut self, now: Instant, connected: usize) -> Vec<DialOpts> {
        let mut due = Vec::new();
        let mut dialling: HashSet<PeerId> = HashSet::new();
        let under_way = self.candidates().filter(|c| matches!(c.state, State::Dialling(_)));
        let mut all = 0;
        for candidate in under_way {
            all += 1;
            dialling.extend(candidate.peer);
        }
        for (source, line) in &mut self.lines {
            let wanted = match *source {
                Source::CONFIGURED => usize::MAX,
                Source::REMEMBERED => WANTED_PEERS,
                _ => ENOUGH_PEERS,
            };
            if connected >= wanted {
                continue;
            }
            let mut own = line.dialling();
            let (mut begun, most) = match *source {
                Source::CONFIGURED => (0, usize::MAX),
                _ => (0, DIALS_A_TICK),
            };
            for candidate in &mut line.candidates {
                let places = own < MAX_ENTRY_DIALS_PER_SOURCE && all < MAX_ENTRY_DIALS;
                if !places || begun == most {
                    break;
                }
                let is_due = matches!(candidate.state, State::Waiting(at) if at <= now);
                // Two sources, or two addresses, of one peer: one attempt at a time.
                if !is_due || candidate.peer.is_some_and(|peer| dialling.contains(&peer)) {
                    continue;
                }
                let dial = candidate.dial();
                candidate.state = State::Dialling(dial.connection_id());
                dialling.extend(candidate.peer);
                (own, all, begun) = (own + 1, all + 1, begun + 1);
                due.push(dial);
            }
        }
        due
    }

    /// A connection to a peer has been made.
    pub fn connected(&mut self, peer: PeerId, connection: ConnectionId, now: Instant) {
        for line in self.lines.values_mut() {
            for candidate in &mut line.candidates {
                let dialled = matches!(candidate.state, State::Dialling(id) if id == connection);
                let already = matches!(candidate.state, State::Connected(..));
                if dialled || (candidate.peer == Some(peer) && !already) {
                    candidate.state = State::Connected(peer, now);
                    candidate.failing = false;
                    line.reached = true;
                }
            }
        }
    }

    /// The last connection to a peer has ended.
    pub fn disconnected(&mut self, peer: &PeerId, now: Instant) {
        let bounds = self.bounds();
        let random = &mut self.random;
        for (source, line) in &mut self.lines {
            let (first, longest) = bounds(*source);
            for candidate in &mut line.candidates {
                let State::Connected(of, since) = candidate.state else { continue };
                if of == *peer {
                    // One that lasts begins anew; one that is cut again and again waits longer.
                    if now.saturating_duration_since(since) >= longest {
                        candidate.pause = first;
                    }
                    candidate.wait(now, longest, random);
                }
            }
        }
    }

    /// An attempt has failed; `connected` tells whether a peer is connected nevertheless.
    pub fn failed(
        &mut self,
        connection: ConnectionId,
        now: Instant,
        reason: &str,
        connected: impl Fn(&PeerId) -> bool,
    ) {
        let bounds = self.bounds();
        let random = &mut self.random;
        for (source, line) in &mut self.lines {
            for candidate in &mut line.candidates {
                if !matches!(candidate.state, State::Dialling(id) if id == connection) {
                    continue;
                }
                match candidate.peer.filter(&connected) {
                    Some(peer) => candidate.state = State::Connected(peer, now),
                    None => {
                        candidate.failing = true;
                        candidate.wait(now, bounds(*source).1, random);
                        line.last_failure = Some(candidate.describe(reason));
                    }
                }
            }
        }
    }

    /// Whether the user has named this peer.
    pub fn is_bootstrap(&self, peer: &PeerId) -> bool {
        let is = |candidate: &Candidate| {
            candidate.peer == Some(*peer)
                || matches!(candidate.state, State::Connected(of, _) if of == *peer)
        };
        self.lines.get(&Source::CONFIGURED).is_some_and(|line| line.candidates.iter().any(is))
    }

    /// How the addresses of all sources fare.
    pub fn states(&self) -> BTreeMap<Source, SourceState> {
        self.lines.iter().map(|(source, line)| (*source, line.state())).collect()
    }

    fn candidates(&self) -> impl Iterator<Item = &Candidate> {
        self.lines.values().flat_map(|line| &line.candidates)
    }

    /// First and longest pause after a failure, by source.
    fn bounds(&self) -> impl Fn(Source) -> (Duration, Duration) + use<> {
        let (first, longest) = self.pauses;
        move |source| match source {
            Source::CONFIGURED => (first, longest),
            _ => (first * PATIENT.0, longest * PATIENT.1),
        }
    }

    fn first_pause(&self, source: Source) -> Duration {
        self.bounds()(source).0
    }
}

impl Line {
    fn dialling(&self) -> usize {
        self.candidates.iter().filter(|c| matches!(c.state, State::Dialling(_))).count()
    }

    fn state(&self) -> SourceState {
        let count = |is: fn(&Candidate) -> bool| self.candidates.iter().filter(|c| is(c)).count();
        SourceState {
            addresses: self.candidates.len(),
            connected: count(|c| matches!(c.state, State::Connected(..))),
            failing: count(|c| c.failing),
            reached: self.reached,
            last_failure: self.last_failure.clone(),
        }
    }
}

impl Candidate {
    fn dial(&self) -> DialOpts {
        match (&self.target, self.peer) {
            (Target::Known(peer), _) => DialOpts::from(*peer),
            (Target::At(address), Some(peer)) => DialOpts::peer_id(peer)
                .addresses(vec![address.clone()])
                // Another attempt may know fewer addresses.
                .condition(PeerCondition::Disconnected)
                .build(),
            (Target::At(address), None) => {
                DialOpts::unknown_peer_id().address(address.clone()).build()
            }
        }
    }

    /// Waits for the next attempt, for three quarters to five quarters of its pause, and longer
    /// before the one after it.
    fn wait(&mut self, now: Instant, longest: Duration, random: &mut u64) {
        // Xorshift: chance enough to keep nodes from marching in step.
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        let quarter = self.pause / 4;
        let jitter = quarter.mul_f64((*random % 1024) as f64 / 512.0);
        self.state = State::Waiting(now + self.pause - quarter + jitter);
        self.pause = (self.pause * 2).min(longest);
    }

    fn describe(&self, reason: &str) -> String {
        match &self.target {
            Target::At(address) => format!("{address}: {reason}"),
            Target::Known(peer) => format!("{peer}: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));

    fn dialing() -> Dialing {
        Dialing::new(PeerId::random(), PAUSES, 7)
    }

    fn address(host: usize, peer: PeerId) -> Multiaddr {
        format!("/ip4/10.0.{}.{}/tcp/1/p2p/{peer}", host / 256, host % 256).parse().expect("one")
    }

    fn many(count: usize) -> Vec<Multiaddr> {
        (0..count).map(|host| address(host, PeerId::random())).collect()
    }

    fn around(pause: Duration, expected: Duration) -> bool {
        pause >= expected * 3 / 4 && pause <= expected * 5 / 4
    }

    #[test]
    fn the_users_nodes_are_dialled_with_growing_pauses_until_connected_and_after_loss() {
        let (peer, mut now) = (PeerId::random(), Instant::now());
        let mut dialing = dialing();
        dialing.offer(Source::CONFIGURED, [address(1, peer)], now);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            let [dial] = &dialing.due(now, 1000)[..] else { panic!("one attempt is due") };
            assert_eq!(dial.get_peer_id(), Some(peer));
            assert!(dialing.due(now + 10 * PAUSES.1, 0).is_empty(), "one at a time");
            dialing.failed(dial.connection_id(), now, "refused", |_| false);
            let line = &dialing.lines[&Source::CONFIGURED];
            let State::Waiting(at) = line.candidates[0].state else { panic!("waits") };
            assert!(dialing.due(at - Duration::from_millis(1), 0).is_empty());
            pauses.push(at - now);
            now = at;
        }
        for (pause, factor) in pauses.iter().zip([1, 2, 4]) {
            assert!(around(*pause, factor * PAUSES.0), "{pauses:?}");
        }
        assert!(around(pauses[11], PAUSES.1), "{pauses:?}");
        let state = &dialing.states()[&Source::CONFIGURED];
        assert_eq!((state.addresses, state.connected, state.failing), (1, 0, 1));
        assert!(state.last_failure.as_ref().is_some_and(|said| said.ends_with(": refused")));

        let [dial] = &dialing.due(now, 0)[..] else { panic!("one attempt is due") };
        dialing.connected(peer, dial.connection_id(), now);
        assert!(dialing.due(now + PAUSES.1, 0).is_empty());
        now += PAUSES.1;
        dialing.disconnected(&peer, now);
        let soon = now + PAUSES.0 * 5 / 4;
        assert_eq!(dialing.due(soon, 0).len(), 1, "from the shortest pause again");
    }

    #[test]
    fn connections_that_are_cut_again_and_again_are_made_ever_more_seldom() {
        let (peer, mut now) = (PeerId::random(), Instant::now());
        let mut dialing = dialing();
        dialing.offer(Source::CONFIGURED, [address(1, peer)], now);
        let mut attempts = 0;
        let end = now + Duration::from_secs(3600);
        while now < end {
            if let [dial] = &dialing.due(now, 0)[..] {
                dialing.connected(peer, dial.connection_id(), now);
                dialing.disconnected(&peer, now);
                attempts += 1;
            }
            now += Duration::from_millis(250);
        }
        assert!((60..100).contains(&attempts), "{attempts} in an hour");
    }

    #[test]
    fn the_peer_behind_a_bare_address_is_learned() {
        let (peer, now) = (PeerId::random(), Instant::now());
        let mut dialing = dialing();
        dialing.offer(Source::CONFIGURED, ["/ip4/10.0.0.1/tcp/1".parse().expect("one")], now);
        let dial = dialing.due(now, 0).remove(0);
        assert!(!dialing.is_bootstrap(&peer));
        dialing.connected(peer, dial.connection_id(), now);
        assert!(dialing.is_bootstrap(&peer));
        dialing.disconnected(&PeerId::random(), now);
        assert!(dialing.due(now + PAUSES.1, 0).is_empty());
        dialing.disconnected(&peer, now);
        assert_eq!(dialing.due(now + PAUSES.1, 0).len(), 1);
    }

    #[test]
    fn an_attempt_that_was_not_needed_counts_as_connected() {
        let (peer, now) = (PeerId::random(), Instant::now());
        let mut dialing = dialing();
        dialing.offer(Source::CONFIGURED, [address(1, peer)], now);
        let dial = dialing.due(now, 0).remove(0);
        dialing.failed(dial.connection_id(), now, "not needed", |of| *of == peer);
        assert!(dialing.due(now + PAUSES.1, 0).is_empty());
        assert_eq!(dialing.states()[&Source::CONFIGURED].connected, 1);
    }

    #[test]
    fn remembered_peers_are_dialled_a_few_at_a_time_while_few_are_connected() {
        let now = Instant::now();
        let known: Vec<_> = (0..6).map(|_| PeerId::random()).collect();
        let mut dialing = dialing();
        dialing.offer_known(known.clone(), now);
        assert!(dialing.due(now, WANTED_PEERS).is_empty());
        let first = dialing.due(now, 0);
        let dialled: Vec<_> = first.iter().filter_map(DialOpts::get_peer_id).collect();
        assert_eq!(dialled, known[..DIALS_A_TICK], "the best first");
        assert_eq!(dialing.due(now, 0).len(), 2);
        assert!(dialing.due(now, 0).is_empty());
        // When all have failed they are tried again: a laptop may have been without a network.
        for dial in first {
            dialing.failed(dial.connection_id(), now, "unreachable", |_| false);
        }
        assert!(dialing.due(now + PAUSES.0, 0).is_empty(), "not at once");
        assert_eq!(dialing.due(now + 2 * PAUSES.0 * PATIENT.0, 0).len(), DIALS_A_TICK);
    }

    #[test]
    fn a_source_with_thousands_of_dead_addresses_delays_no_other() {
        let (good, now) = (PeerId::random(), Instant::now());
        let mut dialing = dialing();
        let (flood, honest) = (Source(2), Source(3));
        dialing.offer(flood, many(10_000), now);
        assert_eq!(dialing.states()[&flood].addresses, MAX_SOURCE_ADDRESSES);
        for _ in 0..100 {
            dialing.due(now, 0);
        }
        let under_way = dialing.lines[&flood].dialling();
        assert_eq!(under_way, MAX_ENTRY_DIALS_PER_SOURCE, "none of them answers");
        dialing.offer(honest, [address(1, good)], now);
        dialing.offer(Source::CONFIGURED, [address(2, good)], now);
        let due = dialing.due(now, 0);
        assert_eq!(due.len(), 1, "one peer of two sources is one attempt");
        assert_eq!(due[0].get_peer_id(), Some(good));
        // Even many floods leave a place for those that come before them.
        for source in 4..40 {
            dialing.offer(Source(source), many(100), now);
            dialing.due(now, 0);
        }
        let all = dialing.candidates().filter(|c| matches!(c.state, State::Dialling(_))).count();
        assert!(all <= MAX_ENTRY_DIALS, "{all}");
    }

    #[test]
    fn shared_entry_nodes_are_let_be_when_enough_peers_are_connected() {
        let now = Instant::now();
        let mut dialing = dialing();
        dialing.offer(Source::FIRST_OTHER, many(3), now);
        assert!(dialing.due(now, ENOUGH_PEERS).is_empty());
        assert_eq!(dialing.due(now, ENOUGH_PEERS - 1).len(), 3);
    }

    #[test]
    fn what_a_source_no_longer_says_is_forgotten_and_the_rest_keeps_its_place() {
        let now = Instant::now();
        let mut dialing = dialing();
        let addresses = many(3);
        dialing.offer(Source(2), addresses[..2].to_vec(), now);
        for dial in dialing.due(now, 0) {
            dialing.failed(dial.connection_id(), now, "refused", |_| false);
        }
        let again = [addresses[1].clone(), addresses[2].clone(), addresses[2].clone()];
        dialing.offer(Source(2), again, now);
        let state = &dialing.states()[&Source(2)];
        assert_eq!((state.addresses, state.failing), (2, 1));
        assert_eq!(dialing.due(now, 0).len(), 1, "the new one; the other waits as before");
        dialing.offer(Source(3), [address(9, dialing.local)], now);
        assert_eq!(dialing.states()[&Source(3)].addresses, 0, "this node itself");
    }
}
