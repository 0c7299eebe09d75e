//! The harness that end-to-end tests and benchmark programs share, what only the latter need, a
//! laboratory of network namespaces, and real nodes for the simulator to be compared with.

pub mod bench;
pub mod dht;
pub mod harness;
pub mod lab;
