//! AutoNAT's client, without the last word.
//!
//! libp2p's client takes an address for confirmed when one server has connected to it. Behind a NAT
//! that lets in whoever was sent something, every server can, since it was asked; strangers can't.
//! So here the outcome is only told, and [`super::Reachability`] decides. What others say of this
//! node's address comes in by [`Probe::suggest`]; identify's own suggestions, in which the port is
//! a guess when the NAT changes it, are tried as well.

use super::is_direct;
use crate::net::book::{Reach, reach};
use libp2p::autonat::v2::client;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};
use std::collections::{HashSet, VecDeque};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Most addresses that are tried with each round.
const MAX_CANDIDATES: usize = 4;

/// Most addresses that are ever tried: a NAT that shows everybody another port makes new ones
/// without end.
const MAX_TRIED: usize = 64;

/// An address was tried by a server.
#[derive(Debug)]
pub struct Tested {
    /// The address.
    pub address: Multiaddr,
    /// Whether the server has reached this node there.
    pub reached: bool,
}

/// See the module.
pub struct Probe {
    inner: client::Behaviour,
    suggested: VecDeque<Multiaddr>,
    tried: HashSet<Multiaddr>,
    waker: Option<Waker>,
}

impl Probe {
    /// Tries addresses every `interval`.
    #[must_use]
    pub fn new(interval: Duration) -> Self {
        let config = client::Config::default()
            .with_probe_interval(interval)
            .with_max_candidates(MAX_CANDIDATES);
        let inner = client::Behaviour::new(rand::make_rng(), config);
        Self { inner, suggested: VecDeque::new(), tried: HashSet::new(), waker: None }
    }

    /// Suggests an address of this node to all behaviours: to this one to be tried, to the one that
    /// punches holes to be told.
    pub fn suggest(&mut self, address: Multiaddr) {
        self.suggested.push_back(address);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// Whether trying an address can tell anything: not one of a relay, nor one on a private network.
fn is_candidate(address: &Multiaddr) -> bool {
    is_direct(address) && reach(address) == Some(Reach::Everywhere)
}

impl NetworkBehaviour for Probe {
    type ConnectionHandler = THandler<client::Behaviour>;
    type ToSwarm = Tested;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_inbound_connection(connection, peer, local, remote)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_outbound_connection(connection, peer, address, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        if let FromSwarm::NewExternalAddrCandidate(candidate) = &event {
            if !is_candidate(candidate.addr) || self.tried.len() >= MAX_TRIED {
                return;
            }
            self.tried.insert(candidate.addr.clone());
        }
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        self.inner.on_connection_handler_event(peer, connection, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Tested, THandlerInEvent<Self>>> {
        if let Some(address) = self.suggested.pop_front() {
            return Poll::Ready(ToSwarm::NewExternalAddrCandidate(address));
        }
        self.waker = Some(cx.waker().clone());
        loop {
            return Poll::Ready(match std::task::ready!(self.inner.poll(cx)) {
                // The outcome follows as an event.
                ToSwarm::ExternalAddrConfirmed(_) => continue,
                ToSwarm::GenerateEvent(event) => ToSwarm::GenerateEvent(Tested {
                    address: event.tested_addr,
                    reached: event.result.is_ok(),
                }),
                other => other.map_out(|_| unreachable!("events are handled above")),
            });
        }
    }
}
