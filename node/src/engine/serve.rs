//! What other peers get: public things only.
//!
//! An item is public when a narinfo of it is signed by a key of the ACL as it is now; its nar is
//! in the cache only after it has hashed to the signed value. Everything else is answered like
//! what doesn't exist.

use super::{Inner, resolve};
use crate::config::Role;
use crate::net::{Held, Responder, ServedNar};
use crate::store::HeldNar;
use narswarm_protocol::hash::{NarHash, Root};
use narswarm_protocol::piece::PieceList;
use narswarm_protocol::store_path::StoreHash;
use narswarm_protocol::wire::fetch::{Encoding, Frame};
use std::io;
use std::sync::Arc;
use tracing::warn;

/// The engine, as the network sees it.
pub(super) struct Shared(pub Arc<Inner>);

impl Responder for Shared {
    fn query(&self, hashes: &[StoreHash]) -> Vec<Option<Held>> {
        if self.0.config.role == Role::Proxy {
            return vec![None; hashes.len()];
        }
        hashes.iter().map(|hash| self.held(hash)).collect()
    }

    fn open(&self, nar: &NarHash) -> Option<Arc<dyn ServedNar>> {
        if self.0.config.role == Role::Proxy || !self.is_public(nar) {
            return None;
        }
        let held = self.0.held(nar)?;
        self.0.store.touch(nar);
        Some(Arc::new(Served { held, inner: self.0.clone() }))
    }
}

impl Shared {
    fn held(&self, hash: &StoreHash) -> Option<Held> {
        let known = resolve::from_store(&self.0, hash)?;
        let nar = self.0.held(&known.narinfo.nar_hash());
        Some(Held {
            narinfo: known.body.clone(),
            root: nar.as_ref().map(|nar| nar.root()),
            pieces_held: nar.map_or(0, |nar| nar.list().layout().piece_count()),
        })
    }

    /// Whether one of the items with this nar has a narinfo that the ACL authorises now.
    fn is_public(&self, nar: &NarHash) -> bool {
        self.0.public.get_with(*nar, || {
            let items = self.0.store.items_of(nar).unwrap_or_default();
            items.iter().any(|item| {
                resolve::from_store(&self.0, item)
                    .is_some_and(|known| known.narinfo.nar_hash() == *nar)
            })
        })
    }
}

impl Inner {
    /// A nar of the cache; what can't be read counts as not held.
    pub(super) fn held(&self, nar: &NarHash) -> Option<Arc<HeldNar>> {
        match self.store.nar(nar) {
            Ok(held) => held,
            Err(error) => {
                warn!("a nar of the cache is left out: {error}");
                None
            }
        }
    }
}

/// A nar of the cache that a peer reads.
struct Served {
    held: Arc<HeldNar>,
    inner: Arc<Inner>,
}

impl ServedNar for Served {
    fn root(&self) -> Root {
        self.held.root()
    }

    fn list(&self) -> &PieceList {
        self.held.list()
    }

    fn frame(&self, index: u32) -> io::Result<Option<Frame>> {
        let bytes = self.held.frame(index)?;
        self.inner.metrics.sent_to_peers_bytes.inc_by(bytes.len() as u64);
        Ok(Some(Frame { encoding: Encoding::Zstd, bytes }))
    }
}
