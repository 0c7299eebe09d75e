//! Lookups in a network where nothing happens, measured as they are measured in a network of real
//! libp2p nodes: the model is right as far as the two agree.
//!
//! `calibrate-dht` of the crate `tests` does the same with real nodes, and compares.

use super::event::Event;
use super::kad::{Ended, Insertion, Kad, Purpose, Settings};
use super::links::{Links, Timing};
use super::table::{BUCKET, NodeId, Position};
use super::terrain::Terrain;
use crate::agenda::{Agenda, MILLI, Nanos, SECOND, seconds};
use crate::random::Chance;
use serde::{Deserialize, Serialize};

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub struct Trial {
    /// Nodes.
    pub nodes: u32,
    /// How many of a hundred die before the lookups.
    pub dead_percent: u32,
    /// The same round trip between any two; none: the world.
    pub uniform: Option<Nanos>,
    /// Who gets into a table.
    pub insertion: Insertion,
    /// Lookups.
    pub lookups: u32,
    /// For which an idle connection is kept, in seconds.
    pub idle_seconds: u32,
    /// What chance follows from.
    pub seed: u64,
}

impl Trial {
    /// The pause before a lookup: connections of those before are closed, if they are to be.
    #[must_use]
    pub fn pause(&self) -> Nanos {
        (u64::from(self.idle_seconds) + 1).min(11) * SECOND
    }
}

/// Means and medians over lookups.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Measured {
    /// Lookups.
    pub lookups: u32,
    /// Nodes in a table.
    pub table: f64,
    /// Connections that a node makes a minute while nothing happens.
    pub connects: f64,
    /// Questions of a lookup.
    pub asked: f64,
    /// Answers of a lookup.
    pub answers: f64,
    /// How many of the twenty closest alive a lookup finds.
    pub found: f64,
    /// Milliseconds that a lookup takes: mean.
    pub mean_ms: f64,
    /// Median.
    pub p50_ms: f64,
    /// Ninth decile.
    pub p90_ms: f64,
}

/// One lookup.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Questions.
    pub asked: u32,
    /// Answers.
    pub answers: u32,
    /// How many of the closest alive were found.
    pub found: usize,
    /// Milliseconds.
    pub ms: f64,
}

impl Measured {
    /// What the samples are on average.
    #[must_use]
    pub fn of(samples: &[Sample], table: f64, connects: f64) -> Self {
        let count = samples.len().max(1) as f64;
        let mean = |value: fn(&Sample) -> f64| samples.iter().map(value).sum::<f64>() / count;
        let mut times: Vec<f64> = samples.iter().map(|sample| sample.ms).collect();
        times.sort_by(f64::total_cmp);
        let at = |percent: usize| {
            times.get(times.len().saturating_sub(1) * percent / 100).copied().unwrap_or(0.0)
        };
        Self {
            lookups: samples.len() as u32,
            table,
            connects,
            asked: mean(|sample| f64::from(sample.asked)),
            answers: mean(|sample| f64::from(sample.answers)),
            found: mean(|sample| sample.found as f64),
            mean_ms: mean(|sample| sample.ms),
            p50_ms: at(50),
            p90_ms: at(90),
        }
    }
}

impl Measured {
    /// The mean of several.
    #[must_use]
    pub fn mean(all: &[Self]) -> Self {
        let count = all.len().max(1) as f64;
        let mean = |value: fn(&Self) -> f64| all.iter().map(value).sum::<f64>() / count;
        Self {
            lookups: all.iter().map(|one| one.lookups).sum(),
            table: mean(|m| m.table),
            connects: mean(|m| m.connects),
            asked: mean(|m| m.asked),
            answers: mean(|m| m.answers),
            found: mean(|m| m.found),
            mean_ms: mean(|m| m.mean_ms),
            p50_ms: mean(|m| m.p50_ms),
            p90_ms: mean(|m| m.p90_ms),
        }
    }
}

/// The trials by which the model is judged.
#[must_use]
pub fn trials(nodes: u32, lookups: u32, seed: u64) -> Vec<(&'static str, Trial)> {
    let cold = Trial {
        nodes,
        dead_percent: 0,
        uniform: Some(50 * MILLI),
        lookups,
        idle_seconds: 2,
        seed,
        insertion: Insertion::Room,
    };
    vec![
        ("connected, 50 ms", Trial { idle_seconds: 600, ..cold }),
        ("not connected, 50 ms", cold),
        ("not connected, the world", Trial { uniform: None, ..cold }),
        ("a tenth dead, 50 ms", Trial { dead_percent: 10, ..cold }),
        ("libp2p's own insertion", Trial { insertion: Insertion::Challenge, ..cold }),
    ]
}

/// When nodes come, one after the other.
pub const ARRIVALS: Nanos = 100 * MILLI;

/// How long the network is left alone before the lookups.
pub const SETTLE: Nanos = 20 * SECOND;

/// How long it is watched then, doing nothing.
pub const WATCH: Nanos = 30 * SECOND;

/// The round trips between the nodes of a trial; real nodes are delayed by the same.
#[must_use]
pub fn terrain(trial: &Trial) -> Terrain {
    match trial.uniform {
        Some(trip) => Terrain::Uniform(trip),
        None => Terrain::world(trial.nodes as usize, &mut Chance::new(trial.seed, "terrain")),
    }
}

