//! Which small nars to fetch before a client asks for them.
//!
//! guix asks for the narinfos of all that it needs at once, and then for one nar after another, each
//! a new request that costs at least a round trip to whoever holds it. [`ReadAhead`] notes in which
//! order narinfos were asked for, and when a nar is asked for says which ones to fetch meanwhile: a
//! few at first, twice as many each time that one of them was really asked for, half as many when
//! one was fetched in vain.
//!
//! It fetches nothing and knows no peers: its driver says of an item whether it can be had now.

use crate::fetch::Time;
use crate::limits;
use crate::store_path::StoreHash;
use std::collections::BTreeMap;

/// What the driver knows of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prospect {
    /// A small nar of this size, which a peer holds and this node doesn't.
    Wanted {
        /// NarSize.
        bytes: u64,
    },
    /// Nobody is known to hold it; that may change.
    NotYet,
    /// It is at hand, or too large.
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its narinfo was asked for.
    Listed,
    /// It is being fetched.
    Flying { bytes: u64 },
    /// It was fetched, and nobody has asked for it yet.
    Unused { bytes: u64, since: Time },
    /// Nothing is to be done about it.
    Done,
}

#[derive(Debug)]
struct Entry {
    item: StoreHash,
    listed_at: Time,
    state: State,
}

/// See the module.
#[derive(Debug)]
pub struct ReadAhead {
    /// In the order in which their narinfos were asked for.
    entries: BTreeMap<u64, Entry>,
    places: BTreeMap<StoreHash, u64>,
    next_place: u64,
    /// The place after the last nar that was asked for; `None` before the first.
    cursor: Option<u64>,
    /// How many may be fetched and not yet asked for.
    window: usize,
    /// Those that are being fetched, and those that were and are unused.
    ahead: usize,
    ahead_bytes: u64,
    flying_bytes: u64,
}

impl Default for ReadAhead {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            places: BTreeMap::new(),
            next_place: 0,
            cursor: None,
            window: limits::FIRST_AHEAD_ITEMS,
            ahead: 0,
            ahead_bytes: 0,
            flying_bytes: 0,
        }
    }
}

impl ReadAhead {
    /// A client asks for a narinfo.
    pub fn handle_listed(&mut self, item: StoreHash, now: Time) {
        if let Some(place) = self.places.get(&item)
            && let Some(entry) = self.entries.get_mut(place)
        {
            entry.listed_at = now;
            return;
        }
        while self.entries.len() >= limits::MAX_LISTED_ITEMS {
            let Some((_, oldest)) = self.entries.pop_first() else { break };
            self.places.remove(&oldest.item);
            self.uncount(oldest.state);
        }
        self.entries.insert(self.next_place, Entry { item, listed_at: now, state: State::Listed });
        self.places.insert(item, self.next_place);
        self.next_place += 1;
    }

    /// A client asks for a nar. Says whether it was fetched ahead, or is on its way.
    pub fn handle_asked(&mut self, item: &StoreHash, now: Time) -> bool {
        self.expire(now);
        let Some(&place) = self.places.get(item) else { return false };
        let Some(entry) = self.entries.get_mut(&place) else { return false };
        let state = std::mem::replace(&mut entry.state, State::Done);
        self.uncount(state);
        self.cursor = Some(place + 1);
        let was_ahead = matches!(state, State::Flying { .. } | State::Unused { .. });
        if was_ahead {
            self.window = (self.window * 2).min(limits::MAX_AHEAD_ITEMS);
        }
        was_ahead
    }

    /// The next nar to begin to fetch, if any may be: the first after the one that was last asked
    /// for of which `prospect` says that it can be had, or else of those before.
    pub fn poll_begin(
        &mut self,
        mut prospect: impl FnMut(&StoreHash) -> Prospect,
        now: Time,
    ) -> Option<StoreHash> {
        self.expire(now);
        let cursor = self.cursor?;
        if self.ahead >= self.window {
            return None;
        }
        let (mut found, mut past) = (None, Vec::new());
        let after = self.entries.range(cursor..).chain(self.entries.range(..cursor));
        let listed = after.filter(|(_, entry)| entry.state == State::Listed);
        for (&place, entry) in listed.take(limits::MAX_AHEAD_LOOKED_AT) {
            if now.since(entry.listed_at) >= limits::LISTED_LIFE {
                past.push(place);
                continue;
            }
            match prospect(&entry.item) {
                Prospect::Wanted { bytes } => {
                    found = Some((place, bytes));
                    break;
                }
                Prospect::NotYet => {}
                Prospect::Never => past.push(place),
            }
        }
        for place in past {
            if let Some(entry) = self.entries.get_mut(&place) {
                entry.state = State::Done;
            }
        }
        let (place, bytes) = found?;
        let fits = self.ahead_bytes + bytes <= limits::MAX_AHEAD_BYTES
            && self.flying_bytes + bytes <= limits::MAX_AHEAD_FLYING_BYTES;
        let entry = self.entries.get_mut(&place).filter(|_| fits)?;
        entry.state = State::Flying { bytes };
        self.ahead += 1;
        self.ahead_bytes += bytes;
        self.flying_bytes += bytes;
        Some(entry.item)
    }

