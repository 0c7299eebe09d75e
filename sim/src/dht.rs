//! A model of the DHT, of announcements and of finding, at a thousand to a hundred thousand nodes.
//!
//! - [`table`], [`walk`], [`kad`]: Kademlia as libp2p-kad does it;
//! - [`terrain`], [`links`], [`population`]: how far nodes are, what questions cost, who comes and
//!   goes when;
//! - [`swarm`]: nodes that announce and find, each with the machines of production; [`asleep`]: what is
//!   left of them while they are away;
//! - [`catalogue`], [`setup`], [`scenario`]: what there is to find, what a run consists of;
//! - [`event`], [`tally`]: what happens, and what it comes to;
//! - [`calibrate`]: the model measured as real nodes are;
//! - [`command`], [`chart`]: the command line, and a drawing.
//!
//! Not modelled: octets of messages beyond their number, loss, processor time.

pub mod asleep;
pub mod calibrate;
pub mod catalogue;
pub mod chart;
pub mod command;
pub mod event;
pub mod kad;
pub mod links;
pub mod population;
pub mod scenario;
pub mod setup;
pub mod swarm;
pub mod table;
pub mod tally;
pub mod terrain;
pub mod walk;
