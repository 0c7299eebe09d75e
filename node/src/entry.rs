//! How a node finds into the network: from several independent sources at once, any one of which
//! suffices.
//!
//! - nodes that the user has named (`bootstrap`), and what the program knows itself (`builtin`);
//! - names, whose TXT records list entry nodes (`dns`);
//! - signed lists from anywhere (`list`);
//! - peers of earlier days, which the network was told at its start; and peers on the local network,
//!   which it finds itself.
//!
//! Each source is followed by itself: one that hangs, fails or lies costs the others nothing. Here
//! it is found out what they say; whom to dial when, and how many at a time, is decided in `net`.
//! Nothing here believes that an address leads to a good peer: all of them are strangers.

pub mod builtin;
pub mod dns;
pub mod list;
pub mod probe;

use crate::net::{Net, Source, SourceState, peer_of};
use builtin::BuiltIn;
use dns::Names;
use futures::future::{BoxFuture, FutureExt, join_all};
use libp2p::Multiaddr;
use list::{ListCache, ListSource, unix_seconds};
use narswarm_protocol::seed_list::SeedListKey;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long a name may take to be resolved, wherever it leads.
const NAME_TIMEOUT: Duration = Duration::from_secs(12);

/// How often sources are asked again that have answered: records and lists change by the day.
const REFRESH: Duration = Duration::from_secs(3600);

/// First and longest pause before a source that failed is asked again.
const RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));

/// Where to look for entry nodes.
#[derive(Debug, Clone)]
pub struct EntryConfig {
    /// What comes with the program; empty if the user doesn't want it.
    pub built_in: BuiltIn,
    /// Nodes that the user has named. The network dials them by itself; here they are only told of.
    pub bootstrap: Vec<Multiaddr>,
    /// Names with TXT records.
    pub dnsaddr: Vec<String>,
    /// The server that is asked for them; none asks the system's.
    pub resolver: Option<SocketAddr>,
    /// Signed lists.
    pub lists: Vec<ListSource>,
    /// Whose signatures on lists are believed.
    pub keys: Vec<SeedListKey>,
    /// Where the last good lists are kept.
    pub cache: PathBuf,
}

/// What a source has said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer {
    /// Addresses of entry nodes.
    pub addresses: Vec<Multiaddr>,
    /// Entries that are none, or don't say which peer is there.
    pub passed_over: usize,
}

impl Offer {
    /// Reads addresses. Each has to name its peer, or a name that does: else whoever sits there, or
    /// on the way, would be the entry.
    pub fn from_texts(texts: impl IntoIterator<Item = String>) -> Self {
        let mut offer = Self::default();
        for text in texts {
            match text.parse::<Multiaddr>() {
                Ok(address) if peer_of(&address).is_some() || text.starts_with("/dnsaddr/") => {
                    offer.addresses.push(address);
                }
                _ => offer.passed_over += 1,
            }
        }
        offer
    }

    fn merge(&mut self, other: Self) {
        self.addresses.extend(other.addresses);
        self.passed_over += other.passed_over;
    }
}

/// What kind of source it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceKind {
    /// Named by the user.
    Bootstrap,
    /// Peers of earlier days.
    Remembered,
    /// Comes with the program.
    BuiltIn,
    /// A name.
    Dnsaddr,
    /// A signed list.
    SeedList,
    /// Announced on the local network.
    Mdns,
}

/// How a source fares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceReport {
    /// What kind it is.
    pub kind: SourceKind,
    /// Which one.
    pub name: String,
    /// Addresses it has given that are used.
    pub addresses: usize,
    /// Those of them whose peers are connected now.
    pub connected: usize,
    /// Those whose last attempt has failed.
    pub failing: usize,
    /// Whether any was ever reached in this run.
    pub reached: bool,
    /// Why the source itself gives nothing new.
    pub error: Option<String>,
    /// What the last failed attempt came to.
    pub last_failure: Option<String>,
}

/// Whom a source is asked of.
enum Asked {
    Name(String, Result<Names, String>),
    List(ListSource, ListCache),
}

impl Asked {
    /// What the source says now.
    async fn ask(&self) -> Result<Offer, String> {
        match self {
            Self::Name(name, names) => {
                let names = names.as_ref().map_err(Clone::clone)?;
                let asked = tokio::time::timeout(NAME_TIMEOUT, names.dnsaddr(name)).await;
                let late = |_| format!("no answer within {} s", NAME_TIMEOUT.as_secs());
                asked.map_err(late)?.map_err(|error| error.to_string())
            }
            Self::List(list, cache) => {
                let octets = tokio::time::timeout(2 * list::FETCH_TIMEOUT, list::get(list)).await;
                let octets = octets.map_err(|_| "no answer in time".to_owned())?;
                let octets = octets.map_err(|error| error.to_string())?;
                cache.take(list, &octets, unix_seconds()).map_err(|error| error.to_string())
            }
        }
    }

    /// Whether it may name near addresses: whoever answers for a name may be anybody, and must not
    /// send us to our own network.
    fn is_trusted(&self) -> bool {
        matches!(self, Self::List(..))
    }
}

/// A source that is followed.
struct Followed {
    kind: SourceKind,
    name: String,
    source: Source,
    error: Option<String>,
}

/// Follows all sources. Clones are the same.
#[derive(Clone)]
pub struct Entry {
    config: Arc<EntryConfig>,
    net: Net,
    followed: Arc<Mutex<Vec<Followed>>>,
}

