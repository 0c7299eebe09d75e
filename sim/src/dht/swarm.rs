//! A network of nodes that announce and find, each with the very machine of production
//! (`protocol`'s `Discovery` and `Providers`) over the model of Kademlia.
//!
//! It feeds the machines and performs what they want; it decides nothing that they decide.

mod coming;
mod keeping;
mod past;
mod wanting;

use super::asleep::Asleep;
use super::catalogue::{Catalogue, ItemId};
use super::event::Event;
use super::kad::{Kad, Settings};
use super::links::{Fate, Links, Nat, Nature};
use super::population::Habit;
use super::setup::{HOUR, Setup};
use super::table::{NodeId, Position};
use super::tally::Tally;
use super::terrain::Terrain;
use crate::agenda::{Agenda, Nanos, SECOND, nanos, time};
use crate::random::Chance;
use narswarm_protocol::announce::providers::Providers;
use narswarm_protocol::announce::{
    Action, Bucket, Contact, Discovery, Message, NodeId as Peer, Position as Place, RequestId,
};
use narswarm_protocol::limits;
use past::Lore;
use wanting::Quest;

/// A message of discovery on its way, whose fate is known.
#[derive(Debug)]
struct Letter {
    from: NodeId,
    to: NodeId,
    request: RequestId,
    bucket: Bucket,
    message: Message,
    fresh: bool,
    /// The sender's session: what comes back to a later one is for nobody.
    session: u32,
}

/// What each node is and has.
#[derive(Debug)]
struct Node {
    habit: Habit,
    /// Its machine, while it is there.
    discovery: Option<Box<Discovery>>,
    /// What it keeps for others, while it is there.
    providers: Option<Box<Providers>>,
    /// What it has written down, while it is away.
    asleep: Option<Asleep>,
    items: Vec<ItemId>,
    /// When it is polled next.
    poll_at: Nanos,
    /// When the next event for that is: not later. When it comes too soon, it is put off.
    alarm: Nanos,
    /// Another event for that is planned for this time, as something was to be done before.
    put_off: Nanos,
    session: u32,
    /// Hours by which its day is ahead.
    zone: u8,
}

/// See the module.
pub struct Swarm {
    /// What the run consists of.
    pub setup: Setup,
    /// What is counted.
    pub tally: Tally,
    kad: Kad,
    agenda: Agenda<Event>,
    nodes: Vec<Node>,
    networks: Vec<u64>,
    lore: Lore,
    catalogue: Catalogue,
    letters: Vec<Option<Letter>>,
    free_letters: Vec<u32>,
    quests: Vec<Quest>,
    free_quests: Vec<u32>,
    chance: Chance,
    workload: Chance,
    measuring: bool,
    octets_at_begin: Vec<u64>,
    closed: Vec<NodeId>,
    digest: blake3::Hasher,
    seed: u64,
}

fn contact(kad: &Kad, networks: &[u64], node: NodeId) -> Contact {
    Contact {
        node: Peer(node.into()),
        position: Place(kad.positions[node as usize]),
        network: Some(networks[node as usize]),
    }
}

/// After which a message of discovery counts as not answered, as in production.
const LETTER_TIMEOUT: Nanos = 3 * SECOND;

/// Octets of a message of discovery and of its answer, but for what is in them.
const LETTER_OCTETS: u64 = 220;
/// Octets of a key, and of a node or provider that is named.
const KEY_OCTETS: u64 = 17;
const NAMED_OCTETS: u64 = 84;

