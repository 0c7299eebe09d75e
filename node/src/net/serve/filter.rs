//! Giving away the filter of what this node holds.

use super::{Server, call};
use crate::net::error::PeerError;
use crate::net::messages::Conversation;
use crate::net::responder::{FilterAnswer, FilterContent};
use crate::net::streams::PeerStream;
use bytes::Bytes;
use futures::AsyncWriteExt;
use libp2p::PeerId;
use lru::LruCache;
use narswarm_protocol::limits::{
    FILTER_CHUNK_BYTES, FILTER_PATIENCE, MAX_KNOWN_PEERS, WHOLE_FILTER_PAUSE,
};
use narswarm_protocol::wire::Message;
use narswarm_protocol::wire::filter::{FilterReply, FilterRequest, Following};
use parking_lot::Mutex;
use std::num::NonZeroUsize;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// What is being done, in errors.
const DOING: &str = "asking for the filter";

/// Who was given the whole filter lately: it is large, and whoever has it needs only the changes.
pub struct Wholes(Mutex<LruCache<PeerId, Instant>>);

impl Default for Wholes {
    fn default() -> Self {
        let most = NonZeroUsize::new(MAX_KNOWN_PEERS).unwrap_or(NonZeroUsize::MIN);
        Self(Mutex::new(LruCache::new(most)))
    }
}

impl Wholes {
    /// Whether a peer may have it now; it then has had it.
    fn take(&self, peer: PeerId, now: Instant) -> bool {
        let mut given = self.0.lock();
        let is_soon = given.peek(&peer).is_some_and(|at| now < *at + WHOLE_FILTER_PAUSE);
        if !is_soon {
            given.put(peer, now);
        }
        !is_soon
    }
}

/// Reads one request and answers it. Who is no seed says nothing.
pub async fn serve(
    server: &Server,
    with: Conversation,
    mut stream: PeerStream,
) -> Result<(), PeerError> {
    let request = with.read(&mut stream, Some(with.stall), DOING).await?;
    let Some(FilterRequest { have, head_only }) = request else { return Ok(()) };
    let responder = server.responder.clone();
    let answer = call(&server.calls, move || responder.filter(have)).await.flatten();
    let Some(FilterAnswer { head, content }) = answer else { return Ok(()) };
    let (following, octets) = match content {
        _ if head_only => (Following::Nothing, Bytes::new()),
        FilterContent::Nothing => (Following::Nothing, Bytes::new()),
        FilterContent::Changes(octets) => (Following::Changes(octets.len() as u32), octets),
        FilterContent::Whole(octets) => {
            if !server.wholes.take(with.peer, Instant::now()) {
                server.counters.refused_busy.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            (Following::Whole(octets.len() as u32), octets)
        }
    };
    let sending = send(&with, &mut stream, FilterReply::Head { head, following }, &octets);
    let sent = tokio::time::timeout(FILTER_PATIENCE, sending).await;
    sent.unwrap_or_else(|_| Err(with.timed_out(DOING)))
}

async fn send(
    with: &Conversation,
    stream: &mut PeerStream,
    head: FilterReply,
    octets: &[u8],
) -> Result<(), PeerError> {
    let mut frame = Vec::new();
    head.encode(&mut frame);
    with.write(stream, &frame, DOING).await?;
    for chunk in octets.chunks(FILTER_CHUNK_BYTES) {
        frame.clear();
        FilterReply::Chunk(chunk.to_vec()).encode(&mut frame);
        with.write(stream, &frame, DOING).await?;
    }
    with.flush(stream, DOING).await?;
    let closed = tokio::time::timeout(with.stall, stream.close()).await;
    closed.map(|_| ()).map_err(|_| with.timed_out(DOING))
}