/// Runs a trial in the model.
#[must_use]
pub fn run(trial: &Trial, timing: Timing) -> Measured {
    let count = trial.nodes as usize;
    let mut chance = Chance::new(trial.seed, "calibration");
    let positions: Vec<Position> = (0..count).map(|_| chance.between(0, u64::MAX)).collect();
    let timing = Timing { idle_seconds: trial.idle_seconds, ..timing };
    let links = Links::new(count, terrain(trial), timing, Chance::new(trial.seed, "links"));
    let settings =
        Settings { bootstrap: 1, refresh: None, insertion: trial.insertion, ..Settings::default() };
    let mut kad = Kad::new(positions, links, settings, Chance::new(trial.seed, "kad"));
    let mut agenda = Agenda::default();
    kad.links.online.fill(false);
    for node in 0..trial.nodes {
        run_until(&mut kad, &mut agenda, u64::from(node) * ARRIVALS);
        kad.join(node, &mut agenda);
    }
    let mut now = agenda.now() + SETTLE;
    run_until(&mut kad, &mut agenda, now);
    let before = kad.links.connections;
    now += WATCH;
    run_until(&mut kad, &mut agenda, now);
    let minutes = WATCH as f64 / (60 * SECOND) as f64;
    let made = (kad.links.connections - before) as f64;
    let connects = made / f64::from(trial.nodes) / minutes;
    let table = kad.tables.iter().map(|table| table.len() as f64).sum::<f64>() / count as f64;
    // The entry stays, as it does with real nodes.
    let mut others: Vec<NodeId> = (1..trial.nodes).collect();
    chance.shuffle(&mut others);
    let dead = trial.nodes * trial.dead_percent / 100;
    for &node in &others[..dead as usize] {
        kad.leave(node, true);
    }
    let alive: Vec<NodeId> = others[dead as usize..].to_vec();
    let mut samples = Vec::new();
    for _ in 0..trial.lookups {
        // Alone, and after connections have become idle.
        now = agenda.now() + trial.pause();
        run_until(&mut kad, &mut agenda, now);
        let owner = alive[chance.between(0, alive.len() as u64 - 1) as usize];
        let target = chance.between(0, u64::MAX);
        let ended = look_up(&mut kad, &mut agenda, owner, target);
        let mut closest: Vec<_> = alive
            .iter()
            .chain(&[0])
            .filter(|&&node| node != owner)
            .map(|&node| (kad.positions[node as usize] ^ target, node))
            .collect();
        closest.sort_unstable();
        closest.truncate(BUCKET);
        let found = closest.iter().filter(|node| kad.closest.contains(node)).count();
        let ms = seconds(ended.took) * 1000.0;
        samples.push(Sample { asked: ended.asked, answers: ended.answers, found, ms });
    }
    Measured::of(&samples, table, connects)
}

fn step(kad: &mut Kad, agenda: &mut Agenda<Event>, event: Event) -> Option<Ended> {
    match event {
        Event::Answer { walk, node, fresh } => kad.answer(walk, node, fresh, agenda),
        Event::Silence { walk, node } => kad.silence(walk, node, agenda),
        Event::Met { node, other } => {
            kad.meet(node, other, agenda);
            None
        }
        Event::Refresh { node } => kad.refresh(node, agenda),
        // What is above Kademlia isn't there.
        _ => None,
    }
}

fn run_until(kad: &mut Kad, agenda: &mut Agenda<Event>, until: Nanos) {
    while agenda.next_at().is_some_and(|at| at <= until)
        && let Some(event) = agenda.advance()
    {
        let _ = step(kad, agenda, event);
    }
    agenda.pass(until);
}

fn look_up(kad: &mut Kad, agenda: &mut Agenda<Event>, owner: NodeId, target: Position) -> Ended {
    const NUMBER: Purpose = Purpose::Asked(0);
    if let Some(ended) = kad.walk(owner, target, BUCKET, NUMBER, agenda) {
        return ended;
    }
    loop {
        let event = agenda.advance().expect("a walk under way has an event to come");
        if let Some(ended) = step(kad, agenda, event)
            && ended.purpose == NUMBER
        {
            return ended;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRIAL: Trial = Trial {
        nodes: 200,
        dead_percent: 0,
        insertion: Insertion::Room,
        uniform: Some(50 * MILLI),
        lookups: 40,
        idle_seconds: 60,
        seed: 1,
    };

    #[test]
    fn a_quiet_network_finds_the_closest() {
        let measured = run(&TRIAL, Timing::default());
        assert!(measured.found > 19.8, "{measured:?}");
        assert!((20.0..45.0).contains(&measured.asked), "{measured:?}");
        assert!(measured.table > 60.0, "{measured:?}");
    }

    #[test]
    fn the_dead_cost_questions_and_time() {
        let alive = run(&TRIAL, Timing::default());
        let some_dead = run(&Trial { dead_percent: 20, ..TRIAL }, Timing::default());
        assert!(some_dead.asked > alive.asked && some_dead.p90_ms > 2.0 * alive.p90_ms);
        assert!(some_dead.found > 19.0, "{some_dead:?}");
    }
}
