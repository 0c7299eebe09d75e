//! `narswarm shared`: all that others can learn of what this machine has, from the running node, or
//! what it would share if it ran.

use crate::config::{AclArgs, CommonArgs, Config, NodeArgs, Role, Share};
use crate::control;
use crate::engine::{NarPlace, SharedEntry};
use crate::node;
use crate::store::{DataDir, DataDirError};
use anyhow::Context as _;
use clap::Args;
use std::io::Write;
use std::process::ExitCode;

/// Arguments of `shared`.
#[derive(Debug, Args)]
pub struct SharedArgs {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    acl: AclArgs,
    /// The settings of the node, for when it isn't running.
    #[command(flatten)]
    node: NodeArgs,
    /// Print one JSON object a line: item, nar_hash, nar_size, and nar, which is "store", "cache" or
    /// "none".
    #[arg(long)]
    json: bool,
}

/// Prints the list.
///
/// # Errors
/// When it can't be told completely.
pub fn run(args: SharedArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.common, &args.acl, &args.node)?;
    let mut teller = Teller { json: args.json, out, items: 0, nars: 0, failed: None };
    let is_running = match DataDir::open(&config.data_dir) {
        Ok(data) => {
            node::list_shared_at_rest(&config, &data, |items| teller.tell(&items))?;
            false
        }
        Err(DataDirError::InUse { .. }) => {
            control::shared(&config.data_dir, |items| {
                teller.tell(&items);
            })?;
            true
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(error) = teller.failed.take() {
        return Err(error).context("can't write the list");
    }
    if !args.json {
        let nothing = !is_running && (config.share == Share::Nothing || config.role == Role::Proxy);
        let what = if nothing { "; nothing is shared by configuration" } else { "" };
        let (items, nars) = (teller.items, teller.nars);
        writeln!(teller.out, "{items} items, {nars} of them with their nars{what}")?;
    }
    teller.out.flush()?;
    Ok(ExitCode::SUCCESS)
}

struct Teller<'o, W> {
    json: bool,
    out: &'o mut W,
    items: u64,
    nars: u64,
    failed: Option<std::io::Error>,
}

impl<W: Write> Teller<'_, W> {
    fn tell(&mut self, items: &[SharedEntry]) -> bool {
        for entry in items {
            self.items += 1;
            self.nars += u64::from(entry.nar != NarPlace::None);
            let written = if self.json {
                let line = serde_json::to_string(entry).expect("strings and numbers serialise");
                writeln!(self.out, "{line}")
            } else {
                let place = match entry.nar {
                    NarPlace::Store => "from the store",
                    NarPlace::Cache => "from the cache",
                    NarPlace::None => "narinfo only",
                };
                writeln!(self.out, "{:<14}  {:>13}  {}", place, entry.nar_size, entry.item)
            };
            if let Err(error) = written {
                self.failed = Some(error);
                return false;
            }
        }
        true
    }
}
