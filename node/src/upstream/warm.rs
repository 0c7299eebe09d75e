//! Connections for nars that are open before a nar is asked for: to a server far away, opening one
//! costs as much as everything else until the first octet.
//!
//! The HTTP client's pool opens connections only for requests, so a small one is made: the
//! server's `nix-cache-info`, whose content is of no interest.

use futures::StreamExt;
use parking_lot::Mutex;
use std::time::{Duration, Instant};
use url::Url;

/// Most octets of `nix-cache-info` that are read: real ones have under a hundred. A connection on
/// which more comes is given up, since only one that was read to its end can be used again.
const MAX_INFO_BYTES: usize = 4096;

/// One server's connection for nars.
#[derive(Default)]
pub(super) struct Warmth {
    /// When the pool last used a connection to the server.
    used: Mutex<Option<Instant>>,
}

impl Warmth {
    /// A nar was asked for, or is about to be.
    pub(super) fn note_use(&self, now: Instant) {
        *self.used.lock() = Some(now);
    }

    /// Whether the pool has let go of its connection by now, if it ever had one. Says so once, for
    /// the caller then opens one.
    pub(super) fn is_cold(&self, now: Instant, kept_for: Duration) -> bool {
        let mut used = self.used.lock();
        let is_cold = used.is_none_or(|at| now.duration_since(at) >= kept_for);
        if is_cold {
            *used = Some(now);
        }
        is_cold
    }
}

/// Asks for `nix-cache-info` below `base` and reads it, or gives up in silence: whoever then asks
/// for a nar learns what is wrong.
pub(super) async fn open(http: reqwest::Client, base: Url, patience: Duration) {
    let Ok(url) = super::nar::locate(base.as_str().trim_end_matches('/'), "nix-cache-info") else {
        return;
    };
    let read = async {
        let mut body = http.get(url).send().await.ok()?.bytes_stream();
        let mut came = 0;
        while let Some(octets) = body.next().await {
            came += octets.ok()?.len();
            if came > MAX_INFO_BYTES {
                break;
            }
        }
        Some(())
    };
    let _ = tokio::time::timeout(patience, read).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_warmed_once_and_again_when_the_pool_has_let_go() {
        let (warmth, kept_for) = (Warmth::default(), Duration::from_secs(60));
        let start = Instant::now();
        assert!(warmth.is_cold(start, kept_for), "never used");
        assert!(!warmth.is_cold(start + Duration::from_secs(1), kept_for));
        warmth.note_use(start + Duration::from_secs(50));
        assert!(!warmth.is_cold(start + Duration::from_secs(100), kept_for), "used meanwhile");
        assert!(warmth.is_cold(start + Duration::from_secs(110), kept_for));
    }
}
