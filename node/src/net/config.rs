//! What the network is told at its start.

use crate::rate::DownloadLimit;
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId};
use narswarm_protocol::upload::UploadConfig;
use std::net::SocketAddr;
use std::time::Duration;

/// How to take part in the network.
#[derive(Clone)]
pub struct NetConfig {
    /// The node's identity.
    pub keypair: Keypair,
    /// Addresses to listen on; port 0 takes a free one. None: only connections that this node
    /// makes.
    pub listen: Vec<Multiaddr>,
    /// Nodes through which to enter the network; they are redialled until connected.
    pub bootstrap: Vec<Multiaddr>,
    /// Peers known from before, best first.
    pub known_peers: Vec<(PeerId, Vec<Multiaddr>)>,
    /// Who is asked for names in addresses; none asks the system's servers.
    pub resolver: Option<SocketAddr>,
    /// Whether to find and be found by peers on the local network.
    pub mdns: bool,
    /// Whether to answer lookups of others in the DHT. Nodes that share nothing don't.
    pub server: bool,
    /// What this node kept for others when it last ran; see [`super::Net::kept`].
    pub kept: Vec<u8>,
    /// What it had announced then; see [`super::Net::announced`].
    pub announced: Vec<u8>,
    /// For measuring only: puts a line of this delay, one way, before every TCP connection.
    pub line: Option<Duration>,
    /// How much is given to others, and to how many at once.
    pub upload: UploadConfig,
    /// The cap on what is downloaded.
    pub download: DownloadLimit,
    /// How others reach this node, and what it does for those whom nobody reaches.
    pub reach: ReachConfig,
    /// Waits and rates.
    pub timing: NetTiming,
}

/// How others reach this node, and what it does for those whom nobody reaches.
#[derive(Debug, Clone)]
pub struct ReachConfig {
    /// Whether to find out if others can reach this node, and to be reached through relays and
    /// holes punched into NATs if they can't. Default true.
    pub traverse: bool,
    /// Whether to ask the router for a port (UPnP). Default false: it speaks to whatever router
    /// there is, which a test has no business with.
    pub upnp: bool,
    /// Whether to help others to be reached, once it is known that this node can be: to try their
    /// addresses (AutoNAT), and to relay, within bounds. Default true.
    pub help: bool,
    /// Addresses at which others reach this node, by the word of whoever runs it: ports forwarded
    /// by a router, names. They are not tried.
    pub external: Vec<Multiaddr>,
    /// How often addresses that others have named are tried. Default 2 s.
    pub probe_interval: Duration,
}

impl Default for ReachConfig {
    fn default() -> Self {
        Self {
            traverse: true,
            upnp: false,
            help: true,
            external: Vec::new(),
            probe_interval: Duration::from_secs(2),
        }
    }
}

impl NetConfig {
    /// A node with this identity that listens on nothing and knows nobody.
    #[must_use]
    pub fn new(keypair: Keypair) -> Self {
        Self {
            keypair,
            listen: Vec::new(),
            bootstrap: Vec::new(),
            known_peers: Vec::new(),
            resolver: None,
            mdns: false,
            server: true,
            kept: Vec::new(),
            announced: Vec::new(),
            line: None,
            upload: UploadConfig::default(),
            download: DownloadLimit::default(),
            reach: ReachConfig::default(),
            timing: NetTiming::default(),
        }
    }
}

/// How long the network waits for what.
#[derive(Debug, Clone)]
pub struct NetTiming {
    /// For a stream to be opened, a connection made first if there is none. Default 10 s: what
    /// setting up a connection may take.
    pub open: Duration,
    /// For the whole answer to a query. Default 10 s.
    pub query: Duration,
    /// For any progress of a message or a piece that has begun, in either direction, and for the
    /// first octet of an answer that is owed. Default 20 s: far above what a congested link
    /// takes for 64 KiB, and short enough that a peer which stalls holds nothing for long.
    pub stall: Duration,
    /// For the next request of a fetch session that owes nothing. Default 120 s.
    pub session_idle: Duration,
    /// For a message of discovery and its answer, a connection made first if there is none. Default
    /// 3 s: others are asked long before that.
    pub announce: Duration,
    /// For a lookup in the DHT. Default 10 s: the slowest useful ones take three.
    pub find: Duration,
    /// For which an idle connection is kept. Default 60 s; connections to bootstrap nodes and
    /// useful peers are kept longer.
    pub connection_idle: Duration,
    /// First and longest pause between attempts to reach a bootstrap node. Default 250 ms to 60 s.
    pub redial: (Duration, Duration),
}

impl Default for NetTiming {
    fn default() -> Self {
        Self {
            open: Duration::from_secs(10),
            query: Duration::from_secs(10),
            stall: Duration::from_secs(20),
            session_idle: Duration::from_secs(120),
            announce: Duration::from_secs(3),
            find: Duration::from_secs(10),
            connection_idle: Duration::from_secs(60),
            redial: (Duration::from_millis(250), Duration::from_secs(60)),
        }
    }
}
