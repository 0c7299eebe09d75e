//! What a fetch session still has to give: jobs in the order asked for, and what was read ahead.

use crate::net::error::Fault;
use crate::net::responder::ServedNar;
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::limits::{MAX_FETCH_SLOTS, MAX_WANTED_PIECES};
use narswarm_protocol::piece_set::PieceSet;
use narswarm_protocol::wire::fetch::FetchRequest;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// A nar that is being given.
#[derive(Clone)]
pub struct OpenNar {
    pub nar: Arc<dyn ServedNar>,
    /// What the asker knows to be available.
    pub told: PieceSet,
}

impl OpenNar {
    /// Whether more is available than the asker knows.
    fn has_grown(&self) -> bool {
        !self.told.is_all() && self.nar.held() != self.told
    }
}

/// The next thing to do.
pub enum Job {
    /// Open a nar and say so.
    Open { slot: u32, nar_hash: NarHash, nar_size: u64 },
    /// Read a piece.
    Piece { slot: u32, index: u32, nar: Arc<dyn ServedNar> },
    /// Tell what has become available.
    Have { slot: u32 },
}

/// Jobs as they wait: pieces in ranges, so that many take little.
enum Waiting {
    Open { slot: u32, nar_hash: NarHash, nar_size: u64 },
    Pieces { slot: u32, first: u32, count: u32 },
    Have { slot: u32 },
}

impl Waiting {
    fn slot(&self) -> u32 {
        match *self {
            Self::Open { slot, .. } | Self::Pieces { slot, .. } | Self::Have { slot } => slot,
        }
    }
}

/// See the module.
#[derive(Default)]
pub struct Queue {
    waiting: VecDeque<Waiting>,
    /// Pieces in `waiting`.
    wanted: u32,
    /// Nars of the session; `None` until they have been opened.
    slots: BTreeMap<u32, Option<OpenNar>>,
    /// Pieces read, or being read, and not yet written.
    ahead: BTreeSet<(u32, u32)>,
    /// Whether the asker has said its last word.
    pub ended: bool,
}

impl Queue {
    /// Takes a request.
    pub fn take(&mut self, request: FetchRequest) -> Result<(), Fault> {
        match request {
            FetchRequest::Open { slot, nar_hash, nar_size, first, count } => {
                if self.slots.contains_key(&slot) {
                    return Err(Fault::OpenedTwice { slot });
                }
                if self.slots.len() >= MAX_FETCH_SLOTS {
                    return Err(Fault::TooManySlots { limit: MAX_FETCH_SLOTS });
                }
                self.slots.insert(slot, None);
                self.waiting.push_back(Waiting::Open { slot, nar_hash, nar_size });
                self.want(slot, first, count)
            }
            FetchRequest::Want { slot, first, count } => self.want(slot, first, count),
            FetchRequest::Cancel { slot, first, count } => {
                self.cancel(slot, first, count);
                Ok(())
            }
            FetchRequest::Close { slot } => {
                self.forget(slot);
                Ok(())
            }
        }
    }

    fn want(&mut self, slot: u32, first: u32, count: u32) -> Result<(), Fault> {
        // A slot that was refused while the request was on its way is no fault.
        if count == 0 || !self.slots.contains_key(&slot) {
            return Ok(());
        }
        if count > MAX_WANTED_PIECES - self.wanted {
            return Err(Fault::TooManyWanted { limit: MAX_WANTED_PIECES });
        }
        self.wanted += count;
        self.waiting.push_back(Waiting::Pieces { slot, first, count });
        Ok(())
    }

    /// Takes pieces out of the queue, and out of what was read ahead.
    fn cancel(&mut self, slot: u32, first: u32, count: u32) {
        let end = first.saturating_add(count);
        self.ahead.retain(|&(of, index)| of != slot || !(first..end).contains(&index));
        let mut kept = VecDeque::with_capacity(self.waiting.len());
        for waiting in self.waiting.drain(..) {
            let Waiting::Pieces { slot: of, first: from, count: many } = waiting else {
                kept.push_back(waiting);
                continue;
            };
            let to = from + many;
            if of != slot || end <= from || to <= first {
                kept.push_back(waiting);
                continue;
            }
            for (from, to) in [(from, first.max(from)), (end.min(to), to)] {
                if from < to {
                    kept.push_back(Waiting::Pieces { slot, first: from, count: to - from });
                }
            }
            self.wanted -= end.min(to) - first.max(from);
        }
        self.waiting = kept;
    }

