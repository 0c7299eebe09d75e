//! Routing by libp2p's Kademlia.
//!
//! [`KadRouting`] is the handle; [`Lookups`] is the part that lives with the swarm. It bounds how
//! many lookups and announcements run at once and holds announcements back until there is
//! somebody to make them to, which Kademlia itself would report as success.

use super::{Provider, ProviderKey, Routing, RoutingError};
use crate::net::book::{Book, Reach, is_plausible};
use crate::net::routing::records::ProviderRecords;
use crate::net::swarm::Command;
use async_trait::async_trait;
use libp2p::core::Endpoint;
use libp2p::kad::store::RecordStore;
use libp2p::kad::{
    self, AddProviderError, GetProvidersOk, ProgressStep, QueryId, QueryResult, RecordKey,
};
use libp2p::swarm::{ConnectionId, NetworkBehaviour};
use libp2p::{Multiaddr, PeerId};
use narswarm_protocol::limits::{
    MAX_DHT_ANNOUNCEMENTS, MAX_DHT_LOOKUPS, MAX_FIND_KEYS, MAX_PROVIDER_RECORDS_PER_PEER,
    MAX_PROVIDERS_PER_ITEM,
};
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Providers that wait to be taken from a search; whoever takes longer loses some.
const QUEUED_PROVIDERS: usize = 1024;

/// Connections have numbers from one; this one is none, see [`Lookups::addresses`].
const NO_CONNECTION: usize = 0;

/// The DHT.
pub struct KadRouting {
    commands: mpsc::Sender<Command>,
    table: Arc<AtomicUsize>,
    timeout: Duration,
}

impl KadRouting {
    /// The handle to the DHT of the swarm that takes `commands` and keeps the size of its table
    /// in `table`. Searches end after `timeout`.
    pub fn new(
        commands: mpsc::Sender<Command>,
        table: Arc<AtomicUsize>,
        timeout: Duration,
    ) -> Self {
        Self { commands, table, timeout }
    }
}

#[async_trait]
impl Routing for KadRouting {
    fn ready(&self) -> bool {
        self.table.load(Ordering::Relaxed) > 0
    }

    async fn find(&self, keys: &[ProviderKey]) -> mpsc::Receiver<Provider> {
        let (found, receiver) = mpsc::channel(QUEUED_PROVIDERS);
        let keys: BTreeSet<_> = keys.iter().take(MAX_FIND_KEYS).copied().collect();
        let deadline = Instant::now() + self.timeout;
        // When the network is shut down, the channel closes at once.
        let _ = self.commands.send(Command::Find { keys, found, deadline }).await;
        receiver
    }

    async fn provide(&self, keys: &[ProviderKey]) -> Result<(), RoutingError> {
        let (reply, taken) = oneshot::channel();
        let command = Command::Provide { keys: keys.to_vec(), reply };
        self.commands.send(command).await.map_err(|_| RoutingError::ShutDown)?;
        taken.await.map_err(|_| RoutingError::ShutDown)?
    }

    async fn withdraw(&self, keys: &[ProviderKey]) {
        let _ = self.commands.send(Command::Withdraw { keys: keys.to_vec() }).await;
    }
}

/// A search for one key.
struct Lookup {
    key: ProviderKey,
    found: mpsc::Sender<Provider>,
    deadline: Instant,
    seen: HashSet<PeerId>,
}

/// The searches and announcements of a node.
pub struct Lookups {
    local: PeerId,
    waiting: VecDeque<Lookup>,
    running: HashMap<QueryId, Lookup>,
    /// What this node provides, announced or not.
    provided: HashSet<ProviderKey>,
    unannounced: VecDeque<ProviderKey>,
    announcing: HashSet<QueryId>,
    /// Whether announcements wait until this node knows where it is.
    held: bool,
    table: Arc<AtomicUsize>,
}

type Kad = kad::Behaviour<ProviderRecords>;

impl Lookups {
    /// None yet. The size of the table is kept in `table`.
    pub fn new(local: PeerId, table: Arc<AtomicUsize>) -> Self {
        Self {
            local,
            waiting: VecDeque::new(),
            running: HashMap::new(),
            provided: HashSet::new(),
            unannounced: VecDeque::new(),
            announcing: HashSet::new(),
            held: false,
            table,
        }
    }

    /// Begins a search for each key, as soon as there is room.
    pub fn find(
        &mut self,
        kad: &mut Kad,
        keys: BTreeSet<ProviderKey>,
        found: &mpsc::Sender<Provider>,
        deadline: Instant,
    ) {
        let lookup = |key| Lookup { key, found: found.clone(), deadline, seen: HashSet::new() };
        self.waiting.extend(keys.into_iter().map(lookup));
        self.start(kad);
    }

