//! The simulated world: hosts, what they say to each other, and the loop that lets one event
//! happen after the other.
//!
//! - `fetching`: a host's fetch, which performs what the machine decides;
//! - `hearing`: what the machine is told;
//! - `serving`: what hosts give to others;
//! - `upstreams`: the substitute server;
//! - `judging`: what only who sees everything can tell: standstills and ends;
//! - `befalling`: freezes, deaths, partitions.

mod befalling;
mod fetching;
mod hearing;
mod judging;
mod serving;
mod upstreams;

use crate::agenda::{Agenda, Nanos};
use crate::check::{Checker, Violation};
use crate::content::{Content, Version};
use crate::ledger::Ledger;
use crate::machine::Sabotage;
use crate::message::{Reply, Request, SessionId};
use crate::network::{Departure, FlowId, HostId, Link, Network};
use crate::plan::{Nature, Plan, Role};
use crate::random::Chance;
use crate::trace::Trace;
pub use fetching::Ended;
use fetching::Fetching;
use narswarm_protocol::fetch::SourceId;
use narswarm_protocol::hash::PieceHash;
use narswarm_protocol::piece::PieceLayout;
use narswarm_protocol::piece_set::PieceSet;
use serving::Serving;
use std::collections::BTreeSet;
use upstreams::Upstream;

/// Rates are computed anew this long after flows began or stopped, once for all that did:
/// far below what anybody measures, and much less work in a crowd.
const SETTLE_AFTER: Nanos = 200_000;

/// One way takes up to so many percent longer, by chance.
const JITTER_PERCENT: u64 = 10;

/// Something that happens.
#[derive(Debug)]
enum Happening {
    Settle,
    Departs(Departure),
    Asked(SessionId, Request),
    Told(SessionId, Reply),
    /// The asker sees that the connection is gone.
    Broken(SessionId),
    /// The holder sees that the connection is gone.
    Abandoned(SessionId),
    Starts(HostId),
    Found {
        host: HostId,
        attempt: u32,
        peer: HostId,
    },
    FoundAll {
        host: HostId,
        attempt: u32,
    },
    Wakes {
        host: HostId,
        attempt: u32,
    },
    LooksAround {
        host: HostId,
        attempt: u32,
    },
    Looks {
        host: HostId,
        attempt: u32,
    },
    Begins {
        session: SessionId,
        index: u32,
    },
    Came {
        session: SessionId,
        bytes: u64,
    },
    CameFromUpstream {
        host: HostId,
        stream: u32,
        bytes: u64,
    },
    Hashed {
        host: HostId,
        attempt: u32,
    },
    Reads {
        host: HostId,
        attempt: u32,
    },
    Uploads(HostId),
    TellsHave(HostId),
    UpstreamFirst {
        host: HostId,
        stream: u32,
    },
    UpstreamBegins {
        host: HostId,
        stream: u32,
    },
    UpstreamPiece {
        host: HostId,
        stream: u32,
        index: u32,
        piece: PieceHash,
    },
    UpstreamEnds {
        host: HostId,
        stream: u32,
    },
    Befalls(usize),
}

/// What travels through a flow.
#[derive(Debug)]
enum Parcel {
    Reply(SessionId, Reply),
    Upstream { host: HostId, stream: u32, index: u32 },
}

/// A host of the swarm.
#[derive(Debug)]
struct Host {
    nature: Nature,
    role: Role,
    /// Of a leecher, what it holds.
    pieces: Vec<Option<PieceHash>>,
    held: PieceSet,
    /// No verdict on what is held has been asked for.
    unhashed: bool,
    fetching: Option<Fetching>,
    serving: Serving,
    gone: bool,
    frozen: bool,
    cut: bool,
    part: u32,
}

/// One conversation.
#[derive(Debug)]
struct Session {
    asker: HostId,
    attempt: u32,
    holder: HostId,
    source: SourceId,
    flow: FlowId,
    /// The asker hasn't dropped it.
    alive: bool,
    /// The list it showed, as the asker knows it.
    version: Option<Version>,
    /// Octets of the flow that the asker has looked at.
    seen: u64,
    /// When the last request arrives, and the last reply: none overtakes another.
    asked_until: Nanos,
    told_until: Nanos,
}

/// The world.
pub struct World {
    pub(crate) plan: Plan,
    seed: u64,
    pub(crate) content: Content,
    agenda: Agenda<Happening>,
    network: Network<Parcel>,
    hosts: Vec<Host>,
    sessions: Vec<Session>,
    upstream: Option<Upstream>,
    pub(crate) ledger: Ledger,
    pub(crate) checker: Checker,
    pub(crate) trace: Trace,
    jitter: Chance,
    luck: Chance,
    settling: bool,
    /// What couldn't get through a partition, and will when it heals.
    parked: Vec<Happening>,
    sabotage: Option<Sabotage>,
    /// When something last befell somebody: what follows from it takes a moment.
    last_change: Nanos,
}

