//! All nodes' Kademlia: tables, walks, refreshing, joining.
//!
//! A question and its answer are one event, at the moment of the answer, which is made up from
//! what the asked node knows then. What is asked within a walk costs no allocation: walks and
//! buffers are used again.

use super::event::Event;
use super::links::{Fate, Links, Nat, Nature};
use super::table::{BUCKET, NodeId, Offer, Position, Table};
use super::walk::{Next, Walk};
use crate::agenda::{Agenda, MILLI, Nanos, SECOND};
use crate::random::Chance;

/// A walk's number: its place, and whose turn in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalkId {
    /// Place among the walks.
    pub at: u32,
    turn: u32,
}

/// What a walk is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Filling the table: this bucket, and then those farther away; none: the walk to oneself.
    Refresh(Option<u8>),
    /// What somebody above has asked for, under a number of theirs.
    Asked(u64),
}

/// What becomes of a node that is met while its bucket is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Insertion {
    /// libp2p's rule: it waits, the node longest unheard is called, and gives way if it doesn't
    /// answer. With every meeting offered to the table, each call makes another.
    Challenge,
    /// It is forgotten. Nodes that can't be reached are taken out, and so there is room.
    Room,
}

/// How Kademlia is set up.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Whether the paths of a walk are kept apart.
    pub disjoint: bool,
    /// Who gets into a table.
    pub insertion: Insertion,
    /// How often the table is refreshed; none: never.
    pub refresh: Option<Nanos>,
    /// Whether that goes on to each bucket after the walk to oneself, as libp2p does it. Production
    /// ends it there.
    pub widens: bool,
    /// After which a walk is ended with what it has.
    pub walk_timeout: Nanos,
    /// Nodes remembered over a restart.
    pub remembered: usize,
    /// Nodes 0 to this are the entry that everybody knows.
    pub bootstrap: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            disjoint: false,
            insertion: Insertion::Room,
            refresh: Some(1800 * SECOND),
            widens: true,
            walk_timeout: 60 * SECOND,
            remembered: 128,
            bootstrap: 4,
        }
    }
}

/// A walk that is over.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// What it was for.
    pub purpose: Purpose,
    /// Whose it was.
    pub owner: NodeId,
    /// Questions asked.
    pub asked: u32,
    /// Answers received.
    pub answers: u32,
    /// How many were asked in a row to hear of the closest.
    pub hops: u8,
    /// How long it took.
    pub took: Nanos,
}

#[derive(Debug, Default)]
struct Slot {
    walk: Walk,
    turn: u32,
    purpose: Option<Purpose>,
    began: Nanos,
}

/// Octets of a question for the closest nodes, everything below it included.
const ASK_OCTETS: u64 = 130;
/// Octets of an answer but for the nodes in it, and of each of these: a peer id and two addresses.
const ANSWER_OCTETS: u64 = 90;
const NAMED_OCTETS: u64 = 84;

/// How long a node waits after it has met somebody before it walks to itself.
const JOIN_PAUSE: Nanos = 500 * MILLI;

/// How long a node that can't enter waits before it tries again: the longest pause of production.
const ENTRY_PAUSE: Nanos = 60 * SECOND;

/// Nodes that one which comes wants to be connected to, as in production.
const WANTED: usize = 24;

/// Tries at finding a key that falls into a certain bucket, as libp2p makes them.
const TRIES: usize = 16;

/// See the module.
#[derive(Debug)]
pub struct Kad {
    /// Where everybody is.
    pub positions: Vec<Position>,
    /// Connections.
    pub links: Links,
    /// Settings.
    pub settings: Settings,
    /// Everybody's table.
    pub tables: Vec<Table>,
    /// Liars' positions, sorted: whom liars name.
    pub liars: Vec<(Position, NodeId)>,
    /// Questions of Kademlia asked in all.
    pub questions: u64,
    /// Questions that each has asked or answered.
    pub messages: Vec<u32>,
    /// Closest nodes of the walk that has just ended.
    pub closest: Vec<(Position, NodeId)>,
    remembered: Vec<Vec<NodeId>>,
    /// When each fills its table next; what was planned for another time is void.
    refreshes: Vec<Nanos>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    named: Vec<(Position, NodeId)>,
    chance: Chance,
}

