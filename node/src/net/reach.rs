//! How others can reach this node: what is known of it, and what follows.
//!
//! [`Reachability`] is told what happens and decides; it does nothing and reads no clock. That one
//! peer could connect proves little: NATs that let in whoever was sent something look open to every
//! server that was asked to try. So an address counts when
//!
//! - this node's own interface has it, and a server has reached it from a port that nothing was sent
//!   to, or somebody has whom this node has never sent anything; or
//! - a router has said so (UPnP), or whoever runs the node; or
//! - it is behind a NAT, a server has reached it, *and* somebody has come in by the same transport
//!   whom this node has never sent anything.
//!
//! What the NAT does is told by what peers at different addresses see of this node: one address
//! for all, or another for each. See `docs/nat.md`.
//!
//! - `probe`: addresses are tried by servers; `guard`: what may be dialled;
//! - `relays`: places at relays; `upkeep`: the part of the swarm's task that does all this.

pub mod guard;
pub mod probe;
pub mod relays;
mod settling;
pub mod upkeep;

use super::book::{Reach, reach};
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use narswarm_protocol::limits::MAX_OBSERVATIONS;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

/// What is known of how others reach this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Nat {
    /// Not enough yet: nobody far away has been met, or too few.
    #[default]
    Unknown,
    /// Reachable at an address of its own.
    Open,
    /// Behind a NAT, and reachable all the same: a forwarded port, UPnP, or a NAT that lets
    /// everybody in.
    Public,
    /// Not reachable, although its address is its own: a firewall.
    Restricted,
    /// Behind a NAT that shows everybody the same address: holes can be punched.
    Cone,
    /// Behind a NAT that shows everybody another address: direct connections only with those who
    /// let in whatever port they come from.
    Symmetric,
}

impl Nat {
    /// The name used in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Open => "open",
            Self::Public => "public",
            Self::Restricted => "restricted",
            Self::Cone => "cone",
            Self::Symmetric => "symmetric",
        }
    }

    /// Whether others can connect to this node.
    #[must_use]
    pub fn is_reachable(self) -> bool {
        matches!(self, Self::Open | Self::Public)
    }
}

/// Whether an address is of the peer itself and not of a relay.
#[must_use]
pub fn is_direct(address: &Multiaddr) -> bool {
    !address.iter().any(|part| part == Protocol::P2pCircuit)
}

/// Whether an address is reached by QUIC.
#[must_use]
pub fn is_quic(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::QuicV1)
}

/// An address without the peer ids in it.
#[must_use]
pub fn without_peer(address: &Multiaddr) -> Multiaddr {
    address.iter().filter(|part| !matches!(part, Protocol::P2p(_))).collect()
}

/// The host that an address begins with.
#[must_use]
pub fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
        Protocol::Ip6(ip) => Some(IpAddr::V6(ip).to_canonical()),
        _ => None,
    }
}

/// What NATs treat alike: QUIC or not, IPv6 or not.
type Kind = (bool, bool);

fn kind(address: &Multiaddr) -> Kind {
    (is_quic(address), ip_of(address).is_some_and(|ip| ip.is_ipv6()))
}

/// What one peer sees of this node.
struct Observation {
    by: IpAddr,
    address: Multiaddr,
}

/// See the module.
#[derive(Default)]
pub struct Reachability {
    interfaces: BTreeSet<IpAddr>,
    listens_by_quic: bool,
    /// Whether a server has not reached an address of this node's own.
    shut: bool,
    observed: BTreeMap<Kind, VecDeque<Observation>>,
    /// Addresses behind a NAT that servers have reached.
    tested: BTreeSet<Multiaddr>,
    /// Kinds by which strangers have come in.
    knocked: BTreeSet<Kind>,
    confirmed: BTreeSet<Multiaddr>,
}

