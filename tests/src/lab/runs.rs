//! What `bench-swarm` measures, one file for each of its subcommands.

pub mod crowds;
pub mod liars;
pub mod lost_sources;
pub mod memory;
pub mod nat;
pub mod own_stores;
pub mod small_nars;
pub mod upstreams;
