//! Of two sources, one vanishes in mid-transfer: it freezes, is killed, or its line is cut; or both
//! freeze, and there is an upstream (T8).
//!
//! Either source alone, and the upstream, fills the asker's line, so a perfect asker loses no time.

use crate::bench::content::{self, Kind, LargeItem};
use crate::bench::report::{Aim, Report};
use crate::bench::run::{in_turn, settle_disks};
use crate::harness::mirror::Mirror;
use crate::harness::node::{Node, Stage};
use crate::harness::upstream::StaticServer;
use crate::lab::client::{self, Fetched};
use crate::lab::host::Host;
use crate::lab::line::Line;
use crate::lab::network::Network;
use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::Args;
use rustix::process::Signal;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// What is moved, and by which lines.
#[derive(Debug, Clone, Args)]
pub struct LostArgs {
    /// Size of the nar, in megabytes (10^6 octets), of noise.
    #[arg(long, value_name = "MB", default_value_t = 32)]
    pub size: u64,
    /// Each source's rate up, and the asker's down.
    #[arg(long, value_name = "MBIT/S", default_value_t = 40.0)]
    pub rate: f64,
    /// Round trip between any two of them.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0)]
    pub round_trip: u64,
}

/// What happens to a source when half of the nar has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// Nothing.
    Undisturbed,
    /// It is stopped: its connections stay, and nothing comes.
    Frozen,
    /// It is killed: its connections are reset.
    Killed,
    /// Its line is cut: nothing comes, and nothing that is sent to it is confirmed.
    CutOff,
    /// Both sources are stopped, and there is an upstream.
    AllFrozen,
}

const ALL: [Mishap; 5] =
    [Mishap::Undisturbed, Mishap::Frozen, Mishap::Killed, Mishap::CutOff, Mishap::AllFrozen];

impl Mishap {
    fn name(self) -> &'static str {
        match self {
            Self::Undisturbed => "undisturbed",
            Self::Frozen => "source frozen",
            Self::Killed => "source killed",
            Self::CutOff => "source cut off",
            Self::AllFrozen => "both frozen, upstream alive",
        }
    }

    /// Lets it happen to the source `which`.
    fn strike(self, nodes: &[Node; 2], hosts: &[Host; 2], which: usize) {
        match self {
            Self::Undisturbed => {}
            Self::Frozen => nodes[which].signal(Signal::STOP),
            Self::Killed => nodes[which].signal(Signal::KILL),
            Self::CutOff => hosts[which].cut_off(),
            Self::AllFrozen => nodes.iter().for_each(|node| node.signal(Signal::STOP)),
        }
    }
}

/// Two sources that hold the item, and how to put an asker before them.
pub struct Sources {
    stage: Stage,
    mirror: Mirror,
    item: LargeItem,
    nar: Bytes,
    line: Line,
}

/// How a transfer went in which something happened.
#[derive(Debug, Clone, Copy)]
pub struct Lost {
    /// The transfer as the client saw it.
    pub fetched: Fetched,
    /// Octets that came from each source before, with all headers.
    pub sent_before: [u64; 2],
}

/// Measures all mishaps in turn.
///
/// # Errors
/// When a client doesn't get its nar.
pub async fn measure(rounds: u32, args: &LostArgs) -> anyhow::Result<Report> {
    let mut report = Report::new("bench-swarm lost-source");
    let line = Line::of(args.rate, args.rate);
    let line = line.far(Duration::from_millis(args.round_trip) / 2);
    let sources = Sources::prepare(args.size * 1_000_000, line).await?;
    for round in 0..rounds {
        let mut took = Vec::new();
        for &mishap in in_turn(&ALL, round) {
            settle_disks().await;
            let lost = sources.transfer(mishap, &format!("asker-{round}-{mishap:?}")).await?;
            let (name, fetched) = (mishap.name(), lost.fetched);
            eprintln!("{name}: {lost:?}");
            report.sample(format!("{name}: all"), "s", fetched.took.as_secs_f64());
            let silence = fetched.longest_silence.as_secs_f64();
            report.sample(format!("{name}: longest silence"), "s", silence);
            report.sample(format!("{name}: wrong octets"), "", fetched.wrong as f64);
            took.push((mishap, fetched.took.as_secs_f64()));
        }
        let of = |mishap| took.iter().find(|(known, _)| *known == mishap).map(|(_, took)| *took);
        let undisturbed = of(Mishap::Undisturbed).context("it had its turn")?;
        for mishap in &ALL[1..] {
            let extra = of(*mishap).context("it had its turn")? - undisturbed;
            report.sample(format!("{}: extra", mishap.name()), "s", extra);
        }
    }
    for mishap in &ALL[1..] {
        // An upstream's stream begins at the head, so what came before comes again.
        if *mishap != Mishap::AllFrozen {
            report.aim(&format!("{}: extra", mishap.name()), Aim::AtMost(1.0));
        }
        report.aim(&format!("{}: wrong octets", mishap.name()), Aim::AtMost(0.0));
    }
    report.note(format!(
        "{} MB from two sources of {} Mbit/s to one asker of as much, round trip {} ms; at half of \
         it, the source that has sent more is lost, or both; the client has seen one whole answer \
         each time",
        args.size, args.rate, args.round_trip
    ));
    Ok(report)
}