impl Swarm {
    /// A run under a seed, at its beginning.
    #[must_use]
    pub fn new(setup: Setup, seed: u64) -> Self {
        let count = setup.nodes as usize;
        let mut chance = Chance::new(seed, "swarm");
        let mut positions: Vec<Position> =
            (0..count).map(|_| chance.between(0, u64::MAX)).collect();
        let terrain = match setup.uniform {
            Some(trip) => Terrain::Uniform(trip),
            None => Terrain::world(count, &mut Chance::new(seed, "terrain")),
        };
        let mut networks: Vec<u64> =
            (0..count).map(|_| chance.between(0, 2 * count as u64)).collect();
        coming::crowd(&setup, &mut positions, &mut networks);
        let mut links = Links::new(count, terrain, setup.timing, Chance::new(seed, "links"));
        links.online.fill(false);
        let settings = Settings { refresh: setup.refresh, widens: false, ..Settings::default() };
        let kad = Kad::new(positions, links, settings, Chance::new(seed, "kad"));
        let node = |_| Node {
            habit: Habit::Fixed,
            discovery: None,
            providers: None,
            asleep: None,
            items: Vec::new(),
            poll_at: Nanos::MAX,
            alarm: Nanos::MAX,
            put_off: Nanos::MAX,
            session: 0,
            zone: 0,
        };
        let catalogue =
            Catalogue::new(setup.items, setup.zipf_tenths, &mut Chance::new(seed, "catalogue"));
        let mut swarm = Self {
            setup,
            tally: Tally::default(),
            kad,
            agenda: Agenda::default(),
            nodes: (0..count).map(node).collect(),
            networks,
            lore: Lore::default(),
            catalogue,
            letters: Vec::new(),
            free_letters: Vec::new(),
            quests: Vec::new(),
            free_quests: Vec::new(),
            chance,
            workload: Chance::new(seed, "workload"),
            measuring: false,
            octets_at_begin: Vec::new(),
            closed: Vec::new(),
            digest: blake3::Hasher::new(),
            seed,
        };
        swarm.populate();
        swarm
    }

    /// Runs to the end; after each simulated hour `passed` is told how many have passed and how many
    /// events there were.
    pub fn run(&mut self, mut passed: impl FnMut(u64, u64)) {
        let end = self.setup.warm_up + self.setup.measured;
        let mut hours = 0;
        while hours * HOUR < end {
            hours += 1;
            self.run_until(end.min(hours * HOUR));
            passed(hours, self.tally.events);
        }
        self.close();
    }

    fn run_until(&mut self, end: Nanos) {
        while self.agenda.next_at().is_some_and(|at| at <= end)
            && let Some(event) = self.agenda.advance()
        {
            self.note(event);
            self.handle(event);
        }
        self.agenda.pass(end);
    }

    /// BLAKE3 over all events, in hexadecimal: two runs with the same digest did the same.
    #[must_use]
    pub fn digest(&self) -> String {
        self.digest.finalize().to_hex().to_string()
    }

