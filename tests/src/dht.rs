//! Real nodes of libp2p's Kademlia in one process, over lines that delay: what the simulator's
//! model of the DHT is calibrated against.

pub mod delayed;
pub mod node;
pub mod trial;
