//! TCP before QUIC: a head start for the transport that moves three times as much.
//!
//! A peer is dialled at all its addresses at once and the first connection wins. On a fast path
//! that would often be QUIC, which nothing but a NAT makes the better choice. So a QUIC attempt
//! waits for [`HEAD_START`] while a TCP attempt to the same peer is under way, and not at all
//! when there is none or it has failed.

use futures::FutureExt;
use futures::future::BoxFuture;
use libp2p::PeerId;
use libp2p::core::transport::{DialOpts, ListenerId, Transport, TransportError, TransportEvent};
use libp2p::multiaddr::{Multiaddr, Protocol};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::Notify;

/// How long QUIC waits for TCP: what happy eyeballs (RFC 8305) waits between attempts.
const HEAD_START: Duration = Duration::from_millis(250);

/// The TCP attempts under way.
#[derive(Clone, Default)]
struct Attempts(Arc<Mutex<HashMap<PeerId, Attempt>>>);

#[derive(Default)]
struct Attempt {
    count: usize,
    over: Arc<Notify>,
}

/// Counts as an attempt while it lives.
struct Guard {
    attempts: Attempts,
    peer: PeerId,
}

impl Attempts {
    fn begin(&self, peer: PeerId) -> Guard {
        self.0.lock().entry(peer).or_default().count += 1;
        Guard { attempts: self.clone(), peer }
    }

    /// Waits while an attempt to this peer is under way, at most the head start.
    async fn give_way(self, peer: PeerId) {
        let over = self.0.lock().get(&peer).map(|attempt| attempt.over.clone().notified_owned());
        if let Some(over) = over {
            // Over or out of time: either way it is our turn.
            let _ = tokio::time::timeout(HEAD_START, over).await;
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut attempts = self.attempts.0.lock();
        if let Some(attempt) = attempts.get_mut(&self.peer) {
            attempt.count -= 1;
            if attempt.count == 0 {
                attempt.over.notify_waiters();
                attempts.remove(&self.peer);
            }
        }
    }
}

/// A transport for both, which paces its attempts. All attempts of one dialling are begun before
/// any is polled, so a QUIC attempt sees the TCP attempts beside it, in whatever order they come.
pub struct Paced<T> {
    inner: T,
    attempts: Attempts,
}

impl<T> Paced<T> {
    /// Paces the attempts of `inner`.
    pub fn new(inner: T) -> Self {
        Self { inner, attempts: Attempts::default() }
    }
}

/// The peer that an address ends with.
pub fn peer_of(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

impl<T> Transport for Paced<T>
where
    T: Transport + Unpin,
    T::Output: 'static,
    T::Error: 'static,
    T::Dial: Send + 'static,
    T::ListenerUpgrade: 'static,
{
    type Output = T::Output;
    type Error = T::Error;
    type ListenerUpgrade = T::ListenerUpgrade;
    type Dial = BoxFuture<'static, Result<T::Output, T::Error>>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<T::Error>> {
        self.inner.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<T::Error>> {
        let peer = peer_of(&address);
        let quic = address.iter().any(|segment| segment == Protocol::QuicV1);
        let dial = self.inner.dial(address, options)?;
        Ok(match (peer, quic) {
            (None, _) => dial.boxed(),
            (Some(peer), false) => {
                let guard = self.attempts.begin(peer);
                async move {
                    let _guard = guard;
                    dial.await
                }
                .boxed()
            }
            (Some(peer), true) => {
                let attempts = self.attempts.clone();
                async move {
                    attempts.give_way(peer).await;
                    dial.await
                }
                .boxed()
            }
        })
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        Pin::new(&mut self.inner).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn quic_waits_only_while_tcp_is_tried() {
        let (attempts, peer, other) = (Attempts::default(), PeerId::random(), PeerId::random());
        let at_once = |peer| attempts.clone().give_way(peer).now_or_never().is_some();
        assert!(at_once(peer), "nothing is under way");

        let first = attempts.begin(peer);
        let second = attempts.begin(peer);
        assert!(at_once(other), "another peer");
        drop(first);
        assert!(!at_once(peer), "one attempt is still under way");
        attempts.clone().give_way(peer).await;
        assert!(attempts.0.lock().contains_key(&peer), "the head start is over before the attempt");

        let mut waiting = Box::pin(attempts.clone().give_way(peer));
        assert!((&mut waiting).now_or_never().is_none());
        drop(second);
        assert!(waiting.now_or_never().is_some(), "the last attempt has failed");
        assert!(attempts.0.lock().is_empty());
    }
}