impl World {
    /// A world before its first event.
    #[must_use]
    pub fn new(plan: Plan, seed: u64, trace: Trace, sabotage: Option<Sabotage>) -> Self {
        let layout = PieceLayout::new(plan.nar_bytes).expect("scenarios keep to the largest nar");
        let upstream = plan.upstream.map(|upstream| upstream.version);
        let liars = plan.hosts.iter().filter_map(|host| match host.nature {
            Nature::Lying(version) => Some(version),
            _ => None,
        });
        let versions: BTreeSet<Version> = liars.chain(upstream).collect();
        let content = Content::new(layout, versions);
        let mut links: Vec<_> = plan.hosts.iter().map(|host| host.link).collect();
        links.extend(plan.upstream.map(|up| Link { up: up.rate, down: up.rate }));
        let hosts = plan.hosts.iter().map(|host| Host::new(host.nature, host.role, layout));
        let mut world = Self {
            hosts: hosts.collect(),
            network: Network::new(links.into_iter().map(Link::of_messages).collect()),
            ledger: Ledger::new(plan.hosts.len()),
            checker: Checker::new(&plan, layout),
            upstream: plan.upstream.map(Upstream::new),
            agenda: Agenda::default(),
            sessions: Vec::new(),
            jitter: Chance::new(seed, "jitter"),
            luck: Chance::new(seed, "luck"),
            settling: false,
            parked: Vec::new(),
            plan,
            seed,
            content,
            trace,
            sabotage,
            last_change: 0,
        };
        let plan = &world.plan;
        world.trace.add(0, format_args!("{} octets, upstream {:?}", plan.nar_bytes, plan.upstream));
        for (index, host) in world.plan.hosts.iter().enumerate() {
            world.trace.add(0, format_args!("{} is {host:?}", HostId(index as u32)));
            if let Role::Leech { start, .. } = host.role {
                world.agenda.at(start, Happening::Starts(HostId(index as u32)));
            }
        }
        for (index, &(at, _)) in world.plan.events.iter().enumerate() {
            world.agenda.at(at, Happening::Befalls(index));
        }
        world
    }

    /// The present moment.
    #[must_use]
    pub fn now(&self) -> Nanos {
        self.agenda.now()
    }

    /// Events that have been scheduled: the work of the run.
    #[must_use]
    pub fn work(&self) -> u64 {
        self.agenda.scheduled()
    }

