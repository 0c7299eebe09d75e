//! The network: libp2p below, our protocols above.
//!
//! [`Net`] is all that the rest of the node sees. It asks peers what they hold ([`Net::query`])
//! and fetches pieces ([`Net::open_fetch`]); it serves what its [`Responder`] gives; it finds
//! holders ([`Net::routing`]). It persists nothing, decides nothing about items, and verifies no
//! content: what it returns is within its bounds and was asked for, no more.
//!
//! - below: `transport`, `tls`, `yamux`, `pacing` (TCP before QUIC before relays);
//! - who and where: `behaviour`, `swarm` (the task), `book`, [`peers`], `dialing`, [`routing`];
//! - `networks`: in which network of the Internet an address is, and what one may have of this node;
//! - `inspect`: a look at all of it; [`resolver`]: who is asked for names; [`keeping`]: the part of
//!   all this that entry nodes have;
//! - [`mod@reach`]: how others reach this node, whatever its NAT does, and what may be dialled;
//! - conversations: `streams`, `messages`, `query`, `filter` and [`transfer`] (asking), `serve`.

mod behaviour;
mod book;
pub mod config;
pub mod counters;
mod dialing;
pub mod error;
pub mod events;
mod filter;
mod inspect;
pub mod keeping;
mod line;
mod messages;
mod networks;
mod pacing;
pub mod peers;
mod query;
pub mod reach;
pub mod resolver;
pub mod responder;
pub mod routing;
mod serve;
mod streams;
mod swarm;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tls;
pub mod transfer;
mod transport;
mod yamux;

pub use behaviour::{KAD_PROTOCOL, NETWORK, kad_config};
pub use book::{Reach, is_plausible, reach};
pub use config::{NetConfig, NetTiming, ReachConfig};
pub use counters::NetCounters;
pub use dialing::{Source, SourceState};
pub use error::{Fault, NetError, PeerError};
pub use events::NetEvent;
pub use inspect::NetView;
pub use networks::operator_of;
pub use pacing::peer_of;
pub use peers::PeerInfo;
pub use reach::Nat;
pub use reach::guard::Guard;
pub use responder::{FilterAnswer, FilterContent, Held, Responder, ServedNar};
pub use routing::records::NoRecords;
pub use routing::{Provider, ProviderKey, Routing, RoutingError};
pub use streams::{Counters as StreamCounters, reason as dial_reason};
pub use transfer::{FetchRequests, FetchResponses, NarResponses};
pub use transport::{SetupError, build as build_transport};

use crate::rate::DownloadLimit;
use book::Book;
use dialing::Dialing;
use futures::{FutureExt, StreamExt};
use libp2p::core::transport::ListenerId;
use libp2p::core::upgrade::Version;
use libp2p::multiaddr::Protocol as Segment;
use libp2p::swarm::{self as libp2p_swarm, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, relay};
use narswarm_protocol::announce::providers::ProviderLimits;
use narswarm_protocol::limits::MAX_CONNECTION_STREAMS;
use narswarm_protocol::store_path::StoreHash;
use narswarm_protocol::wire::filter::FilterRequest;
use parking_lot::Mutex;
use reach::upkeep::Reaching;
use routing::dht::{DhtRouting, Machine, drive};
use routing::diversity::Diversity;
use routing::keeper::Keeper;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};
use streams::Control;
use swarm::{Command, Task, View};
use tokio::sync::{broadcast, mpsc};

/// Events that whoever falls behind may still read.
const EVENTS: usize = 1024;

/// Commands that may wait for the swarm's task, which takes microseconds for each.
const COMMANDS: usize = 256;

/// How long listening may take to start: it needs no remote.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);

/// The network, as the rest of the node sees it. Clones are the same network.
#[derive(Clone)]
pub struct Net(Arc<Inner>);

