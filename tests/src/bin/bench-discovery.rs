//! How fast and at what cost items are found through the DHT (T10, T11, T12): a hundred real nodes in
//! this process, each connection behind a line of 25 ms each way, some of them dead.
//!
//! What is timed is what a node does that nobody near can help: search the DHT for the providers of
//! an item, ask them, and hold its narinfo. Connections are made anew as they are needed; those that
//! are open are used, as in production.

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use clap::Parser;
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId};
use narswarm_node::net::{Held, Net, NetConfig, Responder, ServedNar};
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::narinfo::Compression;
use narswarm_protocol::provider_key::provider_key;
use narswarm_protocol::store_path::StoreHash;
use narswarm_tests::bench::process::{cpu_seconds, resident_bytes};
use narswarm_tests::bench::traffic;
use narswarm_tests::harness::mirror::Mirror;
use narswarm_tests::harness::node::{Node, Stage};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Octets of a narinfo as farms sign them.
const NARINFO_BYTES: usize = 1500;

/// Octets of an item's one file.
const ITEM_BYTES: usize = 2000;

/// Discovery through the DHT, with real nodes at a distance.
#[derive(Debug, Parser)]
struct Args {
    /// Nodes that keep announcements and hold items.
    #[arg(long, default_value_t = 100)]
    nodes: usize,
    /// Of a hundred nodes, so many are dead when the searches begin.
    #[arg(long, default_value_t = 10)]
    dead: usize,
    /// Items that each of the holders announces.
    #[arg(long, default_value_t = 3000)]
    items: u32,
    /// Round trip between any two nodes, in milliseconds.
    #[arg(long, default_value_t = 50)]
    round_trip: u64,
    /// Searches.
    #[arg(long, default_value_t = 300)]
    searches: u32,
    /// Seconds of idleness that are watched at the end.
    #[arg(long, default_value_t = 120)]
    idle: u64,
    /// Seconds before that in which what the searches have left behind may end.
    #[arg(long, default_value_t = 180)]
    settle: u64,
}

/// Holds some items, each with a narinfo of a usual size.
struct Holder(BTreeSet<StoreHash>);

impl Responder for Holder {
    fn query(&self, hashes: &[StoreHash]) -> Vec<Option<Held>> {
        let held = |hash: &StoreHash| {
            let narinfo = Bytes::from(vec![b'n'; NARINFO_BYTES]);
            self.0.contains(hash).then_some(Held { narinfo, root: None, pieces_held: 0 })
        };
        hashes.iter().map(held).collect()
    }

    fn open(&self, _: PeerId, _: &NarHash) -> Option<Arc<dyn ServedNar>> {
        None
    }
}

fn item(holder: usize, number: u32) -> StoreHash {
    let mut octets = [0; 20];
    octets[..8].copy_from_slice(&(holder as u64).to_le_bytes());
    octets[8..12].copy_from_slice(&number.to_le_bytes());
    StoreHash(octets)
}

async fn start(
    holder: usize,
    items: u32,
    bootstrap: Vec<Multiaddr>,
    args: &Args,
) -> anyhow::Result<Net> {
    let mut config = NetConfig::new(Keypair::generate_ed25519());
    config.listen = vec!["/ip4/127.0.0.1/tcp/0".parse()?];
    config.bootstrap = bootstrap;
    config.line = Some(Duration::from_millis(args.round_trip) / 2);
    let held = (0..items).map(|number| item(holder, number)).collect();
    let (net, _) = Net::start(config, Arc::new(Holder(held))).await?;
    Ok(net)
}