impl Entry {
    /// For a network that runs; nothing is asked before [`Entry::run`].
    #[must_use]
    pub fn new(config: EntryConfig, net: Net) -> Self {
        let mut followed = Vec::new();
        let mut follow = |kind, name: String| {
            let source = Source(Source::FIRST_OTHER.0 + followed.len() as u16);
            followed.push(Followed { kind, name, source, error: None });
        };
        if !config.built_in.addresses.is_empty() {
            follow(SourceKind::BuiltIn, "addresses that come with the program".to_owned());
        }
        let built_in = config.built_in.names.iter().map(|name| (*name).to_owned());
        for name in config.dnsaddr.iter().cloned().chain(built_in) {
            follow(SourceKind::Dnsaddr, name);
        }
        for list in &config.lists {
            follow(SourceKind::SeedList, list.to_string());
        }
        let followed = Arc::new(Mutex::new(followed));
        Self { config: Arc::new(config), net, followed }
    }

    /// Follows all sources until dropped.
    pub async fn run(self) {
        let mut work: Vec<BoxFuture<'static, ()>> = Vec::new();
        let names = Names::new(self.config.resolver).map_err(|error| error.to_string());
        let followed: Vec<_> = {
            let followed = self.followed.lock();
            followed.iter().map(|f| (f.kind, f.name.clone(), f.source)).collect()
        };
        for (kind, name, source) in followed {
            let this = self.clone();
            match kind {
                SourceKind::BuiltIn => {
                    let texts = self.config.built_in.addresses.iter().map(|t| (*t).to_owned());
                    work.push(this.net_enter(source, Offer::from_texts(texts), false).boxed());
                }
                SourceKind::Dnsaddr => {
                    work.push(this.follow(source, Asked::Name(name, names.clone())).boxed());
                }
                SourceKind::SeedList => work.push(this.follow_list(name, source).boxed()),
                _ => {}
            }
        }
        join_all(work).await;
    }

    /// How all sources fare.
    pub async fn report(&self) -> Vec<SourceReport> {
        let view = self.net.inspect().await.unwrap_or_default();
        let state = |source| view.sources.get(&source).cloned().unwrap_or_default();
        let mut reports = Vec::new();
        if !self.config.bootstrap.is_empty() {
            let name = "nodes named by --bootstrap".to_owned();
            let state = state(Source::CONFIGURED);
            reports.push(SourceReport::new(SourceKind::Bootstrap, name, None, state));
        }
        let remembered = state(Source::REMEMBERED);
        let name = "peers of earlier days".to_owned();
        reports.push(SourceReport::new(SourceKind::Remembered, name, None, remembered));
        if let Some(count) = view.lan_peers {
            let state = SourceState { addresses: count, ..SourceState::default() };
            let name = "the local network".to_owned();
            reports.push(SourceReport::new(SourceKind::Mdns, name, None, state));
        }
        for followed in &*self.followed.lock() {
            let state = state(followed.source);
            let (name, error) = (followed.name.clone(), followed.error.clone());
            reports.push(SourceReport::new(followed.kind, name, error, state));
        }
        reports
    }

    async fn net_enter(self, source: Source, offer: Offer, trusted: bool) {
        self.net.enter(source, offer.addresses, trusted).await;
    }

    async fn follow_list(self, name: String, source: Source) {
        let cache = ListCache::new(self.config.cache.clone(), self.config.keys.clone());
        let list: ListSource = match name.parse() {
            Ok(list) => list,
            Err(error) => return self.note(source, Some(error)),
        };
        // The last good list is there before any server could answer.
        match cache.offer(&list, unix_seconds()) {
            Ok(Some(offer)) => self.net.enter(source, offer.addresses, true).await,
            Ok(None) => {}
            Err(error) => self.note(source, Some(format!("the list kept on disk has {error}"))),
        }
        self.follow(source, Asked::List(list, cache)).await;
    }

    /// Asks a source again and again, more seldom when it answers.
    async fn follow(self, source: Source, asked: Asked) {
        let mut pause = RETRY.0;
        loop {
            let rest = match asked.ask().await {
                Ok(offer) if offer.addresses.is_empty() => {
                    let passed_over = offer.passed_over;
                    let error = format!("no entry node is named, {passed_over} entries are none");
                    self.note(source, Some(error));
                    RETRY.1
                }
                Ok(offer) => {
                    self.note(source, None);
                    self.net.enter(source, offer.addresses, asked.is_trusted()).await;
                    pause = RETRY.0;
                    REFRESH
                }
                Err(error) => {
                    self.note(source, Some(error));
                    pause = (pause * 2).min(RETRY.1);
                    pause / 2
                }
            };
            // Spread, so that a server that was away isn't asked by everybody at once.
            tokio::time::sleep(rest.mul_f64(0.75 + rand::random::<f64>() / 2.0)).await;
        }
    }

    fn note(&self, source: Source, error: Option<String>) {
        let mut followed = self.followed.lock();
        let Some(entry) = followed.iter_mut().find(|entry| entry.source == source) else { return };
        if let Some(error) = &error
            && entry.error.as_ref() != Some(error)
        {
            tracing::warn!(source = entry.name, "no entry nodes from here: {error}");
        }
        entry.error = error;
    }
}

impl SourceReport {
    fn new(kind: SourceKind, name: String, error: Option<String>, state: SourceState) -> Self {
        let SourceState { addresses, connected, failing, reached, last_failure } = state;
        Self { kind, name, addresses, connected, failing, reached, error, last_failure }
    }
}

#[cfg(test)]
mod tests;
