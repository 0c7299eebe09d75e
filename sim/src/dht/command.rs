//! The subcommands of `narswarm-sim dht`.

use super::calibrate::{self, Trial};
use super::links::Timing;
use super::scenario::{self, Options, Scenario};
use super::setup::HOUR;
use super::swarm::Swarm;
use super::tally::Outcome;
use crate::agenda::MILLI;
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// What to do with the model of the DHT.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Lists the scenarios of the DHT
    List,
    /// Runs a scenario under one seed
    Run(Run),
    /// Runs a scenario under many seeds
    Many(Many),
    /// Measures lookups as real nodes are measured
    Calibrate(Calibrate),
}

#[derive(Debug, Args)]
struct Chosen {
    /// The scenario; `dht list` names them
    scenario: String,
    /// Nodes
    #[arg(long, value_parser = clap::value_parser!(u32).range(30..=1_000_000))]
    nodes: Option<u32>,
    /// Hours that are measured
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1000))]
    hours: Option<u64>,
    /// Minutes from one refreshing of Kademlia's table to the next
    #[arg(long, value_name = "MINUTES", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    refresh: Option<u64>,
}

/// One run.
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    chosen: Chosen,
    /// What chance follows from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Prints JSON
    #[arg(long)]
    json: bool,
    /// Says on standard error, after each simulated hour, how far it is
    #[arg(long)]
    progress: bool,
    /// Draws how long searches took, how many succeeded when, and messages into this SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// Many runs.
#[derive(Debug, Args)]
pub struct Many {
    #[command(flatten)]
    chosen: Chosen,
    /// How many seeds
    #[arg(long)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    from: u64,
}

/// Lookups in a quiet network.
#[derive(Debug, Args)]
pub struct Calibrate {
    /// Nodes
    #[arg(long, default_value_t = 200)]
    nodes: u32,
    /// Lookups of each trial
    #[arg(long, default_value_t = 200)]
    lookups: u32,
    /// What chance follows from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Chosen {
    fn scenario(&self) -> Result<&'static Scenario> {
        scenario::find(&self.scenario).with_context(|| {
            format!("no scenario is called {}; narswarm-sim dht list names them", self.scenario)
        })
    }

    fn options(&self) -> Options {
        Options {
            nodes: self.nodes,
            measured: self.hours.map(|hours| hours * HOUR),
            refresh: self.refresh.map(|minutes| minutes * HOUR / 60),
        }
    }
}

/// A run that is over.
#[derive(Debug)]
pub struct Ran {
    /// What it came to.
    pub outcome: Outcome,
    /// What was not as it must be.
    pub violations: Vec<String>,
    /// The digest of its events.
    pub digest: String,
    /// How long each search took, in milliseconds.
    pub took_ms: Vec<f64>,
    /// The part of the searches that succeeded, in each part of the time that was measured, where
    /// there were some.
    pub success_by_part: Vec<Option<f64>>,
    /// Messages of each node a day.
    pub messages_a_day: Vec<f64>,
    /// How long was measured.
    pub hours: f64,
}

/// Runs a scenario under a seed.
#[must_use]
pub fn run(scenario: &Scenario, options: Options, seed: u64) -> Ran {
    run_watched(scenario, options, seed, |_, _| {})
}

/// The same; after each simulated hour `passed` is told how many have passed and how many events there
/// were.
fn run_watched(
    scenario: &Scenario,
    options: Options,
    seed: u64,
    passed: impl FnMut(u64, u64),
) -> Ran {
    let setup = scenario.setup(options);
    let mut swarm = Swarm::new(setup, seed);
    swarm.run(passed);
    let days = setup.measured as f64 / (24 * HOUR) as f64;
    let outcome = Outcome::of(&swarm.tally, setup.nodes, days);
    let violations = outcome.violations(&swarm.tally, &scenario.demands);
    let tally = &swarm.tally;
    let part =
        |[possible, found]: &[u64; 2]| (*possible > 0).then(|| *found as f64 / *possible as f64);
    Ran {
        violations,
        digest: swarm.digest(),
        took_ms: tally.took.iter().map(|&tenths| f64::from(tenths) / 10.0).collect(),
        success_by_part: tally.parts.iter().map(part).collect(),
        messages_a_day: tally.messages_a_day(days),
        hours: days * 24.0,
        outcome,
    }
}

