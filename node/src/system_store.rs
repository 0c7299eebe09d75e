//! The system's store, `/gnu/store` or `/nix/store`: read, never written, and shared without a
//! copy.
//!
//! A map:
//! - `database`: which items are valid, read while the daemon writes;
//! - `watching`: what comes and goes there;
//! - `finding`, `guix_cache`, `signatures`: looks for a narinfo of each item, near first, then far;
//! - `hashing`: hashes what has one, in the background;
//! - `table`: how far each item is on this way; `memory`: what is known after a restart;
//! - `shelf`, `tree_nar`, `tree`: what is shared, and its nars, by seeking in the trees;
//! - `policy`: what the user lets others know.
//!
//! An item is shared only when a narinfo that this node believes has the very hash that this node
//! has computed. So what was built here and what nobody has signed can't be shared by any mistake
//! of the database. What signatures are believed, and who is told, is not known here: that is
//! asked of [`Outside`].

mod database;
mod error;
mod finding;
mod guix_cache;
mod hashing;
mod memory;
mod policy;
mod shelf;
mod signatures;
mod table;
mod tree;
mod tree_nar;
mod watching;

#[cfg(test)]
mod tests;

pub use error::SystemStoreError;
pub use hashing::hash_tree;
pub use memory::Hashed;
pub use policy::Policy;
pub use shelf::SharedItem;
pub use table::Survey;
pub use tree::{TreeReader, lay_out};
pub use tree_nar::TreeNar;

use crate::metrics::{LookupOutcome, LookupPlace, Metrics, StoreItemState};
use bytes::Bytes;
use database::Database;
use guix_cache::GuixCache;
use memory::Memory;
use moka::sync::Cache;
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::limits;
use narswarm_protocol::nar::Layout;
use narswarm_protocol::store_path::{ItemName, StoreHash};
use parking_lot::{Condvar, Mutex, RwLock};
use shelf::Shelf;
use signatures::Signatures;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use table::Table;
use tracing::warn;

/// Where the store is, and what of it may be shared.
#[derive(Debug, Clone)]
pub struct SystemStoreConfig {
    /// The store's directory.
    pub store: PathBuf,
    /// Its database.
    pub database: PathBuf,
    /// guix's own cache of narinfos.
    pub guix_cache: PathBuf,
    /// This node's data directory, for what is remembered.
    pub data_dir: PathBuf,
    /// Which items may be shared.
    pub policy: Policy,
    /// Whether only what came through narswarm is shared.
    pub fetched_only: bool,
    /// For how many items a minute others are asked for narinfos; none are asked when 0.
    pub lookups_per_minute: u32,
}

/// What is signed of an item by a key that this node believes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signed {
    /// SHA-256 of its nar.
    pub nar_hash: NarHash,
    /// Octets of its nar.
    pub nar_size: u64,
}

/// What others say of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// A narinfo that is believed.
    Signed(Signed),
    /// All who were to be asked have none.
    Nobody,
    /// Not all who were to be asked have answered.
    Unknown,
}

/// What the system's store asks of the node around it. Everything may block. Answers come in the
/// order of the items.
pub trait Outside: Send + Sync + 'static {
    /// What is signed of these items, as far as the node has it at hand.
    fn kept(&self, items: &[ItemName]) -> Vec<Option<Signed>>;

    /// Judges narinfos that were found lying about; those that are believed are kept.
    fn judge(&self, offers: &[(ItemName, Bytes)]) -> Vec<Option<Signed>>;

    /// Asks peers, then substitute servers.
    fn ask(&self, items: &[ItemName]) -> Vec<Answer>;

    /// These items are shared from now on.
    fn came(&self, items: Vec<StoreHash>);

    /// These items are shared no more.
    fn gone(&self, items: Vec<StoreHash>);
}

/// The system's store. Cheap to clone.
#[derive(Clone)]
pub struct SystemStore {
    inner: Arc<Inner>,
}

struct Inner {
    config: SystemStoreConfig,
    memory: Memory,
    guix_cache: GuixCache,
    signatures: Signatures,
    table: Mutex<Table>,
    /// Rung when the table has more to do, and at the end.
    bell: Condvar,
    shelf: RwLock<Shelf>,
    layouts: Cache<StoreHash, Arc<Layout>>,
    outside: Arc<dyn Outside>,
    metrics: Arc<Metrics>,
    stopped: AtomicBool,
}

