//! One real node: libp2p's Kademlia and identify as narswarm sets them up, without the rest.

use super::delayed::{Delayed, Ground};
use anyhow::{Context, Result};
use futures::StreamExt;
use libp2p::core::Transport;
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::kad::store::MemoryStore;
use libp2p::kad::{self, QueryId, QueryResult, QueryStats};
use libp2p::swarm::{NetworkBehaviour, SwarmEvent, dial_opts::DialOpts};
use libp2p::{Multiaddr, PeerId, StreamProtocol, Swarm, identify, noise};
use narswarm_sim::dht::kad::Insertion;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

const KAD_PROTOCOL: StreamProtocol = StreamProtocol::new("/narswarm-calibration/kad/1");

/// Commands that may wait.
const COMMANDS: usize = 16;

#[derive(NetworkBehaviour)]
struct Behaviour {
    identify: identify::Behaviour,
    kad: kad::Behaviour<MemoryStore>,
}

/// What a lookup has found, and how.
#[derive(Debug)]
pub struct Found {
    /// The closest, closest first.
    pub peers: Vec<PeerId>,
    /// Questions, answers, time.
    pub stats: QueryStats,
}

enum Command {
    LookUp(PeerId, oneshot::Sender<Found>),
    Table(oneshot::Sender<usize>),
}

/// A running node; dropping it ends it.
pub struct Node {
    /// Who it is.
    pub peer: PeerId,
    /// Where it listens.
    pub address: Multiaddr,
    commands: mpsc::Sender<Command>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Node {
    /// Starts node `number` of the ground, which enters through `entry`.
    ///
    /// # Errors
    /// When it can't listen.
    pub fn start(
        ground: &Arc<Ground>,
        number: u32,
        entry: Option<(PeerId, Multiaddr)>,
        idle: Duration,
        insertion: Insertion,
    ) -> Result<Self> {
        let key = Keypair::generate_ed25519();
        let peer = key.public().to_peer_id();
        let transport = Delayed::new(ground.clone(), number)
            .upgrade(Version::V1Lazy)
            .authenticate(noise::Config::new(&key).context("noise")?)
            .multiplex(libp2p_yamux::Config::default())
            .boxed();
        let identify = identify::Config::new("/narswarm-calibration/1".to_owned(), key.public());
        let mut config = kad::Config::new(KAD_PROTOCOL);
        config.set_kbucket_inserts(kad::BucketInserts::Manual);
        config.set_periodic_bootstrap_interval(None);
        let mut kad = kad::Behaviour::with_config(peer, MemoryStore::new(peer), config);
        kad.set_mode(Some(kad::Mode::Server));
        let behaviour =
            Behaviour { identify: identify::Behaviour::new(identify.with_cache_size(0)), kad };
        let config = libp2p::swarm::Config::with_tokio_executor()
            .with_idle_connection_timeout(idle)
            .with_substream_upgrade_protocol_override(Version::V1Lazy);
        let mut swarm = Swarm::new(transport, behaviour, peer, config);
        let address = ground.address(number);
        swarm.listen_on(address.clone()).context("listening")?;
        if let Some((peer, address)) = entry {
            swarm.dial(DialOpts::peer_id(peer).addresses(vec![address]).build())?;
        }
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let task = tokio::spawn(run(swarm, receiver, insertion, ground.connections.clone()));
        Ok(Self { peer, address, commands, task })
    }

    /// Looks for the nodes closest to a key.
    ///
    /// # Errors
    /// When the node has ended.
    pub async fn look_up(&self, key: PeerId) -> Result<Found> {
        let (reply, found) = oneshot::channel();
        self.commands.send(Command::LookUp(key, reply)).await.context("the node has ended")?;
        found.await.context("the node has ended")
    }

    /// How many nodes are in its table.
    ///
    /// # Errors
    /// When the node has ended.
    pub async fn table(&self) -> Result<usize> {
        let (reply, size) = oneshot::channel();
        self.commands.send(Command::Table(reply)).await.context("the node has ended")?;
        size.await.context("the node has ended")
    }
}

/// Whether a peer is in the table or there is room for it.
fn has_room(kad: &mut kad::Behaviour<MemoryStore>, peer: &PeerId) -> bool {
    let bucket = kad.kbucket(*peer);
    bucket.is_some_and(|bucket| {
        bucket.num_entries() < kad::K_VALUE.get()
            || bucket.iter().any(|entry| entry.node.key.preimage() == peer)
    })
}

async fn run(
    mut swarm: Swarm<Behaviour>,
    mut commands: mpsc::Receiver<Command>,
    insertion: Insertion,
    connections: Arc<AtomicU64>,
) {
    let mut lookups: HashMap<QueryId, oneshot::Sender<Found>> = HashMap::new();
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                None => return,
                Some(Command::LookUp(key, reply)) => {
                    let id = swarm.behaviour_mut().kad.get_closest_peers(key);
                    lookups.insert(id, reply);
                }
                Some(Command::Table(reply)) => {
                    let kad = &mut swarm.behaviour_mut().kad;
                    let _ = reply.send(kad.kbuckets().map(|bucket| bucket.num_entries()).sum());
                }
            },
            event = swarm.select_next_some() => match event {
                SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                    peer_id,
                    info,
                    ..
                })) if info.protocols.contains(&KAD_PROTOCOL) => {
                    let kad = &mut swarm.behaviour_mut().kad;
                    if insertion == Insertion::Challenge || has_room(kad, &peer_id) {
                        for address in info.listen_addrs {
                            kad.add_address(&peer_id, address);
                        }
                    }
                }
                SwarmEvent::ConnectionEstablished { .. } => {
                    connections.fetch_add(1, Ordering::Relaxed);
                }
                SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), .. }
                    if insertion == Insertion::Room && !swarm.is_connected(&peer) =>
                {
                    swarm.behaviour_mut().kad.remove_peer(&peer);
                }
                SwarmEvent::Behaviour(BehaviourEvent::Kad(
                    kad::Event::OutboundQueryProgressed { id, result, stats, .. },
                )) => {
                    let QueryResult::GetClosestPeers(result) = result else { continue };
                    let peers = match result {
                        Ok(found) => found.peers,
                        Err(kad::GetClosestPeersError::Timeout { peers, .. }) => peers,
                    };
                    let peers = peers.into_iter().map(|peer| peer.peer_id).collect();
                    if let Some(reply) = lookups.remove(&id) {
                        let _ = reply.send(Found { peers, stats });
                    }
                }
                _ => {}
            },
        }
    }
}
