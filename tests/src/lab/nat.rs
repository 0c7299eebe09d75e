//! Home routers: a host behind a network address translation of a chosen kind (RFC 4787), by
//! nftables on a host of the lab.
//!
//! A router has one host inside, with the private address that many homes have. All kinds but the
//! symmetric one give the port [`PORT`] inside the same other port outside, whoever is talked to; so
//! a program that takes its own port for the one that others see is found out. What comes in unasked
//! vanishes without a word, as routers do.

use super::host::Host;
use super::line::Line;
use super::namespace::Namespace;
use super::network::Network;
use clap::ValueEnum;
use std::net::Ipv4Addr;

/// The port that programs inside listen on.
pub const PORT: u16 = 8711;

/// What others see of it.
const OUTSIDE_PORT: u16 = 18711;

const INSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);

/// What a NAT does with those who come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum NatKind {
    /// There is none: a public address.
    Open,
    /// Once something was sent from a port, everybody comes in there.
    FullCone,
    /// Only from addresses that something was sent to.
    AddressRestricted,
    /// Only from addresses and ports that something was sent to.
    PortRestricted,
    /// The same, and everybody sees another port.
    Symmetric,
}

impl NatKind {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Open,
        Self::FullCone,
        Self::AddressRestricted,
        Self::PortRestricted,
        Self::Symmetric,
    ];

    /// As it stands in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::FullCone => "full cone",
            Self::AddressRestricted => "address-restricted",
            Self::PortRestricted => "port-restricted",
            Self::Symmetric => "symmetric",
        }
    }

    /// Whether two hosts behind such NATs can talk straight to each other, if both try at the same
    /// time. They can't when one shows a port that the other neither knows nor lets in.
    #[must_use]
    pub fn can_meet(self, other: Self) -> bool {
        let strict = |kind| matches!(kind, Self::PortRestricted | Self::Symmetric);
        let hidden = |kind| kind == Self::Symmetric;
        !(hidden(self) && strict(other) || hidden(other) && strict(self))
    }

    /// The router's rules; `None` where there is no router.
    fn rules(self, public: Ipv4Addr) -> Option<String> {
        // Which strangers come in to the port outside.
        let comes_in = match self {
            Self::Open => return None,
            Self::FullCone => "meta l4proto . th dport @used",
            Self::AddressRestricted => "ip saddr @contacted meta l4proto . th dport @used",
            Self::PortRestricted | Self::Symmetric => "",
        };
        let inwards = match comes_in {
            "" => String::new(),
            _ => format!(
                "iifname eth0 meta l4proto {{ tcp, udp }} {comes_in} dnat to {INSIDE}:{PORT}"
            ),
        };
        let outwards = match self {
            Self::Symmetric => "oifname eth0 masquerade fully-random".to_owned(),
            _ => format!(
                "oifname eth0 meta l4proto {{ tcp, udp }} th sport {PORT} snat to {public}:{OUTSIDE_PORT}\n\
                 oifname eth0 masquerade"
            ),
        };
        Some(format!(
            "table ip home {{\n\
               set contacted {{ type ipv4_addr; flags dynamic,timeout; timeout 5m; size 65535; }}\n\
               set used {{ type inet_proto . inet_service; flags dynamic,timeout; timeout 5m; size 65535; }}\n\
               chain inwards {{ type nat hook prerouting priority -100; policy accept;\n{inwards}\n}}\n\
               chain outwards {{ type nat hook postrouting priority 100; policy accept;\n{outwards}\n}}\n\
               chain passing {{ type filter hook forward priority 0; policy drop;\n\
                 iifname lan0 meta l4proto {{ tcp, udp }} th sport {PORT} update @used {{ meta l4proto . {OUTSIDE_PORT} }}\n\
                 iifname lan0 update @contacted {{ ip daddr }} accept\n\
                 ct state established,related accept\n\
                 ct status dnat accept\n\
               }}\n\
               chain arriving {{ type filter hook input priority 0; policy drop;\n\
                 iifname {{ lan0, lo }} accept\n\
                 ct state established,related accept\n\
               }}\n\
             }}\n"
        ))
    }
}

/// A place on the Internet: a host with a public address, or one behind a router that has it.
#[derive(Debug, Clone)]
pub struct Home {
    /// What others see: the host itself, or the router.
    pub outside: Host,
    /// Where programs run.
    pub inside: Host,
}

