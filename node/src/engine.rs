//! The node's middle: it alone knows the network, the store, the upstreams and HTTP, and joins
//! them by the decisions of `narswarm_protocol`.
//!
//! - `resolve`: from store hashes to signed narinfos;
//! - `fetches`, `fetch`, `event`, `sources`, `sink`, `progress`: from a narinfo to its nar;
//! - `ahead`: small nars that are fetched before they are asked for;
//! - `body`, `files`: nars, and files out of them, on their way to HTTP clients;
//! - `serve`: what other peers get;
//! - `shared`: what others can learn, told to the owner;
//! - `vouch`: whose word for a piece list counts;
//! - `announce`: what is told to the DHT; `seeds`: who holds most of what a farm has; `own_filter`:
//!   what others know beforehand of what a seed holds;
//! - `own_store`: what the system's store asks of the rest;
//! - [`neighbours`]: who else knows hardly anybody; [`mirror`]: taking in static mirrors.

mod ahead;
mod announce;
mod body;
mod event;
mod fetch;
mod fetches;
mod files;
pub mod mirror;
pub mod neighbours;
mod own_filter;
mod own_store;
mod progress;
mod resolve;
mod seeds;
mod serve;
mod shared;
mod sink;
mod sources;
mod vouch;

pub use announce::announce_at_start;
pub use own_filter::publish_filter;
pub use seeds::follow_seeds;
pub use shared::{NarPlace, SharedEntry};

use crate::config::{Role, Share};
use crate::http::{
    AclStatus, Backend, ByteCounts, FetchStatus, ItemCounts, NarForm, NarRefusal, NarReply,
    NarWant, NarinfoAnswer, PeerCounts, RequestCounts, StatusReport,
};
use crate::metrics::Metrics;
use crate::net::{Held, Net, NetEvent, operator_of};
use crate::store::{FilterFiles, KeptFile, Store};
use crate::system_store::{Policy, SystemStore};
use crate::upstream::Upstreams;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use fetches::Fetching;
use futures::future::BoxFuture;
use libp2p::PeerId;
use moka::sync::Cache;
use narswarm_protocol::acl::Acl;
use narswarm_protocol::fetch::{PeerHint, UpstreamMode};
use narswarm_protocol::hash::{NarHash, Root};
use narswarm_protocol::limits;
use narswarm_protocol::piece::PieceLayout;
use narswarm_protocol::store_path::{ItemName, StoreHash};
use narswarm_protocol::voucher::{VoucherKey, VoucherSigner};
use parking_lot::Mutex;
use resolve::{Known, Pending};
use serve::Publicity;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use tokio::sync::{Notify, broadcast, watch};
use tracing::{debug, info, warn};
use vouch::Vouching;

/// How the engine behaves.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// What the node is for.
    pub role: Role,
    /// How swarm and upstream share the work.
    pub upstream_mode: UpstreamMode,
    /// What others may know and get.
    pub share: Share,
    /// Names of items that are not given to others.
    pub policy: Policy,
    /// The store that substitutes are for, without a trailing slash.
    pub store_dir: String,
    /// Whether this node has been told of peers to enter the swarm by: if so, it is worth waiting
    /// for the first of them.
    pub expects_peers: bool,
    /// Vouches for what this node has hashed.
    pub voucher_signer: VoucherSigner,
    /// Whose vouchers are believed.
    pub voucher_keys: Vec<VoucherKey>,
    /// Where filters of seeds are kept.
    pub filters: FilterFiles,
    /// Where this node's own are, if it is a seed.
    pub own_filters: KeptFile,
}

/// The node's middle. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

/// Somebody who said that they hold an item's nar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holder {
    peer: PeerId,
    root: Option<Root>,
    /// How many pieces it said to hold; fewer than all while it is fetching itself.
    pieces_held: u32,
}

impl Holder {
    fn new(peer: PeerId, held: &Held) -> Self {
        Self { peer, root: held.root, pieces_held: held.pieces_held }
    }
}

/// A piece list that isn't used for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Condemned {
    root: Root,
    /// Whether a whole nar that matched it had another hash than the signed one. If not, upstream
    /// has spoken against it, and may have been wrong.
    proven: bool,
}

