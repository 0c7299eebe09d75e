//! Someone who wants a nar from a node, as guix does, and looks at every octet.

use crate::bench::content::LargeItem;
use crate::harness::http_client::HttpClient;
use crate::harness::node::Node;
use anyhow::{Context, ensure};
use bytes::Bytes;
use std::time::{Duration, Instant};

/// How often a client asks again: a transfer that is cut off more often is broken.
const MAX_CUTS: u32 = 20;

/// A nar that a client got.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fetched {
    /// From the start to the last octet.
    pub took: Duration,
    /// From the start to the body's first octet.
    pub first: Duration,
    /// The longest time in which no octet came, after the first.
    pub longest_silence: Duration,
    /// Octets that weren't those of the nar.
    pub wrong: u64,
    /// How often it was cut off before.
    pub cuts: u32,
}

/// Fetches a nar through a node, again when it is cut off, as someone does who wants it.
///
/// # Errors
/// When it is cut off time and again.
pub async fn fetch_at_last(
    node: &Node,
    item: &LargeItem,
    nar: &Bytes,
    start: Instant,
) -> anyhow::Result<Fetched> {
    let mut cuts = 0;
    loop {
        let mut client = node.connect().await?;
        match fetch(&mut client, item, nar, start, |_| ()).await {
            Ok(fetched) => return Ok(Fetched { cuts, ..fetched }),
            Err(error) if cuts == MAX_CUTS => return Err(error),
            Err(error) => eprintln!("after {:.1?}: {error:#}", start.elapsed()),
        }
        cuts += 1;
    }
}

/// Fetches a nar and compares it; `came` is told how many octets there are whenever some come.
///
/// # Errors
/// When it isn't complete.
pub async fn fetch(
    client: &mut HttpClient,
    item: &LargeItem,
    nar: &Bytes,
    start: Instant,
    mut came: impl FnMut(usize),
) -> anyhow::Result<Fetched> {
    let (mut at, mut fetched, mut last) = (0, Fetched::default(), None);
    let path = item.nar_path();
    let head = client.get_into(&path, |octets| {
        let now = start.elapsed();
        let before = last.replace(now);
        match before {
            Some(before) => {
                fetched.longest_silence = fetched.longest_silence.max(now.saturating_sub(before));
            }
            None => fetched.first = now,
        }
        fetched.wrong += wrong(octets, nar.get(at..at + octets.len()).unwrap_or_default());
        at += octets.len();
        came(at);
    });
    let head = head.await.with_context(|| format!("{} was cut off", item.item))?;
    ensure!(head.status == 200 && at as u64 == item.nar_bytes, "{} {at} octets", head.status);
    fetched.took = start.elapsed();
    Ok(fetched)
}

/// How many octets are not what they should be.
fn wrong(octets: &[u8], right: &[u8]) -> u64 {
    if octets == right {
        return 0;
    }
    let pairs = octets.iter().zip(right);
    pairs.filter(|(a, b)| a != b).count() as u64 + (octets.len() - right.len()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_octets_are_counted() {
        assert_eq!(wrong(b"abc", b"abc"), 0);
        assert_eq!(wrong(b"abc", b"axc"), 1);
        assert_eq!(wrong(b"abcd", b"xb"), 3);
    }
}
