//! Performs what the fetch machine decides, for one nar: a thin loop that feeds events in and
//! carries actions out.

mod ending;
mod peers;

use super::event::Event;
use super::progress::{Cause, Progress};
use super::sink::{self, SinkEvent, ToSink};
use super::sources::{self, Decoded, Order};
use super::{Inner, announce};
use crate::buffers;
use crate::metrics::{VerificationKind, VerificationLabels};
use crate::store::PartialNar;
use crate::upstream::UpstreamError;
use bytes::Bytes;
use libp2p::PeerId;
use narswarm_protocol::fetch::{Action, Fetch, FetchConfig, SourceId, Time, UpstreamMode};
use narswarm_protocol::hash::{PieceHash, Root};
use narswarm_protocol::limits;
use narswarm_protocol::narinfo::VerifiedNarinfo;
use narswarm_protocol::piece::PieceLayout;
use narswarm_protocol::voucher::Voucher;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

/// Events that wait for the driver: pieces among them, so few.
const EVENTS: usize = 8;

struct Session {
    peer: PeerId,
    orders: mpsc::Sender<Order>,
    moved: Moved,
    _task: AbortOnDropHandle<()>,
}

/// Octets that have come from a source, whole pieces or not.
#[derive(Default)]
struct Moved {
    total: Arc<AtomicU64>,
    seen: u64,
}

impl Moved {
    /// How many have come since it was last asked.
    fn since(&mut self) -> u64 {
        let total = self.total.load(Ordering::Relaxed);
        total - std::mem::replace(&mut self.seen, total)
    }
}

/// The driver of one fetch.
struct Driver {
    engine: Arc<Inner>,
    narinfo: VerifiedNarinfo,
    progress: Arc<Progress>,
    machine: Fetch,
    started: Instant,
    events: mpsc::Sender<Event>,
    sink: mpsc::Sender<ToSink>,
    /// Everyone met, by the number last given to him.
    peers: HashMap<PeerId, SourceId>,
    next_source: u32,
    sessions: HashMap<SourceId, Session>,
    upstream: Option<AbortOnDropHandle<()>>,
    /// Room for pieces on their way from the network to the sink.
    room: sources::Room,
    upstream_moved: Moved,
    upstream_error: Option<UpstreamError>,
    from_peers: bool,
    from_upstream: bool,
    hashed: Option<Vec<PieceHash>>,
    /// A piece that was held can't be read back; nothing can come of this fetch.
    broken: bool,
    disk: Option<Arc<PartialNar>>,
    /// The root of the piece list that readers and askers were last told of.
    list: Option<Root>,
    /// Whether the machine knows that a client has asked for the nar.
    wanted: bool,
}

/// Fetches the nar of `narinfo` into `progress` and, where there is room, into the store.
/// `askers` are peers that ask this node for the same nar.
pub async fn drive(
    engine: Arc<Inner>,
    narinfo: VerifiedNarinfo,
    progress: Arc<Progress>,
    askers: mpsc::Receiver<PeerId>,
) {
    let layout = progress.layout();
    let _memory = Releasing;
    let (disk, resumed) = engine.begin_partial(&narinfo, layout).await;
    match &disk {
        Some(disk) => progress.use_disk(disk.clone()),
        // What is fetched ahead has to be kept somewhere.
        None if !progress.is_wanted() => return,
        None => progress.lose_disk(),
    }
    resumed.keys().for_each(|&index| progress.resume(index));
    let (events, mut incoming) = mpsc::channel(EVENTS);
    let (sink, pieces) = mpsc::channel(sink::QUEUE);
    let (say, mut said) = mpsc::channel(4);
    {
        let (disk, progress, resumed) = (disk.clone(), progress.clone(), resumed.clone());
        tokio::task::spawn_blocking(move || {
            sink::run(layout, disk, &resumed, progress, pieces, &say);
        });
    }
    let wanted = progress.is_wanted();
    let mut config = engine.fetch_config(&narinfo, layout, resumed);
    if !wanted {
        config.mode = UpstreamMode::SwarmOnly;
    }
    let machine = Fetch::new(config, Time::default());
    let discovery = sources::discover(engine.clone(), narinfo.clone(), events.clone());
    let _discovery = AbortOnDropHandle::new(tokio::spawn(discovery));
    let introduction = sources::introduce(askers, events.clone());
    let _introduction = AbortOnDropHandle::new(tokio::spawn(introduction));
    let mut driver = Driver {
        engine,
        narinfo,
        progress,
        machine,
        started: Instant::now(),
        events,
        sink,
        peers: HashMap::new(),
        next_source: 0,
        sessions: HashMap::new(),
        upstream: None,
        room: sources::Room::default(),
        upstream_moved: Moved::default(),
        upstream_error: None,
        from_peers: false,
        from_upstream: false,
        hashed: None,
        broken: false,
        disk,
        list: None,
        wanted,
    };
    loop {
        while let Some(action) = driver.machine.poll_action() {
            if driver.perform(action).await {
                return;
            }
        }
        if driver.broken {
            driver.progress.fail(Cause::Local);
            return;
        }
        driver.report();
        let wake = driver.wake();
        tokio::select! {
            biased;
            Some(said) = said.recv() => driver.handle_sink(said),
            Some(event) = incoming.recv() => driver.handle(event).await,
            () = driver.progress.wanted(), if !driver.wanted => driver.join_upstream(),
            () = driver.progress.readers_moved(), if driver.disk.is_none() => driver.follow_readers(),
            () = tokio::time::sleep_until(wake.into()) => driver.handle_timeout(),
        }
    }
}

