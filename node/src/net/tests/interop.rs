//! Stock libp2p peers, with nothing of our transports, are reached and reach us.

use crate::net::streams::{self, Protocol};
use crate::net::testing::{RawPeer, TestResponder, loopback};
use crate::net::{Held, Net, NetConfig};
use bytes::Bytes;
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::{Swarm, SwarmBuilder, noise, tcp};
use narswarm_protocol::store_path::StoreHash;
use narswarm_protocol::wire::Message;
use narswarm_protocol::wire::query::{Answer, QueryRequest, QueryResponse};
use std::sync::Arc;

const ITEM: StoreHash = StoreHash([1; 20]);
const TCP: &str = "/ip4/127.0.0.1/tcp/0";
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

fn tls(behaviour: streams::Behaviour) -> Swarm<streams::Behaviour> {
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), libp2p_tls::Config::new, libp2p_yamux::Config::default)
        .expect("tcp")
        .with_behaviour(|_| behaviour)
        .expect("a behaviour")
        .build()
}

fn noise(behaviour: streams::Behaviour) -> Swarm<streams::Behaviour> {
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, libp2p_yamux::Config::default)
        .expect("tcp")
        .with_behaviour(|_| behaviour)
        .expect("a behaviour")
        .build()
}

fn quic(behaviour: streams::Behaviour) -> Swarm<streams::Behaviour> {
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_quic()
        .with_behaviour(|_| behaviour)
        .expect("a behaviour")
        .build()
}

fn answers() -> QueryResponse {
    let answer = Answer { index: 0, narinfo: b"narinfo".to_vec(), root: None, pieces_held: 1 };
    QueryResponse { answers: vec![answer], last: true, ask_again_from: None }
}

fn held() -> Held {
    Held { narinfo: Bytes::from_static(b"narinfo"), root: None, pieces_held: 1 }
}

async fn our_node() -> Net {
    let listen = [TCP, QUIC].map(|address| address.parse().expect("an address")).to_vec();
    let config = NetConfig { listen, ..loopback() };
    let responder = TestResponder::with_items([(ITEM, held())]);
    Net::start(config, Arc::new(responder)).await.expect("starts").0
}

async fn both_ways(
    build: impl FnOnce(streams::Behaviour) -> Swarm<streams::Behaviour> + Clone,
    listen: &str,
) {
    // The stock peer dials us, asks by hand, and reads the answer by hand.
    let net = our_node().await;
    let stock = RawPeer::on(build.clone(), listen).await;
    let mut stream = stock.open(&net, Protocol::Query).await;
    let mut octets = Vec::new();
    QueryRequest { hashes: vec![ITEM] }.encode(&mut octets);
    stream.write_all(&octets).await.expect("written");
    stream.close().await.expect("closed");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("an answer");
    let mut expected = Vec::new();
    answers().encode(&mut expected);
    assert_eq!(answer, expected);

    // We dial the stock peer.
    let net = our_node().await;
    let mut stock = RawPeer::on(build, listen).await;
    net.learn(stock.peer, [stock.address.clone()]);
    let (peer, asking) = (stock.peer, net.clone());
    let asked = tokio::spawn(async move { asking.query(peer, &[ITEM]).await });
    let (protocol, mut stream) = stock.accept().await;
    assert_eq!(protocol, Protocol::Query);
    let request: QueryRequest = RawPeer::receive(&mut stream).await;
    assert_eq!(request.hashes, [ITEM]);
    stream.write_all(&expected).await.expect("written");
    stream.close().await.expect("closed");
    assert_eq!(asked.await.expect("no panic"), Ok(vec![Some(held())]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_and_yamux() {
    both_ways(tls, TCP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_and_yamux() {
    both_ways(noise, TCP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quic_alone() {
    both_ways(quic, QUIC).await;
}
