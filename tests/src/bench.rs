//! What the benchmark programs (`src/bin/bench-*.rs`) share.
//!
//! They are programs, never tests: what a machine is capable of at some moment is no reason to
//! fail. Everything is measured in rounds, the contestants taking turns in each, so that a busy
//! moment of the machine hits all of them; ratios are taken within a round, and the median of
//! the rounds is what counts.

pub mod content;
pub mod held;
pub mod iroh;
pub mod machine;
pub mod narinfos;
pub mod nginx;
pub mod peers;
pub mod process;
pub mod raw_tcp;
pub mod report;
pub mod run;
pub mod traffic;
pub mod trees;
