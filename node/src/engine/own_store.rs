//! What the system's store needs of the engine: which narinfos are believed, whom to ask for
//! others, and whom to tell what is shared.

use super::resolve::{self, Heard};
use super::{Engine, Inner, SharedEntry, announce, shared};
use crate::http::StoreProgress;
use crate::store::StoreError;
use crate::system_store::{
    Answer, Outside, Signed, Survey, SystemStore, SystemStoreConfig, SystemStoreError,
};
use crate::upstream::NarinfoReply;
use bytes::Bytes;
use narswarm_protocol::fetch::UpstreamMode;
use narswarm_protocol::limits;
use narswarm_protocol::narinfo::VerifiedNarinfo;
use narswarm_protocol::store_path::{ItemName, StoreHash};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak, mpsc};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tracing::warn;

impl Engine {
    /// Begins to share the system's store, once; call it when the network is there. Blocks while
    /// the database is read.
    ///
    /// # Errors
    /// When the store can't be read.
    pub fn share_store(
        &self,
        config: SystemStoreConfig,
        runtime: Handle,
    ) -> Result<(), SystemStoreError> {
        let outside = Surroundings::new(&self.inner, Some(runtime));
        let store = SystemStore::start(config, Arc::new(outside), self.inner.metrics.clone())?;
        if self.inner.own_store.set(store).is_err() {
            warn!("the store was shared twice; the first time counts");
        }
        Ok(())
    }

    /// Recalls what of the system's store was shared when this node last ran and still can be;
    /// blocking.
    ///
    /// # Errors
    /// When the store can't be read.
    pub fn recall_store(&self, config: SystemStoreConfig) -> Result<(), SystemStoreError> {
        let outside = Surroundings::new(&self.inner, None);
        let store = SystemStore::recall(config, Arc::new(outside), self.inner.metrics.clone())?;
        let _ = self.inner.own_store.set(store);
        Ok(())
    }

    /// The system's store, if it is shared.
    #[must_use]
    pub fn own_store(&self) -> Option<&SystemStore> {
        self.inner.own_store.get()
    }

    /// Gives to `tell`, page by page, everything that others can learn of what this node has;
    /// blocking. Ends early when `tell` says no.
    ///
    /// # Errors
    /// Failures of the disk.
    pub fn list_shared(
        &self,
        tell: impl FnMut(Vec<SharedEntry>) -> bool,
    ) -> Result<(), StoreError> {
        shared::list(&self.inner, tell)
    }
}

/// The engine, as the system's store sees it. Doesn't keep it alive.
pub(super) struct Surroundings {
    inner: Weak<Inner>,
    /// None when nothing is asked and nobody told.
    runtime: Option<Handle>,
}

impl Surroundings {
    /// Of an engine, which works on this runtime.
    pub fn new(inner: &Arc<Inner>, runtime: Option<Handle>) -> Self {
        Self { inner: Arc::downgrade(inner), runtime }
    }
}

impl Outside for Surroundings {
    fn kept(&self, items: &[ItemName]) -> Vec<Option<Signed>> {
        let Some(inner) = self.inner.upgrade() else { return Vec::new() };
        let mut positions = Vec::new();
        let mut offers = Vec::new();
        for (position, item) in items.iter().enumerate() {
            match inner.store.narinfo(&item.hash()) {
                Ok(Some(narinfo)) => {
                    offers.push((item.hash(), narinfo));
                    positions.push(position);
                }
                Ok(None) => {}
                Err(error) => warn!("{error}"),
            }
        }
        let mut kept = vec![None; items.len()];
        for (position, narinfo) in positions.into_iter().zip(resolve::verify(&inner, &offers)) {
            kept[position] = narinfo.and_then(|narinfo| signed(&narinfo, &items[position]));
        }
        kept
    }

    fn judge(&self, offers: &[(ItemName, Bytes)]) -> Vec<Option<Signed>> {
        let Some(inner) = self.inner.upgrade() else { return Vec::new() };
        let narinfos: Vec<_> =
            offers.iter().map(|(item, narinfo)| (item.hash(), narinfo.clone())).collect();
        let believed = resolve::verify(&inner, &narinfos);
        let batch: Vec<_> = narinfos
            .into_iter()
            .zip(&believed)
            .filter_map(|((hash, bytes), narinfo)| {
                Some((hash, narinfo.as_ref()?.nar_hash(), bytes))
            })
            .collect();
        if let Err(error) = inner.store.put_narinfos(&batch) {
            // Only what is kept can be told to others.
            warn!("{error}");
            return Vec::new();
        }
        let fitting = believed.into_iter().zip(offers);
        fitting.map(|(narinfo, (item, _))| signed(&narinfo?, item)).collect()
    }

    fn ask(&self, items: &[ItemName]) -> Vec<Answer> {
        let (Some(inner), Some(runtime)) = (self.inner.upgrade(), &self.runtime) else {
            return Vec::new();
        };
        let (say, heard) = mpsc::channel();
        let items = items.to_vec();
        runtime.spawn(async move {
            let _ = say.send(ask(inner, items).await);
        });
        // A runtime that goes down drops the task, and this returns.
        heard.recv().unwrap_or_default()
    }

