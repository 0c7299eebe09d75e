//! How fast large nars travel: from peer to peer to an HTTP client (T3), beside iroh-blobs and raw
//! TCP; and from a node that holds them to an HTTP client (T4), beside nginx. With what both sides
//! take in memory and processor time.

use anyhow::ensure;
use clap::Parser;
use narswarm_tests::bench::content::{self, Kind, LargeItem};
use narswarm_tests::bench::process::Used;
use narswarm_tests::bench::report::{Aim, Report};
use narswarm_tests::bench::run::{CommonArgs, in_turn, run, settle_disks};
use narswarm_tests::bench::{held, iroh, peers, raw_tcp};
use narswarm_tests::harness::mirror::Mirror;
use narswarm_tests::harness::node::Stage;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Nars from peer to peer to an HTTP client ÷ iroh-blobs ÷ raw TCP; nars held ÷ nginx.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
    /// Sizes of the nars, in megabytes (10^6 octets) [default: 200 MB and 1 GiB].
    #[arg(long, value_name = "MB,…", value_delimiter = ',', default_values_t = [200, 1074])]
    sizes: Vec<u64>,
    /// A file whose octets are a further kind of content, repeated as often as needed.
    #[arg(long, value_name = "FILE")]
    real: Option<PathBuf>,
    /// Only content of this kind: incompressible, typical, real.
    #[arg(long, value_name = "KIND")]
    only: Option<String>,
    /// The comparison program [default: where cargo puts it; left out if it isn't there].
    #[arg(long, value_name = "PROGRAM")]
    iroh: Option<PathBuf>,
    /// Put the peers this far apart; iroh-blobs, on UDP, can't be put apart and is left out.
    #[arg(long, value_name = "MILLISECONDS")]
    round_trip: Option<u64>,
    /// Leave out nars that are held already (T4).
    #[arg(long)]
    no_held: bool,
    /// Leave out transfers between peers (T3).
    #[arg(long)]
    no_peers: bool,
}

/// Who has a turn; numbers are those of the items.
#[derive(Clone, Copy)]
enum Contestant {
    Peers(usize),
    Iroh { number: usize, into_store: bool },
    RawTcp(usize),
}

/// What stands around.
struct Bench {
    stage: Stage,
    mirror: Mirror,
    /// The nars, with what they are called in the report.
    items: Vec<(String, LargeItem)>,
    /// One item of each size, for those to whom content is the same.
    of_each_size: Vec<(String, usize)>,
    iroh: Option<PathBuf>,
    one_way: Option<Duration>,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    run(&args.common, measure(&args))
}

async fn measure(args: &Args) -> anyhow::Result<Report> {
    let mut report = Report::new("bench-transfer");
    let bench = prepare(args).await?;
    let rounds = args.common.rounds;
    if !args.no_peers {
        let contestants = bench.contestants();
        for round in 0..rounds {
            for contestant in in_turn(&contestants, round) {
                settle_disks().await;
                bench.turn(*contestant, round, &mut report).await?;
            }
        }
        bench.judge(&mut report);
        if bench.iroh.is_none() {
            report.note("iroh-blobs was not measured: no comparison program, or peers put apart");
        }
    }
    if !args.no_held {
        let (key, mirror) = (bench.mirror.key_file(), bench.mirror.root());
        held::measure(&bench.stage, &key, mirror, &bench.items, rounds, &mut report).await?;
    }
    if let Some(round_trip) = args.round_trip {
        report.note(format!("the peers are {round_trip} ms of round trip apart"));
    }
    report.note(
        "rates are of uncompressed octets, whatever travels; memory is the most above idle; \
         processor time is until the receiver has kept the nar, so beyond its last octet",
    );
    Ok(report)
}

async fn prepare(args: &Args) -> anyhow::Result<Bench> {
    let mut kinds = vec![Kind::Incompressible, Kind::Typical];
    kinds.extend(args.real.clone().map(Kind::Real));
    kinds.retain(|kind| args.only.as_ref().is_none_or(|only| *only == kind.to_string()));
    ensure!(!kinds.is_empty(), "there is no content of this kind");
    let stage = Stage::new();
    let mirror = Mirror::create(stage.path("mirror"), 1);
    let (mut items, mut of_each_size) = (Vec::new(), Vec::new());
    for &size in &args.sizes {
        of_each_size.push((format!("{size} MB"), items.len()));
        for kind in &kinds {
            let item = content::add(&mirror, &format!("{kind}-{size}"), kind, size * 1_000_000)?;
            items.push((format!("{size} MB {kind}"), item));
        }
    }
    stage.import("seed", &mirror.key_file(), &[mirror.root()]).await.well();
    let iroh = args.iroh.clone().or_else(|| Some(iroh::usual_program()).filter(|p| p.exists()));
    Ok(Bench {
        stage,
        mirror,
        items,
        of_each_size,
        iroh: iroh.filter(|_| args.round_trip.is_none()),
        one_way: args.round_trip.map(|round_trip| Duration::from_millis(round_trip) / 2),
    })
}

