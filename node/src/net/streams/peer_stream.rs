//! A stream that can be used up but not misused.

use super::Traffic;
use futures::{AsyncRead, AsyncWrite};
use libp2p::Stream;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;

/// The streams of one protocol and direction that live on one connection.
#[derive(Default)]
pub(super) struct Living {
    count: AtomicUsize,
    /// The connection's handler, which waits for one to go.
    handler: AtomicWaker,
}

impl Living {
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Wakes this task when a stream goes.
    pub(super) fn register(&self, cx: &Context<'_>) {
        self.handler.register(cx.waker());
    }

    pub(super) fn count_one(self: &Arc<Self>) -> Place {
        self.count.fetch_add(1, Ordering::AcqRel);
        Place(self.clone())
    }
}

/// One of the [`Living`]; gives its place back when dropped.
pub(super) struct Place(Arc<Living>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::AcqRel);
        self.0.handler.wake();
    }
}

/// A stream to or from a peer.
///
/// Streams are opened without waiting for the remote to confirm the protocol, which saves a round
/// trip: what it says shows at the first read. Once reading has failed the stream must not be
/// touched again, which this type sees to, also when its halves live in different tasks.
pub struct PeerStream {
    stream: Stream,
    failed: bool,
    traffic: Arc<Traffic>,
    _place: Option<Place>,
}

impl PeerStream {
    pub(super) fn new(stream: Stream, place: Place, traffic: Arc<Traffic>) -> Self {
        Self { stream, failed: false, traffic, _place: Some(place) }
    }

    /// Counts octets that have gone through.
    fn counted(counter: &AtomicU64, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(octets)) = &result {
            counter.fetch_add(*octets as u64, Ordering::Relaxed);
        }
        result
    }

    /// Runs one operation, unless one has failed before.
    fn guarded<T>(
        mut self: Pin<&mut Self>,
        operation: impl FnOnce(Pin<&mut Stream>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.failed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let result = operation(Pin::new(&mut self.stream));
        self.failed = matches!(result, Poll::Ready(Err(_)));
        result
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let traffic = self.traffic.clone();
        Self::counted(&traffic.received, self.guarded(|stream| stream.poll_read(cx, buffer)))
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        let traffic = self.traffic.clone();
        Self::counted(&traffic.sent, self.guarded(|stream| stream.poll_write(cx, octets)))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.guarded(|stream| stream.poll_flush(cx))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.guarded(|stream| stream.poll_close(cx))
    }
}
