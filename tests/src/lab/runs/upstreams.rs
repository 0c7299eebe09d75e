//! A swarm in which nobody has what is wanted, before an upstream at some distance: through a node
//! ÷ straight to that upstream (T7).

use crate::bench::content::{self, Kind, LargeItem};
use crate::bench::report::{Aim, Report};
use crate::bench::run::{in_turn, settle_disks};
use crate::harness::http_client::HttpClient;
use crate::harness::mirror::Mirror;
use crate::harness::node::{Node, Stage};
use crate::harness::upstream::StaticServer;
use crate::lab::client::{self, Fetched};
use crate::lab::host::Host;
use crate::lab::line::Line;
use crate::lab::network::Network;
use anyhow::ensure;
use bytes::Bytes;
use clap::Args;
use futures::future::join_all;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What the upstream is like, and who else is there.
#[derive(Debug, Clone, Args)]
pub struct UpstreamArgs {
    /// Sizes of the nars, in kilobytes (10^3 octets), of noise.
    #[arg(long, value_name = "KB,…", value_delimiter = ',', default_values_t = [100, 32_000])]
    pub sizes: Vec<u64>,
    /// The upstream's rate.
    #[arg(long, value_name = "MBIT/S", default_value_t = 20.0)]
    pub rate: f64,
    /// Round trip to the upstream.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 40)]
    pub round_trip: u64,
    /// Connected peers that hold nothing.
    #[arg(long, default_value_t = 3)]
    pub peers: usize,
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
    peers: Vec<Node>,
    _network: Network,
}

/// Measures both in turn.
///
/// # Errors
/// When a client doesn't get its nar.
pub async fn measure(rounds: u32, args: &UpstreamArgs) -> anyhow::Result<Report> {
    let mut report = Report::new("bench-swarm upstream");
    let bench = prepare(args).await?;
    let turns: Vec<_> = (0..bench.items.len())
        .flat_map(|number| [Contestant::Direct, Contestant::Narswarm].map(|who| (number, who)))
        .collect();
    for round in 0..rounds {
        let mut firsts = vec![0.0; bench.items.len()];
        for &(number, who) in in_turn(&turns, round) {
            settle_disks().await;
            let name = format!("home-{round}-{number}");
            let fetched = bench.turn(&bench.items[number], who, &name).await?;
            let what = format!("{} kB: {}", args.sizes[number], who.name());
            let first = fetched.first.as_secs_f64() * 1e3;
            firsts[number] += if who == Contestant::Narswarm { first } else { -first };
            report.sample(format!("{what}, first"), "ms", first);
            report.sample(format!("{what}, all"), "ms", fetched.took.as_secs_f64() * 1e3);
        }
        for (size, more) in args.sizes.iter().zip(firsts) {
            report.sample(format!("{size} kB: first later by"), "ms", more);
        }
    }
    for size in &args.sizes {
        for (what, aim) in [("all", Some(Aim::AtMost(1.05))), ("first", None)] {
            let name = |who: Contestant| format!("{size} kB: {}, {what}", who.name());
            report.compare(&name(Contestant::Narswarm), &name(Contestant::Direct), aim);
        }
    }
    report.note(format!(
        "from the connection over the narinfo to the nar's first and last octet; upstream at {} \
         Mbit/s and {} ms of round trip; {} peers are connected and hold nothing; a new node each \
         time",
        args.rate, args.round_trip, args.peers
    ));
    Ok(report)
}

async fn prepare(args: &UpstreamArgs) -> anyhow::Result<Bench> {
    let stage = Stage::new();
    let mirror = Mirror::create(stage.path("mirror"), 1);
    let mut items = Vec::new();
    for size in &args.sizes {
        let name = format!("far-{size}");
        let item = content::add(&mirror, &name, &Kind::Incompressible, size * 1000)?;
        let nar = Bytes::from(std::fs::read(&item.file)?);
        items.push((item, nar));
    }
    let mut network = Network::new();
    let home = network.add(Line::of(20.0, 100.0));
    let away = Line { up: Some(crate::lab::line::Mbps(args.rate)), ..Line::free() };
    let far = network.add(away.far(Duration::from_millis(args.round_trip)));
    let address = SocketAddr::from((far.address(), 80));
    let server = StaticServer::start_on(far.namespace().listen(address)?, mirror.root())?;
    let key = mirror.key_file();
    let hosts = network.add_many(args.peers, Line::of(20.0, 100.0));
    let starting = hosts
        .iter()
        .enumerate()
        .map(|(number, host)| stage.node(&format!("idle-{number}")).on(host).acl(&key).start());
    let peers = join_all(starting).await;
    Ok(Bench { stage, key, items, home, server, peers, _network: network })
}

impl Bench {
    async fn turn(
        &self,
        (item, nar): &(LargeItem, Bytes),
        who: Contestant,
        name: &str,
    ) -> anyhow::Result<Fetched> {
        if who == Contestant::Direct {
            return self.fetch(self.server.address(), item, nar).await;
        }
        let mut spec = self.stage.node(name).on(&self.home).acl(&self.key);
        for peer in &self.peers {
            spec = spec.bootstrap(peer.peer_address());
        }
        let node = spec.upstream(&self.server.url()).start().await;
        node.has_peers(self.peers.len() as u64).await;
        let fetched = self.fetch(node.http(), item, nar).await?;
        let from_upstream = node.status().await.bytes.from_upstream;
        ensure!(from_upstream > 0, "somebody else had it");
        let folder = node.data_dir().to_owned();
        node.terminate().await;
        std::fs::remove_dir_all(folder)?;
        Ok(fetched)
    }

    /// What guix does: the narinfo, and then the nar, over one connection.
    async fn fetch(
        &self,
        server: SocketAddr,
        item: &LargeItem,
        nar: &Bytes,
    ) -> anyhow::Result<Fetched> {
        let start = Instant::now();
        let mut client = HttpClient::connect_in(self.home.namespace(), server).await?;
        let narinfo = client.get(&item.narinfo_path()).await?;
        ensure!(narinfo.head.status == 200, "no narinfo of {}", item.item);
        let fetched = client::fetch(&mut client, item, nar, start, |_| ()).await?;
        ensure!(fetched.wrong == 0, "{} wrong octets of {}", fetched.wrong, item.item);
        Ok(fetched)
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
