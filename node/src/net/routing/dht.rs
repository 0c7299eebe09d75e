//! Routing by announcements to the nodes that keep each bucket.
//!
//! [`DhtRouting`] is the handle, [`Machine`] the decisions of `protocol` with what they need of the
//! world: who stands behind which number, the searches that somebody waits for. [`drive`] performs
//! what it wants. Kademlia finds the nodes; it keeps nothing. `restarts`: what outlives the process;
//! `searching`: the searches.

mod restarts;
mod searching;
mod sleep;

use super::guests::Guests;
use super::keeper::{Keeper, encode, parse};
use super::{Provider, ProviderKey, Routing, RoutingError};
use crate::net::book::{Book, Reach, is_plausible, reach};
use crate::net::config::NetTiming;
use crate::net::networks::operator_of;
use crate::net::reach::is_direct;
use crate::net::routing::asking::ask;
use crate::net::streams::{Control, Keep, Protocol};
use crate::net::swarm::View;
use async_trait::async_trait;
use futures::AsyncWriteExt as _;
use libp2p::{Multiaddr, PeerId};
use lru::LruCache;
use narswarm_protocol::announce::{
    Action, Bucket, Contact, Discovery, DiscoveryConfig, ItemKey, Message, NodeId, Position,
    ProviderHint, Reply, RequestId, SearchId, Share,
};
use narswarm_protocol::fetch::Time;
use narswarm_protocol::limits::{MAX_CONTACTS, MAX_PROVIDER_RECORDS_PER_PEER};
use narswarm_protocol::wire::announce::{AnnounceReply, AnnounceRequest, NamedPeer};
use parking_lot::Mutex;
use searching::Search;
use sleep::Sleep;
use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

/// Providers that wait to be taken from a search; whoever takes longer loses some.
const QUEUED_PROVIDERS: usize = 1024;

/// Peers whose numbers are remembered: several times what the machine remembers, as providers have
/// numbers too.
const REMEMBERED_NUMBERS: usize = 8 * MAX_CONTACTS;

/// A search for so few keys is for the holders of a nar, of whom many are of use.
const FEW_KEYS: usize = 4;

/// Providers of each item that suffice when many items are searched for: one that is there.
const ENOUGH_OF_MANY: usize = 4;

/// How often what has no event of its own is looked after: searches that are over, probes.
const TICK: Duration = Duration::from_millis(250);

/// How long a probed provider, or a keeper to stay connected with, may take to answer.
const PROBE_PATIENCE: Duration = Duration::from_secs(5);

/// What the machine wants.
struct ToDo {
    /// Messages, each to a peer.
    asks: Vec<(RequestId, PeerId, AnnounceRequest)>,
    /// With whom to stay connected, or no longer.
    stays: Vec<(PeerId, bool)>,
    /// When to look again.
    again: Option<Time>,
}

struct State {
    discovery: Discovery,
    peers: LruCache<NodeId, PeerId>,
    searches: HashMap<SearchId, Search>,
    next_search: u64,
    /// Where others were told that this node is reached.
    told: Option<Vec<Vec<u8>>>,
    sleep: Sleep,
}

/// See the module.
pub struct Machine {
    local: PeerId,
    state: Mutex<State>,
    started: Instant,
    wake: Notify,
    /// Whether announcements wait.
    holds_back: AtomicBool,
    guests: Guests,
    pub(super) keeper: Keeper,
    pub(super) book: Book,
    pub(super) control: Control,
    pub(super) timing: NetTiming,
    view: Arc<Mutex<View>>,
    stop: CancellationToken,
}

impl Machine {
    /// The machine of the node `local`, which keeps `kept` for others.
    pub fn new(
        local: PeerId,
        kept: Keeper,
        book: Book,
        control: Control,
        timing: NetTiming,
        view: Arc<Mutex<View>>,
    ) -> Self {
        let seed = Position::of(&local.to_bytes()).0;
        let config = DiscoveryConfig { seed, max_contacts: MAX_CONTACTS, explores: true };
        let numbers = NonZeroUsize::new(REMEMBERED_NUMBERS).unwrap_or(NonZeroUsize::MIN);
        let state = State {
            discovery: Discovery::new(config, Time::default()),
            peers: LruCache::new(numbers),
            searches: HashMap::new(),
            next_search: 0,
            told: None,
            sleep: Sleep::new(),
        };
        Self {
            local,
            state: Mutex::new(state),
            started: Instant::now(),
            wake: Notify::new(),
            holds_back: AtomicBool::new(false),
            guests: Guests::new(control.clone()),
            keeper: kept,
            book,
            control,
            timing,
            view,
            stop: CancellationToken::new(),
        }
    }

