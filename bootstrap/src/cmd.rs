//! One file for each subcommand: its arguments and `run`.

pub mod config;
pub mod list;
pub mod run;
