//! What `bench-swarm` measures, one file for each of its subcommands.

pub mod crowds;
