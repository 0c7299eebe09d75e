//! Answering a message of discovery from what this node keeps for others.

use super::Server;
use crate::net::error::PeerError;
use crate::net::messages::Conversation;
use crate::net::routing::dht::Machine;
use crate::net::streams::PeerStream;
use futures::AsyncWriteExt;
use narswarm_protocol::wire::Message;
use narswarm_protocol::wire::announce::AnnounceRequest;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What is being done, in errors.
const DOING: &str = "announcing";

/// How long the message may take, once the stream is open: it is on its way.
const PATIENCE: Duration = Duration::from_secs(5);

/// Reads one message and answers it. Whoever sends too many gets no answer.
pub async fn serve(
    server: &Server,
    with: Conversation,
    stream: PeerStream,
) -> Result<(), PeerError> {
    let Some(machine) = server.machine() else { return Ok(()) };
    let counter = match answer(&machine, with, stream).await? {
        true => &server.counters.served_announces,
        false => &server.counters.refused_busy,
    };
    counter.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// The same, of a machine; says whether the message was answered.
pub async fn answer(
    machine: &Machine,
    with: Conversation,
    mut stream: PeerStream,
) -> Result<bool, PeerError> {
    let with = Conversation { stall: with.stall.min(PATIENCE), ..with };
    let (reach, network) = machine.whereabouts(&with.peer);
    if !machine.keeper().admits(with.peer, network) {
        return Ok(false);
    }
    machine.guests().came(with.peer);
    let request = with.read(&mut stream, Some(with.stall), DOING).await?;
    let Some(request): Option<AnnounceRequest> = request else { return Ok(false) };
    let reply = machine.keeper().answer(with.peer, network, reach, request, machine);
    let mut octets = Vec::new();
    reply.encode(&mut octets);
    with.write(&mut stream, &octets, DOING).await?;
    with.flush(&mut stream, DOING).await?;
    let closed = tokio::time::timeout(with.stall, stream.close()).await;
    closed.map(|_| true).map_err(|_| with.timed_out(DOING))
}
