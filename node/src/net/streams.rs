//! Streams of our own protocols, opened and accepted without loss.
//!
//! libp2p-stream drops inbound streams when two arrive at once, so this is our own behaviour.
//! Whoever wants a stream asks [`Control::open`], which dials if needed and waits for its turn;
//! what peers open is handed to [`Accept`] on the spot. Nothing is queued without a bound: a
//! stream beyond the limit of its connection is reset, and counted.

mod behaviour;
mod handler;
mod peer_stream;

pub use behaviour::Behaviour;
pub use behaviour::reason;
pub use peer_stream::PeerStream;

use super::error::PeerError;
use handler::OpenRequest;
use libp2p::swarm::ConnectionId;
use libp2p::{PeerId, StreamProtocol};
use narswarm_protocol::limits::MAX_AWAITED_PEERS;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// A protocol that is opened and accepted here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `/narswarm/query/1`
    Query = 0,
    /// `/narswarm/fetch/1`
    Fetch = 1,
    /// `/narswarm/announce/1`
    Announce = 2,
    /// `/narswarm/filter/1`
    Filter = 3,
}

/// How many [`Protocol`]s there are.
const PROTOCOLS: usize = Protocol::ALL.len();

impl Protocol {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Query, Self::Fetch, Self::Announce, Self::Filter];

    /// The name as libp2p takes it.
    #[must_use]
    pub fn stream_protocol(self) -> StreamProtocol {
        StreamProtocol::new(self.name())
    }

    /// The name under which it is negotiated.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Query => narswarm_protocol::wire::query::PROTOCOL,
            Self::Fetch => narswarm_protocol::wire::fetch::PROTOCOL,
            Self::Announce => narswarm_protocol::wire::announce::PROTOCOL,
            Self::Filter => narswarm_protocol::wire::filter::PROTOCOL,
        }
    }
}

/// Takes the streams that peers open.
pub trait Accept: Send + Sync + 'static {
    /// Takes a stream. Must not block; dropping the stream resets it.
    fn accept(&self, peer: PeerId, protocol: Protocol, stream: PeerStream);
}

/// What has happened to streams, for metrics.
#[derive(Debug, Default)]
pub struct Counters {
    /// Streams accepted.
    pub accepted: AtomicU64,
    /// Streams reset because their connection had too many.
    pub refused: AtomicU64,
    /// Streams opened.
    pub opened: AtomicU64,
}

/// Octets that streams of one connection have carried.
#[derive(Debug, Default)]
pub struct Traffic {
    received: AtomicU64,
    sent: AtomicU64,
}

/// A connection on which streams can be opened.
#[derive(Clone)]
struct Link {
    connection: ConnectionId,
    wishes: [mpsc::Sender<OpenRequest>; PROTOCOLS],
    keep: Arc<AtomicBool>,
    /// The peer has made it.
    inbound: bool,
    /// A relay carries little and slowly, so it is the last choice.
    relayed: bool,
    /// QUIC moves a third of what TCP does, so it is the second choice.
    quic: bool,
    traffic: Arc<Traffic>,
}

/// What those who want streams and the behaviour share.
#[derive(Default)]
struct Shared {
    links: HashMap<PeerId, Vec<Link>>,
    /// Who waits for a connection to which peer.
    awaited: HashMap<PeerId, Vec<oneshot::Sender<Result<(), String>>>>,
    /// Peers whose connections stay open when idle, and what for: a bit for each of [`Keep`].
    kept: HashMap<PeerId, u8>,
    /// Peers reached through a relay with whom a direct connection is under way, until when that is
    /// worth waiting for, and who waits.
    punching: HashMap<PeerId, (Instant, Vec<oneshot::Sender<()>>)>,
}

/// Why a connection stays open when idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// The peer has been of use, is an entry node, or relays for this one.
    Useful = 1,
    /// This node searches, and the peer keeps what it searches for.
    Anchor = 2,
    /// The peer asks this node. How long a connection lasts that the peer has made is for the peer to
    /// say; one that this node has made isn't kept for this.
    Guest = 4,
}

/// Whether a connection is kept for these purposes.
fn is_kept(purposes: u8, inbound: bool) -> bool {
    let guest = Keep::Guest as u8;
    purposes & !guest != 0 || (inbound && purposes & guest != 0)
}

/// Opens streams.
#[derive(Clone)]
pub struct Control {
    shared: Arc<Mutex<Shared>>,
    dials: mpsc::UnboundedSender<PeerId>,
    /// What has happened so far.
    pub counters: Arc<Counters>,
}

/// What [`Control::way_to`] finds.
enum Way {
    Link(mpsc::Sender<OpenRequest>),
    Wait(oneshot::Receiver<Result<(), String>>),
    /// Only through a relay, and perhaps straight before that time.
    Punching(oneshot::Receiver<()>, Instant),
    Full,
}

impl Control {
    /// Opens a stream to a peer, over a connection that there is or a new one.
    ///
    /// The protocol is confirmed by the remote only when the first octets are read: see
    /// [`PeerStream`].
    ///
    /// # Errors
    /// [`PeerError::Unreachable`], [`PeerError::TimedOut`] after `deadline`, or
    /// [`PeerError::Local`] when too many peers are being dialled.
    pub async fn open(
        &self,
        peer: PeerId,
        protocol: Protocol,
        deadline: Duration,
    ) -> Result<PeerStream, PeerError> {
        let timed_out = PeerError::TimedOut { peer, doing: "opening a stream" };
        tokio::time::timeout(deadline, self.open_unbounded(peer, protocol))
            .await
            .unwrap_or(Err(timed_out))
    }

