//! What an entry node does on the network, put together. Nothing here knows of nars.

use crate::config::Config;
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::identity::Keypair;
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{autonat, identify, kad, ping, relay};
use narswarm_node::net::keeping::KeepingBehaviour;
use narswarm_node::net::{NETWORK, NoRecords, kad_config};
use narswarm_protocol::limits;
use std::time::Duration;

/// How often connected peers are pinged: seldom, since only those are here for long who are
/// reached through this node.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// How long a place for those whom nobody reaches is given before it has to be asked for again.
const RESERVATION_TIME: Duration = Duration::from_secs(3600);

/// How long one relayed connection lasts at most: it is there to find a direct way, and to give a
/// small nar where there is none.
const CIRCUIT_TIME: Duration = Duration::from_secs(600);

/// Most relayed connections of one peer.
const CIRCUITS_PER_PEER: usize = 4;

/// Most places of one peer: one for each of its connections.
const RESERVATIONS_PER_PEER: usize = 2;

/// All behaviours of an entry node.
#[derive(NetworkBehaviour)]
pub struct Behaviour {
    /// Bounds the number of connections. Comes first, so that nothing is set up in vain.
    pub limits: connection_limits::Behaviour,
    /// Who is who.
    pub identify: identify::Behaviour,
    /// Round trips, and whether the other is still there.
    pub ping: ping::Behaviour,
    /// The DHT.
    pub kad: kad::Behaviour<NoRecords>,
    /// What others announce.
    pub keeping: Toggle<KeepingBehaviour>,
    /// Tries the addresses of others.
    pub autonat: Toggle<autonat::v2::server::Behaviour>,
    /// Relays for others.
    pub relay: Toggle<relay::Behaviour>,
}

impl Behaviour {
    /// The behaviours of a node with this identity, which keeps announcements by `keeping`.
    #[must_use]
    pub fn new(config: &Config, key: &Keypair, keeping: Option<KeepingBehaviour>) -> Self {
        let peer = key.public().to_peer_id();
        let agent = concat!("narswarm-bootstrap/", env!("CARGO_PKG_VERSION")).to_owned();
        let identify = identify::Config::new(NETWORK.to_owned(), key.public())
            .with_agent_version(agent)
            .with_cache_size(0);
        let mut kad = kad::Behaviour::with_config(peer, NoRecords, kad_config());
        // Whoever is an entry is meant to be reached, so there is nothing to find out.
        kad.set_mode(Some(kad::Mode::Server));
        let autonat = config.autonat.then(autonat::v2::server::Behaviour::default);
        Self {
            limits: connection_limits::Behaviour::new(connection_limits(config)),
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::new(ping::Config::new().with_interval(PING_INTERVAL)),
            kad,
            keeping: keeping.into(),
            autonat: autonat.into(),
            relay: relay_server(config, peer).into(),
        }
    }
}

fn connection_limits(config: &Config) -> ConnectionLimits {
    ConnectionLimits::default()
        .with_max_pending_incoming(Some(limits::MAX_PENDING_INCOMING))
        .with_max_pending_outgoing(Some(limits::MAX_PENDING_OUTGOING))
        .with_max_established(Some(config.max_connections))
        .with_max_established_per_peer(Some(limits::MAX_CONNECTIONS_PER_PEER))
}

fn relay_server(config: &Config, peer: libp2p::PeerId) -> Option<relay::Behaviour> {
    if config.relay_reservations == 0 {
        return None;
    }
    let bounds = relay::Config {
        max_reservations: config.relay_reservations,
        max_reservations_per_peer: RESERVATIONS_PER_PEER,
        reservation_duration: RESERVATION_TIME,
        max_circuits: config.relay_circuits,
        max_circuits_per_peer: CIRCUITS_PER_PEER,
        max_circuit_duration: CIRCUIT_TIME,
        max_circuit_bytes: config.relay_circuit_mib.saturating_mul(1 << 20),
        // The rates for each peer and address stay libp2p's own.
        ..relay::Config::default()
    };
    let mut server = relay::Behaviour::new(peer, bounds);
    server.set_status(Some(relay::Status::Enable));
    Some(server)
}
