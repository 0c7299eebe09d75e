//! The command line: which subcommands there are and what all of them share.

use crate::cmd;
use crate::config::CommonArgs;
use clap::{Parser, Subcommand};

/// A peer-to-peer substitute swarm for GNU Guix.
///
/// `narswarm run` joins the swarm and offers it to guix as one ordinary substitute URL.
#[derive(Debug, Parser)]
#[command(name = "narswarm", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Join the swarm and serve substitutes on a local URL.
    Run(Box<cmd::run::RunArgs>),
    /// Take in the narinfos and nars of static mirror directories.
    Import(cmd::import::ImportArgs),
    /// Say what the node on a data directory is doing.
    Status(cmd::status::StatusArgs),
    /// List everything that others can learn of what this machine has.
    Shared(Box<cmd::shared::SharedArgs>),
    /// List the peers of the running node.
    Peers(cmd::peers::PeersArgs),
    /// Find out what is wrong, and what to do about it.
    Doctor(Box<cmd::doctor::DoctorArgs>),
    /// Give a verdict on narinfo files: would guix believe their signatures?
    Check(cmd::check::CheckArgs),
    /// Print the configuration in effect, as TOML.
    Config(CommonArgs),
    /// Show it working on this machine alone: two nodes, one signed nar, no network.
    Demo(cmd::demo::DemoArgs),
}

impl Cli {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// Whatever went wrong, worded for the person at the terminal.
    pub fn run(self) -> anyhow::Result<std::process::ExitCode> {
        match self.command {
            Command::Run(args) => cmd::run::run(*args),
            Command::Import(args) => cmd::import::run(args),
            Command::Status(args) => cmd::status::run(args),
            Command::Shared(args) => cmd::shared::run(*args, &mut std::io::stdout().lock()),
            Command::Peers(args) => cmd::peers::run(args),
            Command::Doctor(args) => cmd::doctor::run(*args),
            Command::Check(args) => cmd::check::run(args, &mut std::io::stdout().lock()),
            Command::Config(args) => cmd::config::run(args),
            Command::Demo(args) => cmd::demo::run(args),
        }
    }
}
