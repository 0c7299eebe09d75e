//! Fetching pieces from a peer: the asker's side of `/narswarm/fetch/1`.
//!
//! A session is two halves. [`FetchRequests`] sends, [`FetchResponses`] receives; both keep the
//! `Ledger` of what is open and asked for, against which every answer is checked before memory
//! is set aside for it. Dropping the responses ends the session; dropping the requests ends it
//! once everything asked for has come. [`NarResponses`] are those for one nar, in a session of its
//! own or in one that is `shared` with other small nars.

mod ledger;
mod shared;

pub use shared::SharedSessions;

use super::config::NetTiming;
use super::counters::NetCounters;
use super::error::PeerError;
use super::messages::Conversation;
use super::streams::{Control, PeerStream, Protocol};
use crate::buffers;
use crate::rate::DownloadLimit;
use bytes::Bytes;
use futures::AsyncReadExt;
use futures::io::{ReadHalf, WriteHalf};
use ledger::{Delivery, Ledger};
use libp2p::PeerId;
use narswarm_protocol::wire::fetch::{FetchReply, FetchRequest, FetchResponse, Frame, PieceHead};
use narswarm_protocol::wire::{HEADER_BYTES, Message};
use parking_lot::Mutex;
use shared::SlotResponses;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;

/// What is being done, in errors.
const DOING: &str = "fetching";

/// Requests that may wait to be written; each is a few dozen octets, and whoever sends more than
/// the peer reads should wait.
const QUEUED_REQUESTS: usize = 64;

/// What both halves share.
struct Session {
    with: Conversation,
    ledger: Mutex<Ledger>,
    /// Set when nothing more will be asked, and rung then.
    ended: AtomicBool,
    bell: Notify,
    counters: Arc<NetCounters>,
    download: DownloadLimit,
}

/// The half of a fetch session that asks. Clones ask in the same session.
#[derive(Clone)]
pub struct FetchRequests {
    session: Arc<Session>,
    queue: mpsc::Sender<FetchRequest>,
}

/// The half of a fetch session that is answered.
pub struct FetchResponses {
    session: Arc<Session>,
    stream: ReadHalf<PeerStream>,
    writer: AbortHandle,
    /// Octets of pieces that have come, whole pieces or not.
    received: Arc<AtomicU64>,
    /// Whether it is told that a piece begins to come.
    tells_of_begun: bool,
    /// A piece of which that has been told, and whose octets come next.
    begun: Option<(PieceHead, Delivery)>,
    over: bool,
}

/// The answers that concern one nar.
pub enum NarResponses {
    /// In a session of its own.
    Own(FetchResponses),
    /// In a session that it shares with others.
    Shared(SlotResponses),
}

impl NarResponses {
    /// A session of its own has one nar, so any number will do.
    const OWN_SLOT: u32 = 1;

    /// The number by which requests shall call the nar.
    #[must_use]
    pub fn slot(&self) -> u32 {
        match self {
            Self::Own(_) => Self::OWN_SLOT,
            Self::Shared(responses) => responses.slot(),
        }
    }

    /// The next answer, as [`FetchResponses::next`]. Octets that come meanwhile are counted into
    /// `received`, so that a piece on a slow line shows as progress before it is whole.
    pub async fn next(&mut self, received: &AtomicU64) -> Option<Result<FetchResponse, PeerError>> {
        match self {
            Self::Own(responses) => responses.next().await,
            Self::Shared(responses) => responses.next(received).await,
        }
    }
}

/// See [`super::Net::open_fetch`].
pub async fn open(
    control: &Control,
    timing: &NetTiming,
    counters: &Arc<NetCounters>,
    download: &DownloadLimit,
    peer: PeerId,
) -> Result<(FetchRequests, FetchResponses), PeerError> {
    let stream = control.open(peer, Protocol::Fetch, timing.open).await?;
    let with = Conversation { peer, protocol: Protocol::Fetch.name(), stall: timing.stall };
    let ledger = Mutex::new(Ledger::default());
    let session = Session {
        with,
        ledger,
        ended: AtomicBool::new(false),
        bell: Notify::new(),
        counters: counters.clone(),
        download: download.clone(),
    };
    let session = Arc::new(session);
    let (read, write) = stream.split();
    let (queue, requests) = mpsc::channel(QUEUED_REQUESTS);
    let writer = tokio::spawn(write_requests(session.clone(), write, requests)).abort_handle();
    let responses = FetchResponses {
        session: session.clone(),
        stream: read,
        writer,
        received: Arc::default(),
        tells_of_begun: false,
        begun: None,
        over: false,
    };
    Ok((FetchRequests { session, queue }, responses))
}

