//! The `narswarm` program.

use clap::Parser;
use mimalloc::MiMalloc;
use narswarm_node::cli::Cli;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("narswarm: {error:#}");
            ExitCode::FAILURE
        }
    }
}
