//! Tells the DHT what this node holds.

use super::{Engine, Inner};
use narswarm_protocol::provider_key::provider_key;
use narswarm_protocol::store_path::StoreHash;
use tracing::{info, warn};

/// Keys handed to the routing port at a time.
const PAGE: usize = 1000;

/// Announces some items.
pub(super) async fn announce(inner: &Inner, items: &[StoreHash]) {
    if inner.config.role == crate::config::Role::Proxy {
        return;
    }
    let Some(net) = inner.net.get() else { return };
    let keys: Vec<_> = items.iter().map(provider_key).collect();
    if let Err(error) = net.routing().provide(&keys).await {
        warn!("cannot announce {} items: {error}", keys.len());
    }
}

/// Stops announcing what has left the cache.
pub(super) async fn withdraw_evicted(inner: &Inner) {
    let items = inner.store.take_withdrawn();
    let Some(net) = inner.net.get().filter(|_| !items.is_empty()) else { return };
    let keys: Vec<_> = items.iter().map(provider_key).collect();
    net.routing().withdraw(&keys).await;
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
        total += items.len();
        announce(inner, &items).await;
        after = Some(last);
    }
    info!("{total} items to announce");
}
