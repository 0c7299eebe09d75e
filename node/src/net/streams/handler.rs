//! The part of [`super::Behaviour`] that lives in each connection's task.

use super::peer_stream::{Living, PeerStream};
use super::{Accept, Counters, PROTOCOLS, Protocol, Traffic};
use crate::net::error::PeerError;
use futures::future::{Ready, ready};
use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::swarm::handler::{
    ConnectionEvent, ConnectionHandler, ConnectionHandlerEvent, StreamUpgradeError,
    SubstreamProtocol,
};
use libp2p::{PeerId, Stream, StreamProtocol};
use narswarm_protocol::limits::MAX_INBOUND_STREAMS;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use tokio::sync::{mpsc, oneshot};

/// Why a stream was not opened.
pub enum OpenFailure {
    Unsupported,
    TimedOut,
    Closed,
}

impl OpenFailure {
    pub fn error(&self, peer: PeerId, protocol: Protocol) -> PeerError {
        let doing = "opening a stream";
        match self {
            Self::Unsupported => PeerError::Refused { peer, protocol: protocol.name() },
            Self::TimedOut => PeerError::TimedOut { peer, doing },
            Self::Closed => PeerError::Closed { peer, doing },
        }
    }
}

/// Somebody's wish for a stream.
pub struct OpenRequest {
    pub protocol: Protocol,
    pub reply: oneshot::Sender<Result<PeerStream, OpenFailure>>,
}

/// The streams of one protocol on this connection.
struct Lane {
    /// Taken from only when there is room for a stream: the rest waits in the channel, which is
    /// bounded.
    wishes: mpsc::Receiver<OpenRequest>,
    /// Streams asked of the swarm and not there yet.
    opening: usize,
    outbound: Arc<Living>,
    inbound: Arc<Living>,
}

pub struct Handler {
    peer: PeerId,
    outbound_limit: usize,
    keep: Arc<AtomicBool>,
    accept: Arc<dyn Accept>,
    counters: Arc<Counters>,
    traffic: Arc<Traffic>,
    lanes: [Lane; PROTOCOLS],
    offered: &'static [Protocol],
}

impl Handler {
    pub fn new(
        peer: PeerId,
        wishes: [mpsc::Receiver<OpenRequest>; PROTOCOLS],
        (outbound_limit, offered): (usize, &'static [Protocol]),
        keep: Arc<AtomicBool>,
        accept: Arc<dyn Accept>,
        counters: Arc<Counters>,
        traffic: Arc<Traffic>,
    ) -> Self {
        let lane =
            |wishes| Lane { wishes, opening: 0, outbound: Arc::default(), inbound: Arc::default() };
        let lanes = wishes.map(lane);
        Self { peer, outbound_limit, keep, accept, counters, traffic, lanes, offered }
    }

    fn accept(&mut self, stream: Stream, protocol: Protocol) {
        let living = &self.lanes[protocol as usize].inbound;
        if living.count() >= MAX_INBOUND_STREAMS {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(peer = %self.peer, protocol = protocol.name(), "too many streams");
            return;
        }
        self.counters.accepted.fetch_add(1, Ordering::Relaxed);
        let stream = PeerStream::new(stream, living.count_one(), self.traffic.clone());
        self.accept.accept(self.peer, protocol, stream);
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Infallible;
    type InboundProtocol = Inbound;
    type OutboundProtocol = Outbound;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = OpenRequest;

    fn listen_protocol(&self) -> SubstreamProtocol<Inbound, ()> {
        SubstreamProtocol::new(Inbound(self.offered), ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.keep.load(Ordering::Relaxed)
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Outbound, OpenRequest, Infallible>> {
        for lane in &mut self.lanes {
            // Before counting, so that a stream which goes in between is not missed.
            lane.outbound.register(cx);
            while lane.opening + lane.outbound.count() < self.outbound_limit {
                let Poll::Ready(Some(wish)) = lane.wishes.poll_recv(cx) else { break };
                if wish.reply.is_closed() {
                    continue;
                }
                lane.opening += 1;
                let protocol = SubstreamProtocol::new(Outbound(wish.protocol), wish);
                return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
            }
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<Inbound, Outbound, (), OpenRequest>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(inbound) => {
                let (stream, protocol) = inbound.protocol;
                self.accept(stream, protocol);
            }
            ConnectionEvent::FullyNegotiatedOutbound(outbound) => {
                let wish = outbound.info;
                let lane = &mut self.lanes[wish.protocol as usize];
                lane.opening -= 1;
                // Whoever has given up meanwhile drops it, which resets the stream.
                let place = lane.outbound.count_one();
                let stream = PeerStream::new(outbound.protocol, place, self.traffic.clone());
                let _ = wish.reply.send(Ok(stream));
            }
            ConnectionEvent::DialUpgradeError(failed) => {
                let wish = failed.info;
                self.lanes[wish.protocol as usize].opening -= 1;
                let failure = match failed.error {
                    StreamUpgradeError::NegotiationFailed => OpenFailure::Unsupported,
                    StreamUpgradeError::Timeout => OpenFailure::TimedOut,
                    StreamUpgradeError::Io(_) => OpenFailure::Closed,
                    StreamUpgradeError::Apply(never) => match never {},
                };
                let _ = wish.reply.send(Err(failure));
            }
            _ => {}
        }
    }
}

/// Accepts those of our protocols that are offered.
pub struct Inbound(&'static [Protocol]);

impl UpgradeInfo for Inbound {
    type Info = StreamProtocol;
    type InfoIter = Vec<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.iter().map(|protocol| protocol.stream_protocol()).collect()
    }
}

impl InboundUpgrade<Stream> for Inbound {
    type Output = (Stream, Protocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, name: StreamProtocol) -> Self::Future {
        let named = Protocol::ALL.into_iter().find(|protocol| name == protocol.stream_protocol());
        // Only names that were offered are negotiated.
        ready(Ok((stream, named.unwrap_or(Protocol::Query))))
    }
}

/// Proposes one of our protocols.
pub struct Outbound(Protocol);

impl UpgradeInfo for Outbound {
    type Info = StreamProtocol;
    type InfoIter = std::iter::Once<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(self.0.stream_protocol())
    }
}

impl OutboundUpgrade<Stream> for Outbound {
    type Output = Stream;
    type Error = Infallible;
    type Future = Ready<Result<Stream, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, _: StreamProtocol) -> Self::Future {
        ready(Ok(stream))
    }
}
