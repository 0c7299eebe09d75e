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

/// Most octets of one stream that wait for the connection: three frames, one of which may be half
/// gone, so that there is always a whole one to follow without a pause.
pub const BACKLOG_BYTES: u64 = 3 * FRAME_BYTES;

/// Most octets that one write adds.
const FRAME_BYTES: u64 = super::FRAME_BYTES as u64;

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
        ready!(self.poll_left(BACKLOG_BYTES - FRAME_BYTES, cx));
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

#[cfg(test)]
mod tests {
    use super::super::{Config, Muxer};
    use super::*;
    use crate::net::testing::soon;
    use futures::{AsyncReadExt, AsyncWriteExt, FutureExt};
    use libp2p::core::muxing::StreamMuxer;
    use tokio::io::DuplexStream;
    use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};
    use yamux::Mode;

    type Side = Muxer<Compat<DuplexStream>>;

    /// Two sides on a line that takes four kilobytes at a time.
    fn sides() -> (Side, Side) {
        let (one, other) = tokio::io::duplex(4096);
        let side = |io: DuplexStream, mode| Muxer::new(io.compat(), Config::default().0, mode);
        (side(one, Mode::Client), side(other, Mode::Server))
    }

    /// Moves a side on until it fails.
    async fn drive(mut side: Side) {
        while std::future::poll_fn(|cx| Pin::new(&mut side).poll(cx)).await.is_ok() {}
    }

    async fn open(side: &mut Side) -> Watched {
        let opened = std::future::poll_fn(|cx| Pin::new(&mut *side).poll_outbound(cx)).await;
        opened.expect("a stream")
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_flush_waits_for_departure_and_little_waits_to_depart() {
        let (mut sender, mut receiver) = sides();
        let mut stream = open(&mut sender).await;
        let mut other = open(&mut sender).await;
        tokio::spawn(drive(sender));
        let octets: Vec<u8> = (0..2 * BACKLOG_BYTES).map(|i| (i % 251) as u8).collect();
        let mut entered = 0;
        while let Some(written) = stream.write(&octets[entered..]).now_or_never() {
            entered += written.expect("the line is open");
        }
        // What the line holds has left.
        assert!(entered as u64 <= BACKLOG_BYTES + 4096 * 2, "{entered}");
        assert!(stream.flush().now_or_never().is_none(), "nobody reads");

        let accepted = std::future::poll_fn(|cx| Pin::new(&mut receiver).poll_inbound(cx));
        let mut reader = soon("the stream", accepted).await.expect("a stream");
        tokio::spawn(drive(receiver));
        let read = async {
            let mut came = vec![0; octets.len()];
            reader.read_exact(&mut came).await.expect("octets");
            came
        };
        let write = async {
            stream.write_all(&octets[entered..]).await.expect("written");
            stream.flush().await.expect("flushed");
            other.write_all(b"after it").await.expect("written");
            other.flush().await.expect("flushed");
        };
        let (came, ()) = soon("all to come", futures::future::join(read, write)).await;
        assert!(came == octets);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_waits_for_departure_learns_of_the_end() {
        let (mut sender, receiver) = sides();
        let mut stream = open(&mut sender).await;
        let driver = tokio::spawn(drive(sender));
        stream.write_all(&[0; 64 * 1024]).await.expect("there is room");
        let flush = tokio::spawn(async move { stream.flush().await });
        driver.abort();
        drop(receiver);
        // Well or not, it ends.
        let _ = soon("the end of the flush", flush).await.expect("no panic");
    }
}
