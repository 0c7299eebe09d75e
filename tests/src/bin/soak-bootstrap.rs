//! A day of churn in minutes: thousands of nodes come to an entry node, meet whom it names, announce
//! some items, look one up, and go for ever. Prints how much memory the entry node holds at each third
//! of the run, and fails if it goes on growing.
//!
//! Everything is on loopback, and its announcements are bounded so that they fill up in the first third:
//! what grows after that grows for ever.

use anyhow::{Context, ensure};
use clap::Parser;
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId};
use narswarm_node::net::{Held, Net, NetConfig, Responder, ServedNar};
use narswarm_protocol::announce::SavedAnnounced;
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::store_path::StoreHash;
use narswarm_tests::bench::process::resident_bytes;
use narswarm_tests::harness::entry_node::EntryNode;
use narswarm_tests::harness::node::Stage;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// How long a peer waits at most for what it wants.
const STAY: Duration = Duration::from_secs(20);

/// How often it looks whether it has it.
const LOOK: Duration = Duration::from_millis(50);

/// How often memory is looked at.
const SAMPLE: Duration = Duration::from_millis(500);

/// What the last third may hold above the second: noise of the allocator.
const SLACK: f64 = 1.10;

/// Churn at an entry node.
#[derive(Debug, Parser)]
struct Args {
    /// Peers that come and go.
    #[arg(long, default_value_t = 4000)]
    peers: usize,
    /// Items that each announces.
    #[arg(long, default_value_t = 30)]
    items: usize,
    /// Announcements that the entry node keeps at most.
    #[arg(long, default_value_t = 5000)]
    records: usize,
    /// How many are there at a time.
    #[arg(long, default_value_t = 48)]
    at_a_time: usize,
}

/// Has nothing to give.
struct Nothing;

impl Responder for Nothing {
    fn query(&self, hashes: &[StoreHash]) -> Vec<Option<Held>> {
        vec![None; hashes.len()]
    }

    fn open(&self, _: PeerId, _: &NarHash) -> Option<Arc<dyn ServedNar>> {
        None
    }
}

/// One peer's visit: it enters, announces some items, looks one up, and goes.
async fn visit(entry: Multiaddr, items: usize) -> anyhow::Result<()> {
    let mut config = NetConfig::new(Keypair::generate_ed25519());
    config.listen = vec!["/ip4/127.0.0.1/tcp/0".parse()?];
    config.bootstrap = vec![entry];
    let (net, _) = Net::start(config, Arc::new(Nothing)).await?;
    let keys: Vec<[u8; 32]> = (0..items).map(|_| rand::random()).collect();
    net.routing().provide(&keys).await?;
    let announced = async {
        loop {
            tokio::time::sleep(LOOK).await;
            let told = SavedAnnounced::from_octets(&net.announced())?;
            if told.items.len() == items {
                return anyhow::Ok(());
            }
        }
    };
    let heard = tokio::time::timeout(STAY, announced).await;
    let mut found = net.routing().find(&[rand::random()]).await;
    while let Ok(Some(_)) = tokio::time::timeout(STAY, found.recv()).await {}
    net.shutdown().await;
    heard.context("nobody has taken what it announced")?
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let stage = Stage::new();
    let records = format!("records = {}\n", args.records);
    let entry = stage.entry_node("entry").configured(&records).start().await;
    let address: Multiaddr = entry.peer_address().parse()?;
    let (visited, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let places = Arc::new(Semaphore::new(args.at_a_time));
    let started = Instant::now();
    let before = resident_mib(&entry)?;

    let (visits, failures) = (visited.clone(), failed.clone());
    let (coming, items) = (args.peers, args.items);
    let churn = tokio::spawn(async move {
        let mut guests = JoinSet::new();
        for _ in 0..coming {
            let place = places.clone().acquire_owned().await;
            let (address, visits, failures) = (address.clone(), visits.clone(), failures.clone());
            guests.spawn(async move {
                if visit(address, items).await.is_err() {
                    failures.fetch_add(1, Ordering::Relaxed);
                }
                visits.fetch_add(1, Ordering::Relaxed);
                drop(place);
            });
            while guests.try_join_next().is_some() {}
        }
        guests.join_all().await;
    });
    let mut samples: Vec<(usize, f64)> = Vec::new();
    while !churn.is_finished() {
        tokio::time::sleep(SAMPLE).await;
        samples.push((visited.load(Ordering::Relaxed), resident_mib(&entry)?));
    }
    churn.await.context("the churn has failed")?;
    let took = started.elapsed();

    let third = |n: usize| {
        let (from, to) = (args.peers * n / 3, args.peers * (n + 1) / 3);
        let within = samples.iter().filter(|(seen, _)| (from..=to).contains(seen));
        median(within.map(|(_, mib)| *mib).collect())
    };
    let thirds = [third(0), third(1), third(2)];
    let peak = samples.iter().map(|(_, mib)| *mib).fold(before, f64::max);
    println!("{} peers in {:.0} s, {} at a time", args.peers, took.as_secs_f64(), args.at_a_time);
    println!("not served            {}", failed.load(Ordering::Relaxed));
    println!("MiB before            {before:.1}");
    let [first, second, last] = thirds;
    println!("MiB by thirds         {first:.1}  {second:.1}  {last:.1}  (medians; peak {peak:.1})");
    println!("peers in its table    {}", entry.metric("narswarm_bootstrap_table_peers").await);
    println!("announcements kept    {}", entry.metric("narswarm_bootstrap_records").await);
    println!("messages answered     {}", entry.metric("narswarm_bootstrap_answered_total").await);
    println!("connections made      {}", entry.metric("narswarm_bootstrap_connected_total").await);
    let failed = failed.load(Ordering::Relaxed);
    ensure!(failed * 100 <= args.peers, "{failed} of {} peers were not served", args.peers);
    ensure!(last <= second * SLACK, "memory grows: {second:.1} MiB, then {last:.1} MiB");
    Ok(ExitCode::SUCCESS)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn resident_mib(entry: &EntryNode) -> anyhow::Result<f64> {
    Ok(resident_bytes(entry.pid())? as f64 / f64::from(1 << 20))
}
