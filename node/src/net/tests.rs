//! Nodes talking to nodes, stock peers and hostile peers over real sockets.

mod connections;
mod conversations;
mod discovery;
mod filters;
mod giving;
mod hostile_askers;
mod hostile_holders;
mod interop;
mod shared_sessions;
