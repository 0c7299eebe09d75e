//! In which networks of the Internet addresses are, and what one network may have of this node.
//!
//! Whoever has one machine has thousands of peer ids and ports, but hardly many networks. Two sizes
//! are told apart. What *one customer* has at most, a /24 of IPv4 or a /48 of IPv6 ([`customer_of`]),
//! is what connections and places in tables are counted by; with a larger one, whoever has a large
//! provider would be kept out by his neighbours. What *one operator* may own as a whole, a /16 or a
//! /32 ([`operator_of`]), as Bitcoin's and libtorrent's address groups, is what independent voices are
//! counted by: there a mistake costs nobody his connection.
//!
//! Connections are counted by customer and direction, and attempts to connect are rationed before
//! anything is spent on them. Peers on this machine and on private networks are in no network: a
//! class room is no attack.

use super::book::{Reach, reach};
use super::reach::{ip_of, is_direct};
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandlerInEvent, THandlerOutEvent,
    ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId};
use lru::LruCache;
use narswarm_protocol::limits::{
    INCOMING_BURST_PER_NETWORK, INCOMING_PER_SECOND_PER_NETWORK, MAX_COUNTED_NETWORKS,
    MAX_INCOMING_PER_NETWORK, MAX_INCOMING_RELAYED, MAX_OUTGOING_PER_NETWORK,
};
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::task::{Context, Poll};
use std::time::Instant;

/// What one customer of the Internet has at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Customer {
    /// The first three octets.
    V4([u8; 3]),
    /// The first three groups.
    V6([u16; 3]),
}

/// The customer whose an address is, if it is one of the Internet's.
#[must_use]
pub fn customer_of(address: &Multiaddr) -> Option<Customer> {
    Some(match public_ip(address)? {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            Customer::V4([a, b, c])
        }
        IpAddr::V6(ip) => {
            let [a, b, c, ..] = ip.segments();
            Customer::V6([a, b, c])
        }
    })
}

/// A number for the operator who may own the first of these addresses that is one of the Internet's;
/// `None` when there is none: names and private addresses say nothing.
#[must_use]
pub fn operator_of(addresses: &[Multiaddr]) -> Option<u64> {
    Some(match addresses.iter().find_map(public_ip)? {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            1 << 32 | u64::from(a) << 8 | u64::from(b)
        }
        IpAddr::V6(ip) => {
            let [a, b, ..] = ip.segments();
            2 << 32 | u64::from(a) << 16 | u64::from(b)
        }
    })
}

fn public_ip(address: &Multiaddr) -> Option<IpAddr> {
    ip_of(address).filter(|_| reach(address) == Some(Reach::Everywhere))
}

/// What is counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Group {
    Incoming(Customer),
    Outgoing(Customer),
    /// Through relays: the other end's network isn't seen.
    Relayed,
}

impl Group {
    fn limit(self) -> usize {
        match self {
            Self::Incoming(_) => MAX_INCOMING_PER_NETWORK,
            Self::Outgoing(_) => MAX_OUTGOING_PER_NETWORK,
            Self::Relayed => MAX_INCOMING_RELAYED,
        }
    }
}

/// Why a connection was not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Crowded {
    /// Too many connections.
    #[error("its network has {limit} connections already")]
    Connections {
        /// Connections allowed.
        limit: usize,
    },
    /// Too many attempts.
    #[error("its network tries too often")]
    Attempts,
}

/// What a network may still try, and since when.
struct Ration {
    left: f64,
    at: Instant,
}

/// See the module.
pub struct Behaviour {
    counts: HashMap<Group, usize>,
    connections: HashMap<ConnectionId, Group>,
    rations: LruCache<Customer, Ration>,
}

impl Default for Behaviour {
    fn default() -> Self {
        let most = NonZeroUsize::new(MAX_COUNTED_NETWORKS).unwrap_or(NonZeroUsize::MIN);
        Self { counts: HashMap::new(), connections: HashMap::new(), rations: LruCache::new(most) }
    }
}

impl Behaviour {
    /// Takes one attempt from a network's ration.
    fn try_in(&mut self, network: Customer, now: Instant) -> Result<(), Crowded> {
        let burst = f64::from(INCOMING_BURST_PER_NETWORK);
        let ration = self.rations.get_or_insert_mut(network, || Ration { left: burst, at: now });
        let earned = now.saturating_duration_since(ration.at).as_secs_f64()
            * f64::from(INCOMING_PER_SECOND_PER_NETWORK);
        ration.left = (ration.left + earned).min(burst);
        ration.at = now;
        if ration.left < 1.0 {
            return Err(Crowded::Attempts);
        }
        ration.left -= 1.0;
        Ok(())
    }

    /// Counts a connection that others may still deny.
    fn count(&mut self, id: ConnectionId, group: Group) -> Result<(), Crowded> {
        let (count, limit) = (self.counts.entry(group).or_default(), group.limit());
        if *count >= limit {
            return Err(Crowded::Connections { limit });
        }
        *count += 1;
        self.connections.insert(id, group);
        Ok(())
    }

