//! Asking a seed for the filter of what it holds.

use super::config::NetTiming;
use super::error::{Fault, PeerError};
use super::messages::Conversation;
use super::responder::{FilterAnswer, FilterContent};
use super::streams::{Control, Protocol};
use libp2p::PeerId;
use narswarm_protocol::limits::FILTER_PATIENCE;
use narswarm_protocol::wire::Message;
use narswarm_protocol::wire::filter::{FilterReply, FilterRequest, Following};

/// What is being done, in errors.
const DOING: &str = "giving its filter";

/// See [`super::Net::filter`].
pub async fn ask(
    control: &Control,
    timing: &NetTiming,
    peer: PeerId,
    request: FilterRequest,
    takes_whole: bool,
) -> Result<FilterAnswer, PeerError> {
    let asking = ask_patiently(control, timing, peer, request, takes_whole);
    let answered = tokio::time::timeout(FILTER_PATIENCE, asking).await;
    answered.unwrap_or(Err(PeerError::TimedOut { peer, doing: DOING }))
}

async fn ask_patiently(
    control: &Control,
    timing: &NetTiming,
    peer: PeerId,
    request: FilterRequest,
    takes_whole: bool,
) -> Result<FilterAnswer, PeerError> {
    let mut stream = control.open(peer, Protocol::Filter, timing.open).await?;
    let with = Conversation { peer, protocol: Protocol::Filter.name(), stall: timing.stall };
    let closed = || PeerError::Closed { peer, doing: DOING };
    let mut octets = Vec::new();
    request.encode(&mut octets);
    with.write(&mut stream, &octets, DOING).await?;
    with.flush(&mut stream, DOING).await?;
    let first = with.read(&mut stream, Some(timing.stall), DOING).await?.ok_or_else(closed)?;
    let FilterReply::Head { head, following } = first else {
        return Err(with.violation(Fault::FilterOrder));
    };
    if matches!(following, Following::Whole(_)) && !takes_whole {
        return Err(PeerError::Local { peer, reason: "its filter was fetched not long ago" });
    }
    let mut octets = Vec::new();
    while octets.len() < following.octets() {
        match with.read(&mut stream, Some(timing.stall), DOING).await?.ok_or_else(closed)? {
            FilterReply::Chunk(more) if octets.len() + more.len() <= following.octets() => {
                octets.extend(more);
            }
            _ => return Err(with.violation(Fault::FilterOrder)),
        }
    }
    let content = match following {
        Following::Nothing => FilterContent::Nothing,
        Following::Changes(_) => FilterContent::Changes(octets.into()),
        Following::Whole(_) => FilterContent::Whole(octets.into()),
    };
    Ok(FilterAnswer { head, content })
}
