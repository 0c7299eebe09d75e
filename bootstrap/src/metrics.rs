//! Every metric of an entry node, in one file.

use parking_lot::Mutex;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// What peers ask of the DHT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Request {
    /// Who is close to a key.
    FindNode,
    /// Who provides something.
    GetProviders,
    /// A peer provides something.
    AddProvider,
    /// What has no place in this network.
    Other,
}

impl Request {
    const ALL: [Self; 4] = [Self::FindNode, Self::GetProviders, Self::AddProvider, Self::Other];
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    request: Request,
}

/// The metrics.
pub struct Metrics {
    registry: Mutex<Registry>,
    /// Open connections.
    pub connections: Gauge,
    /// Connections made, in either direction.
    pub connected: Counter,
    /// Connections closed to make room.
    pub shed: Counter,
    /// Incoming connections that failed or were refused.
    pub refused: Counter,
    /// Peers of other networks that were sent away.
    pub strangers: Counter,
    /// Peers in the table of the DHT.
    pub table_peers: Gauge,
    /// Addresses tried for others and reached.
    pub probes_reached: Counter,
    /// Addresses tried for others in vain.
    pub probes_failed: Counter,
    /// Peers reached through this node.
    pub reservations: Gauge,
    /// Connections relayed now.
    pub circuits: Gauge,
    /// Connections that were not relayed.
    pub circuits_denied: Counter,
    /// Announcements of others that are kept.
    pub records: Gauge,
    /// Announcements, withdrawals and searches that were answered.
    pub answered: Counter,
    /// Memory of the process.
    pub resident_memory_bytes: Gauge,
    requests: Family<RequestLabels, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    #[must_use]
    pub fn new() -> Self {
        let metrics = Self {
            registry: Mutex::new(Registry::with_prefix("narswarm_bootstrap")),
            connections: Gauge::default(),
            connected: Counter::default(),
            shed: Counter::default(),
            refused: Counter::default(),
            strangers: Counter::default(),
            table_peers: Gauge::default(),
            probes_reached: Counter::default(),
            probes_failed: Counter::default(),
            reservations: Gauge::default(),
            circuits: Gauge::default(),
            circuits_denied: Counter::default(),
            records: Gauge::default(),
            answered: Counter::default(),
            resident_memory_bytes: Gauge::default(),
            requests: Family::default(),
        };
        metrics.register();
        // From the start, so that a rate can be told of the first one.
        for request in Request::ALL {
            let _ = metrics.requests.get_or_create(&RequestLabels { request });
        }
        metrics
    }

    fn register(&self) {
        let mut r = self.registry.lock();
        r.register("connections", "Open connections", self.connections.clone());
        r.register("connected", "Connections made", self.connected.clone());
        r.register("shed", "Connections closed to make room", self.shed.clone());
        r.register("refused", "Incoming connections failed or refused", self.refused.clone());
        r.register("strangers", "Peers of other networks sent away", self.strangers.clone());
        r.register("table_peers", "Peers in the table of the DHT", self.table_peers.clone());
        r.register("probes_reached", "Addresses tried and reached", self.probes_reached.clone());
        r.register("probes_failed", "Addresses tried in vain", self.probes_failed.clone());
        r.register("reservations", "Peers reached through this node", self.reservations.clone());
        r.register("circuits", "Connections relayed now", self.circuits.clone());
        r.register("circuits_denied", "Connections not relayed", self.circuits_denied.clone());
        r.register("records", "Announcements kept for others", self.records.clone());
        r.register("answered", "Messages of discovery answered", self.answered.clone());
        r.register_with_unit(
            "resident_memory",
            "Memory of the process",
            Unit::Bytes,
            self.resident_memory_bytes.clone(),
        );
        r.register("requests", "Requests to the DHT", self.requests.clone());
    }

    /// Counts a request to the DHT.
    pub fn count_request(&self, request: Request) {
        self.requests.get_or_create(&RequestLabels { request }).inc();
    }

    /// Everything in the OpenMetrics text format.
    ///
    /// # Errors
    /// None in practice: writing to a string doesn't fail.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        self.resident_memory_bytes.set(resident_bytes().unwrap_or(0));
        let mut text = String::new();
        encode(&mut text, &self.registry.lock())?;
        Ok(text)
    }
}

/// What the process holds in memory, as Linux tells.
fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: i64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_their_unit_and_counters_end_in_total() {
        let metrics = Metrics::new();
        metrics.count_request(Request::FindNode);
        metrics.shed.inc();
        let text = metrics.encode().expect("text");
        for line in [
            "narswarm_bootstrap_requests_total{request=\"FindNode\"} 1",
            "narswarm_bootstrap_shed_total 1",
            "narswarm_bootstrap_connections 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing from\n{text}");
        }
        let memory = "narswarm_bootstrap_resident_memory_bytes ";
        let memory = text.lines().find_map(|line| line.strip_prefix(memory)).expect("memory");
        assert!(memory.parse::<u64>().expect("a number") > 1 << 20);
    }
}
