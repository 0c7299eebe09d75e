//! A whole node: opens the data directory, joins the parts, and takes them down in order.

use crate::acl::{self, AclFiles, Reload};
use crate::config::{Config, Role, Share};
use crate::control;
use crate::dialect::Dialect;
use crate::engine::neighbours::find_others;
use crate::engine::{
    Engine, EngineConfig, SharedEntry, announce_at_start, follow_seeds, publish_filter,
};
use crate::entry::builtin::{BUILT_IN, BuiltIn};
use crate::entry::{Entry, EntryConfig};
use crate::http::{self, Backend, HttpConfig, StatusReport};
use crate::metrics::Metrics;
use crate::net::{Net, NetConfig, NetError, ReachConfig};
use crate::rate::DownloadLimit;
use crate::store::{DataDir, FilterFiles, KeptFile, RunInfo, Store, StoreConfig};
use crate::system_store::{Policy, SystemStoreConfig};
use crate::upstream::{UpstreamConfig, Upstreams, UpstreamsError};
use crate::voucher_peer::{self, VoucherPeer};
use anyhow::Context;
use libp2p::Multiaddr;
use narswarm_protocol::limits;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};
use url::Url;

/// A running node.
pub struct Node {
    net: Net,
    store: Arc<Store>,
    data: DataDir,
    http: SocketAddr,
    engine: Engine,
    reload: Reload,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Node {
    /// Starts a node. When it returns, the shim answers and peers can connect.
    ///
    /// # Errors
    /// What keeps it from starting, naming the file, address or setting at fault.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        // Reading the system's certificates takes as long as all the rest, and the connection to
        // the first server a round trip: both begin while the store is opened.
        let urls = config.upstreams.clone();
        let download = DownloadLimit::new(config.download_rate);
        let upstream = UpstreamConfig { download: download.clone(), ..UpstreamConfig::default() };
        let upstreams = spawn_blocking(move || connect_upstreams(urls, upstream));
        let acl_files = AclFiles::new(config.acl.clone(), Dialect::of_store(&config.store));
        let loaded = acl_files.load()?;
        loaded.skipped.iter().for_each(|skipped| warn!("{skipped}"));
        let data = DataDir::open(&config.data_dir)?;
        let store = open_store(&data, &config)?;
        let metrics = Arc::new(Metrics::new());
        let upstreams = upstreams.await.context("setting up the upstreams was cut off")??;
        let listener = TcpListener::bind(config.http).await.with_context(|| {
            format!("cannot listen for guix on {}; choose another with --http", config.http)
        })?;
        let http = listener.local_addr()?;
        let policy = Policy::new(&config.share_include, &config.share_exclude)?;
        let engine_config = engine_config(&config, &data, policy.clone())?;
        let engine =
            Engine::new(engine_config, store.clone(), upstreams, loaded.acl, metrics.clone());
        engine.set_http(http);
        let (net, events) = start_net(&config, &data, &store, &engine, download).await?;
        engine.set_net(net.clone());
        share_store(&engine, &config, policy).await?;
        data.write_run_json(&RunInfo {
            peer_id: net.peer_id().to_string(),
            http: http.to_string(),
            listen: net.listen_addresses().iter().map(ToString::to_string).collect(),
            pid: std::process::id(),
        })?;
        let node = Self {
            net,
            store,
            data,
            http,
            engine: engine.clone(),
            reload: Reload::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let follower = engine.clone();
        node.tasks.spawn(node.until_stop(async move { follower.follow(events).await }));
        // First, as its few keys have to find a place before all items do.
        let seeker = engine.clone();
        node.tasks.spawn(node.until_stop(async move { follow_seeds(&seeker).await }));
        let (lonely, is_found) = (node.net.clone(), engine.shares());
        node.tasks.spawn(node.until_stop(async move { find_others(&lonely, is_found).await }));
        let publisher = engine.clone();
        node.tasks.spawn(node.until_stop(async move { publish_filter(&publisher).await }));
        let announcer = engine.clone();
        node.tasks.spawn(node.until_stop(async move { announce_at_start(&announcer).await }));
        let keys = watch_acl(acl_files, node.reload.clone(), engine.clone());
        node.tasks.spawn(node.until_stop(keys));
        let entry = Entry::new(entry_config(&config), node.net.clone());
        node.tasks.spawn(node.until_stop(entry.clone().run()));
        let net = node.net.clone();
        let files = (KeptFile::providers(&node.data), KeptFile::announced(&node.data));
        node.tasks.spawn(node.until_stop(save_now_and_then(net, files.0, files.1)));
        let control =
            control::listen(node.data.path().to_owned(), engine.clone(), node.net.clone(), entry)?;
        node.tasks.spawn(node.until_stop(control));
        let http_config = HttpConfig {
            store_dir: config.store.to_string_lossy().into_owned(),
            host_names: config.http_names.clone(),
            priority: config.priority,
            ..HttpConfig::default()
        };
        let shim = http::serve(
            listener,
            Arc::new(engine.clone()),
            metrics,
            http_config,
            node.stop.clone(),
        );
        node.tasks.spawn(async move {
            if let Err(error) = shim.await {
                tracing::error!("the shim has ended: {error}");
            }
        });
        node.say_hello(&config);
        Ok(node)
    }

    /// Where the shim listens.
    #[must_use]
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Where peers connect to, with the peer id.
    #[must_use]
    pub fn listen_addresses(&self) -> Vec<Multiaddr> {
        self.net.listen_addresses()
    }

    /// What the node is doing.
    #[must_use]
    pub fn status(&self) -> StatusReport {
        self.engine.status()
    }

    /// Has the files with the keys read anew.
    pub fn reload_acl(&self) {
        self.reload.ask();
    }

    /// Stops serving, then the network, then closes the store.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(limits::STOP_PATIENCE, self.tasks.wait()).await.is_err() {
            warn!("some transfers didn't end in time; they are cut off");
        }
        if let Some(store) = self.engine.own_store() {
            store.stop();
        }
        self.net.shutdown().await;
        let (kept, announced) = (self.net.kept(), self.net.announced());
        let (store, data) = (self.store, self.data);
        let _ = spawn_blocking(move || {
            save_kept(&KeptFile::providers(&data), &kept);
            save_announced(&KeptFile::announced(&data), &announced);
            store.close();
            drop(data);
        })
        .await;
    }

    fn until_stop<W: Future<Output = ()>>(&self, work: W) -> impl Future<Output = ()> + use<W> {
        let stop = self.stop.clone();
        async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = work => {}
            }
        }
    }

    fn say_hello(&self, config: &Config) {
        for address in self.net.listen_addresses() {
            info!("peers connect to {address}");
        }
        let dialect = Dialect::of_store(&config.store);
        if !config.store.exists() && !dialect.keys_file().exists() {
            info!(
                "no {dialect} on this machine: working as a substitute proxy, which shares what \
                 passes through it"
            );
        }
        if config.upstreams.is_empty() && config.bootstrap.is_empty() && !config.mdns {
            warn!("no upstream and no peers are configured: only what is held can be served");
        }
        info!("substitute URL: http://{}", self.http);
    }
}

