//! Looks for a narinfo of each item: with the node and with guix's own cache at once; with peers
//! and substitute servers a few at a time, and ever more seldom the longer nobody has one. Items
//! that were built here have none, and to ask for them is to tell that they exist, as guix itself
//! does before it builds.

use super::database::Row;
use super::guix_cache::GuixCache;
use super::{Answer, Inner, Signed};
use crate::metrics::{LookupOutcome, LookupPlace};
use narswarm_protocol::limits::{
    STORE_LOOKUP_BATCH, STORE_LOOKUP_FIRST_PAUSE, STORE_LOOKUP_MAX_PAUSE, STORE_LOOKUP_RETRY_PAUSE,
};
use narswarm_protocol::store_path::ItemName;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tracing::warn;

/// Items that are looked for nearby at a time: few enough that the first are hashed soon.
const NEAR_BATCH: usize = 256;

/// Looks until stopped.
pub fn run(inner: &Arc<Inner>) {
    let mut next_ask = Instant::now();
    while !inner.is_stopped() {
        let near = inner.table.lock().take_near(NEAR_BATCH);
        if !near.is_empty() {
            for row in look_near(inner, near) {
                if inner.config.lookups_per_minute > 0 {
                    let due = due(inner, &row);
                    inner.table.lock().look_far(row.id, due);
                }
            }
            continue;
        }
        let now = Instant::now();
        if now >= next_ask {
            let limit = STORE_LOOKUP_BATCH.min(inner.config.lookups_per_minute as usize);
            let far = inner.table.lock().take_far(now, limit);
            if !far.is_empty() {
                let share = far.len() as f64 / f64::from(inner.config.lookups_per_minute.max(1));
                next_ask = now + Duration::from_secs_f64(60.0 * share);
                look_far(inner, far);
                continue;
            }
        }
        let mut table = inner.table.lock();
        if table.has_near() || inner.is_stopped() {
            continue;
        }
        match table.next_far().map(|due| due.max(next_ask)) {
            Some(due) => drop(inner.bell.wait_until(&mut table, due)),
            None => inner.bell.wait(&mut table),
        }
    }
}

/// Looks for everything nearby, once.
pub fn recall(inner: &Inner) {
    loop {
        let near = inner.table.lock().take_near(NEAR_BATCH);
        if near.is_empty() {
            return;
        }
        look_near(inner, near);
    }
}

fn names(rows: &[Row]) -> Vec<ItemName> {
    rows.iter().map(|row| row.item.clone()).collect()
}

/// Takes note of what was found for `rows` in a place; returns those for which nothing was.
fn settle(
    inner: &Inner,
    place: LookupPlace,
    rows: Vec<Row>,
    found: Vec<Option<Signed>>,
) -> Vec<Row> {
    let looked_for = rows.len();
    let mut table = inner.table.lock();
    let mut rest = Vec::new();
    let mut found = found.into_iter();
    for row in rows {
        match found.next().flatten() {
            Some(signed) => table.set_signed(row.id, signed),
            None => rest.push(row),
        }
    }
    drop(table);
    inner.count_lookups(place, looked_for, looked_for - rest.len());
    inner.work_has_moved();
    rest
}

/// Looks at what the node keeps, at Nix's signatures and at guix's cache; returns the items without a
/// narinfo there.
fn look_near(inner: &Inner, rows: Vec<Row>) -> Vec<Row> {
    let found = inner.outside.kept(&names(&rows));
    let rest = settle(inner, LookupPlace::Kept, rows, found);
    let rest = look_at_signatures(inner, rest);
    let servers = inner.guix_cache.servers();
    if rest.is_empty() || servers.is_empty() {
        return rest;
    }
    let mut offers = Vec::new();
    let mut owners = Vec::new();
    for (index, row) in rest.iter().enumerate() {
        for narinfo in GuixCache::narinfos(&servers, &row.item.hash()) {
            offers.push((row.item.clone(), narinfo));
            owners.push(index);
        }
    }
    let mut found = vec![None; rest.len()];
    for (owner, signed) in owners.into_iter().zip(inner.outside.judge(&offers)) {
        found[owner] = found[owner].or(signed);
    }
    settle(inner, LookupPlace::GuixCache, rest, found)
}

fn look_at_signatures(inner: &Inner, rows: Vec<Row>) -> Vec<Row> {
    let kept = inner.signatures.narinfos(&names(&rows));
    let mut offers = Vec::new();
    let mut owners = Vec::new();
    for (index, narinfo) in kept.into_iter().enumerate() {
        if let Some(narinfo) = narinfo {
            offers.push((rows[index].item.clone(), narinfo));
            owners.push(index);
        }
    }
    if offers.is_empty() {
        return rows;
    }
    let mut found = vec![None; rows.len()];
    for (owner, signed) in owners.into_iter().zip(inner.outside.judge(&offers)) {
        found[owner] = signed;
    }
    settle(inner, LookupPlace::Database, rows, found)
}

/// Asks others.
fn look_far(inner: &Inner, rows: Vec<Row>) {
    // Something may have come since: guix asks too.
    let rows = look_near(inner, rows);
    if rows.is_empty() || inner.is_stopped() {
        return;
    }
    let answers = inner.outside.ask(&names(&rows));
    let now = unix_now();
    let mut asked = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        // One that is missing: the node is going down.
        let answer = answers.get(index).copied().unwrap_or(Answer::Unknown);
        let outcome = match answer {
            Answer::Signed(_) => LookupOutcome::Found,
            Answer::Nobody => LookupOutcome::NotFound,
            Answer::Unknown => LookupOutcome::Unknown,
        };
        inner.metrics.count_store_lookups(LookupPlace::Others, outcome, 1);
        match answer {
            Answer::Signed(signed) => inner.table.lock().set_signed(row.id, signed),
            Answer::Nobody => {
                let item = row.item.hash();
                let before = inner.memory.asked(&item).ok().flatten().map_or(0, |(_, tries)| tries);
                let tries = before.saturating_add(1);
                asked.push((item, now, tries));
                inner.table.lock().look_far(row.id, Instant::now() + pause_after(tries));
            }
            Answer::Unknown => {
                inner.table.lock().look_far(row.id, Instant::now() + STORE_LOOKUP_RETRY_PAUSE);
            }
        }
    }
    inner.work_has_moved();
    if let Err(error) = inner.memory.remember_asked(&asked) {
        warn!("{error}");
    }
}

/// From when on others may be asked for an item, by what is remembered.
fn due(inner: &Inner, row: &Row) -> Instant {
    let asked = inner.memory.asked(&row.item.hash()).unwrap_or_else(|error| {
        warn!("{error}");
        None
    });
    let Some((at, tries)) = asked else { return Instant::now() };
    let passed = Duration::from_secs(unix_now().saturating_sub(at).max(0).cast_unsigned());
    Instant::now() + pause_after(tries).saturating_sub(passed)
}

/// How long others are not asked for an item after they had no narinfo of it so many times.
fn pause_after(tries: u32) -> Duration {
    let doubled = 1 << tries.saturating_sub(1).min(10);
    (STORE_LOOKUP_FIRST_PAUSE * doubled).min(STORE_LOOKUP_MAX_PAUSE)
}

fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
