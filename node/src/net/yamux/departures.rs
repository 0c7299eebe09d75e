//! What of each stream has left for the connection below, so that a flush means it.
//!
//! yamux takes eleven frames of a stream before it makes its writer wait, and its flush says only
//! that there is room for another. That is 700 KiB which nobody can take back or see: with a few
//! dozen streams on a slow line, seconds. Here the frames are watched as they leave. A stream
//! takes no more than [`BACKLOG_BYTES`] ahead of that, and is flushed once all of it has left.

use futures::{AsyncRead, AsyncWrite, ready};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use yamux::Stream;

/// Octets of one stream that wait for the connection: two frames, one being written and one to
/// follow it without a pause.
pub const BACKLOG_BYTES: u64 = 2 * super::FRAME_BYTES as u64;

/// Length of a frame's header.
const HEADER_BYTES: usize = 12;

/// The type of the frames that a body follows.
const DATA: u8 = 0;

/// What has left of one stream.
#[derive(Default)]
struct Sent {
    octets: AtomicU64,
    /// Who waits for more to leave: the task that writes, and while the protocol is being
    /// negotiated the one that reads as well, since it has to flush what was promised.
    waiting: Mutex<Vec<Waker>>,
}

impl Sent {
    fn wake(&self) {
        self.waiting.lock().drain(..).for_each(Waker::wake);
    }

    fn wake_me(&self, cx: &Context<'_>) {
        let mut waiting = self.waiting.lock();
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
    }
}

/// The streams of one connection.
#[derive(Clone, Default)]
pub struct Departures(Arc<Streams>);

#[derive(Default)]
struct Streams {
    by_id: Mutex<BTreeMap<u32, Arc<Sent>>>,
    closed: AtomicBool,
}

impl Departures {
    /// Watches a new stream.
    pub fn watch(&self, stream: Stream) -> Watched {
        let sent = Arc::<Sent>::default();
        self.0.by_id.lock().insert(stream.id().val(), sent.clone());
        Watched { stream, entered: 0, sent, departures: self.clone() }
    }

    /// The connection is no more: nothing else will leave.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
        for sent in self.0.by_id.lock().values() {
            sent.wake();
        }
    }
}

/// A stream that is flushed when all of it has left.
pub struct Watched {
    stream: Stream,
    entered: u64,
    sent: Arc<Sent>,
    departures: Departures,
}

impl Watched {
    /// Ready when at most `backlog` octets have yet to leave, or never will.
    fn poll_left(&self, backlog: u64, cx: &Context<'_>) -> Poll<()> {
        let left = || {
            self.entered.saturating_sub(self.sent.octets.load(Ordering::Acquire)) <= backlog
                || self.departures.0.closed.load(Ordering::Acquire)
        };
        if left() {
            return Poll::Ready(());
        }
        self.sent.wake_me(cx);
        // It may have left in between.
        if left() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.departures.0.by_id.lock().remove(&self.stream.id().val());
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_left(BACKLOG_BYTES - 1, cx));
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, octets))?;
        self.entered += written as u64;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.poll_left(0, cx).map(Ok)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

/// The connection below, whose outgoing frames are watched.
pub struct Outgoing<C> {
    io: C,
    departures: Departures,
    header: [u8; HEADER_BYTES],
    header_len: usize,
    /// Octets of the present frame's body that have yet to leave.
    body: u64,
    /// The stream whose body that is, if it still lives.
    of: Option<Arc<Sent>>,
}

impl<C> Outgoing<C> {
    /// Watches what leaves through `io`.
    pub fn new(io: C, departures: Departures) -> Self {
        Self { io, departures, header: [0; HEADER_BYTES], header_len: 0, body: 0, of: None }
    }

    /// Notes octets that have left.
    fn note(&mut self, mut octets: &[u8]) {
        while !octets.is_empty() {
            if self.body > 0 {
                let count = self.body.min(octets.len() as u64);
                self.body -= count;
                if let Some(sent) = &self.of {
                    sent.octets.fetch_add(count, Ordering::Release);
                    sent.wake();
                }
                octets = &octets[count as usize..];
                continue;
            }
            let count = (HEADER_BYTES - self.header_len).min(octets.len());
            self.header[self.header_len..][..count].copy_from_slice(&octets[..count]);
            self.header_len += count;
            octets = &octets[count..];
            if self.header_len == HEADER_BYTES {
                self.header_len = 0;
                self.begin_frame();
            }
        }
    }

    /// A header has left.
    fn begin_frame(&mut self) {
        let [_, kind, _, _, a, b, c, d, e, f, g, h] = self.header;
        if kind == DATA {
            self.body = u32::from_be_bytes([e, f, g, h]).into();
            let id = u32::from_be_bytes([a, b, c, d]);
            self.of = self.departures.0.by_id.lock().get(&id).cloned();
        }
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Outgoing<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Outgoing<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, octets))?;
        self.note(&octets[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_close(cx)
    }
}
