//! A deterministic simulator that drives the very decisions of production over a model network.
//!
//! One seed gives one run, whose canonical trace is hashed. A [`scenario`] draws a [`plan`] from
//! its options and the seed; a [`world`] carries it out, event by event, with a
//! [`machine`] for each fetch and the protocol's own uploads on the holders' side; a [`check`]er
//! holds what must hold of every run, and the first violation ends it.
//!
//! - [`agenda`], [`random`]: time and chance;
//! - [`network`], [`message`], [`content`]: links, what is said, what a nar consists of;
//! - [`ledger`], [`report`], [`plot`], [`trace`]: what came of it;
//! - [`sweep`]: many seeds;
//! - [`dht`]: the DHT and announcements, a simulator of its own over the same time and chance.
//!
//! Not modelled: octets of pieces (a piece is known by its hash), loss and slow start, processor
//! time. In a fetch peers are found after a while; how they are found is what [`dht`] is about.

#![forbid(unsafe_code)]

pub mod agenda;
pub mod check;
pub mod content;
pub mod dht;
pub mod ledger;
pub mod machine;
pub mod message;
pub mod network;
pub mod plan;
pub mod plot;
pub mod random;
pub mod report;
pub mod scenario;
pub mod sweep;
pub mod trace;
pub mod world;
