//! Nodes behind routers of different kinds: a nar goes straight from one to the other where two such
//! routers let it, through a relay otherwise, and never not at all. Needs root.
//!
//! All pairs of kinds: `bench-swarm nat`.

use narswarm_tests::lab::line::Line;
use narswarm_tests::lab::nat::NatKind;
use narswarm_tests::lab::needs;
use narswarm_tests::lab::runs::nat::{Meetings, Met, Path};
use std::time::Duration;

async fn meet(nar_bytes: u64, holder: NatKind, asker: NatKind) -> Met {
    let line = Line::free().far(Duration::from_millis(20));
    let meetings = Meetings::prepare(nar_bytes, line).expect("a nar");
    let met = meetings.meet(0, holder, asker).await;
    met.unwrap_or_else(|error| panic!("{error:#}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holes_are_punched_into_two_restrictive_nats() {
    if !needs::are_met() {
        return;
    }
    let met = meet(1_000_000, NatKind::PortRestricted, NatKind::PortRestricted).await;
    assert_eq!(met.path, Path::Straight, "{met:?}");
    assert_eq!(met.nats, ["cone", "cone"], "what the nodes say of themselves");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_be_reached_fetches_from_who_can() {
    if !needs::are_met() {
        return;
    }
    let met = meet(1_000_000, NatKind::Open, NatKind::Symmetric).await;
    assert_eq!(met.path, Path::Straight, "{met:?}");
    assert_eq!(met.nats, ["open", "symmetric"], "what the nodes say of themselves");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_go_straight_is_relayed() {
    if !needs::are_met() {
        return;
    }
    let met = meet(1_000_000, NatKind::Symmetric, NatKind::PortRestricted).await;
    assert_eq!(met.path, Path::Relayed, "{met:?}");
    assert_eq!(met.nats, ["symmetric", "cone"], "what the nodes say of themselves");
}
