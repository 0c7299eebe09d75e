//! One message of discovery and its answer.

use super::dht::Machine;
use crate::net::error::PeerError;
use crate::net::messages::Conversation;
use crate::net::streams::Protocol;
use libp2p::PeerId;
use narswarm_protocol::wire::Message;
use narswarm_protocol::wire::announce::{AnnounceReply, AnnounceRequest};

/// What is being done, in errors.
const DOING: &str = "answering an announcement";

/// Sends a message to a peer, which is dialled if need be; `None` when no answer comes in time.
pub async fn ask(
    machine: &Machine,
    peer: PeerId,
    request: AnnounceRequest,
) -> Option<AnnounceReply> {
    let asked = async {
        match exchange(machine, peer, &request).await {
            // That was the connection's end: an idle one's, or that of one of two made at once.
            Err(PeerError::Closed { .. }) => exchange(machine, peer, &request).await,
            other => other,
        }
    };
    match tokio::time::timeout(machine.timing.announce, asked).await {
        Ok(Ok(reply)) => Some(reply),
        Ok(Err(error)) => {
            tracing::debug!(%error, "discovery");
            None
        }
        Err(_) => None,
    }
}

async fn exchange(
    machine: &Machine,
    peer: PeerId,
    request: &AnnounceRequest,
) -> Result<AnnounceReply, PeerError> {
    let timing = &machine.timing;
    let mut stream = machine.control.open(peer, Protocol::Announce, timing.announce).await?;
    let with = Conversation { peer, protocol: Protocol::Announce.name(), stall: timing.announce };
    let mut octets = Vec::new();
    request.encode(&mut octets);
    with.write(&mut stream, &octets, DOING).await?;
    with.flush(&mut stream, DOING).await?;
    let reply = with.read(&mut stream, Some(timing.announce), DOING).await?;
    reply.ok_or(PeerError::Closed { peer, doing: DOING })
}
