//! What a fetch session has open, what is wanted of it, and what it is to do next.
//!
//! Wishes are only noted here: when which piece is given is decided for all sessions together, in
//! [`super::giving`], which grants one after another.

use crate::net::error::Fault;
use crate::net::responder::ServedNar;
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::limits::{MAX_FETCH_SLOTS, MAX_WANTED_PIECES};
use narswarm_protocol::piece::PieceLayout;
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
    Open { slot: u32, nar_hash: NarHash, layout: PieceLayout },
    /// Read a piece, which has been granted.
    Piece { slot: u32, index: u32, nar: Arc<dyn ServedNar> },
    /// Leave out a piece that has been granted and is no longer wanted.
    Skip,
    /// Tell what has become available.
    Have { slot: u32 },
    /// Tell that what is wanted is not forgotten.
    StillHere { slot: u32 },
}

/// Jobs as they wait.
enum Waiting {
    Open { slot: u32 },
    Piece { slot: u32, index: u32 },
    Skip,
    Have { slot: u32 },
    StillHere { slot: u32 },
}

/// A nar of the session.
struct Slot {
    nar_hash: NarHash,
    layout: PieceLayout,
    /// Its number for all sessions, and the nar, once opened.
    open: Option<(u32, OpenNar)>,
    /// Runs wanted before it was opened, in the order asked.
    early: Vec<(u32, u32)>,
    /// Wanted and not yet granted.
    wanted: PieceSet,
    /// Granted and not yet written.
    granted: BTreeSet<u32>,
}

impl Slot {
    /// What is wanted early, each piece once: some may have been cancelled, and wanted again.
    fn early(&self) -> Vec<(u32, u32)> {
        let (mut left, mut runs) = (self.wanted.clone(), Vec::new());
        let asked = self.early.iter().flat_map(|&(first, count)| first..first + count);
        asked.filter(|&index| left.remove(index)).for_each(|index| extend(&mut runs, index));
        runs
    }
}

/// What all sessions together have to know of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    Want { number: u32, runs: Vec<(u32, u32)> },
    Cancel { number: u32, first: u32, count: u32 },
    Close { number: u32 },
}

/// See the module.
#[derive(Default)]
pub struct Queue {
    waiting: VecDeque<Waiting>,
    slots: BTreeMap<u32, Slot>,
    /// Which slot a nar's number stands for.
    by_number: BTreeMap<u32, u32>,
    /// Pieces wanted and not yet granted, of all slots.
    wanted: u32,
    /// Whether the asker has said its last word.
    pub ended: bool,
}

impl Queue {
    /// Takes a request.
    pub fn take(&mut self, request: FetchRequest) -> Result<Option<News>, Fault> {
        match request {
            FetchRequest::Open { slot, nar_hash, nar_size, first, count } => {
                self.open(slot, nar_hash, nar_size)?;
                self.want(slot, first, count)
            }
            FetchRequest::Want { slot, first, count } => self.want(slot, first, count),
            FetchRequest::Cancel { slot, first, count } => Ok(self.cancel(slot, first, count)),
            FetchRequest::Close { slot } => {
                Ok(self.forget(slot).map(|number| News::Close { number }))
            }
        }
    }

    fn open(&mut self, slot: u32, nar_hash: NarHash, nar_size: u64) -> Result<(), Fault> {
        if self.slots.contains_key(&slot) {
            return Err(Fault::OpenedTwice { slot });
        }
        if self.slots.len() >= MAX_FETCH_SLOTS {
            return Err(Fault::TooManySlots { limit: MAX_FETCH_SLOTS });
        }
        // Decoding has seen to it that the size is one of a nar.
        let layout = PieceLayout::new(nar_size).ok_or(Fault::Slot { slot })?;
        let opened = Slot {
            nar_hash,
            layout,
            open: None,
            early: Vec::new(),
            wanted: PieceSet::none(layout.piece_count()),
            granted: BTreeSet::new(),
        };
        self.slots.insert(slot, opened);
        self.waiting.push_back(Waiting::Open { slot });
        Ok(())
    }

