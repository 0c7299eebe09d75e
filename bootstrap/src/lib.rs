//! The entry node of a narswarm network: who comes new asks it for others.
//!
//! It answers lookups in the DHT, keeps announcements of who holds what, tries the addresses of those
//! who want to know if they are reachable (AutoNAT), and relays a little for those who aren't. It holds
//! no nars and no narinfos, asks nobody for any, and trusts nobody: whoever runs one can neither see
//! nor change what peers give each other. Everything that strangers can make it hold is bounded.
//!
//! - [`cli`], [`cmd`], [`config`]: the program;
//! - [`node`]: one running entry node; `behaviour`: what it does on the network; `task`: drives
//!   it; [`shed`]: who makes room when many come; [`remembered`]: peers across restarts;
//! - [`pages`], [`metrics`]: what its operator sees.

mod behaviour;
pub mod cli;
pub mod cmd;
pub mod config;
pub mod metrics;
pub mod node;
pub mod pages;
pub mod remembered;
pub mod shed;
mod task;
