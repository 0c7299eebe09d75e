//! Giving pieces: one session of `/narswarm/fetch/1`.
//!
//! Three loops run side by side in one task. One takes requests, one reads what is granted in
//! bursts on a blocking thread, a little ahead, one writes it ([`super::write`]). Which piece is
//! granted when is decided for all sessions together, in [`super::giving`]. What was cancelled is
//! dropped even when it has been read; an asker that stops reading loses the session.

use super::giving::{Asker, Mailbox};
use super::queue::{Job, News, OpenNar};
use super::write::{Content, Outgoing, write_bursts};
use super::{Server, call};
use crate::net::error::PeerError;
use crate::net::messages::Conversation;
use crate::net::responder::{Responder, ServedNar};
use crate::net::streams::PeerStream;
use futures::AsyncReadExt;
use futures::io::ReadHalf;
use narswarm_protocol::fetch::Time;
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::limits::{FETCH_BURST_BYTES, FETCH_BURSTS_AHEAD};
use narswarm_protocol::piece::PieceLayout;
use narswarm_protocol::piece_set::PieceSet;
use narswarm_protocol::upload::Packing;
use narswarm_protocol::wire::HEADER_BYTES;
use narswarm_protocol::wire::fetch::{
    Encoding, FetchReply, FetchRequest, Frame, Opened, RefusedReason,
};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// What is being done, in errors.
pub const DOING: &str = "being given pieces";

/// How often an asker is told what has become available: often enough for a flash crowd, at
/// most ten small messages a second.
const AVAILABILITY_INTERVAL: Duration = Duration::from_millis(100);

/// What the three loops share.
pub struct Session {
    pub with: Conversation,
    pub mailbox: Arc<Mailbox>,
    pub asker: Asker,
    /// Whether what lies uncompressed is compressed for this asker's line.
    packing: Mutex<Packing>,
    began: Instant,
}

impl Session {
    /// The network has taken so many octets.
    pub fn taken(&self, bytes: u64) {
        self.packing.lock().handle_taken(bytes, Time(self.began.elapsed()));
    }

    /// A piece as it is to travel.
    fn pack(&self, responder: &dyn Responder, slot: u32, frame: Frame) -> Frame {
        if frame.encoding != Encoding::Raw || !self.packing.lock().poll_pack(slot) {
            return frame;
        }
        let began = Instant::now();
        let packed = responder.compress(&frame.bytes);
        let (from, to) = (frame.bytes.len(), packed.len());
        self.packing.lock().handle_packed(slot, from as u64, to as u64, began.elapsed());
        if to < from { Frame { encoding: Encoding::Zstd, bytes: packed.into() } } else { frame }
    }
}

/// Serves one session until the asker ends it.
pub async fn serve(
    server: &Server,
    with: Conversation,
    stream: PeerStream,
) -> Result<(), PeerError> {
    let mailbox = Arc::<Mailbox>::default();
    let asker = server.giving.join(mailbox.clone());
    let (packing, began) = (Mutex::new(Packing::new(Time::default())), Instant::now());
    let session = Arc::new(Session { with, mailbox, asker, packing, began });
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
    let (with, mailbox) = (session.with, &session.mailbox);
    loop {
        let mut header = [0; HEADER_BYTES];
        let read = match tokio::time::timeout(idle, stream.read(&mut header)).await {
            Ok(read) => read.map_err(|error| with.failed(&error, DOING))?,
            Err(_) if mailbox.queue.lock().is_idle() => 0,
            Err(_) => continue,
        };
        if read == 0 {
            mailbox.queue.lock().ended = true;
            mailbox.bell.notify_one();
            return Ok(());
        }
        let request: FetchRequest = with.rest(&mut stream, header, read, DOING).await?;
        let taken = mailbox.queue.lock().take(request);
        match taken.map_err(|fault| with.violation(fault))? {
            None => {}
            Some(News::Want { number, runs }) => session.asker.want(number, &runs),
            Some(News::Cancel { number, first, count }) => {
                session.asker.cancel(number, first, count);
            }
            Some(News::Close { number }) => session.asker.release(number),
        }
        mailbox.bell.notify_one();
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
        if !wait_for_work(&session.mailbox, &mut looked).await {
            return Ok(());
        }
        let (session, responder) = (session.clone(), server.responder.clone());
        let burst = call(&server.calls, move || read_burst(&session, &*responder)).await;
        room.send(burst.ok_or(closed)?);
    }
}

