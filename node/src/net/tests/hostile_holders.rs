//! Holders that answer wrongly, endlessly, or not at all.

use crate::net::reach::guard::Guard;
use crate::net::streams::{PeerStream, Protocol};
use crate::net::testing::{RawPeer, TestNar, TestResponder, loopback, soon};
use crate::net::{Fault, FetchResponses, Held, Net, NetConfig, PeerError, ServedNar};
use futures::AsyncWriteExt;
use narswarm_protocol::limits::{MAX_NARINFO_BYTES, MIN_PIECE_BYTES};
use narswarm_protocol::store_path::StoreHash;
use narswarm_protocol::wire::fetch::{
    Encoding, FetchReply, FetchRequest, Opened, PieceHead, RefusedReason,
};
use narswarm_protocol::wire::query::{Answer, QueryRequest, QueryResponse};
use narswarm_protocol::wire::{Message, WireError};
use std::sync::Arc;
use std::time::Duration;

/// How long the asker waits here before it calls a holder stalled.
const STALL: Duration = Duration::from_millis(400);

async fn asker_of(holder: &RawPeer) -> Net {
    let mut config: NetConfig = loopback();
    config.timing.stall = STALL;
    let net = Net::start(config, Arc::new(TestResponder::default())).await.expect("starts").0;
    net.learn(holder.peer, [holder.address.clone()]);
    net
}

fn encoded<M: Message>(messages: &[M]) -> Vec<u8> {
    let mut octets = Vec::new();
    messages.iter().for_each(|message| message.encode(&mut octets));
    octets
}

/// Asks a holder for three items, which answers `answer` and then keeps the stream open.
async fn query_answered(answer: Vec<u8>) -> Result<Vec<Option<Held>>, PeerError> {
    let mut holder = RawPeer::start().await;
    let net = asker_of(&holder).await;
    let (asking, peer) = (net.clone(), holder.peer);
    let asked = tokio::spawn(async move { asking.query(peer, &[StoreHash([1; 20]); 3]).await });
    let (_, mut stream) = holder.accept().await;
    RawPeer::receive::<QueryRequest>(&mut stream).await;
    // The asker may have had enough before everything is written.
    let _ = soon("writing", stream.write_all(&answer)).await;
    let _ = soon("flushing", stream.flush()).await;
    let answered = soon("the verdict", asked).await.expect("no panic");
    lives_on(&net, &mut holder).await;
    answered
}

/// The node still asks and understands a proper answer.
async fn lives_on(net: &Net, holder: &mut RawPeer) {
    let (asking, peer) = (net.clone(), holder.peer);
    let asked = tokio::spawn(async move { asking.query(peer, &[StoreHash([1; 20])]).await });
    let mut stream = loop {
        if let (Protocol::Query, stream) = holder.accept().await {
            break stream;
        }
    };
    RawPeer::receive::<QueryRequest>(&mut stream).await;
    let answer = encoded(&[QueryResponse { last: true, ..Default::default() }]);
    stream.write_all(&answer).await.expect("written");
    stream.close().await.expect("closed");
    assert_eq!(soon("the answer", asked).await.expect("no panic"), Ok(vec![None]));
}

fn fault<T: std::fmt::Debug>(result: Result<T, PeerError>) -> Fault {
    match result {
        Err(PeerError::Violation { fault, .. }) => *fault,
        other => panic!("not a violation: {other:?}"),
    }
}

fn answer(index: u32, narinfo_bytes: usize) -> Answer {
    Answer { index, narinfo: vec![b'x'; narinfo_bytes], root: None, pieces_held: 1 }
}