    fn came(&self, items: Vec<StoreHash>) {
        let Some(inner) = self.inner.upgrade() else { return };
        for item in &items {
            if let Some(shared) = inner.own_store.get().and_then(|store| store.shared(item)) {
                inner.public.invalidate(&shared.nar_hash);
            }
        }
        let Some(runtime) = &self.runtime else { return };
        runtime.spawn(async move { announce::announce(&inner, &items).await });
    }

    fn gone(&self, items: Vec<StoreHash>) {
        let (Some(inner), Some(runtime)) = (self.inner.upgrade(), &self.runtime) else { return };
        runtime.spawn(async move { announce::withdraw(&inner, items).await });
    }
}

/// How far the store is looked through, for the status report.
pub(super) fn progress(survey: &Survey) -> StoreProgress {
    StoreProgress {
        items: survey.items,
        hidden: survey.hidden,
        unsigned: survey.unsigned,
        different: survey.different,
        shared: survey.shared,
        shared_bytes: survey.shared_bytes,
        waiting: survey.waiting,
        waiting_bytes: survey.waiting_bytes,
        hashed_bytes: survey.hashed_bytes,
    }
}

/// What a narinfo signs of an item, if it is for an item of this very name.
fn signed(narinfo: &VerifiedNarinfo, item: &ItemName) -> Option<Signed> {
    let signed = Signed { nar_hash: narinfo.nar_hash(), nar_size: narinfo.nar_size() };
    (narinfo.item() == item).then_some(signed)
}

/// Asks the nearest peers for narinfos, then the substitute servers for what they don't have.
async fn ask(inner: Arc<Inner>, items: Vec<ItemName>) -> Vec<Answer> {
    let mode = inner.config.upstream_mode;
    let mut open: HashSet<_> = items.iter().map(ItemName::hash).collect();
    let mut found = HashMap::new();
    let mut definite = HashSet::new();
    if mode != UpstreamMode::UpstreamOnly && inner.net.get().is_some() {
        let (say, heard) = tokio::sync::mpsc::channel(resolve::HEARD);
        tokio::spawn(resolve::ask_swarm(inner.clone(), open.iter().copied().collect(), false, say));
        hear(heard, &mut open, &mut found, &mut definite).await;
    }
    if mode != UpstreamMode::SwarmOnly && inner.upstreams.is_some() && !open.is_empty() {
        let (say, heard) = tokio::sync::mpsc::channel(resolve::HEARD);
        tokio::spawn(resolve::ask_upstream(inner.clone(), open.iter().copied().collect(), say));
        hear(heard, &mut open, &mut found, &mut definite).await;
    } else {
        // Peers come and go: that none has it now says little, but there is nobody else.
        definite.clone_from(&open);
    }
    keep(&inner, &found).await;
    let answer = |item: &ItemName| match found.get(&item.hash()) {
        Some(known) => signed(&known.narinfo, item).map_or(Answer::Nobody, Answer::Signed),
        None if definite.contains(&item.hash()) => Answer::Nobody,
        None => Answer::Unknown,
    };
    items.iter().map(answer).collect()
}

type Found = HashMap<StoreHash, Arc<resolve::Known>>;

/// Hears those who were asked, until all have spoken or the deadline.
async fn hear(
    mut heard: tokio::sync::mpsc::Receiver<Heard>,
    open: &mut HashSet<StoreHash>,
    found: &mut Found,
    definite: &mut HashSet<StoreHash>,
) {
    let deadline = Instant::now() + limits::STORE_LOOKUP_DEADLINE;
    while let Ok(Some(event)) = tokio::time::timeout_at(deadline, heard.recv()).await {
        let verdicts = match event {
            Heard::Judged(verdicts) => verdicts,
            Heard::Peer(_, answers) => answers.into_iter().map(|(verdict, _)| verdict).collect(),
            Heard::Upstream(hash, NarinfoReply::NotFound { .. }) => {
                definite.insert(hash);
                continue;
            }
            _ => continue,
        };
        for verdict in verdicts {
            if let Some(known) = verdict.known {
                open.remove(&verdict.hash);
                found.insert(verdict.hash, known);
            }
        }
    }
}

/// Keeps what was found: only what is kept is told to others.
async fn keep(inner: &Arc<Inner>, found: &Found) {
    let batch: Vec<_> = found
        .iter()
        .map(|(hash, known)| {
            let bytes = Bytes::copy_from_slice(known.narinfo.original());
            (*hash, known.narinfo.nar_hash(), bytes)
        })
        .collect();
    let inner = inner.clone();
    let kept = tokio::task::spawn_blocking(move || inner.store.put_narinfos(&batch)).await;
    if let Ok(Err(error)) = kept {
        warn!("narinfos were found but not kept: {error}");
    }
}
