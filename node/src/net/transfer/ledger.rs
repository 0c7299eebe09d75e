//! What has been asked for in a fetch session, and what may therefore come.

use crate::net::error::Fault;
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::limits::{MAX_FETCH_SLOTS, MAX_WANTED_PIECES};
use narswarm_protocol::piece::PieceLayout;
use narswarm_protocol::piece_set::PieceSet;
use narswarm_protocol::wire::fetch::{Encoding, FetchReply, FetchRequest, Opened, PieceHead};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Closed slots that are remembered because pieces of them may still be on their way. A peer's
/// pieces on their way are at most a few MiB, so those of older ones have long arrived.
const CLOSED_SLOTS: usize = 256;

/// Whether an answer is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Pass it on.
    Deliver,
    /// It was on its way when its slot was closed.
    Discard,
}

/// A nar of the session.
struct Slot {
    nar_hash: NarHash,
    layout: PieceLayout,
    opened: bool,
    /// Asked for, neither answered nor cancelled.
    wanted: PieceSet,
    /// How often a piece may still come: cancelled ones may be on their way.
    due: BTreeMap<u32, u32>,
}

/// A closed nar.
struct Closed {
    slot: u32,
    layout: PieceLayout,
    opened: bool,
    due: u64,
}

/// See the module.
#[derive(Default)]
pub struct Ledger {
    slots: BTreeMap<u32, Slot>,
    closed: VecDeque<Closed>,
    wanted: u32,
    /// Since when something is owed without anything coming.
    waiting_since: Option<Instant>,
}

impl Ledger {
    /// Pieces asked for, neither answered nor cancelled.
    pub fn wanted(&self) -> u32 {
        self.wanted
    }

    /// Whether the peer owes an answer.
    pub fn owes(&self) -> bool {
        self.wanted > 0 || self.slots.values().any(|slot| !slot.opened)
    }

    /// Whether something has been owed for as long as `stall` without anything coming.
    pub fn overdue(&self, now: Instant, stall: Duration) -> bool {
        self.owes() && self.waiting_since.is_some_and(|since| now - since >= stall)
    }