fn answers(answers: Vec<Answer>) -> QueryResponse {
    QueryResponse { answers, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_endless_frames_are_faults() {
    let garbage = query_answered(b"GET / HTTP/1.1\r\n\r\n".to_vec()).await;
    assert!(matches!(fault(garbage), Fault::Wire(WireError::Kind { .. })));
    let long = query_answered(vec![0xff, 0xff, 0xff, 0xff, 2]).await;
    assert!(matches!(fault(long), Fault::Wire(WireError::TooLong { .. })));
    let malformed = query_answered(vec![0, 0, 0, 3, 2, 0xff, 0xff]).await;
    assert!(matches!(fault(malformed), Fault::Wire(WireError::Malformed { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_to_what_was_not_asked_are_faults() {
    let beyond = query_answered(encoded(&[answers(vec![answer(3, 1)])])).await;
    assert_eq!(fault(beyond), Fault::AnswerIndex { index: 3, asked: 3 });
    let back = [answers(vec![answer(1, 1)]), answers(vec![answer(1, 1)])];
    assert_eq!(
        fault(query_answered(encoded(&back)).await),
        Fault::AnswerIndex { index: 1, asked: 3 }
    );
    let again = |ask_again_from| QueryResponse { last: true, ask_again_from, ..Default::default() };
    for from in [0, 3, u32::MAX] {
        let asked = query_answered(encoded(&[again(Some(from))])).await;
        assert_eq!(fault(asked), Fault::AskAgain { from, asked: 3 });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_answers_than_allowed_are_a_fault() {
    let mut holder = RawPeer::start().await;
    let net = asker_of(&holder).await;
    let (asking, peer) = (net.clone(), holder.peer);
    let hashes = [StoreHash([1; 20]); 100];
    let asked = tokio::spawn(async move { asking.query(peer, &hashes).await });
    let (_, mut stream) = holder.accept().await;
    for index in 0..100 {
        let octets = encoded(&[answers(vec![answer(index, MAX_NARINFO_BYTES)])]);
        if stream.write_all(&octets).await.is_err() {
            break;
        }
    }
    let verdict = soon("the verdict", asked).await.expect("no panic");
    assert!(matches!(fault(verdict), Fault::AnswerBytes { .. }));
    drop(stream);
    lives_on(&net, &mut holder).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_trickles_and_hanging_up_are_told_apart() {
    let silent = query_answered(vec![]).await;
    assert!(matches!(silent, Err(PeerError::TimedOut { .. })), "{silent:?}");
    let endless = query_answered(vec![0, 0]).await;
    assert!(matches!(endless, Err(PeerError::TimedOut { .. })), "{endless:?}");

    let mut holder = RawPeer::start().await;
    let net = asker_of(&holder).await;
    let (asking, peer) = (net.clone(), holder.peer);
    let ask = move || {
        let asking = asking.clone();
        tokio::spawn(async move { asking.query(peer, &[StoreHash([1; 20])]).await })
    };
    // One octet now and then, each well within the deadline.
    let asked = ask();
    let (_, mut stream) = holder.accept().await;
    let trickle = tokio::spawn(async move {
        for octet in encoded(&[answers(vec![answer(0, 1000)])]) {
            if stream.write_all(&[octet]).await.is_err() || stream.flush().await.is_err() {
                break;
            }
            tokio::time::sleep(STALL / 10).await;
        }
    });
    let verdict = soon("the verdict", asked).await.expect("no panic");
    assert!(matches!(verdict, Err(PeerError::TimedOut { .. })), "{verdict:?}");
    trickle.abort();

    // In the middle of a frame, and at once.
    for octets in [&b"\0\0\x01\0\x02abc"[..], &[]] {
        let asked = ask();
        let (_, mut stream) = holder.accept().await;
        RawPeer::receive::<QueryRequest>(&mut stream).await;
        stream.write_all(octets).await.expect("written");
        stream.close().await.expect("closed");
        let verdict = soon("the verdict", asked).await.expect("no panic");
        assert!(matches!(verdict, Err(PeerError::Closed { .. })), "{verdict:?}");
    }
    let asked = ask();
    drop(holder.accept().await);
    let verdict = soon("the verdict", asked).await.expect("no panic");
    assert!(matches!(verdict, Err(PeerError::Closed { .. })), "{verdict:?}");
    lives_on(&net, &mut holder).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_speaks_another_protocol_refuses() {
    let key = libp2p::identity::Keypair::generate_ed25519();
    let transport = super::super::transport::build(&key, None, &Guard::default(), None, None)
        .expect("transports");
    let config = libp2p::swarm::Config::with_tokio_executor();
    let peer = key.public().to_peer_id();
    let ping = libp2p::ping::Behaviour::default();
    let mut swarm = libp2p::Swarm::new(transport, ping, peer, config);
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().expect("an address")).expect("listens");
    let net = Net::start(loopback(), Arc::new(TestResponder::default())).await.expect("starts").0;
    let serving = tokio::spawn({
        let net = net.clone();
        async move {
            use futures::StreamExt;
            loop {
                let event = swarm.select_next_some().await;
                if let libp2p::swarm::SwarmEvent::NewListenAddr { address, .. } = event {
                    net.learn(peer, [address]);
                }
            }
        }
    });
    crate::net::testing::wait_until("it listens", || net.known_peers() > 0).await;
    let refused = net.query(peer, &[StoreHash([1; 20])]).await;
    assert!(matches!(refused, Err(PeerError::Refused { .. })), "{refused:?}");
    let (requests, mut responses) = net.open_fetch(peer).await.expect("opened lazily");
    let nar = nar();
    requests.send(open(&nar, 1)).await.expect("queued");
    let refused = soon("the refusal", responses.next()).await;
    assert!(matches!(refused, Some(Err(PeerError::Refused { .. }))), "{refused:?}");
    serving.abort();
}

fn nar() -> TestNar {
    TestNar::new(5 * MIN_PIECE_BYTES as usize, 1)
}

fn open(nar: &TestNar, count: u32) -> FetchRequest {
    FetchRequest::Open { slot: 1, nar_hash: nar.hash, nar_size: nar.size(), first: 0, count }
}

fn opened(nar: &TestNar) -> FetchReply {
    let (root, list, held) = (nar.root(), nar.list().clone(), nar.held());
    FetchReply::Opened(Opened { slot: 1, root, list, held, vouchers: Vec::new() })
}

/// The octets of a piece as they should be.
fn piece(nar: &TestNar, index: u32) -> Vec<u8> {
    let bytes = nar.piece(index);
    let head = PieceHead { slot: 1, index, encoding: Encoding::Raw, len: bytes.len() as u32 };
    [encoded(&[FetchReply::Piece(head)]), bytes.to_vec()].concat()
}

/// Two pieces are asked of a holder, which answers `answer` and then keeps the stream open.
/// Returns everything until the session is over.
async fn fetch_answered(answer: Vec<u8>) -> PeerError {
    let mut holder = RawPeer::start().await;
    let net = asker_of(&holder).await;
    let (requests, mut responses) = net.open_fetch(holder.peer).await.expect("a session");
    requests.send(open(&nar(), 2)).await.expect("sent");
    let (_, mut stream): (_, PeerStream) = holder.accept().await;
    let writing = tokio::spawn(async move {
        let _ = stream.write_all(&answer).await;
        let _ = stream.flush().await;
        stream
    });
    let error = last_word(&mut responses).await;
    assert_eq!(responses.next().await, None, "nothing comes after an error");
    drop((requests, responses));
    drop(soon("writing", writing).await);
    lives_on(&net, &mut holder).await;
    error
}

async fn last_word(responses: &mut FetchResponses) -> PeerError {
    loop {
        match soon("the verdict", responses.next()).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return error,
            None => panic!("ended as if all were well"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn impossible_fetch_replies_are_faults() {
    let nar = nar();
    let mut lie = nar.root();
    lie.0[0] ^= 1;
    let (list, held) = (nar.list().clone(), nar.held());
    let wrong_root =
        FetchReply::Opened(Opened { slot: 1, root: lie, list, held, vouchers: Vec::new() });
    let other = TestNar::new(4 * MIN_PIECE_BYTES as usize, 1);
    let refused = FetchReply::Refused { slot: 1, reason: RefusedReason::Busy };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("garbage", b"\x13BitTorrent protocol".to_vec()),
        ("a frame without end", vec![0xff, 0xff, 0xff, 0xff, 17]),
        ("a wrong root", encoded(&[wrong_root])),
        ("another size", encoded(&[opened(&other)])),
        ("opened twice", encoded(&[opened(&nar), opened(&nar)])),
        ("opened and refused", encoded(&[opened(&nar), refused])),
        ("a piece before it is opened", piece(&nar, 0)),
        ("a piece not asked for", [encoded(&[opened(&nar)]), piece(&nar, 2)].concat()),
        ("a piece twice", [encoded(&[opened(&nar)]), piece(&nar, 0), piece(&nar, 0)].concat()),
        ("an unknown slot", encoded(&[FetchReply::Missing { slot: 7, index: 0 }])),
        (
            "pieces past the end",
            encoded(&[opened(&nar), FetchReply::Have { slot: 1, ranges: vec![(4, 2)] }]),
        ),
    ];
    for (what, octets) in cases {
        let error = fetch_answered(octets).await;
        assert!(matches!(error, PeerError::Violation { .. }), "{what}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_piece_of_an_impossible_length_takes_no_memory() {
    let head = |len, encoding| {
        let head = PieceHead { slot: 1, index: 0, encoding, len };
        encoded(&[opened(&nar()), FetchReply::Piece(head)])
    };
    for (len, encoding) in
        [(u32::MAX, Encoding::Raw), (u32::MAX, Encoding::Zstd), (1, Encoding::Raw)]
    {
        match fetch_answered(head(len, encoding)).await {
            PeerError::Violation { fault, .. } => {
                assert!(matches!(*fault, Fault::FrameLength { found, .. } if found == len));
            }
            other => panic!("{other}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holders_that_stall_are_timed_out() {
    let nar = nar();
    let silent = fetch_answered(vec![]).await;
    assert!(matches!(silent, PeerError::TimedOut { .. }), "{silent}");
    let one = [encoded(&[opened(&nar)]), piece(&nar, 0)].concat();
    let frozen = fetch_answered(one.clone()).await;
    assert!(matches!(frozen, PeerError::TimedOut { .. }), "{frozen}");
    let half = [&one[..], &piece(&nar, 1)[..1000]].concat();
    let half = fetch_answered(half).await;
    assert!(matches!(half, PeerError::TimedOut { .. }), "{half}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_hangs_up_in_the_middle_of_a_piece_has_closed() {
    let mut holder = RawPeer::start().await;
    let net = asker_of(&holder).await;
    let (requests, mut responses) = net.open_fetch(holder.peer).await.expect("a session");
    let nar = nar();
    requests.send(open(&nar, 2)).await.expect("sent");
    let (_, mut stream) = holder.accept().await;
    let octets = [encoded(&[opened(&nar)]), piece(&nar, 0)[..9999].to_vec()].concat();
    stream.write_all(&octets).await.expect("written");
    stream.close().await.expect("closed");
    let error = last_word(&mut responses).await;
    assert!(matches!(error, PeerError::Closed { .. }), "{error}");
    let sent = requests.send(FetchRequest::Close { slot: 1 }).await;
    assert!(matches!(sent, Ok(()) | Err(PeerError::Closed { .. })), "{sent:?}");
    lives_on(&net, &mut holder).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_session_is_no_stall() {
    let mut holder = RawPeer::start().await;
    let net = asker_of(&holder).await;
    let (requests, mut responses) = net.open_fetch(holder.peer).await.expect("a session");
    let nar = nar();
    requests.send(open(&nar, 1)).await.expect("sent");
    let (_, mut stream) = holder.accept().await;
    let octets = [encoded(&[opened(&nar)]), piece(&nar, 0)].concat();
    let writing = tokio::spawn(async move {
        stream.write_all(&octets).await.expect("written");
        stream.flush().await.expect("flushed");
        stream
    });
    for _ in 0..2 {
        assert!(matches!(soon("an answer", responses.next()).await, Some(Ok(_))));
    }
    let idle = tokio::time::timeout(STALL * 3, responses.next()).await;
    assert!(idle.is_err(), "nothing is owed: {idle:?}");
    drop(writing.await.expect("the stream stays open until here"));
}