impl Sources {
    /// Has an item of `bytes` of noise put into the data of two nodes.
    ///
    /// # Errors
    /// When it can't be made.
    pub async fn prepare(bytes: u64, line: Line) -> anyhow::Result<Self> {
        let stage = Stage::new();
        let mirror = Mirror::create(stage.path("mirror"), 1);
        let item = content::add(&mirror, "twice", &Kind::Incompressible, bytes)?;
        for name in ["source-0", "source-1"] {
            stage.import(name, &mirror.key_file(), &[mirror.root()]).await.well();
        }
        let nar = Bytes::from(std::fs::read(&item.file)?);
        Ok(Self { stage, mirror, item, nar, line })
    }

    /// Moves the item to a new node of this name and to its client, with a mishap on the way.
    ///
    /// # Errors
    /// When the client doesn't get it whole, in one answer.
    pub async fn transfer(&self, mishap: Mishap, name: &str) -> anyhow::Result<Lost> {
        let mut network = Network::new();
        let hosts = [network.add(self.line), network.add(self.line)];
        let home = network.add(self.line);
        let key = self.mirror.key_file();
        let [a, b] = ["source-0", "source-1"].map(|name| self.stage.node(name).acl(&key));
        let nodes = [a.on(&hosts[0]).start().await, b.on(&hosts[1]).start().await];
        let mut asker = self.stage.node(name).on(&home).acl(&key);
        for node in &nodes {
            asker = asker.bootstrap(node.peer_address());
        }
        let upstream = (mishap == Mishap::AllFrozen).then(|| self.upstream(&mut network));
        let upstream = upstream.transpose()?;
        if let Some(upstream) = &upstream {
            asker = asker.upstream(&upstream.url());
        }
        let asker = asker.start().await;
        asker.has_peers(2).await;
        let mut client = asker.connect().await?;
        let narinfo = client.get(&self.item.narinfo_path()).await?;
        ensure!(narinfo.head.status == 200, "the sources have no narinfo of {}", self.item.item);
        let (half, mut sent_before) = (self.nar.len() / 2, None);
        let start = Instant::now();
        let fetched = client::fetch(&mut client, &self.item, &self.nar, start, |came| {
            if came >= half && sent_before.is_none() {
                let sent = [hosts[0].carried().sent, hosts[1].carried().sent];
                sent_before = Some(sent);
                let more = usize::from(sent[1] > sent[0]);
                mishap.strike(&nodes, &hosts, more);
            }
        });
        let fetched = fetched.await?;
        let folder = asker.data_dir().to_owned();
        asker.terminate().await;
        std::fs::remove_dir_all(folder)?;
        for node in nodes {
            node.kill().await;
        }
        Ok(Lost { fetched, sent_before: sent_before.context("half of it came")? })
    }

    /// A static server with the same nar, on a line of the same kind.
    fn upstream(&self, network: &mut Network) -> anyhow::Result<StaticServer> {
        let host = network.add(self.line);
        let listener = host.namespace().listen(SocketAddr::from((host.address(), 80)))?;
        Ok(StaticServer::start_on(listener, self.mirror.root())?)
    }
}