    /// Queues keys for announcement.
    pub fn provide(&mut self, kad: &mut Kad, keys: &[ProviderKey]) -> Result<(), RoutingError> {
        let new: BTreeSet<_> = keys.iter().filter(|key| !self.provided.contains(*key)).collect();
        let limit = MAX_PROVIDER_RECORDS_PER_PEER;
        let keys = (self.provided.len() + new.len()).saturating_sub(limit);
        if keys > 0 {
            return Err(RoutingError::Full { keys, limit });
        }
        self.provided.extend(new.iter().copied());
        self.unannounced.extend(new);
        self.start(kad);
        Ok(())
    }

    /// Stops providing keys.
    pub fn withdraw(&mut self, kad: &mut Kad, keys: &[ProviderKey]) {
        for key in keys {
            if self.provided.remove(key) {
                kad.stop_providing(&RecordKey::new(key));
            }
        }
        let provided = &self.provided;
        self.unannounced.retain(|key| provided.contains(key));
    }

    /// Holds announcements back, or no longer.
    pub fn hold_announcements(&mut self, hold: bool) {
        self.held = hold;
    }

    /// Announces everything anew: this node is elsewhere now.
    pub fn announce_again(&mut self) {
        self.unannounced = self.provided.iter().copied().collect();
    }

    /// Starts what there is room for, ends what is over; to be called now and then.
    pub fn start(&mut self, kad: &mut Kad) {
        let now = Instant::now();
        for (id, lookup) in &self.running {
            if (lookup.found.is_closed() || now >= lookup.deadline)
                && let Some(mut query) = kad.query_mut(id)
            {
                query.finish();
            }
        }
        while self.running.len() < MAX_DHT_LOOKUPS {
            let Some(lookup) = self.waiting.pop_front() else { break };
            if lookup.found.is_closed() || now >= lookup.deadline {
                continue;
            }
            let id = kad.get_providers(RecordKey::new(&lookup.key));
            self.running.insert(id, lookup);
        }
        let table = kad.kbuckets().map(|bucket| bucket.num_entries()).sum();
        self.table.store(table, Ordering::Relaxed);
        while table > 0 && !self.held && self.announcing.len() < MAX_DHT_ANNOUNCEMENTS {
            let Some(key) = self.unannounced.pop_front() else { break };
            tracing::trace!("announcing an item");
            match kad.start_providing(RecordKey::new(&key)) {
                Ok(id) => drop(self.announcing.insert(id)),
                Err(error) => tracing::warn!(%error, "an item is not announced"),
            }
        }
    }

    /// Takes what Kademlia reports.
    pub fn progressed(
        &mut self,
        kad: &mut Kad,
        book: &Book,
        nearest: Reach,
        id: QueryId,
        result: QueryResult,
        step: &ProgressStep,
    ) {
        match result {
            QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { providers, .. })) => {
                self.found(kad, book, nearest, id, providers);
            }
            QueryResult::StartProviding(Err(AddProviderError::Timeout { key })) => {
                // Some of the closest nodes have it, or none: it is tried again later.
                if let Ok(key) = ProviderKey::try_from(key.as_ref())
                    && self.provided.contains(&key)
                {
                    self.unannounced.push_back(key);
                }
            }
            _ => {}
        }
        if step.last {
            self.running.remove(&id);
            self.announcing.remove(&id);
            self.start(kad);
        }
    }

    fn found(
        &mut self,
        kad: &mut Kad,
        book: &Book,
        nearest: Reach,
        id: QueryId,
        providers: HashSet<PeerId>,
    ) {
        let Some(lookup) = self.running.get_mut(&id) else { return };
        for peer in providers {
            if peer == self.local || !lookup.seen.insert(peer) {
                continue;
            }
            let mut addresses = Self::addresses(kad, &lookup.key, peer);
            addresses.retain(|address| is_plausible(address, nearest));
            book.add(peer, addresses.clone());
            tracing::debug!(%peer, ?addresses, "a provider is found");
            let provider = Provider { key: lookup.key, peer, addresses };
            if lookup.found.try_send(provider).is_err() {
                tracing::debug!(%peer, "a provider was not taken in time");
            }
        }
        if lookup.seen.len() >= MAX_PROVIDERS_PER_ITEM
            && let Some(mut query) = kad.query_mut(&id)
        {
            query.finish();
        }
    }

    /// The addresses of a provider that a running query has just come across. Kademlia forgets
    /// them with the query and gives them out only to whoever is about to dial, so that is asked.
    fn addresses(kad: &mut Kad, key: &ProviderKey, peer: PeerId) -> Vec<Multiaddr> {
        let none = ConnectionId::new_unchecked(NO_CONNECTION);
        let dial = kad.handle_pending_outbound_connection(none, Some(peer), &[], Endpoint::Dialer);
        let mut addresses = dial.unwrap_or_default();
        // The record may stand in this node's own store.
        let own = kad.store_mut().providers(&RecordKey::new(key));
        addresses.extend(own.into_iter().filter(|r| r.provider == peer).flat_map(|r| r.addresses));
        let mut seen = HashSet::new();
        addresses.retain(|address| seen.insert(address.clone()));
        addresses
    }
}
