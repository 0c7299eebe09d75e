//! Writing what a session gives, and telling when the network has taken it.
//!
//! A piece occupies its slot until its octets have left for the socket. While there is more to
//! write, that is known without waiting: no stream takes more than [`BACKLOG_BYTES`] ahead of
//! what has left. Only at the end of what there is, the stream is flushed.

use super::Server;
use super::fetch::{DOING, Session};
use crate::net::error::PeerError;
use crate::net::streams::PeerStream;
use crate::net::yamux::BACKLOG_BYTES;
use futures::AsyncWriteExt;
use futures::io::WriteHalf;
use narswarm_protocol::wire::Message;
use narswarm_protocol::wire::fetch::{FetchReply, Frame, PieceHead};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use tokio::sync::mpsc;

/// What there is to write.
pub enum Outgoing {
    /// A message.
    Reply(FetchReply),
    /// What has become of a piece that was granted. Each is reported, in the order of the grants.
    Granted(Content),
}

/// See [`Outgoing::Granted`].
pub enum Content {
    /// It was read, or (`None`) is not held.
    Piece { slot: u32, index: u32, frame: Option<Frame> },
    /// It was cancelled.
    Nothing,
}

/// The stream, with what has been written to it.
struct Writer<'a> {
    server: &'a Server,
    session: &'a Session,
    stream: WriteHalf<PeerStream>,
    /// Messages that are written with the next piece, or at the end of the burst.
    head: Vec<u8>,
    /// Octets written so far.
    written: u64,
    /// Granted pieces that have not been reported: where each ends, and its octets.
    unreported: VecDeque<(u64, u64)>,
}

/// Writes what was read, and leaves out what was cancelled.
pub async fn write_bursts(
    server: &Server,
    session: &Session,
    stream: WriteHalf<PeerStream>,
    mut bursts: mpsc::Receiver<Vec<Outgoing>>,
) -> Result<(), PeerError> {
    let (head, unreported) = (Vec::new(), VecDeque::new());
    let mut writer = Writer { server, session, stream, head, written: 0, unreported };
    let mut flushed = true;
    loop {
        let burst = if flushed {
            bursts.recv().await
        } else {
            tokio::select! {
                biased;
                burst = bursts.recv() => burst,
                done = session.with.flush(&mut writer.stream, DOING) => {
                    done?;
                    writer.report(writer.written);
                    flushed = true;
                    continue;
                }
            }
        };
        let Some(burst) = burst else { break };
        flushed = false;
        for outgoing in burst {
            writer.write(outgoing).await?;
        }
        writer.write_head().await?;
        writer.report(writer.written.saturating_sub(BACKLOG_BYTES));
    }
    let with = session.with;
    with.flush(&mut writer.stream, DOING).await?;
    let closed = tokio::time::timeout(with.stall, writer.stream.close()).await;
    closed.map_err(|_| with.timed_out(DOING))?.map_err(|error| with.failed(&error, DOING))
}

impl Writer<'_> {
    async fn write(&mut self, outgoing: Outgoing) -> Result<(), PeerError> {
        let (slot, index, frame) = match outgoing {
            Outgoing::Reply(reply) => {
                reply.encode(&mut self.head);
                return Ok(());
            }
            Outgoing::Granted(Content::Nothing) => {
                self.left_out();
                return Ok(());
            }
            Outgoing::Granted(Content::Piece { slot, index, frame }) => (slot, index, frame),
        };
        if !self.session.mailbox.queue.lock().still_wanted(slot, index) {
            self.left_out();
            return Ok(());
        }
        let Some(Frame { encoding, bytes }) = frame else {
            FetchReply::Missing { slot, index }.encode(&mut self.head);
            self.left_out();
            return Ok(());
        };
        let len = bytes.len() as u32;
        FetchReply::Piece(PieceHead { slot, index, encoding, len }).encode(&mut self.head);
        self.write_head().await?;
        self.session.with.write(&mut self.stream, &bytes, DOING).await?;
        self.written += u64::from(len);
        self.unreported.push_back((self.written, len.into()));
        let counters = &self.server.counters;
        counters.served_bytes.fetch_add(len.into(), Ordering::Relaxed);
        counters.served_pieces.fetch_add(1, Ordering::Relaxed);
        self.server.responder.gave(len.into());
        Ok(())
    }

    fn left_out(&mut self) {
        self.unreported.push_back((self.written, 0));
    }

    async fn write_head(&mut self) -> Result<(), PeerError> {
        self.session.with.write(&mut self.stream, &self.head, DOING).await?;
        self.written += self.head.len() as u64;
        self.head.clear();
        Ok(())
    }

    /// Reports the pieces of which everything up to `left` octets has left.
    fn report(&mut self, left: u64) {
        let count = self.unreported.iter().take_while(|&&(end, _)| end <= left).count();
        if count > 0 {
            let given = self.unreported.drain(..count).map(|(_, bytes)| bytes);
            let given: Vec<u64> = given.collect();
            self.session.taken(given.iter().sum());
            self.session.asker.given(given);
        }
    }
}
