//! Notices what comes to the store and goes from it, within a second or two.

use super::database::{Database, News, Stamp};
use super::{Inner, SystemStoreError};
use narswarm_protocol::limits::STORE_LOOK_PAUSE;
use narswarm_protocol::store_path::StoreHash;
use std::sync::Arc;
use tracing::{info, warn};

/// The thread's state.
pub struct Watch {
    database: Database,
    seen: Stamp,
    failing: bool,
}

impl Watch {
    /// Takes the first look.
    ///
    /// # Errors
    /// When the database can't be read. A busy one is read later.
    pub fn begin(inner: &Arc<Inner>, database: Database) -> Result<Self, SystemStoreError> {
        let mut watch = Self { seen: database.stamp(), database, failing: false };
        match watch.database.news() {
            Ok(news) => {
                info!("{} items in {}", news.came.len(), inner.config.store.display());
                take(inner, news);
            }
            Err(SystemStoreError::Busy { .. }) => watch.failing = true,
            Err(error) => return Err(error),
        }
        Ok(watch)
    }

    /// Looks until stopped.
    pub fn run(mut self, inner: &Arc<Inner>) {
        while !inner.is_stopped() {
            std::thread::sleep(STORE_LOOK_PAUSE);
            let stamp = self.database.stamp();
            if stamp == self.seen && !self.failing {
                continue;
            }
            match self.database.news() {
                Ok(news) => {
                    // As it was before reading: what was written since shows the next time.
                    (self.seen, self.failing) = (stamp, false);
                    take(inner, news);
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.failing, true) {
                        warn!("{error}");
                    }
                }
            }
        }
    }
}

/// Takes note of what has changed.
fn take(inner: &Arc<Inner>, news: News) {
    if !news.gone.is_empty() {
        let mut table = inner.table.lock();
        let gone: Vec<StoreHash> =
            news.gone.iter().filter_map(|&id| table.remove(id)).map(|item| item.hash()).collect();
        drop(table);
        withdraw(inner, &gone);
    }
    if !news.came.is_empty() {
        let rows: Vec<_> = news
            .came
            .into_iter()
            .map(|row| {
                let allowed = inner.allows(&row.item);
                (row, allowed)
            })
            .collect();
        let mut table = inner.table.lock();
        for (row, allowed) in rows {
            table.insert(row, allowed);
        }
        drop(table);
    }
    inner.work_has_moved();
}

/// Items are gone: they are shared no more, and what was remembered of them is forgotten.
fn withdraw(inner: &Inner, gone: &[StoreHash]) {
    if let Err(error) = inner.memory.forget(gone) {
        warn!("{error}");
    }
    let mut shelf = inner.shelf.write();
    let withdrawn: Vec<_> = gone.iter().filter(|item| shelf.remove(item)).copied().collect();
    drop(shelf);
    for item in gone {
        inner.layouts.invalidate(item);
    }
    if !withdrawn.is_empty() {
        info!("{} items have left the store and are shared no more", withdrawn.len());
        inner.outside.gone(withdrawn);
    }
}
