//! `narswarm config`: the configuration in effect.

use crate::config::{AclArgs, CommonArgs, Config, NodeArgs};
use std::process::ExitCode;

/// Prints the configuration in effect.
///
/// # Errors
/// A configuration file that can't be read.
pub fn run(args: CommonArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args, &AclArgs::default(), &NodeArgs::default())?;
    print!("{}", toml::to_string(&config)?);
    Ok(ExitCode::SUCCESS)
}