/// What the engine is to know of the configuration.
fn engine_config(config: &Config, data: &DataDir, policy: Policy) -> anyhow::Result<EngineConfig> {
    let voucher_signer = voucher_peer::signer(data.keypair()).context(
        "the key in node.key is not an Ed25519 one; move it away, and a new one is made",
    )?;
    Ok(EngineConfig {
        role: config.role,
        share: config.share,
        policy,
        upstream_mode: config.upstream_mode.into(),
        store_dir: config.store.to_string_lossy().trim_end_matches('/').to_owned(),
        expects_peers: !(config.bootstrap.is_empty()
            && config.dnsaddr.is_empty()
            && config.seed_lists.is_empty()),
        voucher_signer,
        voucher_keys: config.voucher_keys.iter().map(VoucherPeer::key).collect(),
        filters: FilterFiles::of(data),
        own_filters: KeptFile::own_filters(data),
    })
}

/// Lists what a node with this configuration would share, from what is on disk: nothing is hashed
/// and nobody asked. Blocking.
///
/// # Errors
/// When keys, data directory or store can't be read.
pub fn list_shared_at_rest(
    config: &Config,
    data: &DataDir,
    tell: impl FnMut(Vec<SharedEntry>) -> bool,
) -> anyhow::Result<()> {
    let loaded = acl::load(&config.acl, Dialect::of_store(&config.store))?;
    let store = open_store(data, config)?;
    let policy = Policy::new(&config.share_include, &config.share_exclude)?;
    let engine = Engine::new(
        engine_config(config, data, policy.clone())?,
        store.clone(),
        None,
        loaded.acl,
        Arc::new(Metrics::new()),
    );
    if let Some(own_store) = own_store_config(config, policy) {
        match engine.recall_store(own_store) {
            Err(error) if config.store_db_is_default => warn!("the store is left out: {error}"),
            recalled => recalled?,
        }
    }
    let listed = engine.list_shared(tell);
    store.close();
    Ok(listed?)
}