    /// Forgets a nar and everything wanted of it.
    pub fn forget(&mut self, slot: u32) {
        self.slots.remove(&slot);
        self.cancel(slot, 0, u32::MAX);
        self.waiting.retain(|waiting| waiting.slot() != slot);
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The next job; pieces count as read ahead from now on.
    pub fn next(&mut self) -> Option<Job> {
        loop {
            match self.waiting.front_mut()? {
                &mut Waiting::Open { slot, nar_hash, nar_size } => {
                    self.waiting.pop_front();
                    return Some(Job::Open { slot, nar_hash, nar_size });
                }
                &mut Waiting::Have { slot } => {
                    self.waiting.pop_front();
                    return Some(Job::Have { slot });
                }
                Waiting::Pieces { slot, first, count } => {
                    let (slot, index) = (*slot, *first);
                    (*first, *count) = (*first + 1, *count - 1);
                    if *count == 0 {
                        self.waiting.pop_front();
                    }
                    self.wanted -= 1;
                    if let Some(Some(open)) = self.slots.get(&slot) {
                        self.ahead.insert((slot, index));
                        return Some(Job::Piece { slot, index, nar: open.nar.clone() });
                    }
                }
            }
        }
    }

    /// Notes that a nar is open, unless it was closed meanwhile.
    pub fn opened(&mut self, slot: u32, open: OpenNar) {
        if let Some(state) = self.slots.get_mut(&slot) {
            *state = Some(open);
        }
    }

    /// An open nar, to see what has become available of it.
    pub fn nar(&self, slot: u32) -> Option<OpenNar> {
        self.slots.get(&slot)?.clone()
    }

    /// Notes what the asker has been told.
    pub fn told(&mut self, slot: u32, held: PieceSet) {
        if let Some(Some(open)) = self.slots.get_mut(&slot) {
            open.told = held;
        }
    }

    /// Whether a nar is open of which more may become available.
    pub fn may_grow(&self) -> bool {
        self.slots.values().flatten().any(|open| !open.told.is_all())
    }

    /// Asks for the availability of nars that have grown to be told, unless that waits already.
    pub fn tell_growth(&mut self) {
        let waits = |waiting: &Waiting| matches!(waiting, Waiting::Have { .. });
        if self.waiting.iter().any(waits) {
            return;
        }
        let grown =
            self.slots.iter().filter(|(_, open)| open.as_ref().is_some_and(OpenNar::has_grown));
        self.waiting.extend(grown.map(|(&slot, _)| Waiting::Have { slot }));
    }

    /// A piece that was read ahead is about to be written: whether it is still wanted.
    pub fn still_wanted(&mut self, slot: u32, index: u32) -> bool {
        self.ahead.remove(&(slot, index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::TestNar;

    fn open(slot: u32, first: u32, count: u32) -> FetchRequest {
        FetchRequest::Open { slot, nar_hash: NarHash([0; 32]), nar_size: 1 << 30, first, count }
    }

    /// A queue in which slot 1 is open and its opening has been dealt with.
    fn queue(first: u32, count: u32) -> Queue {
        let mut queue = Queue::default();
        queue.take(open(1, first, count)).expect("within the limits");
        assert!(matches!(queue.next(), Some(Job::Open { slot: 1, .. })));
        let nar = Arc::new(TestNar::new(1 << 20, 1));
        queue.opened(1, OpenNar { told: nar.held(), nar });
        queue
    }

    fn pieces(queue: &mut Queue) -> Vec<u32> {
        let piece = |job| match job {
            Job::Piece { index, .. } => index,
            Job::Open { .. } | Job::Have { .. } => panic!("only pieces wait"),
        };
        std::iter::from_fn(|| queue.next()).map(piece).collect()
    }

    #[test]
    fn pieces_come_in_the_order_asked_for() {
        let mut queue = queue(5, 2);
        queue.take(FetchRequest::Want { slot: 1, first: 0, count: 2 }).expect("want");
        assert_eq!(pieces(&mut queue), [5, 6, 0, 1]);
    }

    #[test]
    fn cancelling_cuts_ranges_and_what_was_read_ahead() {
        let mut queue = queue(0, 10);
        assert!(matches!(queue.next(), Some(Job::Piece { index: 0, .. })));
        assert!(matches!(queue.next(), Some(Job::Piece { index: 1, .. })));
        queue.take(FetchRequest::Cancel { slot: 1, first: 1, count: 3 }).expect("cancel");
        queue.take(FetchRequest::Cancel { slot: 1, first: 6, count: 1 }).expect("cancel");
        queue.take(FetchRequest::Cancel { slot: 2, first: 0, count: 9 }).expect("no such slot");
        assert!(queue.still_wanted(1, 0));
        assert!(!queue.still_wanted(1, 1));
        assert_eq!(pieces(&mut queue), [4, 5, 7, 8, 9]);
        assert_eq!(queue.wanted, 0);
    }

    #[test]
    fn a_closed_nar_leaves_nothing_behind() {
        let mut queue = queue(0, 10);
        assert!(queue.next().is_some());
        queue.take(FetchRequest::Close { slot: 1 }).expect("close");
        assert!(queue.is_empty() && queue.next().is_none());
        assert!(!queue.still_wanted(1, 0));
        assert_eq!(queue.wanted, 0);
        queue.take(FetchRequest::Want { slot: 1, first: 0, count: 1 }).expect("ignored");
        assert!(queue.is_empty());
    }

    #[test]
    fn askers_are_held_to_the_limits() {
        let mut queue = queue(0, MAX_WANTED_PIECES);
        let more = FetchRequest::Want { slot: 1, first: 2000, count: 1 };
        assert_eq!(queue.take(more), Err(Fault::TooManyWanted { limit: MAX_WANTED_PIECES }));
        assert_eq!(queue.take(open(1, 0, 0)), Err(Fault::OpenedTwice { slot: 1 }));
        for slot in 2..=MAX_FETCH_SLOTS as u32 {
            queue.take(open(slot, 0, 0)).expect("within the limits");
        }
        assert!(matches!(queue.take(open(99, 0, 0)), Err(Fault::TooManySlots { .. })));
    }
}
