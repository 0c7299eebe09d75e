//! What is shared now: by item and by nar, in memory, so that a question of a stranger costs the
//! same whatever there is.

use narswarm_protocol::hash::{NarHash, Root};
use narswarm_protocol::store_path::{ItemName, StoreHash};
use std::collections::HashMap;
use std::sync::Arc;

/// An item that is shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedItem {
    /// Its number in the database.
    pub(super) id: i64,
    /// When it was registered.
    pub(super) registered: i64,
    /// Its name.
    pub item: ItemName,
    /// SHA-256 of its nar.
    pub nar_hash: NarHash,
    /// Octets of its nar.
    pub nar_size: u64,
    /// The root of its piece list.
    pub root: Root,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Shelf {
    items: HashMap<StoreHash, Arc<SharedItem>>,
    /// Mostly one item each, but contents can be the same under several names.
    nars: HashMap<NarHash, Vec<StoreHash>>,
}

impl Shelf {
    /// Puts an item up, in place of an earlier one of its hash.
    pub fn insert(&mut self, item: SharedItem) {
        let (hash, nar) = (item.item.hash(), item.nar_hash);
        self.remove(&hash);
        self.items.insert(hash, Arc::new(item));
        self.nars.entry(nar).or_default().push(hash);
    }

    /// Takes an item down; whether it was there.
    pub fn remove(&mut self, item: &StoreHash) -> bool {
        let Some(removed) = self.items.remove(item) else { return false };
        if let Some(items) = self.nars.get_mut(&removed.nar_hash) {
            items.retain(|other| other != item);
            if items.is_empty() {
                self.nars.remove(&removed.nar_hash);
            }
        }
        true
    }

    /// What is shared under a store hash.
    pub fn item(&self, item: &StoreHash) -> Option<Arc<SharedItem>> {
        self.items.get(item).cloned()
    }

    /// The items with a nar.
    pub fn with_nar(&self, nar: &NarHash) -> Vec<Arc<SharedItem>> {
        let items = self.nars.get(nar).map(Vec::as_slice).unwrap_or_default();
        items.iter().filter_map(|item| self.item(item)).collect()
    }

    /// All of them, in the order of the store hashes.
    pub fn all(&self) -> Vec<Arc<SharedItem>> {
        let mut all: Vec<_> = self.items.values().cloned().collect();
        all.sort_unstable_by_key(|item| item.item.hash());
        all
    }
}