/// Gives the memory of pieces back when a fetch ends; others that are running begin to gather
/// buffers anew.
struct Releasing;

impl Drop for Releasing {
    fn drop(&mut self) {
        buffers::release();
    }
}

impl Inner {
    fn fetch_config(
        &self,
        narinfo: &VerifiedNarinfo,
        layout: PieceLayout,
        resumed: BTreeMap<u32, PieceHash>,
    ) -> FetchConfig {
        let nar_hash = narinfo.nar_hash();
        FetchConfig {
            nar_hash,
            layout,
            mode: self.config.upstream_mode,
            upstream: self.upstreams.is_some() && !self.bad_upstream.contains_key(&nar_hash),
            upstream_rate: *self.upstream_rate.lock(),
            condemned: self.condemned(&nar_hash),
            believed: Vec::new(),
            resumed,
            seed: self.seed,
        }
    }
}

/// How often bytes within pieces are looked at, so that a slow peer isn't taken for a frozen one:
/// several times within the time after which it would be.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

impl Driver {
    fn now(&self) -> Time {
        Time(self.started.elapsed())
    }

    fn sources(&self) -> usize {
        self.machine.active_peers() + usize::from(self.upstream.is_some())
    }

    fn wake(&self) -> Instant {
        let soon = Instant::now() + PROGRESS_EVERY;
        match self.machine.poll_timeout(self.now()) {
            Some(at) => (self.started + at.0).min(soon),
            None => soon,
        }
    }

    /// Lets readers and askers know what has changed.
    fn report(&mut self) {
        self.progress.set_sources(self.sources());
        let list = self.machine.list().map(|(root, list)| (root, list.clone()));
        let root = list.as_ref().map(|(root, _)| *root);
        if root != self.list {
            if root.is_some() && self.list.is_none() {
                self.announce_early();
            }
            self.list = root;
            self.progress.set_list(list);
        }
        self.progress.set_may_deliver(self.machine.may_deliver(self.now()));
    }

    /// Lets others find this node while it fetches, if that takes long enough.
    fn announce_early(&self) {
        // Its narinfo may not be kept yet, by which it is seen later what nobody may know of.
        let may_be_known = self.engine.config.policy.allows_cached(self.narinfo.item());
        let is_long = self.progress.layout().nar_size() >= limits::ANNOUNCE_EARLY_BYTES;
        if is_long && may_be_known {
            let (engine, item) = (self.engine.clone(), self.narinfo.item().hash());
            tokio::spawn(async move { announce::announce(&engine, &[item]).await });
        }
    }

    fn handle_timeout(&mut self) {
        let now = self.now();
        for (&id, session) in &mut self.sessions {
            self.machine.handle_progress(id, session.moved.since(), now);
        }
        self.note_upstream(now);
        if self.machine.poll_timeout(now).is_some_and(|at| at <= now) {
            self.machine.handle_timeout(now);
        }
    }

    /// A client has asked for what was fetched ahead.
    fn join_upstream(&mut self) {
        self.wanted = true;
        self.machine.handle_mode(self.engine.config.upstream_mode, self.now());
    }

    fn note_upstream(&mut self, now: Time) {
        let moved = self.upstream_moved.since();
        if moved > 0 {
            self.machine.handle_upstream_progress(moved, now);
        }
    }

    fn follow_readers(&mut self) {
        if let Some((reader, ahead)) = self.progress.horizon() {
            self.machine.handle_horizon(reader, ahead, self.now());
        }
    }

    async fn handle(&mut self, event: Event) {
        let now = self.now();
        self.machine.handle_reader(self.progress.reader(), now);
        match event {
            Event::Peer(holder) => self.meet(&holder),
            Event::DiscoveryDone => self.machine.handle_discovery_done(now),
            Event::Opened { id, root, list, held, vouchers } => {
                self.heed(root, &vouchers);
                self.machine.handle_opened(id, root, list, held, now);
            }
            Event::Have { id, ranges } => self.machine.handle_have(id, &ranges, now),
            Event::Begun { id, index } => self.machine.handle_begun(id, index, now),
            Event::Piece { id, index, piece } => self.take(id, index, piece).await,
            Event::BadPiece { id, index } => {
                self.count(VerificationKind::Piece);
                self.machine.handle_bad_piece(id, index, now);
            }
            Event::Missing { id, index } => self.machine.handle_missing(id, index, now),
            Event::Refused { id, busy } => self.machine.handle_refused(id, busy, now),
            Event::PeerLost { id, error } => {
                if let Some(session) = self.sessions.get(&id) {
                    debug!(peer = %session.peer, item = %self.narinfo.item(), "lost a source: {error}");
                }
                match sources::fault_of(&error) {
                    None => self.broken(id),
                    fault => self.machine.handle_source_lost(id, fault, now),
                }
            }
            Event::UpstreamPiece { index, raw, hash } => {
                self.take_from_upstream(index, raw, hash).await;
            }
            Event::UpstreamEnded { error } => {
                if let Some(error) = error {
                    info!(item = %self.narinfo.item(), "upstream: {error}");
                    self.upstream_error = Some(error);
                }
                self.upstream = None;
                self.machine.handle_upstream_ended(now);
            }
        }
    }