    fn want(&mut self, slot: u32, first: u32, count: u32) -> Result<Option<News>, Fault> {
        // A slot that was refused while the request was on its way is no fault.
        let Some(entry) = self.slots.get_mut(&slot).filter(|_| count > 0) else { return Ok(None) };
        let (end, pieces) = (first.saturating_add(count), entry.layout.piece_count());
        if end > pieces {
            return Err(Fault::Range { slot, end, count: pieces });
        }
        if count > MAX_WANTED_PIECES - self.wanted {
            return Err(Fault::TooManyWanted { limit: MAX_WANTED_PIECES });
        }
        // What is wanted already is not wanted twice.
        let mut runs = Vec::new();
        for index in (first..end).filter(|&index| entry.wanted.insert(index)) {
            extend(&mut runs, index);
            self.wanted += 1;
        }
        match &entry.open {
            None => {
                entry.early.append(&mut runs);
                if entry.early.len() > MAX_WANTED_PIECES as usize {
                    entry.early = entry.early();
                }
            }
            Some((number, _)) => return Ok(Some(News::Want { number: *number, runs })),
        }
        Ok(None)
    }

    /// Takes pieces out of the queue, and out of what was granted.
    fn cancel(&mut self, slot: u32, first: u32, count: u32) -> Option<News> {
        let entry = self.slots.get_mut(&slot)?;
        let end = first.saturating_add(count).min(entry.layout.piece_count());
        for index in first..end {
            self.wanted -= u32::from(entry.wanted.remove(index));
            entry.granted.remove(&index);
        }
        let (number, _) = entry.open.as_ref()?;
        Some(News::Cancel { number: *number, first, count })
    }

    /// Forgets a nar and everything wanted of it; gives the number that it had.
    pub fn forget(&mut self, slot: u32) -> Option<u32> {
        let gone = self.slots.remove(&slot)?;
        self.wanted -= gone.wanted.len();
        self.waiting.retain(|waiting| match *waiting {
            Waiting::Open { slot: of }
            | Waiting::Have { slot: of }
            | Waiting::StillHere { slot: of } => of != slot,
            // What was granted must be returned.
            Waiting::Piece { .. } | Waiting::Skip => true,
        });
        let (number, _) = gone.open?;
        self.by_number.remove(&number);
        Some(number)
    }

    /// Whether there is nothing to do now.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether nothing is wanted, so that nothing more will be to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.wanted == 0
    }

    /// The next job.
    pub fn next(&mut self) -> Option<Job> {
        loop {
            let waiting = self.waiting.pop_front()?;
            return Some(match waiting {
                Waiting::Open { slot } => {
                    let Some(entry) = self.slots.get(&slot) else { continue };
                    Job::Open { slot, nar_hash: entry.nar_hash, layout: entry.layout }
                }
                Waiting::Piece { slot, index } => match self.granted(slot, index) {
                    Some(nar) => Job::Piece { slot, index, nar },
                    None => Job::Skip,
                },
                Waiting::Skip => Job::Skip,
                Waiting::Have { slot } => Job::Have { slot },
                Waiting::StillHere { slot } => Job::StillHere { slot },
            });
        }
    }

    /// The nar of a granted piece that is still wanted.
    fn granted(&self, slot: u32, index: u32) -> Option<Arc<dyn ServedNar>> {
        let entry = self.slots.get(&slot).filter(|entry| entry.granted.contains(&index))?;
        entry.open.as_ref().map(|(_, open)| open.nar.clone())
    }

    /// A piece of the nar of this number may be given now.
    pub fn grant(&mut self, number: u32, index: u32) {
        let slot = self.by_number.get(&number).copied();
        let entry = slot.and_then(|slot| Some((slot, self.slots.get_mut(&slot)?)));
        let wanted = entry.and_then(|(slot, entry)| {
            let wanted = entry.wanted.remove(index);
            wanted.then(|| entry.granted.insert(index)).map(|_| slot)
        });
        // What is not wanted was cancelled or closed at the same moment.
        self.wanted -= u32::from(wanted.is_some());
        self.waiting.push_back(match wanted {
            Some(slot) => Waiting::Piece { slot, index },
            None => Waiting::Skip,
        });
    }

    /// A granted piece is about to be written: whether it is still wanted.
    pub fn still_wanted(&mut self, slot: u32, index: u32) -> bool {
        self.slots.get_mut(&slot).is_some_and(|entry| entry.granted.remove(&index))
    }

    /// Whether a nar of this hash is open, so that it needs a number of its own.
    pub fn has_open(&self, nar_hash: &NarHash) -> bool {
        self.slots.values().any(|slot| slot.open.is_some() && slot.nar_hash == *nar_hash)
    }

    /// Notes that a nar is open under a number, and gives what is wanted of it by now; `None` when
    /// it was closed meanwhile.
    pub fn opened(
        &mut self,
        slot: u32,
        nar_hash: &NarHash,
        number: u32,
        open: OpenNar,
    ) -> Option<Vec<(u32, u32)>> {
        let waits = |entry: &&mut Slot| entry.open.is_none() && entry.nar_hash == *nar_hash;
        let entry = self.slots.get_mut(&slot).filter(waits)?;
        entry.open = Some((number, open));
        self.by_number.insert(number, slot);
        let runs = entry.early();
        entry.early = Vec::new();
        Some(runs)
    }

    /// The numbers of all open nars.
    pub fn numbers(&self) -> Vec<u32> {
        self.by_number.keys().copied().collect()
    }

    /// An open nar, to see what has become available of it.
    pub fn nar(&self, slot: u32) -> Option<OpenNar> {
        self.slots.get(&slot)?.open.as_ref().map(|(_, open)| open.clone())
    }

    /// Notes what the asker has been told.
    pub fn told(&mut self, slot: u32, held: PieceSet) {
        if let Some((_, open)) = self.slots.get_mut(&slot).and_then(|slot| slot.open.as_mut()) {
            open.told = held;
        }
    }

    fn open_nars(&self) -> impl Iterator<Item = (u32, &OpenNar)> {
        self.slots.iter().filter_map(|(&slot, entry)| Some((slot, &entry.open.as_ref()?.1)))
    }

    /// Whether a nar is open of which more may become available.
    pub fn may_grow(&self) -> bool {
        self.open_nars().any(|(_, open)| !open.told.is_all())
    }

    /// Asks for the availability of nars that have grown to be told, unless that waits already.
    pub fn tell_growth(&mut self) {
        let waits = |waiting: &Waiting| matches!(waiting, Waiting::Have { .. });
        if self.waiting.iter().any(waits) {
            return;
        }
        let grown: Vec<_> =
            self.open_nars().filter(|(_, open)| open.has_grown()).map(|(slot, _)| slot).collect();
        self.waiting.extend(grown.into_iter().map(|slot| Waiting::Have { slot }));
    }

    /// The wishes for the nar of this number wait: the asker is to know, unless it is about to be
    /// told already.
    pub fn tell_waiting(&mut self, number: u32) {
        let Some(&slot) = self.by_number.get(&number) else { return };
        let told =
            |waiting: &Waiting| matches!(waiting, Waiting::StillHere { slot: of } if *of == slot);
        if !self.waiting.iter().any(told) {
            self.waiting.push_back(Waiting::StillHere { slot });
        }
    }
}

