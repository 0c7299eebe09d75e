//! TCP before QUIC before relays: a head start for what moves most.
//!
//! A peer is dialled at all its addresses at once and the first connection wins. On a fast path
//! that would often be QUIC, which nothing but a NAT makes the better choice, or one through a relay
//! beside which a direct one takes a moment longer. So a QUIC attempt waits for [`HEAD_START`] while
//! a TCP attempt to the same peer is under way, and an attempt through a relay for
//! [`DIRECT_HEAD_START`] while any direct one is; not at all when there is none or it has failed.
//! Direct attempts are given up when they take far longer than others have.

use super::reach::{is_direct, is_quic};
use futures::FutureExt;
use futures::future::BoxFuture;
use libp2p::PeerId;
use libp2p::core::Endpoint;
use libp2p::core::transport::{DialOpts, ListenerId, Transport, TransportError, TransportEvent};
use libp2p::multiaddr::{Multiaddr, Protocol};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

/// How long QUIC waits for TCP: what happy eyeballs (RFC 8305) waits between attempts.
const HEAD_START: Duration = Duration::from_millis(250);

/// How long a relay waits for direct attempts: a round trip of the worst common links, and half as
/// much again.
const DIRECT_HEAD_START: Duration = Duration::from_millis(600);

/// Ways to a peer, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Rank {
    Tcp,
    Quic,
    Relay,
}

impl Rank {
    fn of(address: &Multiaddr) -> Self {
        match (is_direct(address), is_quic(address)) {
            (false, _) => Self::Relay,
            (true, true) => Self::Quic,
            (true, false) => Self::Tcp,
        }
    }

    /// What it gives way to, and how long.
    fn betters(self) -> (&'static [Self], Duration) {
        match self {
            Self::Tcp => (&[], Duration::ZERO),
            Self::Quic => (&[Self::Tcp], HEAD_START),
            Self::Relay => (&[Self::Tcp, Self::Quic], DIRECT_HEAD_START),
        }
    }
}

/// The attempts under way.
#[derive(Clone, Default)]
struct Attempts(Arc<Mutex<HashMap<(PeerId, Rank), Attempt>>>);

#[derive(Default)]
struct Attempt {
    count: usize,
    over: Arc<Notify>,
}

/// Counts as an attempt while it lives.
struct Guard {
    attempts: Attempts,
    key: (PeerId, Rank),
}

impl Attempts {
    fn begin(&self, peer: PeerId, rank: Rank) -> Guard {
        let key = (peer, rank);
        self.0.lock().entry(key).or_default().count += 1;
        Guard { attempts: self.clone(), key }
    }

    /// The end of the attempts of a rank, if there are any.
    fn end_of(&self, peer: PeerId, rank: Rank) -> Option<OwnedNotified> {
        let attempts = self.0.lock();
        attempts.get(&(peer, rank)).map(|attempt| attempt.over.clone().notified_owned())
    }

    /// Waits while a better attempt to this peer is under way, at most its head start.
    async fn give_way(self, peer: PeerId, rank: Rank) {
        let (betters, head_start) = rank.betters();
        let deadline = tokio::time::Instant::now() + head_start;
        for better in betters {
            let over = self.end_of(peer, *better);
            if let Some(over) = over {
                // Over or out of time: either way it is our turn.
                let _ = tokio::time::timeout_at(deadline, over).await;
            }
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut attempts = self.attempts.0.lock();
        if let Some(attempt) = attempts.get_mut(&self.key) {
            attempt.count -= 1;
            if attempt.count == 0 {
                attempt.over.notify_waiters();
                attempts.remove(&self.key);
            }
        }
    }
}

/// How long a direct attempt may take at least: what a busy machine at the far end of a bad line
/// needs.
const LEAST_PATIENCE: Duration = Duration::from_secs(3);

/// How long it may take at most, and before any has succeeded.
const MOST_PATIENCE: Duration = Duration::from_secs(10);

/// How long attempts take here, by those that have succeeded: an address that swallows packets is
/// given up when hardly any other would still answer. Mean and mean deviation in seconds, weighed as
/// TCP does with round trips (RFC 6298).
#[derive(Clone, Default)]
struct Patience(Arc<Mutex<Option<(f64, f64)>>>);

impl Patience {
    fn succeeded(&self, took: Duration) {
        let took = took.as_secs_f64();
        let mut known = self.0.lock();
        *known = Some(match *known {
            None => (took, took / 2.0),
            Some((mean, deviation)) => {
                let off = (mean - took).abs();
                (mean + (took - mean) / 8.0, deviation + (off - deviation) / 4.0)
            }
        });
    }

