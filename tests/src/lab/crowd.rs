//! A flash crowd: one seed has a nar, and many peers want it at the same moment.
//!
//! What can at best be expected follows from the lines alone: the seed must send each octet once,
//! everybody must receive all of them, and all that is received must have been sent by somebody
//! (Kumar and Ross, "Peer-Assisted File Distribution: The Minimum Distribution Time", 2006).

use super::client::fetch_at_last;
use super::host::{Carried, Host};
use super::line::Line;
use super::network::Network;
use crate::bench::content::LargeItem;
use crate::bench::process::cpu_seconds;
use crate::harness::node::{Node, Stage};
use anyhow::ensure;
use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio_util::task::AbortOnDropHandle;

/// Who is there, and by which lines.
#[derive(Debug, Clone, Copy)]
pub struct Crowd {
    /// How many want the nar.
    pub peers: usize,
    /// The line of each of them.
    pub peer: Line,
    /// The line of the one who has it.
    pub seed: Line,
}

impl Crowd {
    /// Least time in which all can have received `bytes`; nothing when no line holds them back.
    #[must_use]
    pub fn least_time(&self, bytes: u64) -> Duration {
        let rate =
            |rate: Option<super::line::Mbps>| rate.map_or(f64::INFINITY, |r| r.bytes_per_s());
        let (bytes, peers) = (bytes as f64, self.peers as f64);
        let from_seed = bytes / rate(self.seed.up);
        let to_peer = bytes / rate(self.peer.down);
        let all = peers * bytes / (rate(self.seed.up) + peers * rate(self.peer.up));
        Duration::from_secs_f64(from_seed.max(to_peer).max(all))
    }

    /// The hosts, the seed's first.
    #[must_use]
    pub fn settle(&self, network: &mut Network) -> Vec<Host> {
        let mut hosts = vec![network.add(self.seed)];
        hosts.extend(network.add_many(self.peers, self.peer));
        hosts
    }
}

/// How it went.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// When each peer had all of it.
    pub took: Vec<Duration>,
    /// Octets that the seed's line has carried up, with all headers.
    pub seed_sent: u64,
    /// Octets that the peers' lines have carried down, with all headers.
    pub peers_received: u64,
    /// Octets of content that the seed says it has sent.
    pub seed_gave: Option<u64>,
    /// Octets of content that the peers say they have received.
    pub peers_got: Option<u64>,
    /// Processor time of all of them, in seconds.
    pub cpu_s: f64,
    /// Octets that weren't those of the nar.
    pub wrong: u64,
    /// How often a client was cut off and had to ask again.
    pub cuts: u64,
}

impl Outcome {
    /// When the last one had all of it.
    #[must_use]
    pub fn last(&self) -> Duration {
        self.took.iter().copied().max().unwrap_or_default()
    }

    /// The mean of all.
    #[must_use]
    pub fn mean(&self) -> Duration {
        self.took.iter().sum::<Duration>() / u32::try_from(self.took.len()).unwrap_or(1).max(1)
    }
}

/// What hosts and processes had used when the clock started.
#[derive(Debug)]
pub struct Start {
    at: Instant,
    carried: Vec<Carried>,
    cpu_s: f64,
    _watching: AbortOnDropHandle<()>,
}

impl Start {
    /// Starts the clock.
    ///
    /// # Errors
    /// When a process is gone.
    pub fn now(hosts: &[Host], pids: &[u32]) -> anyhow::Result<Self> {
        let (carried, cpu_s) = (carried(hosts), cpu(pids)?);
        let watching = AbortOnDropHandle::new(tokio::spawn(watch(hosts.to_vec())));
        Ok(Self { at: Instant::now(), carried, cpu_s, _watching: watching })
    }

    /// Counts what these processes use from now on.
    ///
    /// # Errors
    /// When one is gone.
    pub fn count_from(&mut self, pids: &[u32]) -> anyhow::Result<()> {
        self.cpu_s = cpu(pids)?;
        Ok(())
    }

    /// When it was.
    #[must_use]
    pub fn at(&self) -> Instant {
        self.at
    }

    /// Reads all counters; the seed is the first host.
    ///
    /// # Errors
    /// When a process is gone.
    pub fn outcome(
        &self,
        hosts: &[Host],
        pids: &[u32],
        took: Vec<Duration>,
    ) -> anyhow::Result<Outcome> {
        let cpu_s = cpu(pids)? - self.cpu_s;
        let since: Vec<_> = carried(hosts)
            .into_iter()
            .zip(&self.carried)
            .map(|(now, was)| now.since(*was))
            .collect();
        Ok(Outcome {
            took,
            seed_sent: since[0].sent,
            peers_received: since[1..].iter().map(|carried| carried.received).sum(),
            seed_gave: None,
            peers_got: None,
            cpu_s,
            wrong: 0,
            cuts: 0,
        })
    }
}

