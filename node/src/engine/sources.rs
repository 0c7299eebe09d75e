//! The sources of one fetch: a task for each peer, one for upstream's stream, one that looks for
//! peers.

use super::event::Event;
use super::progress::Progress;
use super::{Holder, Inner};
use crate::buffers;
use crate::net::{FetchRequests, NarResponses, Net, PeerError};
use crate::store;
use crate::upstream::{NarinfoReply, UpstreamError, UpstreamNar, Upstreams, ranked_sources_from};
use bytes::{Bytes, BytesMut};
use libp2p::PeerId;
use narswarm_protocol::fetch::{Fault, SourceId};
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::limits;
use narswarm_protocol::narinfo::{UnverifiedNarinfo, VerifiedNarinfo};
use narswarm_protocol::piece::{PieceLayout, PieceList, hash_piece};
use narswarm_protocol::wire::fetch::{Encoding, FetchRequest, FetchResponse, Frame, RefusedReason};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;

/// What the fetch wants of a peer.
#[derive(Debug, Clone, Copy)]
pub enum Order {
    /// The piece list and first pieces.
    Open {
        /// First piece.
        first: u32,
        /// How many.
        count: u32,
    },
    /// Pieces.
    Request {
        /// First piece.
        first: u32,
        /// How many.
        count: u32,
    },
    /// Pieces no more.
    Cancel {
        /// First piece.
        first: u32,
        /// How many.
        count: u32,
    },
}

/// Orders that wait for a peer's session to open or to take them: a window is refilled in a few
/// requests, so this is never full unless the session hangs.
pub const ORDERS: usize = 256;

/// Pieces of one peer that are decoded at once: one a core and some in the queue.
const DECODING: usize = 4;

/// Octets of one permit of [`Room`]: pieces of 1 KiB take no less.
const ROOM_UNIT_BYTES: usize = 1024;

/// Room in memory for the pieces of one fetch between network and sink, however many sources
/// there are. Whoever finds none leaves his pieces to the network, which then slows their sender.
#[derive(Clone)]
pub struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(limits::FETCH_PIPELINE_BYTES / ROOM_UNIT_BYTES)))
    }
}

impl Room {
    /// Waits for room for a piece of `len` octets; one that is larger than all of it waits until
    /// nothing else is on its way.
    async fn take(&self, len: usize) -> OwnedSemaphorePermit {
        let units = len.min(limits::FETCH_PIPELINE_BYTES).div_ceil(ROOM_UNIT_BYTES) as u32;
        let taken = self.0.clone().acquire_many_owned(units.max(1)).await;
        taken.expect("this semaphore is never closed")
    }
}

/// What one peer's task needs.
pub struct PeerTask {
    /// The network.
    pub net: Net,
    /// Whom to talk to.
    pub peer: PeerId,
    /// What the fetch calls it.
    pub id: SourceId,
    /// The nar.
    pub nar_hash: NarHash,
    /// Its layout.
    pub layout: PieceLayout,
    /// Octets that have come so far, whole pieces or not.
    pub moved: Arc<AtomicU64>,
    /// Shared by all sources of the fetch.
    pub room: Room,
}

impl PeerTask {
    /// Talks with the peer until the fetch drops it or it fails.
    pub async fn run(self, orders: mpsc::Receiver<Order>, events: mpsc::Sender<Event>) {
        let id = self.id;
        if let Err(error) = self.converse(orders, &events).await {
            let _ = events.send(Event::PeerLost { id, error }).await;
        }
    }

    async fn converse(
        &self,
        orders: mpsc::Receiver<Order>,
        events: &mpsc::Sender<Event>,
    ) -> Result<(), PeerError> {
        let small = self.layout.nar_size() <= limits::SMALL_NAR_BYTES;
        let (requests, responses) = self.net.open_nar(self.peer, small, &self.moved).await?;
        let (decoding, decoded) = mpsc::channel(DECODING);
        tokio::try_join!(
            self.relay_orders(requests, responses.slot(), orders),
            self.receive(responses, events, decoding),
            forward(self.id, decoded, events),
        )?;
        Ok(())
    }

    async fn relay_orders(
        &self,
        requests: FetchRequests,
        slot: u32,
        mut orders: mpsc::Receiver<Order>,
    ) -> Result<(), PeerError> {
        while let Some(order) = orders.recv().await {
            let request = match order {
                Order::Open { first, count } => FetchRequest::Open {
                    slot,
                    nar_hash: self.nar_hash,
                    nar_size: self.layout.nar_size(),
                    first,
                    count,
                },
                Order::Request { first, count } => FetchRequest::Want { slot, first, count },
                Order::Cancel { first, count } => FetchRequest::Cancel { slot, first, count },
            };
            requests.send(request).await?;
        }
        Ok(())
    }

