//! Peers that lie. What is demanded is the target: nothing wrong for the reader, three percent of
//! waste, a third more time.

use super::{LEECH, MEGABIT, Options, Scenario, calm};
use crate::agenda::SECOND;
use crate::content::Version;
use crate::plan::{Nature, Plan, Role};
use crate::random::Chance;

/// The network in which all liars stand: those of one network count as one witness.
const LIARS_NETWORK: u64 = 666;

/// One host that fetches, number 0, from ten seeds, of which three have another nature.
fn ten_seeds(options: Options, chance: &mut Chance, nature: impl Fn(u16) -> Nature) -> Plan {
    let mut hosts = vec![options.home(0, LEECH)];
    hosts[0].link = options.link(20 * MEGABIT, 100 * MEGABIT);
    for seed in 0..10 {
        let mut host = options.home(1 + seed, Role::Seed);
        if seed < 3 {
            host.nature = nature(seed as u16);
            host.network = LIARS_NETWORK;
        }
        hosts.push(host);
    }
    chance.shuffle(&mut hosts[1..]);
    let mut plan = calm(options.bytes.unwrap_or(64_000_000), hosts);
    plan.demands.deadline = 60 * SECOND;
    plan
}

/// Garbage.
pub const LIARS_30: Scenario = Scenario {
    name: "liars-30",
    about: "three of ten seeds send garbage now and then",
    plan: |options, chance| {
        let percent = chance.between(5, 100) as u32;
        let mut plan = ten_seeds(options, chance, |_| Nature::Corrupting { percent });
        plan.demands.waste_per_mille = Some(30);
        plan.demands.ratio_percent = Some(130);
        plan
    },
};

/// False roots.
pub const FALSE_ROOTS_30: Scenario = Scenario {
    name: "false-roots-30",
    about: "three of ten seeds, all in one network, show false piece lists, with pieces that fit",
    plan: |options, chance| {
        let (agreed, small) = (chance.percent(50), chance.percent(30));
        let mut plan = ten_seeds(options, chance, |liar| {
            let liar = if agreed { 0 } else { liar };
            Nature::Lying(match small {
                true => Version::FalseAt(liar, 3),
                false => Version::False(liar),
            })
        });
        plan.demands.waste_per_mille = Some(30);
        plan.demands.ratio_percent = Some(130);
        plan
    },
};
