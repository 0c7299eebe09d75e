//! Giving pieces: one session of `/narswarm/fetch/1`.
//!
//! Three loops run side by side in one task. One takes requests, one reads bursts of frames on a
//! blocking thread a little ahead, one writes them. What was cancelled is dropped even when it
//! has been read; an asker that stops reading loses the session.

use super::queue::{Job, OpenNar, Queue};
use super::{Server, call};
use crate::net::error::PeerError;
use crate::net::messages::Conversation;
use crate::net::responder::{Responder, ServedNar};
use crate::net::streams::PeerStream;
use futures::io::{ReadHalf, WriteHalf};
use futures::{AsyncReadExt, AsyncWriteExt};
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::limits::{FETCH_BURST_BYTES, FETCH_BURSTS_AHEAD};
use narswarm_protocol::piece_set::PieceSet;
use narswarm_protocol::wire::fetch::{
    Encoding, FetchReply, FetchRequest, Frame, Opened, PieceHead, RefusedReason,
};
use narswarm_protocol::wire::{HEADER_BYTES, Message};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};

/// What is being done, in errors.
const DOING: &str = "being given pieces";

/// How often an asker is told what has become available: often enough for a flash crowd, at
/// most ten small messages a second.
const AVAILABILITY_INTERVAL: Duration = Duration::from_millis(100);

/// What there is to write.
enum Outgoing {
    Reply(FetchReply),
    Piece { slot: u32, index: u32, frame: Frame },
}

/// What the three loops share.
struct Session {
    with: Conversation,
    queue: Mutex<Queue>,
    /// Rung when the queue has grown or has ended.
    bell: Notify,
}

/// Serves one session until the asker ends it.
pub async fn serve(
    server: &Server,
    with: Conversation,
    stream: PeerStream,
) -> Result<(), PeerError> {
    let session =
        Arc::new(Session { with, queue: Mutex::new(Queue::default()), bell: Notify::new() });
    let (read, write) = stream.split();
    let (bursts, receiver) = mpsc::channel(FETCH_BURSTS_AHEAD);
    futures::try_join!(
        take_requests(&session, read, server.timing.session_idle),
        read_ahead(server, &session, bursts),
        write_bursts(server, &session, write, receiver),
    )?;
    Ok(())
}

/// Takes requests until the asker ends the stream, or asks nothing for long.
async fn take_requests(
    session: &Session,
    mut stream: ReadHalf<PeerStream>,
    idle: Duration,
) -> Result<(), PeerError> {
    let with = session.with;
    loop {
        let mut header = [0; HEADER_BYTES];
        let read = match tokio::time::timeout(idle, stream.read(&mut header)).await {
            Ok(read) => read.map_err(|error| with.failed(&error, DOING))?,
            Err(_) if session.queue.lock().is_empty() => 0,
            Err(_) => continue,
        };
        if read == 0 {
            session.queue.lock().ended = true;
            session.bell.notify_one();
            return Ok(());
        }
        let request: FetchRequest = with.rest(&mut stream, header, read, DOING).await?;
        let taken = session.queue.lock().take(request);
        taken.map_err(|fault| with.violation(fault))?;
        session.bell.notify_one();
    }
}

/// Does the queue's jobs in bursts, as far ahead as the channel has room.
async fn read_ahead(
    server: &Server,
    session: &Arc<Session>,
    bursts: mpsc::Sender<Vec<Outgoing>>,
) -> Result<(), PeerError> {
    let mut looked = Instant::now();
    loop {
        let closed = PeerError::Closed { peer: session.with.peer, doing: DOING };
        let Ok(room) = bursts.reserve().await else { return Err(closed) };
        if !wait_for_work(session, &mut looked).await {
            return Ok(());
        }
        let (session, responder) = (session.clone(), server.responder.clone());
        let burst = call(&server.calls, move || read_burst(&session, &*responder)).await;
        room.send(burst.ok_or(closed)?);
    }
}

/// Waits until there is a job; `false` when there never will be one. While nars are incomplete
/// here, looks now and then what has come.
async fn wait_for_work(session: &Session, looked: &mut Instant) -> bool {
    loop {
        let may_grow = {
            let mut queue = session.queue.lock();
            let may_grow = queue.may_grow() && !queue.ended;
            if may_grow && looked.elapsed() >= AVAILABILITY_INTERVAL {
                *looked = Instant::now();
                queue.tell_growth();
            }
            if !queue.is_empty() || queue.ended {
                return !queue.is_empty();
            }
            may_grow
        };
        if may_grow {
            // Rung or not, the queue is looked at again.
            let _ = tokio::time::timeout(AVAILABILITY_INTERVAL, session.bell.notified()).await;
        } else {
            session.bell.notified().await;
        }
    }
}

