//! Giving pieces: which asker gets which piece next.
//!
//! [`Uploads`] is a state machine without I/O, one for a whole node, whatever the number of
//! sessions and nars. Wishes go in by `handle_*`; [`Uploads::poll_give`] hands out *slots*, each
//! for one piece that the driver then reads and writes; [`Uploads::handle_given`] returns it once
//! the network has taken the piece.
//!
//! ```text
//!  handle_want ──► queued ──poll_give──► in a slot ──handle_given──► given
//!                    │ 300 ms of nothing                    │ far too long
//!                    └──► poll_waiting: "still here"        └──► the slot goes to another asker
//! ```
//!
//! Upload is what a swarm is short of. So under contention: caps on the rate hold; of the askers
//! with the fewest pieces in slots (else those that take them slowly, and so have got least, would
//! come to occupy all), the one that got the fewest octets lately is next (start-time fair
//! queueing: nobody gains by waiting or by coming anew); and of several askers' wishes for one nar, pieces that this node
//! has given the fewest times go first, so that a seed in a flash crowd gives every piece once
//! before it gives any twice, and the crowd exchanges the rest. Without contention, an asker is
//! served in the order in which it asked.
//!
//! [`Packing`] decides for each asker whether what lies uncompressed is compressed on its way.

mod asker;
mod bucket;
mod counts;
mod packing;
mod slots;
#[cfg(test)]
mod tests;

pub use bucket::Bucket;
pub use packing::Packing;

use crate::fetch::Time;
use crate::limits::{MAX_GIVEN_BYTES, UPLOAD_HEARTBEAT};
use crate::piece::PieceLayout;
use asker::{Asker, Given};
use counts::Counts;
use slots::Slots;
use std::collections::{BTreeMap, BTreeSet};

/// Octets by which an asker that could not be served may lag behind the others and still catch
/// up: four of the smallest pieces. More would let it shut out the others when it comes back.
const MAX_CREDIT_BYTES: u64 = 1 << 20;

/// How much is given, and to how many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadConfig {
    /// Pieces that are being written at once, over all askers, at the start and at least. Few
    /// pieces at a time are each finished, and passed on, the sooner.
    pub slots: u32,
    /// Pieces that are being written at once at most. Slots are added while that makes the whole
    /// faster.
    pub most_slots: u32,
    /// Octets a second to all askers together; `None` for no cap.
    pub rate: Option<u64>,
    /// Octets a second to each asker; `None` for no cap.
    pub per_peer_rate: Option<u64>,
}

impl Default for UploadConfig {
    /// Two slots keep an uplink full while one of its pieces waits for a slow asker. Thirty-two
    /// keep a gigabit full with pieces that each take tens of milliseconds.
    fn default() -> Self {
        Self { slots: 2, most_slots: 32, rate: None, per_peer_rate: None }
    }
}

/// Who asks: one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AskerId(pub u64);

/// A piece that is to be given now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Give {
    /// To whom.
    pub asker: AskerId,
    /// The driver's number of the nar.
    pub nar: u32,
    /// The piece.
    pub index: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Uploads {
    per_peer_rate: Option<u64>,
    bucket: Bucket,
    slots: Slots,
    askers: BTreeMap<AskerId, Asker>,
    counts: Counts,
    /// What the asker served last had been given by then, on the askers' common scale.
    served: u64,
    /// Octets in slots.
    outstanding: u64,
    /// When which asker is to be told that its wishes for which nar are not forgotten.
    heartbeats: BTreeSet<(Time, AskerId, u32)>,
    /// The latest time heard of.
    now: Time,
}

impl Uploads {
    /// Nobody asks yet.
    #[must_use]
    pub fn new(config: UploadConfig, now: Time) -> Self {
        Self {
            per_peer_rate: config.per_peer_rate,
            bucket: Bucket::new(config.rate, now),
            slots: Slots::new(config.slots, config.most_slots),
            askers: BTreeMap::new(),
            counts: Counts::default(),
            served: 0,
            outstanding: 0,
            heartbeats: BTreeSet::new(),
            now,
        }
    }

    /// How a nar is cut, from which it follows how much a piece takes. Without it pieces are
    /// taken for the smallest there are until they have been given.
    pub fn handle_nar(&mut self, nar: u32, layout: PieceLayout, now: Time) {
        self.counts.set_piece_bytes(nar, layout.piece_size(), now);
    }

    /// An asker wants pieces of a nar. The number of the nar is the same for all askers. What
    /// goes beyond [`MAX_WANTED_PIECES`](crate::limits::MAX_WANTED_PIECES) is ignored.
    pub fn handle_want(&mut self, asker: AskerId, nar: u32, first: u32, count: u32, now: Time) {
        self.now = self.now.max(now);
        let (per_peer_rate, served) = (self.per_peer_rate, self.served);
        let entry = self
            .askers
            .entry(asker)
            .or_insert_with(|| Asker::new(Bucket::new(per_peer_rate, now), served));
        if entry.is_idle() {
            // Whoever wanted nothing has saved up nothing.
            entry.served = entry.served.max(served);
        }
        if entry.want(nar, first, count) && entry.beat(nar).is_none() {
            self.counts.join(nar, now);
            self.set_heartbeat(asker, nar, Some(now + UPLOAD_HEARTBEAT));
        }
    }

    /// An asker takes wishes back. Pieces in slots are not affected; the driver that leaves one
    /// out says so by [`Uploads::handle_given`] with no octets.
    pub fn handle_cancel(&mut self, asker: AskerId, nar: u32, first: u32, count: u32) {
        let Some(entry) = self.askers.get_mut(&asker) else { return };
        entry.cancel(nar, first, count);
        self.settle(asker, nar);
    }