struct Inner {
    peer: PeerId,
    view: Arc<Mutex<View>>,
    book: Book,
    control: Control,
    counters: Arc<NetCounters>,
    timing: NetTiming,
    download: DownloadLimit,
    shared: transfer::SharedSessions,
    server: Arc<serve::Server>,
    routing: Arc<DhtRouting>,
    commands: mpsc::Sender<Command>,
    task: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Net {
    /// Starts the network; returns when all addresses are listened on.
    ///
    /// # Errors
    /// See [`NetError`]; nothing is left running.
    pub async fn start(
        config: NetConfig,
        responder: Arc<dyn Responder>,
    ) -> Result<(Self, broadcast::Receiver<NetEvent>), NetError> {
        let peer = config.keypair.public().to_peer_id();
        let (counters, book) = (Arc::<NetCounters>::default(), Book::default());
        for (known, addresses) in config.known_peers.iter().rev() {
            book.add(*known, addresses.iter().cloned());
        }
        for address in &config.bootstrap {
            if let Some(peer) = pacing::peer_of(address) {
                book.add(peer, [address.clone()]);
            }
        }
        let (timing, upload) = (config.timing.clone(), config.upload);
        let server = Arc::new(serve::Server::new(responder, upload, timing, counters.clone()));
        let acceptor = Arc::new(serve::Acceptor(server.clone()));
        let guard = Guard::default();
        let known = config.known_peers.iter().flat_map(|(_, addresses)| addresses);
        config.bootstrap.iter().chain(known).for_each(|address| guard.allow(address));
        let (relayed, relay_client) =
            config.reach.traverse.then(|| relay::client::new(peer)).unzip();
        let transport =
            transport::build(&config.keypair, config.line, &guard, relayed, config.resolver)?;
        let (behaviour, control) =
            behaviour::Behaviour::new(&config, book.clone(), acceptor, relay_client);
        let swarm =
            Swarm::new(transport, behaviour, peer, swarm_config(config.timing.connection_idle));

        let (commands, receiver) = mpsc::channel(COMMANDS);
        let (events, subscription) = broadcast::channel(EVENTS);
        let view = Arc::<Mutex<View>>::default();
        let (net_timing, net_book) = (config.timing.clone(), book.clone());
        let keeper = Keeper::new(&config.kept, ProviderLimits::default(), book.clone());
        let machine =
            Machine::new(peer, keeper, net_book, control.clone(), net_timing, view.clone());
        let machine = Arc::new(machine);
        server.set_machine(&machine);
        let known = config.known_peers.iter().map(|(peer, _)| *peer);
        let now = Instant::now();
        let mut dialing = Dialing::new(peer, config.timing.redial, rand::random());
        dialing.offer(Source::CONFIGURED, config.bootstrap.iter().cloned(), now);
        dialing.offer_known(known, now);
        let mut task = Task {
            swarm,
            view: view.clone(),
            book: book.clone(),
            control: control.clone(),
            dialing,
            machine: machine.clone(),
            diversity: Diversity::default(),
            reaching: Reaching::new(&config, guard),
            kept: Task::kept_peers(),
            events,
            commands: receiver,
        };
        listen(&mut task, &config.listen).await?;
        task.confirm(config.reach.external.clone());
        machine.restore(&config.announced);
        let task = Mutex::new(Some(tokio::spawn(task.run())));
        tokio::spawn(drive(machine.clone()));
        let routing = Arc::new(DhtRouting(machine));
        let (timing, download) = (config.timing, config.download);
        let inner = Inner {
            peer,
            view,
            book,
            control,
            counters,
            timing,
            download,
            shared: transfer::SharedSessions::default(),
            server,
            routing,
            commands,
            task,
        };
        Ok((Self(Arc::new(inner)), subscription))
    }

    /// This node.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        self.0.peer
    }

    /// The addresses listened on, in full: those of every interface when all are, each ending
    /// with this node's peer id.
    #[must_use]
    pub fn listen_addresses(&self) -> Vec<Multiaddr> {
        let listen = self.0.view.lock().listen.clone();
        listen.into_iter().map(|address| address.with(Segment::P2p(self.0.peer))).collect()
    }

    /// What is known of how others reach this node.
    #[must_use]
    pub fn nat(&self) -> Nat {
        self.0.view.lock().nat
    }

    /// The addresses at which others reach this node, some of them those of relays.
    #[must_use]
    pub fn external_addresses(&self) -> Vec<Multiaddr> {
        self.0.view.lock().external.clone()
    }