/// Keeps the engine to the keys that the files hold now.
async fn watch_acl(files: AclFiles, reload: Reload, engine: Engine) {
    acl::watch(files, reload, |loaded| match loaded {
        Ok(loaded) => {
            let keys = loaded.acl.len();
            if engine.set_acl(loaded.acl) {
                info!("the keys have changed: {keys} are believed now");
                loaded.skipped.iter().for_each(|skipped| warn!("{skipped}"));
            }
        }
        Err(error) => {
            let problem = format!("{:#}", anyhow::Error::new(error));
            error!("THE KEYS CAN'T BE READ ANEW, so the last good ones still count: {problem}");
            engine.keep_acl(problem);
        }
    })
    .await;
}

/// Where to look for entry nodes.
pub(crate) fn entry_config(config: &Config) -> EntryConfig {
    EntryConfig {
        built_in: if config.default_bootstrap { BUILT_IN } else { BuiltIn::default() },
        bootstrap: config.bootstrap.clone(),
        dnsaddr: config.dnsaddr.clone(),
        resolver: config.resolver,
        lists: config.seed_lists.clone(),
        keys: config.seed_list_keys.clone(),
        cache: config.data_dir.join("seed-lists"),
    }
}

/// Writes down what is kept for others and what was announced, so that little is lost in a crash.
async fn save_now_and_then(net: Net, providers: KeptFile, announced: KeptFile) {
    let (mut saved, mut saved_changes) = (net.kept_records(), net.announced_changes());
    loop {
        tokio::time::sleep(limits::SAVE_KEPT_EVERY).await;
        let records = net.kept_records();
        if (saved, records) != (0, 0) {
            saved = records;
            let (net, file) = (net.clone(), providers.clone());
            let _ = spawn_blocking(move || save_kept(&file, &net.kept())).await;
        }
        let changes = net.announced_changes();
        if saved_changes != changes {
            saved_changes = changes;
            let (net, file) = (net.clone(), announced.clone());
            let _ = spawn_blocking(move || save_announced(&file, &net.announced())).await;
        }
    }
}

fn save_kept(file: &KeptFile, kept: &[u8]) {
    if let Err(error) = file.write(kept) {
        warn!("what is kept for others in the DHT is not saved: {error}");
    }
}

fn save_announced(file: &KeptFile, announced: &[u8]) {
    if let Err(error) = file.write(announced) {
        warn!("what was announced in the DHT is not saved: {error}");
    }
}