    /// Somebody believed may vouch for the root that a peer has shown.
    fn heed(&mut self, root: Root, vouchers: &[Voucher]) {
        let heeded = self.engine.vouching.heed(&self.narinfo.nar_hash(), root, vouchers);
        (0..heeded.invalid).for_each(|_| self.count(VerificationKind::Voucher));
        if heeded.is_vouched {
            self.machine.handle_voucher(root, self.now());
        }
    }

    /// The piece list of this root led to another nar.
    fn condemn(&self, root: Root) {
        let nar_hash = self.narinfo.nar_hash();
        self.engine.condemn(nar_hash, root, true);
        for key in self.engine.vouching.condemn(&nar_hash, root) {
            warn!(item = %self.narinfo.item(), ?key, "a false piece list was vouched for; this voucher key is not believed for an hour");
        }
    }

    async fn take(&mut self, id: SourceId, index: u32, piece: Decoded) {
        let len = piece.frame.as_ref().map_or(piece.raw.len(), Bytes::len);
        self.engine.metrics.received_from_peers_bytes.inc_by(len as u64);
        // A source that was dropped in the meantime has nothing to say.
        let known = self.sessions.contains_key(&id);
        if known && self.machine.handle_piece(id, index, self.now()) {
            self.from_peers = true;
            let Decoded { raw, frame, room } = piece;
            self.pass_on(sink::Piece { index, raw, frame, _room: Some(room) }).await;
        } else {
            self.engine.metrics.unneeded_from_peers_bytes.inc_by(len as u64);
        }
    }

    async fn take_from_upstream(&mut self, index: u32, raw: Bytes, hash: PieceHash) {
        let now = self.now();
        self.note_upstream(now);
        if self.machine.handle_upstream_piece(index, hash, now) {
            self.from_upstream = true;
            self.pass_on(sink::Piece { index, raw, frame: None, _room: None }).await;
        }
    }

    /// To readers first, then to disk and into the hash; waiting for the sink is what keeps the
    /// sources from running ahead of it.
    async fn pass_on(&mut self, piece: sink::Piece) {
        self.progress.insert(piece.index, piece.raw.clone());
        if self.sink.send(ToSink::Piece(piece)).await.is_err() {
            debug!("the sink has ended");
        }
    }

    fn handle_sink(&mut self, said: SinkEvent) {
        match said {
            SinkEvent::DiskLost(error) => {
                warn!(item = %self.narinfo.item(), "this nar won't be kept: {error}");
                self.disk = None;
                self.follow_readers();
            }
            SinkEvent::Broken(error) => {
                warn!(item = %self.narinfo.item(), "{error}");
                self.broken = true;
            }
            SinkEvent::Hashed { nar_hash, pieces } => {
                self.hashed = Some(pieces);
                let now = self.now();
                self.machine.handle_nar_hash(&nar_hash, now);
            }
        }
    }

    /// Carries an action out; says whether the fetch has ended.
    async fn perform(&mut self, action: Action) -> bool {
        match action {
            Action::Open { source, first, count } => {
                self.open(source);
                self.order(source, Order::Open { first, count });
            }
            Action::Request { source, first, count } => {
                self.order(source, Order::Request { first, count });
            }
            Action::Cancel { source, first, count } => {
                self.order(source, Order::Cancel { first, count });
            }
            Action::Drop { source, fault } => self.drop_source(source, fault),
            Action::Discard { index } => {
                self.progress.forget(index);
                if self.sink.send(ToSink::Discard(index)).await.is_err() {
                    debug!("the sink has ended");
                }
            }
            Action::Condemn { root } => {
                self.count(VerificationKind::Nar);
                self.condemn(root);
            }
            Action::StartUpstream { from } => {
                let task = sources::run_upstream(
                    self.engine.clone(),
                    self.narinfo.clone(),
                    from,
                    self.progress.clone(),
                    self.upstream_moved.total.clone(),
                    self.events.clone(),
                );
                self.upstream = Some(AbortOnDropHandle::new(tokio::spawn(task)));
            }
            Action::StopUpstream => self.upstream = None,
            Action::Done => {
                self.done().await;
                return true;
            }
            Action::Failed(failure) => {
                self.failed(failure);
                return true;
            }
        }
        false
    }

    fn count(&self, kind: VerificationKind) {
        let labels = VerificationLabels { kind };
        self.engine.metrics.verification_failures.get_or_create(&labels).inc();
    }
}
