//! Hashes items in the background: after everybody else on the machine, and resting as long as it
//! works, so that neither the fan nor the disk's queue tells of it.

use super::database::Row;
use super::memory::{Hashed, ItemStamp};
use super::shelf::SharedItem;
use super::tree::{TreeReader, lay_out};
use super::{Inner, Signed, SystemStoreError};
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::limits::{HASHING_RETRY_PAUSE, STORE_ANNOUNCE_BATCH};
use narswarm_protocol::nar::Layout;
use narswarm_protocol::piece::{PieceLayout, PieceList, hash_piece};
use narswarm_protocol::store_path::StoreHash;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{debug, info, warn};

/// Works so long before it rests as long: short enough that nobody waits for it noticeably.
const STINT: Duration = Duration::from_millis(20);

/// Hashes until stopped.
pub fn run(inner: &Arc<Inner>) {
    // The lowest priority there is, of this thread alone. Without a class of its own for the disk a
    // thread has there what follows from this: best effort, level 7, the lowest (ioprio_set(2)). Not
    // the idle class: what answers peers waits for locks that are held while this thread reads. And
    // the disk is asked for one thing at a time.
    if let Err(error) = rustix::process::setpriority_process(None, 19) {
        debug!("cannot lower the priority of hashing: {error}");
    }
    let mut came: Vec<StoreHash> = Vec::new();
    let mut pace = Pace { began: Instant::now() };
    while !inner.is_stopped() {
        let next = inner.table.lock().take_waiting();
        if !came.is_empty() && (next.is_none() || came.len() >= STORE_ANNOUNCE_BATCH) {
            inner.outside.came(std::mem::take(&mut came));
            if next.is_none() {
                let survey = inner.table.lock().survey();
                info!("{} of {} items of the store are shared", survey.shared, survey.items);
            }
        }
        let Some((row, signed)) = next else {
            inner.rest_until_waiting();
            pace.began = Instant::now();
            continue;
        };
        match hash_item(inner, &row, &mut pace) {
            Ok(Some(hashed)) => {
                if let Some(item) = share(inner, &row, signed, &hashed) {
                    came.push(item);
                }
            }
            Ok(None) => return,
            Err(error) => {
                debug!("{error}");
                inner.table.lock().set_failed(row.id, Instant::now() + HASHING_RETRY_PAUSE);
            }
        }
        inner.tell_metrics();
    }
}

/// Puts up what was hashed before and is what is signed; hashes nothing.
pub fn recall(inner: &Inner) {
    while let Some((row, signed)) = { inner.table.lock().take_waiting() } {
        let path = inner.path_of(&row.item);
        let Ok(stamp) = ItemStamp::of(&path, row.id, row.registered) else { continue };
        if let Ok(Some(hashed)) = inner.memory.hashed(&row.item.hash(), &stamp) {
            share(inner, &row, signed, &hashed);
        }
    }
}

/// Puts up what has the signed hash; returns it if it was.
fn share(inner: &Inner, row: &Row, signed: Signed, hashed: &Hashed) -> Option<StoreHash> {
    let nar_size = hashed.list.layout().nar_size();
    if hashed.nar_hash != signed.nar_hash || nar_size != signed.nar_size {
        debug!("{} is not what is signed under its name", row.item);
        inner.table.lock().set_different(row.id);
        return None;
    }
    let item = SharedItem {
        id: row.id,
        registered: row.registered,
        item: row.item.clone(),
        nar_hash: hashed.nar_hash,
        nar_size,
        root: hashed.list.root(&hashed.nar_hash),
    };
    // Both together, so that an item that goes now is taken down after it was put up.
    let mut table = inner.table.lock();
    if !table.set_shared(row.id, signed) {
        return None;
    }
    inner.shelf.write().insert(item);
    Some(row.item.hash())
}

/// The hashes of an item, as remembered or computed; `None` when stopped.
fn hash_item(
    inner: &Inner,
    row: &Row,
    pace: &mut Pace,
) -> Result<Option<Hashed>, SystemStoreError> {
    let (path, hash) = (inner.path_of(&row.item), row.item.hash());
    let stamp = || {
        ItemStamp::of(&path, row.id, row.registered)
            .map_err(|source| SystemStoreError::Io { path: path.clone(), source })
    };
    let before = stamp()?;
    if let Some(hashed) = inner.memory.hashed(&hash, &before)? {
        return Ok(Some(hashed));
    }
    let layout = lay_out(&path)?;
    let hashed = hash_tree(&path, &layout, &mut || {
        pace.keep(inner);
        !inner.is_stopped()
    })?;
    let Some(hashed) = hashed else { return Ok(None) };
    inner.table.lock().note_hashed(layout.nar_size());
    inner.metrics.store_hashed_bytes.inc_by(layout.nar_size());
    if stamp()? != before {
        return Err(SystemStoreError::Changed { path });
    }
    if let Err(error) = inner.memory.remember_hashed(&hash, &before, &hashed) {
        warn!("{error}");
    }
    Ok(Some(hashed))
}

/// Reads a tree once and hashes its nar, whole and in pieces. `go_on` is asked after each piece.
///
/// # Errors
/// What can't be read.
pub fn hash_tree(
    path: &Path,
    layout: &Layout,
    go_on: &mut impl FnMut() -> bool,
) -> Result<Option<Hashed>, SystemStoreError> {
    let pieces = PieceLayout::new(layout.nar_size()).expect("a layout is within the limits");
    let mut reader = TreeReader::gentle(path.to_owned());
    let mut whole = Sha256::new();
    let mut hashes = Vec::with_capacity(pieces.piece_count() as usize);
    for index in 0..pieces.piece_count() {
        let octets = reader
            .read(layout, pieces.piece_range(index))
            .map_err(|source| SystemStoreError::Io { path: path.to_owned(), source })?;
        whole.update(&octets);
        hashes.push(hash_piece(&octets));
        if !go_on() {
            return Ok(None);
        }
    }
    let list = PieceList::new(pieces, hashes).expect("each piece was hashed");
    Ok(Some(Hashed { nar_hash: NarHash(whole.finalize().into()), list }))
}

/// Rests as long as it has worked.
struct Pace {
    began: Instant,
}

impl Pace {
    fn keep(&mut self, inner: &Inner) {
        let worked = self.began.elapsed();
        if worked >= STINT {
            let until = Instant::now() + worked;
            while Instant::now() < until && !inner.is_stopped() {
                std::thread::sleep(until.saturating_duration_since(Instant::now()).min(STINT));
            }
            self.began = Instant::now();
        }
    }
}

impl Inner {
    /// Rests until there may be something to hash.
    fn rest_until_waiting(&self) {
        let mut table = self.table.lock();
        if !self.is_stopped() && table.survey().waiting == 0 {
            self.bell.wait(&mut table);
        }
    }
}