    /// An asker's session is over.
    pub fn handle_gone(&mut self, asker: AskerId) {
        let Some(entry) = self.askers.remove(&asker) else { return };
        for (nar, beat) in entry.beats() {
            self.heartbeats.remove(&(beat, asker, nar));
            self.counts.leave(nar, self.now);
        }
        for given in entry.in_slots() {
            self.take_back(given, 0);
        }
    }

    /// The next piece to give, if one may be given now. It occupies a slot until
    /// [`Uploads::handle_given`].
    pub fn poll_give(&mut self, now: Time) -> Option<Give> {
        self.now = self.now.max(now);
        if self.heartbeats.is_empty() {
            return None;
        }
        let typical = self.slots.patience();
        let stalled = |asker: &Asker| asker.stalled_at(typical).is_some_and(|at| at <= now);
        let used = self.askers.values().filter(|asker| !stalled(asker)).map(Asker::slots).sum();
        if !self.slots.has_room(used, now) || self.outstanding >= MAX_GIVEN_BYTES {
            return None;
        }
        if !self.bucket.is_ready(now) {
            return None;
        }
        let least = self.served.saturating_sub(MAX_CREDIT_BYTES);
        let (&asker, entry) = self
            .askers
            .iter_mut()
            .filter(|(_, asker)| asker.wants_any() && !stalled(asker))
            .filter_map(|(id, asker)| asker.bucket.is_ready(now).then_some((id, asker)))
            .min_by_key(|(id, asker)| (asker.slots(), asker.served.max(least), **id))?;
        let (nar, index) = entry.next(&self.counts)?;
        let charged = self.counts.piece_bytes(nar);
        entry.served = entry.served.max(least);
        self.served = self.served.max(entry.served);
        entry.put_in_slot(Given { nar, index, charged, at: now });
        self.bucket.charge(charged);
        self.outstanding += charged;
        self.counts.add(nar, index);
        self.slots.started(now);
        self.set_heartbeat(asker, nar, Some(now + UPLOAD_HEARTBEAT));
        self.settle(asker, nar);
        Some(Give { asker, nar, index })
    }

    /// The network has taken the piece that has been longest in a slot of this asker, `bytes`
    /// octets of it; or it was left out, with no octets. The slot is free again.
    pub fn handle_given(&mut self, asker: AskerId, bytes: u64, now: Time) {
        let Some(entry) = self.askers.get_mut(&asker) else { return };
        let Some(given) = entry.leave_slot(bytes, now) else { return };
        self.take_back(given, bytes);
        if bytes > 0 {
            self.slots.given(bytes, now.since(given.at), now);
        }
    }

    /// An asker to be told that it is not forgotten: its wishes for this nar have been given
    /// nothing for [`UPLOAD_HEARTBEAT`].
    pub fn poll_waiting(&mut self, now: Time) -> Option<(AskerId, u32)> {
        let &(at, asker, nar) = self.heartbeats.first()?;
        if at > now {
            return None;
        }
        self.set_heartbeat(asker, nar, Some(now + UPLOAD_HEARTBEAT));
        Some((asker, nar))
    }

    /// When time alone lets a piece be given or an asker be told. For a time that has passed, the
    /// driver has yet to poll.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let &(heartbeat, ..) = self.heartbeats.first()?;
        let typical = self.slots.patience();
        let freed = self.askers.values().filter_map(|asker| asker.stalled_at(typical)).min();
        let waits = self.askers.values().filter(|asker| asker.wants_any());
        let allowed = waits.map(|asker| asker.bucket.ready_at()).min();
        let allowed = allowed.map(|at| at.max(self.bucket.ready_at()));
        // Those that have come without letting anything happen are not waited for.
        let seen = self.slots.polled();
        let later = |at: &Time| *at > seen;
        freed.filter(later).into_iter().chain(allowed.filter(later)).chain([heartbeat]).min()
    }

    /// How many pieces may be in slots now.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots.limit()
    }

    /// Pieces in slots, those of askers included that take nothing any more.
    #[must_use]
    pub fn slots_used(&self) -> u32 {
        self.askers.values().map(Asker::slots).sum()
    }

    /// Replaces the charge for a piece by what it took.
    fn take_back(&mut self, given: Given, bytes: u64) {
        self.outstanding -= given.charged;
        self.bucket.correct(given.charged, bytes);
        if bytes == 0 {
            self.counts.subtract(given.nar, given.index);
        }
    }

    /// Forgets the heartbeat of a nar of which the asker wants nothing any more.
    fn settle(&mut self, asker: AskerId, nar: u32) {
        let wants = self.askers.get(&asker).is_some_and(|entry| entry.wants_of(nar));
        if !wants && self.set_heartbeat(asker, nar, None) {
            self.counts.leave(nar, self.now);
        }
    }

    /// Moves, sets or (`None`) removes a heartbeat; says whether there was one.
    fn set_heartbeat(&mut self, asker: AskerId, nar: u32, at: Option<Time>) -> bool {
        let Some(entry) = self.askers.get_mut(&asker) else { return false };
        let before = entry.set_beat(nar, at);
        if let Some(before) = before {
            self.heartbeats.remove(&(before, asker, nar));
        }
        if let Some(at) = at {
            self.heartbeats.insert((at, asker, nar));
        }
        before.is_some()
    }
}
