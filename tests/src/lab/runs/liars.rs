//! Among many sources, some send what isn't the nar, or tell of another nar's pieces (T9).

use crate::bench::content::{self, Kind, LargeItem};
use crate::bench::report::{Aim, Report};
use crate::bench::run::{in_turn, settle_disks};
use crate::harness::holding::{Holding, read_mirror};
use crate::harness::liar::{Liar, Lie};
use crate::harness::mirror::Mirror;
use crate::harness::node::{Node, Stage};
use crate::lab::client;
use crate::lab::line::Line;
use crate::lab::namespace::Runtime;
use crate::lab::network::Network;
use anyhow::ensure;
use bytes::Bytes;
use clap::Args;
use futures::future::join_all;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// Who is there, and by which lines.
#[derive(Debug, Clone, Args)]
pub struct LiarArgs {
    /// Sources.
    #[arg(long, default_value_t = 10)]
    pub sources: usize,
    /// How many of them lie.
    #[arg(long, default_value_t = 3)]
    pub liars: usize,
    /// Size of the nar, in megabytes (10^6 octets), of noise.
    #[arg(long, value_name = "MB", default_value_t = 64)]
    pub size: u64,
    /// Each source's rate up.
    #[arg(long, value_name = "MBIT/S", default_value_t = 20.0)]
    pub up: f64,
    /// The asker's rate down.
    #[arg(long, value_name = "MBIT/S", default_value_t = 100.0)]
    pub down: f64,
}

/// What those lie about who lie; the first is the measure of the others.
const LIES: [(&str, &[Lie]); 4] = [
    ("nobody lies", &[Lie::Honest]),
    ("bad pieces", &[Lie::BadPieces]),
    ("false piece lists", &[Lie::OtherNar]),
    ("all kinds", &[Lie::BadPieces, Lie::OtherNar, Lie::BrokenFrames]),
];

struct Bench {
    args: LiarArgs,
    stage: Stage,
    key: PathBuf,
    item: LargeItem,
    nar: Bytes,
    holdings: Arc<[Holding]>,
}

/// What one transfer took.
struct Taken {
    seconds: f64,
    wrong: u64,
    cuts: u32,
    /// Octets of content that the node says it has received from peers.
    got: u64,
    /// Octets that its line has carried down.
    carried: u64,
    /// Pieces that those who lie were asked for.
    asked: usize,
}

/// Measures all lies in turn.
///
/// # Errors
/// When a client doesn't get its nar.
pub async fn measure(rounds: u32, args: &LiarArgs) -> anyhow::Result<Report> {
    ensure!(args.liars < args.sources, "somebody must tell the truth");
    let mut report = Report::new("bench-swarm liars");
    let bench = Bench::prepare(args).await?;
    for round in 0..rounds {
        for (number, (name, lies)) in in_turn(&LIES.iter().enumerate().collect::<Vec<_>>(), round) {
            settle_disks().await;
            let taken = bench.transfer(lies, &format!("asker-{round}-{number}")).await?;
            let bytes = bench.item.nar_bytes as f64;
            report.sample(format!("{name}: all"), "s", taken.seconds);
            report.sample(format!("{name}: wrong octets"), "", taken.wrong as f64);
            report.sample(format!("{name}: clients cut off"), "", f64::from(taken.cuts));
            let waste = (taken.got as f64 / bytes - 1.0) * 100.0;
            report.sample(format!("{name}: waste"), "%", waste);
            let carried = (taken.carried as f64 / bytes - 1.0) * 100.0;
            report.sample(format!("{name}: line beyond the nar"), "%", carried);
            report.sample(format!("{name}: pieces asked of them"), "", taken.asked as f64);
        }
    }
    for (name, _) in &LIES[1..] {
        let reference = format!("{}: all", LIES[0].0);
        report.compare(&format!("{name}: all"), &reference, Some(Aim::AtMost(1.3)));
        report.aim(&format!("{name}: wrong octets"), Aim::AtMost(0.0));
        report.aim(&format!("{name}: waste"), Aim::AtMost(3.0));
    }
    report.note(format!(
        "{} MB from {} sources, {} of which lie, {} Mbit/s up each, to one asker with {} down",
        args.size, args.sources, args.liars, args.up, args.down
    ));
    Ok(report)
}

impl Bench {
    async fn prepare(args: &LiarArgs) -> anyhow::Result<Self> {
        let stage = Stage::new();
        let mirror = Mirror::create(stage.path("mirror"), 1);
        let item = content::add(&mirror, "wanted", &Kind::Incompressible, args.size * 1_000_000)?;
        let key = mirror.key_file();
        for number in args.liars..args.sources {
            stage.import(&format!("source-{number}"), &key, &[mirror.root()]).await.well();
        }
        let holdings = read_mirror(mirror.root(), &mirror.acl());
        let nar = holdings[0].nar().clone();
        Ok(Self { args: args.clone(), stage, key, item, nar, holdings: holdings.into() })
    }

    async fn transfer(&self, lies: &[Lie], name: &str) -> anyhow::Result<Taken> {
        let mut network = Network::new();
        let line = Line::of(self.args.up, self.args.down);
        let hosts = network.add_many(self.args.sources, line);
        let home = network.add(line);
        let mut liars = Vec::new();
        for (number, host) in hosts[..self.args.liars].iter().enumerate() {
            let (runtime, holdings) = (host.namespace().runtime(), self.holdings.clone());
            let (address, lie) = (host.address(), lies[number % lies.len()]);
            let start = async move { Liar::start_at(address, lie, &holdings).await };
            liars.push((runtime.run(start).await, runtime));
        }
        let starting = hosts.iter().enumerate().skip(self.args.liars).map(|(number, host)| {
            self.stage.node(&format!("source-{number}")).on(host).acl(&self.key).start()
        });
        let honest = join_all(starting).await;
        let mut asker = self.stage.node(name).on(&home).acl(&self.key);
        for address in addresses(&liars, &honest) {
            asker = asker.bootstrap(&address);
        }
        let asker = asker.start().await;
        asker.has_peers(self.args.sources as u64).await;
        let narinfo = asker.connect().await?.get(&self.item.narinfo_path()).await?;
        ensure!(narinfo.head.status == 200, "nobody has a narinfo of {}", self.item.item);
        let (start, before) = (Instant::now(), home.carried());
        let fetched = client::fetch_at_last(&asker, &self.item, &self.nar, start).await?;
        let carried = home.carried().since(before).received;
        let got = asker.status().await.bytes.from_peers;
        let asked = liars.iter().map(|(liar, _)| liar.seen().pieces()).sum();
        let folder = asker.data_dir().to_owned();
        asker.terminate().await;
        std::fs::remove_dir_all(folder)?;
        join_all(honest.into_iter().map(Node::terminate)).await;
        for (liar, runtime) in liars {
            runtime.run(liar.stop()).await;
        }
        let (wrong, cuts) = (fetched.wrong, fetched.cuts);
        Ok(Taken { seconds: fetched.took.as_secs_f64(), wrong, cuts, got, carried, asked })
    }
}

fn addresses(liars: &[(Liar, Runtime)], honest: &[Node]) -> Vec<String> {
    let liars = liars.iter().map(|(liar, _)| liar.address());
    liars.chain(honest.iter().map(|node| node.peer_address().to_owned())).collect()
}
