//! Many small nars on one stream: a session with a peer that fetches share, each with a slot of its
//! own, and that outlives them.
//!
//! A stream for each nar would cost both sides more than a small nar itself, and only a few streams
//! may be open at a time, so that most would wait for a round trip of others. Here what is asked at
//! the same moment leaves in one write. It refuses nars beyond [`MAX_FETCH_SLOTS`] at a time, and
//! carries no large ones: their pieces would be in the way of everybody else's.

use super::{FetchRequests, FetchResponses};
use crate::net::error::PeerError;
use libp2p::PeerId;
use narswarm_protocol::limits::MAX_FETCH_SLOTS;
use narswarm_protocol::wire::fetch::{FetchRequest, FetchResponse};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How long a session without nars is kept for the next: guix unpacks and registers one item before
/// it asks for another. A quarter of what holders allow, so that it ends here first.
const IDLE: Duration = Duration::from_secs(30);

/// Answers that wait for one nar's fetch: its opening, its few pieces, and news of more pieces.
const WAITING_ANSWERS: usize = 16;

/// How often a fetch that waits looks whether its peer gives others something meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What a fetch is sent.
type Answer = Result<FetchResponse, PeerError>;

/// The sessions that are shared, one with each peer.
#[derive(Default)]
pub struct SharedSessions(Mutex<HashMap<PeerId, Arc<Place>>>);

/// Where the session with a peer is, if there is one; locked while it is being opened, so that it
/// is opened once.
type Place = tokio::sync::Mutex<Option<Arc<SharedSession>>>;

struct SharedSession {
    requests: FetchRequests,
    /// Octets of pieces that have come for all nars.
    received: Arc<AtomicU64>,
    slots: Mutex<Slots>,
}

struct Slots {
    /// Where each nar's answers go.
    boxes: BTreeMap<u32, mpsc::Sender<Answer>>,
    next: u32,
    /// Since when there is none.
    empty_since: Instant,
    over: bool,
}

/// One nar's slot in a shared session; given back when dropped.
pub struct SlotResponses {
    session: Arc<SharedSession>,
    slot: u32,
    answers: mpsc::Receiver<Answer>,
    /// What the session had received when this nar last looked.
    seen: u64,
}

impl SharedSessions {
    /// A slot in the session with `peer`, which `open` opens if there is none. `None` when all slots
    /// are taken.
    pub async fn join(
        &self,
        peer: PeerId,
        open: impl Future<Output = Result<(FetchRequests, FetchResponses), PeerError>>,
    ) -> Result<Option<(FetchRequests, SlotResponses)>, PeerError> {
        let place = self.place(peer);
        let mut place = place.lock().await;
        if let Some(session) = &*place {
            match session.take_slot() {
                Err(Over) => {}
                Ok(None) => return Ok(None),
                Ok(Some(slot)) => return Ok(Some((session.requests.clone(), slot))),
            }
        }
        let (requests, responses) = open.await?;
        let session = Arc::new(SharedSession::new(requests, &responses));
        let slot = session.take_slot().ok().flatten();
        tokio::spawn(hand_out(session.clone(), responses.telling_of_begun()));
        *place = Some(session.clone());
        Ok(slot.map(|slot| (session.requests.clone(), slot)))
    }

    /// The place of a peer's session. Those of sessions that are over are cleared away, so that
    /// there are no more than connections.
    fn place(&self, peer: PeerId) -> Arc<Place> {
        let mut places = self.0.lock();
        if let Some(place) = places.get(&peer) {
            return place.clone();
        }
        places.retain(|_, place| match place.try_lock() {
            Ok(session) => session.as_ref().is_some_and(|session| !session.slots.lock().over),
            Err(_) => true,
        });
        places.entry(peer).or_default().clone()
    }
}

/// The session takes no more nars.
struct Over;

impl SharedSession {
    fn new(requests: FetchRequests, responses: &FetchResponses) -> Self {
        let boxes = BTreeMap::new();
        let slots = Slots { boxes, next: 1, empty_since: Instant::now(), over: false };
        Self { requests, received: responses.received.clone(), slots: Mutex::new(slots) }
    }

    fn take_slot(self: &Arc<Self>) -> Result<Option<SlotResponses>, Over> {
        let mut slots = self.slots.lock();
        // Numbers aren't used again: answers to who had one before may be on their way.
        if slots.over || slots.next == u32::MAX {
            return Err(Over);
        }
        if slots.boxes.len() >= MAX_FETCH_SLOTS {
            return Ok(None);
        }
        let slot = slots.next;
        slots.next += 1;
        let (sender, answers) = mpsc::channel(WAITING_ANSWERS);
        slots.boxes.insert(slot, sender);
        let seen = self.received.load(Ordering::Relaxed);
        Ok(Some(SlotResponses { session: self.clone(), slot, answers, seen }))
    }

    /// Hands an answer to whom it concerns. Whoever doesn't take his answers loses his slot.
    fn hand(&self, slot: u32, response: FetchResponse) {
        let mut slots = self.slots.lock();
        let Some(sender) = slots.boxes.get(&slot) else { return };
        if sender.try_send(Ok(response)).is_err() {
            slots.boxes.remove(&slot);
        }
    }

    /// When the session is to be looked at again; `None` when it has been empty for so long that
    /// it is over.
    fn idle_until(&self) -> Option<Instant> {
        let mut slots = self.slots.lock();
        let now = Instant::now();
        if !slots.boxes.is_empty() {
            return Some(now + IDLE);
        }
        let until = slots.empty_since + IDLE;
        slots.over = until <= now;
        (!slots.over).then_some(until)
    }

    /// The session has ended: everybody is told.
    fn end(&self, error: &PeerError) {
        let mut slots = self.slots.lock();
        slots.over = true;
        for sender in std::mem::take(&mut slots.boxes).into_values() {
            // Who has no room for it finds his box closed.
            let _ = sender.try_send(Err(error.clone()));
        }
    }
}

/// Reads the session's answers and hands them out, until it ends or nobody has used it for long.
async fn hand_out(session: Arc<SharedSession>, mut responses: FetchResponses) {
    let peer = responses.peer();
    let error = loop {
        // Must not be dropped while it waits, but together with the session.
        let mut next = pin!(responses.next());
        let response = loop {
            let Some(until) = session.idle_until() else { return };
            tokio::select! {
                biased;
                response = &mut next => break response,
                () = tokio::time::sleep_until(until.into()) => {}
            }
        };
        match response {
            Some(Ok(response)) => session.hand(response.slot(), response),
            Some(Err(error)) => break error,
            None => break PeerError::Closed { peer, doing: super::DOING },
        }
    };
    session.end(&error);
}

impl SlotResponses {
    /// The number by which this nar is called in the session.
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// The next answer; `None` when the session has ended and that was said. What the peer gives
    /// others in the session meanwhile counts into `received`: it is not frozen then.
    pub async fn next(&mut self, received: &AtomicU64) -> Option<Answer> {
        loop {
            let answer = tokio::time::timeout(LOOK_EVERY, self.answers.recv()).await;
            let total = self.session.received.load(Ordering::Relaxed);
            received.fetch_add(total - std::mem::replace(&mut self.seen, total), Ordering::Relaxed);
            if let Ok(answer) = answer {
                return answer;
            }
        }
    }
}

impl Drop for SlotResponses {
    fn drop(&mut self) {
        let mut slots = self.session.slots.lock();
        slots.boxes.remove(&self.slot);
        slots.empty_since = Instant::now();
        let over = slots.over;
        drop(slots);
        if !over {
            self.session.requests.send_soon(FetchRequest::Close { slot: self.slot });
        }
    }
}
