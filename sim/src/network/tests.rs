//! The model of links: octets are conserved, capacities kept and shared fairly.

use super::*;
use crate::agenda::{Agenda, MILLI};
use crate::random::Chance;

const KB: u64 = 1000;

fn links(list: &[(u64, u64)]) -> Vec<Link> {
    list.iter().map(|&(up, down)| Link { up, down }).collect()
}

/// Runs until nothing moves; gives each payload and when it left.
fn run(network: &mut Network<u32>, agenda: &mut Agenda<Departure>) -> Vec<(u32, Nanos)> {
    let mut left = Vec::new();
    loop {
        if network.is_stale() {
            for due in network.settle(agenda.now()) {
                agenda.at(due.at, due);
            }
        }
        let Some(due) = agenda.advance() else { return left };
        if let Some((payload, next)) = network.depart(due, agenda.now()) {
            left.push((payload, agenda.now()));
            if let Some(next) = next {
                agenda.at(next.at, next);
            }
        }
    }
}

#[test]
fn two_receivers_share_an_uplink_and_one_that_is_slow_leaves_the_rest() {
    let [a, b, c] = [HostId(0), HostId(1), HostId(2)];
    let mut network = Network::new(links(&[(1000 * KB, 1000 * KB), (1, 1000 * KB), (1, 100 * KB)]));
    let (fast, slow) = (network.flow(a, b), network.flow(a, c));
    network.send(fast, 900 * KB, 1, false, 0);
    network.send(slow, 100 * KB, 2, false, 0);
    let left = run(&mut network, &mut Agenda::default());
    // 100 kB/s for the slow one, the other 900 for the fast one.
    assert_eq!(left, [(1, SECOND), (2, SECOND)]);
    assert_eq!(network.sent_by(a, SECOND), 1000 * KB);
}

#[test]
fn urgent_parcels_overtake_what_has_not_begun_to_leave() {
    let mut network = Network::new(links(&[(KB, KB), (KB, KB)]));
    let flow = network.flow(HostId(0), HostId(1));
    network.send(flow, KB, 1, false, 0);
    network.send(flow, KB, 2, false, 0);
    network.send(flow, KB, 3, true, 0);
    assert!(network.take_back(flow, |&p| p == 1).is_empty(), "it is leaving");
    let left = run(&mut network, &mut Agenda::default());
    assert_eq!(left, [(1, SECOND), (3, 2 * SECOND), (2, 3 * SECOND)]);
}

#[test]
fn a_blocked_flow_stands_still_and_goes_on_where_it_was() {
    let mut network = Network::new(links(&[(KB, KB), (KB, KB)]));
    let flow = network.flow(HostId(0), HostId(1));
    let mut agenda = Agenda::default();
    network.send(flow, KB, 1, false, 0);
    let due = network.settle(0)[0];
    network.block(flow, true, 400 * MILLI);
    assert_eq!(network.departed(flow, 10 * SECOND), 400);
    assert!(network.depart(due, SECOND).is_none());
    agenda.at(10 * SECOND, Departure { version: u32::MAX, ..due });
    agenda.advance();
    network.block(flow, false, 10 * SECOND);
    assert_eq!(run(&mut network, &mut agenda), [(1, 10_600 * MILLI)]);
}

#[test]
fn a_reset_flow_keeps_count_of_what_had_left() {
    let mut network = Network::new(links(&[(KB, KB), (KB, KB)]));
    let flow = network.flow(HostId(0), HostId(1));
    network.send(flow, KB, 1, false, 0);
    network.send(flow, KB, 2, false, 0);
    network.settle(0);
    network.reset(flow, 250 * MILLI);
    assert_eq!((network.departed(flow, SECOND), network.waiting(flow)), (250, 0));
    assert_eq!(run(&mut network, &mut Agenda::default()), []);
}

/// Whatever is sent, blocked and let go again: every octet arrives once, no link carries more
/// than it can, and no link stands idle while somebody could use it.
#[test]
fn octets_are_conserved_and_links_are_full_but_not_overfull() {
    for seed in 0..200 {
        let mut chance = Chance::new(seed, "links");
        let hosts = chance.between(2, 8) as u32;
        let list: Vec<Link> = (0..hosts)
            .map(|_| Link { up: chance.between(1, 1 << 20), down: chance.between(1, 1 << 20) })
            .collect();
        let mut network = Network::new(list.clone());
        let mut sent = 0;
        for parcel in 0..chance.between(1, 60) as u32 {
            let from = chance.between(0, u64::from(hosts) - 1) as u32;
            let to = (from + chance.between(1, u64::from(hosts) - 1) as u32) % hosts;
            let flow = network.flow(HostId(from), HostId(to));
            let octets = chance.between(1, 1 << 18);
            network.send(flow, octets, parcel, chance.percent(20), 0);
            sent += octets;
        }
        network.settle(0);
        let rates = |host: u32, ends: fn(&Flow<u32>) -> HostId| -> u64 {
            network.flows.iter().filter(|f| ends(f) == HostId(host)).map(|f| f.rate).sum()
        };
        for flow in network.flows.iter().filter(|flow| flow.moving()) {
            assert!(flow.rate > 0 || list.iter().any(|l| l.up < 60 || l.down < 60));
            let up = list[flow.from.0 as usize].up - rates(flow.from.0, |f| f.from);
            let down = list[flow.to.0 as usize].down - rates(flow.to.0, |f| f.to);
            // What is left over is only what doesn't divide evenly.
            assert!(up < 64 || down < 64, "seed {seed}: {up} and {down} are left over");
        }
        network.stale = true;
        let mut agenda = Agenda::default();
        for flow in &mut network.flows {
            flow.rate = 0;
        }
        let before = agenda.now();
        run(&mut network, &mut agenda);
        assert!(agenda.now() >= before);
        let stuck: u64 = network.flows.iter().flat_map(|f| &f.queue).map(|p| p.octets).sum();
        let by: u64 = (0..hosts).map(|h| network.sent_by(HostId(h), agenda.now())).sum();
        let to: u64 = (0..hosts).map(|h| network.sent_to(HostId(h), agenda.now())).sum();
        assert_eq!(by, to);
        assert!(by <= sent && by + stuck >= sent, "seed {seed}: {by} of {sent}, {stuck} stuck");
    }
}