/// Searches for an item until its narinfo is there; gives how long it took, and how many providers
/// were not there.
async fn search(net: &Net, hash: StoreHash) -> (Option<Duration>, usize) {
    let begin = Instant::now();
    let mut providers = net.routing().find(&[provider_key(&hash)]).await;
    let (mut stale, mut asked) = (0, tokio::task::JoinSet::new());
    let mut open = true;
    while open || !asked.is_empty() {
        tokio::select! {
            provider = providers.recv(), if open => match provider {
                Some(provider) => {
                    let net = net.clone();
                    asked.spawn(async move {
                        (provider.peer, net.query(provider.peer, &[hash]).await)
                    });
                }
                None => open = false,
            },
            Some(Ok((peer, answer))) = asked.join_next() => match answer {
                Ok(answers) if answers.iter().any(Option::is_some) => {
                    net.routing().note_there(peer);
                    return (Some(begin.elapsed()), stale);
                }
                _ => {
                    stale += 1;
                    net.routing().note_gone(peer);
                }
            },
        }
    }
    (None, stale)
}

fn messages(nets: &[Net]) -> u64 {
    nets.iter().map(|net| net.counters().served_announces.load(Ordering::Relaxed)).sum()
}

fn percentile(sorted: &[Duration], percent: usize) -> u128 {
    let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(index).map_or(0, Duration::as_millis)
}

/// Octets that the loopback has carried.
fn loopback_bytes() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/net/dev").context("/proc/net/dev")?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:")).context("lo")?;
    Ok(line.split_whitespace().next().context("a number")?.parse()?)
}

async fn wait_for_quiet(nets: &[Net]) -> u64 {
    let mut before = messages(nets);
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let now = messages(nets);
        if now == before {
            return now;
        }
        before = now;
    }
}

