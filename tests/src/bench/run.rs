//! Runs a benchmark to its end, within its time, and cleans up whatever happens.

use super::report::Report;
use anyhow::Context;
use clap::Args;
use std::process::ExitCode;
use std::time::Duration;

/// What every benchmark program takes.
#[derive(Debug, Clone, Args)]
pub struct CommonArgs {
    /// Rounds, in each of which every contestant has its turn.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Give up after this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 1200)]
    pub limit: u64,
}

/// Runs `work`, which ends its processes and removes its files when it is dropped, and prints its
/// report.
///
/// # Errors
/// What kept it from being measured: a missing program, the time limit, an interruption.
pub fn run(
    args: &CommonArgs,
    work: impl Future<Output = anyhow::Result<Report>>,
) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let limit = Duration::from_secs(args.limit);
    let report = runtime.block_on(async {
        tokio::select! {
            report = tokio::time::timeout(limit, work) => {
                report.context("the time limit has passed; see --limit")?
            }
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        }
    })?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report.summary())?);
    } else {
        print!("{report}");
    }
    Ok(ExitCode::SUCCESS)
}

/// The contestants of a round, in an order that changes from round to round: nobody always comes
/// right after the same other.
pub fn in_turn<T>(contestants: &[T], round: u32) -> impl Iterator<Item = &T> {
    let shift = round as usize % contestants.len().max(1);
    let backwards = (round as usize / contestants.len().max(1)) % 2 == 1;
    (0..contestants.len()).map(move |at| {
        let at = if backwards { contestants.len() - 1 - at } else { at };
        &contestants[(at + shift) % contestants.len()]
    })
}

/// Waits until what was written before is on disk, so that nobody is slowed down by what another
/// has left to write.
pub async fn settle_disks() {
    // It cannot fail; the task is only cut off when the program ends.
    let _ = tokio::task::spawn_blocking(rustix::fs::sync).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_one_turn_in_each_round() {
        let contestants = [1, 2, 3];
        for round in 0..12 {
            let mut order: Vec<i32> = in_turn(&contestants, round).copied().collect();
            order.sort_unstable();
            assert_eq!(order, contestants, "round {round}");
        }
        let firsts: Vec<i32> =
            (0..3).map(|round| *in_turn(&contestants, round).next().expect("three")).collect();
        assert_eq!(firsts, contestants);
        assert_eq!(in_turn::<i32>(&[], 4).count(), 0);
    }
}