/// Writes what is queued, as much as there is in one go.
async fn write_requests(
    session: Arc<Session>,
    mut stream: WriteHalf<PeerStream>,
    mut requests: mpsc::Receiver<FetchRequest>,
) {
    let mut octets = Vec::new();
    while let Some(request) = requests.recv().await {
        octets.clear();
        request.encode(&mut octets);
        while let Ok(request) = requests.try_recv() {
            request.encode(&mut octets);
        }
        let written = async {
            session.with.write(&mut stream, &octets, DOING).await?;
            session.with.flush(&mut stream, DOING).await
        };
        if let Err(error) = written.await {
            tracing::debug!(%error, "requests not sent");
            // The reading half finds the stream unusable and tells.
            return;
        }
    }
    // Not closed: dropping an open stream resets it, and the peer stops at once.
    session.ended.store(true, Ordering::Release);
    session.bell.notify_one();
}

impl FetchRequests {
    /// The peer asked.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.session.with.peer
    }

    /// How many pieces are asked for and neither answered nor cancelled.
    #[must_use]
    pub fn wanted(&self) -> u32 {
        self.session.ledger.lock().wanted()
    }

    /// Sends a request; it is on its way soon, together with what else is sent at the time.
    ///
    /// # Errors
    /// [`PeerError::Local`] for what this side may not ask: a slot twice, a piece twice at a time
    /// or past the end, more than [`MAX_WANTED_PIECES`] pieces or [`MAX_FETCH_SLOTS`] nars; the
    /// request is then not sent and the session goes on. [`PeerError::Closed`] when the session
    /// is over. A request for a slot that was refused meanwhile is dropped silently.
    ///
    /// [`MAX_WANTED_PIECES`]: narswarm_protocol::limits::MAX_WANTED_PIECES
    /// [`MAX_FETCH_SLOTS`]: narswarm_protocol::limits::MAX_FETCH_SLOTS
    pub async fn send(&self, request: FetchRequest) -> Result<(), PeerError> {
        let peer = self.peer();
        let closed = PeerError::Closed { peer, doing: DOING };
        // Room first, so that what the ledger says is asked for is asked for.
        let room = self.queue.reserve().await.map_err(|_| closed)?;
        let noted = self.session.ledger.lock().request(&request, Instant::now());
        if noted.map_err(|reason| PeerError::Local { peer, reason })? {
            room.send(request);
        }
        Ok(())
    }

    /// As [`FetchRequests::send`], without waiting and without caring what comes of it.
    fn send_soon(&self, request: FetchRequest) {
        match self.queue.try_reserve() {
            Ok(room) => {
                if self.session.ledger.lock().request(&request, Instant::now()) == Ok(true) {
                    room.send(request);
                }
            }
            Err(mpsc::error::TrySendError::Full(())) => {
                let requests = self.clone();
                tokio::spawn(async move { requests.send(request).await });
            }
            Err(mpsc::error::TrySendError::Closed(())) => {}
        }
    }
}

