//! A peer that asks by octets and keeps those that come back: to see whether two answers are the
//! same on the wire, and not only in what is read from them.

use super::holding::Holding;
use super::raw_peer::encoded;
use super::waiting::soon;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, StreamExt};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder, noise, tcp};
use libp2p_request_response::{self as request_response, Codec, Event, ProtocolSupport};
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::store_path::StoreHash;
use narswarm_protocol::wire::fetch::{self, FetchRequest};
use narswarm_protocol::wire::query::{self, QueryRequest};
use std::collections::HashMap;
use std::io;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

/// Longer than any test.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// Most that is read of an answer.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

/// A stream that is to be opened: its protocol, what is written, and where the answer goes.
type Wish = (&'static str, Vec<u8>, oneshot::Sender<Vec<u8>>);

/// See the module.
pub struct RawAsker {
    wishes: mpsc::Sender<Wish>,
    _running: AbortOnDropHandle<()>,
}

impl RawAsker {
    /// One that asks the node at this address, which ends in its peer id.
    ///
    /// # Panics
    /// When the address has none.
    #[must_use]
    pub fn of(address: &str) -> Self {
        let address: Multiaddr = address.parse().expect("an address");
        let Some(Protocol::P2p(peer)) = address.iter().last() else { panic!("no peer id") };
        let mut swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, libp2p_yamux::Config::default)
            .expect("a transport")
            .with_behaviour(|_| Behaviour::new())
            .expect("a behaviour")
            .with_swarm_config(|config| config.with_idle_connection_timeout(FOR_EVER))
            .build();
        swarm.add_peer_address(peer, address);
        let (wishes, heard) = mpsc::channel(1);
        let running = tokio::spawn(run(swarm, peer, heard));
        Self { wishes, _running: AbortOnDropHandle::new(running) }
    }

    /// Opens a stream, writes `octets`, ends it, and reads all that comes.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn ask(&self, protocol: &'static str, octets: Vec<u8>) -> Vec<u8> {
        let (say, answer) = oneshot::channel();
        self.wishes.send((protocol, octets, say)).await.expect("it runs");
        soon("a peer's answer", answer).await.expect("the stream was opened")
    }

    /// The answer to a query about these items.
    pub async fn query(&self, hashes: &[StoreHash]) -> Vec<u8> {
        let request = QueryRequest { hashes: hashes.to_vec() };
        self.ask(query::PROTOCOL, encoded(&[request])).await
    }

    /// The answer to who opens a nar and wants its first piece.
    pub async fn fetch(&self, nar_hash: NarHash, nar_size: u64) -> Vec<u8> {
        let request = FetchRequest::Open { slot: 1, nar_hash, nar_size, first: 0, count: 1 };
        self.ask(fetch::PROTOCOL, encoded(&[request])).await
    }

    /// All that a peer can ask about an item: what it is, and its nar.
    pub async fn all_about(&self, holding: &Holding) -> [Vec<u8>; 2] {
        let narinfo = &holding.narinfo;
        [
            self.query(&[narinfo.item().hash()]).await,
            self.fetch(narinfo.nar_hash(), narinfo.nar_size()).await,
        ]
    }

    /// The same about an item that nobody has.
    pub async fn all_about_nothing(&self) -> [Vec<u8>; 2] {
        [self.query(&[StoreHash([9; 20])]).await, self.fetch(NarHash([9; 32]), 1000).await]
    }
}

#[derive(NetworkBehaviour)]
struct Behaviour {
    query: request_response::Behaviour<Octets>,
    fetch: request_response::Behaviour<Octets>,
}

impl Behaviour {
    fn new() -> Self {
        let asking = |name| {
            let protocols = [(StreamProtocol::new(name), ProtocolSupport::Outbound)];
            let config = request_response::Config::default().with_request_timeout(FOR_EVER);
            request_response::Behaviour::with_codec(Octets, protocols, config)
        };
        Self { query: asking(query::PROTOCOL), fetch: asking(fetch::PROTOCOL) }
    }
}

async fn run(mut swarm: Swarm<Behaviour>, peer: PeerId, mut wishes: mpsc::Receiver<Wish>) {
    let mut open = HashMap::new();
    loop {
        tokio::select! {
            Some((protocol, octets, say)) = wishes.recv() => {
                let behaviour = swarm.behaviour_mut();
                let asking = match protocol {
                    query::PROTOCOL => &mut behaviour.query,
                    _ => &mut behaviour.fetch,
                };
                let id = asking.send_request(&peer, octets);
                open.insert((protocol == query::PROTOCOL, id), say);
            }
            event = swarm.select_next_some() => {
                let SwarmEvent::Behaviour(event) = event else { continue };
                let (is_query, event) = match event {
                    BehaviourEvent::Query(event) => (true, event),
                    BehaviourEvent::Fetch(event) => (false, event),
                };
                match event {
                    Event::Message {
                        message: request_response::Message::Response { request_id, response },
                        ..
                    } => {
                        if let Some(say) = open.remove(&(is_query, request_id)) {
                            let _ = say.send(response);
                        }
                    }
                    // Whoever waits is told by the end of the channel.
                    Event::OutboundFailure { request_id, error, .. } => {
                        eprintln!("a stream failed: {error}");
                        open.remove(&(is_query, request_id));
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Writes what is given, and reads to the end.
#[derive(Clone, Default)]
struct Octets;

impl Codec for Octets {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        _: &mut T,
    ) -> io::Result<Vec<u8>> {
        Err(io::Error::other("this peer answers nothing"))
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        octets: Vec<u8>,
    ) -> io::Result<()> {
        io.write_all(&octets).await?;
        io.close().await
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Vec<u8>> {
        let mut answer = Vec::new();
        // A reset is an end as well: what came before it counts.
        let _ = io.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await;
        Ok(answer)
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        _: &mut T,
        _: Vec<u8>,
    ) -> io::Result<()> {
        Err(io::Error::other("this peer answers nothing"))
    }
}
