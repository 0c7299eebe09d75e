//! Tells the network what this node holds: which keys to whom, and when again.
//!
//! Each bucket is announced as a whole about once a day, at times spread over the day. What is new
//! is announced soon after, gathered for a moment so that what comes together goes together. What
//! many others announce as well is announced by few of them: while the nodes that keep a bucket know
//! of many providers, rounds are left out, the more the longer it lasts.

mod lots;

use super::announced::{Announced, BucketState};
use super::contacts::Contacts;
use super::place::{BUCKETS, Bucket, ItemKey, NodeId};
use super::presence::Presence;
use super::walk::Walk;
use super::{Message, mix};
use crate::fetch::Time;
use crate::limits::{
    ANNOUNCE_BURST, ANNOUNCE_RETRY, ANNOUNCE_TOKEN_EVERY, EXPLORE_AGAIN, FEW_PROVIDERS,
    GATHER_NEW_ITEMS, LOOK_NODES, MANY_PROVIDERS, MAX_ANNOUNCE_RETRY, MAX_ANNOUNCED_KEYS,
    MAX_BUCKETS_AT_ONCE, MAX_THINNING, MIN_REANNOUNCE, NEWCOMER_DOUBLINGS, PARALLEL_ANNOUNCES,
    REANNOUNCE, REPLICAS, RESTART_SPREAD, SAVED_NEIGHBOURS,
};
use lots::{Lot, Lots, Run};
use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::time::Duration;

/// Meeting points that are looked at before the first announcement: twice as many as an estimate
/// needs, as some may fail.
const SCOUTED: usize = 16;

/// Something held.
#[derive(Debug, Clone, Copy)]
struct Held {
    /// It is announced in every 2^level-th round.
    level: u8,
    /// Others have been told.
    told: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Announcer {
    seed: u64,
    explores: bool,
    /// Buckets that were looked at before the first announcement.
    scouted: usize,
    held: BTreeMap<ItemKey, Held>,
    /// What an earlier run has told others and this one hasn't been said to hold yet, with how
    /// thinly it was announced.
    recalled: BTreeMap<ItemKey, u8>,
    /// How often what is worth keeping has changed.
    changes: u64,
    lots: Lots,
    /// Announcements of new items that may be made at once, and when one was last added.
    tokens: u32,
    token_at: Time,
    withdrawals: VecDeque<(NodeId, Vec<ItemKey>)>,
    /// How much of the time before this run the node was there, and when this run began.
    presence: Presence,
    began: Time,
}

impl Announcer {
    pub fn new(seed: u64, explores: bool, now: Time) -> Self {
        Self {
            seed,
            explores,
            scouted: 0,
            held: BTreeMap::new(),
            recalled: BTreeMap::new(),
            changes: 0,
            lots: Lots::new(explores, now),
            tokens: ANNOUNCE_BURST,
            token_at: now,
            withdrawals: VecDeque::new(),
            presence: Presence::default(),
            began: now,
        }
    }

    /// Goes on where an earlier run of this node has left off `away` ago. What of it is held again
    /// isn't announced before its time; [`Announcer::forget_recalled`] withdraws the rest.
    pub fn restore(&mut self, announced: &Announced, away: Duration, now: Time) {
        self.presence = announced.presence.after(away, false);
        for &(key, level) in &announced.items {
            if !self.held.contains_key(&key) {
                self.recalled.insert(key, level.min(MAX_THINNING));
            }
        }
        for BucketState { bucket, due, look, keepers, near } in &announced.buckets {
            let lot = self.lots.change(*bucket);
            if !near.is_empty() {
                // As good as if the node had been there all the time: one who is still there names the
                // others.
                let look = (*look).min(EXPLORE_AGAIN).saturating_sub(away);
                lot.explore_due = lot.explore_due.max(now + look);
                lot.explored = true;
            }
            let Some(due) = due else { continue };
            let due = (*due).min(REANNOUNCE).saturating_sub(away);
            let late = lateness(self.seed, *bucket);
            lot.due = Some(now + due.max(late));
            // Nor do those begin all at once that have few keepers, nor soon.
            lot.announced = now + late;
            lot.starved = NEWCOMER_DOUBLINGS;
            lot.keepers = keepers.iter().copied().take(2 * REPLICAS).collect();
        }
    }

