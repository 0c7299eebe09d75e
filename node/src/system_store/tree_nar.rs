//! A nar of the store that somebody reads: any piece by seeking in the tree, each checked against
//! the hash that this node computed when it shared the item. So whatever happens to the tree
//! meanwhile, wrong octets never leave: an item that has changed or was collected gives errors,
//! and is shared no more.

use super::memory::ItemStamp;
use super::shelf::SharedItem;
use super::tree::TreeReader;
use super::{Inner, SystemStoreError};
use bytes::Bytes;
use narswarm_protocol::hash::Root;
use narswarm_protocol::nar::Layout;
use narswarm_protocol::piece::PieceList;
use parking_lot::Mutex;
use std::sync::Arc;
use tracing::warn;

/// Readers that are kept with their files open: as many as read at once for one body.
const MAX_READERS: usize = 3;

/// See the module.
pub struct TreeNar {
    item: Arc<SharedItem>,
    layout: Arc<Layout>,
    list: PieceList,
    readers: Mutex<Vec<TreeReader>>,
    store: Arc<Inner>,
}

impl TreeNar {
    /// Opens the nar of a shared item; `None` when it turns out not to be what was hashed.
    pub(super) fn open(store: &Arc<Inner>, item: Arc<SharedItem>) -> Option<Self> {
        match Self::try_open(store, &item) {
            Ok((layout, list)) => {
                let readers = Mutex::default();
                Some(Self { item, layout, list, readers, store: store.clone() })
            }
            Err(error) if error.is_passing() => {
                warn!("{error}");
                None
            }
            Err(error) => {
                store.suspect(&item, &error);
                None
            }
        }
    }

    fn try_open(
        store: &Arc<Inner>,
        item: &SharedItem,
    ) -> Result<(Arc<Layout>, PieceList), SystemStoreError> {
        let (hash, path) = (item.item.hash(), store.path_of(&item.item));
        let stamp = ItemStamp::of(&path, item.id, item.registered)
            .map_err(|source| SystemStoreError::Io { path: path.clone(), source })?;
        let hashed = store.memory.hashed(&hash, &stamp)?;
        let hashed = hashed.filter(|hashed| hashed.nar_hash == item.nar_hash);
        let hashed = hashed.ok_or_else(|| SystemStoreError::Changed { path: path.clone() })?;
        let layout = store.layout(&hash, &path)?;
        if layout.nar_size() != item.nar_size {
            return Err(SystemStoreError::Changed { path });
        }
        Ok((layout, hashed.list))
    }

    /// Which item this is.
    #[must_use]
    pub fn item(&self) -> &SharedItem {
        &self.item
    }

    /// The root over its piece list.
    #[must_use]
    pub fn root(&self) -> Root {
        self.item.root
    }

    /// Its piece hashes and layout.
    #[must_use]
    pub fn list(&self) -> &PieceList {
        &self.list
    }

    /// Piece `index`, read from the tree and checked.
    ///
    /// # Errors
    /// When the item is no longer what was hashed; then it is shared no more.
    pub fn piece(&self, index: u32) -> Result<Bytes, SystemStoreError> {
        let path = || self.store.path_of(&self.item.item);
        let mut reader = self.readers.lock().pop().unwrap_or_else(|| TreeReader::new(path()));
        let range = self.list.layout().piece_range(index);
        let read = match reader.read(&self.layout, range) {
            Ok(octets) if self.list.matches(index, &octets) => Ok(Bytes::from(octets)),
            Ok(_) => Err(SystemStoreError::Changed { path: path() }),
            Err(source) => Err(SystemStoreError::Io { path: path(), source }),
        };
        match read {
            Ok(octets) => {
                let mut readers = self.readers.lock();
                if readers.len() < MAX_READERS {
                    readers.push(reader);
                }
                Ok(octets)
            }
            Err(error) => {
                if !error.is_passing() {
                    self.store.suspect(&self.item, &error);
                }
                Err(error)
            }
        }
    }
}
