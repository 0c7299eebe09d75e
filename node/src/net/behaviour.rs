//! What this node does on the network, put together.

use super::book::{Book, Reach, reach};
use super::config::NetConfig;
use super::networks;
use super::reach::probe::Probe;
use super::routing::records::NoRecords;
use super::streams::{self, Accept, Control};
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{
    Multiaddr, StreamProtocol, allow_block_list, autonat, dcutr, identify, kad, mdns, ping, relay,
    upnp,
};
use narswarm_protocol::limits;
use std::sync::Arc;
use std::time::Duration;

/// The DHT is our own: nothing is shared with other users of libp2p.
pub const KAD_PROTOCOL: StreamProtocol = StreamProtocol::new("/narswarm/kad/1.0.0");

/// How peers of this network know each other, whatever their version.
pub const NETWORK: &str = "/narswarm/1";

/// How long a lookup of Kademlia may take in all. Nobody waits for one.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a node looks who is near itself in the DHT. Whoever is new there does so at its start and
/// is met by its neighbours then.
const BOOTSTRAP_INTERVAL: Duration = Duration::from_secs(12 * 3600);

/// How often connected peers are pinged. Each ping is some 150 octets with everything below it.
const PING_INTERVAL: Duration = Duration::from_secs(15);

/// All behaviours of a node.
#[derive(NetworkBehaviour)]
pub struct Behaviour {
    /// Bounds the number of connections. Comes first, so that nothing is set up in vain.
    pub limits: connection_limits::Behaviour,
    /// Bounds what one network of the Internet has of them.
    pub networks: networks::Behaviour,
    /// Keeps banned peers out.
    pub banned: allow_block_list::Behaviour<allow_block_list::BlockedPeers>,
    /// Our own protocols.
    pub streams: streams::Behaviour,
    /// Who is who.
    pub identify: identify::Behaviour,
    /// Round trips.
    pub ping: ping::Behaviour,
    /// The DHT.
    pub kad: kad::Behaviour<NoRecords>,
    /// The local network.
    pub mdns: Toggle<mdns::tokio::Behaviour>,
    /// Finds out where others can reach this node.
    pub probe: Toggle<Probe>,
    /// Tries the addresses of others.
    pub trier: Toggle<autonat::v2::server::Behaviour>,
    /// Is reached through relays.
    pub relay_client: Toggle<relay::client::Behaviour>,
    /// Relays for others.
    pub relay_server: Toggle<relay::Behaviour>,
    /// Turns relayed connections into direct ones.
    pub dcutr: Toggle<dcutr::Behaviour>,
    /// Asks the router for a port.
    pub upnp: Toggle<upnp::tokio::Behaviour>,
}

impl Behaviour {
    /// The behaviours of a node with this configuration, which hands streams to `accept`.
    pub fn new(
        config: &NetConfig,
        book: Book,
        accept: Arc<dyn Accept>,
        relay_client: Option<relay::client::Behaviour>,
    ) -> (Self, Control) {
        let key = &config.keypair;
        let peer = key.public().to_peer_id();
        let (streams, control) = streams::Behaviour::new(accept, book);
        let identify = identify::Config::new(NETWORK.to_owned(), key.public())
            .with_agent_version(concat!("narswarm/", env!("CARGO_PKG_VERSION")).to_owned())
            .with_push_listen_addr_updates(true)
            // Addresses are remembered by the book, which checks them.
            .with_cache_size(0);
        let mut kad = kad::Behaviour::with_config(peer, NoRecords, kad_config());
        let mode = if config.server { kad::Mode::Server } else { kad::Mode::Client };
        kad.set_mode(Some(mode));
        let reach = &config.reach;
        let traverses = relay_client.is_some();
        let helps = reach.help && config.server;
        let behaviour = Self {
            limits: connection_limits::Behaviour::new(connection_limits()),
            networks: networks::Behaviour::default(),
            banned: allow_block_list::Behaviour::default(),
            streams,
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::new(ping::Config::new().with_interval(PING_INTERVAL)),
            kad,
            mdns: mdns(config, peer).into(),
            probe: traverses.then(|| Probe::new(reach.probe_interval)).into(),
            trier: helps.then(autonat::v2::server::Behaviour::default).into(),
            relay_client: relay_client.into(),
            relay_server: helps.then(|| relay_server(peer)).into(),
            dcutr: traverses.then(|| dcutr::Behaviour::new(peer)).into(),
            upnp: wants_port(config).then(upnp::tokio::Behaviour::default).into(),
        };
        (behaviour, control)
    }
}

