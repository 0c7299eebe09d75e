//! Everything at once, drawn from the seed: what nobody thought of.

use super::{EAGER, MEGABIT, Options, Scenario, calm};
use crate::agenda::{MILLI, Nanos, SECOND};
use crate::content::Version;
use crate::network::Link;
use crate::plan::{Event, HostPlan, Nature, Plan, Reader, Role, UpstreamPlan};
use crate::random::Chance;
use narswarm_protocol::fetch::UpstreamMode;

/// The fuzzer.
pub const MIXED: Scenario = Scenario {
    name: "mixed",
    about: "a random draw of all that can go wrong, on a few hosts and pieces",
    plan: draw,
};

/// Until when something may befall somebody.
const TROUBLE_ENDS: Nanos = 20 * SECOND;

fn draw(options: Options, chance: &mut Chance) -> Plan {
    let count = options.peers.unwrap_or(chance.between(1, 8) as u32);
    let seeds = chance.between(1, 5) as u32;
    let pieces = chance.between(1, 64);
    let bytes = options.bytes.unwrap_or(pieces * (256 << 10) - chance.between(0, 200_000));
    // One seed that stays honest and well is enough for everything to end well.
    let mut hosts = vec![host(options, chance, 0, Role::Seed)];
    for seed in 1..seeds {
        let mut liar = host(options, chance, seed, Role::Seed);
        liar.nature = nature(chance, seed, bytes.div_ceil(256 << 10) as u32);
        hosts.push(liar);
    }
    for peer in 0..count {
        let role = Role::Leech {
            start: if chance.percent(50) { 0 } else { chance.between(0, 5 * SECOND) },
            reader: reader(chance),
        };
        hosts.push(host(options, chance, seeds + peer, role));
    }
    let mut plan = calm(bytes, hosts);
    plan.discovery = (MILLI, chance.between(2 * MILLI, 800 * MILLI));
    if chance.percent(60) {
        plan.upstream = Some(upstream(chance));
        if chance.percent(50) {
            plan.upstream_rate = plan.upstream.map(|upstream| upstream.rate as f64);
        }
        plan.mode = match chance.between(0, 9) {
            0 => UpstreamMode::Race,
            1 => UpstreamMode::SwarmOnly,
            _ => UpstreamMode::SwarmFirst,
        };
    }
    plan.events = events(chance, seeds, count, plan.upstream.is_some());
    plan.demands.longest_gap = Some(gap(&plan, count));
    // Slow links, and a fetch that begins late: each host alone could do it in this time.
    let slowest = plan.hosts.iter().map(|host| host.link.up.min(host.link.down)).min();
    let alone = bytes * SECOND / slowest.unwrap_or(1).max(1);
    plan.demands.deadline = 120 * SECOND + 4 * u64::from(count + 1) * alone;
    plan
}

fn host(options: Options, chance: &mut Chance, index: u32, role: Role) -> HostPlan {
    HostPlan {
        link: Link {
            up: options.up.unwrap_or(chance.logarithmic(MEGABIT, 200 * MEGABIT)),
            down: options.down.unwrap_or(chance.logarithmic(5 * MEGABIT, 500 * MEGABIT)),
        },
        access: options.access.unwrap_or(chance.logarithmic(MILLI / 10, 80 * MILLI)),
        // Some share a network.
        network: if chance.percent(80) { index.into() } else { chance.between(100, 102) },
        role,
        nature: Nature::Honest,
    }
}

fn reader(chance: &mut Chance) -> Reader {
    let rate = chance.percent(20).then(|| chance.logarithmic(MEGABIT, 100 * MEGABIT));
    let ahead = chance.percent(15).then(|| chance.between(1, 32) as u32);
    match (rate, ahead) {
        (None, None) => EAGER,
        (rate, ahead) => Reader { rate, ahead },
    }
}

fn nature(chance: &mut Chance, seed: u32, pieces: u32) -> Nature {
    let liar = if chance.percent(50) { 0 } else { seed as u16 };
    match chance.between(0, 11) {
        0 | 1 => Nature::Corrupting { percent: chance.between(1, 100) as u32 },
        2 => Nature::Lying(Version::False(liar)),
        3 => Nature::Lying(Version::FalseAt(liar, chance.between(0, pieces as u64 - 1) as u32)),
        4 => Nature::BadList,
        5 => Nature::Empty,
        6 => Nature::Busy,
        7 => Nature::NotHeld,
        _ => Nature::Honest,
    }
}

fn upstream(chance: &mut Chance) -> UpstreamPlan {
    UpstreamPlan {
        rate: chance.logarithmic(MEGABIT, 200 * MEGABIT),
        access: chance.between(5 * MILLI, 120 * MILLI),
        think: chance.logarithmic(MILLI, 2 * SECOND),
        version: Version::True,
    }
}

/// What befalls whom; never the first host.
fn events(chance: &mut Chance, seeds: u32, peers: u32, upstream: bool) -> Vec<(Nanos, Event)> {
    let mut events = Vec::new();
    for host in 1..seeds + peers {
        if !chance.percent(30) {
            continue;
        }
        let at = chance.between(0, TROUBLE_ENDS / 2);
        let until = chance.between(at, TROUBLE_ENDS);
        match chance.between(0, 4) {
            0 | 1 if host < seeds || chance.percent(50) => {
                events.push((at, Event::Freeze(host)));
                if chance.percent(50) {
                    events.push((until, Event::Thaw(host)));
                }
            }
            2 if host < seeds => events.push((at, Event::Cut(host))),
            _ => {
                events.push((at, Event::Kill(host)));
                if chance.percent(60) {
                    events.push((until, Event::Return(host)));
                }
            }
        }
    }
    if chance.percent(15) {
        let at = chance.between(0, TROUBLE_ENDS / 2);
        // Shorter than what makes a fetch that knows of nobody give up.
        let until = at + chance.between(100 * MILLI, 4 * SECOND);
        let part = (1..seeds + peers).filter(|_| chance.percent(50)).collect();
        events.push((at, Event::Partition(part)));
        events.push((until, Event::Heal));
    }
    if upstream && chance.percent(40) {
        let at = chance.between(0, TROUBLE_ENDS / 2);
        let what = if chance.percent(50) { Event::UpstreamDies } else { Event::UpstreamStalls };
        events.push((at, what));
        if chance.percent(50) {
            let until = chance.between(at, TROUBLE_ENDS);
            events.push((until, Event::UpstreamReturns));
        }
    }
    events
}

/// How long a fetch may stand still: a second, a few round trips, and what it takes until the one
/// seed that is left has served everybody else.
fn gap(plan: &Plan, peers: u32) -> Nanos {
    let up = plan.hosts[0].link.up;
    let turn = 2 * (256 << 10) * SECOND / up;
    let far = plan.hosts.iter().map(|host| host.access).max().unwrap_or(0);
    2 * SECOND + 12 * far + turn * u64::from(peers + 2) + plan.discovery.1
}
