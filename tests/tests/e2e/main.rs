//! Whole nodes, as processes, over real sockets: what a user of guix would get from them, and
//! what the hostile and the unlucky can do to that.
//!
//! One binary with a module for each topic. Everything is on loopback and on free ports, and every
//! wait is for a condition, with a deadline.

mod commands;
mod data_dir;
mod doctor;
mod entry_node;
mod entry_sources;
mod failures;
mod files;
mod hostile_clients;
mod hostile_narinfos;
mod hostile_nars;
mod hostile_peers;
mod keys;
mod lab;
mod nat;
mod nix;
mod own_store;
mod own_store_finding;
mod own_store_secrets;
mod read_ahead;
mod restarts;
mod seeds;
mod service;
mod sharing;
mod upstream;
mod vectors;