impl SystemStore {
    /// Opens the store and begins to look after it, on threads of its own.
    ///
    /// # Errors
    /// When the database can't be read at all, or nothing can be remembered.
    pub fn start(
        config: SystemStoreConfig,
        outside: Arc<dyn Outside>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, SystemStoreError> {
        let (inner, database) = Inner::open(config, outside, metrics)?;
        // The first look is made here, so that a database that can't be read is said at once.
        let watch = watching::Watch::begin(&inner, database)?;
        inner.spawn("store-watch", move |inner| watch.run(inner));
        inner.spawn("store-find", finding::run);
        inner.spawn("store-hash", hashing::run);
        Ok(Self { inner })
    }

    /// Opens the store as it was known when it was last looked after, without hashing anything or
    /// asking anybody. Doesn't look after it.
    ///
    /// # Errors
    /// When the database can't be read at all, or nothing can be remembered.
    pub fn recall(
        config: SystemStoreConfig,
        outside: Arc<dyn Outside>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, SystemStoreError> {
        let (inner, database) = Inner::open(config, outside, metrics)?;
        watching::Watch::begin(&inner, database)?;
        finding::recall(&inner);
        hashing::recall(&inner);
        Ok(Self { inner })
    }

    /// Stops looking after the store. What is shared stays readable for those who have it open.
    pub fn stop(&self) {
        self.inner.stopped.store(true, Ordering::Relaxed);
        self.inner.bell.notify_all();
    }

    /// The nar, if an item with it is shared, ready to be read.
    #[must_use]
    pub fn nar(&self, nar: &NarHash) -> Option<TreeNar> {
        let items = self.inner.shelf.read().with_nar(nar);
        items.into_iter().find_map(|item| TreeNar::open(&self.inner, item))
    }

    /// What is shared of an item; from memory alone.
    #[must_use]
    pub fn shared(&self, item: &StoreHash) -> Option<Arc<SharedItem>> {
        self.inner.shelf.read().item(item)
    }

    /// An item with this nar that is shared; from memory alone.
    #[must_use]
    pub fn shared_nar(&self, nar: &NarHash) -> Option<Arc<SharedItem>> {
        self.inner.shelf.read().with_nar(nar).into_iter().next()
    }

    /// Everything that is shared, in the order of the store hashes.
    #[must_use]
    pub fn all_shared(&self) -> Vec<Arc<SharedItem>> {
        self.inner.shelf.read().all()
    }

    /// Whether the policy keeps this item of the store from being known to others; from memory
    /// alone.
    #[must_use]
    pub fn is_hidden(&self, item: &StoreHash) -> bool {
        self.inner.table.lock().is_hidden(item)
    }

    /// Narinfos of these items have come to be known.
    pub fn note_signed(&self, items: &[StoreHash]) {
        if self.inner.table.lock().note_signed(items) {
            self.inner.bell.notify_all();
        }
    }

    /// Narinfos by other keys are believed from now on. What is shared stays so: who may know of it is
    /// decided where it is given.
    pub fn note_keys(&self) {
        self.inner.table.lock().look_again_at_all();
        self.inner.bell.notify_all();
    }

    /// An item came through narswarm.
    pub fn note_fetched(&self, item: &StoreHash) {
        if let Err(error) = self.inner.memory.remember_fetched(item) {
            warn!("{error}");
        }
        if self.inner.config.fetched_only {
            let allowed = |item: &ItemName| self.inner.config.policy.allows(item);
            let revealed = self.inner.table.lock().reveal(item, allowed);
            if revealed {
                self.inner.work_has_moved();
            }
        }
    }

    /// Whether what was there at the start has been looked at, and hashed where that was needed.
    #[must_use]
    pub fn is_looked_through(&self) -> bool {
        let table = self.inner.table.lock();
        !table.has_near() && table.survey().waiting == 0
    }

    /// How far the work is.
    #[must_use]
    pub fn survey(&self) -> Survey {
        self.inner.table.lock().survey()
    }
}

impl Inner {
    fn open(
        config: SystemStoreConfig,
        outside: Arc<dyn Outside>,
        metrics: Arc<Metrics>,
    ) -> Result<(Arc<Self>, Database), SystemStoreError> {
        let store_dir = config.store.to_string_lossy().trim_end_matches('/').to_owned();
        let (path, scratch) = (config.database.clone(), config.data_dir.clone());
        let signatures = Signatures::new(path.clone(), store_dir.clone(), scratch.clone());
        let database = Database::new(path, store_dir, scratch);
        let layouts = Cache::builder()
            .weigher(|_, layout: &Arc<Layout>| {
                u32::try_from(layout.memory_bytes()).unwrap_or(u32::MAX)
            })
            .max_capacity(limits::LAYOUT_CACHE_BYTES)
            .build();
        let inner = Self {
            memory: Memory::open(&config.data_dir)?,
            guix_cache: GuixCache::new(config.guix_cache.clone()),
            signatures,
            table: Mutex::default(),
            bell: Condvar::new(),
            shelf: RwLock::default(),
            layouts,
            outside,
            metrics,
            stopped: AtomicBool::new(false),
            config,
        };
        Ok((Arc::new(inner), database))
    }

    fn spawn(self: &Arc<Self>, name: &str, work: impl FnOnce(&Arc<Self>) + Send + 'static) {
        let inner = self.clone();
        let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(move || work(&inner));
        if let Err(error) = spawned {
            warn!("cannot start the thread {name}, so the store isn't shared: {error}");
        }
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Wakes those who may have more to do, and tells the metrics how far everything is.
    fn work_has_moved(&self) {
        self.bell.notify_all();
        self.tell_metrics();
    }

    /// Tells the metrics how far everything is.
    fn tell_metrics(&self) {
        let survey = self.table.lock().survey();
        for (state, items) in [
            (StoreItemState::Hidden, survey.hidden),
            (StoreItemState::Unsigned, survey.unsigned),
            (StoreItemState::Different, survey.different),
            (StoreItemState::Waiting, survey.waiting),
            (StoreItemState::Shared, survey.shared),
        ] {
            self.metrics.set_store_items(state, items);
        }
        let bytes = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.metrics.store_shared_bytes.set(bytes(survey.shared_bytes));
        self.metrics.store_waiting_bytes.set(bytes(survey.waiting_bytes));
    }

    /// Counts that so many of `items` were found in a place, and the others not.
    fn count_lookups(&self, place: LookupPlace, items: usize, found: usize) {
        let missed = items.saturating_sub(found);
        for (outcome, count) in [(LookupOutcome::Found, found), (LookupOutcome::NotFound, missed)] {
            if count > 0 {
                self.metrics.count_store_lookups(place, outcome, count as u64);
            }
        }
    }

    fn path_of(&self, item: &ItemName) -> PathBuf {
        self.config.store.join(item.as_str())
    }

    /// Whether others may know of the item.
    fn allows(&self, item: &ItemName) -> bool {
        self.config.policy.allows(item)
            && (!self.config.fetched_only
                || self.memory.is_fetched(&item.hash()).unwrap_or_else(|error| {
                    warn!("{error}");
                    false
                }))
    }

    /// The layout of an item, looked up or made.
    fn layout(&self, item: &StoreHash, path: &Path) -> Result<Arc<Layout>, SystemStoreError> {
        if let Some(layout) = self.layouts.get(item) {
            return Ok(layout);
        }
        let layout = Arc::new(lay_out(path)?);
        self.layouts.insert(*item, layout.clone());
        Ok(layout)
    }

    /// An item turned out to be another than was hashed, or can't be read: it is shared no more,
    /// and hashed anew if it is still there.
    fn suspect(&self, item: &SharedItem, why: &dyn std::fmt::Display) {
        let hash = item.item.hash();
        if !self.shelf.write().remove(&hash) {
            return;
        }
        warn!("{} is not shared any more: {why}", item.item);
        self.layouts.invalidate(&hash);
        if let Err(error) = self.memory.forget_hashed(&hash) {
            warn!("{error}");
        }
        self.table.lock().look_again(item.id);
        self.work_has_moved();
        self.outside.gone(vec![hash]);
    }
}
