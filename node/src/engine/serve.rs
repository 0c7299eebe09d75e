//! What other peers get: public things only.
//!
//! An item is public when a narinfo of it is signed by a key of the ACL as it is now; its nar is
//! in the cache only after it has hashed to the signed value. A nar that is being fetched is given
//! as far as it has come, and never said to be whole before it is verified. Everything else is
//! answered like what doesn't exist: by the same octets, after the same work. For that, whatever is
//! asked for is looked for in the same places, and what must not be known is then looked for under a
//! name that nothing has.

use super::progress::{Progress, Shareable};
use super::resolve::Known;
use super::{Inner, resolve};
use crate::net::{FilterAnswer, Held, Responder, ServedNar};
use crate::store::{HeldNar, encode_piece};
use crate::system_store::TreeNar;
use libp2p::PeerId;
use narswarm_protocol::acl::Acl;
use narswarm_protocol::hash::{NarHash, Root};
use narswarm_protocol::piece::{PieceLayout, PieceList};
use narswarm_protocol::piece_set::PieceSet;
use narswarm_protocol::store_path::{ItemName, StoreHash};
use narswarm_protocol::voucher::Voucher;
use narswarm_protocol::wire::fetch::{Encoding, Frame};
use std::io;
use std::sync::Arc;
use tracing::warn;

/// The engine, as the network sees it.
pub(super) struct Sharing(pub Arc<Inner>);

impl Responder for Sharing {
    fn query(&self, hashes: &[StoreHash]) -> Vec<Option<Held>> {
        if self.0.config.shares_nothing() {
            return vec![None; hashes.len()];
        }
        hashes.iter().map(|hash| self.held(hash)).collect()
    }

    fn filter(&self, have: Option<(u64, u32)>) -> Option<FilterAnswer> {
        self.0.filter_answer(have)
    }

    fn open(&self, peer: PeerId, nar: &NarHash) -> Option<Arc<dyn ServedNar>> {
        if self.0.config.shares_nothing() || !self.is_public(nar) {
            return None;
        }
        if let Some(held) = self.0.held(nar) {
            self.0.store.touch(nar);
            return Some(Arc::new(Served { held, nar: *nar, inner: self.0.clone() }));
        }
        if let Some(tree) = self.0.own_store.get().and_then(|store| store.nar(nar)) {
            return Some(Arc::new(FromStore { tree, nar: *nar, inner: self.0.clone() }));
        }
        let fetching = self.0.fetching(nar)?;
        fetching.note_asker(peer);
        let progress = fetching.progress;
        let (root, list) = progress.list()?;
        Some(Arc::new(Shared { progress, nar: *nar, root, list, inner: self.0.clone() }))
    }

    fn compress(&self, piece: &[u8]) -> Vec<u8> {
        encode_piece(piece)
    }

    fn gave(&self, bytes: u64) {
        self.0.metrics.sent_to_peers_bytes.inc_by(bytes);
    }
}

impl Sharing {
    /// The narinfo of an item that others may know of. What the policy hides is looked for under a
    /// hash that nothing has, so that the answer is found in the same way as that for what doesn't
    /// exist.
    fn public(&self, hash: &StoreHash) -> Option<Arc<Known>> {
        let hash = if self.0.is_hidden(hash) { &self.0.nothing } else { hash };
        let known = resolve::from_store(&self.0, hash)?;
        self.0.config.policy.allows_cached(known.narinfo.item()).then_some(known)
    }

    fn held(&self, hash: &StoreHash) -> Option<Held> {
        let known = self.public(hash)?;
        let nar_hash = known.narinfo.nar_hash();
        let whole = |nar: Arc<HeldNar>| (nar.root(), nar.list().layout().piece_count());
        let held = self.0.held(&nar_hash).map(whole);
        let held = held.or_else(|| self.in_own_store(&nar_hash));
        let held = held.or_else(|| self.fetching(&nar_hash));
        Some(Held {
            narinfo: known.body.clone(),
            root: held.map(|(root, _)| root),
            pieces_held: held.map_or(0, |(_, pieces)| pieces),
        })
    }

    /// What can be given from the system's store, by memory alone.
    fn in_own_store(&self, nar: &NarHash) -> Option<(Root, u32)> {
        let shared = self.0.own_store.get()?.shared_nar(nar)?;
        Some((shared.root, PieceLayout::new(shared.nar_size)?.piece_count()))
    }

    /// What can be given of a nar that is being fetched. Never all of it: only who has hashed the
    /// whole may say that he has it.
    fn fetching(&self, nar: &NarHash) -> Option<(Root, u32)> {
        let progress = self.0.fetching(nar)?.progress;
        let (root, list) = progress.list()?;
        Some((root, progress.held().len().min(list.layout().piece_count() - 1)))
    }