/// A node as users run it, with as many items, which enters by these addresses.
async fn start_program(args: &Args, entry: Vec<Multiaddr>) -> anyhow::Result<(Stage, Node)> {
    let stage = Stage::new();
    let mut mirror = Mirror::create(stage.path("mirror"), 1);
    for number in 0..args.items {
        mirror.add(&format!("item-{number:05}"), ITEM_BYTES, &[Compression::None]);
    }
    stage.import("full", &mirror.key_file(), &[mirror.root()]).await.well();
    let address = entry.first().context("it listens")?.to_string();
    let node = stage.node("full").acl(mirror.key_file()).bootstrap(&address).start().await;
    node.has_peers(1).await;
    Ok((stage, node))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    ensure!(args.nodes >= 20 && args.dead < 100, "at least twenty nodes, not all of them dead");
    let first = start(0, args.items, vec![], &args).await?;
    let entry = first.listen_addresses();
    let mut nets = vec![first];
    for number in 1..args.nodes {
        nets.push(start(number, args.items, entry.clone(), &args).await?);
    }
    let quiet = wait_for_quiet(&nets).await;
    println!(
        "{} nodes, {} ms: {quiet} messages until everybody knew their way",
        args.nodes, args.round_trip
    );

    // One workstation's round.
    let workstation = &nets[1];
    let keys = |holder: usize, count: u32| -> Vec<_> {
        (0..count).map(|number| provider_key(&item(holder, number))).collect()
    };
    let (bytes, begin) = (loopback_bytes()?, Instant::now());
    workstation.routing().provide(&keys(1, args.items)).await?;
    let after = wait_for_quiet(&nets).await;
    println!(
        "a round of {} items: {} messages, {} kB on the wire, {:.1} s",
        args.items,
        after - quiet,
        (loopback_bytes()? - bytes) / 1000,
        begin.elapsed().as_secs_f64() - 5.0,
    );

    // Many holders, of some items each, so that every search is for somebody else's.
    let holders = args.nodes.min(60);
    for (holder, net) in nets.iter().enumerate().take(holders).skip(2) {
        net.routing().provide(&keys(holder, args.items)).await?;
    }
    wait_for_quiet(&nets).await;

    // A new item.
    let (begin, fresh) = (Instant::now(), item(5, 2999.min(args.items - 1)));
    nets[5].routing().provide(&[provider_key(&fresh)]).await?;
    let found = loop {
        if search(&nets[args.nodes - 1], fresh).await.0.is_some() {
            break begin.elapsed();
        }
        ensure!(begin.elapsed() < Duration::from_secs(20), "a new item was not found");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    println!("a new item was found and asked for after {} ms", found.as_millis());

    // Some die without a word; holders too.
    let dead: Vec<usize> =
        (2..args.nodes - 1).filter(|number| (number * 37) % 100 < args.dead).collect();
    for number in &dead {
        nets[*number].shutdown().await;
    }
    let alive: Vec<usize> = (2..holders).filter(|number| !dead.contains(number)).collect();
    let asker = start(args.nodes, 0, entry, &args).await?;
    tokio::time::sleep(Duration::from_secs(15)).await;
    let before = messages(&nets);
    let (mut took, mut missed, mut stale) = (Vec::new(), 0, 0);
    for search_number in 0..args.searches {
        let holder = alive[search_number as usize * 7 % alive.len()];
        let hash = item(holder, search_number * 31 % args.items);
        let (found, gone) = search(&asker, hash).await;
        stale += gone;
        match found {
            Some(time) => took.push(time),
            None => missed += 1,
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    took.sort_unstable();
    println!(
        "{} of {} found, {missed} missed: p50 {} ms, p90 {} ms, p99 {} ms, most {} ms; {} dead; \
         {:.2} stale providers and {:.1} messages a search",
        took.len(),
        args.searches,
        percentile(&took, 50),
        percentile(&took, 90),
        percentile(&took, 99),
        percentile(&took, 100),
        dead.len(),
        stale as f64 / f64::from(args.searches),
        (messages(&nets) - before) as f64 / f64::from(args.searches),
    );

    let (stage, program) = start_program(&args, asker.listen_addresses()).await?;
    idle(&program, &args, (&nets, dead.len())).await?;
    program.terminate().await;
    drop(stage);
    Ok(())
}

/// Nothing happens: what a whole node, which is a process of its own, and the others cost.
async fn idle(program: &Node, args: &Args, (nets, dead): (&[Net], usize)) -> anyhow::Result<()> {
    let (own, here) = (program.pid(), std::process::id());
    let coming = traffic::watch(own, Duration::from_secs(args.settle)).await?;
    println!(
        "joining and announcing {} items, a node as a process of its own: {} kB sent and received in {} s \
         over {} connections",
        args.items,
        coming.bytes / 1000,
        args.settle,
        coming.all_connections,
    );
    let (own_cpu, all_cpu) = (cpu_seconds(own)?, cpu_seconds(here)?);
    let (asked, bytes, begin) = (messages(nets), loopback_bytes()?, Instant::now());
    let traffic = traffic::watch(own, Duration::from_secs(args.idle)).await?;
    let seconds = begin.elapsed().as_secs_f64();
    let (bytes, asked) = (loopback_bytes()? - bytes, messages(nets) - asked);
    let (own_cpu, all_cpu) = (cpu_seconds(own)? - own_cpu, cpu_seconds(here)? - all_cpu);
    println!(
        "idle, a node as a process of its own with {} items: {:.1} MB, {:.2} % of a core, {:.0} B/s \
         sent and received over {} connections ({} in all)",
        args.items,
        resident_bytes(own)? as f64 / 1e6,
        own_cpu * 100.0 / seconds,
        traffic.bytes as f64 / seconds,
        traffic.connections,
        traffic.all_connections,
    );
    println!(
        "idle, all the others in one process: {:.1} MB and {:.2} % of a core each",
        resident_bytes(here)? as f64 / 1e6 / args.nodes as f64,
        all_cpu * 100.0 / seconds / args.nodes as f64,
    );
    // What one sends another receives: each octet counts for both.
    let living = (args.nodes + 2 - dead) as f64;
    let mut connections: Vec<_> = nets.iter().map(|net| net.connected().len()).collect();
    connections.sort_unstable();
    println!(
        "idle, on average: {:.0} B/s a node, sent and received; {asked} messages of discovery in all; \
         half the nodes have at most {} connections, and one {}",
        bytes as f64 * 2.0 / seconds / living,
        connections[connections.len() / 2],
        connections[connections.len() - 1],
    );
    Ok(())
}