/// Performs a subcommand.
///
/// # Errors
/// When there is no such scenario, or something can't be written.
pub fn perform(command: &Command) -> Result<ExitCode> {
    match command {
        Command::List => list(),
        Command::Run(arguments) => run_one(arguments),
        Command::Many(arguments) => run_many(arguments),
        Command::Calibrate(arguments) => measure(arguments),
    }
}

fn list() -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    for scenario in scenario::ALL {
        writeln!(out, "{:<16} {:>7}  {}", scenario.name, scenario.nodes, scenario.about)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn run_one(arguments: &Run) -> Result<ExitCode> {
    let scenario = arguments.chosen.scenario()?;
    let began = Instant::now();
    let ran = run_watched(scenario, arguments.chosen.options(), arguments.seed, |hours, events| {
        if arguments.progress {
            let seconds = began.elapsed().as_secs_f64();
            let said = format!("{hours} hours, {events} events, {seconds:.0} s");
            // Nobody need listen.
            let _ = writeln!(std::io::stderr(), "{said}");
        }
    });
    let took = began.elapsed();
    if let Some(file) = &arguments.plot {
        let nodes = ran.outcome.nodes;
        let title = format!("{}, {nodes} nodes, seed {}", scenario.name, arguments.seed);
        super::chart::draw(&ran, &title, file)?;
    }
    let mut out = std::io::stdout().lock();
    if arguments.json {
        let value = serde_json::json!({
            "scenario": scenario.name,
            "seed": arguments.seed,
            "digest": ran.digest,
            "outcome": ran.outcome,
            "violations": ran.violations,
        });
        writeln!(out, "{value:#}")?;
    } else {
        writeln!(out, "{:<24} {}", "scenario", scenario.name)?;
        writeln!(out, "{:<24} {}", "seed", arguments.seed)?;
        let serde_json::Value::Object(fields) = serde_json::to_value(&ran.outcome)? else {
            anyhow::bail!("an outcome has fields");
        };
        for (name, value) in fields {
            writeln!(out, "{:<24} {value}", name.replace('_', " "))?;
        }
        writeln!(out, "{:<24} {}", "digest", ran.digest)?;
        writeln!(out, "{:<24} {:.1} s", "took", took.as_secs_f64())?;
        for violation in &ran.violations {
            writeln!(out, "VIOLATED                 {violation}")?;
        }
    }
    Ok(code(ran.violations.is_empty()))
}

fn run_many(arguments: &Many) -> Result<ExitCode> {
    let scenario = arguments.chosen.scenario()?;
    let mut out = std::io::stdout().lock();
    let mut failed = 0;
    for seed in arguments.from..arguments.from.saturating_add(arguments.seeds) {
        let ran = run(scenario, arguments.chosen.options(), seed);
        let Outcome { success, offload, p50_ms, p99_ms, stale, .. } = ran.outcome;
        writeln!(
            out,
            "seed {seed}: success {success:.4}, offload {offload:.4}, p50 {p50_ms:.0} ms, \
             p99 {p99_ms:.0} ms, stale {stale:.3}"
        )?;
        failed += u64::from(!ran.violations.is_empty());
        for violation in &ran.violations {
            writeln!(out, "    VIOLATED {violation}")?;
        }
    }
    writeln!(out, "{}: {} seeds, {failed} failed", scenario.name, arguments.seeds)?;
    Ok(code(failed == 0))
}

fn measure(arguments: &Calibrate) -> Result<ExitCode> {
    let Calibrate { nodes, lookups, seed } = *arguments;
    let trials: Vec<_> = calibrate::trials(nodes, lookups, seed)
        .into_iter()
        .map(|(name, trial): (&str, Trial)| {
            let model = calibrate::run(&trial, Timing::default());
            let trip = trial.uniform.map(|trip| trip / MILLI);
            let idle_s = trial.idle_seconds;
            serde_json::json!({
                "trial": name, "round_trip_ms": trip, "idle_s": idle_s, "model": model
            })
        })
        .collect();
    writeln!(std::io::stdout().lock(), "{:#}", serde_json::json!({ "trials": trials }))?;
    Ok(ExitCode::SUCCESS)
}

fn code(well: bool) -> ExitCode {
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