    async fn receive(
        &self,
        mut responses: NarResponses,
        events: &mpsc::Sender<Event>,
        decoding: mpsc::Sender<(u32, JoinHandle<Option<Decoded>>)>,
    ) -> Result<(), PeerError> {
        let mut list: Option<Arc<PieceList>> = None;
        while let Some(response) = responses.next(&self.moved).await {
            let event = match response? {
                FetchResponse::Opened(opened) => {
                    let shown = Arc::new(opened.list);
                    list = Some(shown.clone());
                    let (root, held, vouchers) = (opened.root, opened.held, opened.vouchers);
                    Event::Opened { id: self.id, root, list: shown, held, vouchers }
                }
                FetchResponse::Begun { index, .. } => Event::Begun { id: self.id, index },
                FetchResponse::Piece { index, frame, .. } => {
                    let Some(list) = list.clone() else {
                        // The network lets no piece through before its list.
                        continue;
                    };
                    let room = self.room.take(self.layout.piece_len(index)).await;
                    let work =
                        tokio::task::spawn_blocking(move || decode(&list, index, frame, room));
                    if decoding.send((index, work)).await.is_err() {
                        return Ok(());
                    }
                    continue;
                }
                FetchResponse::Refused { reason, .. } => {
                    Event::Refused { id: self.id, busy: reason == RefusedReason::Busy }
                }
                FetchResponse::Missing { index, .. } => Event::Missing { id: self.id, index },
                FetchResponse::Have { ranges, .. } => Event::Have { id: self.id, ranges },
            };
            if events.send(event).await.is_err() {
                return Ok(());
            }
        }
        Err(PeerError::Closed { peer: self.peer, doing: "fetching" })
    }
}

