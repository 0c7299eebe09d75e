//! The harness that end-to-end tests and benchmark programs share, and what only the latter need.

pub mod bench;
pub mod harness;
