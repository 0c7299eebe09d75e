//! A whole entry node: opens the data directory, listens, and takes everything down in order.

use crate::behaviour::Behaviour;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::pages::{self, Site};
use crate::task::Task;
use anyhow::{Context, bail};
use futures::StreamExt;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, Swarm};
use narswarm_node::net::keeping::Keeping;
use narswarm_node::net::{Guard, NetError, build_transport, swarm_config};
use narswarm_node::store::{DataDir, KeptFile, RunInfo};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

/// How long listening may take to start: it needs no remote.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long interfaces are waited for after the last one that was found.
const LAST_INTERFACE: Duration = Duration::from_millis(100);

/// How long the parts may take to end.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

/// A running entry node.
pub struct Node {
    data: DataDir,
    http: SocketAddr,
    listen: Vec<Multiaddr>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Node {
    /// Starts an entry node. When it returns, peers can connect.
    ///
    /// # Errors
    /// What keeps it from starting, naming the file, address or setting at fault.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let data = DataDir::open(&config.data_dir)?;
        let listener = TcpListener::bind(config.http).await.with_context(|| {
            format!("cannot listen on {}; choose another address with --http", config.http)
        })?;
        let http = listener.local_addr()?;
        let peer = data.keypair().public().to_peer_id();
        let kept = KeptFile::providers(&data);
        let (keeping, streams) =
            (config.records > 0).then(|| Keeping::new(peer, config.records, &kept.read())).unzip();
        let behaviour = Behaviour::new(&config, data.keypair(), streams);
        // Whoever asks to be tried or names addresses in the DHT must not make this node knock at
        // its own machine or network.
        let guard = Guard::default();
        config.bootstrap.iter().for_each(|address| guard.allow(address));
        let transport =
            build_transport(data.keypair(), None, &guard, None, None).map_err(NetError::from)?;
        let mut swarm = Swarm::new(transport, behaviour, peer, swarm_config(config.idle));
        let found = listen(&mut swarm, &config.listen).await?;
        let external = if config.external.is_empty() { &found } else { &config.external };
        for address in external {
            swarm.add_external_address(address.clone());
        }
        let listen: Vec<_> =
            found.into_iter().map(|address| address.with(Protocol::P2p(peer))).collect();
        data.write_run_json(&RunInfo {
            peer_id: peer.to_string(),
            http: http.to_string(),
            listen: listen.iter().map(ToString::to_string).collect(),
            pid: std::process::id(),
        })?;

        let now = Instant::now();
        let site = Arc::new(Site {
            peer_id: peer.to_string(),
            metrics: Arc::new(Metrics::new()),
            started: now,
            alive: Mutex::new(now),
        });
        let node =
            Self { data, http, listen, stop: CancellationToken::new(), tasks: TaskTracker::new() };
        let (most, dir) = (config.max_connections, config.data_dir.clone());
        if let Some(keeping) = keeping.clone() {
            node.tasks.spawn(keeping.run());
        }
        let keeping = keeping.map(|keeping| (keeping, kept));
        let task = Task::new(swarm, guard, most, &config.bootstrap, dir, keeping, site.clone());
        node.tasks.spawn(task.run(node.stop.clone()));
        let pages = pages::serve(listener, site, node.stop.clone());
        node.tasks.spawn(async move {
            if let Err(error) = pages.await {
                warn!("health and metrics are no longer shown: {error}");
            }
        });
        for address in &node.listen {
            info!("peers connect to {address}");
        }
        info!("health and metrics: http://{http}/healthz, http://{http}/metrics");
        Ok(node)
    }

    /// Where health and metrics are shown.
    #[must_use]
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Where peers connect to, with the peer id.
    #[must_use]
    pub fn listen_addresses(&self) -> &[Multiaddr] {
        &self.listen
    }

    /// Stops everything; peers are told.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(STOP_PATIENCE, self.tasks.wait()).await.is_err() {
            warn!("not everything ended in time; it is cut off");
        }
        drop(self.data);
    }
}

/// Listens on all addresses, waits until that has begun, and gives what is listened on.
async fn listen(
    swarm: &mut Swarm<Behaviour>,
    addresses: &[Multiaddr],
) -> anyhow::Result<Vec<Multiaddr>> {
    let mut awaited = Vec::new();
    for address in addresses {
        let id = swarm.listen_on(address.clone()).map_err(|error| NetError::Listen {
            address: address.clone(),
            reason: error.to_string(),
        })?;
        awaited.push((id, address));
    }
    let (mut found, started) = (Vec::new(), tokio::time::Instant::now());
    loop {
        let deadline = match awaited.first() {
            Some(_) => started + LISTEN_TIMEOUT,
            None => tokio::time::Instant::now() + LAST_INTERFACE,
        };
        let event = tokio::time::timeout_at(deadline, swarm.select_next_some()).await;
        match (event, awaited.first()) {
            (Err(_), None) => return Ok(found),
            (Err(_), Some((_, address))) => bail!("listening on {address} did not start in time"),
            (Ok(SwarmEvent::NewListenAddr { listener_id, address }), _) => {
                awaited.retain(|(id, _)| *id != listener_id);
                if !found.contains(&address) {
                    found.push(address);
                }
            }
            (Ok(SwarmEvent::ListenerClosed { listener_id, reason, .. }), _) => {
                if let Some((_, address)) = awaited.iter().find(|(id, _)| *id == listener_id) {
                    bail!("cannot listen on {address}: {reason:?}; choose another address or port");
                }
            }
            _ => {}
        }
    }
}
