//! The narswarm node: all real input and output around the pure decisions of
//! `narswarm_protocol`.
//!
//! Only [`engine`] knows the network, the store, the upstreams and HTTP; those four never import
//! each other.

pub mod acl;
pub mod buffers;
pub mod cli;
pub mod cmd;
pub mod config;
pub mod control;
pub mod dialect;
pub mod doctor;
pub mod engine;
pub mod entry;
pub mod http;
pub mod metrics;
pub mod nar_tree;
pub mod net;
pub mod node;
pub mod rate;
pub mod store;
pub mod system_store;
pub mod upstream;
pub mod voucher_peer;
