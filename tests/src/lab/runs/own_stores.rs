//! A nar straight from a machine's own store, over lines of several rates, to a node that is elsewhere
//! ÷ the same nar as it is, from a plain server over the same line. The store's files aren't
//! compressed, so on a slow line compressing them on the way is what saves time.

use crate::bench::content::{self, Kind};
use crate::bench::process::Meter;
use crate::bench::report::{Aim, Report};
use crate::bench::run::{in_turn, settle_disks};
use crate::harness::guix_store::GuixStore;
use crate::harness::holding::Holding;
use crate::harness::http_client::HttpClient;
use crate::harness::node::{Node, Stage};
use crate::harness::upstream::StaticServer;
use crate::harness::waiting::until;
use crate::lab::host::Host;
use crate::lab::line::{Line, Mbps};
use crate::lab::network::Network;
use anyhow::ensure;
use clap::Args;
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// What is moved, and over which lines.
#[derive(Debug, Clone, Args)]
pub struct OwnStoreArgs {
    /// Size of the file, in mebibytes; half of it is noise, half zeros, in short runs.
    #[arg(long, value_name = "MIB", default_value_t = 32)]
    pub size: u64,
    /// The rates of the holder's line.
    #[arg(long, value_name = "MBIT/S", value_delimiter = ',', default_values_t = [20.0, 100.0, 1000.0])]
    pub rates: Vec<f64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Contestant {
    Plain,
    Narswarm,
}

impl Contestant {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "as it is, from a plain server",
            Self::Narswarm => "from the store",
        }
    }
}

/// Measures it again and again.
///
/// # Errors
/// When a client doesn't get the nar.
pub async fn measure(rounds: u32, args: &OwnStoreArgs) -> anyhow::Result<Report> {
    let mut report = Report::new("bench-swarm own-store");
    let octets = content::octets(&Kind::Typical, args.size << 20)?;
    for &rate in &args.rates {
        let line = Line { up: Some(Mbps(rate)), ..Line::free() };
        let bench = Bench::prepare(line, &octets).await?;
        let name = |who: Contestant| format!("{rate} Mbit/s, {}", who.name());
        for round in 0..rounds {
            for &who in in_turn(&[Contestant::Plain, Contestant::Narswarm], round) {
                settle_disks().await;
                let processor = Meter::start(bench.holder.pid())?;
                let before = bench.holder.status().await.bytes.to_peers;
                let took = bench.turn(who, &format!("home-{round}")).await?;
                report.sample(name(who), "s", took.as_secs_f64());
                if who == Contestant::Narswarm {
                    let sent = bench.holder.status().await.bytes.to_peers - before;
                    let sent = sent as f64 / bench.holding.nar_size() as f64;
                    report.sample(format!("{rate} Mbit/s, sent ÷ nar"), "", sent);
                    let busy = processor.read()?.cpu_s / took.as_secs_f64();
                    report.sample(format!("{rate} Mbit/s, holder's processor"), "cores", busy);
                }
            }
        }
        let aim = Some(Aim::AtMost(1.05));
        report.compare(&name(Contestant::Narswarm), &name(Contestant::Plain), aim);
    }
    report.note(format!(
        "{} MiB of which every other run of 64 octets is noise; one holder, whose line is shaped; a \
         new node each time",
        args.size
    ));
    Ok(report)
}

struct Bench {
    stage: Stage,
    store: GuixStore,
    holding: Holding,
    home: Host,
    server: StaticServer,
    holder: Node,
    _network: Network,
}

impl Bench {
    async fn prepare(line: Line, octets: &[u8]) -> anyhow::Result<Self> {
        let stage = Stage::new();
        let store = GuixStore::create(stage.path("guix"), 1);
        let holding = store.add("large", |path| fs::write(path, octets).expect("a file"));
        store.cache_narinfo(&holding);
        store.publish(&holding, true);
        let mut network = Network::new();
        let (home, far) = (network.add(Line::free()), network.add(line));
        let address = SocketAddr::from((far.address(), 80));
        let server = StaticServer::start_on(far.namespace().listen(address)?, store.mirror())?;
        let holder = store.shared_by(stage.node("holder").on(&far)).start().await;
        until("the store to be shared", async || holder.status().await.items.store == 1).await;
        Ok(Self { stage, store, holding, home, server, holder, _network: network })
    }

    async fn turn(&self, who: Contestant, name: &str) -> anyhow::Result<Duration> {
        if who == Contestant::Plain {
            return self.fetch(self.server.address()).await;
        }
        let node = self.store.known_to(self.stage.node(name).on(&self.home));
        let node = node.bootstrap(self.holder.peer_address()).start().await;
        node.has_peers(1).await;
        let took = self.fetch(node.http()).await?;
        ensure!(node.status().await.bytes.from_peers > 0, "somebody else had it");
        let folder = node.data_dir().to_owned();
        node.terminate().await;
        fs::remove_dir_all(folder)?;
        Ok(took)
    }

    async fn fetch(&self, server: SocketAddr) -> anyhow::Result<Duration> {
        let mut client = HttpClient::connect_in(self.home.namespace(), server).await?;
        let narinfo = client.get(&self.holding.narinfo_path()).await?;
        ensure!(narinfo.head.status == 200, "the narinfo is missing");
        let start = Instant::now();
        let reply = client.get(&self.holding.nar_path()).await?;
        let took = start.elapsed();
        ensure!(reply.head.status == 200 && reply.body == *self.holding.nar(), "not the nar");
        Ok(took)
    }
}