    /// A nar that was to be fetched ahead `came`, or won't.
    pub fn handle_ended(&mut self, item: &StoreHash, came: bool, now: Time) {
        let Some(entry) = self.places.get(item).and_then(|place| self.entries.get_mut(place))
        else {
            return;
        };
        // Whoever asked for it meanwhile has taken it over.
        let State::Flying { bytes } = entry.state else { return };
        self.flying_bytes -= bytes;
        if came {
            entry.state = State::Unused { bytes, since: now };
        } else {
            entry.state = State::Done;
            self.ahead -= 1;
            self.ahead_bytes -= bytes;
        }
    }

    /// How many nars are being fetched or were and are unused, and their octets.
    #[must_use]
    pub fn ahead(&self) -> (usize, u64) {
        (self.ahead, self.ahead_bytes)
    }

    /// What nobody has asked for in time was fetched in vain.
    fn expire(&mut self, now: Time) {
        if self.ahead == 0 {
            return;
        }
        let mut expired = Vec::new();
        for entry in self.entries.values_mut() {
            if let State::Unused { since, .. } = entry.state
                && now.since(since) >= limits::AHEAD_LIFE
            {
                expired.push(std::mem::replace(&mut entry.state, State::Done));
            }
        }
        if !expired.is_empty() {
            self.window = (self.window / 2).max(1);
        }
        expired.into_iter().for_each(|state| self.uncount(state));
    }

