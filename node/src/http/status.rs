//! What `/api/status` and `narswarm status --json` show. The field names are a contract.

use crate::metrics::Metrics;
use serde::{Deserialize, Serialize};

/// The state of a node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// The node's libp2p peer id.
    pub peer_id: String,
    /// The program's version.
    pub version: String,
    /// `workstation`, `seed` or `proxy`.
    pub role: String,
    /// Whole seconds since the node started.
    pub uptime_s: u64,
    /// Where the shim listens: `127.0.0.1:8710`.
    pub http: String,
    /// Multiaddresses the node listens on.
    pub listen: Vec<String>,
    /// Multiaddresses by which others have reached it.
    pub external: Vec<String>,
    /// What is known of the network address translation in front of it: `public`, `private` or
    /// `unknown`.
    pub nat: String,
    /// Peers.
    pub peers: PeerCounts,
    /// Items.
    pub items: ItemCounts,
    /// Traffic since the start.
    pub bytes: ByteCounts,
    /// Requests to the shim since the start.
    pub requests: RequestCounts,
    /// Nars that are being fetched now.
    pub fetches: Vec<FetchStatus>,
    /// What is wrong with the keys whose signatures are believed; absent when nothing is.
    #[serde(default, skip_serializing_if = "AclStatus::is_well")]
    pub acl: AclStatus,
    /// How far the system's store is looked through; absent where it isn't shared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreProgress>,
}

/// The keys that are believed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AclStatus {
    /// How many.
    pub keys: u64,
    /// Why the files with the keys can't be used as they are now, so that the last good ones count.
    pub problem: Option<String>,
}

impl AclStatus {
    fn is_well(&self) -> bool {
        self.problem.is_none()
    }
}

/// How far the system's store is looked through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreProgress {
    /// Valid items that may be shared by the policy.
    pub items: u64,
    /// Items that the policy keeps from others.
    pub hidden: u64,
    /// Of which no believed narinfo is known: built here, or not looked up yet.
    pub unsigned: u64,
    /// Of which what is signed is other content.
    pub different: u64,
    /// That are shared.
    pub shared: u64,
    /// Bytes of their nars.
    pub shared_bytes: u64,
    /// That wait to be hashed.
    pub waiting: u64,
    /// Bytes of their nars.
    pub waiting_bytes: u64,
    /// Bytes of nars hashed since the start.
    pub hashed_bytes: u64,
}

/// How many peers there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerCounts {
    /// With an open connection.
    pub connected: u64,
    /// With a known address.
    pub known: u64,
}

/// What the node holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemCounts {
    /// Verified narinfos.
    pub narinfos: u64,
    /// Nars in the cache.
    pub cached: u64,
    /// Items shared from the system's store.
    pub store: u64,
    /// Bytes that the cache takes on disk.
    pub cached_bytes: u64,
}

/// Bytes moved since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByteCounts {
    /// Received from peers.
    pub from_peers: u64,
    /// Received from upstreams.
    pub from_upstream: u64,
    /// Sent to peers.
    pub to_peers: u64,
    /// Sent to HTTP clients.
    pub to_http: u64,
}

impl ByteCounts {
    /// Reads the counters.
    #[must_use]
    pub fn of(metrics: &Metrics) -> Self {
        Self {
            from_peers: metrics.received_from_peers_bytes.get(),
            from_upstream: metrics.received_from_upstream_bytes.get(),
            to_peers: metrics.sent_to_peers_bytes.get(),
            to_http: metrics.sent_to_http_bytes.get(),
        }
    }
}

/// Requests to the shim since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestCounts {
    /// Narinfos that were found.
    pub narinfo_hit: u64,
    /// Narinfos that were not, or not in time.
    pub narinfo_miss: u64,
    /// Nars asked for.
    pub nar: u64,
}

impl RequestCounts {
    /// Reads the counters.
    #[must_use]
    pub fn of(metrics: &Metrics) -> Self {
        Self {
            narinfo_hit: metrics.narinfo_hits.get(),
            narinfo_miss: metrics.narinfo_misses.get() + metrics.narinfo_unavailable.get(),
            nar: metrics.nar_requests.get(),
        }
    }
}

/// A nar on its way in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchStatus {
    /// `HASH-NAME`.
    pub item: String,
    /// Verified bytes so far.
    pub done_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Sources at work.
    pub sources: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_names_are_the_contract() {
        let report = StatusReport {
            fetches: vec![FetchStatus::default()],
            listen: vec!["/ip4/127.0.0.1/tcp/1".into()],
            ..StatusReport::default()
        };
        let json = serde_json::to_string(&report).expect("json");
        let expected = concat!(
            r#"{"peer_id":"","version":"","role":"","uptime_s":0,"http":"","#,
            r#""listen":["/ip4/127.0.0.1/tcp/1"],"external":[],"nat":"","#,
            r#""peers":{"connected":0,"known":0},"#,
            r#""items":{"narinfos":0,"cached":0,"store":0,"cached_bytes":0},"#,
            r#""bytes":{"from_peers":0,"from_upstream":0,"to_peers":0,"to_http":0},"#,
            r#""requests":{"narinfo_hit":0,"narinfo_miss":0,"nar":0},"#,
            r#""fetches":[{"item":"","done_bytes":0,"total_bytes":0,"sources":0}]}"#,
        );
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_str::<StatusReport>(&json).expect("report"), report);
    }

    #[test]
    fn draws_on_the_counters() {
        let metrics = Metrics::new();
        metrics.received_from_peers_bytes.inc_by(7);
        metrics.narinfo_misses.inc();
        metrics.narinfo_unavailable.inc();
        assert_eq!(ByteCounts::of(&metrics).from_peers, 7);
        assert_eq!(RequestCounts::of(&metrics).narinfo_miss, 2);
    }
}
