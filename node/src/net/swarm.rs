//! The task that owns libp2p's swarm: it performs commands, and keeps the books of what happens.

use super::behaviour::{Behaviour, BehaviourEvent, KAD_PROTOCOL, NETWORK, end_refresh};
use super::book::{Book, Reach, is_plausible, reach};
use super::dialing::{Dialing, Source};
use super::events::NetEvent;
use super::inspect::NetView;
use super::networks::customer_of;
use super::peers::Peers;
use super::reach::upkeep::Reaching;
use super::reach::{Nat, is_direct};
use super::routing::dht::Machine;
use super::routing::diversity::{Diversity, has_room};
use super::streams::{Control, Protocol};
use futures::StreamExt;
use libp2p::identify;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::{ConnectionId, DialError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, mdns};
use lru::LruCache;
use narswarm_protocol::limits::{MAX_BANS, MAX_KEPT_PEERS, MAX_PEER_ADDRESSES};
use parking_lot::Mutex;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{broadcast, mpsc, oneshot};

/// How often the task looks after what has no event of its own: attempts that are due, searches
/// that are over, bans that have ended.
const TICK: Duration = Duration::from_millis(250);

/// What others ask of the task.
pub enum Command {
    /// The peer has been of use: keep its connection.
    Useful { peer: PeerId },
    /// Keep a peer out for a while.
    Ban { peer: PeerId, until: Instant },
    /// Enter the network by these addresses of a source.
    Enter { source: Source, addresses: Vec<Multiaddr>, trusted: bool },
    /// Show everything.
    Inspect { reply: oneshot::Sender<NetView> },
    /// End.
    Shutdown,
}

/// What everybody may look at.
#[derive(Default)]
pub struct View {
    /// Connected peers.
    pub peers: Peers,
    /// Addresses listened on, without the peer id.
    pub listen: Vec<Multiaddr>,
    /// Addresses at which others reach this node, some of them those of relays.
    pub external: Vec<Multiaddr>,
    /// What is known of how others reach this node.
    pub nat: Nat,
    /// Banned peers and until when, in the order of their bans.
    pub bans: VecDeque<(PeerId, Instant)>,
}

/// See the module.
pub struct Task {
    /// The swarm.
    pub swarm: Swarm<Behaviour>,
    /// What everybody may look at.
    pub view: Arc<Mutex<View>>,
    /// The address book.
    pub book: Book,
    /// Opens streams, and keeps connections.
    pub control: Control,
    /// Whom to dial when.
    pub dialing: Dialing,
    /// Searches and announcements.
    pub machine: Arc<Machine>,
    /// Which nodes the table of the DHT takes.
    pub diversity: Diversity,
    /// Sees to it that this node is reached.
    pub reaching: Reaching,
    /// Useful peers, whose connections are kept.
    pub kept: LruCache<PeerId, ()>,
    /// Where events go.
    pub events: broadcast::Sender<NetEvent>,
    /// Where commands come from.
    pub commands: mpsc::Receiver<Command>,
}

impl Task {
    /// A cache for [`Task::kept`].
    pub fn kept_peers() -> LruCache<PeerId, ()> {
        LruCache::new(std::num::NonZeroUsize::new(MAX_KEPT_PEERS).expect("the limit is not zero"))
    }

