//! Every number that the node counts, in one place and in one registry of its own.
//!
//! To add one: a documented field, its name and help in [`Metrics::new`], with the base unit in
//! the name. The exposition format itself appends `_total` to counters. No label may name a peer
//! or an item: that would tell every scraper who shares what, and grow without bound.

use parking_lot::Mutex;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// The node's counters. Share it in an `Arc`; every field can be used from any thread.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,

    /// Narinfo requests answered with a narinfo.
    pub narinfo_hits: Counter,
    /// Narinfo requests answered with a definite miss.
    pub narinfo_misses: Counter,
    /// Narinfo requests whose answer was not known in time.
    pub narinfo_unavailable: Counter,
    /// Time from the arrival of a batch of narinfo requests to the answer of each, in seconds.
    pub narinfo_wait_seconds: Histogram,
    /// Look-ahead batches handed on; with the narinfo counters: how many requests go together.
    pub narinfo_batches: Counter,
    /// Nar requests.
    pub nar_requests: Counter,
    /// Time from a nar request to the first byte of its body, in seconds.
    pub nar_first_byte_seconds: Histogram,
    /// Nar bodies that ended before their last byte, by cause.
    pub nar_aborted: Family<AbortedLabels, Counter>,

    /// Bytes of nars and pieces received from peers.
    pub received_from_peers_bytes: Counter,
    /// Of those, bytes that were of no use: pieces that came twice, or from a source with another
    /// piece list.
    pub unneeded_from_peers_bytes: Counter,
    /// Bytes of nars received from upstreams.
    pub received_from_upstream_bytes: Counter,
    /// Bytes of nars and pieces sent to peers.
    pub sent_to_peers_bytes: Counter,
    /// Bytes of narinfos and nars sent to HTTP clients.
    pub sent_to_http_bytes: Counter,

    /// Open connections to the shim.
    pub http_connections: Gauge,
    /// Connections accepted by the shim.
    pub http_accepted: Counter,
    /// Idle connections closed to make room, and new ones refused, at the limit.
    pub http_shed: Counter,
    /// HTTP answers other than narinfos, by status.
    pub http_responses: Family<StatusLabels, Counter>,

    /// Peers with an open connection.
    pub peers_connected: Gauge,
    /// Peers that were asked what they hold and were not there.
    pub stale_providers: Counter,
    /// What failed to verify, by kind.
    pub verification_failures: Family<VerificationLabels, Counter>,
    /// Requests for nars that were fetched ahead, or were on their way.
    pub nars_read_ahead: Counter,
    /// Fetches that ended, by outcome.
    pub fetches: Family<FetchLabels, Counter>,
    /// Keys whose signatures are believed.
    pub acl_keys: Gauge,
    /// Whether the files with the keys can't be used as they are now, and older ones count.
    pub acl_is_stale: Gauge,

    /// Valid items of the system's store, by how far they are on their way to others.
    pub store_items: Family<StoreItemLabels, Gauge>,
    /// Bytes of nars that are shared from the system's store.
    pub store_shared_bytes: Gauge,
    /// Bytes of nars of the system's store that are still to be hashed.
    pub store_waiting_bytes: Gauge,
    /// Bytes of nars of the system's store that were hashed.
    pub store_hashed_bytes: Counter,
    /// Items of the system's store that a narinfo was looked for, by where and what came of it.
    pub store_lookups: Family<StoreLookupLabels, Counter>,
}

/// Why a nar's body ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum AbortCause {
    /// The client went away.
    ClientGone,
    /// The client stopped reading.
    ClientStalled,
    /// The content did not verify.
    Mismatch,
    /// The sources failed or were too slow.
    Sources,
    /// A failure on this machine, or a body of another length than announced.
    Local,
}

/// Label of [`Metrics::nar_aborted`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AbortedLabels {
    /// The cause.
    pub cause: AbortCause,
}

/// Label of [`Metrics::http_responses`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StatusLabels {
    /// The HTTP status code.
    pub status: u16,
}

/// What failed to verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum VerificationKind {
    /// A narinfo's signature, or the item that it speaks of.
    Narinfo,
    /// A voucher's signature.
    Voucher,
    /// A piece against its piece list.
    Piece,
    /// A piece list against its root.
    PieceList,
    /// A whole nar against its signed hash.
    Nar,
    /// A compressed stream that does not decode.
    Encoding,
}

/// Label of [`Metrics::verification_failures`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct VerificationLabels {
    /// What it was.
    pub kind: VerificationKind,
}

/// How a fetch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum FetchOutcome {
    /// Whole, from peers alone.
    FromPeers,
    /// Whole, from upstream alone.
    FromUpstream,
    /// Whole, from both.
    Mixed,
    /// No source was left.
    Failed,
    /// The content did not have the signed hash.
    Mismatch,
}

/// Label of [`Metrics::fetches`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FetchLabels {
    /// The outcome.
    pub outcome: FetchOutcome,
}

