//! Keeping what others announce, for a swarm of somebody else's: entry nodes do, since in a small
//! network there may be nobody else whom all others reach.
//!
//! It is the same machine as a node's, which announces nothing and searches for nothing itself.

use super::book::{Book, Reach, is_plausible, reach};
use super::config::NetTiming;
use super::messages::Conversation;
use super::routing::dht::{Machine, drive};
use super::routing::keeper::Keeper;
use super::serve::announce;
use super::streams::{self, Accept, PeerStream, Protocol};
use super::swarm::View;
use super::{KAD_PROTOCOL, NETWORK};
use libp2p::core::ConnectedPoint;
use libp2p::swarm::ConnectionId;
use libp2p::{PeerId, identify};
use narswarm_protocol::announce::providers::ProviderLimits;
use narswarm_protocol::limits::{MAX_PEER_ADDRESSES, MAX_SERVED_ANNOUNCES};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use tokio::sync::Semaphore;

/// The behaviour by which messages of discovery come and go.
pub type KeepingBehaviour = streams::Behaviour;

/// What others announce, and who is there to be told of.
#[derive(Clone)]
pub struct Keeping {
    machine: Arc<Machine>,
    view: Arc<Mutex<View>>,
    book: Book,
    served: Arc<AtomicU64>,
}

impl Keeping {
    /// Keeps at most `records` records of others, those of an earlier run first; see
    /// [`Keeping::kept`]. The behaviour goes into the swarm of the node `local`.
    #[must_use]
    pub fn new(local: PeerId, records: usize, kept: &[u8]) -> (Self, KeepingBehaviour) {
        let (view, book) = (Arc::<Mutex<View>>::default(), Book::default());
        let (timing, served) = (NetTiming::default(), Arc::<AtomicU64>::default());
        let acceptor = Arc::new(Acceptor {
            machine: OnceLock::new(),
            places: Arc::new(Semaphore::new(MAX_SERVED_ANNOUNCES)),
            timing: timing.clone(),
            served: served.clone(),
        });
        let (behaviour, control) = streams::Behaviour::new(acceptor.clone(), book.clone());
        let limits =
            ProviderLimits { records, per_network: records / 4, ..ProviderLimits::default() };
        let keeper = Keeper::new(kept, limits, book.clone());
        let machine =
            Arc::new(Machine::new(local, keeper, book.clone(), control, timing, view.clone()));
        // There is one machine only.
        let _ = acceptor.machine.set(Arc::downgrade(&machine));
        (Self { machine, view, book, served }, behaviour.offering(&[Protocol::Announce]))
    }

    /// Sees who is near the meeting points and whether providers are there, until stopped.
    pub async fn run(self) {
        drive(self.machine).await;
    }

    /// Ends everything.
    pub fn stop(&self) {
        self.machine.stop();
    }

    /// What is kept, as octets for the next run.
    #[must_use]
    pub fn kept(&self) -> Vec<u8> {
        self.machine.keeper().snapshot()
    }

    /// How many records are kept.
    #[must_use]
    pub fn records(&self) -> usize {
        self.machine.keeper().records()
    }

    /// How many messages have been answered.
    #[must_use]
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// A connection was made.
    pub fn connected(&self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        if self.view.lock().peers.connect(peer, id, endpoint) {
            self.machine.connected(peer, true);
        }
    }

    /// A connection has ended.
    pub fn disconnected(&self, peer: PeerId, id: ConnectionId) {
        if self.view.lock().peers.disconnect(&peer, id) {
            self.machine.connected(peer, false);
        }
    }

    /// A connected peer has told who it is.
    pub fn identified(&self, peer: PeerId, info: &identify::Info) {
        if info.protocol_version != NETWORK {
            return;
        }
        let nearest = self.machine.whereabouts(&peer).0;
        let addresses = info.listen_addrs.iter().filter(|a| is_plausible(a, nearest)).cloned();
        let mut addresses: Vec<_> = addresses.collect();
        addresses.sort_by_key(|address| reach(address) != Some(Reach::Everywhere));
        addresses.truncate(MAX_PEER_ADDRESSES);
        self.book.tell(peer, addresses);
        let keeps = info.protocols.contains(&Protocol::Announce.stream_protocol());
        self.machine.identified(peer, keeps && info.protocols.contains(&KAD_PROTOCOL));
    }
}

/// Answers messages of discovery.
struct Acceptor {
    machine: OnceLock<Weak<Machine>>,
    places: Arc<Semaphore>,
    timing: NetTiming,
    served: Arc<AtomicU64>,
}

impl Accept for Acceptor {
    fn accept(&self, peer: PeerId, protocol: Protocol, stream: PeerStream) {
        let machine = self.machine.get().and_then(Weak::upgrade);
        let place = self.places.clone().try_acquire_owned().ok();
        let (Some(machine), Some(place)) = (machine, place) else { return };
        let with = Conversation { peer, protocol: protocol.name(), stall: self.timing.stall };
        let served = self.served.clone();
        tokio::spawn(async move {
            match announce::answer(&machine, with, stream).await {
                Ok(true) => drop(served.fetch_add(1, Ordering::Relaxed)),
                Ok(false) => {}
                Err(error) => tracing::debug!(%error, "stopped serving"),
            }
            drop(place);
        });
    }
}
