//! Places at relays: where a node that others cannot reach is called from.
//!
//! Only bookkeeping: time and candidates are arguments. A relay that has refused, or lost its place
//! soon, is left alone for a while, so that a full one isn't asked again and again.

use libp2p::PeerId;
use libp2p::core::transport::ListenerId;
use narswarm_protocol::limits::RELAYS_WANTED;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long a relay that has refused is left alone.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// Refusals remembered: more relays than are ever tried.
const MAX_REFUSALS: usize = 256;

/// A place at a relay.
struct Place {
    relay: PeerId,
    listener: ListenerId,
    granted: bool,
}

/// See the module.
#[derive(Default)]
pub struct Relays {
    places: Vec<Place>,
    refused: HashMap<PeerId, Instant>,
}

impl Relays {
    /// Which of these relays to ask for a place now, the best standing first.
    pub fn to_ask(
        &mut self,
        now: Instant,
        candidates: impl IntoIterator<Item = PeerId>,
    ) -> Vec<PeerId> {
        self.refused.retain(|_, until| *until > now);
        let missing = RELAYS_WANTED.saturating_sub(self.places.len());
        let free = |relay: &PeerId| {
            !self.refused.contains_key(relay) && !self.places.iter().any(|p| p.relay == *relay)
        };
        candidates.into_iter().filter(free).take(missing).collect()
    }

    /// A relay is asked, with this listener.
    pub fn asked(&mut self, relay: PeerId, listener: ListenerId) {
        self.places.push(Place { relay, listener, granted: false });
    }

    /// A relay could not even be asked.
    pub fn failed(&mut self, relay: PeerId, now: Instant) {
        if self.refused.len() < MAX_REFUSALS {
            self.refused.insert(relay, now + REFUSED_PAUSE);
        }
    }

    /// A relay has given a place.
    pub fn granted(&mut self, relay: &PeerId) {
        for place in self.places.iter_mut().filter(|place| place.relay == *relay) {
            place.granted = true;
        }
    }

    /// A listener has ended; says whether it was one of these.
    pub fn ended(&mut self, listener: ListenerId, now: Instant) -> bool {
        let Some(at) = self.places.iter().position(|place| place.listener == listener) else {
            return false;
        };
        let place = self.places.swap_remove(at);
        if !place.granted {
            self.failed(place.relay, now);
        }
        true
    }

    /// Gives up all places; the listeners that are to be removed.
    pub fn give_up(&mut self) -> Vec<ListenerId> {
        self.places.drain(..).map(|place| place.listener).collect()
    }

    /// The relays where this node has or has asked for a place.
    pub fn peers(&self) -> impl Iterator<Item = PeerId> {
        self.places.iter().map(|place| place.relay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_relays_are_wanted_and_who_refuses_is_left_alone() {
        let (mut relays, now) = (Relays::default(), Instant::now());
        let peers: Vec<_> = (0..3).map(|_| PeerId::random()).collect();
        assert_eq!(relays.to_ask(now, peers.clone()), peers[..2]);
        let (first, second) = (ListenerId::next(), ListenerId::next());
        relays.asked(peers[0], first);
        assert_eq!(relays.to_ask(now, peers.clone()), peers[1..2]);
        relays.asked(peers[1], second);
        assert!(relays.to_ask(now, peers.clone()).is_empty());
        relays.granted(&peers[1]);
        assert!(relays.ended(first, now) && !relays.ended(first, now), "refused");
        assert_eq!(relays.to_ask(now, peers.clone()), peers[2..]);
        assert!(relays.ended(second, now), "lost");
        assert_eq!(relays.to_ask(now, peers.clone()), peers[1..]);
        assert_eq!(relays.to_ask(now + REFUSED_PAUSE, peers.clone()), peers[..2]);
    }
}