    /// The computer has slept for so long, which the time given to this machine doesn't count.
    pub fn slept(&mut self, span: Duration, now: Time) {
        self.presence = self.presence(now).after(span, false);
        self.began = now;
        for bucket in Bucket::all() {
            let late = lateness(self.seed, bucket);
            let lot = self.lots.change(bucket);
            let rest = lot.due.map(|due| due.since(now));
            lot.due = rest.map(|rest| now + rest.saturating_sub(span).max(late.min(rest)));
            lot.explore_due = now + lot.explore_due.since(now).saturating_sub(span);
        }
    }

    /// Everything held has been said to be: what is recalled beyond that is withdrawn.
    pub fn forget_recalled(&mut self, now: Time) {
        for key in std::mem::take(&mut self.recalled).into_keys() {
            self.lots.change(key.bucket()).withdraw(key, now);
        }
    }

    /// What is to be kept while this node doesn't run. What waits to be withdrawn is part of it, so
    /// that the next run withdraws it.
    pub fn announced(&self, contacts: &Contacts, now: Time) -> Announced {
        let told = self.held.iter().filter(|(_, held)| held.told);
        let told = told.map(|(key, held)| (*key, held.level));
        let recalled = self.recalled.iter().map(|(key, level)| (*key, *level));
        let gone = self.lots.iter().flat_map(|(_, lot)| &lot.gone).map(|key| (*key, 0));
        let buckets = self.lots.iter().map(|(bucket, lot)| BucketState {
            bucket,
            due: lot.due.map(|due| due.since(now)),
            look: lot.explore_due.since(now),
            keepers: lot.keepers.iter().copied().collect(),
            near: contacts.neighbours(bucket, SAVED_NEIGHBOURS),
        });
        Announced {
            items: told.chain(recalled).chain(gone).collect(),
            buckets: buckets.collect(),
            presence: self.presence(now),
            radius: Some(contacts.last_radius()).filter(|radius| *radius != u64::MAX).unwrap_or(0),
        }
    }

    /// How much of the time the node was there until now.
    fn presence(&self, now: Time) -> Presence {
        self.presence.after(now.since(self.began), true)
    }

    /// Differs when [`Announcer::announced`] does by more than the time.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    pub fn len(&self) -> usize {
        self.held.len()
    }

    pub fn holds(&self, key: &ItemKey) -> bool {
        self.held.contains_key(key)
    }

    pub fn keys(&self) -> impl Iterator<Item = ItemKey> {
        self.held.keys().copied()
    }

    /// An item is held, of which `providers` others are known.
    pub fn hold(&mut self, key: ItemKey, providers: usize, now: Time) {
        let lot = self.lots.change(key.bucket());
        lot.gone.remove(&key);
        if self.held.contains_key(&key) {
            return;
        }
        let recalled = self.recalled.remove(&key);
        let plenty = providers >= usize::from(MANY_PROVIDERS);
        let level = recalled.unwrap_or(if plenty { 2 } else { 0 });
        self.held.insert(key, Held { level, told: recalled.is_some() });
        // Others know it, unless its bucket was announced since, without it.
        if recalled.is_some() && lot.due.is_some() && lot.round == 0 {
            return;
        }
        if lot.due.is_none() || is_turn(self.seed, key, lot.round, level) {
            if lot.fresh.is_empty() {
                lot.fresh_due = now + GATHER_NEW_ITEMS;
            }
            lot.fresh.insert(key);
        }
    }

    /// An item is no longer held.
    pub fn release(&mut self, key: ItemKey, now: Time) {
        let Some(held) = self.held.remove(&key) else { return };
        let lot = self.lots.change(key.bucket());
        lot.fresh.remove(&key);
        if held.told || lot.run.as_ref().is_some_and(|run| run.keys.contains(&key)) {
            lot.withdraw(key, now);
            self.changes += 1;
        }
    }

