//! What every routing must do, and Kademlia on real sockets and the registry in memory do.

use super::memory::{MemoryRouting, Registry};
use super::{Provider, ProviderKey, Routing, RoutingError};
use crate::net::Net;
use crate::net::testing::{PATIENCE, TestResponder, node, soon, wait_until};
use libp2p::{Multiaddr, PeerId};
use narswarm_protocol::limits::MAX_PROVIDER_RECORDS_PER_PEER;
use narswarm_protocol::store_path::StoreHash;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A node as the suite sees it.
struct Node {
    routing: Arc<dyn Routing>,
    peer: PeerId,
    addresses: Vec<Multiaddr>,
}

fn key(number: u32) -> ProviderKey {
    let mut key = [0xaa; 32];
    key[..4].copy_from_slice(&number.to_be_bytes());
    key
}

async fn find(node: &Node, keys: &[ProviderKey]) -> Vec<Provider> {
    let mut receiver = node.routing.find(keys).await;
    let mut found = Vec::new();
    while let Some(provider) = soon("the search to end", receiver.recv()).await {
        found.push(provider);
    }
    found
}

fn pairs(found: &[Provider]) -> BTreeSet<(ProviderKey, PeerId)> {
    found.iter().map(|provider| (provider.key, provider.peer)).collect()
}

/// Searches until exactly this is found.
async fn finds(node: &Node, keys: &[ProviderKey], expected: &[(ProviderKey, PeerId)]) {
    let expected: BTreeSet<_> = expected.iter().copied().collect();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let found = find(node, keys).await;
        assert_eq!(pairs(&found).len(), found.len(), "each provider once a key");
        if pairs(&found) == expected {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "found {found:?}, not {expected:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// What the three nodes of any routing must do.
async fn conforms([a, b, c]: &[Node; 3]) {
    for node in [a, b, c] {
        wait_until("everybody is ready", || node.routing.ready()).await;
    }
    assert!(find(a, &[key(1)]).await.is_empty(), "nobody provides it");
    assert!(find(a, &[]).await.is_empty());

    a.routing.provide(&[key(1), key(2)]).await.expect("room");
    b.routing.provide(&[key(2), key(2), key(3)]).await.expect("room");
    let (one, two, three) = ((key(1), a.peer), (key(2), a.peer), (key(3), b.peer));
    finds(c, &[key(1)], &[one]).await;
    finds(c, &[key(1), key(2), key(2), key(4)], &[one, two, (key(2), b.peer)]).await;
    finds(b, &[key(1), key(2), key(3)], &[one, two]).await;
    finds(a, &[key(1), key(2), key(3)], &[(key(2), b.peer), three]).await;
    let found = find(c, &[key(3)]).await;
    let addresses: BTreeSet<_> =
        found[0].addresses.iter().map(|a| a.iter().take(2).collect()).collect();
    let real: BTreeSet<Multiaddr> =
        b.addresses.iter().map(|a| a.iter().take(2).collect()).collect();
    assert!(addresses.is_superset(&real), "{addresses:?} should be {real:?}");

    // Again is not twice, and too much is nothing at all.
    a.routing.provide(&[key(1)]).await.expect("it has a place");
    let many: Vec<_> = (10..10 + MAX_PROVIDER_RECORDS_PER_PEER as u32).map(key).collect();
    let full = RoutingError::Full { keys: 2, limit: MAX_PROVIDER_RECORDS_PER_PEER };
    assert_eq!(a.routing.provide(&many).await, Err(full));
    finds(c, &[key(1), key(10)], &[one]).await;

    // A search that nobody waits for does no harm.
    drop(c.routing.find(&[key(1), key(2)]).await);
    a.routing.withdraw(&[key(1), key(99)]).await;
    a.routing.withdraw(&[]).await;
    finds(a, &[key(2)], &[(key(2), b.peer)]).await;
}

#[tokio::test]
async fn the_registry_in_memory_conforms() {
    let registry = Registry::default();
    let node = |port: u16| {
        let peer = PeerId::random();
        let addresses: Vec<Multiaddr> =
            vec![format!("/ip4/127.0.0.1/tcp/{port}").parse().expect("an address")];
        let routing = MemoryRouting::new(registry.clone(), peer, addresses.clone());
        Node { routing: Arc::new(routing), peer, addresses }
    };
    let nodes = [node(1), node(2), node(3)];
    conforms(&nodes).await;
    assert!(find(&nodes[2], &[key(1)]).await.is_empty(), "withdrawn at once");
    // Another run of the same node, which holds less.
    nodes[1].routing.provide(&[key(7)]).await.expect("room");
    let again = MemoryRouting::new(registry, nodes[1].peer, nodes[1].addresses.clone());
    again.provide(&[key(3)]).await.expect("room");
    again.provided_all().await;
    let found = find(&nodes[2], &[key(3), key(7)]).await;
    assert_eq!(pairs(&found), BTreeSet::from([(key(3), nodes[1].peer)]));
}

async fn kad_nodes() -> Vec<Net> {
    let (first, _) = node(TestResponder::default(), vec![]).await;
    let mut nets = vec![first];
    for _ in 0..3 {
        nets.push(node(TestResponder::default(), nets[0].listen_addresses()).await.0);
    }
    nets
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kademlia_conforms() {
    let nets = kad_nodes().await;
    let node = |net: &Net| Node {
        routing: net.routing(),
        peer: net.peer_id(),
        addresses: net.listen_addresses(),
    };
    conforms(&[node(&nets[1]), node(&nets[2]), node(&nets[3])]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_provided_before_anybody_is_there_is_announced_later() {
    let (early, _) = node(TestResponder::default(), vec![]).await;
    assert!(!early.routing().ready());
    early.routing().provide(&[key(1)]).await.expect("room");
    let nets = kad_nodes().await;
    early.learn(nets[0].peer_id(), nets[0].listen_addresses());
    // Any conversation connects them.
    let item = StoreHash([1; 20]);
    early.query(nets[0].peer_id(), &[item]).await.expect("an answer");
    let asker = Node { routing: nets[2].routing(), peer: nets[2].peer_id(), addresses: vec![] };
    finds(&asker, &[key(1)], &[(key(1), early.peer_id())]).await;
    // And whoever was found can be asked without further ado.
    nets[2].query(early.peer_id(), &[item]).await.expect("its addresses are known");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_keys_are_announced_and_found() {
    let nets = kad_nodes().await;
    for net in &nets {
        wait_until("everybody is ready", || net.routing().ready()).await;
    }
    let keys: Vec<_> = (0..200).map(key).collect();
    nets[1].routing().provide(&keys).await.expect("room");
    let asker = Node { routing: nets[3].routing(), peer: nets[3].peer_id(), addresses: vec![] };
    let expected: Vec<_> = keys.iter().map(|&key| (key, nets[1].peer_id())).collect();
    finds(&asker, &keys, &expected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_is_shut_down_says_so() {
    let (net, _) = node(TestResponder::default(), vec![]).await;
    soon("the shutdown", net.shutdown()).await;
    let routing = net.routing();
    assert_eq!(routing.provide(&[key(1)]).await, Err(RoutingError::ShutDown));
    routing.withdraw(&[key(1)]).await;
    assert_eq!(soon("the end", routing.find(&[key(1)]).await.recv()).await, None);
}
