//! How far each item of the store is on its way: looked for a narinfo, to be hashed, shared or
//! not. Only bookkeeping; what is done is done by `finding` and `hashing`.

use super::Signed;
use super::database::Row;
use narswarm_protocol::store_path::{ItemName, StoreHash};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Instant;

/// How far the work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Survey {
    /// Valid items that may be shared by the policy.
    pub items: u64,
    /// Items that the policy keeps from others.
    pub hidden: u64,
    /// Of which no narinfo is known that is believed: built here, or not looked up yet.
    pub unsigned: u64,
    /// Of which what is signed is other content.
    pub different: u64,
    /// That wait to be hashed.
    pub waiting: u64,
    /// Octets of their nars.
    pub waiting_bytes: u64,
    /// That are shared.
    pub shared: u64,
    /// Octets of their nars.
    pub shared_bytes: u64,
    /// Octets of nars that were hashed since the start.
    pub hashed_bytes: u64,
}

/// An item on its way.
#[derive(Debug)]
struct Entry {
    row: Row,
    state: State,
    /// From when on it is looked for far away, if it is to be.
    far: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No believed narinfo is known.
    Unsigned,
    /// To be hashed.
    Waiting(Signed),
    /// Shared.
    Shared(Signed),
    /// Other content than what is signed.
    Different,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Table {
    entries: HashMap<i64, Entry>,
    by_item: HashMap<StoreHash, i64>,
    hidden: HashMap<StoreHash, Row>,
    hidden_ids: HashMap<i64, StoreHash>,
    /// To be looked for nearby.
    near: VecDeque<i64>,
    /// To be looked for far away, from when on.
    far: BTreeSet<(Instant, i64)>,
    /// To be hashed, the smallest first: so most are shared soon.
    waiting: BTreeSet<(u64, i64)>,
    survey: Survey,
}

impl Table {
    /// An item has come; `allowed` by the policy, or to be hidden.
    pub fn insert(&mut self, row: Row, allowed: bool) {
        if !allowed {
            self.hidden_ids.insert(row.id, row.item.hash());
            self.hidden.insert(row.item.hash(), row);
            return;
        }
        let id = row.id;
        self.by_item.insert(row.item.hash(), id);
        self.near.push_back(id);
        self.survey.items += 1;
        self.entries.insert(id, Entry { row, state: State::Unsigned, far: None });
        self.count(State::Unsigned, 1);
    }

    /// An item has gone. Its name, if it isn't there under another number.
    pub fn remove(&mut self, id: i64) -> Option<ItemName> {
        let Some(entry) = self.entries.remove(&id) else {
            if let Some(item) = self.hidden_ids.remove(&id)
                && self.hidden.get(&item).is_some_and(|row| row.id == id)
            {
                self.hidden.remove(&item);
            }
            return None;
        };
        self.leave(id, entry.state);
        if let Some(due) = entry.far {
            self.far.remove(&(due, id));
        }
        self.survey.items -= 1;
        let hash = entry.row.item.hash();
        if self.by_item.get(&hash) == Some(&id) {
            self.by_item.remove(&hash);
            return Some(entry.row.item);
        }
        None
    }

    /// Whether the policy hides the item.
    pub fn is_hidden(&self, item: &StoreHash) -> bool {
        self.hidden.contains_key(item)
    }

    /// A hidden item may be shared after all, if `allowed`; whether there is more to do.
    pub fn reveal(&mut self, item: &StoreHash, allowed: impl Fn(&ItemName) -> bool) -> bool {
        match self.hidden.remove(item) {
            Some(row) if allowed(&row.item) => {
                self.hidden_ids.remove(&row.id);
                self.insert(row, true);
                true
            }
            Some(row) => {
                self.hidden.insert(*item, row);
                false
            }
            None => false,
        }
    }

    /// Narinfos have come to be known; whether there is more to do.
    pub fn note_signed(&mut self, items: &[StoreHash]) -> bool {
        let before = self.near.len();
        for item in items {
            let Some(&id) = self.by_item.get(item) else { continue };
            let state = self.entries.get(&id).map(|entry| entry.state);
            if matches!(state, Some(State::Unsigned | State::Different)) {
                self.near.push_back(id);
            }
        }
        self.near.len() > before
    }

    /// Takes items that are to be looked for nearby, at most `limit`.
    pub fn take_near(&mut self, limit: usize) -> Vec<Row> {
        let ids: Vec<_> = self.near.drain(..self.near.len().min(limit)).collect();
        self.open_rows(&ids)
    }

    /// Takes items that are to be looked for far away by now, at most `limit`.
    pub fn take_far(&mut self, now: Instant, limit: usize) -> Vec<Row> {
        let ids: Vec<_> =
            self.far.iter().take_while(|(due, _)| *due <= now).take(limit).copied().collect();
        for due in &ids {
            self.far.remove(due);
            if let Some(entry) = self.entries.get_mut(&due.1) {
                entry.far = None;
            }
        }
        let ids: Vec<_> = ids.into_iter().map(|(_, id)| id).collect();
        self.open_rows(&ids)
    }

    fn open_rows(&self, ids: &[i64]) -> Vec<Row> {
        let rows = ids.iter().filter_map(|id| self.entries.get(id));
        let open = rows.filter(|e| matches!(e.state, State::Unsigned | State::Different));
        open.map(|entry| entry.row.clone()).collect()
    }

    /// When there is something to be looked for far away.
    pub fn next_far(&self) -> Option<Instant> {
        self.far.first().map(|(due, _)| *due)
    }

