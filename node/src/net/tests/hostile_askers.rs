//! Askers that send nonsense, ask for too much, or never read what they are given.

use crate::net::streams::{PeerStream, Protocol};
use crate::net::testing::{RawPeer, TestResponder, loopback, soon, wait_until};
use crate::net::{Held, Net, Responder, ServedNar};
use bytes::Bytes;
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::PeerId;
use narswarm_protocol::hash::{NarHash, Root};
use narswarm_protocol::limits::{
    FETCH_BURST_BYTES, FETCH_BURSTS_AHEAD, MAX_CONNECTION_WINDOW_BYTES, MAX_FETCH_SLOTS,
    MAX_INBOUND_STREAMS, MAX_WANTED_PIECES, MIN_PIECE_BYTES,
};
use narswarm_protocol::piece::{PieceLayout, PieceList, hash_piece};
use narswarm_protocol::store_path::StoreHash;
use narswarm_protocol::wire::Message;
use narswarm_protocol::wire::fetch::{Encoding, FetchRequest, Frame};
use narswarm_protocol::wire::query::QueryRequest;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How long the node waits here before it calls an asker stalled.
const STALL: Duration = Duration::from_millis(400);

const ITEM: StoreHash = StoreHash([1; 20]);
const NAR: NarHash = NarHash([2; 32]);
const PIECE: usize = MIN_PIECE_BYTES as usize;
const NAR_SIZE: u64 = 2000 * MIN_PIECE_BYTES;

/// A large nar of zeros that counts how much of it is read.
struct Zeros {
    list: PieceList,
    piece: Bytes,
    read: AtomicUsize,
}

impl ServedNar for Zeros {
    fn root(&self) -> Root {
        self.list.root(&NAR)
    }

    fn list(&self) -> &PieceList {
        &self.list
    }

    fn frame(&self, _: u32) -> std::io::Result<Option<Frame>> {
        self.read.fetch_add(1, Ordering::Relaxed);
        Ok(Some(Frame { encoding: Encoding::Raw, bytes: self.piece.clone() }))
    }
}

struct Holder(Arc<Zeros>);

impl Responder for Holder {
    fn query(&self, hashes: &[StoreHash]) -> Vec<Option<Held>> {
        let held = || Held { narinfo: Bytes::from_static(b"x"), root: None, pieces_held: 1 };
        hashes.iter().map(|hash| (*hash == ITEM).then(held)).collect()
    }

    fn open(&self, _: PeerId, _: &NarHash) -> Option<Arc<dyn ServedNar>> {
        Some(self.0.clone())
    }
}

async fn holder() -> (Net, Arc<Zeros>) {
    let piece = Bytes::from(vec![0; PIECE]);
    let layout = PieceLayout::new(NAR_SIZE).expect("layout");
    let list = PieceList::new(layout, vec![hash_piece(&piece); 2000]).expect("list");
    let nar = Arc::new(Zeros { list, piece, read: AtomicUsize::new(0) });
    let mut config = loopback();
    config.timing.stall = STALL;
    config.timing.session_idle = STALL;
    let net = Net::start(config, Arc::new(Holder(nar.clone()))).await.expect("starts").0;
    (net, nar)
}

fn open(slot: u32, count: u32) -> FetchRequest {
    FetchRequest::Open { slot, nar_hash: NAR, nar_size: NAR_SIZE, first: 0, count }
}

fn encoded<M: Message>(messages: &[M]) -> Vec<u8> {
    let mut octets = Vec::new();
    messages.iter().for_each(|message| message.encode(&mut octets));
    octets
}

/// Reads until the node ends the stream, one way or another; returns what came.
async fn until_ended(stream: &mut PeerStream) -> Vec<u8> {
    let mut octets = Vec::new();
    let _ = soon("the node to end the stream", stream.read_to_end(&mut octets)).await;
    octets
}

fn faulty(net: &Net) -> u64 {
    net.counters().refused_faulty.load(Ordering::Relaxed)
}