    fn note(&mut self, event: Event) {
        let (kind, a, b) = event.numbers();
        self.tally.events += 1;
        let mut line = [0; 17];
        line[..8].copy_from_slice(&self.agenda.now().to_le_bytes());
        line[8] = kind;
        line[9..13].copy_from_slice(&a.to_le_bytes());
        line[13..].copy_from_slice(&b.to_le_bytes());
        self.digest.update(&line);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Answer { walk, node, fresh } => {
                let owner = self.kad.owner(walk);
                let ended = self.kad.answer(walk, node, fresh, &mut self.agenda);
                if let Some(owner) = owner.filter(|_| fresh) {
                    self.connected(owner, node);
                }
                if let Some(ended) = ended {
                    self.table_grown(ended.owner);
                }
            }
            Event::Silence { walk, node } => {
                let ended = self.kad.silence(walk, node, &mut self.agenda);
                if let Some(ended) = ended {
                    self.table_grown(ended.owner);
                }
            }
            Event::Met { node, other } => {
                self.kad.meet(node, other, &mut self.agenda);
                self.connected(node, other);
                self.poll(node);
            }
            Event::Refresh { node } => drop(self.kad.refresh(node, &mut self.agenda)),
            Event::Reply { letter } => self.replied(letter),
            Event::Failure { letter } => self.failed(letter),
            Event::Poll { node } => {
                let (now, this) = (self.agenda.now(), &mut self.nodes[node as usize]);
                if this.alarm == now {
                    this.alarm = Nanos::MAX;
                    if this.poll_at <= now {
                        self.poll(node);
                    } else {
                        let at = this.poll_at;
                        self.plan_poll(node, at);
                    }
                }
            }
            Event::Come { node } => self.come(node),
            Event::Go { node } => self.go(node),
            Event::Want { node } => self.want_daily(node),
            Event::Holder { quest, turn, node, answers } => {
                self.holder(quest, turn, node, answers);
            }
            Event::Missed { node, other } => self.missed(node, other),
            Event::Deadline { quest, turn } => self.deadline(quest, turn),
            Event::Probed { keeper, other, there } => self.probed(keeper, other, there),
            Event::Begin => self.begin(),
            Event::Heal => self.kad.links.divided = false,
            Event::Wave { number } => self.wave(number),
            Event::Crave { node, item } => self.want(node, item, !self.setup.searches_only()),
            Event::Novelty => self.novelty(),
        }
    }

    fn seconds(&self) -> u32 {
        (self.agenda.now() / SECOND) as u32
    }

    fn contact(&self, node: NodeId) -> Contact {
        contact(&self.kad, &self.networks, node)
    }

    /// Two are connected: their machines hear of it, if the other answers questions.
    fn connected(&mut self, a: NodeId, b: NodeId) {
        for (node, other) in [(a, b), (b, a)] {
            self.saw(node, other);
            if !self.kad.serves(other) {
                continue;
            }
            let contact = self.contact(other);
            let this = &mut self.nodes[node as usize];
            if let Some(discovery) = &mut this.discovery {
                discovery.handle_contact(contact);
                discovery.handle_connected(contact.node, true);
                self.kad.links.tell(node, other);
            }
        }
    }

    /// A walk to fill the table has ended: the machine hears of those in it.
    fn table_grown(&mut self, node: NodeId) {
        let known: Vec<NodeId> = self.kad.closest.iter().map(|&(_, node)| node).collect();
        for other in known {
            let contact = self.contact(other);
            if let Some(discovery) = &mut self.nodes[node as usize].discovery {
                discovery.handle_contact(contact);
            }
        }
        self.poll(node);
    }

    /// Tells the machine which connections have been closed since.
    fn tell_closed(&mut self, node: NodeId) {
        let seconds = self.seconds();
        let Some(discovery) = &mut self.nodes[node as usize].discovery else { return };
        self.kad.links.take_closed(node, seconds, &mut self.closed);
        for &other in &self.closed {
            discovery.handle_connected(Peer(other.into()), false);
        }
    }

    /// Performs what a node's machine wants, and plans when to ask it again.
    fn poll(&mut self, node: NodeId) {
        let now = self.agenda.now();
        self.tell_closed(node);
        loop {
            let this = &mut self.nodes[node as usize];
            let Some(discovery) = &mut this.discovery else { return };
            match discovery.poll_action(time(now)) {
                Some(Action::Ask { request, node: to, bucket, message }) => {
                    self.send(node, to, request, bucket, message);
                }
                Some(Action::Found(found)) => self.found(node, &found),
                Some(Action::Done(search)) => self.done(search),
                Some(Action::Stay { node: with, stay }) => self.stay(node, with, stay),
                None => break,
            }
        }
        let this = &mut self.nodes[node as usize];
        let Some(discovery) = &mut this.discovery else { return };
        // A millisecond is as fine as the timers of production.
        let at = discovery.poll_timeout(time(now));
        let at = at.map_or(Nanos::MAX, |at| nanos(at).max(now + crate::agenda::MILLI));
        self.plan_poll(node, at);
    }

    /// Plans to ask a node's machine at this time, and not before.
    fn plan_poll(&mut self, node: NodeId, at: Nanos) {
        let now = self.agenda.now();
        let this = &mut self.nodes[node as usize];
        this.poll_at = at;
        if at >= this.alarm {
            return;
        }
        let before = std::mem::replace(&mut this.alarm, at);
        if at == this.put_off && at > now {
            return;
        }
        // What is planned for much later is what comes again when all that is sooner is done.
        if before > now && before != Nanos::MAX {
            this.put_off = before;
        }
        self.agenda.at(at, Event::Poll { node });
    }

    fn send(
        &mut self,
        from: NodeId,
        to: Peer,
        request: RequestId,
        bucket: Bucket,
        message: Message,
    ) {
        let now = self.agenda.now();
        self.tally.letter(&message, self.measuring);
        self.kad.messages[from as usize] += 1;
        let session = self.nodes[from as usize].session;
        let known = NodeId::try_from(to.0).ok().filter(|&to| to < self.setup.nodes);
        // Whoever doesn't exist is dialled in vain.
        let (to, fate) = match known {
            Some(to) => (to, self.kad.links.ask(now, from, to, false)),
            None => (from, Fate::Nothing { after: self.setup.timing.dial_timeout }),
        };
        let fresh = matches!(fate, Fate::Answer { fresh: true, .. });
        let letter = Letter { from, to, request, bucket, message, fresh, session };
        let at = match self.free_letters.pop() {
            Some(at) => {
                self.letters[at as usize] = Some(letter);
                at
            }
            None => {
                self.letters.push(Some(letter));
                self.letters.len() as u32 - 1
            }
        };
        match fate {
            Fate::Answer { after, .. } => self.agenda.after(after, Event::Reply { letter: at }),
            Fate::Nothing { after } => {
                let after = after.min(LETTER_TIMEOUT);
                self.agenda.after(after, Event::Failure { letter: at });
            }
        }
    }

    /// Connects two for as long as one of them wants; when it no longer does, the connection is closed
    /// like any that is idle.
    fn stay(&mut self, node: NodeId, with: Peer, stay: bool) {
        let (now, seconds) = (self.agenda.now(), self.seconds());
        let Some(other) = NodeId::try_from(with.0).ok().filter(|other| *other < self.setup.nodes)
        else {
            return;
        };
        if !stay {
            self.kad.links.let_go(node, other, seconds);
            return;
        }
        match self.kad.links.ask(now, node, other, false) {
            Fate::Answer { after, fresh } => {
                let life = (limits::ANCHOR_LIFE + limits::ANCHOR_CHECK * 2).as_secs() as u32;
                self.kad.links.hold(node, other, seconds, life);
                if fresh {
                    self.agenda.after(after, Event::Met { node, other });
                }
            }
            Fate::Nothing { after } => self.agenda.after(after, Event::Missed { node, other }),
        }
    }

    fn missed(&mut self, node: NodeId, other: NodeId) {
        let now = time(self.agenda.now());
        self.kad.unreached(node, other);
        if let Some(discovery) = &mut self.nodes[node as usize].discovery {
            discovery.handle_unreachable(Peer(other.into()), now);
        }
    }

    fn take_letter(&mut self, letter: u32) -> Option<Letter> {
        let taken = self.letters[letter as usize].take();
        self.free_letters.push(letter);
        taken.filter(|letter| self.nodes[letter.from as usize].session == letter.session)
    }

    fn replied(&mut self, letter: u32) {
        let Some(letter) = self.take_letter(letter) else { return };
        let links = &self.kad.links;
        let there = links.online[letter.to as usize] && links.joined(letter.from, letter.to);
        if !there {
            return self.unanswered(&letter);
        }
        if letter.fresh {
            self.kad.meet(letter.from, letter.to, &mut self.agenda);
            self.connected(letter.from, letter.to);
        }
        let reply = self.answer(&letter);
        let keys = match &letter.message {
            Message::Look => 0,
            Message::Announce { keys, .. }
            | Message::Withdraw { keys }
            | Message::Find { keys } => keys.len(),
        };
        let named = reply.nearer.len() + reply.providers.len().min(64);
        let octets = LETTER_OCTETS + KEY_OCTETS * keys as u64 + NAMED_OCTETS * named as u64;
        self.kad.links.count(letter.from, letter.to, octets);
        self.kad.messages[letter.to as usize] += 1;
        let now = time(self.agenda.now());
        if let Some(discovery) = &mut self.nodes[letter.from as usize].discovery {
            discovery.handle_reply(letter.request, &reply, now);
        }
        self.poll(letter.from);
    }

    fn failed(&mut self, letter: u32) {
        if let Some(letter) = self.take_letter(letter) {
            self.unanswered(&letter);
        }
    }

    fn unanswered(&mut self, letter: &Letter) {
        self.kad.unreached(letter.from, letter.to);
        let now = time(self.agenda.now());
        if let Some(discovery) = &mut self.nodes[letter.from as usize].discovery {
            discovery.handle_failure(letter.request, now);
        }
        self.poll(letter.from);
    }

    fn honest(&self, node: NodeId) -> bool {
        self.kad.links.nature[node as usize] == Nature::Honest
    }

    /// How many nodes answer questions and are there.
    fn serving(&self) -> usize {
        let links = &self.kad.links;
        links.online.iter().zip(&links.nat).filter(|(on, nat)| **on && **nat == Nat::Open).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dht::scenario::{Options, find};

    #[test]
    fn nobody_is_polled_too_late_or_never_again() {
        let options = Options { nodes: Some(150), ..Options::default() };
        let churn = find("churn").expect("it is there").setup(options);
        let mut swarm = Swarm::new(churn, 3);
        for minutes in 1..240 {
            swarm.run_until(minutes * 60 * SECOND);
            for node in swarm.nodes.iter().filter(|node| node.discovery.is_some()) {
                assert!(node.alarm <= node.poll_at, "{node:?}");
                assert!(node.alarm >= swarm.agenda.now(), "{node:?}");
            }
        }
        assert!(swarm.tally.events > 10_000);
    }
}
