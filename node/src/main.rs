//! The `narswarm` program.

use clap::Parser;
use narswarm_node::cli::Cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("narswarm: {error:#}");
            ExitCode::FAILURE
        }
    }
}
