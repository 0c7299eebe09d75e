//! A flash crowd of nodes and of BitTorrent clients, by the same lines (T5, T6).

use crate::bench::content::{self, Kind, LargeItem};
use crate::bench::report::{Aim, Report};
use crate::bench::run::{in_turn, settle_disks};
use crate::harness::mirror::Mirror;
use crate::harness::node::Stage;
use crate::lab::crowd::{self, Crowd, Outcome};
use crate::lab::line::Line;
use crate::lab::torrent_programs::{self, Program};
use crate::lab::torrents::{self, Manner};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// How large a crowd, and by which lines.
#[derive(Debug, Clone, Args)]
pub struct CrowdArgs {
    /// How many want the nar.
    #[arg(long, default_value_t = 16)]
    pub peers: usize,
    /// Size of the nar, in megabytes (10^6 octets), of noise.
    #[arg(long, value_name = "MB", default_value_t = 64)]
    pub size: u64,
    /// Everybody's rate up.
    #[arg(long, value_name = "MBIT/S", default_value_t = 20.0)]
    pub up: f64,
    /// Everybody's rate down.
    #[arg(long, value_name = "MBIT/S", default_value_t = 100.0)]
    pub down: f64,
    /// Round trip between any two of them.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0)]
    pub round_trip: u64,
    /// Who takes turns [default: all that are installed].
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub only: Vec<Contestant>,
}

/// Whose crowd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Contestant {
    /// Ours.
    Narswarm,
    /// libtorrent as it is.
    Libtorrent,
    /// libtorrent without uTP.
    LibtorrentTcp,
    /// libtorrent without uTP and with a super-seeding seed.
    LibtorrentSuper,
    /// aria2.
    Aria2,
    /// Transmission.
    Transmission,
}

impl Contestant {
    fn name(self) -> &'static str {
        match self {
            Self::Narswarm => "narswarm",
            Self::Libtorrent => "libtorrent",
            Self::LibtorrentTcp => "libtorrent on TCP",
            Self::LibtorrentSuper => "libtorrent on TCP, super-seeding",
            Self::Aria2 => "aria2",
            Self::Transmission => "Transmission",
        }
    }

    /// Why it can't take part here.
    fn missing(self) -> Option<String> {
        let program = match self {
            Self::Narswarm => return None,
            Self::Aria2 => Some((Program::Aria2, "aria2")),
            Self::Transmission => Some((Program::Transmission, "transmission-cli")),
            _ => None,
        };
        match program {
            Some((program, package)) if !program.is_there() => {
                Some(format!("it isn't installed; Debian's package is {package}"))
            }
            // It makes the torrents of all of them.
            _ => torrents::python().err().map(|why| why.to_string()),
        }
    }
}

struct Bench {
    stage: Stage,
    key: PathBuf,
    item: LargeItem,
    nar: Bytes,
    crowd: Crowd,
}

/// Measures them in turn.
///
/// # Errors
/// When a crowd doesn't get its nar.
pub async fn measure(rounds: u32, args: &CrowdArgs) -> anyhow::Result<Report> {
    let mut report = Report::new("bench-swarm crowd");
    let bench = prepare(args).await?;
    let contestants = contestants(args, &mut report);
    for round in 0..rounds {
        for contestant in in_turn(&contestants, round) {
            settle_disks().await;
            let outcome = bench.turn(*contestant, round).await?;
            bench.enter(*contestant, &outcome, &mut report);
        }
    }
    judge(&contestants, &mut report);
    let least = bench.crowd.least_time(bench.item.nar_bytes);
    report.note(format!(
        "{} peers and a seed, {} MB, {} Mbit/s up, {} down, round trip {} ms; nobody can be faster \
         than {:.2} s, and with the headers of Ethernet, IP and TCP not than {:.2} s",
        args.peers,
        args.size,
        args.up,
        args.down,
        args.round_trip,
        least.as_secs_f64(),
        least.as_secs_f64() * 1514.0 / 1448.0
    ));
    report.note(format!("load at the end: {}", crate::bench::machine::Machine::now().load));
    Ok(report)
}

fn contestants(args: &CrowdArgs, report: &mut Report) -> Vec<Contestant> {
    let mut all = args.only.clone();
    if all.is_empty() {
        all = Contestant::value_variants().to_vec();
    }
    all.retain(|contestant| {
        let missing = contestant.missing();
        if let Some(why) = &missing {
            let text = format!("{} was left out: {why}", contestant.name());
            eprintln!("NOT MEASURED: {text}");
            report.note(text);
        }
        missing.is_none()
    });
    all
}

