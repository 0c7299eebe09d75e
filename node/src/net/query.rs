//! Asking a peer which items it holds.

use super::config::NetTiming;
use super::error::{Fault, PeerError};
use super::messages::Conversation;
use super::responder::Held;
use super::streams::{Control, Protocol};
use bytes::Bytes;
use libp2p::PeerId;
use narswarm_protocol::limits::{MAX_QUERY_ANSWER_BYTES, MAX_QUERY_HASHES};
use narswarm_protocol::store_path::StoreHash;
use narswarm_protocol::wire::Message;
use narswarm_protocol::wire::query::{ANSWER_OVERHEAD_BYTES, QueryRequest, QueryResponse};

/// What is being done, in errors.
const DOING: &str = "answering a query";

/// Most rounds for one query: a holder of a thousand of the usual narinfos needs one. What is
/// still open then counts as not held, which bounds a query's memory to 32 MiB.
const MAX_ROUNDS: usize = 4;

/// See [`super::Net::query`].
pub async fn query(
    control: &Control,
    timing: &NetTiming,
    peer: PeerId,
    hashes: &[StoreHash],
) -> Result<Vec<Option<Held>>, PeerError> {
    let rounds = ask_in_rounds(control, timing, peer, hashes);
    let answered = tokio::time::timeout(timing.query, rounds).await;
    answered.unwrap_or(Err(PeerError::TimedOut { peer, doing: DOING }))
}

async fn ask_in_rounds(
    control: &Control,
    timing: &NetTiming,
    peer: PeerId,
    hashes: &[StoreHash],
) -> Result<Vec<Option<Held>>, PeerError> {
    let mut answers = vec![None; hashes.len()];
    if hashes.len() > MAX_QUERY_HASHES {
        return Err(PeerError::Local { peer, reason: "more hashes than one query takes" });
    }
    let mut from = 0;
    for _ in 0..MAX_ROUNDS {
        if from == hashes.len() {
            break;
        }
        from += ask(control, timing, peer, &hashes[from..], &mut answers[from..]).await?;
    }
    Ok(answers)
}

/// Asks once; returns how many of the hashes have been answered.
async fn ask(
    control: &Control,
    timing: &NetTiming,
    peer: PeerId,
    hashes: &[StoreHash],
    answers: &mut [Option<Held>],
) -> Result<usize, PeerError> {
    let mut stream = control.open(peer, Protocol::Query, timing.open).await?;
    let with = Conversation { peer, protocol: Protocol::Query.name(), stall: timing.stall };
    let mut request = Vec::new();
    QueryRequest { hashes: hashes.to_vec() }.encode(&mut request);
    with.write(&mut stream, &request, DOING).await?;
    // Not closed: dropping an open stream resets it, and a holder that has more to say than is
    // wanted stops at once.
    with.flush(&mut stream, DOING).await?;

    let (mut next, mut octets) = (0, 0);
    loop {
        let response: QueryResponse = with
            .read(&mut stream, Some(timing.stall), DOING)
            .await?
            .ok_or(PeerError::Closed { peer, doing: DOING })?;
        for answer in response.answers {
            let index = answer.index as usize;
            if index < next || index >= hashes.len() {
                let (index, asked) = (answer.index, hashes.len());
                return Err(with.violation(Fault::AnswerIndex { index, asked }));
            }
            next = index + 1;
            octets += answer.narinfo.len() + ANSWER_OVERHEAD_BYTES;
            if octets > MAX_QUERY_ANSWER_BYTES {
                let limit = MAX_QUERY_ANSWER_BYTES;
                return Err(with.violation(Fault::AnswerBytes { limit }));
            }
            answers[index] = Some(Held {
                narinfo: Bytes::from(answer.narinfo),
                root: answer.root,
                pieces_held: answer.pieces_held,
            });
        }
        if response.last {
            return answered(&with, response.ask_again_from, next, hashes.len());
        }
    }
}

/// How far a finished answer reaches: everywhere, or up to where the holder wants to be asked
/// again, which must be beyond its last answer and not at the start.
fn answered(
    with: &Conversation,
    ask_again_from: Option<u32>,
    next: usize,
    asked: usize,
) -> Result<usize, PeerError> {
    let Some(from) = ask_again_from else { return Ok(asked) };
    let position = from as usize;
    if position < next || position == 0 || position >= asked {
        return Err(with.violation(Fault::AskAgain { from, asked }));
    }
    Ok(position)
}
