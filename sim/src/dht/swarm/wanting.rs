//! Who wants what, and how they get it: a search, and whoever it says is to be asked, until one has
//! answered that it holds the item.
//!
//! An oracle that knows every holder says whether it could have been got.

use super::Swarm;
use crate::agenda::{Nanos, SECOND, time};
use crate::dht::catalogue::ItemId;
use crate::dht::event::Event;
use crate::dht::links::Fate;
use crate::dht::setup::{HOUR, Wants};
use crate::dht::table::NodeId;
use crate::dht::tally::PARTS;
use narswarm_protocol::announce::{Found, NodeId as Peer, SearchId};
use narswarm_protocol::limits::MAX_PROVIDERS_PER_ITEM;

/// How long a search may take: what production gives it.
pub(super) const PATIENCE: Nanos = 10 * SECOND;

/// Holders of which a search is content: what production gives for few items.
const ENOUGH: usize = MAX_PROVIDERS_PER_ITEM;

/// Draws until one falls into a certain bucket: there are 64.
const MAX_DRAWS: usize = 10_000;

/// How often a search begins again at most.
const MAX_ROUNDS: u32 = 8;

/// Everybody wants what is new within so long.
const WAVE_SPREAD: Nanos = 1800 * SECOND;

/// Everybody wants what a crowd wants within so long.
const CROWD_SPREAD: Nanos = 60 * SECOND;

/// An item of a new provider is to be found after so long.
const NEW_AFTER: Nanos = 2 * SECOND;

/// Somebody wants something.
#[derive(Debug, Default)]
pub(super) struct Quest {
    turn: u32,
    pub(super) open: bool,
    node: NodeId,
    item: ItemId,
    pub(super) began: Nanos,
    /// Whether the oracle knows a holder that could be asked.
    possible: bool,
    asked: Vec<NodeId>,
    waiting: usize,
    /// How many were asked when the search began again, and how often it has.
    asked_before: usize,
    rounds: u32,
    over: bool,
    /// Whether it counts.
    counts: bool,
    /// Whether the item is to be held when it was got.
    keep: bool,
}

fn number(at: u32, turn: u32) -> SearchId {
    SearchId(u64::from(turn) << 32 | u64::from(at))
}

impl Swarm {
    /// Somebody wants an item, which they don't hold.
    pub(super) fn want(&mut self, node: NodeId, item: ItemId, keep: bool) {
        let links = &self.kad.links;
        if !links.online[node as usize] || self.catalogue.holds(node, item) {
            return;
        }
        let could = |&other: &NodeId| {
            other != node && links.online[other as usize] && links.joined(node, other)
        };
        let holders = self.catalogue.holders(item);
        let possible = holders.iter().any(|other| could(other) && self.honest(*other));
        let at = self.free_quests.pop().unwrap_or_else(|| {
            self.quests.push(Quest::default());
            self.quests.len() as u32 - 1
        });
        let now = self.agenda.now();
        let quest = &mut self.quests[at as usize];
        quest.turn = quest.turn.wrapping_add(1);
        quest.asked.clear();
        (quest.open, quest.over, quest.waiting) = (true, false, 0);
        (quest.asked_before, quest.rounds) = (0, 0);
        (quest.node, quest.item, quest.began) = (node, item, now);
        (quest.possible, quest.counts, quest.keep) = (possible, self.measuring, keep);
        let turn = quest.turn;
        self.agenda.after(PATIENCE, Event::Deadline { quest: at, turn });
        self.search(node, item, at, turn);
    }

    fn quest(&mut self, search: SearchId) -> Option<u32> {
        let (at, turn) = (search.0 as u32, (search.0 >> 32) as u32);
        let quest = self.quests.get(at as usize)?;
        (quest.open && quest.turn == turn).then_some(at)
    }

    /// A machine has found somebody who is said to hold what is wanted, and who is to be asked.
    pub(super) fn found(&mut self, node: NodeId, found: &Found) {
        let Some(at) = self.quest(found.search) else { return };
        let Ok(holder) = NodeId::try_from(found.provider.0) else { return };
        let quest = &mut self.quests[at as usize];
        if holder != node && !quest.asked.contains(&holder) {
            self.ask_holder(at, holder);
        }
    }

