//! Whether a seed has what its filter says: false positives are as frequent as the filter is dense,
//! and whoever is wrong more often lies, or has lost what it had.

use crate::limits::{FILTER_MISSES, FILTER_WINDOW_ITEMS};

/// What came of asking one seed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Credit {
    considered: f64,
    missed: f64,
}

impl Credit {
    /// Notes a search for `considered` items: the filter said yes to `asked` of them, and `had` of
    /// these came.
    pub fn note(&mut self, considered: usize, asked: usize, had: usize) {
        self.considered += considered as f64;
        self.missed += asked.saturating_sub(had) as f64;
        if self.considered > FILTER_WINDOW_ITEMS {
            // What was long ago counts less and less.
            self.considered /= 2.0;
            self.missed /= 2.0;
        }
    }

    /// Whether a seed whose filter says yes to a share of `density` of all other things is one to be
    /// forgotten.
    #[must_use]
    pub fn is_false(&self, density: f64) -> bool {
        // Four times what chance makes, and some more for searches that were about the same things.
        self.missed > FILTER_MISSES + 4.0 * density * self.considered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DENSITY: f64 = 1.0 / 40.0;

    #[test]
    fn a_seed_that_is_right_and_sometimes_wrong_by_chance_stays() {
        let mut credit = Credit::default();
        for round in 0..10_000 {
            // Thrice as often as chance has it.
            credit.note(100, 90, if round % 4 == 0 { 60 } else { 90 });
            assert!(!credit.is_false(DENSITY), "round {round}");
        }
    }

    #[test]
    fn one_that_says_yes_and_has_nothing_is_found_out_soon() {
        let mut credit = Credit::default();
        let mut asked = 0;
        while !credit.is_false(DENSITY) {
            credit.note(1, 1, 0);
            asked += 1;
        }
        assert!(asked <= 80, "{asked}");
        // Also after years of honesty.
        let mut credit = Credit::default();
        (0..1000).for_each(|_| credit.note(1000, 1000, 1000));
        asked = 0;
        while !credit.is_false(DENSITY) {
            credit.note(100, 100, 0);
            asked += 100;
        }
        assert!(asked <= 600, "{asked}");
    }
}
