//! What another process sends and receives over TCP, with all headers, as the kernel counts it for each
//! connection (`ss`, of iproute2).

use anyhow::{Context, ensure};
use std::collections::{HashMap, HashSet};
use std::process::Command;
use std::time::{Duration, Instant};

/// Octets of a segment's headers: 20 of IPv4, 32 of TCP with its timestamps (RFC 7323).
const SEGMENT_BYTES: u64 = 52;

/// How often the connections are looked at: what one carries that comes and goes in between is missed.
const EVERY: Duration = Duration::from_millis(500);

/// What went over a process's connections in a while.
#[derive(Debug, Clone, Copy)]
pub struct Traffic {
    /// Octets sent and received, with the headers of IP and TCP.
    pub bytes: u64,
    /// Connections at the end.
    pub connections: usize,
    /// Connections that were there at some time.
    pub all_connections: usize,
}

/// Watches the connections of a process for so long.
///
/// # Errors
/// When `ss` can't be run.
pub async fn watch(pid: u32, for_: Duration) -> anyhow::Result<Traffic> {
    let mut now = connections(pid)?;
    let mut seen: HashSet<String> = now.keys().cloned().collect();
    let mut bytes = 0;
    let end = Instant::now() + for_;
    while Instant::now() < end {
        tokio::time::sleep(EVERY).await;
        let before = std::mem::replace(&mut now, connections(pid)?);
        for (ends, &carried) in &now {
            // Both ends may use the ports that they listen on, so that one follows another between the
            // same ends, and counts anew.
            let counted = before.get(ends).copied().filter(|&before| before <= carried);
            bytes += carried - counted.unwrap_or(0);
        }
        seen.extend(now.keys().cloned());
    }
    Ok(Traffic { bytes, connections: now.len(), all_connections: seen.len() })
}

/// What each connection of a process has carried so far, by its two ends.
fn connections(pid: u32) -> anyhow::Result<HashMap<String, u64>> {
    let output = Command::new("ss").args(["-tinpOH"]).output().context("running ss")?;
    ensure!(output.status.success(), "ss: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let own = format!("pid={pid},");
    Ok(text.lines().filter(|line| line.contains(&own)).filter_map(parse).collect())
}

/// One line of `ss -tinpOH`: state, two queues, two ends, process, then fields in any order, of which
/// those that are nothing are left out.
fn parse(line: &str) -> Option<(String, u64)> {
    let mut words = line.split_ascii_whitespace().skip(3);
    let ends = format!("{} {}", words.next()?, words.next()?);
    let count = |name: &str| -> u64 {
        let mut fields = line.split_ascii_whitespace();
        fields.find_map(|field| field.strip_prefix(name)?.parse().ok()).unwrap_or(0)
    };
    let segments = count("segs_out:") + count("segs_in:");
    Some((ends, count("bytes_sent:") + count("bytes_received:") + segments * SEGMENT_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_understood() {
        let line = "ESTAB 0 0 127.0.0.1:4000 127.0.0.1:5000 users:((\"narswarm\",pid=7,fd=9)) cubic \
                    rto:204 bytes_sent:100 bytes_acked:101 bytes_received:50 segs_out:3 segs_in:2";
        let ends = "127.0.0.1:4000 127.0.0.1:5000".to_owned();
        assert_eq!(parse(line), Some((ends, 150 + 5 * 52)));
        assert_eq!(parse("ESTAB 0 0"), None);
    }
}