/// How far an item of the system's store is on its way to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum StoreItemState {
    /// The user keeps it from others.
    Hidden,
    /// No narinfo of it is known that is believed.
    Unsigned,
    /// What is signed under its name is other content.
    Different,
    /// It waits to be hashed.
    Waiting,
    /// It is shared.
    Shared,
}

/// Label of [`Metrics::store_items`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StoreItemLabels {
    /// How far it is.
    pub state: StoreItemState,
}

/// Where a narinfo of an item of the system's store is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum LookupPlace {
    /// Among those that this node keeps.
    Kept,
    /// Among the signatures in Nix's database.
    Database,
    /// In guix's own cache.
    GuixCache,
    /// With peers and substitute servers.
    Others,
}

/// What came of looking there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum LookupOutcome {
    /// One that is believed.
    Found,
    /// None.
    NotFound,
    /// Not all who were asked have answered.
    Unknown,
}

/// Label of [`Metrics::store_lookups`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StoreLookupLabels {
    /// Where.
    pub place: LookupPlace,
    /// What came of it.
    pub outcome: LookupOutcome,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All counters at zero, registered under `narswarm_…`.
    #[must_use]
    pub fn new() -> Self {
        // 1 ms (memory) to 33 s (beyond every deadline), doubling: a memory hit, a LAN peer, a
        // far peer and a stuck source fall into different buckets.
        let latency = || Histogram::new(exponential_buckets(0.001, 2.0, 16));
        let metrics = Self {
            registry: Mutex::new(Registry::with_prefix("narswarm")),
            narinfo_hits: Counter::default(),
            narinfo_misses: Counter::default(),
            narinfo_unavailable: Counter::default(),
            narinfo_wait_seconds: latency(),
            narinfo_batches: Counter::default(),
            nar_requests: Counter::default(),
            nar_first_byte_seconds: latency(),
            nar_aborted: Family::default(),
            received_from_peers_bytes: Counter::default(),
            unneeded_from_peers_bytes: Counter::default(),
            received_from_upstream_bytes: Counter::default(),
            sent_to_peers_bytes: Counter::default(),
            sent_to_http_bytes: Counter::default(),
            http_connections: Gauge::default(),
            http_accepted: Counter::default(),
            http_shed: Counter::default(),
            http_responses: Family::default(),
            peers_connected: Gauge::default(),
            stale_providers: Counter::default(),
            verification_failures: Family::default(),
            nars_read_ahead: Counter::default(),
            fetches: Family::default(),
            acl_keys: Gauge::default(),
            acl_is_stale: Gauge::default(),
            store_items: Family::default(),
            store_shared_bytes: Gauge::default(),
            store_waiting_bytes: Gauge::default(),
            store_hashed_bytes: Counter::default(),
            store_lookups: Family::default(),
        };
        metrics.register_requests();
        metrics.register_traffic();
        metrics.register_store();
        metrics
    }

    fn register_requests(&self) {
        let mut r = self.registry.lock();
        r.register("narinfo_hits", "Narinfo requests answered with one", self.narinfo_hits.clone());
        r.register(
            "narinfo_misses",
            "Narinfo requests for unknown items",
            self.narinfo_misses.clone(),
        );
        r.register(
            "narinfo_unavailable",
            "Narinfo requests whose answer was not known in time",
            self.narinfo_unavailable.clone(),
        );
        r.register_with_unit(
            "narinfo_wait",
            "Time from the arrival of a narinfo request to its answer",
            Unit::Seconds,
            self.narinfo_wait_seconds.clone(),
        );
        r.register(
            "narinfo_batches",
            "Batches in which pipelined narinfo requests were resolved",
            self.narinfo_batches.clone(),
        );
        r.register("nar_requests", "Nar requests", self.nar_requests.clone());
        r.register_with_unit(
            "nar_first_byte",
            "Time from a nar request to the first byte of its body",
            Unit::Seconds,
            self.nar_first_byte_seconds.clone(),
        );
        r.register("nar_aborted", "Nar bodies that ended early", self.nar_aborted.clone());
        r.register("http_connections", "Open HTTP connections", self.http_connections.clone());
        r.register("http_accepted", "Accepted HTTP connections", self.http_accepted.clone());
        r.register(
            "http_shed",
            "Idle connections closed and new ones refused at the limit",
            self.http_shed.clone(),
        );
        r.register("http_responses", "HTTP answers but narinfos", self.http_responses.clone());
    }

    fn register_traffic(&self) {
        let mut r = self.registry.lock();
        let mut bytes = |name: &str, help: &str, counter: &Counter| {
            r.register_with_unit(name, help, Unit::Bytes, counter.clone());
        };
        bytes("received_from_peers", "Received from peers", &self.received_from_peers_bytes);
        let unneeded = &self.unneeded_from_peers_bytes;
        bytes("unneeded_from_peers", "Received from peers and of no use", unneeded);
        bytes(
            "received_from_upstream",
            "Received from upstreams",
            &self.received_from_upstream_bytes,
        );
        bytes("sent_to_peers", "Sent to peers", &self.sent_to_peers_bytes);
        bytes("sent_to_http", "Sent to HTTP clients", &self.sent_to_http_bytes);
        r.register("peers_connected", "Connected peers", self.peers_connected.clone());
        r.register(
            "stale_providers",
            "Peers that were asked what they hold and were not there",
            self.stale_providers.clone(),
        );
        r.register(
            "verification_failures",
            "What failed to verify",
            self.verification_failures.clone(),
        );
        r.register(
            "nars_read_ahead",
            "Requests for nars that were fetched before they were asked for, or were on their way",
            self.nars_read_ahead.clone(),
        );
        r.register("fetches", "Fetches that ended", self.fetches.clone());
        r.register("acl_keys", "Keys whose signatures are believed", self.acl_keys.clone());
        r.register(
            "acl_is_stale",
            "1 while the files with the keys can't be used, and older ones count",
            self.acl_is_stale.clone(),
        );
    }

    fn register_store(&self) {
        let mut r = self.registry.lock();
        r.register(
            "store_items",
            "Valid items of the system's store, by how far they are on their way to others",
            self.store_items.clone(),
        );
        r.register_with_unit(
            "store_shared",
            "Nars shared from the system's store",
            Unit::Bytes,
            self.store_shared_bytes.clone(),
        );
        r.register_with_unit(
            "store_waiting",
            "Nars of the system's store that are still to be hashed",
            Unit::Bytes,
            self.store_waiting_bytes.clone(),
        );
        r.register_with_unit(
            "store_hashed",
            "Nars of the system's store that were hashed",
            Unit::Bytes,
            self.store_hashed_bytes.clone(),
        );
        r.register(
            "store_lookups",
            "Items of the system's store that a narinfo was looked for",
            self.store_lookups.clone(),
        );
    }

    /// Lets another part add counters of its own under a prefix (`narswarm_PREFIX_…`).
    pub fn register_under(&self, prefix: &str, register: impl FnOnce(&mut Registry)) {
        register(self.registry.lock().sub_registry_with_prefix(prefix));
    }

    /// Everything in the OpenMetrics text format, as [`OPENMETRICS_TYPE`] names it.
    ///
    /// # Errors
    /// Only if a metric registered from outside fails to write itself.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry.lock())?;
        Ok(text)
    }

    /// Counts a nar body that ended early.
    pub fn count_aborted(&self, cause: AbortCause) {
        self.nar_aborted.get_or_create(&AbortedLabels { cause }).inc();
    }

    /// Counts something that failed to verify.
    pub fn count_verification_failure(&self, kind: VerificationKind) {
        self.verification_failures.get_or_create(&VerificationLabels { kind }).inc();
    }

    /// Says how many items of the system's store are in a state now.
    pub fn set_store_items(&self, state: StoreItemState, items: u64) {
        let items = i64::try_from(items).unwrap_or(i64::MAX);
        self.store_items.get_or_create(&StoreItemLabels { state }).set(items);
    }

    /// Counts items of the system's store that a narinfo was looked for.
    pub fn count_store_lookups(&self, place: LookupPlace, outcome: LookupOutcome, items: u64) {
        self.store_lookups.get_or_create(&StoreLookupLabels { place, outcome }).inc_by(items);
    }

    /// Counts a fetch that ended.
    pub fn count_fetch(&self, outcome: FetchOutcome) {
        self.fetches.get_or_create(&FetchLabels { outcome }).inc();
    }
}

