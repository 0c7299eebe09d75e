//! Who comes and goes when: session lengths as published, returns by the hour of the day, and how
//! many sit behind a NAT.
//!
//! Workstations follow apt-p2p (Dale and Liu, 2008): half of the sessions last longer than five
//! hours, a fifth longer than ten, half of the regular users are there at any time, and half sit
//! behind a NAT. Visitors follow IPFS (Trautwein et al., SIGCOMM 2022): 87.6 % of the sessions end
//! within eight hours, and 2.5 % last longer than a day.

use super::links::Nat;
use super::setup::HOUR;
use crate::agenda::{Nanos, SECOND};
use crate::random::Chance;
use narswarm_protocol::announce::Presence;
use std::time::Duration;

const MINUTE: u64 = 60;

/// For how long nodes have run narswarm before, now and then.
const PAST: Nanos = 7 * 24 * HOUR;

fn span(nanos: Nanos) -> Duration {
    Duration::from_nanos(nanos)
}

/// Lengths below which so many of a thousand sessions stay, in minutes; straight lines between.
const WORKSTATION: &[(u64, u64)] =
    &[(0, 5), (100, 45), (200, 90), (500, 300), (800, 600), (950, 1080), (1000, 2880)];

/// The same for visitors.
const VISITOR: &[(u64, u64)] =
    &[(0, 2), (100, 8), (250, 24), (500, 75), (876, 480), (975, 1440), (1000, 5760)];

/// How a node comes and goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    /// Always there: a server.
    Server,
    /// A workstation that runs while somebody works.
    Workstation,
    /// Comes by.
    Visitor,
    /// Neither comes nor goes, in scenarios that are about something else.
    Fixed,
}

fn quantile(table: &[(u64, u64)], chance: &mut Chance) -> u64 {
    let drawn = chance.between(0, 1000);
    let above = table.iter().position(|&(mille, _)| mille >= drawn).unwrap_or(table.len() - 1);
    let (high, most) = table[above];
    let (low, least) = table[above.saturating_sub(1)];
    // Integers only: see `Chance::logarithmic`. In seconds, so that few end at the same moment.
    let width = (high - low).max(1);
    let seconds = least * MINUTE + (most - least) * MINUTE * (drawn - low.min(drawn)) / width;
    seconds + chance.between(0, (most - least) * MINUTE / width)
}

impl Habit {
    /// Draws one as they are in the wild.
    pub fn draw(chance: &mut Chance) -> Self {
        match chance.between(0, 99) {
            0..10 => Self::Server,
            10..70 => Self::Workstation,
            _ => Self::Visitor,
        }
    }

    /// How long a session lasts; none for those that never leave.
    pub fn session(self, chance: &mut Chance) -> Option<Nanos> {
        match self {
            Self::Server | Self::Fixed => None,
            Self::Workstation => Some(quantile(WORKSTATION, chance) * SECOND),
            Self::Visitor => Some(quantile(VISITOR, chance) * SECOND),
        }
    }

    /// What it has counted of the time before the run: it isn't there for the first time.
    pub fn past(self, chance: &mut Chance) -> Presence {
        let (mut past, mut at) = (Presence::default(), 0);
        while at < PAST {
            let Some(there) = self.session(chance) else { return past.after(span(PAST), true) };
            let away = self.absence(at / HOUR % 24, chance);
            past = past.after(span(there), true).after(span(away), false);
            at += there + away;
        }
        past
    }

    /// How long it stays away if it leaves at this moment: as long as a session, and who would
    /// come back at night mostly waits for the morning. `hour` is the hour of its day.
    pub fn absence(self, hour: u64, chance: &mut Chance) -> Nanos {
        let away = self.session(chance).unwrap_or(60 * SECOND);
        let returns = (hour + away / (3600 * SECOND)) % 24;
        if returns < 7 && chance.percent(75) {
            away + (7 - returns) * 3600 * SECOND + chance.between(0, 7200) * SECOND
        } else {
            away
        }
    }
}

impl Nat {
    /// Draws one where `percent` of all are behind one; one in five of those is symmetric.
    pub fn draw(percent: u64, chance: &mut Chance) -> Self {
        if !chance.percent(percent) {
            Self::Open
        } else if chance.percent(80) {
            Self::Cone
        } else {
            Self::Symmetric
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share_above(habit: Habit, hours: u64) -> f64 {
        let mut chance = Chance::new(5, "sessions");
        let longer = |_: &u32| habit.session(&mut chance) > Some(hours * 3600 * SECOND);
        (0..20_000).filter(longer).count() as f64 / 20_000.0
    }

    #[test]
    fn whoever_was_there_before_has_counted_what_its_habit_is() {
        let mut chance = Chance::new(6, "past");
        let mut mean = |habit: Habit| {
            let shares = (0..500).map(|_| u32::from(habit.past(&mut chance).share().in_percent()));
            shares.sum::<u32>() / 500
        };
        let (server, workstation) = (mean(Habit::Server), mean(Habit::Workstation));
        assert!(server > 94 && (35..55).contains(&workstation), "{server} {workstation}");
        assert!((20..55).contains(&mean(Habit::Visitor)));
    }

    #[test]
    fn sessions_are_as_published() {
        let near = |is: f64, should: f64| (is - should).abs() < 0.015;
        assert!(near(share_above(Habit::Workstation, 5), 0.5));
        assert!(near(share_above(Habit::Workstation, 10), 0.2));
        assert!(near(share_above(Habit::Visitor, 8), 0.124));
        assert!(near(share_above(Habit::Visitor, 24), 0.025));
        let mut chance = Chance::new(5, "sessions");
        assert_eq!(Habit::Server.session(&mut chance), None);
    }

    #[test]
    fn few_come_back_at_night_and_half_are_behind_a_nat() {
        let mut chance = Chance::new(6, "absences");
        let mut at_night = 0;
        for _ in 0..1000 {
            let away = Habit::Visitor.absence(22, &mut chance);
            at_night += u32::from((22 + away / (3600 * SECOND)) % 24 < 7);
        }
        assert!(at_night < 400, "{at_night}");
        let open = (0..1000).filter(|_| Nat::draw(50, &mut chance) == Nat::Open).count();
        assert!((450..550).contains(&open), "{open}");
    }
}
