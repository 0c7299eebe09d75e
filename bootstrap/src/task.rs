//! The task that drives the network of an entry node: keeps the table of the DHT and the books,
//! and makes room for newcomers.

use crate::behaviour::{Behaviour, BehaviourEvent};
use crate::metrics::{Metrics, Request};
use crate::pages::Site;
use crate::remembered;
use crate::shed::Connections;
use futures::StreamExt;
use libp2p::swarm::SwarmEvent;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::{Multiaddr, PeerId, Swarm, autonat, identify, kad, relay};
use narswarm_node::net::keeping::Keeping;
use narswarm_node::net::{Guard, KAD_PROTOCOL, NETWORK, Reach, is_plausible, peer_of, reach};
use narswarm_node::store::KeptFile;
use narswarm_protocol::limits::{MAX_PEER_ADDRESSES, MAX_SAVED_PEERS};
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How often the task looks after what has no event of its own.
const TICK: Duration = Duration::from_secs(1);

/// How often the peers in the table are written down.
const SAVE_INTERVAL: Duration = Duration::from_secs(600);

/// First and longest pause between attempts to reach another entry node.
const REDIAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Remembered peers that are dialled with each tick after the start, while few are connected.
const REMEMBERED_A_TICK: usize = 4;

/// Connections with which the remembered are no longer needed.
const ENOUGH_PEERS: usize = 20;

/// How long ends of connections are waited for at the end.
const CLOSING_TIME: Duration = Duration::from_millis(500);

/// Another entry node, and when to dial it next.
struct Other {
    address: Multiaddr,
    peer: Option<PeerId>,
    due: Instant,
    pause: Duration,
}

/// See the module.
pub struct Task {
    swarm: Swarm<Behaviour>,
    guard: Guard,
    connections: Connections,
    /// Peers reached through this node, who are spared when room is made.
    reserved: HashSet<PeerId>,
    others: Vec<Other>,
    remembered: Vec<Multiaddr>,
    data_dir: PathBuf,
    /// What others announce, and where it is written down.
    keeping: Option<(Keeping, KeptFile)>,
    saved: Instant,
    metrics: Arc<Metrics>,
    site: Arc<Site>,
}

impl Task {
    /// A task for a swarm that listens.
    #[must_use]
    pub fn new(
        swarm: Swarm<Behaviour>,
        guard: Guard,
        max_connections: u32,
        bootstrap: &[Multiaddr],
        data_dir: PathBuf,
        keeping: Option<(Keeping, KeptFile)>,
        site: Arc<Site>,
    ) -> Self {
        let now = Instant::now();
        let other = |address: &Multiaddr| {
            let address = address.clone();
            Other { peer: peer_of(&address), address, due: now, pause: REDIAL.0 }
        };
        let mut remembered = remembered::load(&data_dir);
        remembered.reverse();
        Self {
            swarm,
            guard,
            connections: Connections::new(max_connections),
            reserved: HashSet::new(),
            others: bootstrap.iter().map(other).collect(),
            remembered,
            data_dir,
            keeping,
            saved: now,
            metrics: site.metrics.clone(),
            site,
        }
    }