/// Adds a piece to runs.
fn extend(runs: &mut Vec<(u32, u32)>, index: u32) {
    match runs.last_mut() {
        Some((first, count)) if *first + *count == index => *count += 1,
        _ => runs.push((index, 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::TestNar;

    const HASH: NarHash = NarHash([0; 32]);

    fn open(slot: u32, first: u32, count: u32) -> FetchRequest {
        FetchRequest::Open { slot, nar_hash: HASH, nar_size: 1 << 30, first, count }
    }

    fn ask(slot: u32, first: u32, count: u32) -> FetchRequest {
        FetchRequest::Want { slot, first, count }
    }

    fn open_nar() -> OpenNar {
        let nar = Arc::new(TestNar::new(1 << 20, 1));
        OpenNar { told: nar.held(), nar }
    }

    /// A queue in which slot 1 is open under number 9, with what is wanted of it.
    fn queue(first: u32, count: u32) -> (Queue, Vec<(u32, u32)>) {
        let mut queue = Queue::default();
        assert_eq!(queue.take(open(1, first, count)), Ok(None));
        assert!(matches!(queue.next(), Some(Job::Open { slot: 1, .. })));
        let wanted = queue.opened(1, &HASH, 9, open_nar()).expect("not closed");
        (queue, wanted)
    }

    /// Does all jobs; `None` for pieces that are left out.
    fn pieces(queue: &mut Queue) -> Vec<Option<u32>> {
        let piece = |job| match job {
            Job::Piece { index, .. } => Some(index),
            Job::Skip => None,
            Job::Open { .. } | Job::Have { .. } | Job::StillHere { .. } => {
                panic!("only pieces wait")
            }
        };
        std::iter::from_fn(|| queue.next()).map(piece).collect()
    }

    #[test]
    fn what_was_wanted_before_the_opening_is_passed_on_in_order() {
        let mut queue = Queue::default();
        assert_eq!(queue.take(open(1, 5, 2)), Ok(None));
        assert_eq!(queue.take(ask(1, 0, 2)), Ok(None));
        assert_eq!(queue.take(ask(1, 1, 2)), Ok(None));
        let cancel = |first| FetchRequest::Cancel { slot: 1, first, count: 1 };
        assert_eq!(queue.take(cancel(0)), Ok(None));
        assert_eq!(queue.take(cancel(6)), Ok(None));
        assert_eq!(queue.take(ask(1, 6, 1)), Ok(None));
        let runs = queue.opened(1, &HASH, 9, open_nar());
        assert_eq!(runs, Some(vec![(5, 2), (1, 2)]));
        let news = Ok(Some(News::Want { number: 9, runs: vec![(3, 1)] }));
        assert_eq!(queue.take(ask(1, 2, 2)), news, "2 is wanted already");
        assert_eq!((queue.wanted, queue.is_idle()), (5, false));
    }

    #[test]
    fn cancelling_takes_back_what_is_wanted_and_what_was_granted() {
        let (mut queue, wanted) = queue(0, 10);
        assert_eq!(wanted, [(0, 10)]);
        (0..3).for_each(|index| queue.grant(9, index));
        assert!(matches!(queue.next(), Some(Job::Piece { index: 0, .. })));
        assert!(matches!(queue.next(), Some(Job::Piece { index: 1, .. })));
        let cancel = FetchRequest::Cancel { slot: 1, first: 1, count: 4 };
        assert_eq!(queue.take(cancel), Ok(Some(News::Cancel { number: 9, first: 1, count: 4 })));
        let elsewhere = FetchRequest::Cancel { slot: 2, first: 0, count: 9 };
        assert_eq!(queue.take(elsewhere), Ok(None));
        assert!(queue.still_wanted(1, 0));
        assert!(!queue.still_wanted(1, 0), "written once");
        assert!(!queue.still_wanted(1, 1));
        // 3 is granted just when it is cancelled.
        queue.grant(9, 3);
        queue.grant(9, 5);
        assert_eq!(pieces(&mut queue), [None, None, Some(5)]);
        assert_eq!(queue.wanted, 4);
    }

    #[test]
    fn a_closed_nar_leaves_nothing_behind_but_slots_to_return() {
        let (mut queue, _) = queue(0, 10);
        queue.grant(9, 0);
        queue.grant(9, 1);
        assert!(queue.next().is_some());
        let close = FetchRequest::Close { slot: 1 };
        assert_eq!(queue.take(close), Ok(Some(News::Close { number: 9 })));
        queue.grant(9, 2);
        queue.tell_waiting(9);
        assert_eq!(pieces(&mut queue), [None, None]);
        assert!(!queue.still_wanted(1, 0));
        assert!(queue.is_idle() && queue.numbers().is_empty());
        assert_eq!(queue.take(ask(1, 0, 1)), Ok(None), "ignored");
        assert!(queue.is_idle());
    }

    #[test]
    fn a_nar_closed_while_it_is_opened_stays_closed() {
        let mut queue = Queue::default();
        assert_eq!(queue.take(open(1, 0, 1)), Ok(None));
        assert!(queue.next().is_some());
        assert_eq!(queue.take(FetchRequest::Close { slot: 1 }), Ok(None));
        assert_eq!(queue.opened(1, &HASH, 9, open_nar()), None);
        let other = FetchRequest::Open {
            slot: 1,
            nar_hash: NarHash([1; 32]),
            nar_size: 1,
            first: 0,
            count: 0,
        };
        assert_eq!(queue.take(other), Ok(None));
        assert_eq!(queue.opened(1, &HASH, 9, open_nar()), None, "another nar's slot by now");
    }

    #[test]
    fn who_waits_is_told_once_at_a_time() {
        let (mut queue, _) = queue(0, 1);
        queue.tell_waiting(9);
        queue.tell_waiting(9);
        assert!(matches!(queue.next(), Some(Job::StillHere { slot: 1 })));
        assert!(queue.is_empty());
    }

    #[test]
    fn askers_are_held_to_the_limits() {
        let (mut queue, _) = queue(0, MAX_WANTED_PIECES);
        let too_many = Err(Fault::TooManyWanted { limit: MAX_WANTED_PIECES });
        assert_eq!(queue.take(ask(1, 2000, 1)), too_many);
        let end = Err(Fault::Range { slot: 1, end: 4097, count: 4096 });
        assert_eq!(queue.take(ask(1, 4096, 1)), end);
        assert_eq!(queue.take(open(1, 0, 0)), Err(Fault::OpenedTwice { slot: 1 }));
        for slot in 2..=MAX_FETCH_SLOTS as u32 {
            queue.take(open(slot, 0, 0)).expect("within the limits");
        }
        assert!(matches!(queue.take(open(99, 0, 0)), Err(Fault::TooManySlots { .. })));
    }
}
