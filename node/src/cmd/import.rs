//! `narswarm import`: takes in static mirrors, through the running node when one holds the data
//! directory.

use crate::acl;
use crate::config::{AclArgs, CommonArgs, Config, NodeArgs};
use crate::control;
use crate::dialect::Dialect;
use crate::engine::mirror::{self, Report, Summary};
use crate::store::{DataDir, DataDirError, Store, StoreConfig};
use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    acl: AclArgs,
    /// Directories with HASH.narinfo files and the nars that they speak of.
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<PathBuf>,
}

/// Imports, goes on past what is missing or bad, lists it, and succeeds only if nothing was.
///
/// # Errors
/// When nothing can be imported at all.
pub fn run(args: ImportArgs) -> anyhow::Result<ExitCode> {
    super::log_to_stderr();
    let config = Config::load(&args.common, &args.acl, &NodeArgs::default())?;
    let sources = args
        .sources
        .iter()
        .map(|s| s.canonicalize().with_context(|| format!("cannot read {}", s.display())))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let teller = Teller::new();
    match DataDir::open(&config.data_dir) {
        Ok(data) => {
            let loaded = acl::load(&config.acl, Dialect::of_store(&config.store))?;
            hint_at_keys(&loaded, &sources);
            // What the operator imports, the operator wants to keep: the quota is the node's.
            let unlimited = StoreConfig { max_bytes: u64::MAX, ..StoreConfig::default() };
            let store = Store::open(&data, &unlimited)?;
            mirror::import(&store, &loaded.acl, &sources, &|report| teller.hear(report));
            store.close();
        }
        Err(DataDirError::InUse { .. }) => {
            if !args.acl.acl.is_empty() {
                eprintln!("a node is running: it believes the keys of its own ACL, not --acl");
            }
            control::import(&config.data_dir, sources, |report| {
                teller.hear(report);
            })?;
        }
        Err(error) => return Err(error.into()),
    }
    let summary = teller.finish();
    println!(
        "{} narinfos and {} nars are held, {} left out",
        summary.narinfos, summary.nars, summary.left_out
    );
    Ok(if summary.left_out == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A mirror often carries its own key; believing it is the user's decision, so it is only named.
fn hint_at_keys(loaded: &acl::LoadedAcl, sources: &[PathBuf]) {
    if !loaded.files.is_empty() {
        return;
    }
    for source in sources {
        let key = source.join("signing-key.pub");
        if key.is_file() {
            eprintln!("to believe the key that came with this mirror: --acl {}", key.display());
        }
    }
}

/// Shows reports: a bar on a terminal, and a line for all that is left out.
struct Teller {
    bar: ProgressBar,
    summary: Mutex<Summary>,
}

impl Teller {
    fn new() -> Self {
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}");
        let bar = ProgressBar::no_length();
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar, summary: Mutex::default() }
    }

    fn hear(&self, report: Report) -> bool {
        match report {
            Report::Found(narinfos) => self.bar.set_length(narinfos as u64),
            Report::Held { item, .. } => {
                self.bar.set_message(item);
                self.bar.inc(1);
            }
            Report::LeftOut { what, why, narinfo } => {
                self.bar.inc(1);
                let kept = if narinfo { " (its narinfo is held)" } else { "" };
                self.bar.suspend(|| eprintln!("left out: {what}: {why}{kept}"));
            }
            Report::Done(summary) => *self.summary.lock() = summary,
        }
        true
    }

    fn finish(self) -> Summary {
        self.bar.finish_and_clear();
        self.summary.into_inner()
    }
}
