//! The `narswarm-bootstrap` program.

use clap::Parser;
use narswarm_bootstrap::cli::Cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("narswarm-bootstrap: {error:#}");
            ExitCode::FAILURE
        }
    }
}
