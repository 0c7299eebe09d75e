//! A calibration trial with real nodes: the same as `narswarm_sim::dht::calibrate` does with the
//! model, over the same round trips.

use super::delayed::{ALIVE, Ground, REFUSES, SWALLOWS};
use super::node::Node;
use anyhow::{Context, Result};
use libp2p::PeerId;
use libp2p::kad::KBucketKey;
use narswarm_sim::dht::calibrate::{self, ARRIVALS, Measured, SETTLE, Sample, Trial, WATCH};
use narswarm_sim::dht::links::Timing;
use narswarm_sim::random::Chance;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

/// Memory ports are shared by the process; each trial has a range of its own.
static NEXT_PORT: AtomicU64 = AtomicU64::new(1);

/// Lookups at once, each by another node: few enough that two shared cores don't delay them.
const AT_ONCE: usize = 2;

/// Looks at a network that doesn't come to rest.
const MAX_LOOKS: usize = 12;

/// Nodes in a lookup's result.
const CLOSEST: usize = 20;

/// Runs a trial with real nodes.
///
/// # Errors
/// When a node can't be started or ends early.
pub async fn run(trial: &Trial, timing: Timing) -> Result<Measured> {
    let count = u64::from(trial.nodes);
    let ground = Arc::new(Ground {
        terrain: calibrate::terrain(trial),
        state: (0..count).map(|_| AtomicU8::new(ALIVE)).collect(),
        base_port: NEXT_PORT.fetch_add(count, Ordering::Relaxed),
        connections: Arc::default(),
        dial_timeout: Duration::from_nanos(timing.dial_timeout),
    });
    let idle = Duration::from_secs(trial.idle_seconds.into());
    let mut nodes: Vec<Option<Node>> = Vec::new();
    for number in 0..trial.nodes {
        let entry = nodes.first().and_then(Option::as_ref);
        let entry = entry.map(|node| (node.peer, node.address.clone()));
        nodes.push(Some(Node::start(&ground, number, entry, idle, trial.insertion)?));
        tokio::time::sleep(Duration::from_nanos(ARRIVALS)).await;
    }
    settle(&ground, trial.nodes).await;
    let before = ground.connections.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_nanos(WATCH)).await;
    let made = ground.connections.load(Ordering::Relaxed) - before;
    let mut table = 0;
    for node in nodes.iter().flatten() {
        table += node.table().await?;
    }
    let table = table as f64 / f64::from(trial.nodes);
    let mut chance = Chance::new(trial.seed, "calibration of real nodes");
    kill(trial, timing, &ground, &mut nodes, &mut chance);
    let alive: Vec<usize> = (1..nodes.len()).filter(|&at| nodes[at].is_some()).collect();
    let mut samples = Vec::new();
    while samples.len() < trial.lookups as usize {
        // Connections of the lookups before have become idle and are closed.
        tokio::time::sleep(Duration::from_nanos(trial.pause())).await;
        let mut owners = alive.clone();
        chance.shuffle(&mut owners);
        let looking = owners.iter().take(AT_ONCE).map(|&owner| look_up(&nodes, owner));
        for sample in futures::future::join_all(looking).await {
            samples.push(sample?);
        }
    }
    let minutes = WATCH as f64 / 60e9;
    let made = made as f64 / 2.0 / f64::from(trial.nodes) / minutes;
    Ok(Measured::of(&samples, table, made))
}

/// Waits until the network has come to rest: how long that takes depends on the machine.
async fn settle(ground: &Ground, nodes: u32) {
    for _ in 0..MAX_LOOKS {
        let before = ground.connections.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_nanos(SETTLE)).await;
        let made = ground.connections.load(Ordering::Relaxed) - before;
        if made < u64::from(nodes) / 4 {
            return;
        }
    }
}

/// Ends some of the nodes; their machines refuse or swallow what comes after.
fn kill(
    trial: &Trial,
    timing: Timing,
    ground: &Ground,
    nodes: &mut [Option<Node>],
    chance: &mut Chance,
) {
    let mut order: Vec<usize> = (1..nodes.len()).collect();
    chance.shuffle(&mut order);
    for &at in &order[..(trial.nodes * trial.dead_percent / 100) as usize] {
        nodes[at] = None;
        let refuses = chance.percent(timing.refuse_percent);
        ground.state[at].store(if refuses { REFUSES } else { SWALLOWS }, Ordering::Relaxed);
    }
}

async fn look_up(nodes: &[Option<Node>], owner: usize) -> Result<Sample> {
    let target = PeerId::random();
    let key = KBucketKey::from(target);
    let looking = nodes[owner].as_ref().context("the node is alive")?;
    let found = looking.look_up(target).await?;
    let others = nodes.iter().flatten().filter(|node| node.peer != looking.peer);
    let mut closest: Vec<_> =
        others.map(|node| (KBucketKey::from(node.peer).distance(&key), node.peer)).collect();
    closest.sort();
    closest.truncate(CLOSEST);
    let right = closest.iter().filter(|(_, peer)| found.peers.contains(peer)).count();
    let took = found.stats.duration().unwrap_or_default();
    Ok(Sample {
        asked: found.stats.num_requests(),
        answers: found.stats.num_successes(),
        found: right,
        ms: took.as_secs_f64() * 1000.0,
    })
}
