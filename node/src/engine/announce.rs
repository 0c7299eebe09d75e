//! Tells the DHT what this node holds.

use super::{Engine, Inner, resolve};
use crate::net::RoutingError;
use narswarm_protocol::provider_key::provider_key;
use narswarm_protocol::store_path::StoreHash;
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

/// Keys handed to the routing port at a time.
const PAGE: usize = 1000;

/// How often it is seen whether the system's store has been looked through.
const LOOKED_THROUGH_PAUSE: Duration = Duration::from_secs(5);

/// Announces some items.
pub(super) async fn announce(inner: &Arc<Inner>, items: &[StoreHash]) {
    if inner.config.shares_nothing() {
        return;
    }
    inner.note_in_filter(items);
    let Some(net) = inner.net.get() else { return };
    let keys = public_keys(inner, items).await;
    if let Err(error) = net.routing().provide(&keys).await {
        warn!("cannot announce {} items: {error}", keys.len());
    }
}

/// The keys under which items are found, without those that nobody may know of: to be found, and
/// then to have nothing, would tell of them.
async fn public_keys(inner: &Arc<Inner>, items: &[StoreHash]) -> Vec<[u8; 32]> {
    let (inner, items) = (inner.clone(), items.to_vec());
    let keys = tokio::task::spawn_blocking(move || {
        let public = items.iter().filter(|item| !inner.is_hidden(item));
        public.map(provider_key).collect()
    });
    keys.await.unwrap_or_default()
}

/// Announces one of many pages; how many of its items, if there is room for more.
async fn announce_page(inner: &Arc<Inner>, items: &[StoreHash]) -> Option<usize> {
    let net = inner.net.get().filter(|_| !inner.config.shares_nothing())?;
    let keys = public_keys(inner, items).await;
    match net.routing().provide(&keys).await {
        Ok(()) => Some(keys.len()),
        Err(RoutingError::Full { limit, .. }) => {
            info!("{limit} items are announced one by one; the others aren't");
            None
        }
        Err(RoutingError::ShutDown) => None,
    }
}

/// Stops announcing what has left the cache.
pub(super) async fn withdraw_evicted(inner: &Inner) {
    let mut items = inner.store.take_withdrawn();
    let own_store = inner.own_store.get();
    items.retain(|item| own_store.is_none_or(|store| store.shared(item).is_none()));
    let Some(net) = inner.net.get().filter(|_| !items.is_empty()) else { return };
    let keys: Vec<_> = items.iter().map(provider_key).collect();
    net.routing().withdraw(&keys).await;
}

/// Stops announcing what has left the system's store, unless it is in the cache.
pub(super) async fn withdraw(inner: &Arc<Inner>, items: Vec<StoreHash>) {
    let looking = inner.clone();
    let gone = tokio::task::spawn_blocking(move || {
        let is_cached = |item: &StoreHash| {
            let known = resolve::from_store(&looking, item);
            known.is_some_and(|k| looking.store.holds(&k.narinfo.nar_hash()).unwrap_or(false))
        };
        items.iter().filter(|item| !is_cached(item)).map(provider_key).collect::<Vec<_>>()
    });
    let Ok(keys) = gone.await else { return };
    if let Some(net) = inner.net.get().filter(|_| !keys.is_empty()) {
        net.routing().withdraw(&keys).await;
    }
}

/// Announces everything held at the start of the node, and then withdraws what an earlier run had
/// announced and is held no longer. That waits until the system's store has been looked through.
pub async fn announce_at_start(engine: &Engine) {
    announce_all(engine).await;
    store_is_looked_through(engine).await;
    if let Some(net) = engine.inner.net.get() {
        net.routing().provided_all().await;
    }
}

/// Waits until the system's store has been looked through, if it is shared.
pub(super) async fn store_is_looked_through(engine: &Engine) {
    let Some(store) = engine.own_store() else { return };
    // Twice, as what was looked at last may still be on its way.
    let mut looks = 0;
    while looks < 2 {
        looks = if store.is_looked_through() { looks + 1 } else { 0 };
        tokio::time::sleep(LOOKED_THROUGH_PAUSE).await;
    }
}

/// Announces everything held, page by page.
pub async fn announce_all(engine: &Engine) {
    let inner = &engine.inner;
    let mut after = None;
    let mut total = 0;
    loop {
        let store = inner.store.clone();
        let page = tokio::task::spawn_blocking(move || store.held_items(after, PAGE)).await;
        let page = match page {
            Ok(Ok(page)) => page,
            Ok(Err(error)) => return warn!("cannot list what is held: {error}"),
            Err(_) => return,
        };
        let Some(&(last, _)) = page.last() else { break };
        let items: Vec<_> = page.iter().map(|(item, _)| *item).collect();
        let Some(announced) = announce_page(inner, &items).await else { break };
        total += announced;
        after = Some(last);
    }
    info!("{total} items to announce");
}