    /// A machine has ended a search.
    pub(super) fn done(&mut self, search: SearchId) {
        let Some(at) = self.quest(search) else { return };
        self.quests[at as usize].over = true;
        self.give_up_if_hopeless(at);
    }

    fn ask_holder(&mut self, at: u32, holder: NodeId) {
        let now = self.agenda.now();
        let quest = &mut self.quests[at as usize];
        quest.asked.push(holder);
        quest.waiting += 1;
        let (node, counts, turn) = (quest.node, quest.counts, quest.turn);
        let (after, answers) = match self.kad.links.ask(now, node, holder, true) {
            Fate::Answer { after, .. } => (after, true),
            Fate::Nothing { after } => (after, false),
        };
        if counts {
            let holds = self.catalogue.holds(holder, self.quests[at as usize].item);
            self.tally.dialled += 1;
            let stale = !answers || !holds;
            self.tally.stale += u64::from(stale);
            let hopeless = stale && !self.quests[at as usize].possible;
            self.tally.stale_hopeless += u64::from(hopeless);
        }
        self.agenda.after(after, Event::Holder { quest: at, turn, node: holder, answers });
    }

    /// A holder has answered, or can't be reached.
    pub(super) fn holder(&mut self, at: u32, turn: u32, holder: NodeId, answers: bool) {
        let now = self.agenda.now();
        let quest = &mut self.quests[at as usize];
        if !quest.open || quest.turn != turn {
            return;
        }
        quest.waiting -= 1;
        let (node, item) = (quest.node, quest.item);
        let there = answers && self.kad.links.online[holder as usize];
        if there && self.catalogue.holds(holder, item) && self.honest(holder) {
            self.connected(node, holder);
            if let Some(discovery) = &mut self.nodes[node as usize].discovery {
                discovery.handle_provider_there(Peer(holder.into()));
            }
            return self.got(at, true);
        }
        if let Some(discovery) = &mut self.nodes[node as usize].discovery {
            discovery.handle_provider_gone(Peer(holder.into()), time(now));
        }
        self.give_up_if_hopeless(at);
        self.poll_soon(node);
    }

    /// When all who were named were asked in vain, the search begins again, which leaves them out;
    /// when nobody new was named, it is over.
    fn give_up_if_hopeless(&mut self, at: u32) {
        let quest = &mut self.quests[at as usize];
        if !quest.open || !quest.over || quest.waiting > 0 {
            return;
        }
        if quest.asked.len() == quest.asked_before || quest.rounds >= MAX_ROUNDS {
            return self.got(at, false);
        }
        quest.asked_before = quest.asked.len();
        quest.rounds += 1;
        quest.over = false;
        let (node, item, turn) = (quest.node, quest.item, quest.turn);
        self.search(node, item, at, turn);
    }

    fn search(&mut self, node: NodeId, item: ItemId, at: u32, turn: u32) {
        let key = self.catalogue.key(item);
        let now = self.agenda.now();
        self.tell_closed(node);
        if let Some(discovery) = &mut self.nodes[node as usize].discovery {
            discovery.handle_search(number(at, turn), &[key], ENOUGH, time(now));
        }
        self.poll_soon(node);
    }

    /// Polls a node's machine after what is being handled now.
    fn poll_soon(&mut self, node: NodeId) {
        let now = self.agenda.now();
        if self.nodes[node as usize].poll_at > now {
            self.plan_poll(node, now);
        }
    }

    pub(super) fn deadline(&mut self, at: u32, turn: u32) {
        if self.quests[at as usize].open && self.quests[at as usize].turn == turn {
            self.got(at, false);
        }
    }

    /// The item has come, from a peer or in the end from elsewhere.
    fn got(&mut self, at: u32, from_peer: bool) {
        let now = self.agenda.now();
        let quest = &mut self.quests[at as usize];
        quest.open = false;
        let (node, item, keep, turn) = (quest.node, quest.item, quest.keep, quest.turn);
        let alive = self.kad.links.online[node as usize];
        // Who goes in the middle of it has neither got it nor failed to.
        if quest.counts && alive {
            let size = self.catalogue.size(item);
            let measured = now.saturating_sub(self.setup.warm_up);
            let part = measured * PARTS as u64 / self.setup.measured.max(1);
            let took = now - quest.began;
            self.tally.quest(quest.possible, from_peer, took, size, part as usize);
        }
        self.free_quests.push(at);
        if let Some(discovery) = &mut self.nodes[node as usize].discovery {
            discovery.handle_search_dropped(number(at, turn));
        }
        if alive && keep && self.honest(node) {
            self.hold(node, item);
        }
        self.poll_soon(node);
    }

