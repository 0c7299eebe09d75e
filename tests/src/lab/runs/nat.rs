//! The NAT matrix (T14): a nar moves between two hosts, each behind a router of some kind, straight
//! wherever two such routers let it, through a relay otherwise, and always.
//!
//! Each meeting has an Internet of its own with two public nodes, which are where everybody enters,
//! which try addresses, relay, and keep the DHT. They are ordinary nodes. Whether a nar went straight
//! is read from the counters of the public nodes' interfaces, not from what programs say.

use crate::bench::content::{self, Kind, LargeItem};
use crate::bench::report::{Aim, Report};
use crate::harness::mirror::Mirror;
use crate::harness::node::{Node, Stage};
use crate::lab::client;
use crate::lab::host::Host;
use crate::lab::line::Line;
use crate::lab::nat::{Home, NatKind, PORT, settle};
use crate::lab::network::Network;
use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use clap::Args;
use comfy_table::{Table, presets};
use futures::{FutureExt, StreamExt, stream};
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// What is moved, between whom.
#[derive(Debug, Clone, Args)]
pub struct NatArgs {
    /// Size of the nar, in kilobytes (10^3 octets), of noise.
    #[arg(long, value_name = "KB", default_value_t = 2000)]
    pub size: u64,
    /// Round trip between any two lines.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 40)]
    pub round_trip: u64,
    /// Only these kinds of NAT, on both sides [default: all].
    #[arg(long, value_delimiter = ',', value_name = "KIND")]
    pub only: Vec<NatKind>,
    /// Meetings that go on at once.
    #[arg(long, default_value_t = 3)]
    pub at_once: usize,
}

/// How long a node may take to know where it stands.
const STANDING: Duration = Duration::from_secs(30);

/// How long an item may take to be found.
const FINDING: Duration = Duration::from_secs(60);

/// How long the nar may take: 2 MB through a relay take a second.
const FETCHING: Duration = Duration::from_secs(120);

/// How often conditions are looked at.
const INTERVAL: Duration = Duration::from_millis(100);

/// How a nar came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// From the holder to the asker.
    Straight,
    /// Through a public node.
    Relayed,
}

/// A meeting that went well.
#[derive(Debug, Clone)]
pub struct Met {
    /// How the nar came.
    pub path: Path,
    /// From the request for the nar to its last octet.
    pub took: Duration,
    /// How often the client had to ask again.
    pub cuts: u32,
    /// What the holder and the asker said of their NATs.
    pub nats: [String; 2],
}

/// What a nar is made of and where it lies.
pub struct Meetings {
    stage: Stage,
    key: PathBuf,
    mirror: Mirror,
    item: LargeItem,
    nar: Bytes,
    line: Line,
}

/// Two public nodes and their hosts.
struct Public {
    hosts: Vec<Host>,
    nodes: Vec<Node>,
}

impl Meetings {
    /// Makes a nar of this many octets, for hosts with lines of this kind.
    ///
    /// # Errors
    /// What the file system says.
    pub fn prepare(nar_bytes: u64, line: Line) -> anyhow::Result<Self> {
        let stage = Stage::new();
        let mirror = Mirror::create(stage.path("mirror"), 1);
        let item = content::add(&mirror, "met", &Kind::Incompressible, nar_bytes)?;
        let nar = std::fs::read(&item.file)?.into();
        Ok(Self { key: mirror.key_file(), stage, mirror, item, nar, line })
    }

    /// Has a host behind `asker` fetch the nar from one behind `holder`; nobody has been there before
    /// in this round.
    ///
    /// # Errors
    /// When it doesn't get it, and what everybody has logged.
    pub async fn meet(&self, round: u32, holder: NatKind, asker: NatKind) -> anyhow::Result<Met> {
        let name = format!("{round}-{holder:?}-{asker:?}");
        let imported = format!("{name}-holder");
        self.stage.import(&imported, &self.key, &[self.mirror.root()]).await.well();
        let mut network = Network::internet();
        let public = self.public(&mut network, &name).await?;
        let homes = [holder, asker].map(|kind| settle(&mut network, kind, self.line));
        let mut entries: Vec<String> =
            public.nodes.iter().map(|node| node.peer_address().to_owned()).collect();
        let holder = self.enter(&imported, &homes[0], &entries, &public).await?;
        // The asker is told where the holder is, as its user might be: how peers are found in the
        // DHT is another matter.
        let status = holder.status().await;
        entries.extend(status.external.iter().map(|at| with_peer(at, &status.peer_id)));
        let asker = self.enter(&format!("{name}-asker"), &homes[1], &entries, &public).await?;
        let met = self.fetch(&holder, &asker, &public).await;
        met.with_context(|| {
            let logs = [("holder", &holder), ("asker", &asker), ("public", &public.nodes[0])];
            let logs = logs.map(|(who, node)| format!("--- {who}\n{}", tail(&node.log())));
            format!("{name} failed\n{}", logs.join("\n"))
        })
    }

    async fn public(&self, network: &mut Network, name: &str) -> anyhow::Result<Public> {
        let mut public = Public { hosts: network.add_many(2, self.line), nodes: Vec::new() };
        for (number, host) in public.hosts.iter().enumerate() {
            let spec = self.stage.node(&format!("{name}-public{number}")).on(host).port(PORT);
            let first = public.nodes.first().map(Node::peer_address);
            let spec = first.into_iter().fold(spec.acl(&self.key), |spec, at| spec.bootstrap(at));
            public.nodes.push(spec.start().await);
        }
        Ok(public)
    }

