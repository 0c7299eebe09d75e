//! Keeping the index in step with the journal while the node runs: checkpoints, and a second life
//! for an index that has failed.

use super::Inner;
use super::error::{StoreError, is_full};
use super::index::{Counts, Index};
use super::record::Position;
use super::room::free_bytes;
use super::{CHECKPOINT_BYTES, REVIVAL_PAUSE};
use std::sync::atomic::Ordering;
use std::time::Instant;
use tracing::{info, warn};

/// Free space that an index needs to be opened again: some segments of sled's log.
const MIN_REVIVAL_BYTES: u64 = 4 << 20;

impl Inner {
    /// Runs `work` on the index. If the index fails, it is opened again or made anew, and `work`
    /// gets one more try. Never call this with the gate held.
    pub(super) fn with_index<T>(
        &self,
        work: impl Fn(&Index) -> Result<T, sled::Error>,
    ) -> Result<T, StoreError> {
        let failure = match self.index.read().as_ref().map(&work) {
            Some(Ok(found)) => return Ok(found),
            Some(Err(failure)) => Some(failure),
            None => None,
        };
        self.revive(failure)?;
        match self.index.read().as_ref() {
            Some(index) => Ok(work(index)?),
            None => Err(StoreError::NoIndex),
        }
    }

    /// Writes to the index what the journal already has; the gate is held. What fails here is to
    /// be handed to [`Inner::after_write`] once the gate is open again.
    pub(super) fn index_write<T>(
        &self,
        work: impl FnOnce(&Index) -> Result<T, sled::Error>,
    ) -> Result<T, Option<sled::Error>> {
        let written = match self.index.read().as_ref() {
            Some(index) => work(index).map_err(Some),
            None => Err(None),
        };
        if written.is_err() {
            self.sick.store(true, Ordering::SeqCst);
        }
        written
    }

    /// After a write whose record the journal has: mends the index if it failed, else sees
    /// whether a checkpoint is due.
    pub(super) fn after_write<T>(
        &self,
        written: Result<T, Option<sled::Error>>,
    ) -> Result<(), StoreError> {
        match written {
            // Revival replays the journal, and with it what failed to be written.
            Err(failure) => self.revive(failure),
            Ok(_) => {
                if self.checkpoint_is_due()
                    && let Err(error) = self.checkpoint()
                {
                    // Nothing is lost by it but time at the next start.
                    warn!("no checkpoint: {error}");
                }
                Ok(())
            }
        }
    }

    fn checkpoint_is_due(&self) -> bool {
        // Whoever is at it does it for all.
        let Some(last) = self.checkpointed.try_lock() else { return false };
        let end = self.journal.end();
        end.segment != last.segment
            || u64::from(end.offset.saturating_sub(last.offset)) > CHECKPOINT_BYTES
    }

    /// Flushes the index and notes how far in the journal it has come.
    pub(super) fn checkpoint(&self) -> Result<(), StoreError> {
        let mut checkpointed = self.checkpointed.lock();
        let (position, counts) = {
            let _gate = self.gate.write();
            self.covered()?
        };
        let index = self.index.read();
        let index = index.as_ref().ok_or(StoreError::NoIndex)?;
        self.index_files.save(index, position, counts)?;
        *checkpointed = position;
        Ok(())
    }

    /// How far the index has come, with the gate closed.
    fn covered(&self) -> Result<(Position, Counts), StoreError> {
        if self.sick.load(Ordering::SeqCst) {
            return Err(StoreError::NoIndex);
        }
        let position = self.journal.end();
        self.journal.sync(position)?;
        Ok((position, self.counts()))
    }

    /// Ends the use of the store. Whoever still asks is told that it is closed.
    pub(super) fn close(&self) {
        let _gate = self.gate.write();
        if self.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        let covered = self.covered();
        let Some(index) = self.index.write().take() else { return };
        let closed =
            covered.and_then(|(position, counts)| self.index_files.close(index, position, counts));
        if let Err(error) = closed {
            warn!("the store is not closed cleanly ({error}); the next start takes longer");
        }
    }

    /// Opens a failed index again, which replays the journal; makes it anew when it is damaged.
    fn revive(&self, failure: Option<sled::Error>) -> Result<(), StoreError> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(StoreError::Closed);
        }
        let mut revived = self.revived.lock();
        let lately = revived.is_some_and(|at| at.elapsed() < REVIVAL_PAUSE);
        if lately {
            // Either another thread has just done it, or it would be in vain.
            let works = !self.sick.load(Ordering::SeqCst) && self.index.read().is_some();
            return match failure {
                _ if works => Ok(()),
                Some(failure) => Err(failure.into()),
                None => Err(StoreError::NoIndex),
            };
        }
        *revived = Some(Instant::now());
        let full = matches!(&failure, Some(sled::Error::Io(error)) if is_full(error));
        if full && free_bytes(self.cache.dir()).is_some_and(|free| free < MIN_REVIVAL_BYTES) {
            // What is open can still be read; opened again it couldn't.
            return Err(failure.map_or(StoreError::NoIndex, StoreError::from));
        }
        let damaged = failure.as_ref().is_some_and(|f| !matches!(f, sled::Error::Io(_)));
        if let Some(failure) = &failure {
            warn!("the index of the store fails ({failure}); opening it again");
        }
        let _gate = self.gate.write();
        if self.closed.load(Ordering::SeqCst) {
            return Err(StoreError::Closed);
        }
        let mut index = self.index.write();
        drop(index.take());
        if damaged {
            self.index_files.discard()?;
        }
        *index = Some(self.index_files.open(&self.journal, &self.cache)?);
        self.sick.store(false, Ordering::SeqCst);
        info!("the index of the store works again");
        Ok(())
    }
}