    /// Runs until told to shut down, or nobody is left to tell.
    pub async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.handle(event),
                command = self.commands.recv() => match command {
                    None | Some(Command::Shutdown) => break,
                    Some(command) => self.perform(command),
                },
                _ = tick.tick() => self.tick(Instant::now()),
            }
        }
        self.end().await;
    }

    /// Closes all connections, for a moment at most, so that peers needn't wait to notice.
    async fn end(mut self) {
        let peers: Vec<_> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let closing = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.select_next_some().await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(500), closing).await;
    }

    fn tick(&mut self, now: Instant) {
        let connected = self.view.lock().peers.count();
        for dial in self.dialing.due(now, connected) {
            self.dial(dial);
        }
        self.reach_tick(now);
        loop {
            let mut view = self.view.lock();
            let Some(over) = view.bans.iter().position(|(_, until)| *until <= now) else { break };
            let ended = view.bans.remove(over);
            drop(view);
            if let Some((peer, _)) = ended {
                self.swarm.behaviour_mut().banned.unblock_peer(peer);
            }
        }
    }

    /// Dials.
    pub fn dial(&mut self, dial: DialOpts) {
        let id = dial.connection_id();
        if let Err(error) = self.swarm.dial(dial) {
            // Attempts that fail at once are not reported as events.
            self.dial_failed(id, None, &error);
        }
    }

    fn perform(&mut self, command: Command) {
        match command {
            Command::Useful { peer } => self.keep(peer),
            Command::Ban { peer, until } => self.ban(peer, until),
            Command::Enter { source, addresses, trusted } => {
                if trusted {
                    addresses.iter().for_each(|address| self.reaching.allow(address));
                }
                self.dialing.offer(source, addresses, Instant::now());
            }
            Command::Inspect { reply } => drop(reply.send(self.inspect())),
            Command::Shutdown => {}
        }
    }

    fn keep(&mut self, peer: PeerId) {
        self.control.keep(peer, true);
        let evicted = self.kept.push(peer, ());
        if let Some((other, ())) = evicted
            && other != peer
            && !self.dialing.is_bootstrap(&other)
        {
            self.control.keep(other, false);
        }
    }

    fn ban(&mut self, peer: PeerId, until: Instant) {
        let mut view = self.view.lock();
        view.bans.retain(|(banned, _)| *banned != peer);
        let let_go = if view.bans.len() >= MAX_BANS { view.bans.pop_front() } else { None };
        view.bans.push_back((peer, until));
        drop(view);
        let behaviour = self.swarm.behaviour_mut();
        if let Some((peer, _)) = let_go {
            behaviour.banned.unblock_peer(peer);
        }
        behaviour.banned.block_peer(peer);
        behaviour.kad.remove_peer(&peer);
        self.machine.identified(peer, false);
        self.kept.pop(&peer);
        self.control.keep(peer, false);
    }

    /// Takes an event of the swarm.
    pub fn handle(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.behaved(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                if endpoint.is_dialer() {
                    self.book.prefer(peer_id, endpoint.get_remote_address());
                }
                self.reach_connected(peer_id, connection_id, &endpoint, Instant::now());
                self.dialing.connected(peer_id, connection_id, Instant::now());
                if self.dialing.is_bootstrap(&peer_id) {
                    self.control.keep(peer_id, true);
                }
                let mut view = self.view.lock();
                let first = view.peers.connect(peer_id, connection_id, &endpoint);
                let info = view.peers.info(&peer_id).filter(|_| first);
                drop(view);
                if let Some(info) = info {
                    self.machine.connected(peer_id, true);
                    self.tell(NetEvent::PeerConnected(info));
                }
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, .. } => {
                self.disconnected(peer_id, connection_id);
            }
            SwarmEvent::OutgoingConnectionError { connection_id, peer_id, error } => {
                self.dial_failed(connection_id, peer_id, &error);
            }
            SwarmEvent::NewListenAddr { address, .. } if is_direct(&address) => {
                let mut view = self.view.lock();
                if !view.listen.contains(&address) {
                    view.listen.push(address.clone());
                }
                drop(view);
                self.reach_listens(None);
                self.tell(NetEvent::ListenAddress(address));
            }
            SwarmEvent::ExpiredListenAddr { address, .. } if is_direct(&address) => {
                self.view.lock().listen.retain(|other| *other != address);
                self.reach_listens(Some(&address));
                self.tell(NetEvent::ListenAddressGone(address));
            }
            SwarmEvent::ListenerClosed { listener_id, addresses, reason } => {
                if self.reach_listener_closed(listener_id, Instant::now()) {
                    tracing::debug!(?addresses, ?reason, "a place at a relay is gone");
                    return;
                }
                self.view.lock().listen.retain(|other| !addresses.contains(other));
                self.reach_listens(None);
                tracing::warn!(?addresses, ?reason, "no longer listening");
            }
            SwarmEvent::ExternalAddrConfirmed { address } => self.reach_external(&address, true),
            SwarmEvent::ExternalAddrExpired { address } => self.reach_external(&address, false),
            _ => {}
        }
    }

    fn disconnected(&mut self, peer: PeerId, id: ConnectionId) {
        self.reach_closed(peer, id, Instant::now());
        let last = self.view.lock().peers.disconnect(&peer, id);
        if last {
            self.machine.connected(peer, false);
            self.dialing.disconnected(&peer, Instant::now());
            self.tell(NetEvent::PeerDisconnected(peer));
        }
    }

    fn dial_failed(&mut self, id: ConnectionId, peer: Option<PeerId>, error: &DialError) {
        let reason = super::streams::reason(error);
        let view = self.view.lock();
        self.dialing.failed(id, Instant::now(), &reason, |peer| view.peers.contains(peer));
        let connected = peer.is_some_and(|peer| view.peers.contains(&peer));
        drop(view);
        match (peer, error) {
            // Who is connected was dialled to try an address, or to punch a hole beside a relay:
            // that it failed doesn't make the peer one that can't be reached.
            (Some(peer), DialError::Transport(attempts)) if !connected => {
                let tried: Vec<_> = attempts.iter().map(|(address, _)| address.clone()).collect();
                // Who is gone makes room for others; it comes back by being identified.
                if self.book.failed(peer, &tried, Instant::now()) {
                    self.swarm.behaviour_mut().kad.remove_peer(&peer);
                }
            }
            (Some(peer), DialError::WrongPeerId { address, .. }) => {
                self.book.forget(peer, address);
            }
            _ => {}
        }
        if !matches!(error, DialError::DialPeerConditionFalse(_)) {
            tracing::debug!(?peer, reason, "cannot connect");
        }
    }

    fn behaved(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Identify(identify::Event::Received {
                peer_id,
                connection_id,
                info,
            }) => {
                self.reach_identified(peer_id, connection_id, &info);
                self.identified(peer_id, info);
            }
            BehaviourEvent::Kad(event) => end_refresh(&mut self.swarm.behaviour_mut().kad, &event),
            BehaviourEvent::Probe(tested) => self.reach_tested(tested),
            BehaviourEvent::RelayClient(event) => self.reach_relayed(&event),
            BehaviourEvent::Dcutr(event) => self.reach_punched(&event),
            BehaviourEvent::Upnp(event) => tracing::debug!(?event, "the router"),
            BehaviourEvent::Ping(ping) => {
                if let Ok(rtt) = ping.result {
                    self.view.lock().peers.measured(&ping.peer, rtt);
                }
            }
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => self.discovered(found),
            BehaviourEvent::Mdns(mdns::Event::Expired(gone)) => {
                let mut view = self.view.lock();
                gone.into_iter().for_each(|(peer, _)| view.peers.on_local_network(peer, false));
            }
            _ => {}
        }
    }

    /// A peer has told who it is. Its addresses are believed as far as is harmless.
    fn identified(&mut self, peer: PeerId, info: identify::Info) {
        let ours = info.protocol_version == NETWORK;
        let answers = info.protocols.contains(&Protocol::Query.stream_protocol());
        let mut view = self.view.lock();
        let news = view.peers.identified(&peer, ours && answers, &info.agent_version);
        let connected = view.peers.info(&peer);
        let nearest = connected.iter().flat_map(|info| &info.addresses).filter_map(reach).min();
        drop(view);
        if !ours {
            return;
        }
        let from = nearest.unwrap_or(Reach::Everywhere);
        let mut addresses: Vec<_> = info.listen_addrs;
        addresses.retain(|address| is_plausible(address, from));
        // Where anybody reaches it first, then through relays, then where neighbours do.
        addresses.sort_by_key(|a| (reach(a) != Some(Reach::Everywhere), !is_direct(a)));
        addresses.truncate(MAX_PEER_ADDRESSES);
        let kad = &mut self.swarm.behaviour_mut().kad;
        let network = connected.iter().flat_map(|info| &info.addresses).find_map(customer_of);
        if info.protocols.contains(&KAD_PROTOCOL) && self.diversity.admits(kad, peer, network) {
            if has_room(kad, peer) {
                for address in &addresses {
                    kad.add_address(&peer, address.clone());
                }
            }
        } else {
            // It has found out that it can't be reached, or there are enough of its network.
            kad.remove_peer(&peer);
        }
        self.book.tell(peer, addresses);
        let keeps = info.protocols.contains(&Protocol::Announce.stream_protocol());
        self.machine.identified(peer, keeps && info.protocols.contains(&KAD_PROTOCOL));
        let addresses = self.book.addresses(&peer);
        if !addresses.is_empty() {
            self.tell(NetEvent::PeerLearned { peer, addresses });
        }
        if let Some(info) = connected.filter(|_| news) {
            self.tell(NetEvent::PeerIdentified(info));
        }
    }

    /// Peers have announced themselves on the local network.
    fn discovered(&mut self, found: Vec<(PeerId, Multiaddr)>) {
        let mut peers = BTreeSet::new();
        for (peer, address) in found {
            self.reaching.allow(&address);
            self.book.add(peer, [address]);
            self.view.lock().peers.on_local_network(peer, true);
            peers.insert(peer);
        }
        for peer in peers {
            if !self.swarm.is_connected(&peer) && peer != *self.swarm.local_peer_id() {
                self.dial(DialOpts::from(peer));
            }
        }
    }

    /// Tells whoever listens.
    pub fn tell(&self, event: NetEvent) {
        // Nobody need listen.
        let _ = self.events.send(event);
    }
}
