//! What a node keeps for others, on real sockets: through restarts, and against those who lie, send
//! too much or talk nonsense.

use super::super::testing::{PATIENCE, RawPeer, TestResponder, loopback, node, soon, wait_until};
use super::super::{Net, NetConfig, Provider};
use crate::net::streams::{PeerStream, Protocol};
use futures::{AsyncReadExt, AsyncWriteExt};
use narswarm_protocol::announce::{Bucket, BucketState, ItemKey, SavedAnnounced, Share};
use narswarm_protocol::limits::{DISCOVERY_BURST_PER_PEER, MAX_PROVIDER_RECORDS_PER_PEER};
use narswarm_protocol::provider_key::provider_key;
use narswarm_protocol::store_path::StoreHash;
use narswarm_protocol::wire::Message;
use narswarm_protocol::wire::announce::{AnnounceReply, AnnounceRequest};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

fn key(number: u8) -> [u8; 32] {
    provider_key(&StoreHash([number; 20]))
}

async fn nodes(count: usize) -> Vec<Net> {
    let mut nets = vec![node(TestResponder::default(), vec![]).await.0];
    for _ in 1..count {
        nets.push(node(TestResponder::default(), nets[0].listen_addresses()).await.0);
    }
    // Whoever isn't known yet is told nothing, and whoever comes later only after minutes.
    for net in &nets {
        wait_until("everybody knows everybody", || net.network_size() >= count as u64 - 1).await;
    }
    nets
}

async fn find(net: &Net, key: [u8; 32]) -> Vec<Provider> {
    let mut found = net.routing().find(&[key]).await;
    let mut providers = Vec::new();
    while let Some(provider) = soon("the search to end", found.recv()).await {
        providers.push(provider);
    }
    providers
}