    /// A node holds an item from now on.
    pub(super) fn hold(&mut self, node: NodeId, item: ItemId) {
        if !self.catalogue.hold(node, item) {
            return;
        }
        let key = self.catalogue.key(item);
        let now = time(self.agenda.now());
        let this = &mut self.nodes[node as usize];
        this.items.push(item);
        if let Some(discovery) = &mut this.discovery {
            discovery.handle_held(key, 0, now);
        }
    }

    /// The next of a node's daily wants, or one of the searches of all.
    pub(super) fn want_daily(&mut self, node: NodeId) {
        let item = self.draw_wanted();
        match self.setup.wants {
            Wants::Daily(daily) | Wants::Waves { daily, .. } => {
                self.want(node, item, true);
                let mean = 24 * HOUR / u64::from(daily.max(1));
                let pause = self.workload.between(mean / 2, mean * 3 / 2);
                self.agenda.after(pause, Event::Want { node });
            }
            Wants::Searches(_) | Wants::Sessions { .. } => self.want(node, item, false),
            Wants::Crowd | Wants::Novelties(_) | Wants::Nothing => {}
        }
    }

    /// An item by popularity; where one bucket is crowded around, one of that bucket.
    fn draw_wanted(&mut self) -> ItemId {
        for _ in 0..MAX_DRAWS {
            let item = self.catalogue.draw(&mut self.workload);
            let bucket = self.catalogue.key(item).bucket().number();
            if self.setup.sybils == 0 || bucket == super::coming::CROWDED {
                return item;
            }
        }
        self.catalogue.draw(&mut self.workload)
    }

    /// New versions are out: one seed has built them, and everybody wants them soon.
    pub(super) fn wave(&mut self, round: u32) {
        let Wants::Waves { every, items, .. } = self.setup.wants else { return };
        // The least popular, which nobody has asked for yet.
        let total = self.catalogue.len();
        let Some(first) = total.checked_sub(items * (round + 1)) else { return };
        let builder = self.kad.settings.bootstrap;
        for item in first..first + items {
            self.hold(builder, item);
        }
        self.poll(builder);
        self.all_crave(first..first + items, builder, WAVE_SPREAD);
        self.agenda.after(every, Event::Wave { number: round + 1 });
    }

    /// Everybody wants one item.
    pub(super) fn crowd(&mut self) {
        let item = self.catalogue.len() - 1;
        let holder = self.kad.settings.bootstrap;
        self.hold(holder, item);
        self.poll(holder);
        self.all_crave(item..item + 1, holder, CROWD_SPREAD);
    }

    fn all_crave(&mut self, items: std::ops::Range<ItemId>, but: NodeId, spread: Nanos) {
        for node in 0..self.setup.nodes {
            if node == but {
                continue;
            }
            for item in items.clone() {
                let after = self.workload.between(NEW_AFTER, spread);
                self.agenda.after(after, Event::Crave { node, item });
            }
        }
    }

    /// Somebody holds what nobody has held before, and somebody else wants it a little later.
    pub(super) fn novelty(&mut self) {
        let Some(item) = self.catalogue.len().checked_sub(self.tally.novelties + 1) else { return };
        let entry = self.kad.settings.bootstrap;
        let mut somebody = || loop {
            let most = u64::from(self.setup.nodes) - 1;
            let node = self.workload.between(entry.into(), most) as NodeId;
            if self.kad.links.online[node as usize] {
                return node;
            }
        };
        let (maker, seeker) = (somebody(), somebody());
        self.tally.novelties += 1;
        self.hold(maker, item);
        self.poll(maker);
        self.agenda.after(NEW_AFTER, Event::Crave { node: seeker, item });
    }
}