    /// Runs until told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.handle(event),
                _ = tick.tick() => self.tick(Instant::now()),
                () = stop.cancelled() => break,
            }
        }
        if let Some((keeping, _)) = &self.keeping {
            keeping.stop();
        }
        self.save();
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
        let _ = tokio::time::timeout(CLOSING_TIME, closing).await;
    }

    fn tick(&mut self, now: Instant) {
        *self.site.alive.lock() = now;
        for index in 0..self.others.len() {
            let other = &mut self.others[index];
            if other.due > now {
                continue;
            }
            other.due = now + other.pause;
            let connected = other.peer.is_some_and(|peer| self.swarm.is_connected(&peer));
            other.pause = if connected { REDIAL.0 } else { (other.pause * 2).min(REDIAL.1) };
            let address = other.address.clone();
            if !connected {
                self.dial(address);
            }
        }
        if self.connections.len() < ENOUGH_PEERS {
            for _ in 0..REMEMBERED_A_TICK {
                let Some(address) = self.remembered.pop() else { break };
                self.dial(address);
            }
        }
        let table = self.swarm.behaviour_mut().kad.kbuckets().map(|bucket| bucket.num_entries());
        self.metrics.table_peers.set(table.sum::<usize>() as i64);
        if let Some((keeping, _)) = &self.keeping {
            self.metrics.records.set(keeping.records() as i64);
            self.metrics.answered.inc_by(keeping.served() - self.metrics.answered.get());
        }
        if now > self.saved + SAVE_INTERVAL {
            self.saved = now;
            self.save();
        }
    }

    fn dial(&mut self, address: Multiaddr) {
        let dial = match peer_of(&address) {
            Some(peer) if peer == *self.swarm.local_peer_id() => return,
            Some(peer) => DialOpts::peer_id(peer)
                .addresses(vec![address])
                .condition(PeerCondition::DisconnectedAndNotDialing)
                .build(),
            None => DialOpts::unknown_peer_id().address(address).build(),
        };
        if let Err(error) = self.swarm.dial(dial) {
            tracing::debug!(%error, "cannot dial");
        }
    }

    fn save(&mut self) {
        if let Some((keeping, file)) = &self.keeping
            && let Err(error) = file.write(&keeping.kept())
        {
            tracing::warn!("what is kept for others is not saved: {error}");
        }
        let mut peers = Vec::new();
        for bucket in self.swarm.behaviour_mut().kad.kbuckets() {
            for entry in bucket.iter() {
                let address = entry.node.value.iter().next().cloned();
                peers.extend(address.map(|address| (*entry.node.key.preimage(), address)));
            }
        }
        // Far buckets come last and hold most; a little of each is worth more than one whole.
        peers.reverse();
        peers.truncate(MAX_SAVED_PEERS);
        if peers.is_empty() {
            return;
        }
        if let Err(error) = remembered::save(&self.data_dir, &peers) {
            tracing::warn!("cannot write the remembered peers down: {error}");
        }
    }

    fn handle(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.behaved(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                if reach(endpoint.get_remote_address()) == Some(Reach::Everywhere) {
                    self.guard.set_strangers(true);
                }
                if let Some((keeping, _)) = &self.keeping {
                    keeping.connected(peer_id, connection_id, &endpoint);
                }
                let reserved = &self.reserved;
                let spared = |peer: &PeerId| reserved.contains(peer);
                if let Some(goes) = self.connections.made(connection_id, peer_id, spared) {
                    self.metrics.shed.inc();
                    self.swarm.close_connection(goes);
                }
                self.metrics.connected.inc();
                self.metrics.connections.set(self.connections.len() as i64);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, .. } => {
                if let Some((keeping, _)) = &self.keeping {
                    keeping.disconnected(peer_id, connection_id);
                }
                self.connections.ended(connection_id);
                self.metrics.connections.set(self.connections.len() as i64);
            }
            SwarmEvent::IncomingConnectionError { error, .. } => {
                self.metrics.refused.inc();
                tracing::debug!(%error, "an incoming connection failed");
            }
            SwarmEvent::OutgoingConnectionError { peer_id, error, .. } => {
                tracing::debug!(?peer_id, %error, "cannot connect");
            }
            SwarmEvent::ListenerClosed { addresses, reason, .. } => {
                tracing::warn!(?addresses, ?reason, "no longer listening");
            }
            _ => {}
        }
    }

    fn behaved(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                self.identified(peer_id, info);
            }
            BehaviourEvent::Kad(kad::Event::InboundRequest { request }) => {
                self.metrics.count_request(match request {
                    kad::InboundRequest::FindNode { .. } => Request::FindNode,
                    kad::InboundRequest::GetProvider { .. } => Request::GetProviders,
                    kad::InboundRequest::AddProvider { .. } => Request::AddProvider,
                    _ => Request::Other,
                });
            }
            BehaviourEvent::Autonat(autonat::v2::server::Event { result, .. }) => {
                match result {
                    Ok(()) => self.metrics.probes_reached.inc(),
                    Err(_) => self.metrics.probes_failed.inc(),
                };
            }
            BehaviourEvent::Relay(event) => self.relayed(&event),
            _ => {}
        }
    }

    /// A peer has told who it is: those who answer lookups enter the table, and those of other
    /// networks are sent away.
    fn identified(&mut self, peer: PeerId, info: identify::Info) {
        if info.protocol_version != NETWORK {
            self.metrics.strangers.inc();
            let _ = self.swarm.disconnect_peer_id(peer);
            return;
        }
        if let Some((keeping, _)) = &self.keeping {
            keeping.identified(peer, &info);
        }
        if !info.protocols.contains(&KAD_PROTOCOL) {
            return;
        }
        // What can be reached only from a network may be told only by who is seen there.
        let from = reach(&info.observed_addr).unwrap_or(Reach::Everywhere);
        let addresses = info.listen_addrs.into_iter().filter(|a| is_plausible(a, from));
        for address in addresses.take(MAX_PEER_ADDRESSES) {
            self.swarm.behaviour_mut().kad.add_address(&peer, address);
        }
    }

    fn relayed(&mut self, event: &relay::Event) {
        match event {
            relay::Event::ReservationReqAccepted { src_peer_id, .. } => {
                self.reserved.insert(*src_peer_id);
            }
            relay::Event::ReservationClosed { src_peer_id }
            | relay::Event::ReservationTimedOut { src_peer_id } => {
                self.reserved.remove(src_peer_id);
            }
            relay::Event::CircuitReqAccepted { .. } => drop(self.metrics.circuits.inc()),
            relay::Event::CircuitClosed { .. } => drop(self.metrics.circuits.dec()),
            relay::Event::CircuitReqDenied { .. } => drop(self.metrics.circuits_denied.inc()),
            _ => {}
        }
        self.metrics.reservations.set(self.reserved.len() as i64);
    }
}