    /// Starts a node in a home, and waits until it knows how others reach it.
    async fn enter(
        &self,
        name: &str,
        home: &Home,
        entries: &[String],
        public: &Public,
    ) -> anyhow::Result<Node> {
        let spec = self.stage.node(name).on(&home.inside).port(PORT).acl(&self.key);
        let node = entries.iter().fold(spec, |spec, at| spec.bootstrap(at)).start().await;
        let known = async |node: &Node| {
            let status = node.status().await;
            status.peers.connected >= 2 && !status.external.is_empty() && status.nat != "unknown"
        };
        let deadline = Instant::now() + STANDING;
        while !known(&node).await {
            if Instant::now() > deadline {
                let status = node.status().await;
                bail!(
                    "after {STANDING:?} a node says nat {}, external {:?}, {} peers\n{}\n{}",
                    status.nat,
                    status.external,
                    status.peers.connected,
                    tail(&node.log()),
                    tail(&public.nodes[0].log())
                );
            }
            sleep(INTERVAL).await;
        }
        Ok(node)
    }

    async fn fetch(&self, holder: &Node, asker: &Node, public: &Public) -> anyhow::Result<Met> {
        let deadline = Instant::now() + FINDING;
        loop {
            let mut client = asker.connect().await?;
            if client.get(&self.item.narinfo_path()).await?.head.status == 200 {
                break;
            }
            ensure!(Instant::now() < deadline, "the narinfo isn't found");
            sleep(INTERVAL).await;
        }
        let carried = || -> u64 { public.hosts.iter().map(|host| host.carried().sent).sum() };
        let (start, before) = (Instant::now(), carried());
        let fetching = client::fetch_at_last(asker, &self.item, &self.nar, start);
        let fetched =
            tokio::time::timeout(FETCHING, fetching).await.context("no nar in time")??;
        ensure!(fetched.wrong == 0, "{} octets are wrong", fetched.wrong);
        // What nodes say to each other meanwhile takes some kilobytes.
        let relayed = carried() - before > self.item.nar_bytes / 2;
        let nats = [holder.status().await.nat, asker.status().await.nat];
        let path = if relayed { Path::Relayed } else { Path::Straight };
        Ok(Met { path, took: fetched.took, cuts: fetched.cuts, nats })
    }
}

/// An address that ends with the peer id.
fn with_peer(address: &str, peer: &str) -> String {
    if address.ends_with(peer) { address.to_owned() } else { format!("{address}/p2p/{peer}") }
}

fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

impl fmt::Display for Met {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = match self.path {
            Path::Straight => "direct",
            Path::Relayed => "relayed",
        };
        write!(f, "{path}, {:.1} s", self.took.as_secs_f64())?;
        if self.cuts > 0 { write!(f, ", {} cuts", self.cuts) } else { Ok(()) }
    }
}

/// Has everybody meet everybody, once a round.
///
/// # Errors
/// When the nar can't be made; meetings that fail are counted.
pub async fn measure(rounds: u32, args: &NatArgs) -> anyhow::Result<Report> {
    let mut report = Report::new("bench-swarm nat");
    let line = Line::free().far(Duration::from_millis(args.round_trip) / 2);
    let meetings = Meetings::prepare(args.size * 1000, line)?;
    let kinds = if args.only.is_empty() { NatKind::ALL.to_vec() } else { args.only.clone() };
    let pairs: Vec<_> = kinds.iter().flat_map(|&h| kinds.iter().map(move |&a| (h, a))).collect();
    for round in 0..rounds {
        let meeting = async |(holder, asker)| {
            // A node that doesn't start is a panic, and the others go on.
            let met = AssertUnwindSafe(meetings.meet(round, holder, asker)).catch_unwind().await;
            (holder, asker, met.unwrap_or_else(|_| Err(anyhow::anyhow!("panicked"))))
        };
        let met: Vec<_> =
            stream::iter(pairs.clone()).map(meeting).buffer_unordered(args.at_once).collect().await;
        let (mut failed, mut missed) = (0, 0);
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(
            std::iter::once("holder ↓ asker →").chain(kinds.iter().map(|kind| kind.name())),
        );
        for &holder in &kinds {
            let mut row = vec![holder.name().to_owned()];
            for &asker in &kinds {
                let found = met.iter().find(|(h, a, _)| (*h, *a) == (holder, asker));
                let (_, _, outcome) = found.context("everybody has met")?;
                row.push(match outcome {
                    Ok(met) => {
                        let what = format!("{} → {}", holder.name(), asker.name());
                        report.sample(what, "ms", met.took.as_secs_f64() * 1e3);
                        missed += u32::from(met.path == Path::Relayed && holder.can_meet(asker));
                        format!("{met} ({} → {})", met.nats[0], met.nats[1])
                    }
                    Err(error) => {
                        failed += 1;
                        eprintln!("{error:#}");
                        "FAILED".to_owned()
                    }
                });
            }
            table.add_row(row);
        }
        report.sample("failed", "meetings", f64::from(failed));
        report.sample("relayed though they could meet", "meetings", f64::from(missed));
        report.note(format!("round {round}\n{table}"));
    }
    report.aim("failed", Aim::AtMost(0.0));
    report.aim("relayed though they could meet", Aim::AtMost(0.0));
    report.note(format!(
        "{} kB from the request for the nar to its last octet; round trips of {} ms; in brackets what \
         the nodes say of their NATs",
        args.size, args.round_trip
    ));
    Ok(report)
}
