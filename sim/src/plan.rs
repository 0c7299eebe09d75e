//! What a run consists of: hosts, what they are like, what befalls them and when, and what is
//! demanded of the outcome. A scenario makes one from its options and the seed.

use crate::agenda::Nanos;
use crate::content::Version;
use crate::network::Link;
use narswarm_protocol::fetch::UpstreamMode;

/// Everything that is decided before the run begins.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Octets of the nar.
    pub nar_bytes: u64,
    /// The hosts.
    pub hosts: Vec<HostPlan>,
    /// The substitute server, if there is one.
    pub upstream: Option<UpstreamPlan>,
    /// How swarm and upstream share the work.
    pub mode: UpstreamMode,
    /// Uncompressed octets a second that upstream is known to give, from earlier fetches.
    pub upstream_rate: Option<f64>,
    /// What befalls whom, and when.
    pub events: Vec<(Nanos, Event)>,
    /// How long it takes to learn of another holder, at least and at most.
    pub discovery: (Nanos, Nanos),
    /// What must hold of the outcome.
    pub demands: Demands,
}

/// A host of the swarm.
#[derive(Debug, Clone)]
pub struct HostPlan {
    /// Its access link.
    pub link: Link,
    /// From the host to the middle of the network; half of this and the other's make one way.
    pub access: Nanos,
    /// Which network it stands in: those of one network count as one witness.
    pub network: u64,
    /// What it is there for.
    pub role: Role,
    /// What it is like towards others.
    pub nature: Nature,
}

/// What a host is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Holds the whole nar.
    Seed,
    /// Has nothing, and begins to fetch at this time.
    Leech {
        /// When.
        start: Nanos,
        /// How its reader reads.
        reader: Reader,
    },
}

/// How guix reads what comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reader {
    /// Octets a second; `None` for as fast as it comes.
    pub rate: Option<u64>,
    /// Pieces that may be fetched ahead of it, where there is no disk behind it.
    pub ahead: Option<u32>,
}

/// What a host gives to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nature {
    /// What it has, as it is.
    Honest,
    /// The true list, and so many of a hundred pieces garbage.
    Corrupting {
        /// Of a hundred.
        percent: u32,
    },
    /// A list of its own with pieces that fit it.
    Lying(Version),
    /// A list that doesn't hash to the root it names.
    BadList,
    /// Says that it has all, and then of each piece that it is missing.
    Empty,
    /// Has no room for anybody.
    Busy,
    /// Doesn't hold the nar, though it was said to.
    NotHeld,
}

impl Nature {
    /// Whether what it gives can be used.
    #[must_use]
    pub fn is_honest(self) -> bool {
        self == Self::Honest
    }
}

/// The substitute server.
#[derive(Debug, Clone, Copy)]
pub struct UpstreamPlan {
    /// Octets of the nar that it can send a second, over all who ask.
    pub rate: u64,
    /// One way, in addition to the asker's.
    pub access: Nanos,
    /// Between the request and the first octet: it may have to compress.
    pub think: Nanos,
    /// What it gives.
    pub version: Version,
}

/// What befalls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A host stops in mid-piece and says nothing more, until it thaws.
    Freeze(u32),
    /// A frozen host goes on.
    Thaw(u32),
    /// A host is gone; who talks with it sees the connection break.
    Kill(u32),
    /// A host that was gone is back, with what it had.
    Return(u32),
    /// Nothing gets to a host or from it any more, and nobody is told.
    Cut(u32),
    /// These hosts and all others no longer reach each other, and nobody is told.
    Partition(Vec<u32>),
    /// The parts find together again; what was on its way arrives.
    Heal,
    /// Upstream breaks off and refuses.
    UpstreamDies,
    /// Upstream sends nothing more and says nothing.
    UpstreamStalls,
    /// Upstream is well again.
    UpstreamReturns,
}

/// What must hold of the outcome.
#[derive(Debug, Clone)]
pub struct Demands {
    /// When every fetch must have ended.
    pub deadline: Nanos,
    /// Whether every fetch of a host that stays must end well.
    pub all_done: bool,
    /// Longest that a fetch may stand still while somebody could give it something.
    pub longest_gap: Option<Nanos>,
    /// The last finisher's time divided by the lower bound, in hundredths.
    pub ratio_percent: Option<u64>,
    /// When the last must have finished.
    pub last_within: Option<Nanos>,
    /// Longest that a reader may wait for the first octet.
    pub first_octet_within: Option<Nanos>,
    /// Longest until the slowest reader has been given half of the nar.
    pub half_read_within: Option<Nanos>,
    /// What the seeds may send, in hundredths of the nar.
    pub egress_percent: Option<u64>,
    /// Octets that came twice, of all that came, in tenths of a percent.
    pub duplicates_per_mille: Option<u64>,
    /// Octets that came and were of no use, in tenths of a percent.
    pub waste_per_mille: Option<u64>,
    /// Whether liars may come to be believed, being in more networks than one.
    pub collusion: bool,
}