    fn uncount(&mut self, state: State) {
        let bytes = match state {
            State::Listed | State::Done => return,
            State::Flying { bytes } => {
                self.flying_bytes -= bytes;
                bytes
            }
            State::Unused { bytes, .. } => bytes,
        };
        self.ahead -= 1;
        self.ahead_bytes -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::time::Duration;

    const SMALL: Prospect = Prospect::Wanted { bytes: 1000 };

    fn item(number: u16) -> StoreHash {
        let mut hash = [0; 20];
        // Not in the order in which they are listed.
        hash[..2].copy_from_slice(&(number.wrapping_mul(40_503)).to_be_bytes());
        StoreHash(hash)
    }

    fn at(seconds: u64) -> Time {
        Time(Duration::from_secs(seconds))
    }

    fn listed(count: u16) -> ReadAhead {
        let mut ahead = ReadAhead::default();
        (0..count).for_each(|number| ahead.handle_listed(item(number), at(0)));
        ahead
    }

    /// Begins whatever may be begun.
    fn begin(ahead: &mut ReadAhead, now: Time) -> Vec<StoreHash> {
        std::iter::from_fn(|| ahead.poll_begin(|_| SMALL, now)).collect()
    }

    fn items(numbers: impl IntoIterator<Item = u16>) -> Vec<StoreHash> {
        numbers.into_iter().map(item).collect()
    }

    #[test]
    fn nothing_is_fetched_before_a_nar_is_asked_for() {
        let mut ahead = listed(100);
        assert_eq!(begin(&mut ahead, at(0)), []);
        assert!(!ahead.handle_asked(&item(10), at(0)));
        assert_eq!(begin(&mut ahead, at(0)), items(11..15), "those that follow");
    }

    #[test]
    fn who_asks_for_what_was_fetched_gets_more_of_it() {
        let mut ahead = listed(500);
        ahead.handle_asked(&item(0), at(0));
        let mut begun = BTreeSet::from_iter(begin(&mut ahead, at(0)));
        let mut most = 0;
        for number in 1..500 {
            begun.iter().for_each(|item| ahead.handle_ended(item, true, at(0)));
            assert!(ahead.handle_asked(&item(number), at(0)), "{number}");
            assert!(begun.remove(&item(number)), "each is fetched once");
            let more = begin(&mut ahead, at(0));
            assert!(more.iter().all(|&item| begun.insert(item)), "none twice");
            most = most.max(ahead.ahead().0);
        }
        assert_eq!(most, limits::MAX_AHEAD_ITEMS);
        assert_eq!((ahead.ahead(), ahead.flying_bytes), ((0, 0), 0));
    }

    #[test]
    fn what_is_large_or_held_or_unknown_is_passed_over() {
        let mut ahead = listed(8);
        ahead.handle_asked(&item(0), at(0));
        let prospect = |of: &StoreHash| match items(1..5).iter().position(|item| item == of) {
            Some(0) => Prospect::Never,
            Some(1) => Prospect::NotYet,
            Some(2) => SMALL,
            _ => Prospect::Never,
        };
        assert_eq!(ahead.poll_begin(prospect, at(0)), Some(item(3)));
        assert_eq!(ahead.poll_begin(prospect, at(0)), None);
        assert_eq!(begin(&mut ahead, at(1)), items([2]), "by now somebody holds it");
    }

    #[test]
    fn budgets_hold_for_what_flies_and_for_what_is_unused() {
        let mut ahead = listed(1000);
        ahead.window = limits::MAX_AHEAD_ITEMS;
        ahead.handle_asked(&item(0), at(0));
        let large = Prospect::Wanted { bytes: limits::SMALL_NAR_BYTES };
        let mut begun = Vec::new();
        loop {
            let more: Vec<_> = std::iter::from_fn(|| ahead.poll_begin(|_| large, at(0))).collect();
            if more.is_empty() {
                break;
            }
            assert!(ahead.flying_bytes <= limits::MAX_AHEAD_FLYING_BYTES);
            more.iter().for_each(|item| ahead.handle_ended(item, true, at(0)));
            begun.extend(more);
        }
        assert_eq!(ahead.ahead().1, limits::MAX_AHEAD_BYTES);
        assert_eq!(begun.len() as u64, limits::MAX_AHEAD_BYTES / limits::SMALL_NAR_BYTES);
    }

    #[test]
    fn what_was_fetched_in_vain_makes_room_later_and_less_is_fetched_then() {
        let mut ahead = listed(100);
        ahead.handle_asked(&item(0), at(0));
        let begun = begin(&mut ahead, at(0));
        begun.iter().for_each(|item| ahead.handle_ended(item, true, at(1)));
        ahead.handle_asked(&item(50), at(30));
        assert_eq!(begin(&mut ahead, at(30)), [], "nobody has asked for the first ones");
        ahead.handle_asked(&item(60), at(61));
        assert_eq!(begin(&mut ahead, at(61)), items(61..63), "half as many");
    }

    #[test]
    fn what_could_not_be_fetched_is_not_tried_again() {
        let mut ahead = listed(6);
        ahead.handle_asked(&item(0), at(0));
        for item in begin(&mut ahead, at(0)) {
            ahead.handle_ended(&item, false, at(0));
        }
        assert_eq!(ahead.ahead(), (0, 0));
        assert_eq!(begin(&mut ahead, at(0)), items([5]));
    }

    #[test]
    fn whoever_asks_for_what_is_on_its_way_takes_it_over() {
        let mut ahead = listed(3);
        ahead.handle_asked(&item(0), at(0));
        assert_eq!(begin(&mut ahead, at(0)).len(), 2);
        assert!(ahead.handle_asked(&item(1), at(0)));
        ahead.handle_ended(&item(1), true, at(0));
        assert_eq!(ahead.ahead(), (1, 1000));
    }

    #[test]
    fn only_so_many_are_remembered_and_not_for_ever() {
        let mut ahead = listed(3000);
        assert_eq!(ahead.entries.len(), limits::MAX_LISTED_ITEMS);
        assert_eq!(ahead.places.len(), limits::MAX_LISTED_ITEMS);
        assert!(!ahead.handle_asked(&item(5), at(0)));
        assert_eq!(begin(&mut ahead, at(0)), [], "that one was forgotten");
        ahead.handle_asked(&item(2990), at(599));
        assert_eq!(begin(&mut ahead, at(599)).len(), limits::FIRST_AHEAD_ITEMS);
        ahead.handle_asked(&item(2000), at(600));
        assert_eq!(begin(&mut ahead, at(600)), [], "nobody is expected to ask any more");
    }
}
