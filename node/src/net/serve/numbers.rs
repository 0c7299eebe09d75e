//! Short numbers for the nars that are being given, the same for all sessions.

use narswarm_protocol::hash::NarHash;
use narswarm_protocol::limits::MAX_COUNTED_NARS;
use std::collections::{BTreeMap, VecDeque};

/// See the module.
#[derive(Default)]
pub struct Numbers {
    by_hash: BTreeMap<NarHash, u32>,
    /// How many sessions give it, and which it is.
    users: BTreeMap<u32, (u32, NarHash)>,
    /// Numbers whose last user has gone, longest ago first. They are kept for those who come
    /// soon after, for whom it still counts what the others were given.
    idle: VecDeque<u32>,
    next: u32,
}

impl Numbers {
    /// The number of a nar, for one more session; one that no other session has if `alone`.
    pub fn take(&mut self, nar: NarHash, alone: bool) -> u32 {
        let known = self.by_hash.get(&nar).copied().filter(|_| !alone);
        let number = known.unwrap_or_else(|| {
            let number = self.next;
            self.next = self.next.wrapping_add(1);
            if !alone {
                self.by_hash.insert(nar, number);
            }
            number
        });
        let users = self.users.entry(number).or_insert((0, nar));
        if users.0 == 0 {
            self.idle.retain(|&idle| idle != number);
        }
        users.0 += 1;
        number
    }

    /// A session gives the nar no more.
    pub fn release(&mut self, number: u32) {
        let Some((users, _)) = self.users.get_mut(&number) else { return };
        *users = users.saturating_sub(1);
        if *users > 0 {
            return;
        }
        self.idle.push_back(number);
        while self.idle.len() > MAX_COUNTED_NARS {
            let Some(oldest) = self.idle.pop_front() else { break };
            if let Some((_, nar)) = self.users.remove(&oldest)
                && self.by_hash.get(&nar) == Some(&oldest)
            {
                self.by_hash.remove(&nar);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_share_the_number_of_a_nar_unless_they_have_it_twice() {
        let mut numbers = Numbers::default();
        let (one, two) = (NarHash([1; 32]), NarHash([2; 32]));
        let first = numbers.take(one, false);
        assert_eq!(numbers.take(one, false), first);
        let again = numbers.take(one, true);
        assert!(again != first && numbers.take(two, false) != first);
        numbers.release(first);
        numbers.release(first);
        numbers.release(again);
        assert_eq!(numbers.take(one, false), first, "remembered for a while");
    }

    #[test]
    fn no_more_nars_are_remembered_than_allowed() {
        let mut numbers = Numbers::default();
        let nar = |i: u32| {
            let mut hash = [0; 32];
            hash[..4].copy_from_slice(&i.to_be_bytes());
            NarHash(hash)
        };
        let kept = numbers.take(nar(u32::MAX), false);
        for i in 0..3 * MAX_COUNTED_NARS as u32 {
            let number = numbers.take(nar(i), i % 2 == 0);
            numbers.release(number);
            numbers.release(number.wrapping_add(1));
        }
        assert!(numbers.users.len() <= MAX_COUNTED_NARS + 1);
        assert!(numbers.by_hash.len() <= MAX_COUNTED_NARS + 1);
        assert_eq!(numbers.take(nar(u32::MAX), false), kept);
    }
}