/// Adds a home to an Internet.
///
/// # Panics
/// Without the right to; see [`super::needs`].
pub fn settle(network: &mut Network, kind: NatKind, line: Line) -> Home {
    let outside = network.add(line);
    let Some(rules) = kind.rules(outside.address()) else {
        return Home { inside: outside.clone(), outside };
    };
    let (router, home) = (outside.namespace(), Namespace::create());
    home.set("ipv6/conf/all/disable_ipv6", "1");
    let pair = format!(
        "link add lan0 type veth peer name eth0 netns {}\n\
         address add {GATEWAY}/24 dev lan0\nlink set lan0 up\n",
        home.holder()
    );
    router.run("ip", &["-batch", "-"], &pair);
    router.set("ipv4/ip_forward", "1");
    router.run("nft", &["-f", "-"], &rules);
    let up = format!(
        "link set lo up\naddress add {INSIDE}/24 broadcast + dev eth0\nlink set eth0 up\n\
         route add default via {GATEWAY} dev eth0 src {INSIDE}\n"
    );
    home.run("ip", &["-batch", "-"], &up);
    let inside = Host { namespace: home, address: INSIDE, line };
    Home { outside, inside }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::needs;
    use std::net::{SocketAddr, UdpSocket};
    use std::time::Duration;

    #[test]
    fn hosts_meet_unless_one_hides_its_port_from_one_that_is_strict() {
        use NatKind::{AddressRestricted, FullCone, Open, PortRestricted, Symmetric};
        for kind in NatKind::ALL {
            assert!(kind.can_meet(Open) && kind.can_meet(FullCone) && Open.can_meet(kind));
            assert!(kind.can_meet(AddressRestricted));
            assert_eq!(kind.can_meet(PortRestricted), kind != Symmetric);
            assert_eq!(kind.can_meet(Symmetric), !matches!(kind, PortRestricted | Symmetric));
            assert!(NatKind::ALL.iter().all(|other| kind.can_meet(*other) == other.can_meet(kind)));
        }
    }

    /// Whether a datagram from one socket comes to another within a moment.
    fn arrives(from: &UdpSocket, to: SocketAddr, at: &UdpSocket) -> Option<SocketAddr> {
        at.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket");
        // What came before doesn't count.
        let mut octets = [0; 8];
        at.set_nonblocking(true).expect("a socket");
        while at.recv_from(&mut octets).is_ok() {}
        at.set_nonblocking(false).expect("a socket");
        from.send_to(b"knock", to).expect("it can be sent");
        at.recv_from(&mut octets).ok().map(|(_, from)| from)
    }

    #[test]
    fn each_kind_lets_in_whom_it_should() {
        if !needs::are_met() {
            return;
        }
        for kind in NatKind::ALL.into_iter().skip(1) {
            let mut network = Network::internet();
            let home = settle(&mut network, kind, Line::free());
            let (friend, stranger) = (network.add(Line::free()), network.add(Line::free()));
            let bind = |host: &Host, port| {
                let address = SocketAddr::from((host.address(), port));
                host.namespace().enter(|| UdpSocket::bind(address).expect("a free port"))
            };
            let inside = bind(&home.inside, PORT);
            let (known, other_port) = (bind(&friend, 1000), bind(&friend, 1001));
            let unknown = bind(&stranger, 1000);
            let address = |socket: &UdpSocket| socket.local_addr().expect("bound");
            let public = SocketAddr::from((home.outside.address(), OUTSIDE_PORT));
            assert_eq!(arrives(&unknown, public, &inside), None, "{kind:?}: nothing was sent yet");

            let seen = arrives(&inside, address(&known), &known).expect("it may send");
            assert_eq!(seen.ip(), public.ip());
            let again = arrives(&inside, address(&known), &known).expect("it may send");
            assert_eq!(seen, again, "{kind:?}: a conversation keeps its port");
            assert_eq!(arrives(&known, seen, &inside), Some(address(&known)), "{kind:?}");
            let comes = |from: &UdpSocket| arrives(from, seen, &inside).is_some();
            let full = kind == NatKind::FullCone;
            assert_eq!(comes(&unknown), full, "{kind:?}: a stranger");
            let friendly = full || kind == NatKind::AddressRestricted;
            assert_eq!(comes(&other_port), friendly, "{kind:?}: another port of a friend");

            let elsewhere = arrives(&inside, address(&unknown), &unknown).expect("it may send");
            assert_eq!(elsewhere == seen, kind != NatKind::Symmetric, "{kind:?}: what others see");
            assert_eq!(seen == public, kind != NatKind::Symmetric, "{kind:?}");
        }
    }
}