    fn limit(&self) -> Duration {
        let Some((mean, deviation)) = *self.0.lock() else { return MOST_PATIENCE };
        // Twice what TCP would give: peers differ more than one peer's round trips.
        let wanted = Duration::from_secs_f64(2.0 * (mean + 4.0 * deviation));
        wanted.clamp(LEAST_PATIENCE, MOST_PATIENCE)
    }
}

/// A transport for all, which paces its attempts. All attempts of one dialling are begun before
/// any is polled, so each sees the better ones beside it, in whatever order they come.
pub struct Paced<T> {
    inner: T,
    attempts: Attempts,
    patience: Patience,
}

impl<T> Paced<T> {
    /// Paces the attempts of `inner`.
    pub fn new(inner: T) -> Self {
        Self { inner, attempts: Attempts::default(), patience: Patience::default() }
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
    T::Error: From<io::Error> + 'static,
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
        let rank = Rank::of(&address);
        // Relays have deadlines of their own, and who punches a hole waits for the other side.
        let impatient = rank != Rank::Relay && options.role == Endpoint::Dialer;
        let patience = self.patience.clone();
        let dial = self.inner.dial(address, options)?;
        let dial = async move {
            if !impatient {
                return dial.await;
            }
            let start = Instant::now();
            let connection = match tokio::time::timeout(patience.limit(), dial).await {
                Ok(outcome) => outcome?,
                Err(_) => return Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            };
            patience.succeeded(start.elapsed());
            Ok(connection)
        };
        let Some(peer) = peer else { return Ok(dial.boxed()) };
        let (guard, attempts) = (self.attempts.begin(peer, rank), self.attempts.clone());
        let paced = async move {
            let _guard = guard;
            attempts.give_way(peer, rank).await;
            dial.await
        };
        Ok(paced.boxed())
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
        let at_once = |peer| attempts.clone().give_way(peer, Rank::Quic).now_or_never().is_some();
        assert!(at_once(peer), "nothing is under way");

        let first = attempts.begin(peer, Rank::Tcp);
        let second = attempts.begin(peer, Rank::Tcp);
        assert!(at_once(other), "another peer");
        drop(first);
        assert!(!at_once(peer), "one attempt is still under way");
        attempts.clone().give_way(peer, Rank::Quic).await;
        assert_eq!(attempts.0.lock().len(), 1, "the head start is over before the attempt");

        let mut waiting = Box::pin(attempts.clone().give_way(peer, Rank::Quic));
        assert!((&mut waiting).now_or_never().is_none());
        drop(second);
        assert!(waiting.now_or_never().is_some(), "the last attempt has failed");
        assert!(attempts.0.lock().is_empty());
    }

    #[tokio::test]
    async fn relays_wait_for_both() {
        let (attempts, peer) = (Attempts::default(), PeerId::random());
        let (tcp, quic) = (attempts.begin(peer, Rank::Tcp), attempts.begin(peer, Rank::Quic));
        let mut waiting = Box::pin(attempts.clone().give_way(peer, Rank::Relay));
        assert!((&mut waiting).now_or_never().is_none());
        drop(tcp);
        assert!((&mut waiting).now_or_never().is_none(), "QUIC is still tried");
        drop(quic);
        assert!(waiting.now_or_never().is_some());
    }

    #[test]
    fn patience_follows_what_attempts_take() {
        let patience = Patience::default();
        assert_eq!(patience.limit(), MOST_PATIENCE);
        (0..50).for_each(|_| patience.succeeded(Duration::from_millis(40)));
        assert_eq!(patience.limit(), LEAST_PATIENCE);
        (0..50).for_each(|_| patience.succeeded(Duration::from_millis(1900)));
        assert!(patience.limit() > LEAST_PATIENCE && patience.limit() < MOST_PATIENCE);
        (0..50).for_each(|_| patience.succeeded(Duration::from_secs(9)));
        assert_eq!(patience.limit(), MOST_PATIENCE);
    }

    #[test]
    fn an_address_through_a_relay_is_one_whatever_the_relay_speaks() {
        let rank = |text: &str| Rank::of(&text.parse().expect("an address"));
        let relay = PeerId::random();
        assert_eq!(rank("/ip4/10.0.0.1/tcp/1"), Rank::Tcp);
        assert_eq!(rank("/ip4/10.0.0.1/udp/1/quic-v1"), Rank::Quic);
        assert_eq!(
            rank(&format!("/ip4/10.0.0.1/udp/1/quic-v1/p2p/{relay}/p2p-circuit")),
            Rank::Relay
        );
    }
}