/// The substitute servers, if there are any, and connections to them under way.
fn connect_upstreams(
    urls: Vec<Url>,
    config: UpstreamConfig,
) -> Result<Option<Upstreams>, UpstreamsError> {
    if urls.is_empty() {
        return Ok(None);
    }
    let upstreams = Upstreams::new(urls, config)?;
    upstreams.connect_ahead();
    upstreams.connect_ahead_for_nars();
    Ok(Some(upstreams))
}

fn open_store(data: &DataDir, config: &Config) -> anyhow::Result<Arc<Store>> {
    let max_bytes = match config.role {
        Role::Seed => u64::MAX,
        Role::Workstation | Role::Proxy => config.cache_gib.saturating_mul(1 << 30),
    };
    let store = Store::open(data, &StoreConfig { max_bytes, ..StoreConfig::default() })?;
    Ok(Arc::new(store))
}

/// Which store of the system is shared, if any.
fn own_store_config(config: &Config, policy: Policy) -> Option<SystemStoreConfig> {
    let off = !config.share_store || config.share == Share::Nothing || config.role == Role::Proxy;
    if off || (config.store_db_is_default && !config.store_db.exists()) {
        return None;
    }
    Some(SystemStoreConfig {
        store: config.store.clone(),
        database: config.store_db.clone(),
        guix_cache: config.guix_cache.clone(),
        data_dir: config.data_dir.clone(),
        policy,
        fetched_only: config.share == Share::Fetched,
        lookups_per_minute: config.store_lookups_per_minute,
    })
}

/// Begins to share the system's store, where there is one.
async fn share_store(engine: &Engine, config: &Config, policy: Policy) -> anyhow::Result<()> {
    let Some(store) = own_store_config(config, policy) else { return Ok(()) };
    let (sharing, runtime) = (engine.clone(), tokio::runtime::Handle::current());
    match spawn_blocking(move || sharing.share_store(store, runtime)).await? {
        // One that nobody asked for doesn't keep the node from working.
        Err(error) if config.store_db_is_default => {
            warn!("the store is not shared: {error}");
            Ok(())
        }
        shared => Ok(shared?),
    }
}

/// Starts the network. The default port gives way to a free one when another node has it.
async fn start_net(
    config: &Config,
    data: &DataDir,
    store: &Store,
    engine: &Engine,
    download: DownloadLimit,
) -> anyhow::Result<(Net, tokio::sync::broadcast::Receiver<crate::net::NetEvent>)> {
    let mut net = NetConfig::new(data.keypair().clone());
    net.listen = config.listen.clone();
    net.bootstrap = config.bootstrap.clone();
    net.known_peers = store.load_peers().unwrap_or_default();
    net.resolver = config.resolver;
    net.kept = KeptFile::providers(data).read();
    net.announced = KeptFile::announced(data).read();
    net.mdns = config.mdns;
    net.server = config.role != Role::Proxy;
    net.reach = ReachConfig {
        traverse: config.traverse_nat,
        upnp: config.upnp,
        help: config.relay,
        external: config.external.clone(),
        ..ReachConfig::default()
    };
    net.upload.rate = config.upload_rate.bytes_per_second();
    net.upload.per_peer_rate = config.upload_rate_per_peer.bytes_per_second();
    net.download = download;
    match Net::start(net.clone(), engine.responder()).await {
        Err(NetError::Listen { address, reason }) if config.listen_is_default => {
            info!("{address} is not free ({reason}): taking free ports instead");
            net.listen = any_port(&net.listen);
            Ok(Net::start(net, engine.responder()).await?)
        }
        started => Ok(started?),
    }
}

fn any_port(addresses: &[Multiaddr]) -> Vec<Multiaddr> {
    use libp2p::multiaddr::Protocol;
    let free = |part| match part {
        Protocol::Tcp(_) => Protocol::Tcp(0),
        Protocol::Udp(_) => Protocol::Udp(0),
        other => other,
    };
    addresses.iter().map(|address| address.iter().map(free).collect()).collect()
}
