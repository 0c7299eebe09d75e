//! A line of a given delay before every TCP connection, for measuring what distance costs where no
//! real distance is at hand. Not used otherwise.
//!
//! Each end holds back what it reads for the time of one way; whoever dials also waits the round trip
//! of the handshake. Rates are not bounded, but what is on its way is.

use bytes::{Buf, Bytes};
use futures::{AsyncRead, AsyncWrite};
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// Octets read at once.
const READ_BYTES: usize = 16 * 1024;

/// Most octets held back on one connection.
const MAX_HELD_BYTES: usize = 4 << 20;

/// See the module.
pub struct Line<C> {
    inner: C,
    one_way: Duration,
    /// What was read, and when it arrives. Nothing stands for the end.
    held: VecDeque<(Instant, io::Result<Bytes>)>,
    held_bytes: usize,
    ended: bool,
    arrival: Pin<Box<Sleep>>,
}

impl<C> Line<C> {
    /// A connection at this distance.
    pub fn new(inner: C, one_way: Duration) -> Self {
        let arrival = Box::pin(tokio::time::sleep(Duration::ZERO));
        Self { inner, one_way, held: VecDeque::new(), held_bytes: 0, ended: false, arrival }
    }
}

impl<C: AsyncRead + Unpin> Line<C> {
    /// Takes what the connection has into the line.
    fn fill(&mut self, cx: &mut Context<'_>) {
        let mut buffer = [0; READ_BYTES];
        while !self.ended && self.held_bytes < MAX_HELD_BYTES {
            let Poll::Ready(read) = Pin::new(&mut self.inner).poll_read(cx, &mut buffer) else {
                return;
            };
            let read = read.map(|count| Bytes::copy_from_slice(&buffer[..count]));
            self.ended = read.as_ref().map_or(true, Bytes::is_empty);
            self.held_bytes += read.as_ref().map_or(0, Bytes::len);
            self.held.push_back((Instant::now() + self.one_way, read));
        }
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Line<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.fill(cx);
        let Some((arrives, read)) = this.held.front_mut() else {
            return if this.ended { Poll::Ready(Ok(0)) } else { Poll::Pending };
        };
        if *arrives > Instant::now() {
            this.arrival.as_mut().reset(*arrives);
            if this.arrival.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
        let Ok(octets) = read else {
            let failed = this.held.pop_front().map(|(_, read)| read.map(|_| 0));
            return Poll::Ready(failed.unwrap_or(Ok(0)));
        };
        let count = octets.len().min(out.len());
        out[..count].copy_from_slice(&octets[..count]);
        octets.advance(count);
        if octets.is_empty() {
            this.held.pop_front();
        }
        this.held_bytes -= count;
        // There is room again.
        this.fill(cx);
        Poll::Ready(Ok(count))
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Line<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, octets)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}
