//! The routing port: who holds what, wherever that is written down.
//!
//! `DhtRouting` is announcements to the nodes that keep each bucket, which Kademlia finds;
//! [`memory::MemoryRouting`] a registry shared by nodes in one process. Both pass one suite of
//! conformance tests.

mod asking;
#[cfg(test)]
mod conformance;
pub(super) mod dht;
pub(super) mod diversity;
mod guests;
pub(super) mod keeper;
pub mod memory;
pub mod records;

use async_trait::async_trait;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::mpsc;

/// A key under which holders are found; see
/// [`provider_key`](narswarm_protocol::provider_key::provider_key).
pub type ProviderKey = [u8; 32];

/// Somebody who says that they hold an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    /// The key that was looked up.
    pub key: ProviderKey,
    /// The holder, never this node itself.
    pub peer: PeerId,
    /// Where it says it is reached; the network remembers them for dialling.
    pub addresses: Vec<Multiaddr>,
}

/// Why keys are not announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RoutingError {
    /// More keys than this node may announce.
    #[error("{keys} keys more than the {limit} that one node may announce")]
    Full {
        /// Keys beyond the limit; none of the call's keys was taken.
        keys: usize,
        /// Keys allowed.
        limit: usize,
    },
    /// The network is shut down.
    #[error("the network is shut down")]
    ShutDown,
}

/// Finds holders and announces what this node holds.
#[async_trait]
pub trait Routing: Send + Sync {
    /// Whether there is anybody to ask.
    fn ready(&self) -> bool;

    /// Looks up keys, at most [`MAX_FIND_KEYS`](narswarm_protocol::limits::MAX_FIND_KEYS); more
    /// are not looked at. Providers come as they are found, each at most once a key; the channel
    /// closes when everything is found or the time for it is over. Dropping it ends the search.
    async fn find(&self, keys: &[ProviderKey]) -> mpsc::Receiver<Provider>;

    /// As [`Routing::find`], for what this node looks for by itself now and then. It doesn't prepare for
    /// further searches, as by staying connected with those who would answer them.
    async fn find_for_upkeep(&self, keys: &[ProviderKey]) -> mpsc::Receiver<Provider> {
        self.find(keys).await
    }

    /// Announces that this node holds what these keys stand for, until they are withdrawn.
    /// Returns when the keys are queued: announcing them takes its time.
    ///
    /// # Errors
    /// See [`RoutingError`].
    async fn provide(&self, keys: &[ProviderKey]) -> Result<(), RoutingError>;

    /// Stops announcing these keys, and tells those who keep them after a while.
    async fn withdraw(&self, keys: &[ProviderKey]);

    /// Everything that this node holds has been provided: what an earlier run announced beyond that
    /// is withdrawn.
    async fn provided_all(&self);

    /// A provider that was found was not there, or held nothing: it is left out for a while.
    fn note_gone(&self, peer: PeerId);

    /// A provider that was found has answered: those who are doubtful needn't be asked any more.
    fn note_there(&self, peer: PeerId);
}