    /// Whether something is to be looked for nearby.
    pub fn has_near(&self) -> bool {
        !self.near.is_empty()
    }

    /// Nothing was found nearby: looks far away from `due` on, whatever was said before.
    pub fn look_far(&mut self, id: i64, due: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if let Some(before) = entry.far.replace(due) {
            self.far.remove(&(before, id));
        }
        self.far.insert((due, id));
    }

    /// Other narinfos are believed from now on: all that aren't shared are looked for anew nearby.
    pub fn look_again_at_all(&mut self) {
        let open = |entry: &Entry| matches!(entry.state, State::Unsigned | State::Different);
        let open = self.entries.iter().filter(|(_, entry)| open(entry)).map(|(&id, _)| id);
        self.near = open.collect();
    }

    /// Something is amiss: looks at the item as if it were new.
    pub fn look_again(&mut self, id: i64) {
        if self.set(id, State::Unsigned) {
            self.near.push_back(id);
        }
    }

    /// A narinfo was found: the item is to be hashed, unless the database says already that it is
    /// something else.
    pub fn set_signed(&mut self, id: i64, signed: Signed) {
        let Some(entry) = self.entries.get(&id) else { return };
        if entry.row.nar_hash.is_some_and(|hash| hash != signed.nar_hash) {
            self.set(id, State::Different);
        } else if self.set(id, State::Waiting(signed)) {
            self.waiting.insert((signed.nar_size, id));
        }
    }

    /// Takes the next item to be hashed.
    pub fn take_waiting(&mut self) -> Option<(Row, Signed)> {
        loop {
            let (_, id) = self.waiting.pop_first()?;
            if let Some(Entry { row, state: State::Waiting(signed), .. }) = self.entries.get(&id) {
                return Some((row.clone(), *signed));
            }
        }
    }

    /// An item was hashed and is shared; false if it has gone meanwhile.
    pub fn set_shared(&mut self, id: i64, signed: Signed) -> bool {
        self.set(id, State::Shared(signed))
    }

    /// So many octets were hashed.
    pub fn note_hashed(&mut self, bytes: u64) {
        self.survey.hashed_bytes += bytes;
    }

    /// An item was hashed and is something else than what is signed.
    pub fn set_different(&mut self, id: i64) {
        self.set(id, State::Different);
    }

    /// An item couldn't be hashed: it is looked at again from `due` on.
    pub fn set_failed(&mut self, id: i64, due: Instant) {
        if self.set(id, State::Unsigned) {
            self.look_far(id, due);
        }
    }

    /// How far the work is.
    pub fn survey(&self) -> Survey {
        Survey { hidden: self.hidden.len() as u64, ..self.survey }
    }

    fn set(&mut self, id: i64, state: State) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        let old = std::mem::replace(&mut entry.state, state);
        self.leave(id, old);
        self.count(state, 1);
        true
    }

    fn leave(&mut self, id: i64, state: State) {
        if let State::Waiting(signed) = state {
            self.waiting.remove(&(signed.nar_size, id));
        }
        self.count(state, -1);
    }

    fn count(&mut self, state: State, change: i64) {
        let add = |number: &mut u64, change: i64| *number = number.saturating_add_signed(change);
        let survey = &mut self.survey;
        match state {
            State::Unsigned => add(&mut survey.unsigned, change),
            State::Different => add(&mut survey.different, change),
            State::Waiting(signed) => {
                add(&mut survey.waiting, change);
                add(&mut survey.waiting_bytes, change * signed.nar_size.cast_signed());
            }
            State::Shared(signed) => {
                add(&mut survey.shared, change);
                add(&mut survey.shared_bytes, change * signed.nar_size.cast_signed());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narswarm_protocol::hash::NarHash;
    use std::time::Duration;

    fn row(id: i64) -> Row {
        let item = format!("{}-x", narswarm_protocol::base32::encode(&[id as u8; 20]));
        let item = ItemName::parse(item.as_bytes()).expect("a name");
        Row { id, item, nar_hash: None, registered: 0 }
    }

    fn table(ids: &[i64]) -> Table {
        let mut table = Table::default();
        ids.iter().for_each(|&id| table.insert(row(id), true));
        assert_eq!(table.take_near(10).len(), ids.len());
        table
    }

    #[test]
    fn an_item_is_looked_for_far_away_at_one_time_only() {
        let mut table = table(&[1, 2]);
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        table.look_far(1, now);
        table.look_far(2, now);
        // Found wanting once more before the first time came.
        table.look_far(1, later);
        assert_eq!(table.take_far(now, 10), [row(2)]);
        assert_eq!(table.take_far(later, 10), [row(1)]);
        assert_eq!(table.next_far(), None);
        table.look_far(1, now);
        table.remove(1);
        assert_eq!(table.next_far(), None);
    }

    #[test]
    fn with_other_keys_all_that_is_not_shared_is_looked_for_anew() {
        let mut table = table(&[1, 2, 3]);
        let signed = Signed { nar_hash: NarHash([1; 32]), nar_size: 5 };
        table.set_signed(1, signed);
        assert_eq!(table.take_waiting(), Some((row(1), signed)));
        assert!(table.set_shared(1, signed));
        table.set_different(2);
        table.look_again_at_all();
        let mut near = table.take_near(10);
        near.sort_by_key(|row| row.id);
        assert_eq!(near, [row(2), row(3)]);
        assert_eq!(table.survey().shared, 1);
    }
}