    /// Everything is announced anew, as soon as may be.
    pub fn announce_again(&mut self, now: Time) {
        for bucket in Bucket::all() {
            let lot = self.lots.change(bucket);
            lot.due = lot.due.map(|_| now);
        }
    }

    /// The next message to send, if one is to be sent now.
    pub fn poll(
        &mut self,
        contacts: &mut Contacts,
        now: Time,
    ) -> Option<(Bucket, NodeId, Message)> {
        // Runs end without a message where nobody can be asked: of each bucket three at most, one that
        // scouts, one that looks and one that announces.
        (0..=3 * BUCKETS).find_map(|_| match self.poll_once(contacts, now) {
            ControlFlow::Break(message) => Some(message),
            ControlFlow::Continue(()) => None,
        })?
    }

    /// The next message, or none; or something has come to its end, and what follows isn't seen yet.
    fn poll_once(
        &mut self,
        contacts: &mut Contacts,
        now: Time,
    ) -> ControlFlow<Option<(Bucket, NodeId, Message)>> {
        if contacts.is_empty() {
            return ControlFlow::Break(None);
        }
        self.add_tokens(now);
        let mut running = self.lots.running();
        let scouting = self.scout(&mut running, contacts, now);
        let token = self.next_token(now);
        let share = self.presence(now).share();
        for bucket in self.lots.awake(token, now) {
            self.queue_withdrawals(bucket, now);
            if !scouting && !self.lots.runs(bucket) && running < MAX_BUCKETS_AT_ONCE {
                self.begin(bucket, contacts, now);
                running += usize::from(self.lots.runs(bucket));
            }
            let Some(run) = self.lots.run(bucket) else { continue };
            if let Some(node) = run.walk.next(contacts, now) {
                let message = if run.looking {
                    Message::Look
                } else {
                    Message::Announce { keys: run.keys.clone(), share }
                };
                return ControlFlow::Break(Some((bucket, node, message)));
            }
            if run.walk.is_over() {
                self.step(bucket, contacts, now);
                return ControlFlow::Continue(());
            }
        }
        ControlFlow::Break(self.next_withdrawal())
    }

    fn next_withdrawal(&mut self) -> Option<(Bucket, NodeId, Message)> {
        let (node, keys) = self.withdrawals.pop_front()?;
        let bucket = keys.first()?.bucket();
        Some((bucket, node, Message::Withdraw { keys }))
    }

    /// Before the first announcement: sees who is near some meeting points, since what is usual has
    /// to be known to see where it is crowded. Says whether that is still going on.
    fn scout(&mut self, running: &mut usize, contacts: &mut Contacts, now: Time) -> bool {
        let has_something = |lot: &Lot| {
            lot.due.is_some_and(|due| due <= now) || (!lot.fresh.is_empty() && lot.fresh_due <= now)
        };
        if !contacts.is_new_here() || !self.lots.iter().any(|(_, lot)| has_something(lot)) {
            return false;
        }
        while self.scouted < SCOUTED && *running < MAX_BUCKETS_AT_ONCE {
            let Some(bucket) = Bucket::new(self.scouted as u8) else { break };
            self.scouted += 1;
            if !self.lots.runs(bucket) {
                self.lots.start(bucket, Run::explore(bucket, false, contacts, now));
                *running += 1;
            }
        }
        let exploring = |lot: &Lot| lot.run.as_ref().is_some_and(|run| run.keys.is_empty());
        self.lots.iter().any(|(_, lot)| exploring(lot))
    }

    fn add_tokens(&mut self, now: Time) {
        let passed = now.since(self.token_at).as_secs() / ANNOUNCE_TOKEN_EVERY.as_secs();
        if passed > 0 {
            let more = u32::try_from(passed).unwrap_or(u32::MAX);
            self.give_tokens(more);
            self.token_at = self.token_at + ANNOUNCE_TOKEN_EVERY * more;
        }
    }

