//! When to dial whom: bootstrap nodes again and again, known peers once.
//!
//! Time is an argument, so that the schedule is tested without waiting.

use super::pacing::peer_of;
use libp2p::swarm::ConnectionId;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::{Multiaddr, PeerId};
use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Known peers that are dialled at the start, until this many are connected: enough to find
/// everybody else, few enough not to bother a whole network at every restart.
const WANTED_PEERS: usize = 24;

/// Known peers dialled with each tick while too few are connected.
const PEERS_A_TICK: usize = 4;

/// How much sooner or later than its pause an attempt is made.
const JITTER: Range<f64> = 0.75..1.25;

/// How a bootstrap node stands.
enum State {
    /// To be dialled at this time.
    Waiting(Instant),
    /// Being dialled.
    Dialling(ConnectionId),
    /// Connected to this peer.
    Connected(PeerId),
}

/// A bootstrap node.
struct Target {
    address: Multiaddr,
    peer: Option<PeerId>,
    state: State,
    pause: Duration,
}

/// See the module.
pub struct Dialing {
    targets: Vec<Target>,
    known: VecDeque<PeerId>,
    pauses: (Duration, Duration),
}

impl Dialing {
    /// Dials `bootstrap` with growing pauses within `pauses`, and then some of `known`.
    pub fn new(
        bootstrap: &[Multiaddr],
        known: impl IntoIterator<Item = PeerId>,
        pauses: (Duration, Duration),
        now: Instant,
    ) -> Self {
        let target = |address: &Multiaddr| Target {
            address: address.clone(),
            peer: peer_of(address),
            state: State::Waiting(now),
            pause: pauses.0,
        };
        let targets = bootstrap.iter().map(target).collect();
        Self { targets, known: known.into_iter().collect(), pauses }
    }

    /// What to dial now, while `connected` peers are connected.
    pub fn due(&mut self, now: Instant, connected: usize) -> Vec<DialOpts> {
        let mut due = Vec::new();
        for target in &mut self.targets {
            if matches!(target.state, State::Waiting(at) if at <= now) {
                let dial = match target.peer {
                    Some(peer) => DialOpts::peer_id(peer)
                        .addresses(vec![target.address.clone()])
                        // Another attempt may know fewer addresses.
                        .condition(PeerCondition::Disconnected)
                        .build(),
                    None => DialOpts::unknown_peer_id().address(target.address.clone()).build(),
                };
                target.state = State::Dialling(dial.connection_id());
                due.push(dial);
            }
        }
        if connected < WANTED_PEERS {
            let known = self.known.drain(..self.known.len().min(PEERS_A_TICK));
            due.extend(known.map(DialOpts::from));
        }
        due
    }

    /// A connection to a peer has been made.
    pub fn connected(&mut self, peer: PeerId, connection: ConnectionId) {
        for target in &mut self.targets {
            let dialled = matches!(target.state, State::Dialling(id) if id == connection);
            if dialled || target.peer == Some(peer) {
                target.state = State::Connected(peer);
                target.pause = self.pauses.0;
            }
        }
    }

    /// The last connection to a peer has ended.
    pub fn disconnected(&mut self, peer: &PeerId, now: Instant) {
        for target in &mut self.targets {
            if matches!(target.state, State::Connected(of) if of == *peer) {
                target.wait(now, self.pauses.1);
            }
        }
    }

    /// An attempt has failed; `connected` tells whether a peer is connected nevertheless.
    pub fn failed(
        &mut self,
        connection: ConnectionId,
        now: Instant,
        connected: impl Fn(&PeerId) -> bool,
    ) {
        for target in &mut self.targets {
            if matches!(target.state, State::Dialling(id) if id == connection) {
                match target.peer.filter(&connected) {
                    Some(peer) => target.state = State::Connected(peer),
                    None => target.wait(now, self.pauses.1),
                }
            }
        }
    }

    /// Whether this peer is a bootstrap node.
    pub fn is_bootstrap(&self, peer: &PeerId) -> bool {
        let is = |target: &Target| {
            target.peer == Some(*peer)
                || matches!(target.state, State::Connected(of) if of == *peer)
        };
        self.targets.iter().any(is)
    }
}