/// Waits until there is a job; `false` when there never will be one. While nars are incomplete
/// here, looks now and then what has come.
async fn wait_for_work(mailbox: &Mailbox, looked: &mut Instant) -> bool {
    loop {
        let may_grow = {
            let mut queue = mailbox.queue.lock();
            let may_grow = queue.may_grow() && !queue.ended;
            if may_grow && looked.elapsed() >= AVAILABILITY_INTERVAL {
                *looked = Instant::now();
                queue.tell_growth();
            }
            if !queue.is_empty() {
                return true;
            }
            if queue.ended && queue.is_idle() {
                return false;
            }
            may_grow
        };
        if may_grow {
            // Rung or not, the queue is looked at again.
            let _ = tokio::time::timeout(AVAILABILITY_INTERVAL, mailbox.bell.notified()).await;
        } else {
            mailbox.bell.notified().await;
        }
    }
}

/// Does jobs until a burst is full or nothing is left to do. Runs on a blocking thread.
fn read_burst(session: &Session, responder: &dyn Responder) -> Vec<Outgoing> {
    let (mut burst, mut octets) = (Vec::new(), 0);
    while octets < FETCH_BURST_BYTES {
        let job = session.mailbox.queue.lock().next();
        match job {
            None => break,
            Some(Job::Open { slot, nar_hash, layout }) => {
                open(session, responder, slot, nar_hash, layout, &mut burst);
            }
            Some(Job::Have { slot }) => burst.extend(have(session, slot).map(Outgoing::Reply)),
            Some(Job::StillHere { slot }) => {
                burst.push(Outgoing::Reply(FetchReply::Have { slot, ranges: Vec::new() }));
            }
            Some(Job::Skip) => burst.push(Outgoing::Granted(Content::Nothing)),
            Some(Job::Piece { slot, index, nar }) => {
                let frame = piece(&*nar, index);
                let frame = frame.map(|frame| session.pack(responder, slot, frame));
                octets += frame.as_ref().map_or(0, |frame| frame.bytes.len());
                burst.push(Outgoing::Granted(Content::Piece { slot, index, frame }));
            }
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

/// Opens a nar for the asker, or says why not. The answer is in the burst before the first piece
/// can be granted.
fn open(
    session: &Session,
    responder: &dyn Responder,
    slot: u32,
    nar_hash: NarHash,
    layout: PieceLayout,
    burst: &mut Vec<Outgoing>,
) {
    let queue = &session.mailbox.queue;
    let mut refuse = |reason| {
        queue.lock().forget(slot);
        burst.push(Outgoing::Reply(FetchReply::Refused { slot, reason }));
    };
    let Some(nar) = responder.open(session.with.peer, &nar_hash) else {
        return refuse(RefusedReason::NotHeld);
    };
    let list = nar.list().clone();
    if list.layout() != layout {
        return refuse(RefusedReason::SizeDiffers);
    }
    let (root, held) = (nar.root(), nar.held());
    let told = held.clone();
    let vouchers = nar.vouchers();
    let opened = Opened { slot, root, list, held, vouchers };
    burst.push(Outgoing::Reply(FetchReply::Opened(opened)));
    let again = queue.lock().has_open(&nar_hash);
    let open = OpenNar { nar, told };
    let number = session.asker.number(nar_hash, layout, again);
    let wanted = queue.lock().opened(slot, &nar_hash, number, open);
    match wanted {
        Some(runs) => session.asker.want(number, &runs),
        None => session.asker.release(number),
    }
}

/// What has become available of a nar since the asker was last told.
fn have(session: &Session, slot: u32) -> Option<FetchReply> {
    let OpenNar { nar, told } = session.mailbox.queue.lock().nar(slot)?;
    let held: PieceSet = nar.held();
    let ranges = held.ranges_beyond(&told);
    session.mailbox.queue.lock().told(slot, held);
    (!ranges.is_empty()).then_some(FetchReply::Have { slot, ranges })
}
