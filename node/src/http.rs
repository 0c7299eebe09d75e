//! The shim: presents the swarm to an unmodified `guix` as a normal substitute server.
//!
//! - `server`: accepts, bounds and ends connections ([`serve`]);
//! - `connection`: one connection; answers in order what `ahead` has read ahead of it;
//! - `request`, `route`, `host`, [`ByteRange`]: what is asked for; pure;
//! - `narinfo`, `nar`, `pages`, `response`: the answers;
//! - `socket`: quick acknowledgements, and resets in place of silent ends;
//! - [`Backend`]: what the shim needs of the node. It knows nothing else of it.
//!
//! Why the connections are not left to a general HTTP server: guix pipelines a thousand requests
//! and needs them resolved together, so requests are parsed as they arrive and not when their
//! turn comes; a body that fails must end in a reset even if the process is killed; and an idle
//! connection must cost next to nothing. What makes such servers large, request bodies, is
//! refused here: only GET and HEAD are served. Heads are parsed by `httparse`.

mod ahead;
mod backend;
mod connection;
mod host;
mod idle;
mod nar;
mod narinfo;
mod pages;
mod range;
mod request;
mod response;
mod route;
mod server;
mod socket;
mod status;
#[cfg(test)]
mod tests;

pub use backend::{
    Backend, NarAborted, NarForm, NarRefusal, NarReply, NarWant, NarinfoAnswer, SignedCompression,
};
pub use range::ByteRange;
pub use server::{ServeError, raise_descriptor_limit, serve};
pub use status::{
    AclStatus, ByteCounts, FetchStatus, ItemCounts, PeerCounts, RequestCounts, StatusReport,
    StoreProgress,
};

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How the shim behaves. Every wait in it ends by one of these deadlines, since guix itself has
/// none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// The store directory that `/nix-cache-info` names.
    pub store_dir: String,
    /// `Priority` in `/nix-cache-info`: Nix asks the lowest first. 30 comes before the 40 of
    /// `cache.nixos.org`, since the node asks the upstreams itself where the swarm has nothing.
    pub priority: u32,
    /// Names, besides those that need no listing, by which clients may call this server in
    /// their `Host` header.
    pub host_names: Vec<String>,
    /// Most connections at a time. `guix-daemon` takes one a download; 4,096 is a large LAN, and
    /// takes about 15 MB when all of them idle.
    pub max_connections: usize,
    /// How long a connection may idle between requests. guix keeps one open while it unpacks
    /// and builds; ten minutes cover most builds, and reconnecting costs little.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// How long the head of a request may take to arrive.
    #[serde(with = "humantime_serde")]
    pub head_timeout: Duration,
    /// How long a narinfo may take before it is answered as a miss: below the minute for which
    /// impatient clients wait, far above what a search takes.
    #[serde(with = "humantime_serde")]
    pub narinfo_deadline: Duration,
    /// For how long a client shall believe a miss that only means "not known in time".
    #[serde(with = "humantime_serde")]
    pub unavailable_max_age: Duration,
    /// How long the backend may take to open a nar before the answer is a 504.
    #[serde(with = "humantime_serde")]
    pub nar_deadline: Duration,
    /// How long the head of a nar's answer waits for the first bytes of its body, so that an
    /// early failure can still be told by its status. guix warns of a slow server after 5 s.
    #[serde(with = "humantime_serde")]
    pub first_byte_patience: Duration,
    /// How long the body of a nar may stand still for want of bytes before the connection is
    /// reset. The backend has deadlines of its own; this one catches its bugs.
    #[serde(with = "humantime_serde")]
    pub body_stall: Duration,
    /// How long a client may stop reading in mid-answer. guix unpacks while it reads, and pauses
    /// for deduplication, a full page cache or a slow disk, but not for ten minutes.
    #[serde(with = "humantime_serde")]
    pub write_stall: Duration,
    /// How long answers under way may still take once the node shuts down; what is unfinished
    /// then is reset.
    #[serde(with = "humantime_serde")]
    pub shutdown_grace: Duration,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            store_dir: "/gnu/store".to_owned(),
            priority: 30,
            host_names: Vec::new(),
            max_connections: 4096,
            idle_timeout: Duration::from_secs(600),
            head_timeout: Duration::from_secs(30),
            narinfo_deadline: Duration::from_secs(20),
            unavailable_max_age: Duration::from_secs(10),
            nar_deadline: Duration::from_secs(60),
            first_byte_patience: Duration::from_secs(4),
            body_stall: Duration::from_secs(60),
            write_stall: Duration::from_secs(600),
            shutdown_grace: Duration::from_secs(3),
        }
    }
}
