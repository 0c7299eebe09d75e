//! The part of the streams behaviour that lives with the swarm: it knows the connections, and
//! dials peers to whom somebody wants a stream.

use super::handler::Handler;
use super::{Accept, Control, Counters, Link, Protocol, Shared, Traffic, is_kept};
use crate::net::book::Book;
use crate::net::reach::{is_direct, is_quic};
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::behaviour::{ConnectionClosed, ConnectionEstablished, DialFailure};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, DialError, FromSwarm, NetworkBehaviour, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};
use narswarm_protocol::limits::{MAX_OUTBOUND_STREAMS, MAX_QUEUED_OPENS};
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::sync::mpsc;

/// See [`super`].
pub struct Behaviour {
    accept: Arc<dyn Accept>,
    book: Book,
    outbound_limit: usize,
    shared: Arc<Mutex<Shared>>,
    counters: Arc<Counters>,
    dials: mpsc::UnboundedReceiver<PeerId>,
    /// Peers whose last connection closed, or whom somebody else dialled in vain, while somebody waited
    /// for a connection.
    again: Vec<PeerId>,
    /// Attempts of this behaviour, which are made at all addresses.
    own: HashSet<ConnectionId>,
    /// Links of connections that another behaviour may still deny.
    fresh: HashMap<ConnectionId, Link>,
    /// What others may open.
    offered: &'static [Protocol],
}

impl Behaviour {
    /// A behaviour that hands inbound streams to `accept`, and the handle to open streams with.
    /// Whoever dials a peer is given its addresses in `book`.
    #[must_use]
    pub fn new(accept: Arc<dyn Accept>, book: Book) -> (Self, Control) {
        let (sender, dials) = mpsc::unbounded_channel();
        let (shared, counters) = (Arc::<Mutex<Shared>>::default(), Arc::<Counters>::default());
        let control = Control { shared: shared.clone(), dials: sender, counters: counters.clone() };
        let outbound_limit = MAX_OUTBOUND_STREAMS;
        let behaviour = Self {
            accept,
            book,
            outbound_limit,
            shared,
            counters,
            dials,
            again: Vec::new(),
            own: HashSet::new(),
            fresh: HashMap::new(),
            offered: Protocol::ALL.as_slice(),
        };
        (behaviour, control)
    }

    /// Lets others open these only.
    #[must_use]
    pub fn offering(mut self, offered: &'static [Protocol]) -> Self {
        self.offered = offered;
        self
    }

    /// Opens more streams at a time than a well-behaved peer does.
    #[cfg(test)]
    pub fn with_outbound_limit(mut self, limit: usize) -> Self {
        self.outbound_limit = limit;
        self
    }

    fn handler(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        (relayed, inbound): (bool, bool),
    ) -> Handler {
        let channels = Protocol::ALL.map(|_| mpsc::channel(MAX_QUEUED_OPENS));
        let wishes = channels.each_ref().map(|(wishes, _)| wishes.clone());
        let receivers = channels.map(|(_, receiver)| receiver);
        let purposes = self.shared.lock().kept.get(&peer).copied().unwrap_or(0);
        let keep = Arc::new(AtomicBool::new(is_kept(purposes, inbound)));
        let quic = is_quic(address);
        let traffic = Arc::<Traffic>::default();
        let link = Link {
            connection,
            wishes,
            keep: keep.clone(),
            inbound,
            relayed,
            quic,
            traffic: traffic.clone(),
        };
        self.fresh.insert(connection, link);
        let (accept, counters) = (self.accept.clone(), self.counters.clone());
        let streams = (self.outbound_limit, self.offered);
        Handler::new(peer, receivers, streams, keep, accept, counters, traffic)
    }

    fn connected(&mut self, established: ConnectionEstablished<'_>) {
        let peer = established.peer_id;
        self.own.remove(&established.connection_id);
        let mut shared = self.shared.lock();
        if let Some(link) = self.fresh.remove(&established.connection_id) {
            shared.links.entry(peer).or_default().push(link);
        }
        for waiting in shared.awaited.remove(&peer).into_iter().flatten() {
            let _ = waiting.send(Ok(()));
        }
    }

