//! The command line of the entry node.

use crate::cmd;
use crate::config::{ConfigArgs, RunArgs};
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// An entry node for a narswarm network, and the tools for its signed lists.
///
/// It serves no nars: newcomers ask it for others.
#[derive(Debug, Parser)]
#[command(name = "narswarm-bootstrap", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Be an entry node, until told to stop.
    Run(RunArgs),
    /// Print the configuration in effect, as TOML.
    Config(ConfigArgs),
    /// Make, sign and check lists of entry nodes.
    #[command(subcommand)]
    List(cmd::list::ListCommand),
}

impl Cli {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// Whatever went wrong, worded for the person at the terminal.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Run(args) => cmd::run::run(&args),
            Command::Config(args) => cmd::config::run(&args),
            Command::List(command) => cmd::list::run(command),
        }
    }
}
