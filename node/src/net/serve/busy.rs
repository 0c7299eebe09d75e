//! Telling an asker that too many are served, so that it asks another at once.

use super::fetch::DOING;
use crate::net::error::PeerError;
use crate::net::messages::Conversation;
use crate::net::streams::PeerStream;
use futures::AsyncWriteExt;
use narswarm_protocol::limits::MAX_FETCH_SLOTS;
use narswarm_protocol::wire::Message;
use narswarm_protocol::wire::fetch::{FetchReply, FetchRequest, RefusedReason};
use std::time::Duration;

/// How long the next request is waited for. It was on its way when the stream was opened.
const PATIENCE: Duration = Duration::from_secs(2);

/// Refuses every nar that is asked for, until the asker ends the stream or asks nothing more.
pub async fn refuse(with: Conversation, mut stream: PeerStream) -> Result<(), PeerError> {
    let with = Conversation { stall: with.stall.min(PATIENCE), ..with };
    let mut octets = Vec::new();
    for _ in 0..MAX_FETCH_SLOTS {
        let request = match with.read(&mut stream, Some(with.stall), DOING).await {
            Ok(Some(request)) => request,
            Ok(None) | Err(PeerError::TimedOut { .. }) => break,
            Err(error) => return Err(error),
        };
        // Others are about nars refused just now.
        if let FetchRequest::Open { slot, .. } = request {
            octets.clear();
            FetchReply::Refused { slot, reason: RefusedReason::Busy }.encode(&mut octets);
            with.write(&mut stream, &octets, DOING).await?;
            with.flush(&mut stream, DOING).await?;
        }
    }
    let closed = tokio::time::timeout(with.stall, stream.close()).await;
    closed.map_err(|_| with.timed_out(DOING))?.map_err(|error| with.failed(&error, DOING))
}
