//! Small nars fetched before a client asks for them, so that a client that asks for one after another
//! doesn't wait for a round trip each time. Which ones is decided in `narswarm_protocol::read_ahead`.
//!
//! They come from peers only, since a farm's bandwidth isn't ours to guess with, by ordinary fetches
//! into the cache: what was fetched in vain is kept and shared like everything else, and who asks for
//! what is on its way joins its fetch, to which upstream may then be asked as well.

use super::progress::Progress;
use super::resolve::Known;
use super::{Inner, resolve};
use narswarm_protocol::fetch::{Time, UpstreamMode};
use narswarm_protocol::limits;
use narswarm_protocol::read_ahead::{Prospect, ReadAhead};
use narswarm_protocol::store_path::StoreHash;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Items that peers are asked about at a time when nobody is known to hold the next ones: what they
/// hold was found on disk, so that no peer was asked for their narinfos.
const ASKED_ABOUT: usize = limits::MAX_QUERY_HASHES;

/// The state of reading ahead.
#[derive(Default)]
pub(super) struct Ahead {
    machine: Mutex<ReadAhead>,
    /// Whether a round is under way, and whether there is reason for another after it.
    running: AtomicBool,
    again: AtomicBool,
}

impl Inner {
    fn since_start(&self) -> Time {
        Time(self.started.elapsed())
    }

    fn reads_ahead(&self) -> bool {
        self.config.upstream_mode != UpstreamMode::UpstreamOnly && self.net.get().is_some()
    }

    /// A client asks for these narinfos, in this order.
    pub(super) fn note_listed(&self, hashes: &[StoreHash]) {
        if self.reads_ahead() {
            let (mut machine, now) = (self.ahead.machine.lock(), self.since_start());
            hashes.iter().for_each(|&hash| machine.handle_listed(hash, now));
        }
    }

    /// A client asks for a nar: the next ones are fetched meanwhile.
    pub(super) fn note_asked(self: &Arc<Self>, hash: &StoreHash) {
        if !self.reads_ahead() {
            return;
        }
        if self.ahead.machine.lock().handle_asked(hash, self.since_start()) {
            self.metrics.nars_read_ahead.inc();
        }
        self.read_ahead();
    }

    /// Begins whatever may be begun, in rounds of which one runs at a time.
    fn read_ahead(self: &Arc<Self>) {
        self.ahead.again.store(true, Ordering::Release);
        if self.ahead.running.swap(true, Ordering::AcqRel) {
            return;
        }
        let inner = self.clone();
        tokio::spawn(async move {
            loop {
                while inner.ahead.again.swap(false, Ordering::AcqRel) {
                    inner.begin_ahead().await;
                }
                inner.ahead.running.store(false, Ordering::Release);
                // Somebody may have come between the two.
                if !inner.ahead.again.load(Ordering::Acquire)
                    || inner.ahead.running.swap(true, Ordering::AcqRel)
                {
                    return;
                }
            }
        });
    }

    async fn begin_ahead(self: &Arc<Self>) {
        let inner = self.clone();
        // Whether a nar is held is looked up on disk.
        let round = tokio::task::spawn_blocking(move || inner.next_ahead()).await;
        let Ok((begin, unknown)) = round else { return };
        for known in begin {
            let hash = known.narinfo.item().hash();
            let Some((progress, end)) = self.fetch_ahead(&known.narinfo) else {
                self.ahead.machine.lock().handle_ended(&hash, false, self.since_start());
                continue;
            };
            let inner = self.clone();
            tokio::spawn(async move {
                // Resolves when the fetch is off the books.
                let _ = end.await;
                let came = progress.is_kept();
                inner.ahead.machine.lock().handle_ended(&hash, came, inner.since_start());
                inner.read_ahead();
            });
        }
        if !unknown.is_empty() && self.ask_about(unknown).await {
            self.ahead.again.store(true, Ordering::Release);
        }
    }

    /// What to begin now, and of which of the next items nobody is known to hold them; blocking.
    fn next_ahead(&self) -> (Vec<Arc<Known>>, BTreeSet<StoreHash>) {
        let (mut begin, mut unknown) = (Vec::new(), BTreeSet::new());
        let now = self.since_start();
        loop {
            let mut found = None;
            let prospect = |hash: &StoreHash| {
                let is_held_by_peers =
                    self.holders.get(hash).is_some_and(|holders| !holders.is_empty());
                if !is_held_by_peers && self.asked_about.contains_key(hash) {
                    return Prospect::NotYet;
                }
                let Some(known) = resolve::from_store(self, hash) else { return Prospect::NotYet };
                let bytes = known.narinfo.nar_size();
                let nar = known.narinfo.nar_hash();
                if bytes > limits::SMALL_NAR_BYTES
                    || self.distrusted.contains_key(&nar)
                    || self.fetching(&nar).is_some()
                    || self.store.holds(&nar).unwrap_or(true)
                    || self.own_store.get().is_some_and(|own| own.shared_nar(&nar).is_some())
                {
                    return Prospect::Never;
                }
                if is_held_by_peers {
                    found = Some(known);
                    return Prospect::Wanted { bytes };
                }
                if unknown.len() < ASKED_ABOUT {
                    unknown.insert(*hash);
                }
                Prospect::NotYet
            };
            let next = self.ahead.machine.lock().poll_begin(prospect, now);
            match (next, found) {
                (Some(_), Some(known)) => begin.push(known),
                _ => return (begin, unknown),
            }
        }
    }

    /// Asks the connected peers who holds these items, once in a while. Says whether anybody does.
    async fn ask_about(self: &Arc<Self>, hashes: BTreeSet<StoreHash>) -> bool {
        hashes.iter().for_each(|&hash| self.asked_about.insert(hash, ()));
        let mut found = self.find_near_holders(hashes.into_iter().collect());
        let mut any = false;
        while found.recv().await.is_some() {
            any = true;
        }
        any
    }
}

/// Resolves when a fetch that nobody has asked for has taken too long.
pub(super) async fn given_up(progress: Arc<Progress>) {
    if tokio::time::timeout(limits::AHEAD_PATIENCE, progress.wanted()).await.is_ok() {
        std::future::pending::<()>().await;
    }
}