    fn now(&self) -> Time {
        Time(self.started.elapsed())
    }

    /// Sees whether the computer has slept.
    fn note_sleep(&self) {
        let (mut state, now) = (self.state.lock(), self.now());
        if let Some(slept) = state.sleep.since() {
            tracing::debug!(seconds = slept.as_secs(), "this computer has slept");
            state.discovery.handle_slept(slept, now);
        }
    }

    /// What is done there is followed up at once.
    fn change<T>(&self, change: impl FnOnce(&mut State, Time) -> T) -> T {
        let changed = change(&mut self.state.lock(), self.now());
        self.wake.notify_one();
        changed
    }

    /// A connection to a peer is there, or none is left.
    pub fn connected(&self, peer: PeerId, there: bool) {
        if there {
            self.keeper.saw(peer, true);
        } else {
            self.guests.left(peer);
        }
        self.change(|state, _| state.discovery.handle_connected(number(&peer), there));
    }

    /// A connected peer has told whether it answers lookups.
    pub fn identified(&self, peer: PeerId, answers: bool) {
        let network = operator_of(&self.book.addresses(&peer));
        self.change(|state, _| {
            if answers {
                let contact = state.contact(peer, network);
                state.discovery.handle_contact(contact);
                state.discovery.handle_connected(contact.node, true);
            } else {
                state.discovery.handle_contact_gone(number(&peer));
            }
        });
    }

    /// A peer is banned, or a provider was not there.
    pub fn gone(&self, peer: PeerId) {
        self.change(|state, now| state.discovery.handle_provider_gone(number(&peer), now));
    }

    /// Nodes near a meeting point that have answered lately.
    pub fn near(&self, bucket: Bucket, asker: PeerId, count: usize) -> Vec<PeerId> {
        let (mut state, now) = (self.state.lock(), self.now());
        let near = state.discovery.near(bucket, count, number(&asker).0, now);
        let peers = near.iter().filter_map(|contact| state.peers.peek(&contact.node).copied());
        peers.filter(|peer| *peer != asker).collect()
    }

    /// Holds announcements back until it is known where this node is reached, or no longer.
    pub fn hold_announcements(&self, hold: bool) {
        if self.holds_back.swap(hold, Ordering::Relaxed) != hold {
            self.change(|state, _| state.discovery.hold_announcements(hold));
        }
    }

    /// Which of these keys this node itself provides, by their places in the list.
    pub fn holds(&self, keys: &[ItemKey]) -> Vec<usize> {
        let state = self.state.lock();
        let held = keys.iter().enumerate().filter(|(_, key)| state.discovery.holds(key));
        held.map(|(index, _)| index).collect()
    }

    /// Who this node is.
    pub fn local(&self) -> PeerId {
        self.local
    }

    /// From how far the nearest connection of a peer comes, and in which network it is.
    pub fn whereabouts(&self, peer: &PeerId) -> (Reach, Option<u64>) {
        let info = self.view.lock().peers.info(peer);
        let addresses = info.map(|info| info.addresses).unwrap_or_default();
        let near = addresses.iter().filter_map(reach).min();
        (near.unwrap_or(Reach::Everywhere), operator_of(&addresses))
    }

    /// How many nodes the network seems to have.
    pub fn network_size(&self) -> u64 {
        self.state.lock().discovery.network_size(self.now())
    }

    /// What this node keeps for others.
    pub fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// Who has asked this node lately.
    pub fn guests(&self) -> &Guests {
        &self.guests
    }

    /// Ends everything.
    pub fn stop(&self) {
        self.stop.cancel();
        self.state.lock().searches.clear();
    }

    /// Where this node says that it is reached.
    pub fn own_addresses(&self) -> Vec<Vec<u8>> {
        let view = self.view.lock();
        let all: Vec<_> = view.external.iter().chain(&view.listen).cloned().collect();
        drop(view);
        encode(&all).collect()
    }