/// Hands decoded pieces on, in the order in which they came.
async fn forward(
    id: SourceId,
    mut decoded: mpsc::Receiver<(u32, JoinHandle<Option<Decoded>>)>,
    events: &mpsc::Sender<Event>,
) -> Result<(), PeerError> {
    while let Some((index, work)) = decoded.recv().await {
        let event = match work.await {
            Ok(Some(piece)) => Event::Piece { id, index, piece },
            Ok(None) => Event::BadPiece { id, index },
            // The runtime is going down.
            Err(_) => return Ok(()),
        };
        if events.send(event).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// A piece that matched its piece list.
#[derive(Debug)]
pub struct Decoded {
    /// Its octets.
    pub raw: Bytes,
    /// The zstd frame it came as, if it did.
    pub frame: Option<Bytes>,
    /// Its place in memory.
    pub room: OwnedSemaphorePermit,
}

/// Decodes a frame and checks it against the piece list; blocking.
fn decode(
    list: &PieceList,
    index: u32,
    frame: Frame,
    room: OwnedSemaphorePermit,
) -> Option<Decoded> {
    let piece = match frame.encoding {
        Encoding::Raw => Decoded { raw: frame.bytes, frame: None, room },
        Encoding::Zstd => {
            let mut raw = buffers::take(list.layout().piece_len(index));
            store::decode_frame_into(&frame.bytes, &mut raw).ok()?;
            Decoded { raw: raw.freeze(), frame: Some(frame.bytes), room }
        }
    };
    list.matches(index, &piece.raw).then_some(piece)
}

/// Streams the nar from upstream, piece by piece, from piece `from` on. A server that keeps it
/// uncompressed and knows ranges is asked for no more than that.
pub async fn run_upstream(
    engine: Arc<Inner>,
    narinfo: VerifiedNarinfo,
    from: u32,
    progress: Arc<Progress>,
    moved: Arc<AtomicU64>,
    events: mpsc::Sender<Event>,
) {
    let outcome =
        match open_upstream(&engine, &narinfo, progress.layout().piece_range(from).start).await {
            Ok(Some(nar)) => {
                let cutter = Cutter { engine: &engine, from, progress: &progress, moved: &moved };
                cutter.cut(nar, &events).await
            }
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
    progress.stop_growing();
    let _ = events.send(Event::UpstreamEnded { error: outcome.err() }).await;
}

/// Opens the nar where upstream said that it keeps it when it gave the narinfo; else finds where,
/// by its narinfo there, the servers in turn.
async fn open_upstream(
    engine: &Inner,
    narinfo: &VerifiedNarinfo,
    from: u64,
) -> Result<Option<UpstreamNar>, UpstreamError> {
    let Some(upstreams) = &engine.upstreams else { return Ok(None) };
    let hash = narinfo.item().hash();
    let known = engine.known.get(&hash);
    if let Some(known) = known.filter(|known| known.narinfo.nar_hash() == narinfo.nar_hash())
        && let Some(upstream) = known.upstream
        && let Ok(nar) = open_at(upstreams, upstream, &known.narinfo, from).await
    {
        return Ok(Some(nar));
    }
    let mut last = None;
    let mut turn = 0;
    while turn < upstreams.len() {
        let (upstream, body) = match upstreams.narinfos_from(turn, vec![hash]).next().await {
            Some((_, NarinfoReply::Found { upstream, body })) => (upstream, body),
            Some((_, NarinfoReply::Failed(error))) => return Err(error),
            Some((_, NarinfoReply::NotFound { .. })) | None => break,
        };
        turn = upstream + 1;
        let theirs = UnverifiedNarinfo::parse(&body)
            .ok()
            .and_then(|theirs| theirs.verify(&engine.acl.load()).ok())
            .filter(|theirs| theirs.nar_hash() == narinfo.nar_hash());
        let Some(theirs) = theirs else { continue };
        match open_at(upstreams, upstream, &theirs, from).await {
            Ok(nar) => return Ok(Some(nar)),
            Err(error) => last = error.or(last),
        }
    }
    last.map_or(Ok(None), Err)
}

/// Opens a nar at one server, by one of the URLs in this server's own narinfo. The error is absent
/// when there is no URL that can be used.
async fn open_at(
    upstreams: &Upstreams,
    upstream: usize,
    theirs: &VerifiedNarinfo,
    from: u64,
) -> Result<UpstreamNar, Option<UpstreamError>> {
    let mut last = None;
    let size = theirs.nar_size();
    for source in ranked_sources_from(theirs.sources(), size, from) {
        let mut opened = upstreams.nar_from(upstream, source, size, from).await;
        if from > 0 && matches!(opened, Err(UpstreamError::Status { .. })) {
            // It may be the range that this server can't make sense of.
            opened = upstreams.nar(upstream, source, size).await;
        }
        match opened {
            Ok(nar) => return Ok(nar),
            Err(error) => {
                let elsewhere = error.is_not_here();
                last = Some(error);
                if !elsewhere {
                    break;
                }
            }
        }
    }
    Err(last)
}

/// Cuts upstream's stream into pieces.
struct Cutter<'a> {
    engine: &'a Inner,
    /// The first piece of interest.
    from: u32,
    progress: &'a Progress,
    /// Octets that have come so far.
    moved: &'a AtomicU64,
}

impl Cutter<'_> {
    /// Readers see the octets before a piece is whole.
    async fn cut(
        &self,
        mut nar: UpstreamNar,
        events: &mpsc::Sender<Event>,
    ) -> Result<(), UpstreamError> {
        let layout = self.progress.layout();
        // What was asked for begins with a piece.
        let mut index = layout.piece_at(nar.start());
        let mut piece = BytesMut::new();
        while let Some(chunk) = nar.next().await {
            let mut chunk = chunk?;
            let len = chunk.len() as u64;
            self.engine.metrics.received_from_upstream_bytes.inc_by(len);
            self.moved.fetch_add(len, Ordering::Relaxed);
            while !chunk.is_empty() {
                let missing = layout.piece_len(index) - piece.len();
                let part = chunk.split_to(missing.min(chunk.len()));
                piece.extend_from_slice(&part);
                if index >= self.from {
                    self.progress.grow(index, part);
                }
                if piece.len() < layout.piece_len(index) {
                    continue;
                }
                let raw = piece.split().freeze();
                if index >= self.from {
                    let hash = hash_piece(&raw);
                    if events.send(Event::UpstreamPiece { index, raw, hash }).await.is_err() {
                        return Ok(());
                    }
                }
                index += 1;
            }
        }
        Ok(())
    }
}

/// Looks for peers that hold the item: those who said so lately, those connected, and whoever the
/// DHT names; tells the fetch when it knows nobody else, and looks again from time to time for as
/// long as the fetch takes.
pub async fn discover(engine: Arc<Inner>, narinfo: VerifiedNarinfo, events: mpsc::Sender<Event>) {
    let hash = narinfo.item().hash();
    let known = engine.holders.get(&hash);
    for &holder in known.iter().flat_map(|holders| holders.iter()) {
        if events.send(Event::Peer(holder)).await.is_err() {
            return;
        }
    }
    if known.is_some() && narinfo.nar_size() <= limits::SMALL_NAR_BYTES {
        // It will mostly have come before others could answer, who would all be asked for each of
        // many small nars.
        tokio::time::sleep(limits::FIND_AGAIN_AFTER).await;
    }
    let mut pause = limits::FIND_AGAIN_AFTER;
    loop {
        let mut found = engine.find_holders(hash);
        while let Some(holder) = found.recv().await {
            if events.send(Event::Peer(holder)).await.is_err() {
                return;
            }
        }
        if events.send(Event::DiscoveryDone).await.is_err() {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(limits::FIND_AGAIN_AT_MOST);
    }
}

/// Makes sources of those who ask this node for the same nar, once they have had time to take note
/// of the piece list that they were given.
pub async fn introduce(mut askers: mpsc::Receiver<PeerId>, events: mpsc::Sender<Event>) {
    while let Some(peer) = askers.recv().await {
        tokio::time::sleep(limits::ASKER_PAUSE).await;
        let holder = Holder { peer, root: None, pieces_held: 0 };
        if events.send(Event::Peer(holder)).await.is_err() {
            return;
        }
    }
}

/// Whether a failure with a peer is to be held against it.
pub fn fault_of(error: &PeerError) -> Option<Fault> {
    matches!(error, PeerError::Violation { .. }).then_some(Fault::Protocol)
}
