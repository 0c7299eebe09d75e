//! Caps on rates: how people write them, and the one on what this node downloads.
//!
//! What is given to others is decided in `narswarm_protocol::upload`, caps included. What comes in
//! can only be slowed down by reading it later, which this does for peers and substitute servers
//! together; flow control then slows the sender.

use narswarm_protocol::fetch::Time;
use narswarm_protocol::upload::Bucket;
use parking_lot::Mutex;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

/// Units that are understood, with their octets a second; the longest names first, since they are
/// matched from the end.
const UNITS: [(&str, f64); 10] = [
    ("kbit/s", 1e3 / 8.0),
    ("Mbit/s", 1e6 / 8.0),
    ("Gbit/s", 1e9 / 8.0),
    ("KiB/s", 1024.0),
    ("MiB/s", 1_048_576.0),
    ("GiB/s", 1_073_741_824.0),
    ("kB/s", 1e3),
    ("MB/s", 1e6),
    ("GB/s", 1e9),
    ("B/s", 1.0),
];

/// A rate below this would let every transfer run into its deadlines.
const MIN_BYTES_PER_SECOND: f64 = 1000.0;

/// A cap on a rate, or none. Written `500kB/s`, `2.5MB/s`, `20Mbit/s`, `unlimited`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rate(Option<u64>);

/// Why a text is no rate.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RateError {
    /// Not a number and a unit.
    #[error("`{0}` is no rate: write it like 500kB/s, 2.5MB/s, 20Mbit/s or unlimited")]
    Unreadable(String),
    /// Less than transfers can live with.
    #[error("`{0}` is too little: at least 1kB/s is needed to move anything in time")]
    TooLittle(String),
}

impl Rate {
    /// Octets a second; `None` without a cap.
    #[must_use]
    pub fn bytes_per_second(self) -> Option<u64> {
        self.0
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        if text == "unlimited" {
            return Ok(Self(None));
        }
        let unreadable = || RateError::Unreadable(text.to_owned());
        let read = |&(unit, factor): &(&str, f64)| Some((text.strip_suffix(unit)?, factor));
        let (number, factor) = UNITS.iter().find_map(read).ok_or_else(unreadable)?;
        let digits = number.trim_end();
        let plain = digits.chars().all(|c| c.is_ascii_digit() || c == '.');
        let number: f64 = digits.parse().ok().filter(|_| plain).ok_or_else(unreadable)?;
        let rate = number * factor;
        if rate < MIN_BYTES_PER_SECOND {
            return Err(RateError::TooLittle(text.to_owned()));
        }
        // A float beyond the range becomes the largest number, which is no cap for anybody.
        Ok(Self(Some(rate as u64)))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("unlimited"),
            Some(rate) => {
                let units = [(1_000_000_000, "GB/s"), (1_000_000, "MB/s"), (1000, "kB/s")];
                let whole = units.iter().find(|(octets, _)| rate % octets == 0);
                let (octets, unit) = whole.copied().unwrap_or((1, "B/s"));
                write!(f, "{}{unit}", rate / octets)
            }
        }
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The cap on what this node downloads, shared by all that download. Clones are the same cap.
#[derive(Debug, Clone, Default)]
pub struct DownloadLimit(Option<Arc<Limit>>);

#[derive(Debug)]
struct Limit {
    rate: u64,
    began: Instant,
    bucket: Mutex<Bucket>,
}

impl DownloadLimit {
    /// The cap at `rate`.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        let limit = |rate| {
            let bucket = Mutex::new(Bucket::new(Some(rate), Time::default()));
            Arc::new(Limit { rate, began: Instant::now(), bucket })
        };
        Self(rate.0.map(limit))
    }

    /// The most octets to read in one go, so that a slow transfer is seen to move: a twentieth of
    /// a second's worth, at least 1 KiB.
    #[must_use]
    pub fn portion(&self) -> usize {
        self.0.as_ref().map_or(usize::MAX, |limit| (limit.rate / 20).max(1024) as usize)
    }

    /// Notes that `bytes` octets have come, and waits until more may come.
    pub async fn take(&self, bytes: usize) {
        let Some(limit) = &self.0 else { return };
        let now = Time(limit.began.elapsed());
        let ready = {
            let mut bucket = limit.bucket.lock();
            bucket.is_ready(now);
            bucket.charge(bytes as u64);
            bucket.ready_at()
        };
        if ready > now {
            tokio::time::sleep_until((limit.began + ready.0).into()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn rate(text: &str) -> Result<Option<u64>, RateError> {
        text.parse().map(Rate::bytes_per_second)
    }

    #[test]
    fn rates_are_read_as_people_write_them() {
        for (text, expected) in [
            ("unlimited", None),
            ("500kB/s", Some(500_000)),
            ("2MB/s", Some(2_000_000)),
            ("2.5 MB/s", Some(2_500_000)),
            ("20Mbit/s", Some(2_500_000)),
            ("1MiB/s", Some(1 << 20)),
            ("1Gbit/s", Some(125_000_000)),
            ("1000B/s", Some(1000)),
        ] {
            assert_eq!(rate(text), Ok(expected), "{text}");
        }
        for text in ["", "500", "kB/s", "-1MB/s", "infMB/s", "1e3MB/s", "2 parsecs/s", "0.5 kB"] {
            assert_eq!(rate(text), Err(RateError::Unreadable(text.to_owned())));
        }
        for text in ["0MB/s", "999B/s"] {
            assert_eq!(rate(text), Err(RateError::TooLittle(text.to_owned())));
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for text in ["unlimited", "500kB/s", "2MB/s", "3GB/s", "1234567B/s"] {
            assert_eq!(text.parse::<Rate>().expect("a rate").to_string(), text);
        }
    }

    #[tokio::test]
    async fn downloads_together_keep_to_the_cap() {
        let limit = DownloadLimit::new("1MB/s".parse().expect("a rate"));
        assert_eq!(limit.portion(), 50_000);
        let other = limit.clone();
        for _ in 0..12 {
            // A quarter of a second's worth may come at once.
            assert!(limit.take(10_000).now_or_never().is_some());
            assert!(other.take(10_000).now_or_never().is_some());
        }
        assert!(other.take(3_600_000_000).now_or_never().is_none(), "an hour's worth");
        assert!(limit.take(1).now_or_never().is_none(), "for all together");
        let ready = limit.0.as_ref().expect("a cap").bucket.lock().ready_at();
        assert!(ready.0.as_secs() > 3590, "{ready:?}");
        assert!(DownloadLimit::default().take(usize::MAX).now_or_never().is_some());
    }
}