    fn request(&self, bucket: Bucket, message: Message) -> AnnounceRequest {
        match message {
            Message::Look => AnnounceRequest::Look { bucket },
            Message::Announce { keys, share } => {
                let (life, addresses) = (Message::LIFE, self.own_addresses());
                AnnounceRequest::Announce { bucket, keys, life, addresses, share }
            }
            Message::Withdraw { keys } => AnnounceRequest::Withdraw { bucket, keys },
            Message::Find { keys } => AnnounceRequest::Find { bucket, keys },
        }
    }

    /// An answer has come, or (`None`) won't.
    fn replied(&self, request: RequestId, reply: Option<AnnounceReply>) {
        let nearest = self.view.lock().peers.nearest();
        self.change(|state, now| {
            let Some(reply) = reply else { return state.discovery.handle_failure(request, now) };
            let nearer = reply.nearer.into_iter();
            let nearer = nearer.filter_map(|named| self.learn(state, named, nearest));
            let nearer = nearer.map(|(contact, _)| contact).collect();
            let providers = reply.providers.into_iter().map(|named| {
                let seen = Duration::from_secs(named.seen.into());
                let share = named.share.map_or(Share::UNKNOWN, Share::percent);
                let (contact, relayed) = self.learn(state, named, nearest)?;
                Some(ProviderHint { key_index: 0, provider: contact.node, seen, relayed, share })
            });
            let providers: Vec<_> = providers.collect();
            let hints = reply.hits.into_iter().filter_map(|(key_index, provider)| {
                let hint = providers.get(usize::from(provider)).copied()??;
                Some(ProviderHint { key_index: key_index.into(), ..hint })
            });
            let reply = Reply { nearer, known: reply.known, providers: hints.collect() };
            state.discovery.handle_reply(request, &reply, now);
        });
    }

    /// Notes where somebody is said to be reached, and says whether through relays only; `None` when
    /// nothing can come of it.
    fn learn(
        &self,
        state: &mut State,
        named: NamedPeer,
        nearest: Reach,
    ) -> Option<(Contact, bool)> {
        let peer = PeerId::from_bytes(&named.peer).ok().filter(|peer| *peer != self.local)?;
        let octets = named.addresses.into_iter().map(serde_bytes::ByteBuf::into_vec);
        let mut addresses = parse(octets);
        addresses.retain(|address| is_plausible(address, nearest));
        self.book.add(peer, addresses);
        let known = self.book.addresses(&peer);
        let relayed = !known.iter().any(is_direct);
        (!known.is_empty()).then(|| (state.contact(peer, operator_of(&known)), relayed))
    }

    /// Everything that is to be done now, and when to look again.
    fn poll(&self) -> ToDo {
        let (mut state, mut asks, mut stays) = (self.state.lock(), Vec::new(), Vec::new());
        while let Some(action) = state.discovery.poll_action(self.now()) {
            match action {
                Action::Ask { request, node, bucket, message } => {
                    if matches!(message, Message::Announce { .. }) && state.told.is_none() {
                        state.told = Some(self.all_addresses());
                    }
                    match state.peers.get(&node).copied() {
                        Some(peer) => asks.push((request, peer, self.request(bucket, message))),
                        None => state.discovery.handle_failure(request, self.now()),
                    }
                }
                Action::Found(found) => {
                    let peer = state.peers.get(&found.provider).copied();
                    let search = state.searches.get(&found.search);
                    let (Some(peer), Some(search)) = (peer, search) else { continue };
                    let Some(&key) = search.keys.get(&found.key) else { continue };
                    if search.given.contains(&(found.key, peer)) {
                        continue;
                    }
                    let addresses = self.book.addresses(&peer);
                    if search.found.try_send(Provider { key, peer, addresses }).is_err() {
                        tracing::debug!(%peer, "a provider was not taken in time");
                    }
                }
                Action::Done(search) => drop(state.searches.remove(&search)),
                Action::Stay { node, stay } => match state.peers.get(&node).copied() {
                    Some(peer) => stays.push((peer, stay)),
                    None => state.discovery.handle_unreachable(node, self.now()),
                },
            }
        }
        ToDo { asks, stays, again: state.discovery.poll_timeout(self.now()) }
    }
}

impl State {
    fn contact(&mut self, peer: PeerId, network: Option<u64>) -> Contact {
        let node = number(&peer);
        self.peers.put(node, peer);
        Contact { node, position: Position(node.0), network }
    }
}