    /// Notes a request, and says whether it is to be sent: not if its nar has been refused.
    pub fn request(&mut self, request: &FetchRequest, now: Instant) -> Result<bool, &'static str> {
        let owed = self.owes();
        let send = match *request {
            FetchRequest::Open { slot, nar_hash, nar_size, first, count } => {
                self.open(slot, nar_hash, nar_size)?;
                let wanted = if count == 0 { Ok(true) } else { self.want(slot, first, count) };
                if wanted.is_err() {
                    self.slots.remove(&slot);
                }
                wanted?
            }
            FetchRequest::Want { slot, first, count } => self.want(slot, first, count)?,
            FetchRequest::Cancel { slot, first, count } => self.cancel(slot, first, count),
            FetchRequest::Close { slot } => self.close(slot),
        };
        if !owed {
            self.waiting_since = Some(now);
        }
        Ok(send)
    }

    fn open(&mut self, slot: u32, nar_hash: NarHash, nar_size: u64) -> Result<(), &'static str> {
        let layout = PieceLayout::new(nar_size).ok_or("the nar is larger than is handled")?;
        if self.slots.len() >= MAX_FETCH_SLOTS {
            return Err("too many nars are open in the session");
        }
        if self.slots.contains_key(&slot) || self.closed.iter().any(|closed| closed.slot == slot) {
            return Err("the slot is in use, or was closed just now");
        }
        let wanted = PieceSet::none(layout.piece_count());
        let due = BTreeMap::new();
        self.slots.insert(slot, Slot { nar_hash, layout, opened: false, wanted, due });
        Ok(())
    }

    fn want(&mut self, slot: u32, first: u32, count: u32) -> Result<bool, &'static str> {
        let Some(slot) = self.slots.get_mut(&slot) else { return Ok(false) };
        let end = first.checked_add(count).filter(|&end| end <= slot.layout.piece_count());
        let range = first..end.ok_or("pieces past the end of the nar")?;
        if count > MAX_WANTED_PIECES - self.wanted {
            return Err("too many pieces are asked for at a time");
        }
        if range.clone().any(|index| slot.wanted.contains(index)) {
            return Err("a piece is asked for already");
        }
        for index in range {
            slot.wanted.insert(index);
            *slot.due.entry(index).or_default() += 1;
        }
        self.wanted += count;
        Ok(count > 0)
    }

    fn cancel(&mut self, slot: u32, first: u32, count: u32) -> bool {
        let Some(slot) = self.slots.get_mut(&slot) else { return false };
        let range = first..first.saturating_add(count).min(slot.layout.piece_count());
        let cancelled = range.filter(|&index| slot.wanted.remove(index)).count() as u32;
        self.wanted -= cancelled;
        cancelled > 0
    }

    fn close(&mut self, slot: u32) -> bool {
        let Some(gone) = self.slots.remove(&slot) else { return false };
        self.wanted -= gone.wanted.len();
        if self.closed.len() == CLOSED_SLOTS {
            self.closed.pop_front();
        }
        let due = gone.due.values().map(|&times| u64::from(times)).sum();
        self.closed.push_back(Closed { slot, layout: gone.layout, opened: gone.opened, due });
        true
    }

    /// Checks a reply against what was asked.
    pub fn reply(&mut self, reply: &FetchReply, now: Instant) -> Result<Delivery, Fault> {
        self.waiting_since = Some(now);
        match reply {
            FetchReply::Opened(opened) => self.opened(opened),
            &FetchReply::Refused { slot, .. } => self.refused(slot),
            FetchReply::Piece(head) => self.piece(head),
            &FetchReply::Missing { slot, index } => self.answered(slot, index),
            FetchReply::Have { slot, ranges } => self.have(*slot, ranges),
        }
    }

    fn opened(&mut self, opened: &Opened) -> Result<Delivery, Fault> {
        let slot = opened.slot;
        let Some(state) = self.slots.get_mut(&slot) else { return self.opened_late(slot) };
        if state.opened {
            return Err(Fault::OpenedTwice { slot });
        }
        let (found, expected) = (opened.list.layout().nar_size(), state.layout.nar_size());
        if found != expected {
            return Err(Fault::NarSize { slot, found, expected });
        }
        if opened.list.root(&state.nar_hash) != opened.root {
            return Err(Fault::Root { slot });
        }
        state.opened = true;
        Ok(Delivery::Deliver)
    }

    fn refused(&mut self, slot: u32) -> Result<Delivery, Fault> {
        match self.slots.get(&slot) {
            None => self.opened_late(slot),
            Some(state) if state.opened => Err(Fault::OpenedTwice { slot }),
            Some(state) => {
                self.wanted -= state.wanted.len();
                self.slots.remove(&slot);
                Ok(Delivery::Deliver)
            }
        }
    }

    /// A first answer to a slot that is not open: it must have been closed before it came.
    fn opened_late(&mut self, slot: u32) -> Result<Delivery, Fault> {
        let closed = self.closed.iter_mut().find(|closed| closed.slot == slot);
        let closed = closed.ok_or(Fault::Slot { slot })?;
        if std::mem::replace(&mut closed.opened, true) {
            return Err(Fault::OpenedTwice { slot });
        }
        Ok(Delivery::Discard)
    }

    fn piece(&mut self, head: &PieceHead) -> Result<Delivery, Fault> {
        let &PieceHead { slot, index, encoding, len } = head;
        let layout = match self.slots.get(&slot) {
            Some(state) => state.layout,
            None => {
                let closed = self.closed.iter().find(|closed| closed.slot == slot);
                closed.ok_or(Fault::Slot { slot })?.layout
            }
        };
        let delivery = self.answered(slot, index)?;
        let limit = encoding.max_frame_bytes(layout.piece_len(index));
        let fits = match encoding {
            Encoding::Raw => len as usize == limit,
            Encoding::Zstd => (1..=limit).contains(&(len as usize)),
        };
        if !fits {
            return Err(Fault::FrameLength { slot, index, found: len, limit });
        }
        Ok(delivery)
    }

    /// A wanted piece has come, or will not come.
    fn answered(&mut self, slot: u32, index: u32) -> Result<Delivery, Fault> {
        let unasked = Fault::Unasked { slot, index };
        let Some(state) = self.slots.get_mut(&slot) else {
            let closed = self.closed.iter_mut().find(|closed| closed.slot == slot);
            let closed = closed.ok_or(Fault::Slot { slot })?;
            let possible = closed.opened && index < closed.layout.piece_count();
            closed.due = closed.due.checked_sub(1).filter(|_| possible).ok_or(unasked)?;
            return Ok(Delivery::Discard);
        };
        if !state.opened {
            return Err(Fault::Slot { slot });
        }
        let times = state.due.get_mut(&index).ok_or(unasked)?;
        *times -= 1;
        if *times == 0 {
            state.due.remove(&index);
        }
        if state.wanted.remove(index) {
            self.wanted -= 1;
        }
        Ok(Delivery::Deliver)
    }

    fn have(&mut self, slot: u32, ranges: &[(u32, u32)]) -> Result<Delivery, Fault> {
        let (layout, delivery) = match self.slots.get(&slot) {
            Some(state) if state.opened => (state.layout, Delivery::Deliver),
            Some(_) => return Err(Fault::Slot { slot }),
            None => {
                let closed = self.closed.iter().find(|closed| closed.slot == slot);
                (closed.ok_or(Fault::Slot { slot })?.layout, Delivery::Discard)
            }
        };
        let count = layout.piece_count();
        match ranges.iter().map(|(first, count)| first + count).find(|&end| end > count) {
            Some(end) => Err(Fault::Range { slot, end, count }),
            None => Ok(delivery),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narswarm_protocol::hash::PieceHash;
    use narswarm_protocol::limits::MIN_PIECE_BYTES;
    use narswarm_protocol::piece::PieceList;

    const NAR: NarHash = NarHash([5; 32]);
    const PIECES: u32 = 10;
    const SIZE: u64 = PIECES as u64 * MIN_PIECE_BYTES;

    fn open(first: u32, count: u32) -> FetchRequest {
        FetchRequest::Open { slot: 1, nar_hash: NAR, nar_size: SIZE, first, count }
    }

    fn opened(nar_size: u64) -> Opened {
        let layout = PieceLayout::new(nar_size).expect("layout");
        let hashes = vec![PieceHash([0; 32]); layout.piece_count() as usize];
        let list = PieceList::new(layout, hashes).expect("list");
        let held = PieceSet::all(layout.piece_count());
        Opened { slot: 1, root: list.root(&NAR), list, held, vouchers: Vec::new() }
    }

    fn piece(index: u32) -> FetchReply {
        let len = MIN_PIECE_BYTES as u32;
        FetchReply::Piece(PieceHead { slot: 1, index, encoding: Encoding::Raw, len })
    }

    /// A ledger with slot 1 open and pieces 0..count wanted.
    fn ledger(count: u32) -> (Ledger, Instant) {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        assert_eq!(ledger.request(&open(0, count), now), Ok(true));
        assert_eq!(ledger.reply(&FetchReply::Opened(opened(SIZE)), now), Ok(Delivery::Deliver));
        (ledger, now)
    }

    #[test]
    fn pieces_may_come_in_any_order_and_a_have_may_be_empty() {
        let (mut ledger, now) = ledger(4);
        for index in [2, 0, 3] {
            assert_eq!(ledger.reply(&piece(index), now), Ok(Delivery::Deliver));
        }
        let later = now + Duration::from_secs(3600);
        let still_here = FetchReply::Have { slot: 1, ranges: Vec::new() };
        assert_eq!(ledger.reply(&still_here, later), Ok(Delivery::Deliver));
        assert!(ledger.owes() && !ledger.overdue(later, Duration::from_secs(1)), "not forgotten");
        assert_eq!(ledger.reply(&piece(1), later), Ok(Delivery::Deliver));
        assert!(!ledger.owes());
    }

    #[test]
    fn only_what_was_asked_may_come_and_only_once() {
        let (mut ledger, now) = ledger(2);
        assert_eq!(ledger.reply(&piece(0), now), Ok(Delivery::Deliver));
        assert_eq!(ledger.reply(&piece(0), now), Err(Fault::Unasked { slot: 1, index: 0 }));
        assert_eq!(ledger.reply(&piece(2), now), Err(Fault::Unasked { slot: 1, index: 2 }));
        let missing = FetchReply::Missing { slot: 1, index: 1 };
        assert_eq!(ledger.reply(&missing, now), Ok(Delivery::Deliver));
        assert!(!ledger.owes());
    }

    #[test]
    fn what_was_cancelled_may_still_come_once() {
        let (mut ledger, now) = ledger(2);
        let cancel = FetchRequest::Cancel { slot: 1, first: 0, count: 9 };
        assert_eq!(ledger.request(&cancel, now), Ok(true));
        assert_eq!((ledger.wanted(), ledger.owes()), (0, false));
        assert_eq!(ledger.reply(&piece(0), now), Ok(Delivery::Deliver));
        assert!(ledger.reply(&piece(0), now).is_err());
        assert_eq!(ledger.wanted(), 0);
    }

    #[test]
    fn what_was_closed_is_discarded_and_still_checked() {
        let (mut ledger, now) = ledger(2);
        assert_eq!(ledger.request(&FetchRequest::Close { slot: 1 }, now), Ok(true));
        assert_eq!(ledger.reply(&piece(0), now), Ok(Delivery::Discard));
        assert_eq!(ledger.reply(&piece(1), now), Ok(Delivery::Discard));
        assert!(ledger.reply(&piece(1), now).is_err(), "two were asked for");
        assert!(ledger.request(&open(0, 1), now).is_err(), "the slot is not free yet");
    }

    #[test]
    fn frames_of_an_impossible_length_are_faults() {
        let lengths = [(Encoding::Raw, 0, 0), (Encoding::Raw, 1, 7), (Encoding::Zstd, 2, 0)];
        for (encoding, index, len) in lengths {
            let (mut ledger, now) = ledger(3);
            let reply = FetchReply::Piece(PieceHead { slot: 1, index, encoding, len });
            assert!(matches!(ledger.reply(&reply, now), Err(Fault::FrameLength { .. })));
        }
        let (mut ledger, now) = ledger(1);
        let len = MIN_PIECE_BYTES as u32 + 1025;
        let encoding = Encoding::Zstd;
        let reply = FetchReply::Piece(PieceHead { slot: 1, index: 0, encoding, len });
        assert!(matches!(ledger.reply(&reply, now), Err(Fault::FrameLength { .. })));
    }

    #[test]
    fn openings_must_fit_the_signed_size_and_their_root() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        ledger.request(&open(0, 1), now).expect("open");
        assert_eq!(ledger.reply(&piece(0), now), Err(Fault::Slot { slot: 1 }), "not opened yet");
        let other = FetchReply::Opened(opened(SIZE + 1));
        assert!(matches!(ledger.reply(&other, now), Err(Fault::NarSize { .. })));
        let mut lie = opened(SIZE);
        lie.root.0[0] ^= 1;
        let lie = FetchReply::Opened(lie);
        assert_eq!(ledger.reply(&lie, now), Err(Fault::Root { slot: 1 }));
        let good = FetchReply::Opened(opened(SIZE));
        assert_eq!(ledger.reply(&good, now), Ok(Delivery::Deliver));
        assert_eq!(ledger.reply(&good, now), Err(Fault::OpenedTwice { slot: 1 }));
        let have = FetchReply::Have { slot: 1, ranges: vec![(8, 3)] };
        assert!(matches!(ledger.reply(&have, now), Err(Fault::Range { .. })));
        let unknown = FetchReply::Have { slot: 2, ranges: vec![] };
        assert_eq!(ledger.reply(&unknown, now), Err(Fault::Slot { slot: 2 }));
    }

    #[test]
    fn this_side_keeps_to_the_limits() {
        let (mut ledger, now) = ledger(2);
        let want = |first, count| FetchRequest::Want { slot: 1, first, count };
        assert!(ledger.request(&want(1, 1), now).is_err(), "asked for already");
        assert!(ledger.request(&want(9, 2), now).is_err(), "past the end");
        assert!(ledger.request(&open(0, 1), now).is_err(), "the slot is in use");
        let large = FetchRequest::Open {
            slot: 2,
            nar_hash: NAR,
            nar_size: MIN_PIECE_BYTES * 2000,
            first: 0,
            count: MAX_WANTED_PIECES - 1,
        };
        assert!(ledger.request(&large, now).is_err(), "too many");
        assert_eq!(ledger.wanted(), 2, "what failed leaves no trace");
        for slot in 2..=MAX_FETCH_SLOTS as u32 {
            let open = FetchRequest::Open { slot, nar_hash: NAR, nar_size: 1, first: 0, count: 0 };
            assert_eq!(ledger.request(&open, now), Ok(true));
        }
        let one_more =
            FetchRequest::Open { slot: 99, nar_hash: NAR, nar_size: 1, first: 0, count: 0 };
        assert!(ledger.request(&one_more, now).is_err());
    }

    #[test]
    fn silence_is_overdue_only_while_something_is_owed() {
        let (mut ledger, now) = ledger(1);
        let stall = Duration::from_secs(20);
        assert!(!ledger.overdue(now + stall / 2, stall));
        assert!(ledger.overdue(now + stall, stall));
        ledger.reply(&piece(0), now).expect("piece");
        assert!(!ledger.overdue(now + 2 * stall, stall));
        let later = now + 2 * stall;
        let want = FetchRequest::Want { slot: 1, first: 1, count: 1 };
        ledger.request(&want, later).expect("want");
        assert!(!ledger.overdue(later + stall / 2, stall));
        assert!(ledger.overdue(later + stall, stall));
    }

    #[test]
    fn a_refusal_forgets_the_nar() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        ledger.request(&open(0, 4), now).expect("open");
        let reason = narswarm_protocol::wire::fetch::RefusedReason::Busy;
        let refused = FetchReply::Refused { slot: 1, reason };
        assert_eq!(ledger.reply(&refused, now), Ok(Delivery::Deliver));
        assert!(!ledger.owes());
        let want = FetchRequest::Want { slot: 1, first: 5, count: 1 };
        assert_eq!(ledger.request(&want, now), Ok(false), "sent before the refusal was read");
        assert_eq!(ledger.reply(&refused, now), Err(Fault::Slot { slot: 1 }));
    }
}