    fn discount(&mut self, id: ConnectionId) {
        let Some(group) = self.connections.remove(&id) else { return };
        if let Some(count) = self.counts.get_mut(&group) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&group);
            }
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let Some(network) = customer_of(remote) else { return Ok(()) };
        self.try_in(network, Instant::now()).map_err(ConnectionDenied::new)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        _: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<dummy::ConnectionHandler, ConnectionDenied> {
        let group = if is_direct(local) {
            customer_of(remote).map(Group::Incoming)
        } else {
            Some(Group::Relayed)
        };
        if let Some(group) = group {
            self.count(id, group).map_err(ConnectionDenied::new)?;
        }
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        _: PeerId,
        address: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<dummy::ConnectionHandler, ConnectionDenied> {
        if let Some(network) = customer_of(address).filter(|_| is_direct(address)) {
            self.count(id, Group::Outgoing(network)).map_err(ConnectionDenied::new)?;
        }
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionClosed(closed) => self.discount(closed.connection_id),
            FromSwarm::DialFailure(failure) => self.discount(failure.connection_id),
            FromSwarm::ListenFailure(failure) => self.discount(failure.connection_id),
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libp2p::swarm::DialError;
    use libp2p::swarm::behaviour::DialFailure;
    use std::time::Duration;

    fn address(text: &str) -> Multiaddr {
        text.parse().expect("a multiaddress")
    }

    #[test]
    fn neighbours_are_one_customer_and_private_ones_none() {
        let of = |text| customer_of(&address(text));
        assert_eq!(of("/ip4/198.51.100.1/tcp/1"), of("/ip4/198.51.100.9/udp/2/quic-v1"));
        assert_ne!(of("/ip4/198.51.100.1/tcp/1"), of("/ip4/198.51.101.1/tcp/1"));
        assert_eq!(of("/ip6/2001:db8:1::1/tcp/1"), of("/ip6/2001:db8:1:7::1/tcp/1"));
        assert_ne!(of("/ip6/2001:db8:1::1/tcp/1"), of("/ip6/2001:db8:2::1/tcp/1"));
        assert_eq!(of("/ip4/192.168.1.1/tcp/1"), None);
        assert_eq!(of("/ip4/127.0.0.1/tcp/1"), None);
    }

    #[test]
    fn operators_have_more_than_customers() {
        let of = |texts: &[&str]| {
            operator_of(&texts.iter().map(|text| address(text)).collect::<Vec<_>>())
        };
        let one = of(&["/ip4/203.0.113.7/tcp/1"]);
        assert_eq!(one, of(&["/ip4/203.0.1.9/udp/2/quic-v1"]));
        assert_eq!(one, of(&["/ip6/::ffff:203.0.113.7/tcp/1"]));
        assert_ne!(one, of(&["/ip4/198.51.100.1/tcp/1"]));
        assert_eq!(of(&["/ip6/2001:db8:1::1/tcp/1"]), of(&["/ip6/2001:db8:2::1/tcp/1"]));
        assert_eq!(of(&["/ip4/192.168.1.2/tcp/1", "/dns/example.org/tcp/1"]), None);
        // Nobody is without an operator for naming his private address first.
        assert_eq!(of(&["/ip4/10.0.0.1/tcp/1", "/ip4/203.0.113.7/tcp/1"]), one);
    }

    #[test]
    fn one_network_has_so_many_connections_in_each_direction_and_others_have_theirs() {
        let mut networks = Behaviour::default();
        let local = address("/ip4/203.0.113.1/tcp/8711");
        let enter = |networks: &mut Behaviour, id, from: &str| {
            let (id, peer) = (ConnectionId::new_unchecked(id), PeerId::random());
            networks.handle_established_inbound_connection(id, peer, &local, &address(from)).is_ok()
        };
        for id in 0..MAX_INCOMING_PER_NETWORK {
            assert!(enter(&mut networks, id, "/ip4/198.51.100.1/tcp/1"));
        }
        assert!(!enter(&mut networks, 1000, "/ip4/198.51.100.200/udp/1/quic-v1"), "its neighbour");
        assert!(enter(&mut networks, 1001, "/ip4/198.51.101.1/tcp/1"), "another network");
        for id in 2000..3000 {
            assert!(enter(&mut networks, id, "/ip4/127.0.0.1/tcp/1"), "this machine");
        }
        let (id, to) = (ConnectionId::new_unchecked(3000), address("/ip4/198.51.100.1/tcp/1"));
        let made = networks.handle_established_outbound_connection(
            id,
            PeerId::random(),
            &to,
            Endpoint::Dialer,
            PortUse::Reuse,
        );
        assert!(made.is_ok(), "the other direction");
        networks.discount(ConnectionId::new_unchecked(0));
        assert!(enter(&mut networks, 4000, "/ip4/198.51.100.1/tcp/1"), "one has gone");
    }

    #[test]
    fn what_others_deny_is_not_counted() {
        let mut networks = Behaviour::default();
        let (id, to) = (ConnectionId::new_unchecked(1), address("/ip4/198.51.100.1/tcp/1"));
        let made = networks.handle_established_outbound_connection(
            id,
            PeerId::random(),
            &to,
            Endpoint::Dialer,
            PortUse::Reuse,
        );
        assert!(made.is_ok());
        let error = DialError::Aborted;
        let failure = DialFailure { peer_id: None, error: &error, connection_id: id };
        networks.on_swarm_event(FromSwarm::DialFailure(failure));
        assert!(networks.counts.is_empty() && networks.connections.is_empty());
    }

    #[test]
    fn attempts_are_rationed_by_network() {
        let (mut networks, now) = (Behaviour::default(), Instant::now());
        let noisy = customer_of(&address("/ip4/198.51.100.1/tcp/1")).expect("a network");
        let quiet = customer_of(&address("/ip4/198.51.101.1/tcp/1")).expect("a network");
        for _ in 0..INCOMING_BURST_PER_NETWORK {
            assert_eq!(networks.try_in(noisy, now), Ok(()));
        }
        assert_eq!(networks.try_in(noisy, now), Err(Crowded::Attempts));
        assert_eq!(networks.try_in(quiet, now), Ok(()));
        let later = now + Duration::from_secs(1);
        for _ in 0..INCOMING_PER_SECOND_PER_NETWORK {
            assert_eq!(networks.try_in(noisy, later), Ok(()));
        }
        assert_eq!(networks.try_in(noisy, later), Err(Crowded::Attempts));
    }
}