impl Kad {
    /// Nodes at these positions that know nobody yet.
    #[must_use]
    pub fn new(positions: Vec<Position>, links: Links, settings: Settings, chance: Chance) -> Self {
        let tables = positions.iter().map(|&position| Table::new(position)).collect();
        let count = positions.len();
        Self {
            positions,
            links,
            settings,
            tables,
            liars: Vec::new(),
            questions: 0,
            messages: vec![0; count],
            closest: Vec::new(),
            remembered: vec![Vec::new(); count],
            refreshes: vec![Nanos::MAX; count],
            slots: Vec::new(),
            free: Vec::new(),
            named: Vec::new(),
            chance,
        }
    }

    /// Whether a node answers others' questions.
    #[must_use]
    pub fn serves(&self, node: NodeId) -> bool {
        self.links.nat[node as usize] == Nat::Open
    }

    /// Makes these nodes liars.
    pub fn corrupt(&mut self, nodes: impl Iterator<Item = NodeId>) {
        for node in nodes {
            self.links.nature[node as usize] = Nature::Liar;
            self.liars.push((self.positions[node as usize], node));
        }
        self.liars.sort_unstable();
    }

    /// The node comes: it calls whom it remembers and the entry, and joins by those that answer.
    pub fn join(&mut self, node: NodeId, agenda: &mut Agenda<Event>) {
        let at = node as usize;
        self.links.online[at] = true;
        self.tables[at].clear();
        self.enter(node, agenda);
        self.plan_refresh(node, agenda.now() + JOIN_PAUSE, agenda);
    }

    /// Calls the entry, and of those remembered as many as answer.
    fn enter(&mut self, node: NodeId, agenda: &mut Agenda<Event>) {
        let mut answers = 0;
        let entry = 0..self.settings.bootstrap;
        let known = std::mem::take(&mut self.remembered[node as usize]);
        for other in entry.chain(known.iter().copied()).filter(|&other| other != node) {
            if answers >= WANTED {
                break;
            }
            let fate = self.links.ask(agenda.now(), node, other, false);
            if let Fate::Answer { after, .. } = fate {
                answers += 1;
                agenda.after(after, Event::Met { node, other });
            }
        }
        self.remembered[node as usize] = known;
    }

    fn plan_refresh(&mut self, node: NodeId, at: Nanos, agenda: &mut Agenda<Event>) {
        self.refreshes[node as usize] = at;
        agenda.at(at, Event::Refresh { node });
    }

    /// The node goes.
    pub fn leave(&mut self, node: NodeId, in_order: bool) {
        let at = node as usize;
        let mut known = self.tables[at].latest(self.settings.remembered);
        // Those met in this session come first; of those before, as many as there is room for.
        for &other in &self.remembered[at] {
            if known.len() < self.settings.remembered && !known.contains(&other) {
                known.push(other);
            }
        }
        self.remembered[at] = known;
        self.tables[at].clear();
        self.links.leave(node, in_order);
    }

    /// Two have connected and told each other who they are.
    pub fn meet(&mut self, a: NodeId, b: NodeId, agenda: &mut Agenda<Event>) {
        self.learn(a, b, agenda);
        self.learn(b, a, agenda);
    }

    fn learn(&mut self, node: NodeId, other: NodeId, agenda: &mut Agenda<Event>) {
        if !self.serves(other) || !self.links.online[node as usize] {
            return;
        }
        let now = agenda.now();
        let before = self.tables[node as usize].len();
        self.offer(node, other, agenda);
        // As libp2p does it: a table that is nearly empty is filled as soon as it grows.
        let after = self.tables[node as usize].len();
        if after > before && after < BUCKET {
            self.plan_refresh(node, now + JOIN_PAUSE, agenda);
        }
    }

    fn offer(&mut self, node: NodeId, other: NodeId, agenda: &mut Agenda<Event>) {
        let now = agenda.now();
        let seconds = (now / SECOND) as u32;
        let position = self.positions[other as usize];
        let links = &self.links;
        let connected = |other| links.connected(node, other, seconds);
        let table = &mut self.tables[node as usize];
        if self.settings.insertion == Insertion::Room {
            table.take_if_room(other, position, seconds);
            return;
        }
        let offer = table.offer(other, position, seconds, connected);
        if let Offer::Challenges(old) = offer
            && let Fate::Answer { after, .. } = self.links.ask(now, node, old, false)
        {
            // A connection like any other: the other side offers this node to its table as well.
            agenda.after(after, Event::Met { node, other: old });
        }
    }

