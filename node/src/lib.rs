//! The narswarm node: all real input and output around the pure decisions of
//! `narswarm_protocol`.
//!
//! Only [`engine`] knows the network, the store, the upstreams and HTTP; those four never import
//! each other.

pub mod cmd;
pub mod http;
pub mod net;
pub mod store;
pub mod upstream;