/// Content type of [`Metrics::encode`].
pub const OPENMETRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_their_unit_and_counters_end_in_total() {
        let metrics = Metrics::new();
        metrics.sent_to_http_bytes.inc_by(5);
        metrics.count_aborted(AbortCause::Mismatch);
        metrics.count_fetch(FetchOutcome::FromPeers);
        metrics.count_verification_failure(VerificationKind::PieceList);
        metrics.nar_first_byte_seconds.observe(0.5);
        metrics.set_store_items(StoreItemState::Shared, 7);
        metrics.store_shared_bytes.set(8);
        metrics.store_hashed_bytes.inc_by(9);
        metrics.count_store_lookups(LookupPlace::GuixCache, LookupOutcome::Found, 3);
        let text = metrics.encode().expect("text");
        for line in [
            "narswarm_sent_to_http_bytes_total 5",
            "narswarm_nar_aborted_total{cause=\"Mismatch\"} 1",
            "narswarm_fetches_total{outcome=\"FromPeers\"} 1",
            "narswarm_verification_failures_total{kind=\"PieceList\"} 1",
            "narswarm_nar_first_byte_seconds_count 1",
            "narswarm_http_connections 0",
            "narswarm_store_items{state=\"Shared\"} 7",
            "narswarm_store_shared_bytes 8",
            "narswarm_store_waiting_bytes 0",
            "narswarm_store_hashed_bytes_total 9",
            "narswarm_store_lookups_total{place=\"GuixCache\",outcome=\"Found\"} 3",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing from\n{text}");
        }
    }
}