impl Reachability {
    /// These are this node's own addresses now. Says whether that is news; if so, what was observed
    /// is forgotten: it was another network.
    pub fn set_interfaces(&mut self, listen: &[Multiaddr]) -> bool {
        let interfaces: BTreeSet<_> = listen.iter().filter_map(ip_of).collect();
        let news = interfaces != self.interfaces;
        self.listens_by_quic = listen.iter().any(is_quic);
        if news {
            self.shut = false;
            self.interfaces = interfaces;
            self.observed.clear();
            self.knocked.clear();
            self.tested.clear();
        }
        news
    }

    fn is_own(&self, address: &Multiaddr) -> bool {
        ip_of(address).is_some_and(|ip| self.interfaces.contains(&ip))
    }

    /// A peer at `by` sees this node, which has connected to it from the port that it listens on,
    /// at `address`.
    pub fn observed(&mut self, by: &Multiaddr, address: Multiaddr) {
        let far = |address| reach(address) == Some(Reach::Everywhere);
        let Some(by) = ip_of(by).filter(|_| far(by) && far(&address) && is_direct(&address)) else {
            return;
        };
        let seen = self.observed.entry(kind(&address)).or_default();
        seen.retain(|other| other.by != by);
        if seen.len() >= MAX_OBSERVATIONS {
            seen.pop_front();
        }
        seen.push_back(Observation { by, address });
    }

    /// How many peers at different addresses have told what they see, over QUIC.
    #[must_use]
    pub fn observers(&self) -> usize {
        let quic = self.observed.iter().filter(|((quic, _), _)| *quic);
        quic.map(|(_, seen)| seen.len()).max().unwrap_or(0)
    }

    /// Whether a host is this node's own, as it is or as others see it.
    fn is_self(&self, ip: IpAddr) -> bool {
        self.interfaces.contains(&ip)
            || self.observed.values().flatten().any(|seen| ip_of(&seen.address) == Some(ip))
    }

    /// A server has connected to an address of this node's. Returns what is confirmed by it.
    pub fn tested(&mut self, address: Multiaddr) -> Vec<Multiaddr> {
        if self.is_own(&address) || self.knocked.contains(&kind(&address)) {
            return vec![address];
        }
        self.tested.insert(address);
        Vec::new()
    }

    /// A server has not reached an address.
    pub fn not_reached(&mut self, address: &Multiaddr) {
        self.shut |= self.is_own(address);
    }

    /// Somebody at `remote` whom this node has sent nothing has come in at `local`. Returns what is
    /// confirmed by it.
    pub fn knocked(&mut self, local: &Multiaddr, remote: &Multiaddr) -> Vec<Multiaddr> {
        let Some(from) = ip_of(remote).filter(|_| reach(remote) == Some(Reach::Everywhere)) else {
            return Vec::new();
        };
        if self.is_self(from) {
            // Through the NAT and back: it was never outside.
            return Vec::new();
        }
        let kind = kind(local);
        self.knocked.insert(kind);
        let tested = std::mem::take(&mut self.tested);
        let (mut confirmed, rest): (BTreeSet<_>, _) =
            tested.into_iter().partition(|address| self::kind(address) == kind);
        self.tested = rest;
        if reach(local) == Some(Reach::Everywhere) && self.is_own(local) {
            confirmed.insert(local.clone());
        }
        confirmed.into_iter().collect()
    }

    /// An address is external now.
    pub fn confirmed(&mut self, address: &Multiaddr) {
        if is_direct(address) {
            self.confirmed.insert(address.clone());
        }
    }

    /// An address is external no more.
    pub fn expired(&mut self, address: &Multiaddr) {
        self.confirmed.remove(address);
    }

    /// Confirmed addresses of hosts that are no longer this node's own, when they were once.
    #[must_use]
    pub fn left_behind(&self, gone: &Multiaddr) -> Vec<Multiaddr> {
        let ip = ip_of(gone).filter(|ip| !self.interfaces.contains(ip));
        let of = |address: &&Multiaddr| ip.is_some() && ip_of(address) == ip;
        self.confirmed.iter().filter(of).cloned().collect()
    }