impl Bench {
    fn contestants(&self) -> Vec<Contestant> {
        let mut all: Vec<_> = (0..self.items.len()).map(Contestant::Peers).collect();
        for number in 0..self.of_each_size.len() {
            all.push(Contestant::RawTcp(number));
            if self.iroh.is_some() {
                all.extend([false, true].map(|into_store| Contestant::Iroh { number, into_store }));
            }
        }
        all
    }

    async fn turn(
        &self,
        contestant: Contestant,
        round: u32,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        match contestant {
            Contestant::Peers(number) => self.peers(number, round, report).await,
            Contestant::Iroh { number, into_store } => {
                self.iroh(number, into_store, round, report).await
            }
            Contestant::RawTcp(number) => {
                let (size, item) = &self.of_each_size[number];
                let bytes = self.items[*item].1.nar_bytes;
                let took = tokio::task::spawn_blocking(move || raw_tcp::transfer(bytes)).await??;
                report.sample(format!("{size}: raw TCP"), "MB/s", rate(bytes, took.as_secs_f64()));
                Ok(())
            }
        }
    }

    async fn peers(&self, number: usize, round: u32, report: &mut Report) -> anyhow::Result<()> {
        let (label, item) = &self.items[number];
        let (key, name) = (self.mirror.key_file(), format!("workstation-{number}-{round}"));
        let took = peers::transfer(&self.stage, &key, &name, item, self.one_way).await?;
        let rate = rate(item.nar_bytes, took.whole.as_secs_f64());
        report.sample(format!("{label}: narswarm"), "MB/s", rate);
        let first_byte_ms = took.first_byte.as_secs_f64() * 1e3;
        report.sample(format!("{label}: first byte"), "ms", first_byte_ms);
        used(report, &format!("{label}: seed"), item.nar_bytes, took.seed);
        used(report, &format!("{label}: workstation"), item.nar_bytes, took.workstation);
        Ok(())
    }

    async fn iroh(
        &self,
        number: usize,
        into_store: bool,
        round: u32,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let Some(program) = &self.iroh else { return Ok(()) };
        let (size, item) = &self.of_each_size[number];
        let item = &self.items[*item].1;
        let how = if into_store { "iroh-blobs into its store" } else { "iroh-blobs" };
        let label = format!("{size}: {how}");
        let scratch = self.stage.path(&format!("iroh-{number}-{round}"));
        let took = iroh::transfer(program, &item.file, &scratch, into_store).await?;
        std::fs::remove_dir_all(scratch)?;
        report.sample(&label, "MB/s", rate(item.nar_bytes, took.whole_s));
        report.sample(format!("{label}, first byte"), "ms", took.first_byte_s * 1e3);
        used(report, &format!("{label}, provider"), item.nar_bytes, took.provider);
        used(report, &format!("{label}, getter"), item.nar_bytes, took.getter);
        Ok(())
    }

    /// Compares, and says what was aimed at.
    fn judge(&self, report: &mut Report) {
        for (label, _) in &self.items {
            let ours = format!("{label}: narswarm");
            // At a distance the line, not the program, sets the rate.
            if self.one_way.is_none() {
                report.aim(&ours, Aim::AtLeast(600.0));
                report.aim(&format!("{label}: first byte"), Aim::AtMost(50.0));
            }
            for side in ["seed", "workstation"] {
                report.aim(&format!("{label}: {side}, memory"), Aim::AtMost(60.0));
            }
            for (size, _) in &self.of_each_size {
                if !label.starts_with(&format!("{size} ")) {
                    continue;
                }
                let iroh = format!("{size}: iroh-blobs");
                report.compare(&ours, &iroh, Some(Aim::AtLeast(1.3)));
                report.compare(&ours, &format!("{iroh} into its store"), None);
                report.compare(&ours, &format!("{size}: raw TCP"), None);
            }
        }
    }
}

/// Megabytes a second.
fn rate(bytes: u64, seconds: f64) -> f64 {
    bytes as f64 / 1e6 / seconds
}

fn used(report: &mut Report, who: &str, bytes: u64, used: Used) {
    report.sample(format!("{who}, memory"), "MB", used.above_idle_bytes as f64 / 1e6);
    let gib = bytes as f64 / f64::from(1 << 30);
    report.sample(format!("{who}, processor"), "s/GiB", used.cpu_s / gib);
}
