//! `narswarm-bootstrap config`: the configuration in effect.

use crate::config::{Config, ConfigArgs, RunArgs};
use std::process::ExitCode;

/// Prints the configuration in effect.
///
/// # Errors
/// A configuration file that can't be read.
pub fn run(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    let run = RunArgs { common: args.clone(), ..RunArgs::default() };
    print!("{}", toml::to_string(&Config::load(&run)?)?);
    Ok(ExitCode::SUCCESS)
}
