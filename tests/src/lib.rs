//! The harness that end-to-end tests and benchmark programs share, what only the latter need, and
//! a laboratory of network namespaces.

pub mod bench;
pub mod harness;
pub mod lab;
