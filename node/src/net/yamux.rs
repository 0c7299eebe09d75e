//! The yamux multiplexer with frames of 64 KiB and bounded windows.
//!
//! libp2p-yamux is the same adapter without a way to set either. Frames of 16 KiB, its default,
//! cost a third of the throughput; windows without a bound cost whatever a stranger likes. And
//! here a flush waits until the stream's octets have left, see `departures`.

mod departures;

pub use departures::BACKLOG_BYTES;

use departures::{Departures, Outgoing, Watched};
use futures::{AsyncRead, AsyncWrite, future, ready};
use libp2p::core::UpgradeInfo;
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade};
use narswarm_protocol::limits::{MAX_CONNECTION_STREAMS, MAX_CONNECTION_WINDOW_BYTES};
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use yamux::{Connection, ConnectionError, Mode};

/// The name under which the upgrade is negotiated.
const PROTOCOL: &str = "/yamux/1.0.0";

/// Longest data frame sent: 1,326 MiB/s against 954 with 16 KiB, and no gain above; a ping waits
/// half a millisecond behind it at 1 Gbit/s.
const FRAME_BYTES: usize = 64 * 1024;

/// The upgrade of a secured connection to many streams.
#[derive(Clone)]
pub struct Config(yamux::Config);

impl Default for Config {
    fn default() -> Self {
        let mut config = yamux::Config::default();
        config.set_max_num_streams(MAX_CONNECTION_STREAMS);
        config.set_max_connection_receive_window(Some(MAX_CONNECTION_WINDOW_BYTES));
        config.set_split_send_size(FRAME_BYTES);
        Self(config)
    }
}

/// A multiplexed connection.
pub struct Muxer<C> {
    connection: Connection<Outgoing<C>>,
    departures: Departures,
    /// Streams that the remote opened while only the connection was being polled. They cannot be
    /// more than the connection's own limit, so none is ever dropped.
    opened: VecDeque<Watched>,
    /// Whom to wake when a stream is put there.
    waiting: Option<Waker>,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Muxer<C> {
    fn new(io: C, config: yamux::Config, mode: Mode) -> Self {
        let departures = Departures::default();
        let connection = Connection::new(Outgoing::new(io, departures.clone()), config, mode);
        Self { connection, departures, opened: VecDeque::new(), waiting: None }
    }

    /// Moves the connection on, which is possible only by asking for the next inbound stream.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Watched, ConnectionError>> {
        let next = ready!(self.connection.poll_next_inbound(cx));
        let next = next.unwrap_or(Err(ConnectionError::Closed));
        Poll::Ready(next.map(|stream| self.departures.watch(stream)))
    }
}

/// yamux's errors as the input and output errors that libp2p reports.
fn io_error(error: ConnectionError) -> io::Error {
    match error {
        ConnectionError::Io(error) => error,
        other => io::Error::other(other),
    }
}

impl<C> Drop for Muxer<C> {
    fn drop(&mut self) {
        self.departures.close();
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> StreamMuxer for Muxer<C> {
    type Substream = Watched;
    type Error = io::Error;

    fn poll_inbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Watched, io::Error>> {
        if let Some(stream) = self.opened.pop_front() {
            return Poll::Ready(Ok(stream));
        }
        let polled = self.poll_next(cx);
        if polled.is_pending() {
            self.waiting = Some(cx.waker().clone());
        }
        polled.map_err(io_error)
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Watched, io::Error>> {
        let opened = ready!(self.connection.poll_new_outbound(cx)).map_err(io_error)?;
        Poll::Ready(Ok(self.departures.watch(opened)))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.poll_close(cx).map_err(io_error)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, io::Error>> {
        loop {
            let stream = ready!(self.poll_next(cx)).map_err(io_error)?;
            self.opened.push_back(stream);
            if let Some(waker) = self.waiting.take() {
                waker.wake();
            }
        }
    }
}

impl UpgradeInfo for Config {
    type Info = &'static str;
    type InfoIter = std::iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(PROTOCOL)
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> InboundConnectionUpgrade<C> for Config {
    type Output = Muxer<C>;
    type Error = io::Error;
    type Future = future::Ready<io::Result<Muxer<C>>>;

    fn upgrade_inbound(self, io: C, _: Self::Info) -> Self::Future {
        future::ready(Ok(Muxer::new(io, self.0, Mode::Server)))
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> OutboundConnectionUpgrade<C> for Config {
    type Output = Muxer<C>;
    type Error = io::Error;
    type Future = future::Ready<io::Result<Muxer<C>>>;

    fn upgrade_outbound(self, io: C, _: Self::Info) -> Self::Future {
        future::ready(Ok(Muxer::new(io, self.0, Mode::Client)))
    }
}