    fn closed(&mut self, closed: ConnectionClosed<'_>) {
        let mut shared = self.shared.lock();
        if let Some(links) = shared.links.get_mut(&closed.peer_id) {
            links.retain(|link| link.connection != closed.connection_id);
            if links.is_empty() {
                shared.links.remove(&closed.peer_id);
            }
        }
        if closed.remaining_established == 0 && shared.awaited.contains_key(&closed.peer_id) {
            self.again.push(closed.peer_id);
        }
    }

    fn dial_failed(&mut self, failure: DialFailure<'_>) {
        self.fresh.remove(&failure.connection_id);
        let own = self.own.remove(&failure.connection_id);
        let Some(peer) = failure.peer_id else { return };
        let mut shared = self.shared.lock();
        let outcome = if shared.links.contains_key(&peer) {
            Ok(())
        } else if let DialError::DialPeerConditionFalse(_) = failure.error {
            // Another attempt is under way; that it succeeds is good for us as well.
            return;
        } else if !own && shared.awaited.contains_key(&peer) {
            // It may have been made at some addresses only, as when a hole is punched.
            self.again.push(peer);
            return;
        } else {
            Err(reason(failure.error))
        };
        for waiting in shared.awaited.remove(&peer).into_iter().flatten() {
            let _ = waiting.send(outcome.clone());
        }
    }
}

/// What is at the bottom of an error, in one line: transports wrap errors in others that say little
/// or nothing.
fn innermost(error: &dyn std::error::Error) -> String {
    /// More is a tale.
    const MAX_CHARACTERS: usize = 200;
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let deeper = inner.to_string();
        if !deeper.is_empty() {
            said = deeper;
        }
        cause = inner.source();
    }
    let words: Vec<_> = said.split_whitespace().collect();
    words.join(" ").chars().take(MAX_CHARACTERS).collect()
}

/// Says in one line why a peer was not reached.
pub fn reason(error: &DialError) -> String {
    match error {
        DialError::NoAddresses => "no address of it is known".to_owned(),
        DialError::LocalPeerId { .. } => "it is this node itself".to_owned(),
        DialError::WrongPeerId { obtained, .. } => format!("{obtained} answers at its address"),
        DialError::Denied { cause } => format!("the connection is not allowed: {cause}"),
        DialError::Aborted => "the attempt was given up".to_owned(),
        DialError::DialPeerConditionFalse(_) => "it is being dialled already".to_owned(),
        DialError::Transport(attempts) => {
            let first = attempts.iter().take(4);
            let texts: Vec<_> =
                first.map(|(address, error)| format!("{address}: {}", innermost(error))).collect();
            format!("{} addresses failed: {}", attempts.len(), texts.join("; "))
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local_address: &Multiaddr,
        remote_address: &Multiaddr,
    ) -> Result<Handler, ConnectionDenied> {
        let relayed = !is_direct(local_address);
        Ok(self.handler(connection, peer, remote_address, (relayed, true)))
    }

    fn handle_pending_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: Option<PeerId>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        Ok(peer.map(|peer| self.book.addresses(&peer)).unwrap_or_default())
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<Handler, ConnectionDenied> {
        Ok(self.handler(connection, peer, address, (!is_direct(address), false)))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(established) => self.connected(established),
            FromSwarm::ConnectionClosed(closed) => self.closed(closed),
            FromSwarm::DialFailure(failure) => self.dial_failed(failure),
            FromSwarm::ListenFailure(failure) => {
                self.fresh.remove(&failure.connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: Infallible) {
        match event {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Infallible, Infallible>> {
        loop {
            let peer = match self.again.pop() {
                Some(peer) => peer,
                None => match self.dials.poll_recv(cx) {
                    Poll::Ready(Some(peer)) => peer,
                    Poll::Ready(None) | Poll::Pending => return Poll::Pending,
                },
            };
            let mut shared = self.shared.lock();
            if shared.links.contains_key(&peer) {
                for waiting in shared.awaited.remove(&peer).into_iter().flatten() {
                    let _ = waiting.send(Ok(()));
                }
                continue;
            }
            if self.book.rests(&peer, Instant::now()) {
                let reason = "it could not be reached a moment ago".to_owned();
                for waiting in shared.awaited.remove(&peer).into_iter().flatten() {
                    let _ = waiting.send(Err(reason.clone()));
                }
                continue;
            }
            let condition = PeerCondition::DisconnectedAndNotDialing;
            let opts = DialOpts::peer_id(peer).condition(condition).build();
            self.own.insert(opts.connection_id());
            return Poll::Ready(ToSwarm::Dial { opts });
        }
    }
}
