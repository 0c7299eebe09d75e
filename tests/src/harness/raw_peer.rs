//! Peers without manners: a stock libp2p node that is found and connected like one of ours, and
//! answers whoever opens a stream with whatever octets the test chose.

use super::holding::Holding;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, StreamExt};
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{PeerId, StreamProtocol, SwarmBuilder, identify, noise, ping, tcp};
use libp2p_request_response::{self as request_response, Codec, Event, ProtocolSupport};
use narswarm_protocol::piece_set::PieceSet;
use narswarm_protocol::store_path::StoreHash;
use narswarm_protocol::wire::fetch::{self, FetchReply, FetchRequest, Opened};
use narswarm_protocol::wire::query::{self, Answer, QueryRequest, QueryResponse};
use narswarm_protocol::wire::{HEADER_BYTES, Message};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;

/// What peers of this network call it when they identify themselves.
const NETWORK: &str = "/narswarm/1";

/// Longer than any test: streams end when the test wants it.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// What comes after the chosen octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// The end of the stream.
    Close,
    /// Nothing, with the stream left open.
    Hang,
    /// The same octets again, for as long as they are taken.
    Repeat,
}

/// What is said to a first message.
type Say<Request> = Arc<dyn Fn(&Request) -> Vec<u8> + Send + Sync>;

/// How streams of one protocol are answered.
#[derive(Clone)]
pub struct Speech<Request> {
    say: Say<Request>,
    then: Then,
}

impl<Request> Speech<Request> {
    /// Says what `say` makes of the first message of the stream.
    pub fn new(then: Then, say: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self { say: Arc::new(say), then }
    }

    /// Always says the same.
    #[must_use]
    pub fn fixed(then: Then, octets: Vec<u8>) -> Self {
        Self::new(then, move |_| octets.clone())
    }
}

/// The true answer to a query: this one item is held.
#[must_use]
pub fn holds(holding: &Holding) -> Speech<QueryRequest> {
    let list = holding.piece_list();
    let answer = Answer {
        index: 0,
        narinfo: holding.narinfo.original().to_vec(),
        root: Some(list.root(&holding.narinfo.nar_hash())),
        pieces_held: list.layout().piece_count(),
    };
    let held = holding.narinfo.item().hash();
    Speech::new(Then::Close, move |request: &QueryRequest| {
        let index = request.hashes.iter().position(|hash: &StoreHash| *hash == held);
        let answers = index.map(|index| Answer { index: index as u32, ..answer.clone() });
        let answers = answers.into_iter().collect();
        encoded(&[QueryResponse { answers, last: true, ask_again_from: None }])
    })
}

/// The true beginning of an answer: the nar is held, and this is its piece list.
#[must_use]
pub fn opened(holding: &Holding, slot: u32) -> FetchReply {
    let list = holding.piece_list();
    let held = PieceSet::all(list.layout().piece_count());
    FetchReply::Opened(Opened {
        slot,
        root: list.root(&holding.narinfo.nar_hash()),
        list,
        held,
        vouchers: Vec::new(),
    })
}

/// Messages as they travel.
#[must_use]
pub fn encoded<M: Message>(messages: &[M]) -> Vec<u8> {
    let mut octets = Vec::new();
    messages.iter().for_each(|message| message.encode(&mut octets));
    octets
}

