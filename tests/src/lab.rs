//! A network in a box: hosts as network namespaces of one machine, each with a line of its own
//! rate and delay, all at one switch; for what loopback can't tell about a swarm.
//!
//! Nothing of it touches the machine's own network, and nothing of it has a name: namespaces live
//! as long as a process that holds them, which ends when whoever made it ends, however that ends.
//! So there is never anything to clean up after a run, killed or not.
//!
//! Everything panics when it can't do its part, like the harness.

pub mod client;
pub mod crowd;
pub mod delay_line;
pub mod host;
pub mod line;
pub mod namespace;
pub mod nat;
pub mod needs;
pub mod network;
pub mod runs;
pub mod torrent_programs;
pub mod torrents;
pub mod tracker;
