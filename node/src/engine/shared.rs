//! Everything that others can learn of this node's holdings, for its owner.

use super::{Inner, resolve};
use crate::store::StoreError;
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::store_path::StoreHash;
use serde::{Deserialize, Serialize};

/// Items that are listed at a time.
const PAGE: usize = 1000;

/// What whoever asks for an item learns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedEntry {
    /// `HASH-NAME`.
    pub item: String,
    /// SHA-256 of its nar, in nix-base32.
    pub nar_hash: String,
    /// Octets of its nar.
    pub nar_size: u64,
    /// From where its nar is given.
    pub nar: NarPlace,
}

/// From where a nar is given to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NarPlace {
    /// From the system's store.
    Store,
    /// From the cache.
    Cache,
    /// From nowhere: only the narinfo is told, and so that somebody here has looked it up.
    None,
}

/// Gives to `tell`, page by page, what others can learn; blocking. Ends early when `tell` says no.
///
/// # Errors
/// Failures of the disk.
pub(super) fn list(
    inner: &Inner,
    mut tell: impl FnMut(Vec<SharedEntry>) -> bool,
) -> Result<(), StoreError> {
    let mut after = None;
    while !inner.config.shares_nothing() {
        let page = inner.store.known_items(after, PAGE)?;
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        let entries = entries(inner, &page)?;
        if !tell(entries) {
            break;
        }
    }
    Ok(())
}

fn entries(
    inner: &Inner,
    page: &[(StoreHash, bytes::Bytes)],
) -> Result<Vec<SharedEntry>, StoreError> {
    let own_store = inner.own_store.get();
    let mut entries = Vec::new();
    for narinfo in resolve::verify(inner, page).into_iter().flatten() {
        let item = narinfo.item();
        let hidden = own_store.is_some_and(|store| store.is_hidden(&item.hash()));
        if hidden || !inner.config.policy.allows_cached(item) {
            continue;
        }
        entries.push(SharedEntry {
            item: item.to_string(),
            nar_hash: narinfo.nar_hash().to_string(),
            nar_size: narinfo.nar_size(),
            nar: place(inner, &narinfo.nar_hash())?,
        });
    }
    Ok(entries)
}

fn place(inner: &Inner, nar: &NarHash) -> Result<NarPlace, StoreError> {
    // In the order in which it is looked for when a peer asks.
    if inner.store.holds(nar)? {
        return Ok(NarPlace::Cache);
    }
    let in_store = inner.own_store.get().is_some_and(|store| store.shared_nar(nar).is_some());
    Ok(if in_store { NarPlace::Store } else { NarPlace::None })
}
