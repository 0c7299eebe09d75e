//! The filter of what a seed holds, for others: so that they know what it is worth asking for.
//!
//! Its items are too many to be announced. What comes is in the filter after some minutes, what goes
//! within a day.

use super::{Engine, Inner, announce};
use crate::config::Role;
use crate::net::{FilterAnswer, FilterContent};
use crate::store::{KeptFile, StoreError};
use bytes::Bytes;
use narswarm_protocol::announce::ItemKey;
use narswarm_protocol::filter::leading;
use narswarm_protocol::filter::publisher::{Content, Publisher};
use narswarm_protocol::limits;
use narswarm_protocol::store_path::StoreHash;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tracing::{info, warn};

/// Items that are listed at a time.
const PAGE: usize = 4096;

/// A seed's filter.
#[derive(Default)]
pub(super) struct OwnFilter {
    /// Held for a second while all of a large seed's items are looked through, so by threads only
    /// that may block.
    publisher: Mutex<Option<Publisher>>,
    /// What has come since the last filter.
    came: Mutex<Vec<ItemKey>>,
    /// Rung when much has come.
    much: Notify,
}

impl OwnFilter {
    /// Everything is to be looked through soon.
    pub fn note_much(&self) {
        self.much.notify_one();
    }
}

/// Octets that the publisher goes on using.
struct Shared(Arc<Vec<u8>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Inner {
    /// Whether this node gives away a filter.
    fn has_filter(&self) -> bool {
        self.config.role == Role::Seed && !self.config.shares_nothing()
    }

    /// Items are held now.
    pub(super) fn note_in_filter(&self, items: &[StoreHash]) {
        // What is to be kept secret is sorted out where all is looked through.
        if !self.has_filter() || self.config.policy.excludes_some() {
            return;
        }
        let mut came = self.own_filter.came.lock();
        let room = limits::MAX_DELTA_ITEMS.saturating_sub(came.len());
        let public = items.iter().filter(|item| !self.is_hidden(item));
        came.extend(public.take(room).map(ItemKey::of));
    }

    /// What is answered to whoever asks for the filter.
    pub(super) fn filter_answer(&self, have: Option<(u64, u32)>) -> Option<FilterAnswer> {
        let publisher = self.own_filter.publisher.lock();
        let publisher = publisher.as_ref().filter(|_| self.has_filter())?;
        let content = match publisher.content(have) {
            Content::Same => FilterContent::Nothing,
            Content::Changes(octets) => FilterContent::Changes(octets.into()),
            Content::Whole => {
                let octets = Shared(publisher.filter().octets().clone());
                FilterContent::Whole(Bytes::from_owner(octets))
            }
        };
        let head = publisher.head(&self.config.voucher_signer);
        Some(FilterAnswer { head, content })
    }
}

/// Makes filters of what this node holds, if it is a seed, for as long as it runs.
pub async fn publish_filter(engine: &Engine) {
    let inner = &engine.inner;
    if !inner.has_filter() {
        return;
    }
    let file = inner.config.own_filters.clone();
    let recalled = spawn_blocking(move || recall(&file)).await.ok().flatten();
    let is_known = recalled.is_some();
    if let Some(recalled) = recalled {
        *inner.own_filter.publisher.lock() = Some(recalled);
    }
    // What others have had so far is true until everything has been looked through.
    if is_known {
        announce::store_is_looked_through(engine).await;
    }
    loop {
        rebuild(inner).await;
        let rebuilt = Instant::now();
        while rebuilt.elapsed() < limits::FILTER_REBUILD {
            let pause = tokio::time::sleep(limits::FILTER_EVERY);
            tokio::select! {
                () = pause => publish(inner).await,
                () = inner.own_filter.much.notified() => break,
            }
        }
    }
}

fn recall(file: &KeptFile) -> Option<Publisher> {
    let octets = file.read();
    if octets.is_empty() {
        return None;
    }
    Publisher::from_snapshot(&octets)
        .inspect_err(|error| warn!("others have to fetch the whole filter anew: {error}"))
        .ok()
}

/// Looks through everything that is held.
async fn rebuild(inner: &Arc<Inner>) {
    let this = inner.clone();
    let rebuilt = spawn_blocking(move || {
        let mut leading = list(&this)?;
        let items = leading.len();
        let mut publisher = this.own_filter.publisher.lock();
        let changed = match publisher.as_mut() {
            Some(publisher) => publisher.rebuild(rand::random(), &mut leading),
            None => {
                *publisher = Some(Publisher::new(rand::random(), &mut leading));
                true
            }
        };
        drop(publisher);
        if changed {
            save(&this);
            info!("{items} items are in the filter for others");
        }
        Ok::<_, StoreError>(())
    });
    if let Ok(Err(error)) = rebuilt.await {
        warn!("the filter of what is held can't be made: {error}");
    }
}

/// Adds what has come.
async fn publish(inner: &Arc<Inner>) {
    let this = inner.clone();
    let published = spawn_blocking(move || {
        let came = std::mem::take(&mut *this.own_filter.came.lock());
        let changed = this.own_filter.publisher.lock().as_mut().is_some_and(|publisher| {
            came.iter().for_each(|key| publisher.handle_held(key));
            publisher.publish()
        });
        if changed {
            save(&this);
        }
    });
    // A panic has been told.
    let _ = published.await;
}

fn save(inner: &Inner) {
    let snapshot = inner.own_filter.publisher.lock().as_ref().map(Publisher::snapshot);
    let Some(snapshot) = snapshot else { return };
    if let Err(error) = inner.config.own_filters.write(&snapshot) {
        warn!("the filter of what is held is not saved: {error}");
    }
}

/// The leading bits of the keys of everything that others may know to be held here.
fn list(inner: &Inner) -> Result<Vec<u32>, StoreError> {
    let mut keys = Vec::new();
    let mut after = None;
    loop {
        let page = inner.store.held_items(after, PAGE)?;
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        let mut items: Vec<_> = page.into_iter().map(|(item, _)| item).collect();
        items.retain(|item| !inner.is_hidden(item));
        keys.extend(items.iter().map(|item| leading(&ItemKey::of(item))));
    }
    if let Some(store) = inner.own_store.get() {
        let shared = store.all_shared();
        keys.extend(shared.iter().map(|shared| leading(&ItemKey::of(&shared.item.hash()))));
    }
    Ok(keys)
}