/// Such a peer, for as long as this lasts.
pub struct RawPeer {
    address: String,
    seen: Arc<Seen>,
    _running: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Seen {
    queries: AtomicUsize,
    fetches: AtomicUsize,
}

impl RawPeer {
    /// Starts one that others can enter the swarm by.
    ///
    /// # Panics
    /// When it can't listen.
    pub async fn start(query: Speech<QueryRequest>, fetch: Speech<FetchRequest>) -> Self {
        let seen = Arc::<Seen>::default();
        let manners = Manners { query, fetch, seen: seen.clone() };
        let mut swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, libp2p_yamux::Config::default)
            .expect("a transport")
            .with_behaviour(|key| Behaviour::new(key.public()))
            .expect("a behaviour")
            .with_swarm_config(|config| config.with_idle_connection_timeout(FOR_EVER))
            .build();
        let peer: PeerId = *swarm.local_peer_id();
        swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().expect("an address")).expect("listens");
        let address = loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                break format!("{address}/p2p/{peer}");
            }
        };
        let running = tokio::spawn(async move {
            loop {
                let event = swarm.select_next_some().await;
                if let SwarmEvent::Behaviour(BehaviourEvent::Talk(Event::Message {
                    message: request_response::Message::Request { request, channel, .. },
                    ..
                })) = event
                {
                    let reply = manners.answer(&request);
                    // Whoever asked may be gone.
                    let _ = swarm.behaviour_mut().talk.send_response(channel, reply);
                }
            }
        });
        Self { address, seen, _running: AbortOnDropHandle::new(running) }
    }

    /// Where peers connect to, with the peer id.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// How often it was asked what it holds.
    #[must_use]
    pub fn queries(&self) -> usize {
        self.seen.queries.load(Ordering::Relaxed)
    }

    /// How often a fetch session was opened with it.
    #[must_use]
    pub fn fetches(&self) -> usize {
        self.seen.fetches.load(Ordering::Relaxed)
    }
}

#[derive(NetworkBehaviour)]
struct Behaviour {
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    talk: request_response::Behaviour<Octets>,
}

impl Behaviour {
    fn new(key: libp2p::identity::PublicKey) -> Self {
        let protocols = [query::PROTOCOL, fetch::PROTOCOL]
            .map(|name| (StreamProtocol::new(name), ProtocolSupport::Inbound));
        let config = request_response::Config::default().with_request_timeout(FOR_EVER);
        Self {
            identify: identify::Behaviour::new(identify::Config::new(NETWORK.to_owned(), key)),
            ping: ping::Behaviour::default(),
            talk: request_response::Behaviour::with_codec(Octets, protocols, config),
        }
    }
}

/// What somebody has asked.
#[derive(Debug)]
enum Asked {
    Query(QueryRequest),
    Fetch(FetchRequest),
}

/// What they get.
#[derive(Debug)]
struct Reply {
    octets: Vec<u8>,
    then: Then,
}

/// How this peer answers.
struct Manners {
    query: Speech<QueryRequest>,
    fetch: Speech<FetchRequest>,
    seen: Arc<Seen>,
}

impl Manners {
    fn answer(&self, asked: &Asked) -> Reply {
        match asked {
            Asked::Query(request) => {
                self.seen.queries.fetch_add(1, Ordering::Relaxed);
                Reply { octets: (self.query.say)(request), then: self.query.then }
            }
            Asked::Fetch(request) => {
                self.seen.fetches.fetch_add(1, Ordering::Relaxed);
                Reply { octets: (self.fetch.say)(request), then: self.fetch.then }
            }
        }
    }
}

/// Reads the first message of a stream, and writes whatever is given.
#[derive(Clone, Default)]
struct Octets;

async fn read_message<M: Message>(io: &mut (impl AsyncRead + Unpin + Send)) -> io::Result<M> {
    let mut header = [0; HEADER_BYTES];
    io.read_exact(&mut header).await?;
    let header = M::header(header).map_err(io::Error::other)?;
    let mut body = vec![0; header.body_len];
    io.read_exact(&mut body).await?;
    M::decode(header.kind, &body).map_err(io::Error::other)
}

impl Codec for Octets {
    type Protocol = StreamProtocol;
    type Request = Asked;
    type Response = Reply;

    async fn read_request<T: AsyncRead + Unpin + Send>(
        &mut self,
        protocol: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Asked> {
        if protocol.as_ref() == query::PROTOCOL {
            return read_message(io).await.map(Asked::Query);
        }
        read_message(io).await.map(Asked::Fetch)
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        reply: Reply,
    ) -> io::Result<()> {
        io.write_all(&reply.octets).await?;
        io.flush().await?;
        match reply.then {
            Then::Close => Ok(()),
            Then::Hang => std::future::pending().await,
            Then::Repeat => loop {
                io.write_all(&reply.octets).await?;
            },
        }
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        _: &mut T,
    ) -> io::Result<Reply> {
        Err(io::Error::other("this peer asks nothing"))
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        _: &mut T,
        _: Asked,
    ) -> io::Result<()> {
        Err(io::Error::other("this peer asks nothing"))
    }
}