/// Whatever was done to it, the node still answers a proper asker.
async fn lives_on(net: &Net) {
    let config = loopback();
    let asker = Net::start(config, Arc::new(TestResponder::default())).await.expect("starts").0;
    asker.learn(net.peer_id(), net.listen_addresses());
    let answers = soon("an answer", asker.query(net.peer_id(), &[ITEM])).await;
    assert_eq!(answers.expect("answers").iter().flatten().count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_ends_the_stream_and_nothing_else() {
    let (net, _) = holder().await;
    let asker = RawPeer::start().await;
    let want = FetchRequest::Want { slot: 1, first: 0, count: 1 };
    let too_many = vec![ITEM; 1001];
    let mut slots: Vec<_> = (0..=MAX_FETCH_SLOTS as u32).map(|slot| open(slot, 0)).collect();
    slots.push(want);
    let cases: Vec<(&str, Protocol, Vec<u8>)> = vec![
        ("garbage", Protocol::Query, b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("garbage", Protocol::Fetch, b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("a frame without end", Protocol::Query, vec![0xff, 0xff, 0xff, 0xff, 1]),
        ("a frame without end", Protocol::Fetch, vec![0xff, 0xff, 0xff, 0xff, 1]),
        ("too many hashes", Protocol::Query, encoded(&[QueryRequest { hashes: too_many }])),
        ("a nar twice", Protocol::Fetch, encoded(&[open(1, 0), open(1, 0)])),
        ("too many nars", Protocol::Fetch, encoded(&slots)),
        (
            "too many pieces",
            Protocol::Fetch,
            encoded(&[open(1, 0), open(2, MAX_WANTED_PIECES), open(3, MAX_WANTED_PIECES)]),
        ),
        ("half a message", Protocol::Query, vec![0, 0]),
        ("half a message", Protocol::Fetch, vec![0, 0, 0, 20, 1, 0]),
    ];
    for (number, (what, protocol, octets)) in cases.into_iter().enumerate() {
        let mut stream = asker.open(&net, protocol).await;
        stream.write_all(&octets).await.expect("written");
        stream.flush().await.expect("flushed");
        until_ended(&mut stream).await;
        let count = number as u64 + 1;
        wait_until(what, || faulty(&net) == count).await;
    }
    lives_on(&net).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trickled_requests_are_not_waited_for() {
    let (net, _) = holder().await;
    let asker = RawPeer::start().await;
    for protocol in Protocol::ALL {
        let before = faulty(&net);
        let mut stream = asker.open(&net, protocol).await;
        let trickle = tokio::spawn(async move {
            for octet in encoded(&[open(1, 1)]).into_iter().cycle() {
                if stream.write_all(&[octet]).await.is_err() || stream.flush().await.is_err() {
                    break;
                }
                tokio::time::sleep(STALL / 10).await;
            }
        });
        wait_until("the stream is given up", || faulty(&net) > before).await;
        trickle.abort();
    }
    lives_on(&net).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_asker_that_does_not_read_loses_the_session_and_holds_little() {
    let (net, nar) = holder().await;
    let asker = RawPeer::start().await;
    let mut stream = asker.open(&net, Protocol::Fetch).await;
    stream.write_all(&encoded(&[open(1, MAX_WANTED_PIECES)])).await.expect("written");
    stream.flush().await.expect("flushed");
    wait_until("the session is given up", || faulty(&net) == 1).await;
    let bursts = (FETCH_BURSTS_AHEAD + 2) * FETCH_BURST_BYTES;
    let most = (bursts + MAX_CONNECTION_WINDOW_BYTES) / PIECE;
    let read = nar.read.load(Ordering::Relaxed);
    assert!(read > 0 && read <= most, "{read} pieces were read, at most {most} should be");
    wait_until("the nar is let go of", || Arc::strong_count(&nar) == 2).await;
    lives_on(&net).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_beyond_the_limit_are_reset_and_counted() {
    let (net, _) = holder().await;
    let asker = RawPeer::start().await;
    let mut streams = Vec::new();
    for _ in 0..60 {
        let mut stream = asker.open(&net, Protocol::Fetch).await;
        // Negotiation is lazy: the stream exists for the node once something is sent.
        let _ = stream.write_all(&encoded(&[open(1, 0)])).await;
        let _ = stream.flush().await;
        streams.push(stream);
    }
    let counters = net.stream_counters();
    let sum = || {
        let (accepted, refused) = (&counters.accepted, &counters.refused);
        accepted.load(Ordering::Relaxed) + refused.load(Ordering::Relaxed)
    };
    wait_until("all are dealt with", || sum() == 60).await;
    assert!(counters.accepted.load(Ordering::Relaxed) >= MAX_INBOUND_STREAMS as u64);
    assert!(counters.refused.load(Ordering::Relaxed) > 0);
    lives_on(&net).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_asks_for_nothing_is_ended() {
    let (net, nar) = holder().await;
    let asker = RawPeer::start().await;
    let mut stream = asker.open(&net, Protocol::Fetch).await;
    stream.write_all(&encoded(&[open(1, 1)])).await.expect("written");
    stream.flush().await.expect("flushed");
    let came = until_ended(&mut stream).await;
    assert!(came.len() > PIECE, "the piece came before the end");
    assert_eq!(faulty(&net), 0, "being idle is no fault");
    wait_until("the nar is let go of", || Arc::strong_count(&nar) == 2).await;
}