    /// Writes what is left of the trace.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn flush_trace(&mut self) -> std::io::Result<()> {
        self.trace.flush()
    }

    /// Octets that a host has sent.
    #[must_use]
    pub fn sent_by(&self, host: u32) -> u64 {
        self.network.sent_by(HostId(host), self.now())
    }

    /// Lets everything happen until every fetch has ended, the deadline has passed or something
    /// was wrong.
    ///
    /// # Errors
    /// The first violation of what must hold.
    pub fn run(&mut self) -> Result<(), Violation> {
        while !self.is_over() {
            let Some(happening) = self.agenda.advance() else { break };
            if self.now() > self.plan.demands.deadline {
                break;
            }
            self.checker.at(self.agenda.now());
            self.happen(happening);
            if self.network.is_stale() && !self.settling {
                self.settling = true;
                self.agenda.after(SETTLE_AFTER, Happening::Settle);
            }
            if let Some(violation) = self.checker.violation() {
                return Err(violation);
            }
        }
        self.judge_end()
    }

    fn is_over(&self) -> bool {
        self.ledger.all_ended()
            && self.hosts.iter().all(|host| match host.role {
                Role::Seed => true,
                Role::Leech { start, .. } => start < self.now() || host.fetching.is_some(),
            })
            && self.now() > 0
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Settle => self.settle(),
            Happening::Departs(departure) => self.depart(departure),
            Happening::Asked(session, request) => self.hear_request(session, request),
            Happening::Told(session, reply) => self.hear_reply(session, reply),
            Happening::Broken(session) => self.hear_broken(session),
            Happening::Abandoned(session) => self.forget_asker(session),
            Happening::Starts(host) => self.start_fetch(host),
            Happening::Found { host, attempt, peer } => self.hear_of(host, attempt, peer),
            Happening::FoundAll { host, attempt } => self.hear_of_no_more(host, attempt),
            Happening::Wakes { host, attempt } => self.wake(host, attempt),
            Happening::LooksAround { host, attempt } => self.look_around(host, attempt),
            Happening::Looks { host, attempt } => self.look(host, attempt),
            Happening::Begins { session, index } => self.hear_begun(session, index),
            Happening::Came { session, bytes } => self.hear_progress(session, bytes),
            Happening::CameFromUpstream { host, stream, bytes } => {
                self.hear_upstream_progress(host, stream, bytes);
            }
            Happening::Hashed { host, attempt } => self.hear_verdict(host, attempt),
            Happening::Reads { host, attempt } => self.read_on(host, attempt),
            Happening::Uploads(host) => self.upload(host),
            Happening::TellsHave(host) => self.tell_have(host),
            Happening::UpstreamBegins { host, stream } => self.begin_stream(host, stream),
            Happening::UpstreamFirst { host, stream } => self.hear_first_octet(host, stream),
            Happening::UpstreamPiece { host, stream, index, piece } => {
                self.hear_upstream_piece(host, stream, index, piece);
            }
            Happening::UpstreamEnds { host, stream } => self.hear_upstream_end(host, stream),
            Happening::Befalls(index) => self.befall(index),
        }
    }

    fn settle(&mut self) {
        self.settling = false;
        for departure in self.network.settle(self.agenda.now()) {
            self.agenda.at(departure.at, Happening::Departs(departure));
        }
    }

    fn depart(&mut self, departure: Departure) {
        let now = self.now();
        let Some((parcel, next)) = self.network.depart(departure, now) else { return };
        if let Some(next) = next {
            self.agenda.at(next.at, Happening::Departs(next));
        }
        self.begin_piece(departure.flow);
        match parcel {
            Parcel::Reply(session, reply) => {
                if matches!(reply, Reply::Piece { .. }) {
                    self.piece_has_left(session);
                }
                self.tell(session, reply);
            }
            Parcel::Upstream { host, stream, index } => self.stream_on(host, stream, index),
        }
    }

    /// The asker of a piece that begins to leave hears of it.
    fn begin_piece(&mut self, flow: FlowId) {
        let Some(Parcel::Reply(id, Reply::Piece { index, .. })) = self.network.leaving(flow) else {
            return;
        };
        let (id, index) = (*id, *index);
        let at = self.arrival(id);
        self.agenda.at(at, Happening::Begins { session: id, index });
    }

    fn host(&self, host: HostId) -> &Host {
        &self.hosts[host.0 as usize]
    }

    fn host_mut(&mut self, host: HostId) -> &mut Host {
        &mut self.hosts[host.0 as usize]
    }

    fn session(&self, session: SessionId) -> &Session {
        &self.sessions[session.0 as usize]
    }

    /// One way between two hosts, without chance.
    fn one_way(&self, a: HostId, b: HostId) -> Nanos {
        let access = |host: HostId| {
            let upstream = self.plan.upstream.map_or(0, |upstream| upstream.access);
            self.plan.hosts.get(host.0 as usize).map_or(upstream, |host| host.access)
        };
        access(a) + access(b)
    }

    fn travel(&mut self, a: HostId, b: HostId) -> Nanos {
        let way = self.one_way(a, b);
        way + way * self.jitter.between(0, JITTER_PERCENT) / 100
    }

    /// Whether anything gets from one to the other now. Upstream is reached by all who aren't
    /// cut off.
    fn reaches(&self, a: HostId, b: HostId) -> bool {
        let (Some(a), Some(b)) = (self.hosts.get(a.0 as usize), self.hosts.get(b.0 as usize))
        else {
            return ![a, b]
                .into_iter()
                .any(|host| self.hosts.get(host.0 as usize).is_some_and(|h| h.cut));
        };
        !a.cut && !b.cut && a.part == b.part
    }

    /// Sends a request, which arrives after those before it.
    fn ask(&mut self, id: SessionId, request: Request) {
        let (asker, holder) = (self.session(id).asker, self.session(id).holder);
        let at = self.now() + self.travel(asker, holder);
        let session = &mut self.sessions[id.0 as usize];
        session.asked_until = session.asked_until.max(at);
        self.agenda.at(session.asked_until, Happening::Asked(id, request));
    }

    /// Lets a reply that has left travel to its asker.
    fn tell(&mut self, id: SessionId, reply: Reply) {
        let at = self.arrival(id);
        self.agenda.at(at, Happening::Told(id, reply));
    }

    /// When what leaves now for the asker is there: nothing overtakes what has left before.
    fn arrival(&mut self, id: SessionId) -> Nanos {
        let (asker, holder) = (self.session(id).asker, self.session(id).holder);
        let at = self.now() + self.travel(holder, asker);
        let session = &mut self.sessions[id.0 as usize];
        session.told_until = session.told_until.max(at);
        session.told_until
    }
}

impl Host {
    fn new(nature: Nature, role: Role, layout: PieceLayout) -> Self {
        let count = layout.piece_count();
        Self {
            nature,
            role,
            pieces: vec![None; count as usize],
            held: match role {
                Role::Seed => PieceSet::all(count),
                Role::Leech { .. } => PieceSet::none(count),
            },
            unhashed: true,
            fetching: None,
            serving: Serving::default(),
            gone: false,
            frozen: false,
            cut: false,
            part: 0,
        }
    }
}