    fn give_tokens(&mut self, more: u32) {
        if self.tokens == 0 {
            self.lots.change_all();
        }
        self.tokens = self.tokens.saturating_add(more).min(ANNOUNCE_BURST);
    }

    /// When something new may be announced, as far as there is a limit to it.
    fn next_token(&self, now: Time) -> Time {
        if self.tokens > 0 { now } else { self.token_at + ANNOUNCE_TOKEN_EVERY }
    }

    fn queue_withdrawals(&mut self, bucket: Bucket, now: Time) {
        let lot = self.lots.get(bucket);
        if lot.gone.is_empty() || lot.gone_due > now || lot.run.is_some() {
            return;
        }
        let lot = self.lots.change(bucket);
        self.changes += 1;
        let gone: Vec<_> = std::mem::take(&mut lot.gone).into_iter().collect();
        for keys in gone.chunks(MAX_ANNOUNCED_KEYS) {
            let to_each = lot.keepers.iter().map(|keeper| (*keeper, keys.to_vec()));
            self.withdrawals.extend(to_each);
        }
    }

    /// Begins to announce a bucket, when something of it is due.
    fn begin(&mut self, bucket: Bucket, contacts: &mut Contacts, now: Time) {
        let lot = self.lots.get(bucket);
        // A bucket that has fewer keepers than it should gets another when one has come, or when one may
        // answer that didn't.
        let starved = lot.newcomers().is_some_and(|at| at <= now)
            && (lot.missed || lot.arrivals != contacts.arrivals());
        let whole = starved || lot.due.is_some_and(|due| due <= now);
        let fresh = !lot.fresh.is_empty() && lot.fresh_due <= now && self.tokens > 0;
        let explore = self.explores && lot.explore_due <= now;
        if !whole && !fresh {
            if explore && lot.explores().is_some() {
                let run = Run::explore(bucket, lot.explored, contacts, now);
                self.lots.start(bucket, run);
            }
            return;
        }
        let keys: Vec<ItemKey> = if whole {
            let (least, greatest) = ItemKey::range(bucket);
            let held = self.held.range(least..=greatest);
            let turn = held.filter(|(key, held)| is_turn(self.seed, **key, lot.round, held.level));
            turn.map(|(key, _)| *key).take(MAX_ANNOUNCED_KEYS).collect()
        } else {
            lot.fresh.iter().take(MAX_ANNOUNCED_KEYS).copied().collect()
        };
        let lot = self.lots.change(bucket);
        if keys.is_empty() {
            // Nothing is held, or all of it is thinned out this time.
            lot.round += 1;
            lot.due = Some(now + interval(self.seed, bucket, lot.round));
            if explore {
                let run = Run::explore(bucket, lot.explored, contacts, now);
                self.lots.start(bucket, run);
            }
            return;
        }
        for key in &keys {
            lot.fresh.remove(key);
        }
        lot.fresh_due = now + GATHER_NEW_ITEMS;
        lot.arrivals = contacts.arrivals();
        if !whole {
            self.tokens -= 1;
            if self.tokens == 0 {
                self.lots.change_all();
            }
        }
        let mut walk = Walk::new(bucket.position(), LOOK_NODES, LOOK_NODES, contacts, now);
        let looking = !walk.is_settled(REPLICAS);
        if !looking {
            walk.ask_again(REPLICAS, PARALLEL_ANNOUNCES);
        }
        let known = vec![0; keys.len()];
        self.lots.start(bucket, Run { walk, looking, whole, keys, known });
    }