fn carried(hosts: &[Host]) -> Vec<Carried> {
    hosts.iter().map(Host::carried).collect()
}

/// Tells from second to second how full the lines up are: the seed's, and those of the peers.
async fn watch(hosts: Vec<Host>) {
    let mut before = carried(&hosts);
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.tick().await;
    let mut last = Instant::now();
    loop {
        ticks.tick().await;
        let (now, seconds) = (carried(&hosts), last.elapsed().as_secs_f64());
        last = Instant::now();
        let full = |range: std::ops::Range<usize>| {
            let pairs =
                hosts[range.clone()].iter().zip(now[range.clone()].iter().zip(&before[range]));
            let (sent, most) = pairs.fold((0.0, 0.0), |(sent, most), (host, (now, before))| {
                let rate = host.line().up.map_or(f64::INFINITY, super::line::Mbps::bytes_per_s);
                (sent + now.since(*before).sent as f64, most + rate * seconds)
            });
            sent / most * 100.0
        };
        eprint!("{:.0}/{:.0} ", full(0..1), full(1..hosts.len()));
        before = now;
    }
}

fn cpu(pids: &[u32]) -> anyhow::Result<f64> {
    pids.iter().map(|pid| cpu_seconds(*pid)).sum()
}

/// Has a crowd of nodes fetch the item from the node of the name `seed`, whose data stands there.
///
/// The nodes are connected with the seed and know the narinfo before the clock starts, as guix has
/// asked for all narinfos before it asks for a nar.
///
/// # Errors
/// When somebody doesn't get it.
pub async fn narswarm(
    crowd: &Crowd,
    stage: &Stage,
    key: &Path,
    name: &str,
    item: &LargeItem,
    nar: &Bytes,
) -> anyhow::Result<Outcome> {
    let mut network = Network::new();
    let hosts = crowd.settle(&mut network);
    let seed = stage.node("seed").on(&hosts[0]).acl(key).arg("--role").arg("seed").start().await;
    let starting = hosts[1..].iter().enumerate().map(|(number, host)| {
        let spec = stage.node(&format!("{name}-{number}")).on(host).acl(key);
        spec.bootstrap(seed.peer_address()).start()
    });
    let peers = join_all(starting).await;
    try_join_all(peers.iter().map(|peer| introduce(peer, item))).await?;
    let pids: Vec<u32> = peers.iter().chain([&seed]).map(Node::pid).collect();
    let start = Start::now(&hosts, &pids)?;
    let fetching = peers.iter().map(|peer| fetch_at_last(peer, item, nar, start.at()));
    let fetched = try_join_all(fetching).await?;
    let took = fetched.iter().map(|fetched| fetched.took).collect();
    let mut outcome = start.outcome(&hosts, &pids, took)?;
    outcome.wrong = fetched.iter().map(|fetched| fetched.wrong).sum();
    outcome.cuts = fetched.iter().map(|fetched| u64::from(fetched.cuts)).sum();
    outcome.seed_gave = Some(seed.status().await.bytes.to_peers);
    let statuses = join_all(peers.iter().map(Node::status)).await;
    outcome.peers_got = Some(statuses.iter().map(|status| status.bytes.from_peers).sum());
    let folders: Vec<_> = peers.iter().map(|peer| peer.data_dir().to_owned()).collect();
    join_all(peers.into_iter().chain([seed]).map(Node::terminate)).await;
    for folder in folders {
        std::fs::remove_dir_all(folder)?;
    }
    Ok(outcome)
}

/// Waits until a node has peers and knows the narinfo.
async fn introduce(node: &Node, item: &LargeItem) -> anyhow::Result<()> {
    node.has_peers(1).await;
    let narinfo = node.connect().await?.get(&item.narinfo_path()).await?;
    ensure!(narinfo.head.status == 200, "a node finds no narinfo of {}", item.item);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_of_three_ways_bounds_a_crowd() {
        let crowd = |peers, up, down, seed| {
            let crowd = Crowd { peers, peer: Line::of(up, down), seed: Line::of(seed, 1000.0) };
            crowd.least_time(10_000_000).as_secs_f64()
        };
        // 80 Mbit: the seed's line; a peer's; all lines together.
        assert_eq!(crowd(16, 20.0, 100.0, 10.0), 8.0);
        assert_eq!(crowd(1, 20.0, 5.0, 20.0), 16.0);
        assert_eq!(crowd(8, 2.5, 100.0, 20.0), 16.0);
    }
}
