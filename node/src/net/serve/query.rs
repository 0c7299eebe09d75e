//! Answering a query: which of these items are held.

use super::{Server, call};
use crate::net::error::PeerError;
use crate::net::messages::Conversation;
use crate::net::responder::Held;
use crate::net::streams::PeerStream;
use futures::AsyncWriteExt;
use narswarm_protocol::limits::{
    MAX_ANSWERS_BODY_BYTES, MAX_NARINFO_BYTES, MAX_PIECES, MAX_QUERY_ANSWER_BYTES,
};
use narswarm_protocol::wire::Message;
use narswarm_protocol::wire::query::{ANSWER_OVERHEAD_BYTES, Answer, QueryRequest, QueryResponse};
use std::sync::atomic::Ordering;

/// What is being done, in errors.
const DOING: &str = "asking";

/// Hashes of one call of the responder: bounds what it returns at once to 32 MiB even if every
/// narinfo is as large as is allowed, and lets the answer stop when it is full.
const HASHES_PER_CALL: usize = 128;

/// What a frame's answers may take, leaving room for its other fields.
const FRAME_BYTES: usize = MAX_ANSWERS_BODY_BYTES - ANSWER_OVERHEAD_BYTES;

/// Reads one query and answers it.
pub async fn serve(
    server: &Server,
    with: Conversation,
    mut stream: PeerStream,
) -> Result<(), PeerError> {
    let request = with.read(&mut stream, Some(with.stall), DOING).await?;
    let Some(QueryRequest { hashes }) = request else { return Ok(()) };
    let (mut frame, mut frame_bytes, mut total) = (QueryResponse::default(), 0, 0);
    'hashes: for (chunk_index, chunk) in hashes.chunks(HASHES_PER_CALL).enumerate() {
        let (responder, asked) = (server.responder.clone(), chunk.to_vec());
        let held = call(&server.calls, move || responder.query(&asked)).await;
        let held = held.ok_or(PeerError::Local { peer: with.peer, reason: "cannot answer" })?;
        for (offset, held) in held.into_iter().take(chunk.len()).enumerate() {
            let index = (chunk_index * HASHES_PER_CALL + offset) as u32;
            let Some(answer) = held.and_then(|held| answer(index, held)) else { continue };
            let size = answer.narinfo.len() + ANSWER_OVERHEAD_BYTES;
            if total + size > MAX_QUERY_ANSWER_BYTES {
                frame.ask_again_from = Some(index);
                break 'hashes;
            }
            if frame_bytes + size > FRAME_BYTES {
                send(&with, &mut stream, &std::mem::take(&mut frame)).await?;
                frame_bytes = 0;
            }
            total += size;
            frame_bytes += size;
            frame.answers.push(answer);
        }
    }
    frame.last = true;
    send(&with, &mut stream, &frame).await?;
    server.counters.served_queries.fetch_add(1, Ordering::Relaxed);
    let closed = tokio::time::timeout(with.stall, stream.close()).await;
    // The asker may have reset the stream as soon as it had the last answer.
    closed.map(|_| ()).map_err(|_| with.timed_out(DOING))
}

/// What is held as an answer, unless it is more than an answer may be.
fn answer(index: u32, held: Held) -> Option<Answer> {
    let Held { narinfo, root, pieces_held } = held;
    let fits = narinfo.len() <= MAX_NARINFO_BYTES && pieces_held <= MAX_PIECES;
    fits.then(|| Answer { index, narinfo: narinfo.into(), root, pieces_held })
}

async fn send(
    with: &Conversation,
    stream: &mut PeerStream,
    frame: &QueryResponse,
) -> Result<(), PeerError> {
    let mut octets = Vec::new();
    frame.encode(&mut octets);
    with.write(stream, &octets, DOING).await?;
    with.flush(stream, DOING).await
}