    /// Whether this node's own address is one that anybody might reach.
    #[must_use]
    pub fn has_far_interface(&self) -> bool {
        self.interfaces.iter().any(|ip| {
            let part = match *ip {
                IpAddr::V4(ip) => Protocol::Ip4(ip),
                IpAddr::V6(ip) => Protocol::Ip6(ip),
            };
            reach(&Multiaddr::from(part)) == Some(Reach::Everywhere)
        })
    }

    /// Whether an address suffices to be reached by everybody: most have no IPv6, so one of that
    /// counts only for a node that has nothing else.
    fn suffices(&self, address: &Multiaddr) -> bool {
        let v4 = |ip: &IpAddr| ip.is_ipv4() && !ip.is_loopback();
        !ip_of(address).is_some_and(|ip| ip.is_ipv6()) || !self.interfaces.iter().any(v4)
    }

    /// Whether others can connect to this node.
    #[must_use]
    pub fn is_reachable(&self) -> bool {
        self.confirmed.iter().any(|address| self.suffices(address))
    }

    /// What is known.
    #[must_use]
    pub fn nat(&self) -> Nat {
        if self.is_reachable() {
            let mut sufficient = self.confirmed.iter().filter(|address| self.suffices(address));
            let own = sufficient.any(|address| self.is_own(address));
            return if own { Nat::Open } else { Nat::Public };
        }
        // By QUIC, if enough have told.
        let kinds = self.observed.iter().rev();
        let told = kinds.map(|((quic, _), seen)| (*quic, seen)).find(|(_, seen)| seen.len() > 1);
        let Some((quic, told)) = told else { return Nat::Unknown };
        let mut addresses = told.iter().map(|seen| &seen.address);
        let Some(first) = addresses.next() else { return Nat::Unknown };
        if !addresses.all(|address| address == first) {
            // A TCP connection may have had to take another port than the one listened on, which
            // looks the same.
            if quic || !self.listens_by_quic { Nat::Symmetric } else { Nat::Unknown }
        } else if self.is_own(first) {
            // Until somebody has tried, it may as well be open.
            if self.shut { Nat::Restricted } else { Nat::Unknown }
        } else {
            Nat::Cone
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Multiaddr {
        text.parse().expect("a multiaddress")
    }

    fn behind_nat() -> Reachability {
        let mut reachability = Reachability::default();
        assert!(reachability.set_interfaces(&[address("/ip4/192.168.1.2/tcp/8711")]));
        reachability
    }

    #[test]
    fn a_nat_that_lets_in_whom_was_sent_something_is_not_taken_for_open() {
        let mut node = behind_nat();
        let outside = address("/ip4/203.0.113.7/tcp/8711");
        assert!(node.tested(outside.clone()).is_empty(), "the server had been sent something");
        assert_eq!(node.nat(), Nat::Unknown);
        let local = address("/ip4/192.168.1.2/tcp/8711");
        let near = address("/ip4/192.168.1.9/tcp/4000");
        assert!(node.knocked(&local, &near).is_empty(), "a neighbour proves nothing");
        let by_quic = address("/ip4/192.168.1.2/udp/8711/quic-v1");
        let stranger = address("/ip4/198.51.100.1/udp/4000/quic-v1");
        assert!(node.knocked(&by_quic, &stranger).is_empty(), "another transport");
        assert_eq!(
            node.knocked(&local, &address("/ip4/198.51.100.1/tcp/4000")),
            std::slice::from_ref(&outside)
        );
        node.confirmed(&outside);
        assert_eq!(node.nat(), Nat::Public);
        let other = address("/ip4/203.0.113.7/tcp/9");
        assert_eq!(node.tested(other.clone()), [other], "strangers come in by then");
    }

    #[test]
    fn a_round_trip_through_its_own_nat_proves_nothing() {
        let mut node = behind_nat();
        let outside = address("/ip4/203.0.113.7/tcp/8711");
        node.observed(&address("/ip4/198.51.100.1/tcp/1"), outside.clone());
        node.tested(outside);
        let local = address("/ip4/192.168.1.2/tcp/8711");
        assert!(node.knocked(&local, &address("/ip4/203.0.113.7/tcp/5")).is_empty());
    }

    #[test]
    fn an_address_of_its_own_is_confirmed_by_a_server_or_a_stranger() {
        let own = address("/ip4/203.0.113.7/tcp/8711");
        let mut node = Reachability::default();
        node.set_interfaces(std::slice::from_ref(&own));
        assert_eq!(node.tested(own.clone()), std::slice::from_ref(&own));
        let mut node = Reachability::default();
        node.set_interfaces(std::slice::from_ref(&own));
        assert_eq!(
            node.knocked(&own, &address("/ip4/198.51.100.1/tcp/4")),
            std::slice::from_ref(&own)
        );
        node.confirmed(&own);
        assert_eq!(node.nat(), Nat::Open);
        node.set_interfaces(&[address("/ip4/192.168.1.2/tcp/8711")]);
        assert_eq!(node.left_behind(&own), [own]);
    }

    #[test]
    fn what_a_nat_does_is_told_by_peers_at_different_addresses() {
        let seen = |node: &mut Reachability, by: &str, port: u16| {
            let by = address(&format!("/ip4/{by}/udp/1/quic-v1"));
            node.observed(&by, address(&format!("/ip4/203.0.113.7/udp/{port}/quic-v1")));
        };
        let mut node = behind_nat();
        seen(&mut node, "198.51.100.1", 5000);
        seen(&mut node, "198.51.100.1", 5000);
        assert_eq!((node.nat(), node.observers()), (Nat::Unknown, 1), "one peer can't tell");
        seen(&mut node, "198.51.100.2", 5000);
        assert_eq!(node.nat(), Nat::Cone);
        seen(&mut node, "198.51.100.2", 5001);
        assert_eq!(node.nat(), Nat::Symmetric);
        node.observed(
            &address("/ip4/192.168.1.9/udp/1/quic-v1"),
            address("/ip4/192.168.1.2/udp/8711/quic-v1"),
        );
        assert_eq!(node.nat(), Nat::Symmetric, "neighbours see another side");
        node.set_interfaces(&[address("/ip4/203.0.113.7/udp/8711/quic-v1")]);
        assert_eq!(node.nat(), Nat::Unknown, "another network");
        seen(&mut node, "198.51.100.1", 8711);
        seen(&mut node, "198.51.100.2", 8711);
        assert_eq!(node.nat(), Nat::Unknown, "nobody has tried");
        node.not_reached(&address("/ip4/203.0.113.7/udp/8711/quic-v1"));
        assert_eq!(node.nat(), Nat::Restricted);
        let by_tcp = |by: &str| address(&format!("/ip4/{by}/tcp/1"));
        node.observed(&by_tcp("198.51.100.1"), address("/ip4/203.0.113.7/tcp/1000"));
        node.observed(&by_tcp("198.51.100.2"), address("/ip4/203.0.113.7/tcp/2000"));
        assert_eq!(node.nat(), Nat::Restricted, "TCP tells less");
        let mut node = Reachability::default();
        node.set_interfaces(&[address("/ip4/192.168.1.2/udp/8711/quic-v1")]);
        node.observed(&by_tcp("198.51.100.1"), address("/ip4/203.0.113.7/tcp/1000"));
        node.observed(&by_tcp("198.51.100.2"), address("/ip4/203.0.113.7/tcp/2000"));
        assert_eq!(node.nat(), Nat::Unknown, "it may be the port that differs");
        node.observed(&by_tcp("198.51.100.2"), address("/ip4/203.0.113.7/tcp/1000"));
        assert_eq!(node.nat(), Nat::Cone);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut node = behind_nat();
        for by in 0..200 {
            let by = address(&format!("/ip4/198.51.100.{by}/tcp/1"));
            node.observed(&by, address("/ip4/203.0.113.7/tcp/8711"));
        }
        assert_eq!(node.observed.values().map(VecDeque::len).sum::<usize>(), MAX_OBSERVATIONS);
    }
}
