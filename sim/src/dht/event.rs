//! What happens in the network of the DHT.

use super::kad::WalkId;
use super::table::NodeId;

/// An event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// A node answers within a walk of Kademlia.
    Answer {
        /// The walk.
        walk: WalkId,
        /// Who answers.
        node: NodeId,
        /// Whether a connection was made for it.
        fresh: bool,
    },
    /// A node doesn't answer within a walk of Kademlia.
    Silence {
        /// The walk.
        walk: WalkId,
        /// Who doesn't.
        node: NodeId,
    },
    /// Two have connected.
    Met {
        /// Who called.
        node: NodeId,
        /// Whom.
        other: NodeId,
    },
    /// A node fills its table.
    Refresh {
        /// Which.
        node: NodeId,
    },
    /// A message of discovery is answered.
    Reply {
        /// Which.
        letter: u32,
    },
    /// A message of discovery isn't answered.
    Failure {
        /// Which.
        letter: u32,
    },
    /// It is time to ask a node's machine what is to be done.
    Poll {
        /// Whose.
        node: NodeId,
    },
    /// A node comes.
    Come {
        /// Which.
        node: NodeId,
    },
    /// A node goes.
    Go {
        /// Which.
        node: NodeId,
    },
    /// A node wants something.
    Want {
        /// Which.
        node: NodeId,
    },
    /// A holder that was asked for an item has answered, or can't be reached.
    Holder {
        /// The quest.
        quest: u32,
        /// Whose turn in its place.
        turn: u32,
        /// Who was asked.
        node: NodeId,
        /// Whether it has answered.
        answers: bool,
    },
    /// A node can't be reached with which another was to stay connected.
    Missed {
        /// Which.
        node: NodeId,
        /// With whom.
        other: NodeId,
    },
    /// A quest has taken as long as it may.
    Deadline {
        /// The quest.
        quest: u32,
        /// Whose turn in its place.
        turn: u32,
    },
    /// A keeper has seen whether somebody who announced is there.
    Probed {
        /// Who has looked.
        keeper: NodeId,
        /// For whom.
        other: NodeId,
        /// Whether it is.
        there: bool,
    },
    /// The measurement begins.
    Begin,
    /// A divided network is whole again.
    Heal,
    /// New versions are out.
    Wave {
        /// The how manieth.
        number: u32,
    },
    /// A node wants a certain item.
    Crave {
        /// Which node.
        node: NodeId,
        /// Which item.
        item: u32,
    },
    /// Somebody has made something that nobody had before.
    Novelty,
}

impl Event {
    /// What happens to whom, in numbers.
    #[must_use]
    pub fn numbers(&self) -> (u8, u32, u32) {
        match *self {
            Self::Answer { walk, node, .. } => (1, walk.at, node),
            Self::Silence { walk, node } => (2, walk.at, node),
            Self::Met { node, other } => (3, node, other),
            Self::Refresh { node } => (4, node, 0),
            Self::Reply { letter } => (5, letter, 0),
            Self::Failure { letter } => (6, letter, 0),
            Self::Poll { node } => (7, node, 0),
            Self::Come { node } => (8, node, 0),
            Self::Go { node } => (9, node, 0),
            Self::Want { node } => (10, node, 0),
            Self::Holder { quest, node, answers, .. } => (11 + u8::from(answers), quest, node),
            Self::Missed { node, other } => (13, node, other),
            Self::Deadline { quest, turn } => (14, quest, turn),
            Self::Probed { keeper, other, there } => (15 + u8::from(there), keeper, other),
            Self::Begin => (17, 0, 0),
            Self::Heal => (18, 0, 0),
            Self::Wave { number } => (19, number, 0),
            Self::Crave { node, item } => (20, node, item),
            Self::Novelty => (21, 0, 0),
        }
    }
}