impl FetchResponses {
    /// The peer asked.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.session.with.peer
    }

    /// Counts the octets of pieces into `received` as they come, so that a piece on a slow line
    /// shows as progress before it is whole.
    #[must_use]
    pub fn counting(mut self, received: Arc<AtomicU64>) -> Self {
        self.received = received;
        self
    }

    /// Tells of each piece that it begins to come, before it is there.
    #[must_use]
    pub fn telling_of_begun(mut self) -> Self {
        self.tells_of_begun = true;
        self
    }

    /// The next answer; `None` when the session is over and nothing is owed any more, and after
    /// an error. Must not be dropped while it waits, other than together with the session.
    ///
    /// # Errors
    /// [`PeerError::Violation`] for anything not asked for or beyond its bounds,
    /// [`PeerError::TimedOut`] when something is owed and nothing comes, [`PeerError::Closed`],
    /// and [`PeerError::Refused`] from a peer that doesn't speak this protocol.
    pub async fn next(&mut self) -> Option<Result<FetchResponse, PeerError>> {
        if self.over {
            return None;
        }
        let response = self.read_next().await.transpose();
        self.over = !matches!(response, Some(Ok(_)));
        response
    }

    async fn read_next(&mut self) -> Result<Option<FetchResponse>, PeerError> {
        loop {
            if let Some((head, delivery)) = self.begun.take() {
                let bytes = self.read_payload(head).await?;
                if delivery == Delivery::Deliver {
                    let PieceHead { slot, index, encoding, .. } = head;
                    let frame = Frame { encoding, bytes };
                    return Ok(Some(FetchResponse::Piece { slot, index, frame }));
                }
                continue;
            }
            let Some(reply) = self.read_reply().await? else {
                if self.session.ledger.lock().owes() {
                    return Err(PeerError::Closed { peer: self.peer(), doing: DOING });
                }
                return Ok(None);
            };
            let delivery = self.session.ledger.lock().reply(&reply, Instant::now());
            let delivery = delivery.map_err(|fault| self.session.with.violation(fault))?;
            if let FetchReply::Piece(head) = reply {
                self.begun = Some((head, delivery));
                if self.tells_of_begun && delivery == Delivery::Deliver {
                    let PieceHead { slot, index, .. } = head;
                    return Ok(Some(FetchResponse::Begun { slot, index }));
                }
            } else if delivery == Delivery::Deliver {
                return Ok(Some(without_payload(reply)));
            }
        }
    }

    /// Reads the next message. While nothing is owed it may take any time.
    async fn read_reply(&mut self) -> Result<Option<FetchReply>, PeerError> {
        let with = self.session.with;
        let mut header = [0; HEADER_BYTES];
        let read = loop {
            if self.session.ended.load(Ordering::Acquire) && !self.session.ledger.lock().owes() {
                return Ok(None);
            }
            tokio::select! {
                biased;
                read = self.stream.read(&mut header) => {
                    break read.map_err(|error| with.failed(&error, DOING))?;
                }
                () = self.session.bell.notified() => {}
                () = tokio::time::sleep(with.stall) => {
                    if self.session.ledger.lock().overdue(Instant::now(), with.stall) {
                        return Err(with.timed_out(DOING));
                    }
                }
            }
        };
        if read == 0 {
            return Ok(None);
        }
        with.rest(&mut self.stream, header, read, DOING).await.map(Some)
    }

    /// Reads a piece's octets, whose number the ledger has found to be possible.
    async fn read_payload(&mut self, head: PieceHead) -> Result<Bytes, PeerError> {
        let mut octets = buffers::take(head.len as usize);
        let received = |count| {
            self.received.fetch_add(count, Ordering::Relaxed);
        };
        let with = self.session.with;
        let download = &self.session.download;
        for portion in octets.chunks_mut(download.portion()) {
            with.read_counted(&mut self.stream, portion, received, DOING).await?;
            download.take(portion.len()).await;
        }
        self.session.counters.fetched_bytes.fetch_add(u64::from(head.len), Ordering::Relaxed);
        Ok(octets.freeze())
    }
}

impl Drop for FetchResponses {
    fn drop(&mut self) {
        // With both halves gone the stream is reset, and the peer stops.
        self.writer.abort();
    }
}

/// A reply that no octets follow.
fn without_payload(reply: FetchReply) -> FetchResponse {
    match reply {
        FetchReply::Opened(opened) => FetchResponse::Opened(opened),
        FetchReply::Refused { slot, reason } => FetchResponse::Refused { slot, reason },
        FetchReply::Missing { slot, index } => FetchResponse::Missing { slot, index },
        FetchReply::Have { slot, ranges } => FetchResponse::Have { slot, ranges },
        FetchReply::Piece(PieceHead { slot, index, encoding, .. }) => {
            let frame = Frame { encoding, bytes: Bytes::new() };
            FetchResponse::Piece { slot, index, frame }
        }
    }
}
