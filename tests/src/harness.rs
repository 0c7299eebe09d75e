//! What a test puts around a node: real processes, mirrors made up and signed, a substitute server
//! that misbehaves on command, a link with latency, peers without manners, and an HTTP client that
//! sees what guix would see.
//!
//! Everything panics when it can't do its part: a test whose surroundings are broken has failed.

pub mod compression;
pub mod delay;
pub mod dns_server;
pub mod entry_node;
pub mod guix;
pub mod guix_store;
pub mod holding;
pub mod http_client;
pub mod liar;
pub mod mirror;
pub mod nix;
pub mod node;
pub mod program;
pub mod raw_asker;
pub mod raw_peer;
pub mod samples;
pub mod throttle;
pub mod upstream;
pub mod waiting;

#[cfg(test)]
mod tests;