struct Inner {
    config: EngineConfig,
    store: Arc<Store>,
    upstreams: Option<Upstreams>,
    net: OnceLock<Net>,
    own_store: OnceLock<SystemStore>,
    /// Whose signatures are believed. What was believed under another one counts no longer, see
    /// `Known` and `Publicity`.
    acl: ArcSwap<Acl>,
    /// Why the files with the keys can't be used as they are now.
    acl_problem: Mutex<Option<String>>,
    metrics: Arc<Metrics>,
    started: Instant,
    http: OnceLock<SocketAddr>,
    /// Changes when another peer can be asked.
    peers_changed: watch::Sender<()>,
    /// Narinfos ready to be served.
    known: Cache<StoreHash, Arc<Known>>,
    /// Hashes that nobody had a moment ago.
    misses: Cache<StoreHash, ()>,
    pending: Mutex<HashMap<StoreHash, Pending>>,
    holders: Cache<StoreHash, Arc<Vec<Holder>>>,
    /// Items about which peers were asked although their narinfos are at hand.
    asked_about: Cache<StoreHash, ()>,
    ahead: ahead::Ahead,
    fetches: Mutex<HashMap<NarHash, Fetching>>,
    /// Told when a fetch has ended and left its place to another.
    place_left: Notify,
    /// Roots that led to another nar than the signed one, or are suspected of it.
    condemned: Cache<NarHash, Vec<Condemned>>,
    /// Nars of which guix gets only a wholly verified copy, since one attempt went wrong.
    distrusted: Cache<NarHash, ()>,
    /// Nars that upstream gives with another hash than the signed one.
    bad_upstream: Cache<NarHash, ()>,
    banned: Cache<PeerId, ()>,
    seeds: seeds::Seeds,
    own_filter: own_filter::OwnFilter,
    /// Whether some narinfo of a nar is signed by a key of the ACL as it is now.
    public: Cache<NarHash, Publicity>,
    /// Octets of nar a second that upstream gave lately.
    upstream_rate: Mutex<Option<f64>>,
    vouching: Vouching,
    /// Breaks ties in fetches, differently on each node.
    seed: u64,
    /// A store hash, of this node's choice, that no item has.
    nothing: StoreHash,
}

