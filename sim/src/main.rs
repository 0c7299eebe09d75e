//! The command line of the simulator.

mod huge_pages;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use narswarm_sim::agenda::MILLI;
use narswarm_sim::dht;
use narswarm_sim::scenario::{self, MEGABIT, Options, Scenario};
use narswarm_sim::sweep::{self, Outcome};
use narswarm_sim::trace::Trace;
use narswarm_sim::{plot, report::Report};
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

/// Drives narswarm's decisions over a model network; one seed gives one run.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists the scenarios
    List,
    /// Runs a scenario under one seed
    Run(Run),
    /// Runs a scenario under many seeds
    Many(Many),
    /// The DHT: who finds whom, with up to a hundred thousand nodes
    #[command(subcommand)]
    Dht(dht::command::Command),
}

#[derive(Debug, Args)]
struct Chosen {
    /// The scenario; `list` names them
    scenario: String,
    /// Hosts that fetch
    #[arg(long)]
    peers: Option<u32>,
    /// Octets of the nar
    #[arg(long)]
    bytes: Option<u64>,
    /// Megabits a second that each host can send
    #[arg(long, value_name = "MBIT")]
    up: Option<u64>,
    /// Megabits a second that each host can receive
    #[arg(long, value_name = "MBIT")]
    down: Option<u64>,
    /// Milliseconds from each host to the middle of the network; two of these are one way
    #[arg(long, value_name = "MS")]
    access: Option<u64>,
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    chosen: Chosen,
    /// What chance follows from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Draws completion over time into this SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Writes the trace into this file
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Many {
    #[command(flatten)]
    chosen: Chosen,
    /// How many seeds
    #[arg(long)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Threads
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Goes on until so many seeds have failed
    #[arg(long, default_value_t = 10)]
    failures: usize,
}

impl Chosen {
    fn scenario(&self) -> Result<&'static Scenario> {
        scenario::find(&self.scenario).with_context(|| {
            format!("no scenario is called {}; narswarm-sim list names them", self.scenario)
        })
    }

    fn options(&self) -> Result<Options> {
        let largest = narswarm_protocol::limits::MAX_NAR_BYTES;
        if self.bytes.is_some_and(|bytes| bytes == 0 || bytes > largest) {
            bail!("--bytes is between 1 and {largest}");
        }
        if [self.up, self.down].into_iter().flatten().any(|rate| rate == 0 || rate > 1_000_000) {
            bail!("--up and --down are between 1 and 1000000 megabits a second");
        }
        if self.access.is_some_and(|access| access > 60_000) {
            bail!("--access is at most a minute");
        }
        if self.peers.is_some_and(|peers| peers == 0 || peers > 100_000) {
            bail!("--peers is between 1 and 100000");
        }
        Ok(Options {
            peers: self.peers,
            bytes: self.bytes,
            up: self.up.map(|rate| rate * MEGABIT),
            down: self.down.map(|rate| rate * MEGABIT),
            access: self.access.map(|access| access * MILLI),
        })
    }

    /// The words that choose the same again.
    fn again(&self) -> String {
        let flag = |name: &str, value: Option<u64>| {
            value.map(|value| format!(" --{name} {value}")).unwrap_or_default()
        };
        self.scenario.clone()
            + &flag("peers", self.peers.map(u64::from))
            + &flag("bytes", self.bytes)
            + &flag("up", self.up)
            + &flag("down", self.down)
            + &flag("access", self.access)
    }
}

fn main() -> Result<ExitCode> {
    match Cli::parse().command {
        Command::List => list(),
        Command::Run(arguments) => run(&arguments),
        Command::Many(arguments) => many(&arguments),
        Command::Dht(command) => {
            huge_pages::ask_for_them();
            dht::command::perform(&command)
        }
    }
}

fn list() -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    for scenario in scenario::ALL {
        writeln!(out, "{:<24} {}", scenario.name, scenario.about)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn run(arguments: &Run) -> Result<ExitCode> {
    let scenario = arguments.chosen.scenario()?;
    let options = arguments.chosen.options()?;
    let out = arguments.trace.as_ref().map(|path| {
        let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        anyhow::Ok(Box::new(BufWriter::new(file)) as Box<dyn std::io::Write>)
    });
    let trace = Trace::new(out.transpose()?);
    let (mut world, outcome) = sweep::run(scenario, options, arguments.seed, trace);
    world.flush_trace().context("writing the trace")?;
    if let Some(file) = &arguments.plot {
        let title = format!("{}, seed {}", scenario.name, arguments.seed);
        plot::draw(&world, &title, file)?;
    }
    let mut out = std::io::stdout().lock();
    if arguments.json {
        let violation = outcome.violation.as_ref().map(ToString::to_string);
        let value = serde_json::json!({
            "scenario": scenario.name,
            "seed": arguments.seed,
            "report": outcome.report,
            "violation": violation,
        });
        writeln!(out, "{value:#}")?;
    } else {
        write!(out, "{:<18} {}\n{:<18} {}\n", "scenario", scenario.name, "seed", outcome.seed)?;
        write!(out, "{}", outcome.report.table())?;
        if let Some(violation) = &outcome.violation {
            writeln!(out, "VIOLATED           {violation}")?;
        }
    }
    Ok(code(outcome.violation.is_none()))
}

fn many(arguments: &Many) -> Result<ExitCode> {
    let scenario = arguments.chosen.scenario()?;
    let options = arguments.chosen.options()?;
    let seeds = arguments.from..arguments.from.saturating_add(arguments.seeds);
    let outcomes = sweep::run_many(scenario, options, seeds, arguments.jobs, arguments.failures);
    let mut out = std::io::stdout().lock();
    let failed: Vec<&Outcome> = outcomes.iter().filter(|o| o.violation.is_some()).collect();
    for outcome in &failed {
        if let Some(violation) = &outcome.violation {
            writeln!(out, "{violation}")?;
            let again = arguments.chosen.again();
            writeln!(out, "    narswarm-sim run {again} --seed {}", outcome.seed)?;
        }
    }
    writeln!(out, "{}: {} seeds, {} failed", scenario.name, outcomes.len(), failed.len())?;
    writeln!(out, "{:<18} {:>9} {:>9} {:>9} {:>9}", "", "least", "median", "p95", "most")?;
    for (name, value) in MEASURES {
        let [least, median, p95, most] = sweep::distribution(&outcomes, *value);
        writeln!(out, "{name:<18} {least:>9.3} {median:>9.3} {p95:>9.3} {most:>9.3}")?;
    }
    Ok(code(failed.is_empty()))
}

type Measure = (&'static str, fn(&Report) -> f64);

const MEASURES: &[Measure] = &[
    ("last finisher s", |r| r.last_s),
    ("ratio", |r| r.ratio),
    ("mean s", |r| r.mean_s),
    ("first octet s", |r| r.first_octet_s),
    ("half read s", |r| r.half_read_s),
    ("seed egress ÷ nar", |r| r.seed_egress),
    ("duplicates %", |r| r.duplicates * 100.0),
    ("waste %", |r| r.waste * 100.0),
    ("from upstream %", |r| r.from_upstream * 100.0),
    ("bans", |r| r.bans.into()),
    ("honest banned", |r| r.unjust_bans.into()),
    ("retries", |r| r.retries.into()),
    ("wrong pieces read", |r| r.wrong_delivered as f64),
    ("failed fetches", |r| r.failed as f64),
    ("thousand events", |r| r.work as f64 / 1000.0),
];

fn code(well: bool) -> ExitCode {
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
