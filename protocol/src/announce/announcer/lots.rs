//! The buckets, as far as announcing is concerned: what of each is new or gone, who keeps it, and
//! when it wants something next.
//!
//! Most want nothing most of the time, while a node sends and hears messages all the time. So it is
//! remembered which of them are awake, and worked out anew for those alone that have changed.

use super::super::contacts::Contacts;
use super::super::place::{BUCKETS, Bucket, ItemKey, NodeId};
use super::super::walk::Walk;
use crate::fetch::Time;
use crate::limits::{
    EXPLORE_PAUSE, GATHER_WITHDRAWN_ITEMS, LOOK_AGAIN_NODES, LOOK_NODES, NEWCOMER_DOUBLINGS,
    REANNOUNCE_TO_NEWCOMERS, REPLICAS,
};
use std::collections::BTreeSet;
use std::time::Duration;

/// When a bucket of which nothing is on its way wants something. Looked at with each message, so
/// in whole nanoseconds, which take half as much room.
#[derive(Debug, Clone, Copy)]
struct Waking {
    /// Before this, nothing of it can begin.
    ready: u64,
    /// When time alone makes something happen next, later than when this was worked out.
    next: u64,
}

impl Waking {
    /// Nothing will happen.
    const NEVER: Self = Self { ready: u64::MAX, next: u64::MAX };
}

/// Nanoseconds, the 584 years that fit being more than any plan.
fn nanos(at: Time) -> u64 {
    u64::try_from(at.0.as_nanos()).unwrap_or(u64::MAX)
}

/// Which of the buckets: a bit for each.
type Buckets = u64;
const _: () = assert!(BUCKETS == Buckets::BITS as usize);

/// One bucket.
#[derive(Debug, Default)]
pub struct Lot {
    /// When the whole is announced again; `None` while nothing of it was.
    pub due: Option<Time>,
    pub round: u64,
    /// Held and not yet announced, and when that is to happen.
    pub fresh: BTreeSet<ItemKey>,
    pub fresh_due: Time,
    /// No longer held, and when to tell those who were told otherwise.
    pub gone: BTreeSet<ItemKey>,
    pub gone_due: Time,
    /// Who keeps what was announced.
    pub keepers: BTreeSet<NodeId>,
    /// How many nodes had become known when it was last announced as a whole, and when that was.
    pub arrivals: u64,
    pub announced: Time,
    /// Somebody who should have been told lately didn't answer.
    pub missed: bool,
    /// How often it was announced in a row since it has too few keepers.
    pub starved: u32,
    /// When to see who is near, unless something is announced, which shows that as well.
    pub explore_due: Time,
    /// Who is near was seen before, in this run or an earlier one.
    pub explored: bool,
    /// Runs that reached nobody, one after another.
    pub failures: u32,
    pub run: Option<Box<Run>>,
}

impl Lot {
    /// A key is no longer held, which others are to be told.
    pub fn withdraw(&mut self, key: ItemKey, now: Time) {
        if self.gone.is_empty() {
            self.gone_due = now + GATHER_WITHDRAWN_ITEMS;
        }
        self.gone.insert(key);
    }

    /// When something may begin, if this bucket alone decides.
    fn ready(&self, explores: bool) -> u64 {
        let fresh = (!self.fresh.is_empty()).then_some(self.fresh_due);
        let gone = (!self.gone.is_empty()).then_some(self.gone_due);
        let explore = self.explores().filter(|_| explores);
        let all = [self.due, fresh, gone, self.newcomers(), explore];
        all.into_iter().flatten().min().map_or(u64::MAX, nanos)
    }

    /// When time alone makes something happen; tokens are there from `token` on.
    fn next(&self, explores: bool, token: Time, now: Time) -> u64 {
        let fresh = (!self.fresh.is_empty()).then_some(self.fresh_due.max(token));
        let gone = (!self.gone.is_empty()).then_some(self.gone_due);
        let explore = self.explores().filter(|_| explores);
        let all = [self.due, fresh, gone, self.newcomers(), explore].into_iter().flatten();
        all.filter(|at| *at > now).min().map_or(u64::MAX, nanos)
    }

    /// When to see who is near: where something is announced anew in any case, no sooner than that.
    pub fn explores(&self) -> Option<Time> {
        self.due.is_none().then_some(self.explore_due)
    }

    /// From when on it is announced to newcomers, if it has too few keepers.
    pub fn newcomers(&self) -> Option<Time> {
        let starved = self.due.is_some() && self.keepers.len() < REPLICAS;
        let pause = REANNOUNCE_TO_NEWCOMERS * (1 << self.starved.min(NEWCOMER_DOUBLINGS));
        starved.then_some(self.announced + pause)
    }

    /// It was announced as a whole; `failed`: somebody didn't answer.
    pub fn note_whole(&mut self, failed: bool) {
        let again = self.missed && self.starved < NEWCOMER_DOUBLINGS;
        (self.missed, self.starved) = if self.keepers.len() < REPLICAS {
            (failed || again, (self.starved + 1).min(NEWCOMER_DOUBLINGS))
        } else {
            (false, 0)
        };
    }
}

/// One announcement on its way.
#[derive(Debug)]
pub struct Run {
    pub walk: Walk,
    /// Still finding out who is nearest.
    pub looking: bool,
    pub whole: bool,
    pub keys: Vec<ItemKey>,
    /// Of each key, the most providers that anybody knows.
    pub known: Vec<u8>,
}