    /// Whether one of the items with this nar has a narinfo that the ACL authorises now.
    fn is_public(&self, nar: &NarHash) -> bool {
        // Before looking: what is found under keys that change meanwhile is looked for again.
        let acl = self.0.acl.load_full();
        if let Some(found) = self.0.public.get(nar).filter(|found| Arc::ptr_eq(&found.acl, &acl)) {
            return found.is_public;
        }
        let mut items = self.0.store.items_of(nar).unwrap_or_default();
        if items.is_empty() {
            // As much work as for a nar whose item is hidden.
            items.push(self.0.nothing);
        }
        let is_public = items
            .iter()
            .any(|item| self.public(item).is_some_and(|known| known.narinfo.nar_hash() == *nar));
        self.0.public.insert(*nar, Publicity { acl, is_public });
        is_public
    }
}

/// Whether a nar may be given away under these keys.
#[derive(Debug, Clone)]
pub(super) struct Publicity {
    acl: Arc<Acl>,
    is_public: bool,
}

/// Stops giving a nar in mid-transfer when the key under which it was public has gone.
fn still_public(inner: &Arc<Inner>, nar: &NarHash) -> io::Result<()> {
    if Sharing(inner.clone()).is_public(nar) {
        return Ok(());
    }
    Err(io::Error::other("the key that has signed this nar is believed no longer"))
}

impl Inner {
    /// Whether the policy keeps an item from others, by what the system's store and the kept narinfo
    /// say of its name; blocking. The narinfo isn't verified: that takes as long as all the rest, and
    /// would tell what is hidden from what isn't there.
    pub(super) fn is_hidden(&self, hash: &StoreHash) -> bool {
        let in_store = self.own_store.get().is_some_and(|store| store.is_hidden(hash));
        let policy = &self.config.policy;
        let is_excluded = |item: ItemName| !policy.allows_cached(&item);
        let kept =
            policy.excludes_some() && resolve::kept_name(self, hash).is_some_and(is_excluded);
        in_store || kept
    }

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
    nar: NarHash,
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
        still_public(&self.inner, &self.nar)?;
        let bytes = self.held.frame(index)?;
        Ok(Some(Frame { encoding: Encoding::Zstd, bytes }))
    }

    fn vouchers(&self) -> Vec<Voucher> {
        self.inner.vouching.given(&self.nar, self.held.root(), true)
    }
}

/// A nar of the system's store that a peer reads. Its pieces are compressed for slow lines where they
/// are sent.
struct FromStore {
    tree: TreeNar,
    nar: NarHash,
    inner: Arc<Inner>,
}

impl ServedNar for FromStore {
    fn root(&self) -> Root {
        self.tree.root()
    }

    fn list(&self) -> &PieceList {
        self.tree.list()
    }

    fn frame(&self, index: u32) -> io::Result<Option<Frame>> {
        still_public(&self.inner, &self.nar)?;
        // An item that has changed or is gone: the peer is told that the piece is missing.
        let bytes = self.tree.piece(index).map_err(io::Error::other)?;
        Ok(Some(Frame { encoding: Encoding::Raw, bytes }))
    }

    fn vouchers(&self) -> Vec<Voucher> {
        self.inner.vouching.given(&self.nar, self.tree.root(), true)
    }
}

/// A nar that is being fetched, and given to peers as far as it has come. Its pieces match a piece
/// list that is not proved yet; who fetches it knows that from its not being complete.
struct Shared {
    progress: Arc<Progress>,
    nar: NarHash,
    root: Root,
    list: Arc<PieceList>,
    inner: Arc<Inner>,
}

impl ServedNar for Shared {
    fn root(&self) -> Root {
        self.root
    }

    fn list(&self) -> &PieceList {
        &self.list
    }

    fn frame(&self, index: u32) -> io::Result<Option<Frame>> {
        still_public(&self.inner, &self.nar)?;
        // Another list has been chosen since: what is held now is not what was promised.
        if self.progress.list().is_none_or(|(root, _)| root != self.root) {
            return Ok(None);
        }
        let frame = match self.progress.piece(index) {
            None => return Ok(None),
            Some(Shareable::Raw(bytes)) => Frame { encoding: Encoding::Raw, bytes },
            Some(Shareable::OnDisk(disk)) => {
                Frame { encoding: Encoding::Zstd, bytes: disk.read_frame(index)? }
            }
            Some(Shareable::Kept(nar)) => {
                Frame { encoding: Encoding::Zstd, bytes: nar.frame(index)? }
            }
        };
        Ok(Some(frame))
    }

    fn held(&self) -> PieceSet {
        let mut held = self.progress.held();
        // One piece, another on each node, is not told of before the whole is verified.
        if held.is_all() && !self.progress.is_verified() {
            held.remove((self.inner.seed % u64::from(held.count())) as u32);
        }
        held
    }

    fn vouchers(&self) -> Vec<Voucher> {
        self.inner.vouching.given(&self.nar, self.root, false)
    }
}