async fn prepare(args: &CrowdArgs) -> anyhow::Result<Bench> {
    let stage = Stage::new();
    let mirror = Mirror::create(stage.path("mirror"), 1);
    let item = content::add(&mirror, "crowd", &Kind::Incompressible, args.size * 1_000_000)?;
    let key = mirror.key_file();
    stage.import("seed", &key, &[mirror.root()]).await.well();
    let nar = Bytes::from(std::fs::read(&item.file)?);
    // Two lines lie between any two hosts.
    let line = Line::of(args.up, args.down).far(Duration::from_millis(args.round_trip) / 2);
    let crowd = Crowd { peers: args.peers, peer: line, seed: line };
    Ok(Bench { stage, key, item, nar, crowd })
}

impl Bench {
    async fn turn(&self, contestant: Contestant, round: u32) -> anyhow::Result<Outcome> {
        let Self { stage, key, item, nar, crowd } = self;
        let scratch = stage.path(&format!("{contestant:?}-{round}"));
        let libtorrent = |manner| torrents::libtorrent(crowd, manner, &item.file, &scratch);
        let other = |program| torrent_programs::fetch(program, crowd, &item.file, &scratch);
        match contestant {
            Contestant::Narswarm => {
                let name = format!("peer-{round}");
                crowd::narswarm(crowd, stage, key, &name, item, nar).await
            }
            Contestant::Libtorrent => libtorrent(Manner::Usual).await,
            Contestant::LibtorrentTcp => libtorrent(Manner::Tcp).await,
            Contestant::LibtorrentSuper => libtorrent(Manner::SuperSeeding).await,
            Contestant::Aria2 => other(Program::Aria2).await,
            Contestant::Transmission => other(Program::Transmission).await,
        }
    }

    fn enter(&self, contestant: Contestant, outcome: &Outcome, report: &mut Report) {
        let (name, bytes) = (contestant.name(), self.item.nar_bytes as f64);
        let least = self.crowd.least_time(self.item.nar_bytes).as_secs_f64();
        let last = outcome.last().as_secs_f64();
        let all = bytes * self.crowd.peers as f64;
        report.sample(format!("{name}: last"), "s", last);
        report.sample(format!("{name}: last ÷ least possible"), "×", last / least);
        report.sample(format!("{name}: mean"), "s", outcome.mean().as_secs_f64());
        let sent = outcome.seed_sent as f64 / bytes;
        report.sample(format!("{name}: seed's line ÷ nar"), "×", sent);
        if let Some(gave) = outcome.seed_gave {
            report.sample(format!("{name}: seed's egress ÷ nar"), "×", gave as f64 / bytes);
        }
        if let Some(got) = outcome.peers_got {
            report.sample(format!("{name}: duplicates"), "%", (got as f64 / all - 1.0) * 100.0);
        }
        let received = outcome.peers_received as f64 / all;
        report.sample(format!("{name}: peers' lines ÷ nar"), "×", received);
        report.sample(format!("{name}: processor time of all"), "s", outcome.cpu_s);
        if contestant == Contestant::Narswarm {
            report.sample(format!("{name}: wrong octets"), "", outcome.wrong as f64);
            report.sample(format!("{name}: clients cut off"), "", outcome.cuts as f64);
        }
        let mut took: Vec<_> = outcome.took.iter().map(Duration::as_secs_f64).collect();
        took.sort_by(f64::total_cmp);
        eprintln!("{name}: {took:.1?}");
    }
}

fn judge(contestants: &[Contestant], report: &mut Report) {
    report.aim("narswarm: last ÷ least possible", Aim::AtMost(1.3));
    report.aim("narswarm: seed's egress ÷ nar", Aim::AtMost(2.0));
    report.aim("narswarm: duplicates", Aim::AtMost(2.0));
    report.aim("narswarm: wrong octets", Aim::AtMost(0.0));
    report.aim("narswarm: clients cut off", Aim::AtMost(0.0));
    for contestant in contestants.iter().filter(|c| **c != Contestant::Narswarm) {
        let reference = format!("{}: last", contestant.name());
        report.compare("narswarm: last", &reference, Some(Aim::AtMost(1.0)));
    }
}