    /// The peers that are connected.
    #[must_use]
    pub fn connected(&self) -> Vec<PeerInfo> {
        self.0.view.lock().peers.infos()
    }

    /// How many peers this node knows addresses of.
    #[must_use]
    pub fn known_peers(&self) -> usize {
        self.0.book.len()
    }

    /// What has happened in conversations.
    #[must_use]
    pub fn counters(&self) -> &NetCounters {
        &self.0.counters
    }

    /// What has happened to streams.
    #[must_use]
    pub fn stream_counters(&self) -> &StreamCounters {
        &self.0.control.counters
    }

    /// Asks a peer which of at most a thousand items it holds; connects to it if need be. The
    /// answers stand in the order of the hashes. A holder whose narinfos are so large that four
    /// answers of 8 MiB don't suffice seems not to hold the rest.
    ///
    /// # Errors
    /// See [`PeerError`]; only [`PeerError::Violation`] is to be blamed on the peer.
    pub async fn query(
        &self,
        peer: PeerId,
        hashes: &[StoreHash],
    ) -> Result<Vec<Option<Held>>, PeerError> {
        self.refuse_banned(peer)?;
        let answers = query::query(&self.0.control, &self.0.timing, peer, hashes).await?;
        if answers.iter().any(Option::is_some) {
            self.note_useful(peer);
        }
        Ok(answers)
    }

    /// Asks a seed for the filter of what it holds, or what has changed of it since that of this
    /// series and generation; nothing is verified but the sizes. One that is given whole is refused
    /// unless that is taken.
    ///
    /// # Errors
    /// See [`PeerError`]; [`PeerError::Closed`] from who is no seed.
    pub async fn filter(
        &self,
        peer: PeerId,
        request: FilterRequest,
        takes_whole: bool,
    ) -> Result<FilterAnswer, PeerError> {
        self.refuse_banned(peer)?;
        filter::ask(&self.0.control, &self.0.timing, peer, request, takes_whole).await
    }

    /// Opens a fetch session with a peer; connects to it if need be. Whether it speaks the
    /// protocol shows with its first answer.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub async fn open_fetch(
        &self,
        peer: PeerId,
    ) -> Result<(FetchRequests, FetchResponses), PeerError> {
        self.refuse_banned(peer)?;
        let Inner { control, timing, counters, download, .. } = &*self.0;
        let session = transfer::open(control, timing, counters, download, peer).await?;
        self.note_useful(peer);
        Ok(session)
    }

    /// As [`Net::open_fetch`], for one nar. A `small` one goes into the session that is open with
    /// this peer for such, if it has room: many nars then take one stream and one round trip.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub async fn open_nar(
        &self,
        peer: PeerId,
        small: bool,
        received: &Arc<AtomicU64>,
    ) -> Result<(FetchRequests, NarResponses), PeerError> {
        if small {
            self.refuse_banned(peer)?;
            if let Some((requests, slot)) = self.0.shared.join(peer, self.open_fetch(peer)).await? {
                return Ok((requests, NarResponses::Shared(slot)));
            }
        }
        let (requests, responses) = self.open_fetch(peer).await?;
        Ok((requests, NarResponses::Own(responses.counting(received.clone()).telling_of_begun())))
    }

    /// What this node keeps for others, as octets for [`NetConfig::kept`].
    #[must_use]
    pub fn kept(&self) -> Vec<u8> {
        self.0.routing.0.keeper().snapshot()
    }

    /// How many records this node keeps for others.
    #[must_use]
    pub fn kept_records(&self) -> usize {
        self.0.routing.0.keeper().records()
    }

    /// What this node has announced, as octets for [`NetConfig::announced`].
    #[must_use]
    pub fn announced(&self) -> Vec<u8> {
        self.0.routing.0.announced()
    }

    /// Differs when [`Net::announced`] does by more than the time.
    #[must_use]
    pub fn announced_changes(&self) -> u64 {
        self.0.routing.0.announced_changes()
    }

    /// How many nodes the network seems to have that answer others.
    #[must_use]
    pub fn network_size(&self) -> u64 {
        self.0.routing.0.network_size()
    }

    /// Who holds what, by the DHT.
    #[must_use]
    pub fn routing(&self) -> Arc<dyn Routing> {
        self.0.routing.clone()
    }

    /// Remembers addresses of a peer for when it is dialled.
    pub fn learn(&self, peer: PeerId, addresses: impl IntoIterator<Item = Multiaddr>) {
        self.0.book.add(peer, addresses);
    }

    /// Keeps the connection with a peer while others that are kept aren't more useful.
    pub fn keep(&self, peer: PeerId) {
        self.note_useful(peer);
    }

    /// Closes the connections to a peer and refuses new ones for a while.
    pub fn ban(&self, peer: PeerId, for_: Duration) {
        let command = Command::Ban { peer, until: Instant::now() + for_ };
        if let Err(mpsc::error::TrySendError::Full(command)) = self.0.commands.try_send(command) {
            let commands = self.0.commands.clone();
            tokio::spawn(async move { commands.send(command).await });
        }
    }

    /// Ends everything, and waits until it has ended.
    pub async fn shutdown(&self) {
        self.0.routing.0.stop();
        let _ = self.0.commands.send(Command::Shutdown).await;
        self.0.server.stop().await;
        let task = self.0.task.lock().take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }

    fn refuse_banned(&self, peer: PeerId) -> Result<(), PeerError> {
        let banned = self.0.view.lock().bans.iter().any(|(banned, _)| *banned == peer);
        if banned { Err(PeerError::Banned { peer }) } else { Ok(()) }
    }

    /// Keeps the connection; when the task is busy, another time.
    fn note_useful(&self, peer: PeerId) {
        let _ = self.0.commands.try_send(Command::Useful { peer });
    }
}