    async fn open_unbounded(
        &self,
        peer: PeerId,
        protocol: Protocol,
    ) -> Result<PeerStream, PeerError> {
        loop {
            let wishes = match self.way_to(peer, protocol) {
                Way::Link(wishes) => wishes,
                Way::Punching(over, until) => {
                    // Whatever comes of it, the next look decides.
                    let _ = tokio::time::timeout_at(until.into(), over).await;
                    continue;
                }
                Way::Full => {
                    return Err(PeerError::Local { peer, reason: "too many peers are dialled" });
                }
                Way::Wait(connected) => {
                    let shut_down = PeerError::Local { peer, reason: "the network is shut down" };
                    match connected.await.map_err(|_| shut_down)? {
                        Ok(()) => continue,
                        Err(reason) => return Err(PeerError::Unreachable { peer, reason }),
                    }
                }
            };
            let (reply, opened) = oneshot::channel();
            if wishes.send(OpenRequest { protocol, reply }).await.is_err() {
                // The connection closed meanwhile; its link is not found again.
                continue;
            }
            let closed = PeerError::Closed { peer, doing: "opening a stream" };
            let stream = opened.await.map_err(|_| closed)?;
            let stream = stream.map_err(|failure| failure.error(peer, protocol))?;
            self.counters.opened.fetch_add(1, Ordering::Relaxed);
            return Ok(stream);
        }
    }

    /// The best connection to a peer, or a place among those who wait for one.
    fn way_to(&self, peer: PeerId, protocol: Protocol) -> Way {
        let mut shared = self.shared.lock();
        if let Some(links) = shared.links.get_mut(&peer) {
            // A connection's end is known here before the swarm says so.
            links.retain(|link| !link.wishes[0].is_closed());
            if let Some(link) = links.iter().min_by_key(|link| (link.relayed, link.quic)) {
                let wishes = link.wishes[protocol as usize].clone();
                if link.relayed
                    && protocol == Protocol::Fetch
                    && let Some((until, waiting)) = shared.punching.get_mut(&peer)
                    && *until > Instant::now()
                {
                    let (sender, over) = oneshot::channel();
                    waiting.push(sender);
                    return Way::Punching(over, *until);
                }
                return Way::Link(wishes);
            }
        }
        // Those who gave up make room.
        shared.awaited.retain(|_, waiting| {
            waiting.retain(|sender| !sender.is_closed());
            !waiting.is_empty()
        });
        if shared.awaited.len() >= MAX_AWAITED_PEERS && !shared.awaited.contains_key(&peer) {
            return Way::Full;
        }
        let (sender, receiver) = oneshot::channel();
        let waiting = shared.awaited.entry(peer).or_default();
        waiting.push(sender);
        if waiting.len() == 1 && self.dials.send(peer).is_err() {
            shared.awaited.remove(&peer);
        }
        Way::Wait(receiver)
    }

    /// Keeps the connections of a useful peer open when idle, or no longer.
    pub fn keep(&self, peer: PeerId, keep: bool) {
        self.keep_for(Keep::Useful, peer, keep);
    }

    /// Keeps the connections of a peer open when idle, or no longer for this purpose.
    pub fn keep_for(&self, purpose: Keep, peer: PeerId, keep: bool) {
        let mut shared = self.shared.lock();
        let before = shared.kept.get(&peer).copied().unwrap_or(0);
        let purposes = if keep { before | purpose as u8 } else { before & !(purpose as u8) };
        if purposes == 0 {
            shared.kept.remove(&peer);
        } else {
            shared.kept.insert(peer, purposes);
        }
        for link in shared.links.get(&peer).into_iter().flatten() {
            link.keep.store(is_kept(purposes, link.inbound), Ordering::Relaxed);
        }
    }

    /// A direct connection with a peer that is reached through a relay is under way: content waits
    /// for it until then.
    pub fn punching(&self, peer: PeerId, until: Instant) {
        let now = Instant::now();
        let mut shared = self.shared.lock();
        shared.punching.retain(|_, (until, _)| *until > now);
        shared.punching.insert(peer, (until, Vec::new()));
    }

    /// There is a direct connection, or there won't be.
    pub fn punch_over(&self, peer: PeerId) {
        // Whoever waits learns it by its end.
        self.shared.lock().punching.remove(&peer);
    }

    /// Octets received and sent by streams, over the connections to a peer that are open.
    #[must_use]
    pub fn traffic(&self, peer: &PeerId) -> (u64, u64) {
        let shared = self.shared.lock();
        let links = shared.links.get(peer).into_iter().flatten();
        links.fold((0, 0), |(received, sent), link| {
            let more = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            (received + more(&link.traffic.received), sent + more(&link.traffic.sent))
        })
    }

    /// Whether there is a connection to this peer.
    #[must_use]
    pub fn is_connected(&self, peer: &PeerId) -> bool {
        self.shared.lock().links.get(peer).is_some_and(|links| !links.is_empty())
    }
}
