//! One reader of a nar that is being fetched: waits for the pieces at its place, takes them from
//! memory or from disk, and tells the fetch how far it has come.

use super::{Next, Progress};
use crate::http::NarAborted;
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use tokio::sync::watch;

/// One reader's place.
pub(super) struct Reader {
    progress: Arc<Progress>,
    changed: watch::Receiver<()>,
    id: u64,
    offset: u64,
}

impl Reader {
    pub(super) fn new(progress: Arc<Progress>, offset: u64) -> Self {
        let changed = progress.changed.subscribe();
        let mut state = progress.state.lock();
        let id = state.next_reader;
        state.next_reader += 1;
        state.readers.insert(id, offset);
        drop(state);
        Self { progress, changed, id, offset }
    }

    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, NarAborted> {
        loop {
            let next = self.progress.state.lock().next(self.progress.layout, self.offset);
            let chunk = match next {
                Next::Chunk(chunk) => chunk,
                Next::End => return Ok(None),
                Next::Failed(cause) => return Err(cause.into()),
                Next::OnDisk(disk, index) => {
                    let layout = self.progress.layout;
                    let read = move || disk.read_piece(index, layout.piece_len(index));
                    self.tail_of(index, blocking(read).await?)
                }
                Next::Kept(nar, index) => {
                    let read = move || nar.piece(index).map_err(io::Error::other);
                    self.tail_of(index, blocking(read).await?)
                }
                Next::Wait => {
                    // The sender lives in `progress`, which we hold.
                    let _ = self.changed.changed().await;
                    continue;
                }
            };
            self.offset += chunk.len() as u64;
            self.progress.state.lock().readers.insert(self.id, self.offset);
            self.progress.readers_moved.notify_one();
            return Ok(Some(chunk));
        }
    }

    fn tail_of(&self, index: u32, raw: Bytes) -> Bytes {
        let start = self.progress.layout.piece_range(index).start;
        raw.slice((self.offset - start) as usize..)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.progress.state.lock().readers.remove(&self.id);
        self.progress.readers_moved.notify_one();
    }
}

/// Reads from disk off the async threads.
async fn blocking(
    read: impl FnOnce() -> io::Result<Bytes> + Send + 'static,
) -> Result<Bytes, NarAborted> {
    match tokio::task::spawn_blocking(read).await {
        Ok(result) => result.map_err(NarAborted::Local),
        Err(panic) => Err(NarAborted::Local(io::Error::other(panic))),
    }
}