impl Engine {
    /// Joins the parts; the network is added by [`Engine::set_net`], since it asks the engine for
    /// what it serves.
    #[must_use]
    pub fn new(
        config: EngineConfig,
        store: Arc<Store>,
        upstreams: Option<Upstreams>,
        acl: Acl,
        metrics: Arc<Metrics>,
    ) -> Self {
        let remembered =
            |life| Cache::builder().max_capacity(limits::MAX_REMEMBERED).time_to_live(life).build();
        metrics.acl_keys.set(acl.len() as i64);
        let vouching = Vouching::new(config.voucher_signer.clone(), config.voucher_keys.clone());
        let inner = Inner {
            config,
            store,
            upstreams,
            net: OnceLock::new(),
            own_store: OnceLock::new(),
            acl: ArcSwap::from_pointee(acl),
            acl_problem: Mutex::default(),
            metrics,
            started: Instant::now(),
            http: OnceLock::new(),
            peers_changed: watch::Sender::new(()),
            known: Cache::builder()
                .weigher(|_, known: &Arc<Known>| known.weight())
                .max_capacity(limits::KNOWN_NARINFO_BYTES)
                .build(),
            misses: Cache::builder()
                .max_capacity(limits::MAX_REMEMBERED)
                .time_to_live(limits::MISS_LIFE)
                .build(),
            pending: Mutex::default(),
            holders: Cache::builder()
                .max_capacity(limits::MAX_REMEMBERED)
                .time_to_live(limits::HOLDER_LIFE)
                .build(),
            asked_about: Cache::builder()
                .max_capacity(limits::MAX_REMEMBERED)
                .time_to_live(limits::ASK_ABOUT_AGAIN_AFTER)
                .build(),
            ahead: ahead::Ahead::default(),
            fetches: Mutex::default(),
            place_left: Notify::new(),
            condemned: Cache::builder()
                .max_capacity(limits::MAX_REMEMBERED)
                .time_to_live(limits::BAN_LIFE)
                .build(),
            distrusted: remembered(limits::BAN_LIFE),
            bad_upstream: remembered(limits::MISS_LIFE),
            banned: Cache::builder()
                .max_capacity(limits::MAX_REMEMBERED)
                .time_to_live(limits::BAN_LIFE)
                .build(),
            seeds: seeds::Seeds::default(),
            own_filter: own_filter::OwnFilter::default(),
            public: Cache::builder()
                .max_capacity(limits::MAX_REMEMBERED)
                .time_to_live(limits::HOLDER_LIFE)
                .build(),
            upstream_rate: Mutex::default(),
            vouching,
            seed: rand::random(),
            nothing: StoreHash(rand::random()),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Adds the network, once.
    pub fn set_net(&self, net: Net) {
        if self.inner.net.set(net).is_err() {
            warn!("the network was set twice; the first one stays");
        }
    }

    /// Notes where the shim listens, for the status report.
    pub fn set_http(&self, address: SocketAddr) {
        let _ = self.inner.http.set(address);
    }

    /// What this node gives to others.
    #[must_use]
    pub fn responder(&self) -> Arc<dyn crate::net::Responder> {
        Arc::new(serve::Sharing(self.inner.clone()))
    }

    /// The store, for taking in mirrors.
    #[must_use]
    pub fn store(&self) -> Arc<Store> {
        self.inner.store.clone()
    }

    /// Whether others get anything of this node.
    #[must_use]
    pub fn shares(&self) -> bool {
        !self.inner.config.shares_nothing()
    }

    /// The keys believed now.
    #[must_use]
    pub fn acl(&self) -> Arc<Acl> {
        self.inner.acl.load_full()
    }

    /// Believes these keys and no others from now on. Nothing that only others have signed is given
    /// to anybody any more, neither what is at hand nor what is on its way. Says whether anything
    /// has changed.
    pub fn set_acl(&self, acl: Acl) -> bool {
        let inner = &self.inner;
        *inner.acl_problem.lock() = None;
        inner.metrics.acl_is_stale.set(0);
        if **inner.acl.load() == acl {
            return false;
        }
        inner.metrics.acl_keys.set(acl.len() as i64);
        inner.acl.store(Arc::new(acl));
        // What is there counts no longer; this makes room, and finds what new keys have signed.
        inner.known.invalidate_all();
        self.forget_misses();
        if let Some(store) = inner.own_store.get() {
            store.note_keys();
        }
        true
    }

    /// The files with the keys can't be used as they are now: those that were believed still are.
    pub fn keep_acl(&self, problem: String) {
        self.inner.metrics.acl_is_stale.set(1);
        *self.inner.acl_problem.lock() = Some(problem);
    }

    /// Things were added to the store behind the engine's back: what was missed may be there now,
    /// and what is held is announced anew.
    pub async fn held_more(&self) {
        self.forget_misses();
        self.inner.own_filter.note_much();
        announce::announce_all(self).await;
    }

    /// What nobody had a moment ago may be in the store now.
    pub fn forget_misses(&self) {
        self.inner.misses.invalidate_all();
        self.inner.public.invalidate_all();
    }

    /// Learns from the network for as long as it runs: peers and their addresses are remembered
    /// for the next start.
    pub async fn follow(&self, mut events: broadcast::Receiver<NetEvent>) {
        loop {
            match events.recv().await {
                Ok(event) => self.inner.handle_net(event),
                // What was missed concerns the memory of peers only, which mends itself.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }
}

impl EngineConfig {
    /// Whether others get nothing at all.
    fn shares_nothing(&self) -> bool {
        self.role == Role::Proxy || self.share == Share::Nothing
    }
}

impl Inner {
    fn handle_net(self: &Arc<Self>, event: NetEvent) {
        match event {
            NetEvent::PeerConnected(peer) => {
                self.metrics.peers_connected.inc();
                debug!(peer = %peer.peer, "connected");
            }
            NetEvent::PeerIdentified(peer) => {
                info!(peer = %peer.peer, agent = peer.agent, "a peer is there");
                // What nobody had a moment ago, the new one may have.
                self.misses.invalidate_all();
                self.peers_changed.send_replace(());
            }
            NetEvent::PeerDisconnected(peer) => {
                self.metrics.peers_connected.dec();
                debug!(%peer, "disconnected");
            }
            NetEvent::PeerLearned { peer, addresses } => {
                let inner = self.clone();
                tokio::task::spawn_blocking(move || {
                    if let Err(error) = inner.store.save_peer(&peer, &addresses) {
                        warn!("cannot remember a peer: {error}");
                    }
                });
            }
            _ => {}
        }
    }

    fn is_banned(&self, peer: &PeerId) -> bool {
        self.banned.contains_key(peer)
    }

    fn ban(&self, peer: PeerId) {
        self.banned.insert(peer, ());
        if let Some(net) = self.net.get() {
            net.ban(peer, limits::BAN_LIFE);
        }
    }

    /// Roots that a fetch of this nar does without.
    fn condemned(&self, nar: &NarHash) -> Vec<Root> {
        self.condemned.get(nar).unwrap_or_default().iter().map(|entry| entry.root).collect()
    }

    fn condemn(&self, nar: NarHash, root: Root, proven: bool) {
        let mut roots = self.condemned.get(&nar).unwrap_or_default();
        if let Some(entry) = roots.iter_mut().find(|entry| entry.root == root) {
            entry.proven |= proven;
        } else if roots.len() < limits::MAX_SOURCES {
            roots.push(Condemned { root, proven });
        }
        self.condemned.insert(nar, roots);
    }

    /// Nothing is held any more against roots that were only suspected. Says whether any was.
    fn acquit(&self, nar: NarHash) -> bool {
        let Some(mut roots) = self.condemned.get(&nar) else { return false };
        let before = roots.len();
        roots.retain(|entry| entry.proven);
        let acquitted = roots.len() < before;
        if acquitted {
            self.condemned.insert(nar, roots);
        }
        acquitted
    }

    /// What the fetch machine is to know of a peer beforehand.
    fn hint(&self, holder: &Holder, layout: PieceLayout) -> PeerHint {
        let connected = self.net.get().map(Net::connected).unwrap_or_default();
        let peer = connected.iter().find(|info| info.peer == holder.peer);
        PeerHint {
            root: holder.root,
            latency: peer.and_then(|p| p.rtt).unwrap_or(limits::UNKNOWN_LATENCY),
            // Who isn't connected counts as one of the first network, which weighs least, and so does
            // one of a local network.
            network: operator_of(peer.map_or(&[], |p| &p.addresses)).unwrap_or(0),
            complete: holder.pieces_held >= layout.piece_count(),
        }
    }
}

#[async_trait]
impl Backend for Engine {
    fn resolve(&self, hashes: &[StoreHash]) -> Vec<BoxFuture<'static, NarinfoAnswer>> {
        self.inner.note_listed(hashes);
        resolve::resolve(&self.inner, hashes)
    }

    async fn nar(
        &self,
        item: &ItemName,
        form: NarForm,
        want: NarWant,
    ) -> Result<NarReply, NarRefusal> {
        body::open(&self.inner, item, form, want).await
    }

    async fn file(
        &self,
        name: &str,
        sha256: [u8; 32],
        want: NarWant,
    ) -> Result<NarReply, NarRefusal> {
        files::open(&self.inner, name, sha256, want).await
    }

    fn status(&self) -> StatusReport {
        let inner = &self.inner;
        let stats = inner.store.stats();
        let net = inner.net.get();
        let text =
            |addresses: Vec<libp2p::Multiaddr>| addresses.iter().map(ToString::to_string).collect();
        let fetches = inner.fetches.lock();
        let fetches = fetches.values().map(|fetching| {
            let (done_bytes, sources) = fetching.progress.report();
            FetchStatus {
                item: fetching.item.to_string(),
                done_bytes,
                total_bytes: fetching.progress.layout().nar_size(),
                sources: sources as u64,
            }
        });
        StatusReport {
            peer_id: net.map(|n| n.peer_id().to_string()).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            role: inner.config.role.as_str().to_owned(),
            uptime_s: inner.started.elapsed().as_secs(),
            http: inner.http.get().map(ToString::to_string).unwrap_or_default(),
            listen: net.map(|n| text(n.listen_addresses())).unwrap_or_default(),
            external: net.map(|n| text(n.external_addresses())).unwrap_or_default(),
            nat: net.map(Net::nat).unwrap_or_default().as_str().to_owned(),
            peers: PeerCounts {
                connected: net.map_or(0, |n| n.connected().len() as u64),
                known: net.map_or(0, |n| n.known_peers() as u64),
            },
            items: ItemCounts {
                narinfos: stats.narinfos,
                cached: stats.cached,
                store: inner.own_store.get().map_or(0, |store| store.survey().shared),
                cached_bytes: stats.cached_bytes,
            },
            bytes: ByteCounts::of(&inner.metrics),
            requests: RequestCounts::of(&inner.metrics),
            fetches: fetches.collect(),
            acl: AclStatus {
                keys: inner.acl.load().len() as u64,
                problem: inner.acl_problem.lock().clone(),
            },
            store: inner.own_store.get().map(|store| own_store::progress(&store.survey())),
        }
    }
}