impl Target {
    /// Waits for the next attempt, and longer before the one after it. Not all of those who have
    /// lost the same node come back at the same moment.
    fn wait(&mut self, now: Instant, longest: Duration) {
        self.state = State::Waiting(now + self.pause.mul_f64(rand::random_range(JITTER)));
        self.pause = (self.pause * 2).min(longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));

    #[test]
    fn bootstrap_nodes_are_dialled_with_growing_pauses_until_connected_and_after_loss() {
        let (peer, mut now) = (PeerId::random(), Instant::now());
        let address = format!("/ip4/10.0.0.1/tcp/1/p2p/{peer}").parse().expect("an address");
        let mut dialing = Dialing::new(&[address], [], PAUSES, now);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            let [dial] = &dialing.due(now, 0)[..] else { panic!("one attempt is due") };
            assert_eq!(dial.get_peer_id(), Some(peer));
            assert!(dialing.due(now + 10 * PAUSES.1, 0).is_empty(), "one at a time");
            dialing.failed(dial.connection_id(), now, |_| false);
            let State::Waiting(at) = dialing.targets[0].state else { panic!("waits") };
            assert!(dialing.due(at - Duration::from_millis(1), 0).is_empty());
            pauses.push(at - now);
            now = at;
        }
        let about = |pause: Duration, expected: Duration| {
            JITTER.contains(&(pause.as_secs_f64() / expected.as_secs_f64()))
        };
        for (number, pause) in pauses[..3].iter().enumerate() {
            assert!(about(*pause, PAUSES.0 * (1 << number)), "{pauses:?}");
        }
        assert!(about(pauses[11], PAUSES.1), "{pauses:?}");

        let [dial] = &dialing.due(now, 0)[..] else { panic!("one attempt is due") };
        dialing.connected(peer, dial.connection_id());
        assert!(dialing.due(now + PAUSES.1, 0).is_empty());
        dialing.disconnected(&peer, now);
        assert_eq!(dialing.due(now + 2 * PAUSES.0, 0).len(), 1, "from the shortest pause again");
    }

    #[test]
    fn the_peer_behind_a_bare_address_is_learned() {
        let (peer, now) = (PeerId::random(), Instant::now());
        let address = "/ip4/10.0.0.1/tcp/1".parse().expect("an address");
        let mut dialing = Dialing::new(&[address], [], PAUSES, now);
        let dial = dialing.due(now, 0).remove(0);
        assert!(!dialing.is_bootstrap(&peer));
        dialing.connected(peer, dial.connection_id());
        assert!(dialing.is_bootstrap(&peer));
        dialing.disconnected(&PeerId::random(), now);
        assert!(dialing.due(now + PAUSES.1, 0).is_empty());
        dialing.disconnected(&peer, now);
        assert_eq!(dialing.due(now + PAUSES.1, 0).len(), 1);
    }

    #[test]
    fn an_attempt_that_was_not_needed_counts_as_connected() {
        let (peer, now) = (PeerId::random(), Instant::now());
        let address = format!("/ip4/10.0.0.1/tcp/1/p2p/{peer}").parse().expect("an address");
        let mut dialing = Dialing::new(&[address], [], PAUSES, now);
        let dial = dialing.due(now, 0).remove(0);
        dialing.failed(dial.connection_id(), now, |of| *of == peer);
        assert!(dialing.due(now + PAUSES.1, 0).is_empty());
    }

    #[test]
    fn known_peers_are_dialled_a_few_at_a_time_while_few_are_connected() {
        let now = Instant::now();
        let known: Vec<_> = (0..6).map(|_| PeerId::random()).collect();
        let mut dialing = Dialing::new(&[], known, PAUSES, now);
        assert!(dialing.due(now, WANTED_PEERS).is_empty());
        assert_eq!(dialing.due(now, 0).len(), PEERS_A_TICK);
        assert_eq!(dialing.due(now, 0).len(), 2);
        assert!(dialing.due(now, 0).is_empty());
    }
}
