//! Whether the books of a fetch agree with each other: for simulations and tests, which ask after
//! every event, so that an error shows where it is made and not where it ends.

use super::source::{Source, Stage};
use super::{Fetch, SourceId};

/// What doesn't agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Discrepancy {
    /// Whoever relies on the count asks for a piece again, or for ever not.
    #[error("piece {index} is counted as asked of {counted} sources, and is asked of {actual}")]
    Asked {
        /// The piece.
        index: u32,
        /// By the count.
        counted: u32,
        /// By the sources.
        actual: u32,
    },
    /// Whoever relies on the count takes a common piece for a rare one, or the reverse.
    #[error("piece {index} is counted as held by {counted} peers in use, and is held by {actual}")]
    Available {
        /// The piece.
        index: u32,
        /// By the count.
        counted: u32,
        /// By the sources.
        actual: u32,
    },
    /// It would come for nothing.
    #[error("piece {index} is held, and still asked of {source_id:?}")]
    HeldAndAsked {
        /// The piece.
        index: u32,
        /// Of whom.
        source_id: SourceId,
    },
    /// Pieces before the head are held, the head isn't.
    #[error("the head is {head}, which is not the first piece that is missing")]
    Head {
        /// By the count.
        head: u32,
    },
}

impl Fetch {
    /// Compares what is counted with what it is counted from. Takes time proportional to pieces
    /// times sources.
    ///
    /// # Errors
    /// The first discrepancy; each is an error of the machine.
    pub fn audit(&self) -> Result<(), Discrepancy> {
        if self.ended {
            return Ok(());
        }
        let count = |of: &dyn Fn(&Source) -> bool| {
            self.sources.values().filter(|source| of(source)).count() as u32
        };
        for index in 0..self.pieces.count() {
            let asks = |s: &Source| s.stage.is_counted() && s.outstanding.contains_key(&index);
            let actual = count(&asks);
            let counted = self.pieces.asked(index).into();
            if counted != actual {
                return Err(Discrepancy::Asked { index, counted, actual });
            }
            let has = |s: &Source| s.stage == Stage::Active && s.have.contains(index);
            let actual = count(&has);
            let counted = self.pieces.available(index).into();
            if counted != actual {
                return Err(Discrepancy::Available { index, counted, actual });
            }
            if self.pieces.held().contains(index) {
                let owes = self.sources.iter().find(|(_, s)| s.outstanding.contains_key(&index));
                if let Some((&source_id, _)) = owes {
                    return Err(Discrepancy::HeldAndAsked { index, source_id });
                }
            }
        }
        let held = self.pieces.held();
        let head = (0..self.pieces.count()).find(|&index| !held.contains(index));
        let head = head.unwrap_or(self.pieces.count());
        if head != self.pieces.head() {
            return Err(Discrepancy::Head { head: self.pieces.head() });
        }
        Ok(())
    }
}
