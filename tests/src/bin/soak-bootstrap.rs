//! A day of churn in a minute: thousands of short-lived peers come to an entry node, identify
//! themselves, look something up, provide something, and go. Prints how much memory the entry node
//! holds at each third of the run, and fails if it goes on growing.
//!
//! Everything is on loopback.

use anyhow::{Context, ensure};
use clap::Parser;
use futures::StreamExt;
use libp2p::identity::Keypair;
use libp2p::kad::store::MemoryStore;
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, Swarm, identify, kad};
use narswarm_node::net::{Guard, KAD_PROTOCOL, NETWORK, build_transport, swarm_config};
use narswarm_tests::harness::entry_node::EntryNode;
use narswarm_tests::harness::node::Stage;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// How long a peer stays at most.
const STAY: Duration = Duration::from_secs(10);

/// How often memory is looked at.
const SAMPLE: Duration = Duration::from_millis(500);

/// What the last third may hold above the second: noise of the allocator.
const SLACK: f64 = 1.10;

/// Churn at an entry node.
#[derive(Debug, Parser)]
struct Args {
    /// Peers that come and go.
    #[arg(long, default_value_t = 6000)]
    peers: usize,
    /// How many are there at a time.
    #[arg(long, default_value_t = 48)]
    at_a_time: usize,
}

#[allow(missing_docs)]
mod behaviour {
    use super::{MemoryStore, NetworkBehaviour, identify, kad};

    /// What an ordinary node says to an entry node.
    #[derive(NetworkBehaviour)]
    pub struct Guest {
        pub identify: identify::Behaviour,
        pub kad: kad::Behaviour<MemoryStore>,
    }
}
use behaviour::{Guest, GuestEvent};

/// One peer's visit: whether it was heard.
async fn visit(entry: Multiaddr, number: usize) -> anyhow::Result<()> {
    let key = Keypair::generate_ed25519();
    let peer = key.public().to_peer_id();
    let transport = build_transport(&key, None, &Guard::default(), None, None)?;
    let identify = identify::Config::new(NETWORK.to_owned(), key.public());
    let config = kad::Config::new(KAD_PROTOCOL);
    let guest = Guest {
        identify: identify::Behaviour::new(identify),
        kad: kad::Behaviour::with_config(peer, MemoryStore::new(peer), config),
    };
    let mut swarm = Swarm::new(transport, guest, peer, swarm_config(STAY));
    // Addresses that nobody answers at: most of a day's peers are gone when they are looked for.
    let host = number % 250 + 2;
    swarm.add_external_address(format!("/ip4/127.1.0.{host}/tcp/9").parse()?);
    swarm.behaviour_mut().kad.set_mode(Some(kad::Mode::Server));
    swarm.dial(entry)?;
    let (mut identified, mut asked) = (false, false);
    let talking = async {
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::Behaviour(GuestEvent::Identify(identify::Event::Received {
                    peer_id,
                    info,
                    ..
                })) if !identified => {
                    identified = true;
                    let kad = &mut swarm.behaviour_mut().kad;
                    for address in info.listen_addrs {
                        kad.add_address(&peer_id, address);
                    }
                    kad.get_closest_peers(libp2p::PeerId::random());
                    let key = kad::RecordKey::new(&rand::random::<[u8; 32]>());
                    let _ = kad.start_providing(key);
                }
                SwarmEvent::Behaviour(GuestEvent::Kad(kad::Event::OutboundQueryProgressed {
                    step,
                    ..
                })) if step.last => asked = true,
                SwarmEvent::OutgoingConnectionError { error, .. } if !identified => {
                    anyhow::bail!("not let in: {error}");
                }
                _ => {}
            }
            if asked {
                return Ok(());
            }
        }
    };
    match tokio::time::timeout(STAY, talking).await {
        Ok(done) => done,
        Err(_) if identified => Ok(()),
        Err(_) => anyhow::bail!("not answered"),
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let stage = Stage::new();
    let entry = stage.entry_node("entry").start().await;
    let address: Multiaddr = entry.peer_address().parse()?;
    let (visited, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let places = Arc::new(Semaphore::new(args.at_a_time));
    let started = Instant::now();
    let before = resident_mib(&entry)?;

    let (visits, failures, coming) = (visited.clone(), failed.clone(), args.peers);
    let churn = tokio::spawn(async move {
        let mut guests = JoinSet::new();
        for number in 0..coming {
            let place = places.clone().acquire_owned().await;
            let (address, visits, failures) = (address.clone(), visits.clone(), failures.clone());
            guests.spawn(async move {
                if visit(address, number).await.is_err() {
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
    let status = std::fs::read_to_string(format!("/proc/{}/status", entry.pid()))?;
    let line =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("Linux tells")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}