/// How the DHT is run, the same by all.
#[must_use]
pub fn kad_config() -> kad::Config {
    let mut config = kad::Config::new(KAD_PROTOCOL);
    // Nothing is kept: it only routes.
    config.set_provider_publication_interval(None);
    config.set_record_ttl(None).set_replication_interval(None).set_publication_interval(None);
    config.set_query_timeout(LOOKUP_TIMEOUT);
    config.set_periodic_bootstrap_interval(Some(BOOTSTRAP_INTERVAL));
    // Peers enter the table when identify has told what they speak and where.
    config.set_kbucket_inserts(kad::BucketInserts::Manual);
    config
}

/// Ends a refresh of the table after the walk to this node's own place, by which its neighbours get to
/// know it. libp2p would go on to walk to each bucket of the table. Nobody looks up keys anywhere but
/// at the meeting points, whose neighbourhoods are looked after by what announces and finds: without
/// those walks, a node of the simulator makes a third to two thirds fewer connections, and finds as much.
pub fn end_refresh(kad: &mut kad::Behaviour<NoRecords>, event: &kad::Event) {
    if let kad::Event::OutboundQueryProgressed { id, result, .. } = event
        && matches!(result, kad::QueryResult::Bootstrap(Ok(walked)) if walked.num_remaining > 0)
        && let Some(mut next) = kad.query_mut(id)
    {
        next.finish();
    }
}

fn connection_limits() -> ConnectionLimits {
    ConnectionLimits::default()
        .with_max_pending_incoming(Some(limits::MAX_PENDING_INCOMING))
        .with_max_pending_outgoing(Some(limits::MAX_PENDING_OUTGOING))
        .with_max_established_incoming(Some(limits::MAX_INCOMING_CONNECTIONS))
        .with_max_established(Some(limits::MAX_CONNECTIONS))
        .with_max_established_per_peer(Some(limits::MAX_CONNECTIONS_PER_PEER))
}

/// A relay that is closed until it is known that others reach this node.
fn relay_server(peer: libp2p::PeerId) -> relay::Behaviour {
    let config = relay::Config {
        max_reservations: limits::MAX_RELAY_RESERVATIONS,
        max_circuits: limits::MAX_RELAY_CIRCUITS,
        max_circuits_per_peer: limits::MAX_RELAY_CIRCUITS_PER_PEER,
        max_circuit_bytes: limits::MAX_RELAY_CIRCUIT_BYTES,
        max_circuit_duration: limits::MAX_RELAY_CIRCUIT_TIME,
        ..relay::Config::default()
    };
    let mut server = relay::Behaviour::new(peer, config);
    server.set_status(Some(relay::Status::Disable));
    server
}

/// Whether the router is to be asked for a port: no router forwards anything to the loopback.
fn wants_port(config: &NetConfig) -> bool {
    let beyond = |address: &Multiaddr| reach(address) != Some(Reach::Machine);
    config.reach.upnp && config.listen.iter().any(beyond)
}

/// mDNS, if wanted and possible.
fn mdns(config: &NetConfig, peer: libp2p::PeerId) -> Option<mdns::tokio::Behaviour> {
    if !config.mdns {
        return None;
    }
    let started = mdns::tokio::Behaviour::new(mdns::Config::default(), peer);
    started
        .inspect_err(|error| tracing::warn!(%error, "peers on the local network are not found"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt as _;
    use libp2p::core::transport::{Transport as _, dummy::DummyTransport};
    use libp2p::swarm::SwarmEvent;
    use libp2p::{PeerId, Swarm};

    /// A node that knows many, none of whom can be reached, refreshes its table. Gives how often it has
    /// tried to reach somebody after its walk to itself.
    async fn tries_after_the_first_walk(ends: bool) -> usize {
        let local = PeerId::random();
        let mut kad = kad::Behaviour::with_config(local, NoRecords, kad_config());
        for _ in 0..200 {
            kad.add_address(&PeerId::random(), "/memory/1".parse().expect("an address"));
        }
        kad.bootstrap().expect("somebody is known");
        let config = libp2p::swarm::Config::with_tokio_executor();
        let mut swarm = Swarm::new(DummyTransport::new().boxed(), kad, local, config);
        let (mut walked, mut tries) = (false, 0);
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::OutgoingConnectionError { .. } => tries += usize::from(walked),
                SwarmEvent::Behaviour(event) => {
                    if let kad::Event::OutboundQueryProgressed { step, .. } = &event {
                        walked = true;
                        if step.last {
                            return tries;
                        }
                    }
                    if ends {
                        end_refresh(swarm.behaviour_mut(), &event);
                    }
                }
                _ => {}
            }
        }
    }

    #[tokio::test]
    async fn a_refresh_ends_after_the_walk_to_oneself() {
        assert!(tries_after_the_first_walk(false).await > 20, "libp2p goes on");
        assert_eq!(tries_after_the_first_walk(true).await, 0);
    }
}
