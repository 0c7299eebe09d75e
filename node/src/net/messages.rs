//! Reading and writing whole messages on a stream, with their limits and deadlines.

use super::error::{Fault, PeerError};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::PeerId;
use libp2p::core::upgrade::NegotiationError;
use narswarm_protocol::wire::{HEADER_BYTES, Message};
use std::io;
use std::time::Duration;
use tokio::time::timeout;

/// Octets that must move within the stall deadline. Smaller would let a peer hold resources
/// with a trickle; larger would ask too much of slow links.
const PROGRESS_BYTES: usize = 64 * 1024;

/// What a conversation on a stream needs to know to put its errors into words.
#[derive(Debug, Clone, Copy)]
pub struct Conversation {
    /// With whom.
    pub peer: PeerId,
    /// In which protocol.
    pub protocol: &'static str,
    /// How long nothing may move when something should.
    pub stall: Duration,
}

impl Conversation {
    /// What an input or output error means.
    pub fn failed(&self, error: &io::Error, doing: &'static str) -> PeerError {
        let negotiation = error.get_ref().and_then(|inner| inner.downcast_ref());
        match negotiation {
            Some(NegotiationError::Failed) => {
                PeerError::Refused { peer: self.peer, protocol: self.protocol }
            }
            _ => PeerError::Closed { peer: self.peer, doing },
        }
    }

    /// The deadline has passed.
    pub fn timed_out(&self, doing: &'static str) -> PeerError {
        PeerError::TimedOut { peer: self.peer, doing }
    }

    /// The peer is to blame.
    pub fn violation(&self, fault: impl Into<Fault>) -> PeerError {
        PeerError::Violation { peer: self.peer, fault: Box::new(fault.into()) }
    }

    /// Reads the next message, or `None` when the stream ends before it begins. `first` is how
    /// long its first octet may take; then the stall deadline holds.
    pub async fn read<M: Message>(
        &self,
        stream: &mut (impl AsyncRead + Unpin),
        first: Option<Duration>,
        doing: &'static str,
    ) -> Result<Option<M>, PeerError> {
        let mut header = [0; HEADER_BYTES];
        let beginning = stream.read(&mut header);
        let read = match first {
            Some(first) => timeout(first, beginning).await.map_err(|_| self.timed_out(doing))?,
            None => beginning.await,
        };
        let read = match read.map_err(|error| self.failed(&error, doing))? {
            0 => return Ok(None),
            read => read,
        };
        self.rest(stream, header, read, doing).await.map(Some)
    }

    /// Reads the rest of a message of which `read` octets of the header are there.
    pub async fn rest<M: Message>(
        &self,
        stream: &mut (impl AsyncRead + Unpin),
        mut header: [u8; HEADER_BYTES],
        read: usize,
        doing: &'static str,
    ) -> Result<M, PeerError> {
        self.read_exact(stream, &mut header[read..], doing).await?;
        let header = M::header(header).map_err(|error| self.violation(error))?;
        let mut body = vec![0; header.body_len];
        self.read_exact(stream, &mut body, doing).await?;
        M::decode(header.kind, &body).map_err(|error| self.violation(error))
    }

    /// Fills `buffer`, each [`PROGRESS_BYTES`] of it within the stall deadline.
    pub async fn read_exact(
        &self,
        stream: &mut (impl AsyncRead + Unpin),
        buffer: &mut [u8],
        doing: &'static str,
    ) -> Result<(), PeerError> {
        self.read_counted(stream, buffer, |_| {}, doing).await
    }

    /// Does the same, and tells of each octet as it comes.
    pub async fn read_counted(
        &self,
        stream: &mut (impl AsyncRead + Unpin),
        buffer: &mut [u8],
        mut received: impl FnMut(u64),
        doing: &'static str,
    ) -> Result<(), PeerError> {
        for part in buffer.chunks_mut(PROGRESS_BYTES) {
            let fill = async {
                let mut filled = 0;
                while filled < part.len() {
                    match stream.read(&mut part[filled..]).await? {
                        0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                        count => {
                            filled += count;
                            received(count as u64);
                        }
                    }
                }
                Ok(())
            };
            let filled = timeout(self.stall, fill).await.map_err(|_| self.timed_out(doing))?;
            filled.map_err(|error: io::Error| self.failed(&error, doing))?;
        }
        Ok(())
    }

    /// Writes `octets`, each [`PROGRESS_BYTES`] of them within the stall deadline.
    pub async fn write(
        &self,
        stream: &mut (impl AsyncWrite + Unpin),
        octets: &[u8],
        doing: &'static str,
    ) -> Result<(), PeerError> {
        for part in octets.chunks(PROGRESS_BYTES) {
            let written = timeout(self.stall, stream.write_all(part)).await;
            let written = written.map_err(|_| self.timed_out(doing))?;
            written.map_err(|error| self.failed(&error, doing))?;
        }
        Ok(())
    }

    /// Sends off what is written.
    pub async fn flush(
        &self,
        stream: &mut (impl AsyncWrite + Unpin),
        doing: &'static str,
    ) -> Result<(), PeerError> {
        let flushed = timeout(self.stall, stream.flush()).await;
        flushed.map_err(|_| self.timed_out(doing))?.map_err(|error| self.failed(&error, doing))
    }
}