/// Does jobs until a burst is full or nothing is left to do. Runs on a blocking thread.
fn read_burst(session: &Session, responder: &dyn Responder) -> Vec<Outgoing> {
    let (mut burst, mut octets) = (Vec::new(), 0);
    while octets < FETCH_BURST_BYTES {
        let job = session.queue.lock().next();
        match job {
            None => break,
            Some(Job::Open { slot, nar_hash, nar_size }) => {
                let reply = open(session, responder, slot, nar_hash, nar_size);
                burst.push(Outgoing::Reply(reply));
            }
            Some(Job::Have { slot }) => burst.extend(have(session, slot).map(Outgoing::Reply)),
            Some(Job::Piece { slot, index, nar }) => match piece(&*nar, index) {
                Some(frame) => {
                    octets += frame.bytes.len();
                    burst.push(Outgoing::Piece { slot, index, frame });
                }
                None => burst.push(Outgoing::Reply(FetchReply::Missing { slot, index })),
            },
        }
    }
    burst
}

/// Reads a piece, unless it isn't held or can't be read.
fn piece(nar: &dyn ServedNar, index: u32) -> Option<Frame> {
    let read = nar.frame(index).unwrap_or_else(|error| {
        tracing::warn!(index, %error, root = %nar.root(), "cannot read a piece");
        None
    });
    // What the asker would have to take for a fault is not sent.
    let limit = |frame: &Frame| {
        let len = nar.list().layout().piece_len(index);
        match frame.encoding {
            Encoding::Raw => frame.bytes.len() == len && len > 0,
            Encoding::Zstd => {
                (1..=frame.encoding.max_frame_bytes(len)).contains(&frame.bytes.len())
            }
        }
    };
    read.filter(limit)
}

/// Opens a nar for the asker, or says why not.
fn open(
    session: &Session,
    responder: &dyn Responder,
    slot: u32,
    nar_hash: NarHash,
    nar_size: u64,
) -> FetchReply {
    let refused = |reason| {
        session.queue.lock().forget(slot);
        FetchReply::Refused { slot, reason }
    };
    let Some(nar) = responder.open(&nar_hash) else { return refused(RefusedReason::NotHeld) };
    let list = nar.list().clone();
    if list.layout().nar_size() != nar_size {
        return refused(RefusedReason::SizeDiffers);
    }
    let (root, held) = (nar.root(), nar.held());
    session.queue.lock().opened(slot, OpenNar { nar, told: held.clone() });
    FetchReply::Opened(Opened { slot, root, list, held })
}

/// What has become available of a nar since the asker was last told.
fn have(session: &Session, slot: u32) -> Option<FetchReply> {
    let OpenNar { nar, told } = session.queue.lock().nar(slot)?;
    let held: PieceSet = nar.held();
    let ranges = held.ranges_beyond(&told);
    session.queue.lock().told(slot, held);
    (!ranges.is_empty()).then_some(FetchReply::Have { slot, ranges })
}

/// Writes what was read, and leaves out what was cancelled.
async fn write_bursts(
    server: &Server,
    session: &Session,
    mut stream: WriteHalf<PeerStream>,
    mut bursts: mpsc::Receiver<Vec<Outgoing>>,
) -> Result<(), PeerError> {
    let (with, mut head) = (session.with, Vec::new());
    while let Some(burst) = bursts.recv().await {
        head.clear();
        for outgoing in burst {
            match outgoing {
                Outgoing::Reply(FetchReply::Missing { slot, index }) => {
                    if session.queue.lock().still_wanted(slot, index) {
                        FetchReply::Missing { slot, index }.encode(&mut head);
                    }
                }
                Outgoing::Reply(reply) => reply.encode(&mut head),
                Outgoing::Piece { slot, index, frame } => {
                    if !session.queue.lock().still_wanted(slot, index) {
                        continue;
                    }
                    let (encoding, len) = (frame.encoding, frame.bytes.len() as u32);
                    FetchReply::Piece(PieceHead { slot, index, encoding, len }).encode(&mut head);
                    with.write(&mut stream, &head, DOING).await?;
                    head.clear();
                    with.write(&mut stream, &frame.bytes, DOING).await?;
                    server.counters.served_bytes.fetch_add(len.into(), Ordering::Relaxed);
                    server.counters.served_pieces.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        with.write(&mut stream, &head, DOING).await?;
        if bursts.is_empty() {
            with.flush(&mut stream, DOING).await?;
        }
    }
    let closed = tokio::time::timeout(with.stall, stream.close()).await;
    closed.map_err(|_| with.timed_out(DOING))?.map_err(|error| with.failed(&error, DOING))
}