    /// Fills the table: now, and from then on as often as is set.
    pub fn refresh(&mut self, node: NodeId, agenda: &mut Agenda<Event>) -> Option<Ended> {
        let at = node as usize;
        if !self.links.online[at] || self.refreshes[at] != agenda.now() {
            return None;
        }
        if self.tables[at].is_empty() {
            // Alone: all that it knows once more.
            self.enter(node, agenda);
            let pause = self.chance.between(JOIN_PAUSE, ENTRY_PAUSE);
            self.plan_refresh(node, agenda.now() + pause, agenda);
            return None;
        }
        if let Some(refresh) = self.settings.refresh {
            self.plan_refresh(node, agenda.now() + refresh, agenda);
        }
        let target = self.positions[at];
        self.walk(node, target, BUCKET, Purpose::Refresh(None), agenda)
    }

    /// Begins a walk. It may be over at once, when there is nobody to ask.
    pub fn walk(
        &mut self,
        owner: NodeId,
        target: Position,
        wanted: usize,
        purpose: Purpose,
        agenda: &mut Agenda<Event>,
    ) -> Option<Ended> {
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() as u32 - 1
        });
        let seconds = (agenda.now() / SECOND) as u32;
        let table = &mut self.tables[owner as usize];
        table.closest(target, owner, seconds, &self.positions, &mut self.named);
        let slot = &mut self.slots[at as usize];
        slot.walk.begin(owner, target, wanted, self.settings.disjoint, &self.named);
        (slot.purpose, slot.began) = (Some(purpose), agenda.now());
        let walk = WalkId { at, turn: slot.turn };
        self.go_on(walk, agenda)
    }

    fn slot(&mut self, walk: WalkId) -> Option<&mut Slot> {
        let slot = &mut self.slots[walk.at as usize];
        (slot.turn == walk.turn && slot.purpose.is_some()).then_some(slot)
    }

    fn go_on(&mut self, id: WalkId, agenda: &mut Agenda<Event>) -> Option<Ended> {
        let now = agenda.now();
        loop {
            let slot = &mut self.slots[id.at as usize];
            let late = now - slot.began >= self.settings.walk_timeout;
            let next = if late { Next::Done } else { slot.walk.proceed() };
            let owner = slot.walk.owner;
            match next {
                Next::Ask(node) => {
                    self.questions += 1;
                    self.messages[owner as usize] += 1;
                    let event = match self.links.ask(now, owner, node, false) {
                        Fate::Answer { after, fresh } => {
                            (after, Event::Answer { walk: id, node, fresh })
                        }
                        Fate::Nothing { after } => (after, Event::Silence { walk: id, node }),
                    };
                    agenda.after(event.0, event.1);
                }
                Next::Wait => return None,
                Next::Done => return self.end(id, agenda),
            }
        }
    }

    fn end(&mut self, id: WalkId, agenda: &mut Agenda<Event>) -> Option<Ended> {
        let slot = &mut self.slots[id.at as usize];
        let purpose = slot.purpose.take()?;
        slot.turn = slot.turn.wrapping_add(1);
        slot.walk.result(&mut self.closest);
        let ended = Ended {
            purpose,
            owner: slot.walk.owner,
            asked: slot.walk.asked,
            answers: slot.walk.answers,
            hops: slot.walk.hops(),
            took: agenda.now() - slot.began,
        };
        self.free.push(id.at);
        let Purpose::Refresh(done) = purpose else { return Some(ended) };
        if !self.links.online[ended.owner as usize] {
            return Some(ended);
        }
        let place = match done {
            None if !self.settings.widens => None,
            None => self.tables[ended.owner as usize].to_refresh().next(),
            Some(done) => done.checked_sub(1),
        };
        if let Some(place) = place {
            let target = self.key_within(ended.owner, place);
            let purpose = Purpose::Refresh(Some(place));
            // A refresh that ends at once had nobody to ask; there is nothing to go on with.
            let _ = self.walk(ended.owner, target, BUCKET, purpose, agenda);
        }
        Some(ended)
    }

    /// A key that falls into this bucket, if chance has one within the tries that libp2p makes.
    fn key_within(&mut self, node: NodeId, place: u8) -> Position {
        let own = self.positions[node as usize];
        let mut key = 0;
        for _ in 0..TRIES {
            key = self.chance.between(0, u64::MAX);
            if (own ^ key).leading_zeros() == u32::from(place) {
                break;
            }
        }
        key
    }

    /// Takes an answer within a walk.
    pub fn answer(
        &mut self,
        id: WalkId,
        node: NodeId,
        fresh: bool,
        agenda: &mut Agenda<Event>,
    ) -> Option<Ended> {
        let now = agenda.now();
        let slot = self.slot(id)?;
        let (owner, target) = (slot.walk.owner, slot.walk.target);
        if !self.links.online[owner as usize] {
            self.abandon(id);
            return None;
        }
        if !self.links.online[node as usize] || !self.links.joined(owner, node) {
            let wait = self.links.timing.ask_timeout;
            agenda.after(wait, Event::Silence { walk: id, node });
            return None;
        }
        if fresh {
            self.meet(owner, node, agenda);
        }
        self.messages[node as usize] += 1;
        self.name(node, owner, target, now);
        let octets = ASK_OCTETS + ANSWER_OCTETS + NAMED_OCTETS * self.named.len() as u64;
        self.links.count(owner, node, octets);
        let named = std::mem::take(&mut self.named);
        let distance = self.positions[node as usize] ^ target;
        self.slots[id.at as usize].walk.answered(node, distance, &named);
        self.named = named;
        self.go_on(id, agenda)
    }

    /// Whom a node names when it is asked by another for those closest to `target`.
    fn name(&mut self, node: NodeId, asker: NodeId, target: Position, now: Nanos) {
        if self.links.nature[node as usize] == Nature::Liar {
            self.name_accomplices(node, target);
            return;
        }
        let seconds = (now / SECOND) as u32;
        let table = &mut self.tables[node as usize];
        table.closest(target, asker, seconds, &self.positions, &mut self.named);
    }

    /// The liars around the target: they lie about who is closest, but can't be where they aren't.
    fn name_accomplices(&mut self, node: NodeId, target: Position) {
        self.named.clear();
        let at = self.liars.partition_point(|liar| liar.0 < target);
        let around = at.saturating_sub(2 * BUCKET)..(at + 2 * BUCKET).min(self.liars.len());
        let others = self.liars[around].iter().filter(|liar| liar.1 != node);
        self.named.extend(others.map(|&(position, other)| (position ^ target, other)));
        self.named.sort_unstable();
        self.named.truncate(BUCKET);
    }

    /// No answer came within a walk.
    pub fn silence(
        &mut self,
        id: WalkId,
        node: NodeId,
        agenda: &mut Agenda<Event>,
    ) -> Option<Ended> {
        let distance = self.positions[node as usize];
        let slot = self.slot(id)?;
        let (owner, target) = (slot.walk.owner, slot.walk.target);
        slot.walk.failed(node, distance ^ target);
        self.unreached(owner, node);
        if !self.links.online[owner as usize] {
            self.abandon(id);
            return None;
        }
        self.go_on(id, agenda)
    }

    /// A node couldn't be reached by another.
    pub fn unreached(&mut self, from: NodeId, to: NodeId) {
        if self.settings.insertion == Insertion::Room {
            self.tables[from as usize].remove(to, self.positions[to as usize]);
        }
    }

    /// Ends a walk whose owner has gone, or that nobody wants any more.
    pub fn abandon(&mut self, id: WalkId) {
        if let Some(slot) = self.slot(id) {
            slot.purpose = None;
            slot.turn = slot.turn.wrapping_add(1);
            self.free.push(id.at);
        }
    }

    /// Whose walk it is, if it is still under way.
    pub fn owner(&mut self, id: WalkId) -> Option<NodeId> {
        self.slot(id).map(|slot| slot.walk.owner)
    }

    /// Walks under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}
