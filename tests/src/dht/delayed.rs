//! A transport in memory whose lines delay what travels on them, as far as the two ends are from
//! each other, and behind which the dead swallow packets or refuse.
//!
//! Both directions are delayed at the dialling end, which knows whom it has dialled.

use futures::future::{BoxFuture, FutureExt, TryFutureExt};
use futures::{AsyncRead, AsyncWrite};
use libp2p::Multiaddr;
use libp2p::core::transport::memory::MemoryTransport;
use libp2p::core::transport::{DialOpts, ListenerId, Transport, TransportError, TransportEvent};
use libp2p::multiaddr::Protocol;
use narswarm_sim::dht::terrain::Terrain;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// A node is there.
pub const ALIVE: u8 = 0;
/// It is gone, and its machine says so.
pub const REFUSES: u8 = 1;
/// It is gone with its machine.
pub const SWALLOWS: u8 = 2;

/// Octets read at a time.
const CHUNK: usize = 8 * 1024;

/// Where everybody is, and who is gone.
#[derive(Debug)]
pub struct Ground {
    /// The round trips.
    pub terrain: Terrain,
    /// Whether each node is there.
    pub state: Vec<AtomicU8>,
    /// Memory ports are unique in a process: this trial's begin here.
    pub base_port: u64,
    /// Connections made so far, counted at both ends.
    pub connections: Arc<AtomicU64>,
    /// Until a dialling that nobody answers is given up.
    pub dial_timeout: Duration,
}

impl Ground {
    /// Where a node listens.
    #[must_use]
    pub fn address(&self, node: u32) -> Multiaddr {
        Multiaddr::empty().with(Protocol::Memory(self.base_port + u64::from(node)))
    }

    fn node_at(&self, address: &Multiaddr) -> Option<u32> {
        match address.iter().next() {
            Some(Protocol::Memory(port)) => port
                .checked_sub(self.base_port)
                .filter(|&node| node < self.state.len() as u64)
                .map(|node| node as u32),
            _ => None,
        }
    }
}

/// See the module.
pub struct Delayed {
    inner: MemoryTransport,
    ground: Arc<Ground>,
    node: u32,
}

impl Delayed {
    /// The transport of this node.
    #[must_use]
    pub fn new(ground: Arc<Ground>, node: u32) -> Self {
        Self { inner: MemoryTransport::default(), ground, node }
    }
}

type Inner = <MemoryTransport as Transport>::Output;

impl Transport for Delayed {
    type Output = Line<Inner>;
    type Error = io::Error;
    type ListenerUpgrade = BoxFuture<'static, io::Result<Self::Output>>;
    type Dial = BoxFuture<'static, io::Result<Self::Output>>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        self.inner.listen_on(id, address).map_err(|error| error.map(io::Error::other))
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        let Some(to) = self.ground.node_at(&address) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let trip = Duration::from_nanos(self.ground.terrain.round_trip(self.node, to));
        let state = self.ground.state[to as usize].load(Ordering::Relaxed);
        let patience = self.ground.dial_timeout;
        if state != ALIVE {
            let wait = if state == REFUSES { trip } else { patience };
            return Ok(async move {
                sleep(wait).await;
                Err(io::ErrorKind::ConnectionRefused.into())
            }
            .boxed());
        }
        let dial = self.inner.dial(address, options).map_err(|e| e.map(io::Error::other))?;
        Ok(async move {
            // What TCP takes to connect.
            sleep(trip).await;
            let inner = dial.await.map_err(io::Error::other)?;
            Ok(Line::new(inner, trip / 2))
        }
        .boxed())
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Pin::new(&mut self.inner).poll(cx).map(|event| {
            event
                .map_upgrade(|upgrade| {
                    upgrade
                        .map_ok(|inner| Line::new(inner, Duration::ZERO))
                        .map_err(io::Error::other)
                        .boxed()
                })
                .map_err(io::Error::other)
        })
    }
}

/// What is on its way in one direction.
struct Flight {
    chunks: VecDeque<(Instant, Vec<u8>)>,
    timer: Pin<Box<Sleep>>,
}

impl Flight {
    fn new() -> Self {
        Self { chunks: VecDeque::new(), timer: Box::pin(sleep(Duration::ZERO)) }
    }

    /// Whether something has arrived; else there will be a call when it has.
    fn poll_arrived(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(&(due, _)) = self.chunks.front() else { return Poll::Pending };
        if due <= Instant::now() {
            return Poll::Ready(());
        }
        if self.timer.deadline() != due {
            self.timer.set(sleep_until(due));
        }
        self.timer.as_mut().poll(cx)
    }
}

/// A connection whose both directions take their time.
pub struct Line<S> {
    inner: S,
    one_way: Duration,
    out: Flight,
    back: Flight,
    ended: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Line<S> {
    fn new(inner: S, one_way: Duration) -> Self {
        Self { inner, one_way, out: Flight::new(), back: Flight::new(), ended: false }
    }

    /// Delivers what has arrived at the other end, and takes in what sets out from there.
    fn drive(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.out.poll_arrived(cx).is_ready() {
            let Some((_, chunk)) = self.out.chunks.front_mut() else { break };
            match Pin::new(&mut self.inner).poll_write(cx, chunk)? {
                Poll::Pending => break,
                Poll::Ready(count) => {
                    chunk.drain(..count);
                    if chunk.is_empty() {
                        self.out.chunks.pop_front();
                    }
                }
            }
        }
        let _ = Pin::new(&mut self.inner).poll_flush(cx)?;
        let mut buffer = [0; CHUNK];
        while !self.ended {
            match Pin::new(&mut self.inner).poll_read(cx, &mut buffer)? {
                Poll::Pending => break,
                Poll::Ready(0) => self.ended = true,
                Poll::Ready(count) => {
                    let due = Instant::now() + self.one_way;
                    self.back.chunks.push_back((due, buffer[..count].to_vec()));
                }
            }
        }
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Line<S> {
    /// What was taken in while something was written has a reader, who is to be called.
    fn call_reader(&mut self, cx: &mut Context<'_>) {
        if self.ended || self.back.poll_arrived(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Line<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.drive(cx)?;
        if self.back.chunks.is_empty() && self.ended {
            return Poll::Ready(Ok(0));
        }
        ready!(self.back.poll_arrived(cx));
        let Some((_, chunk)) = self.back.chunks.front_mut() else { return Poll::Pending };
        let count = chunk.len().min(buffer.len());
        buffer[..count].copy_from_slice(&chunk[..count]);
        chunk.drain(..count);
        if chunk.is_empty() {
            self.back.chunks.pop_front();
        }
        Poll::Ready(Ok(count))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Line<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let due = Instant::now() + self.one_way;
        self.out.chunks.push_back((due, buffer.to_vec()));
        self.drive(cx)?;
        self.call_reader(cx);
        Poll::Ready(Ok(buffer.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // On its way is as good as gone, as it is with a socket.
        self.drive(cx)?;
        self.call_reader(cx);
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.drive(cx)?;
        if !self.out.chunks.is_empty() {
            return Poll::Pending;
        }
        Pin::new(&mut self.inner).poll_close(cx)
    }
}
