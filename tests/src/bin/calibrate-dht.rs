//! Compares the simulator's model of the DHT with real libp2p nodes in one process.
//!
//! Each trial is run with both: questions and answers of a lookup, how many of the truly closest it
//! finds, how long it takes, and how full the tables are.

use clap::Parser;
use comfy_table::{Table, presets};
use narswarm_sim::dht::calibrate::{self, Measured, Trial};
use narswarm_sim::dht::links::Timing;
use narswarm_tests::dht::trial;
use std::process::ExitCode;

/// How far the model may be off, in hundredths.
const TOLERANCE_PERCENT: f64 = 15.0;

/// Seeds over which the model is averaged: it costs nothing, and real nodes are drawn anew anyway.
const MODEL_SEEDS: u64 = 5;

/// Compares the model of the DHT with real libp2p nodes.
#[derive(Debug, Parser)]
struct Args {
    /// Nodes
    #[arg(long, default_value_t = 200)]
    nodes: u32,
    /// Lookups of each trial
    #[arg(long, default_value_t = 60)]
    lookups: u32,
    /// What the places of the nodes follow from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only the trial of this name, or those with this word in their names
    #[arg(long)]
    only: Option<String>,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let runtime = tokio::runtime::Runtime::new()?;
    let timing = Timing::default();
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["trial", "what", "real", "model", "off by %"]);
    let (mut rows, mut within) = (Vec::new(), true);
    for (name, trial) in chosen(&args) {
        let real = runtime.block_on(trial::run(&trial, timing))?;
        let model = model(&trial, timing);
        for (what, value) in WHAT {
            let (real, model) = (value(&real), value(&model));
            let off = if model == real { 0.0 } else { (model / real - 1.0) * 100.0 };
            within &= off.abs() <= TOLERANCE_PERCENT;
            let cell = |value: f64| format!("{value:.1}");
            // Each trial takes some minutes.
            eprintln!("{name}: {what}: {real:.1} real, {model:.1} in the model, {off:.1} % off");
            table.add_row([name.into(), (*what).into(), cell(real), cell(model), cell(off)]);
        }
        rows.push(serde_json::json!({ "trial": name, "real": real, "model": model }));
    }
    if args.json {
        println!("{:#}", serde_json::json!({ "trials": rows }));
    } else {
        println!("{table}");
    }
    Ok(if within { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The trials that were asked for.
fn chosen(args: &Args) -> Vec<(&'static str, Trial)> {
    let mut trials = calibrate::trials(args.nodes, args.lookups, args.seed);
    if let Some(only) = &args.only {
        let is_name = trials.iter().any(|(name, _)| name == only);
        trials.retain(|(name, _)| if is_name { name == only } else { name.contains(only) });
    }
    trials
}

/// A figure, by its name.
type Figure = (&'static str, fn(&Measured) -> f64);

/// What is compared.
const WHAT: &[Figure] = &[
    ("nodes in a table", |m| m.table),
    ("connections a node a minute, idle", |m| m.connects),
    ("questions of a lookup", |m| m.asked),
    ("answers of a lookup", |m| m.answers),
    ("found of the 20 closest", |m| m.found),
    ("mean, ms", |m| m.mean_ms),
    ("median, ms", |m| m.p50_ms),
];

fn model(trial: &Trial, timing: Timing) -> Measured {
    let runs: Vec<Measured> = (0..MODEL_SEEDS)
        .map(|offset| calibrate::run(&Trial { seed: trial.seed + offset, ..*trial }, timing))
        .collect();
    Measured::mean(&runs)
}