/// How a swarm of this network treats its connections, `idle` ones for that long.
#[must_use]
pub fn swarm_config(idle: Duration) -> libp2p_swarm::Config {
    libp2p_swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(idle)
        // Whoever opens a stream speaks first, so nobody need wait for a confirmation.
        .with_substream_upgrade_protocol_override(Version::V1Lazy)
        .with_max_negotiating_inbound_streams(MAX_CONNECTION_STREAMS)
}

/// Listens on all addresses, and waits until that has begun.
async fn listen(task: &mut Task, addresses: &[Multiaddr]) -> Result<(), NetError> {
    let mut awaited: Vec<(ListenerId, &Multiaddr)> = Vec::new();
    for address in addresses {
        let id = task.swarm.listen_on(address.clone()).map_err(|error| NetError::Listen {
            address: address.clone(),
            reason: error.to_string(),
        })?;
        awaited.push((id, address));
    }
    let deadline = tokio::time::Instant::now() + LISTEN_TIMEOUT;
    while let Some(&(_, address)) = awaited.first() {
        let late =
            NetError::ListenTimeout { address: address.clone(), seconds: LISTEN_TIMEOUT.as_secs() };
        let event = tokio::time::timeout_at(deadline, task.swarm.select_next_some()).await;
        let event = event.map_err(|_| late)?;
        note_listening(&mut awaited, &event)?;
        task.handle(event);
    }
    // All interfaces are reported one after another, without further waiting.
    while let Some(Some(event)) = task.swarm.next().now_or_never() {
        task.handle(event);
    }
    Ok(())
}

/// Strikes out a listener that has begun, and fails for one that has ended.
fn note_listening<E>(
    awaited: &mut Vec<(ListenerId, &Multiaddr)>,
    event: &SwarmEvent<E>,
) -> Result<(), NetError> {
    let (id, reason) = match event {
        SwarmEvent::NewListenAddr { listener_id, .. } => {
            awaited.retain(|(id, _)| id != listener_id);
            return Ok(());
        }
        SwarmEvent::ListenerClosed { listener_id, reason: Err(error), .. } => {
            (listener_id, error.to_string())
        }
        SwarmEvent::ListenerClosed { listener_id, .. } => (listener_id, "closed".to_owned()),
        SwarmEvent::ListenerError { listener_id, error } => (listener_id, error.to_string()),
        _ => return Ok(()),
    };
    match awaited.iter().find(|(other, _)| other == id) {
        Some(&(_, address)) => Err(NetError::Listen { address: address.clone(), reason }),
        None => Ok(()),
    }
}
