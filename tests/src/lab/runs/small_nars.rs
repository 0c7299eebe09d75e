//! Many small nars asked for one after another, as guix does, at some distance: through a node whose
//! only peer holds them ÷ straight to an upstream at the same distance.

use crate::bench::content::{self, Kind, LargeItem};
use crate::bench::report::{Aim, Report};
use crate::bench::run::{in_turn, settle_disks};
use crate::harness::http_client::HttpClient;
use crate::harness::mirror::Mirror;
use crate::harness::node::{Node, Stage};
use crate::harness::upstream::StaticServer;
use crate::lab::host::Host;
use crate::lab::line::{Line, Mbps};
use crate::lab::network::Network;
use anyhow::ensure;
use bytes::Bytes;
use clap::Args;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Sizes of the nars' files in turn, in octets: from a script to a small library, 20 kB on average.
const SIZES: [u64; 8] = [1_000, 3_000, 5_000, 8_000, 12_000, 20_000, 35_000, 76_000];

/// How many there are and how far away.
#[derive(Debug, Clone, Args)]
pub struct SmallArgs {
    /// Items.
    #[arg(long, default_value_t = 500)]
    pub items: usize,
    /// The rate of the peer's line, and of the upstream's.
    #[arg(long, value_name = "MBIT/S", default_value_t = 100.0)]
    pub rate: f64,
    /// Round trip to the peer, and to the upstream.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 40)]
    pub round_trip: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Contestant {
    Direct,
    Narswarm,
}

struct Bench {
    stage: Stage,
    key: PathBuf,
    items: Vec<(LargeItem, Bytes)>,
    home: Host,
    server: StaticServer,
    holder: Node,
    _network: Network,
}

/// Measures both in turn.
///
/// # Errors
/// When a client doesn't get its nars.
pub async fn measure(rounds: u32, args: &SmallArgs) -> anyhow::Result<Report> {
    let mut report = Report::new("bench-swarm small");
    let bench = prepare(args).await?;
    for round in 0..rounds {
        for &who in in_turn(&[Contestant::Direct, Contestant::Narswarm], round) {
            settle_disks().await;
            let took = bench.turn(who, &format!("home-{round}")).await?.as_secs_f64() * 1e3;
            report.sample(format!("{}, all", who.name()), "ms", took);
            report.sample(format!("{}, an item", who.name()), "ms", took / args.items as f64);
            let trips = took / (args.items as u64 * args.round_trip) as f64;
            report.sample(format!("{}, round trips an item", who.name()), "", trips);
        }
    }
    let name = |who: Contestant| format!("{}, all", who.name());
    let aim = Some(Aim::AtMost(0.5));
    report.compare(&name(Contestant::Narswarm), &name(Contestant::Direct), aim);
    report.note(format!(
        "{} nars of {} kB on average, one after another over one connection, the narinfos asked for \
         in one write before; the only peer, which holds all, and the upstream each at {} Mbit/s \
         and {} ms of round trip; a new node each time",
        args.items,
        SIZES.iter().sum::<u64>() / SIZES.len() as u64 / 1000,
        args.rate,
        args.round_trip
    ));
    Ok(report)
}

async fn prepare(args: &SmallArgs) -> anyhow::Result<Bench> {
    let stage = Stage::new();
    let mirror = Mirror::create(stage.path("mirror"), 1);
    let mut items = Vec::new();
    for number in 0..args.items {
        let name = format!("small-{number:04}");
        let size = SIZES[number % SIZES.len()];
        let item = content::add(&mirror, &name, &Kind::Typical, size)?;
        let nar = Bytes::from(std::fs::read(&item.file)?);
        items.push((item, nar));
    }
    let mut network = Network::new();
    let home = network.add(Line::of(20.0, 100.0));
    let delay = Duration::from_millis(args.round_trip);
    let away = || Line { up: Some(Mbps(args.rate)), ..Line::free() }.far(delay);
    let (far, elsewhere) = (network.add(away()), network.add(away()));
    let address = SocketAddr::from((far.address(), 80));
    let server = StaticServer::start_on(far.namespace().listen(address)?, mirror.root())?;
    let key = mirror.key_file();
    stage.import("holder", &key, &[mirror.root()]).await.well();
    let holder = stage.node("holder").on(&elsewhere).acl(&key).start().await;
    Ok(Bench { stage, key, items, home, server, holder, _network: network })
}

impl Bench {
    async fn turn(&self, who: Contestant, name: &str) -> anyhow::Result<Duration> {
        if who == Contestant::Direct {
            return self.fetch(self.server.address()).await;
        }
        let spec = self.stage.node(name).on(&self.home).acl(&self.key);
        let node = spec.bootstrap(self.holder.peer_address()).start().await;
        node.has_peers(1).await;
        let took = self.fetch(node.http()).await?;
        ensure!(node.status().await.bytes.from_peers > 0, "somebody else had them");
        let folder = node.data_dir().to_owned();
        node.terminate().await;
        std::fs::remove_dir_all(folder)?;
        Ok(took)
    }

    /// All nars, one after another, over one connection; the narinfos are asked for before the clock
    /// starts.
    async fn fetch(&self, server: SocketAddr) -> anyhow::Result<Duration> {
        let mut client = HttpClient::connect_in(self.home.namespace(), server).await?;
        let paths: Vec<_> = self.items.iter().map(|(item, _)| item.narinfo_path()).collect();
        let burst = client.pipeline(&paths).await?;
        ensure!(burst.replies.iter().all(|reply| reply.head.status == 200), "narinfos are missing");
        let start = Instant::now();
        for (item, nar) in &self.items {
            let reply = client.get(&item.nar_path()).await?;
            ensure!(reply.head.status == 200 && reply.body == *nar, "not the nar of {}", item.item);
        }
        Ok(start.elapsed())
    }
}

impl Contestant {
    fn name(self) -> &'static str {
        match self {
            Self::Direct => "straight",
            Self::Narswarm => "narswarm",
        }
    }
}