async fn finds(net: &Net, key: [u8; 32], provider: &Net) {
    let begin = Instant::now();
    while !find(net, key).await.iter().any(|found| found.peer == provider.peer_id()) {
        assert!(begin.elapsed() < PATIENCE, "not found");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Opens a stream and sends a message. Who has sent too many is refused, maybe before he has written
/// it all.
async fn send(peer: &RawPeer, net: &Net, request: &AnnounceRequest) -> io::Result<PeerStream> {
    let mut stream = peer.open(net, Protocol::Announce).await;
    let mut octets = Vec::new();
    request.encode(&mut octets);
    stream.write_all(&octets).await?;
    stream.flush().await?;
    Ok(stream)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_has_announced_is_found_through_others() {
    let nets = nodes(6).await;
    // The nodes have got to know each other.
    finds_nothing(&nets[5], key(9)).await;
    nets[1].routing().provide(&[key(1)]).await.expect("room");
    finds(&nets[5], key(1), &nets[1]).await;
    // He keeps it himself, too; when he is gone, others must.
    let others = || nets.iter().filter(|net| net.peer_id() != nets[1].peer_id());
    let kept_by = || others().filter(|net| net.kept_records() > 0).count();
    wait_until("others keep it", || kept_by() >= 2).await;
    nets[1].shutdown().await;
    finds(&nets[4], key(1), &nets[1]).await;
}

async fn finds_nothing(net: &Net, key: [u8; 32]) {
    assert!(find(net, key).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_keeper_still_knows() {
    let nets = nodes(3).await;
    let keys: Vec<_> = (0..100).map(key).collect();
    nets[1].routing().provide(&keys).await.expect("room");
    wait_until("it is kept", || nets[2].kept_records() == 100).await;
    nets[2].shutdown().await;
    let kept = nets[2].kept();
    let config = NetConfig { kept, ..loopback() };
    let (again, _) =
        Net::start(config, Arc::new(TestResponder::default())).await.expect("it starts");
    assert_eq!(again.kept_records(), 100);
    nets[1].shutdown().await;
    let found = find(&again, key(7)).await;
    assert_eq!(found.iter().map(|p| p.peer).collect::<Vec<_>>(), [nets[1].peer_id()]);
    let config = NetConfig { kept: b"something else".to_vec(), ..loopback() };
    let (fresh, _) =
        Net::start(config, Arc::new(TestResponder::default())).await.expect("it starts");
    assert_eq!(fresh.kept_records(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_withdraws_what_another_has_announced() {
    let nets = nodes(3).await;
    nets[1].routing().provide(&[key(1)]).await.expect("room");
    wait_until("it is kept", || nets[2].kept_records() == 1).await;
    let peer = RawPeer::start().await;
    let short = ItemKey::from_provider_key(&key(1));
    let request = AnnounceRequest::Withdraw { bucket: short.bucket(), keys: vec![short] };
    let mut stream = send(&peer, &nets[2], &request).await.expect("sent");
    let _: AnnounceReply = RawPeer::receive(&mut stream).await;
    assert_eq!(nets[2].kept_records(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_fills_his_share_only_and_is_not_answered_for_ever() {
    let nets = nodes(1).await;
    let peer = RawPeer::start().await;
    let mut answered = 0;
    for round in 0..DISCOVERY_BURST_PER_PEER + 100 {
        let bucket = Bucket::new((round % 64) as u8).expect("there are 64");
        let (ItemKey(least), _) = ItemKey::range(bucket);
        let keys = (0..400_u32).map(|number| {
            let mut octets = least;
            octets[4..8].copy_from_slice(&round.to_be_bytes());
            octets[8..12].copy_from_slice(&number.to_be_bytes());
            ItemKey(octets)
        });
        let (keys, life) = (keys.collect(), Duration::from_secs(u32::MAX.into()));
        let request = AnnounceRequest::Announce {
            bucket,
            keys,
            life,
            addresses: vec![],
            share: Share::UNKNOWN,
        };
        let Ok(mut stream) = send(&peer, &nets[0], &request).await else { break };
        let mut first = [0];
        match soon("an answer or a reset", stream.read(&mut first)).await {
            Ok(1) => answered += 1,
            _ => break,
        }
    }
    assert!(answered >= DISCOVERY_BURST_PER_PEER, "{answered}");
    assert!(answered < DISCOVERY_BURST_PER_PEER + 100, "it was answered for ever");
    assert!(nets[0].kept_records() <= MAX_PROVIDER_RECORDS_PER_PEER);
    assert!(nets[0].counters().refused_busy.load(Ordering::Relaxed) >= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_ends_the_stream_and_is_counted() {
    let nets = nodes(1).await;
    let peer = RawPeer::start().await;
    for octets in
        [&b"\0\0\0\x05\x04\xa1\x61b\x18\x40"[..], b"\xff\xff\xff\xff\x02", b"\0\0\0\x01\x63"]
    {
        let before = nets[0].counters().refused_faulty.load(Ordering::Relaxed);
        let mut stream = peer.open(&nets[0], Protocol::Announce).await;
        stream.write_all(octets).await.expect("written");
        stream.flush().await.expect("flushed");
        let mut rest = Vec::new();
        let ended = soon("the end", stream.read_to_end(&mut rest)).await;
        assert!(ended.is_err() || rest.is_empty(), "no answer");
        let counted = || nets[0].counters().refused_faulty.load(Ordering::Relaxed) > before;
        wait_until("it is counted", counted).await;
    }
    assert_eq!(nets[0].kept_records(), 0);
}

/// What was written down an hour ago.
fn an_hour_ago(written: &[u8]) -> SavedAnnounced {
    let mut saved = SavedAnnounced::from_octets(written).expect("it was just written");
    saved.written.0 -= 3600;
    saved
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_node_announces_nothing_again_and_withdraws_what_it_has_lost() {
    let nets = nodes(3).await;
    let start = async |config: NetConfig| {
        let config = NetConfig { bootstrap: nets[0].listen_addresses(), ..config };
        Net::start(config, Arc::new(TestResponder::default())).await.expect("the port is free").0
    };
    let mut config = loopback();
    let node = start(config.clone()).await;
    let keys: Vec<_> = (0..200).map(key).collect();
    node.routing().provide(&keys).await.expect("room");
    for key in [keys[0], keys[150]] {
        finds(&nets[2], key, &node).await;
    }
    let all_told = || {
        let saved = SavedAnnounced::from_octets(&node.announced()).expect("well written");
        saved.items.len() == keys.len()
    };
    wait_until("everything to be announced", all_told).await;
    let saved = an_hour_ago(&node.announced());
    assert!(saved.buckets.iter().all(|bucket| bucket.due.is_none() || !bucket.keepers.is_empty()));
    config.listen = node.listen_addresses().iter().map(|a| a.iter().take(2).collect()).collect();
    node.shutdown().await;

    config.announced = saved.to_octets();
    let node = start(config.clone()).await;
    node.routing().provide(&keys[..100]).await.expect("room");
    node.routing().provided_all().await;
    wait_until("it to know somebody", || node.routing().ready()).await;
    let deadline = Instant::now() + PATIENCE * 2;
    while find(&nets[2], keys[150]).await.iter().any(|found| found.peer == node.peer_id()) {
        assert!(Instant::now() < deadline, "not withdrawn");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    finds(&nets[2], keys[50], &node).await;
    let now = SavedAnnounced::from_octets(&node.announced()).expect("well written");
    assert_eq!(now.items.len(), 100);
    assert!(
        now.presence.of >= 3600 && now.presence.share() < saved.presence.share(),
        "it was away"
    );
    let due_before = |bucket| saved.buckets.iter().find(|before| before.bucket == bucket)?.due;
    for BucketState { bucket, due, .. } in now.buckets {
        let Some(due) = due else { continue };
        let before =
            due_before(bucket).expect("it was announced before") - Duration::from_secs(3600);
        assert!(due <= before, "bucket {bucket:?} was announced again: {due:?} after {before:?}");
    }

    // Elsewhere, everything has to be told anew.
    node.shutdown().await;
    config.listen = loopback().listen;
    let node = start(config).await;
    node.routing().provide(&keys[..100]).await.expect("room");
    let again = || {
        let saved_now = SavedAnnounced::from_octets(&node.announced()).expect("well written");
        let is_new = |now: &BucketState<u16>| {
            let after = due_before(now.bucket).map(|before| before - Duration::from_secs(3000));
            now.due.is_some_and(|due| after.is_none_or(|after| due > after))
        };
        saved_now.buckets.iter().filter(|bucket| is_new(bucket)).count() > 32
    };
    wait_until("it to be announced anew", again).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_node_finds_by_those_it_knew_without_an_entry() {
    let nets = nodes(4).await;
    nets[1].routing().provide(&[key(7)]).await.expect("room");
    let config = NetConfig { bootstrap: nets[0].listen_addresses(), ..loopback() };
    let (node, _) = Net::start(config, Arc::new(TestResponder::default())).await.expect("a port");
    let knows = || {
        let saved = SavedAnnounced::from_octets(&node.announced()).expect("well written");
        saved.buckets.iter().all(|bucket| !bucket.near.is_empty())
    };
    wait_until("it to know who is near", knows).await;
    node.shutdown().await;
    let config = NetConfig { announced: node.announced(), ..loopback() };
    let (node, _) = Net::start(config, Arc::new(TestResponder::default())).await.expect("a port");
    finds(&node, key(7), &nets[1]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_of_what_was_announced_is_announced_anew() {
    let nets = nodes(2).await;
    let mut config = NetConfig { bootstrap: nets[0].listen_addresses(), ..loopback() };
    config.announced = b"narswarm announced 1\nnonsense".to_vec();
    let (node, _) = Net::start(config, Arc::new(TestResponder::default())).await.expect("a port");
    node.routing().provide(&[key(7)]).await.expect("room");
    finds(&nets[1], key(7), &node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_searches_a_lot_stays_connected_with_keepers() {
    let start = || async {
        let mut config = loopback();
        config.timing.connection_idle = Duration::from_millis(200);
        let started = Net::start(config, Arc::new(TestResponder::default())).await;
        started.expect("it starts").0
    };
    let (keeper, busy, calm) = (start().await, start().await, start().await);
    let is_connected = |net: &Net| net.connected().iter().any(|p| p.peer == keeper.peer_id());
    let search = async |net: &Net, keys: &[[u8; 32]]| {
        net.learn(keeper.peer_id(), keeper.listen_addresses());
        let answer = net.query(keeper.peer_id(), &[StoreHash([9; 20])]).await;
        answer.expect("the keeper answers");
        wait_until("the keeper is known", || net.routing().ready()).await;
        let mut found = net.routing().find(keys).await;
        while soon("the search to end", found.recv()).await.is_some() {}
    };
    let keys: Vec<_> = (0..64).map(key).collect();
    search(&busy, &keys).await;
    // Both look who is near before they let go; the one that has begun later ends later.
    search(&calm, &keys[..1]).await;
    wait_until("who searches little lets go", || !is_connected(&calm)).await;
    assert!(is_connected(&busy), "the other stays connected");
}
