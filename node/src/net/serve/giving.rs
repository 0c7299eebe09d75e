//! Who is given what next, over all sessions: the driver of [`Uploads`].
//!
//! Sessions tell what they are asked for and what the network has taken; what they may give is put
//! into their [`Mailbox`]. One task follows the machine's clock: caps on the rate, askers that
//! stall, and those that are to be told that they are not forgotten.

use super::numbers::Numbers;
use super::queue::Queue;
use narswarm_protocol::fetch::Time;
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::piece::PieceLayout;
use narswarm_protocol::upload::{AskerId, UploadConfig, Uploads};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// The clock's task rests so long between two rounds: the resolution of timers.
const TICK: Duration = Duration::from_millis(1);

/// Where a session finds what it is to do.
#[derive(Default)]
pub struct Mailbox {
    /// What there is to do. Locked after the machine, never before it.
    pub queue: Mutex<Queue>,
    /// Rung when the queue has grown or has ended.
    pub bell: Notify,
}

/// See the module.
pub struct Giving {
    began: Instant,
    state: Mutex<State>,
    /// Rung when the clock's task has to look sooner than it meant to.
    bell: Notify,
}

struct State {
    uploads: Uploads,
    askers: BTreeMap<AskerId, Arc<Mailbox>>,
    numbers: Numbers,
    next_asker: u64,
    /// When the clock's task looks next.
    armed: Option<Time>,
}

impl Giving {
    /// Nobody asks yet.
    pub fn new(config: UploadConfig) -> Self {
        let state = State {
            uploads: Uploads::new(config, Time::default()),
            askers: BTreeMap::new(),
            numbers: Numbers::default(),
            next_asker: 0,
            armed: None,
        };
        Self { began: Instant::now(), state: Mutex::new(state), bell: Notify::new() }
    }

    /// Follows the machine's clock, for ever.
    pub async fn run(&self) {
        loop {
            let armed = self.state.lock().armed;
            match armed {
                None => self.bell.notified().await,
                Some(at) => {
                    let at = tokio::time::Instant::from_std(self.began + at.0);
                    // Rung or not, the clock is looked at.
                    let _ = tokio::time::timeout_at(at, self.bell.notified()).await;
                }
            }
            let now = self.now();
            let due = self.state.lock().armed.is_some_and(|at| at <= now);
            if due {
                self.tell_waiting(now);
                tokio::time::sleep(TICK).await;
            }
        }
    }

    /// Tells askers that wait too long, and gives what may be given by now.
    fn tell_waiting(&self, now: Time) {
        let mut state = self.state.lock();
        while let Some((asker, nar)) = state.uploads.poll_waiting(now) {
            if let Some(mailbox) = state.askers.get(&asker) {
                mailbox.queue.lock().tell_waiting(nar);
                mailbox.bell.notify_one();
            }
        }
        state.armed = None;
        self.give(&mut state, now);
    }

    /// Gives what may be given, and sees to it that the clock's task looks again in time.
    fn give(&self, state: &mut State, now: Time) {
        while let Some(give) = state.uploads.poll_give(now) {
            match state.askers.get(&give.asker) {
                Some(mailbox) => {
                    mailbox.queue.lock().grant(give.nar, give.index);
                    mailbox.bell.notify_one();
                }
                None => state.uploads.handle_gone(give.asker),
            }
        }
        let next = state.uploads.poll_timeout();
        if next.is_some_and(|next| state.armed.is_none_or(|armed| next < armed)) {
            state.armed = next;
            self.bell.notify_one();
        }
    }

    fn now(&self) -> Time {
        Time(self.began.elapsed())
    }

    /// A new asker, which is given to through `mailbox`.
    pub fn join(self: &Arc<Self>, mailbox: Arc<Mailbox>) -> Asker {
        let mut state = self.state.lock();
        let id = AskerId(state.next_asker);
        state.next_asker += 1;
        state.askers.insert(id, mailbox);
        Asker { giving: self.clone(), id }
    }
}

/// One session, as the machine knows it; gone when dropped.
pub struct Asker {
    giving: Arc<Giving>,
    id: AskerId,
}

impl Asker {
    /// The number of a nar that this session begins to give. `alone` when the session has it open
    /// already: the second time it counts as another.
    pub fn number(&self, nar: NarHash, layout: PieceLayout, alone: bool) -> u32 {
        let (mut state, now) = (self.giving.state.lock(), self.giving.now());
        let number = state.numbers.take(nar, alone);
        state.uploads.handle_nar(number, layout, now);
        number
    }

    /// The session gives the nar of this number no more.
    pub fn release(&self, number: u32) {
        let mut state = self.giving.state.lock();
        state.uploads.handle_cancel(self.id, number, 0, u32::MAX);
        state.numbers.release(number);
        let now = self.giving.now();
        self.giving.give(&mut state, now);
    }

    /// Pieces are wanted, given as `(first, count)` of each run.
    pub fn want(&self, number: u32, runs: &[(u32, u32)]) {
        let (mut state, now) = (self.giving.state.lock(), self.giving.now());
        for &(first, count) in runs {
            state.uploads.handle_want(self.id, number, first, count, now);
        }
        self.giving.give(&mut state, now);
    }

    /// Pieces are no longer wanted.
    pub fn cancel(&self, number: u32, first: u32, count: u32) {
        self.giving.state.lock().uploads.handle_cancel(self.id, number, first, count);
    }

    /// The network has taken these many octets of the pieces granted longest ago, in the order in
    /// which they were granted; none of one that was left out.
    pub fn given(&self, pieces: impl IntoIterator<Item = u64>) {
        let (mut state, now) = (self.giving.state.lock(), self.giving.now());
        for bytes in pieces {
            state.uploads.handle_given(self.id, bytes, now);
        }
        self.giving.give(&mut state, now);
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        let (mut state, now) = (self.giving.state.lock(), self.giving.now());
        state.uploads.handle_gone(self.id);
        if let Some(mailbox) = state.askers.remove(&self.id) {
            for number in mailbox.queue.lock().numbers() {
                state.numbers.release(number);
            }
        }
        self.giving.give(&mut state, now);
    }
}