    /// A walk has come to its end: what it was for follows.
    fn step(&mut self, bucket: Bucket, contacts: &mut Contacts, now: Time) {
        let Some(mut run) = self.lots.end(bucket) else { return };
        let lot = self.lots.change(bucket);
        let keepers = run.walk.who_answered();
        if !keepers.is_empty() {
            contacts.explored(bucket);
            lot.explored = true;
        }
        lot.explore_due = now + EXPLORE_AGAIN;
        if run.keys.is_empty() {
            self.changes += 1;
            return;
        }
        if run.looking {
            run.looking = false;
            run.walk.ask_again(REPLICAS, PARALLEL_ANNOUNCES);
            self.lots.start(bucket, *run);
            return;
        }
        if keepers.is_empty() {
            lot.failures += 1;
            let pause = ANNOUNCE_RETRY * (1 << lot.failures.min(10));
            lot.fresh_due = now + pause.min(MAX_ANNOUNCE_RETRY);
            // Nor are newcomers told sooner, as there is nobody who could be.
            lot.announced = lot.fresh_due;
            if run.whole {
                lot.due = Some(lot.fresh_due);
            }
            let held = &self.held;
            lot.fresh.extend(run.keys.into_iter().filter(|key| held.contains_key(key)));
            if !run.whole {
                // Nobody was told, so it doesn't count.
                self.give_tokens(1);
            }
            return;
        }
        lot.failures = 0;
        self.changes += 1;
        if run.whole {
            lot.keepers = keepers;
        } else {
            lot.keepers.extend(keepers);
            while lot.keepers.len() > 2 * REPLICAS {
                // Those that are no longer known can't be told anything anyway.
                let gone = lot.keepers.iter().find(|keeper| contacts.get(**keeper).is_none());
                let Some(gone) = gone.or(lot.keepers.first()).copied() else { break };
                lot.keepers.remove(&gone);
            }
        }
        if run.whole || lot.due.is_none() {
            lot.note_whole(run.walk.has_failures());
            lot.round += 1;
            lot.announced = now;
            lot.due = Some(now + interval(self.seed, bucket, lot.round));
        }
        for (key, known) in run.keys.iter().zip(&run.known) {
            let Some(held) = self.held.get_mut(key) else { continue };
            held.told = true;
            if *known >= MANY_PROVIDERS {
                held.level = (held.level + 1).min(MAX_THINNING);
            } else if *known <= FEW_PROVIDERS {
                held.level = held.level.saturating_sub(1);
            }
        }
    }

    /// A node has answered, and told (for an announcement) how many providers it knows of each key.
    pub fn answered(&mut self, bucket: Bucket, node: NodeId, known: &[u8]) {
        let Some(run) = self.lots.run(bucket) else { return };
        run.walk.answered(node);
        for (most, known) in run.known.iter_mut().zip(known) {
            *most = (*most).max(*known);
        }
    }

    pub fn failed(&mut self, bucket: Bucket, node: NodeId) {
        if let Some(run) = self.lots.run(bucket) {
            run.walk.failed(node);
        }
    }

    pub fn walk(&mut self, bucket: Bucket) -> Option<&mut Walk> {
        self.lots.run(bucket).map(|run| &mut run.walk)
    }

    /// When time alone will make something happen.
    pub fn poll_timeout(&mut self, now: Time) -> Option<Time> {
        let token = self.next_token(now);
        self.lots.next(token, now)
    }
}

/// Whether an item of this level is announced in this round. Each item has rounds of its own.
fn is_turn(seed: u64, key: ItemKey, round: u64, level: u8) -> bool {
    let mut low = [0; 8];
    low.copy_from_slice(&key.0[8..]);
    let phase = mix(seed, u64::from_be_bytes(low), 0);
    (round.wrapping_add(phase)).is_multiple_of(1 << level)
}

/// What fell due while the node was away is spread over some minutes.
fn lateness(seed: u64, bucket: Bucket) -> Duration {
    Duration::from_secs(mix(seed, u64::from(bucket.number()), 1) % RESTART_SPREAD.as_secs())
}

/// How long until a bucket is announced again. Not the same for all, so that a node which begins
/// with everything at once doesn't go on so.
fn interval(seed: u64, bucket: Bucket, round: u64) -> Duration {
    let span = REANNOUNCE - MIN_REANNOUNCE;
    MIN_REANNOUNCE
        + Duration::from_secs(mix(seed, u64::from(bucket.number()), round) % span.as_secs())
}
