//! Coming together, staying together, and keeping others out.

use crate::net::testing::{RawPeer, TestResponder, loopback, node, soon, wait_until};
use crate::net::{Held, Net, NetConfig, NetError, NetEvent, PeerError};
use bytes::Bytes;
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId};
use narswarm_protocol::store_path::StoreHash;
use std::sync::Arc;
use std::time::Duration;

const ITEM: StoreHash = StoreHash([1; 20]);

fn responder() -> TestResponder {
    let held = Held { narinfo: Bytes::from_static(b"narinfo"), root: None, pieces_held: 1 };
    TestResponder::with_items([(ITEM, held)])
}

async fn start(config: NetConfig) -> Net {
    Net::start(config, Arc::new(responder())).await.expect("starts").0
}

fn is_connected(net: &Net, peer: PeerId) -> bool {
    net.connected().iter().any(|info| info.peer == peer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_learn_who_is_connected_and_where() {
    let (a, _) = node(responder(), vec![]).await;
    let (b, mut events) = node(responder(), a.listen_addresses()).await;
    let learned = loop {
        match soon("an event", events.recv()).await.expect("events") {
            NetEvent::PeerLearned { peer, addresses } => break (peer, addresses),
            _ => continue,
        }
    };
    let bare: Multiaddr = a.listen_addresses()[0].iter().take(2).collect();
    assert_eq!(learned, (a.peer_id(), vec![bare]));
    wait_until("the other side knows too", || a.connected().iter().any(|info| info.ours)).await;
    let info = a.connected().remove(0);
    assert_eq!(info.peer, b.peer_id());
    assert!(info.lan && info.agent.starts_with("narswarm/"));
    wait_until("a round trip is measured", || a.connected()[0].rtt.is_some()).await;
    wait_until("each knows the other", || (a.known_peers(), b.known_peers()) == (1, 1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_addresses_are_listened_on_or_the_start_fails() {
    let mut config = loopback();
    config.listen.push("/ip4/127.0.0.1/udp/0/quic-v1".parse().expect("an address"));
    config.listen.push("/ip4/0.0.0.0/tcp/0".parse().expect("an address"));
    let net = start(config).await;
    let addresses = net.listen_addresses();
    assert!(addresses.len() >= 3, "{addresses:?}");
    for address in &addresses {
        let text = address.to_string();
        assert!(text.ends_with(&format!("/p2p/{}", net.peer_id())), "{text}");
        assert!(!text.contains("/tcp/0/") && !text.contains("0.0.0.0"), "{text}");
    }

    let taken: Multiaddr = addresses[0].iter().take(2).collect();
    let config = NetConfig { listen: vec![taken.clone()], ..loopback() };
    let failed = Net::start(config, Arc::new(responder())).await.map(|_| ());
    assert!(matches!(failed, Err(NetError::Listen { address, .. }) if address == taken));
    let config =
        NetConfig { listen: vec!["/unix/nowhere".parse().expect("an address")], ..loopback() };
    assert!(matches!(
        Net::start(config, Arc::new(responder())).await.map(|_| ()),
        Err(NetError::Listen { .. })
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bootstrap_node_is_redialled_until_it_is_there_and_after_it_was_lost() {
    let key = Keypair::generate_ed25519();
    let first = start(NetConfig { keypair: key.clone(), ..loopback() }).await;
    let address = first.listen_addresses().remove(0);
    let bare: Multiaddr = address.iter().take(2).collect();
    soon("the shutdown", first.shutdown()).await;

    let patient = start(NetConfig { bootstrap: vec![address], ..loopback() }).await;
    let bare_patient = start(NetConfig { bootstrap: vec![bare.clone()], ..loopback() }).await;
    for _ in 0..2 {
        let listen = vec![bare.clone()];
        let back = start(NetConfig { keypair: key.clone(), listen, ..loopback() }).await;
        let peer = back.peer_id();
        wait_until("it is found", || is_connected(&patient, peer)).await;
        wait_until("it is found", || is_connected(&bare_patient, peer)).await;
        soon("the shutdown", back.shutdown()).await;
        wait_until("it is lost", || !is_connected(&patient, peer)).await;
        wait_until("it is lost", || !is_connected(&bare_patient, peer)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn known_peers_are_dialled_at_the_start() {
    let a = start(loopback()).await;
    let known_peers = vec![(a.peer_id(), a.listen_addresses())];
    let b = start(NetConfig { known_peers, listen: vec![], ..loopback() }).await;
    wait_until("they are connected", || is_connected(&b, a.peer_id())).await;
    assert!(b.listen_addresses().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_on_several_transports_are_reached_by_each() {
    for listen in ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"] {
        let listen = vec![listen.parse().expect("an address")];
        let a = start(NetConfig { listen, ..loopback() }).await;
        let b = start(loopback()).await;
        b.learn(a.peer_id(), a.listen_addresses());
        let answers = b.query(a.peer_id(), &[ITEM]).await.expect("answers");
        assert_eq!(answers.iter().flatten().count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_is_taken_where_both_are_offered() {
    let mut config = loopback();
    config.listen.insert(0, "/ip4/127.0.0.1/udp/0/quic-v1".parse().expect("an address"));
    let a = start(config).await;
    for _ in 0..10 {
        let b = start(loopback()).await;
        b.learn(a.peer_id(), a.listen_addresses());
        b.query(a.peer_id(), &[ITEM]).await.expect("answers");
        let used = b.connected().remove(0).addresses;
        assert!(used.iter().all(|address| address.to_string().contains("/tcp/")), "{used:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_banned_peer_is_kept_out_until_the_ban_ends() {
    let (a, b) = (start(loopback()).await, start(loopback()).await);
    b.learn(a.peer_id(), a.listen_addresses());
    a.learn(b.peer_id(), b.listen_addresses());
    b.query(a.peer_id(), &[ITEM]).await.expect("answers");

    a.ban(b.peer_id(), Duration::from_secs(3600));
    wait_until("the connection is closed", || !is_connected(&b, a.peer_id())).await;
    let banned = a.query(b.peer_id(), &[ITEM]).await;
    assert_eq!(banned, Err(PeerError::Banned { peer: b.peer_id() }));
    assert!(b.query(a.peer_id(), &[ITEM]).await.is_err());
    assert!(!is_connected(&a, b.peer_id()));

    a.ban(b.peer_id(), Duration::ZERO);
    let mut again = Err(PeerError::Banned { peer: a.peer_id() });
    let deadline = tokio::time::Instant::now() + crate::net::testing::PATIENCE;
    while again.is_err() && tokio::time::Instant::now() < deadline {
        again = b.query(a.peer_id(), &[ITEM]).await;
    }
    assert!(again.is_ok(), "{again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_be_reached_is_reported_with_the_reason() {
    let net = start(loopback()).await;
    let nobody = PeerId::random();
    let unknown = net.query(nobody, &[ITEM]).await;
    let reason = "no address of it is known".to_owned();
    assert_eq!(unknown, Err(PeerError::Unreachable { peer: nobody, reason }));

    let other = start(loopback()).await;
    net.learn(nobody, other.listen_addresses());
    let Err(PeerError::Unreachable { reason, .. }) = net.query(nobody, &[ITEM]).await else {
        panic!("somebody else answered")
    };
    assert!(reason.contains(&other.peer_id().to_string()), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_a_peer_is_dialled_in_vain_elsewhere_does_not_keep_it_from_being_reached() {
    let dead = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = dead.local_addr().expect("an address");
    let peer = start(loopback()).await;
    let there = format!("/ip4/127.0.0.1/tcp/{}/p2p/{}", address.port(), peer.peer_id());
    let bootstrap = vec![there.parse().expect("an address")];
    let net = start(NetConfig { bootstrap, ..loopback() }).await;
    let (mute, _) = soon("an attempt", dead.accept()).await.expect("a connection");
    net.learn(peer.peer_id(), peer.listen_addresses());
    let query = net.query(peer.peer_id(), &[ITEM]);
    tokio::pin!(query);
    let early = tokio::time::timeout(Duration::from_millis(200), &mut query).await;
    assert!(early.is_err(), "it waits for the attempt that is under way");
    drop((mute, dead));
    let answers = soon("an answer", query).await.expect("it is reached where it is");
    assert_eq!(answers.iter().flatten().count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_not_taken_for_peers_of_this_network() {
    let net = start(loopback()).await;
    let stranger = RawPeer::start().await;
    let _stream = stranger.open(&net, crate::net::streams::Protocol::Query).await;
    wait_until("it is connected", || is_connected(&net, stranger.peer)).await;
    assert!(!net.connected()[0].ours);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_close_and_useful_ones_stay() {
    let mut config = loopback();
    config.timing.connection_idle = Duration::from_millis(200);
    let holder = start(loopback()).await;
    let (asker, useless) = (start(config.clone()).await, start(loopback()).await);
    for peer in [&holder, &useless] {
        asker.learn(peer.peer_id(), peer.listen_addresses());
    }
    asker.query(useless.peer_id(), &[StoreHash([9; 20])]).await.expect("answers");
    asker.query(holder.peer_id(), &[ITEM]).await.expect("answers");
    wait_until("the idle one closes", || !is_connected(&asker, useless.peer_id())).await;
    assert!(is_connected(&asker, holder.peer_id()));
    wait_until("it becomes known as ours", || asker.connected()[0].ours).await;
}
