//! Places at relays: where a node that others cannot reach is called from.
//!
//! Only bookkeeping: time and candidates are arguments. A relay that has refused, or lost its place
//! soon, is left alone for a while, so that a full one isn't asked again and again.

use libp2p::PeerId;
use libp2p::core::transport::ListenerId;
use narswarm_protocol::limits::RELAYS_WANTED;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long a relay that has refused is left alone, at first and at most: twice as long each time. A
/// relay may have become one a moment ago, and not yet know its own addresses.
const REFUSED_PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));

/// How long a relay may take to answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// Refusals remembered: more relays than are ever tried.
const MAX_REFUSALS: usize = 256;

/// A place at a relay.
struct Place {
    relay: PeerId,
    listener: ListenerId,
    asked: Instant,
    granted: bool,
}

/// See the module.
#[derive(Default)]
pub struct Relays {
    places: Vec<Place>,
    /// Until when, and for how long.
    refused: HashMap<PeerId, (Instant, Duration)>,
}

impl Relays {
    /// Which of these relays to ask for a place now, the best standing first.
    pub fn to_ask(
        &mut self,
        now: Instant,
        candidates: impl IntoIterator<Item = PeerId>,
    ) -> Vec<PeerId> {
        // How long is forgotten when it has been left alone for as long again.
        self.refused.retain(|_, (until, pause)| *until + *pause > now);
        let missing = RELAYS_WANTED.saturating_sub(self.places.len());
        let free = |relay: &PeerId| {
            let refused = self.refused.get(relay).is_some_and(|(until, _)| *until > now);
            !refused && !self.places.iter().any(|p| p.relay == *relay)
        };
        candidates.into_iter().filter(free).take(missing).collect()
    }

    /// A relay is asked, with this listener.
    pub fn asked(&mut self, relay: PeerId, listener: ListenerId, now: Instant) {
        self.places.push(Place { relay, listener, asked: now, granted: false });
    }

    /// Listeners whose relays have not answered in time, to be removed.
    pub fn unanswered(&mut self, now: Instant) -> Vec<ListenerId> {
        let late = |place: &Place| !place.granted && now >= place.asked + ANSWER_PATIENCE;
        let late: Vec<_> =
            self.places.iter().filter(|place| late(place)).map(|place| place.listener).collect();
        for listener in &late {
            self.ended(*listener, now);
        }
        late
    }

    /// A relay could not even be asked.
    pub fn failed(&mut self, relay: PeerId, now: Instant) {
        if self.refused.len() < MAX_REFUSALS || self.refused.contains_key(&relay) {
            let before = self.refused.get(&relay).map(|(_, pause)| *pause);
            let pause = before.map_or(REFUSED_PAUSE.0, |pause| (pause * 2).min(REFUSED_PAUSE.1));
            self.refused.insert(relay, (now + pause, pause));
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
        relays.asked(peers[0], first, now);
        assert_eq!(relays.to_ask(now, peers.clone()), peers[1..2]);
        relays.asked(peers[1], second, now);
        assert!(relays.to_ask(now, peers.clone()).is_empty());
        relays.granted(&peers[1]);
        assert!(relays.ended(first, now) && !relays.ended(first, now), "refused");
        assert_eq!(relays.to_ask(now, peers.clone()), peers[2..]);
        assert!(relays.ended(second, now), "lost");
        assert_eq!(relays.to_ask(now, peers.clone()), peers[1..]);
        let later = now + REFUSED_PAUSE.0;
        assert_eq!(relays.to_ask(later, peers.clone()), peers[..2]);
        relays.failed(peers[0], later);
        let too_soon = later + REFUSED_PAUSE.0;
        assert_eq!(relays.to_ask(too_soon, peers.clone()), peers[1..], "twice as long");
        assert_eq!(relays.to_ask(later + 2 * REFUSED_PAUSE.0, peers.clone()), peers[..2]);
    }

    #[test]
    fn a_relay_that_does_not_answer_has_refused() {
        let (mut relays, now) = (Relays::default(), Instant::now());
        let (mute, listener) = (PeerId::random(), ListenerId::next());
        relays.asked(mute, listener, now);
        assert!(relays.unanswered(now).is_empty());
        let later = now + ANSWER_PATIENCE;
        assert_eq!(relays.unanswered(later), [listener]);
        assert!(relays.to_ask(later, [mute]).is_empty() && relays.peers().next().is_none());
    }
}
