//! What the tests of the network share: nars made up, nodes on loopback, waiting.

use super::book::Book;
use super::config::NetConfig;
use super::messages::Conversation;
use super::responder::{Held, Responder, ServedNar};
use super::streams::{self, Accept, Control, PeerStream, Protocol};
use super::{Net, NetEvent};
use bytes::Bytes;
use futures::StreamExt;
use libp2p::identity::Keypair;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId, Swarm};
use narswarm_protocol::hash::{NarHash, Root};
use narswarm_protocol::piece::{PieceLayout, PieceList, hash_piece};
use narswarm_protocol::piece_set::PieceSet;
use narswarm_protocol::store_path::StoreHash;
use narswarm_protocol::wire::Message;
use narswarm_protocol::wire::fetch::{Encoding, Frame};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc};

/// Longest time that a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A nar of made-up octets, of which some pieces may be missing.
pub struct TestNar {
    pub hash: NarHash,
    pub octets: Bytes,
    list: PieceList,
    held: Mutex<PieceSet>,
}

impl TestNar {
    pub fn new(size: usize, seed: u8) -> Self {
        let octets: Vec<u8> = (0..size).map(|i| (i as u8).wrapping_mul(31) ^ seed).collect();
        let layout = PieceLayout::new(size as u64).expect("within the limit");
        let piece = |i| {
            let range = layout.piece_range(i);
            hash_piece(&octets[range.start as usize..range.end as usize])
        };
        let hashes = (0..layout.piece_count()).map(piece).collect();
        let list = PieceList::new(layout, hashes).expect("as many as pieces");
        let held = Mutex::new(PieceSet::all(layout.piece_count()));
        Self { hash: NarHash([seed; 32]), octets: Bytes::from(octets), list, held }
    }

    /// The same with only these pieces held.
    pub fn holding(self, pieces: impl IntoIterator<Item = u32>) -> Self {
        *self.held.lock() = PieceSet::none(self.list.layout().piece_count());
        pieces.into_iter().for_each(|index| self.gain(index));
        self
    }

    /// Gets a piece.
    pub fn gain(&self, index: u32) {
        self.held.lock().insert(index);
    }

    pub fn size(&self) -> u64 {
        self.octets.len() as u64
    }

    pub fn piece(&self, index: u32) -> Bytes {
        let range = self.list.layout().piece_range(index);
        self.octets.slice(range.start as usize..range.end as usize)
    }
}

impl ServedNar for TestNar {
    fn root(&self) -> Root {
        self.list.root(&self.hash)
    }

    fn list(&self) -> &PieceList {
        &self.list
    }

    fn frame(&self, index: u32) -> io::Result<Option<Frame>> {
        let frame = || Frame { encoding: Encoding::Raw, bytes: self.piece(index) };
        Ok(self.held.lock().contains(index).then(frame))
    }

    fn held(&self) -> PieceSet {
        self.held.lock().clone()
    }
}

/// Gives made-up items and nars.
#[derive(Default)]
pub struct TestResponder {
    pub items: BTreeMap<StoreHash, Held>,
    pub nars: BTreeMap<NarHash, Arc<TestNar>>,
}

impl TestResponder {
    pub fn with_nars(nars: impl IntoIterator<Item = TestNar>) -> Self {
        let nars = nars.into_iter().map(|nar| (nar.hash, Arc::new(nar))).collect();
        Self { items: BTreeMap::new(), nars }
    }

    pub fn with_items(items: impl IntoIterator<Item = (StoreHash, Held)>) -> Self {
        Self { items: items.into_iter().collect(), nars: BTreeMap::new() }
    }
}

impl Responder for TestResponder {
    fn query(&self, hashes: &[StoreHash]) -> Vec<Option<Held>> {
        hashes.iter().map(|hash| self.items.get(hash).cloned()).collect()
    }

    fn open(&self, _: PeerId, nar: &NarHash) -> Option<Arc<dyn ServedNar>> {
        Some(self.nars.get(nar)?.clone())
    }
}

/// A configuration that listens on a free TCP port of the loopback.
pub fn loopback() -> NetConfig {
    let mut config = NetConfig::new(Keypair::generate_ed25519());
    config.listen = vec!["/ip4/127.0.0.1/tcp/0".parse().expect("an address")];
    config
}

/// A node on the loopback that gives what `responder` has and enters by `bootstrap`.
pub async fn node(
    responder: TestResponder,
    bootstrap: Vec<Multiaddr>,
) -> (Net, broadcast::Receiver<NetEvent>) {
    let config = NetConfig { bootstrap, ..loopback() };
    Net::start(config, Arc::new(responder)).await.expect("the loopback can be listened on")
}

/// Waits until `condition` holds.
pub async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for something, not for ever.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain: {what}"),
    }
}

/// A peer without manners: streams as they are, and a test that does with them what it likes.
pub struct RawPeer {
    pub peer: PeerId,
    pub address: Multiaddr,
    pub control: Control,
    pub book: Book,
    pub inbound: mpsc::UnboundedReceiver<(PeerId, Protocol, PeerStream)>,
}

/// Hands streams to the test.
struct HandOver(mpsc::UnboundedSender<(PeerId, Protocol, PeerStream)>);

impl Accept for HandOver {
    fn accept(&self, peer: PeerId, protocol: Protocol, stream: PeerStream) {
        let _ = self.0.send((peer, protocol, stream));
    }
}

impl RawPeer {
    /// On our own transports, with up to 100 streams of a protocol at a time.
    pub async fn start() -> Self {
        let key = Keypair::generate_ed25519();
        let build = |behaviour| {
            let guard = super::reach::guard::Guard::default();
            let transport =
                super::transport::build(&key, None, &guard, None, None).expect("transports");
            let peer = key.public().to_peer_id();
            let config = libp2p::swarm::Config::with_tokio_executor();
            Swarm::new(transport, behaviour, peer, config)
        };
        Self::on(build, "/ip4/127.0.0.1/tcp/0").await
    }

    /// On a swarm that `build` makes, listening at `listen`.
    pub async fn on(
        build: impl FnOnce(streams::Behaviour) -> Swarm<streams::Behaviour>,
        listen: &str,
    ) -> Self {
        let (sender, inbound) = mpsc::unbounded_channel();
        let book = Book::default();
        let (behaviour, control) =
            streams::Behaviour::new(Arc::new(HandOver(sender)), book.clone());
        let mut swarm = build(behaviour.with_outbound_limit(100));
        let peer = *swarm.local_peer_id();
        swarm.listen_on(listen.parse().expect("an address")).expect("can be listened on");
        let address = loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                break address;
            }
        };
        tokio::spawn(async move {
            loop {
                swarm.select_next_some().await;
            }
        });
        Self { peer, address, control, book, inbound }
    }

    /// The next stream that somebody opens.
    pub async fn accept(&mut self) -> (Protocol, PeerStream) {
        let next = soon("a stream to be opened", self.inbound.recv()).await;
        let (_, protocol, stream) = next.expect("the peer runs");
        (protocol, stream)
    }

    /// Reads a message.
    pub async fn receive<M: Message>(stream: &mut PeerStream) -> M {
        let with = Conversation { peer: PeerId::random(), protocol: "", stall: PATIENCE };
        let read = with.read(stream, Some(PATIENCE), "receiving").await;
        read.expect("a message").expect("before the end")
    }

    /// Opens a stream to a node.
    pub async fn open(&self, net: &Net, protocol: Protocol) -> PeerStream {
        self.book.add(net.peer_id(), net.listen_addresses());
        self.control.open(net.peer_id(), protocol, PATIENCE).await.expect("a stream")
    }
}