/// The number of a peer: its place in the key space, which no two share.
fn number(peer: &PeerId) -> NodeId {
    NodeId(Position::of(&peer.to_bytes()).0)
}

/// Performs what the machine wants, until it is stopped.
pub async fn drive(machine: Arc<Machine>) {
    let stop = machine.stop.clone();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let ToDo { asks, stays, again } = machine.poll();
        for (peer, stay) in stays {
            stay_connected(&machine, peer, stay);
        }
        for (request, peer, message) in asks {
            let machine = machine.clone();
            tokio::spawn(async move {
                let stopped = machine.stop.clone();
                tokio::select! {
                    reply = ask(&machine, peer, message) => machine.replied(request, reply),
                    () = stopped.cancelled() => {}
                }
            });
        }
        let timeout = again.map_or(Duration::from_secs(3600), |at| at.since(machine.now()));
        tokio::select! {
            () = machine.wake.notified() => {}
            () = tokio::time::sleep(timeout) => {}
            _ = tick.tick() => {
                machine.end_searches();
                machine.note_sleep();
                for (peer, addresses) in machine.keeper.tend() {
                    probe(&machine, peer, addresses);
                }
            }
            () = stop.cancelled() => return,
        }
    }
}

/// Sees whether a provider is there.
fn probe(machine: &Arc<Machine>, peer: PeerId, addresses: Vec<Multiaddr>) {
    machine.book.add(peer, addresses);
    let machine = machine.clone();
    tokio::spawn(async move {
        let opened = machine.control.open(peer, Protocol::Announce, PROBE_PATIENCE).await;
        machine.keeper.saw(peer, opened.is_ok());
    });
}

/// Stays connected with a keeper, or no longer.
fn stay_connected(machine: &Arc<Machine>, peer: PeerId, stay: bool) {
    machine.control.keep_for(Keep::Anchor, peer, stay);
    if !stay {
        return;
    }
    let machine = machine.clone();
    tokio::spawn(async move {
        match machine.control.open(peer, Protocol::Announce, PROBE_PATIENCE).await {
            // A stream without a message makes this node a guest there.
            Ok(mut stream) => drop(tokio::time::timeout(PROBE_PATIENCE, stream.close()).await),
            Err(_) => machine.change(|state, now| {
                state.discovery.handle_unreachable(number(&peer), now);
            }),
        }
    });
}

/// The handle.
pub struct DhtRouting(pub Arc<Machine>);

#[async_trait]
impl Routing for DhtRouting {
    fn ready(&self) -> bool {
        !self.0.state.lock().discovery.contacts().is_empty()
    }

    async fn find(&self, keys: &[ProviderKey]) -> mpsc::Receiver<Provider> {
        self.0.search(keys, Discovery::handle_search)
    }

    async fn find_for_upkeep(&self, keys: &[ProviderKey]) -> mpsc::Receiver<Provider> {
        self.0.search(keys, Discovery::handle_upkeep_search)
    }

    async fn provide(&self, keys: &[ProviderKey]) -> Result<(), RoutingError> {
        if self.0.stop.is_cancelled() {
            return Err(RoutingError::ShutDown);
        }
        let keys: BTreeSet<_> = keys.iter().map(ItemKey::from_provider_key).collect();
        self.0.change(|state, now| {
            let discovery = &mut state.discovery;
            let new = keys.iter().filter(|key| !discovery.holds(key)).count();
            let limit = MAX_PROVIDER_RECORDS_PER_PEER;
            let beyond = (discovery.held() + new).saturating_sub(limit);
            if beyond > 0 {
                return Err(RoutingError::Full { keys: beyond, limit });
            }
            keys.into_iter().for_each(|key| discovery.handle_held(key, 0, now));
            Ok(())
        })
    }

    async fn withdraw(&self, keys: &[ProviderKey]) {
        self.0.change(|state, now| {
            for key in keys {
                state.discovery.handle_released(ItemKey::from_provider_key(key), now);
            }
        });
    }

    async fn provided_all(&self) {
        self.0.change(|state, now| state.discovery.handle_all_held(now));
    }

    fn note_gone(&self, peer: PeerId) {
        self.0.gone(peer);
    }

    fn note_there(&self, peer: PeerId) {
        self.0.change(|state, _| state.discovery.handle_provider_there(number(&peer)));
    }
}
