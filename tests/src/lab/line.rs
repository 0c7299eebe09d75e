//! What a host's line to the switch can carry, and how the kernel is told.
//!
//! Each direction has a token bucket (`tc-tbf(8)`) with a short queue behind it. The way up is
//! shaped where the host sends, the way down where the switch sends to the host.

use std::time::Duration;

/// Time that a full queue takes to drain: enough for a window of a near connection, and far below
/// what makes a line feel stuck. Home routers have ten times that, good ones half.
pub const QUEUE: Duration = Duration::from_millis(40);

/// Time in which the bucket fills: what passes at once after silence. Long enough that the kernel
/// need not wake for every packet.
const BURST: Duration = Duration::from_millis(4);

/// Least octets in the bucket: it must hold a packet, and some more cost nothing.
const MIN_BURST_BYTES: u64 = 8 * 1024;

/// A rate.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Mbps(pub f64);

impl Mbps {
    /// Octets in a second, headers of all layers included.
    #[must_use]
    pub fn bytes_per_s(self) -> f64 {
        self.0 * 1e6 / 8.0
    }
}

/// A host's line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line {
    /// From the host; `None` doesn't hold anything back.
    pub up: Option<Mbps>,
    /// To the host.
    pub down: Option<Mbps>,
    /// How long each packet is on its way, in each direction.
    pub one_way: Duration,
}

impl Line {
    /// One that holds nothing back.
    #[must_use]
    pub fn free() -> Self {
        Self { up: None, down: None, one_way: Duration::ZERO }
    }

    /// One of these rates, in Mbit/s, without delay.
    #[must_use]
    pub fn of(up: f64, down: f64) -> Self {
        Self { up: Some(Mbps(up)), down: Some(Mbps(down)), one_way: Duration::ZERO }
    }

    /// The same at a distance: the round trip over this line alone.
    #[must_use]
    pub fn far(self, round_trip: Duration) -> Self {
        Self { one_way: round_trip / 2, ..self }
    }
}

/// What `tc -batch` reads to shape what is sent through an interface.
#[must_use]
pub fn shaping(interface: &str, rate: Mbps) -> String {
    let octets = |time: Duration| (rate.bytes_per_s() * time.as_secs_f64()) as u64;
    let burst = octets(BURST).max(MIN_BURST_BYTES);
    let limit = octets(QUEUE) + burst;
    let bits = (rate.0 * 1e6) as u64;
    format!("qdisc add dev {interface} root tbf rate {bits}bit burst {burst} limit {limit}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_as_long_as_said() {
        // 2.5 MB/s: 10 kB of bucket, and 100 kB in 40 ms.
        assert_eq!(
            shaping("eth0", Mbps(20.0)),
            "qdisc add dev eth0 root tbf rate 20000000bit burst 10000 limit 110000\n"
        );
        assert!(shaping("eth0", Mbps(1.0)).contains("burst 8192 limit 13192\n"));
    }
}