impl Run {
    /// Only looks who is near, `again` or for the first time.
    pub fn explore(bucket: Bucket, again: bool, contacts: &mut Contacts, now: Time) -> Self {
        let want = if again { LOOK_AGAIN_NODES } else { LOOK_NODES };
        let walk = Walk::new(bucket.position(), want, want, contacts, now);
        Self { walk, looking: true, whole: false, keys: Vec::new(), known: Vec::new() }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Lots {
    explores: bool,
    all: Vec<Lot>,
    /// Those of which something is on its way.
    running: Buckets,
    /// Of each of the others when it wants something, those that have changed excepted.
    waking: Vec<Waking>,
    changed: Buckets,
    /// The soonest of all.
    soonest: Waking,
}

impl Lots {
    /// Nothing is announced yet, and if this node explores, each neighbourhood is looked at soon.
    pub fn new(explores: bool, now: Time) -> Self {
        let lot = |number| Lot { explore_due: now + EXPLORE_PAUSE * number, ..Lot::default() };
        Self {
            explores,
            all: (0..BUCKETS as u32).map(lot).collect(),
            running: 0,
            waking: vec![Waking::NEVER; BUCKETS],
            changed: Buckets::MAX,
            soonest: Waking::NEVER,
        }
    }

    pub fn get(&self, bucket: Bucket) -> &Lot {
        &self.all[usize::from(bucket.number())]
    }

    pub fn iter(&self) -> impl Iterator<Item = (Bucket, &Lot)> {
        Bucket::all().zip(&self.all)
    }

    /// A bucket, of which anything may change but whether something is on its way.
    pub fn change(&mut self, bucket: Bucket) -> &mut Lot {
        self.changed |= bit(bucket);
        &mut self.all[usize::from(bucket.number())]
    }

    /// What concerns all of them has changed.
    pub fn change_all(&mut self) {
        self.changed = Buckets::MAX;
    }

    /// Of how many buckets something is on its way.
    pub fn running(&self) -> usize {
        self.running.count_ones() as usize
    }

    pub fn runs(&self, bucket: Bucket) -> bool {
        self.running & bit(bucket) != 0
    }

    /// What of a bucket is on its way.
    pub fn run(&mut self, bucket: Bucket) -> Option<&mut Run> {
        // Mostly nothing, which is known without looking.
        if !self.runs(bucket) {
            return None;
        }
        self.all[usize::from(bucket.number())].run.as_deref_mut()
    }

    pub fn start(&mut self, bucket: Bucket, run: Run) {
        self.running |= bit(bucket);
        self.change(bucket).run = Some(Box::new(run));
    }

    pub fn end(&mut self, bucket: Bucket) -> Option<Box<Run>> {
        self.running &= !bit(bucket);
        self.change(bucket).run.take()
    }

    /// Buckets of which something is on its way or may begin. What is new may be announced from
    /// `token` on.
    pub fn awake(&mut self, token: Time, now: Time) -> impl Iterator<Item = Bucket> + use<> {
        self.wake(token, now);
        let now = nanos(now);
        let mut awake = self.running;
        if self.soonest.ready <= now {
            let ready = Bucket::all().zip(&self.waking).filter(|(_, w)| w.ready <= now);
            awake = ready.fold(awake, |all, (bucket, _)| all | bit(bucket));
        }
        each(awake)
    }

    /// When time alone will make something happen.
    pub fn next(&mut self, token: Time, now: Time) -> Option<Time> {
        self.wake(token, now);
        let planned = self.soonest.next;
        let planned = (planned != u64::MAX).then_some(Time(Duration::from_nanos(planned)));
        let runs = each(self.running).filter_map(|bucket| self.get(bucket).run.as_ref());
        runs.filter_map(|run| run.walk.poll_timeout(now)).chain(planned).min()
    }

    /// Works out anew when those want something that have changed, or whose time has come.
    fn wake(&mut self, token: Time, now: Time) {
        if self.soonest.next <= nanos(now) {
            let over = Bucket::all().zip(&self.waking).filter(|(_, w)| w.next <= nanos(now));
            self.changed |= over.fold(0, |all, (bucket, _)| all | bit(bucket));
        }
        if self.changed == 0 {
            return;
        }
        for bucket in each(std::mem::take(&mut self.changed)) {
            let lot = &self.all[usize::from(bucket.number())];
            self.waking[usize::from(bucket.number())] = if lot.run.is_some() {
                Waking::NEVER
            } else {
                let ready = lot.ready(self.explores);
                Waking { ready, next: lot.next(self.explores, token, now) }
            };
        }
        self.soonest = self.waking.iter().fold(Waking::NEVER, |soonest, waking| Waking {
            ready: soonest.ready.min(waking.ready),
            next: soonest.next.min(waking.next),
        });
    }
}

fn bit(bucket: Bucket) -> Buckets {
    1 << bucket.number()
}

fn each(mut buckets: Buckets) -> impl Iterator<Item = Bucket> {
    std::iter::from_fn(move || {
        let bucket = Bucket::new(buckets.trailing_zeros() as u8)?;
        buckets &= buckets - 1;
        Some(bucket)
    })
}
