//! What may be dialled, and whom this node has sent anything to.
//!
//! Addresses come from strangers: in the DHT, from whoever asks to be tried or punched through to.
//! None of them may make this node knock at its own machine or network. Below name resolution, so
//! that a name is judged by where it leads.

use crate::net::book::{Reach, reach};
use futures::future::BoxFuture;
use futures::{FutureExt, TryFutureExt};
use libp2p::Multiaddr;
use libp2p::core::transport::{
    Boxed, DialOpts, ListenerId, Transport, TransportError, TransportEvent,
};
use libp2p::multiaddr::Protocol;
use lru::LruCache;
use narswarm_protocol::limits::{MAX_CONTACTED_ADDRESSES, MAX_NEAR_ADDRESSES};
use parking_lot::Mutex;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Knows what may be dialled. Clones are the same guard.
#[derive(Clone)]
pub struct Guard(Arc<Mutex<State>>);

struct State {
    /// Near hosts and ports that the user has named, that have announced themselves on the local
    /// network, or that peers there have told of.
    near: LruCache<(IpAddr, u16), ()>,
    /// Whether any peer far away is connected.
    strangers: bool,
    contacted: LruCache<IpAddr, ()>,
}

impl Default for Guard {
    fn default() -> Self {
        let capacity = |limit| NonZeroUsize::new(limit).unwrap_or(NonZeroUsize::MIN);
        Self(Arc::new(Mutex::new(State {
            near: LruCache::new(capacity(MAX_NEAR_ADDRESSES)),
            strangers: false,
            contacted: LruCache::new(capacity(MAX_CONTACTED_ADDRESSES)),
        })))
    }
}

impl Guard {
    /// Lets a near address through from now on, as whoever named it may know.
    pub fn allow(&self, address: &Multiaddr) {
        if let Some((ip, port)) = host(address)
            && reach(address).is_some_and(|reach| reach < Reach::Everywhere)
        {
            self.0.lock().near.put((ip, port), ());
        }
    }

    /// Whether peers far away are connected, who may have named any address.
    pub fn set_strangers(&self, connected: bool) {
        self.0.lock().strangers = connected;
    }

    /// Whether an address may be dialled. In a swarm of neighbours alone everything near may; else
    /// only what somebody near has named.
    fn admits(&self, address: &Multiaddr) -> bool {
        match reach(address) {
            None => false,
            Some(Reach::Everywhere) => true,
            Some(Reach::Machine | Reach::Network) => {
                let mut state = self.0.lock();
                !state.strangers
                    || host(address).is_some_and(|host| state.near.get(&host).is_some())
            }
        }
    }

    /// Notes that something is sent to an address.
    pub fn contact(&self, address: &Multiaddr) {
        if let Some((ip, _)) = host(address) {
            self.0.lock().contacted.put(ip, ());
        }
    }

    /// Whether this node has sent anything to the host of an address. The oldest of many thousands
    /// are forgotten.
    #[must_use]
    pub fn has_contacted(&self, address: &Multiaddr) -> bool {
        host(address).is_some_and(|(ip, _)| self.0.lock().contacted.contains(&ip))
    }
}

/// The host and port that an address begins with.
fn host(address: &Multiaddr) -> Option<(IpAddr, u16)> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => IpAddr::V4(ip),
        Protocol::Ip6(ip) => IpAddr::V6(ip).to_canonical(),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) | Protocol::Udp(port) => Some((ip, port)),
        _ => None,
    }
}

/// A transport that dials only what the guard lets through.
pub struct Guarded<O> {
    inner: Boxed<O>,
    guard: Guard,
}

impl<O> Guarded<O> {
    /// Guards the dialling of `inner`.
    pub fn new(inner: Boxed<O>, guard: Guard) -> Self {
        Self { inner, guard }
    }
}

impl<O: Send + 'static> Transport for Guarded<O> {
    type Output = O;
    type Error = io::Error;
    type ListenerUpgrade = <Boxed<O> as Transport>::ListenerUpgrade;
    type Dial = BoxFuture<'static, Result<O, io::Error>>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        self.inner.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        if !self.guard.admits(&address) {
            let why = "it is on this machine or network, and nobody there has named it";
            return Err(TransportError::Other(io::Error::new(
                io::ErrorKind::PermissionDenied,
                why,
            )));
        }
        let dial = self.inner.dial(address.clone(), options)?;
        let guard = self.guard.clone();
        // Nothing is sent before the first poll.
        Ok(async move { guard.contact(&address) }.map(Ok).and_then(|()| dial).boxed())
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Pin::new(&mut self.inner).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Multiaddr {
        text.parse().expect("a multiaddress")
    }

    #[test]
    fn strangers_cannot_send_this_node_to_its_own_network() {
        let guard = Guard::default();
        let (router, machine) =
            (address("/ip4/192.168.1.1/tcp/80"), address("/ip4/127.0.0.1/tcp/22"));
        let far = address("/ip4/141.80.181.40/tcp/8711");
        assert!([&router, &machine, &far].iter().all(|a| guard.admits(a)), "neighbours alone");
        guard.set_strangers(true);
        assert!(!guard.admits(&router) && !guard.admits(&machine) && guard.admits(&far));
        assert!(!guard.admits(&address("/ip6/::ffff:127.0.0.1/tcp/22")));
        assert!(!guard.admits(&address("/ip4/100.64.0.1/udp/8711/quic-v1")), "the provider's");
        assert!(
            !guard.admits(&address("/ip4/0.0.0.0/tcp/22")) && !guard.admits(&address("/memory/1"))
        );
        let neighbour = address("/ip4/192.168.1.7/tcp/8711");
        guard.allow(&neighbour);
        assert!(guard.admits(&neighbour) && !guard.admits(&address("/ip4/192.168.1.7/tcp/22")));
    }

    #[test]
    fn who_was_contacted_is_known_by_host() {
        let guard = Guard::default();
        guard.contact(&address("/ip4/141.80.181.40/tcp/8711"));
        assert!(guard.has_contacted(&address("/ip4/141.80.181.40/udp/9/quic-v1")));
        assert!(!guard.has_contacted(&address("/ip4/141.80.181.41/tcp/8711")));
    }
}
