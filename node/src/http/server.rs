//! Accepts connections, keeps their number within bounds, and ends them when the node does.

use super::HttpConfig;
use super::backend::Backend;
use super::connection::Connection;
use super::host::HostPolicy;
use super::idle::IdleConnections;
use super::pages::Pages;
use crate::metrics::{Metrics, StatusLabels};
use http::StatusCode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How many connections beyond the limit may exist while those that were told to make room are
/// still closing.
const CLOSING_CONNECTIONS: usize = 256;

/// The pause after the system refused a connection for want of descriptors or memory: long
/// enough not to spin, short enough for nobody to notice.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Idle connections that are closed when descriptors or memory are wanting: several, since those
/// that wait to be accepted have been waiting for each of them.
const CLOSED_AT_ONCE: usize = 16;

/// A node that is out of descriptors says so this often, not at each connection.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// Sent to a connection that cannot be served at all.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\
    Retry-After: 5\r\nConnection: close\r\n\r\n";

/// Why the shim cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listening socket is of no use.
    #[error("the listening socket has no address: {0}")]
    Listener(#[source] io::Error),
}

/// What all connections of a server share.
pub(super) struct Site {
    pub backend: Arc<dyn Backend>,
    pub metrics: Arc<Metrics>,
    pub config: HttpConfig,
    pub hosts: HostPolicy,
    pub pages: Pages,
    pub idle: IdleConnections,
}

impl Site {
    /// Counts an answer that is no narinfo.
    pub fn count(&self, status: StatusCode) {
        let labels = StatusLabels { status: status.as_u16() };
        self.metrics.http_responses.get_or_create(&labels).inc();
    }
}

/// Serves `listener` until `shutdown`, then lets answers under way finish for
/// [`HttpConfig::shutdown_grace`], and resets what is left of them.
///
/// # Errors
/// Only at the start; a failure of one connection ends that connection.
pub async fn serve(
    listener: TcpListener,
    backend: Arc<dyn Backend>,
    metrics: Arc<Metrics>,
    config: HttpConfig,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let address = listener.local_addr().map_err(ServeError::Listener)?;
    let site = Arc::new(Site {
        hosts: HostPolicy::new(address.ip(), &config.host_names),
        pages: Pages::new(&config),
        idle: IdleConnections::default(),
        backend,
        metrics,
        config,
    });
    let mut connections = JoinSet::new();
    let mut complained_at = None;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(ended) = connections.join_next() => count_ended(&site, ended),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => admit(&site, &mut connections, stream, &shutdown),
                Err(error) => cannot_accept(&site, &error, &mut complained_at).await,
            },
        }
    }
    drop(listener);
    let ends = async {
        while let Some(ended) = connections.join_next().await {
            count_ended(&site, ended);
        }
    };
    if timeout(site.config.shutdown_grace, ends).await.is_err() {
        tracing::info!(count = connections.len(), "resetting connections that are still busy");
        connections.shutdown().await;
    }
    site.metrics.http_connections.set(0);
    Ok(())
}

/// Serves the connection, if there is room or room can be made.
fn admit(
    site: &Arc<Site>,
    connections: &mut JoinSet<()>,
    stream: TcpStream,
    shutdown: &CancellationToken,
) {
    let limit = site.config.max_connections;
    if connections.len() >= limit {
        site.metrics.http_shed.inc();
        let made_room = site.idle.close_oldest();
        if !made_room || connections.len() >= limit + CLOSING_CONNECTIONS {
            // Best effort: an empty send buffer takes these few bytes at once.
            let _ = stream.try_write(FULL);
            return;
        }
    }
    site.metrics.http_accepted.inc();
    site.metrics.http_connections.inc();
    let connection = Connection::new(Arc::clone(site), stream);
    connections.spawn(connection.run(shutdown.clone()));
}

fn count_ended(site: &Site, ended: Result<(), tokio::task::JoinError>) {
    site.metrics.http_connections.dec();
    if let Err(error) = ended.as_ref()
        && error.is_panic()
    {
        tracing::error!(%error, "a connection ended in a bug; please report it");
    }
}

/// A failed `accept` concerns one connection, or the want of descriptors or memory. Neither ends
/// the server; idle connections are closed to make room.
async fn cannot_accept(site: &Site, error: &io::Error, complained_at: &mut Option<Instant>) {
    if matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    ) {
        return;
    }
    if complained_at.is_none_or(|at| at.elapsed() >= COMPLAINT_INTERVAL) {
        *complained_at = Some(Instant::now());
        tracing::warn!(%error, "cannot accept connections; closing those that idle");
    }
    for _ in 0..CLOSED_AT_ONCE {
        if !site.idle.close_oldest() {
            break;
        }
        site.metrics.http_shed.inc();
    }
    sleep(ACCEPT_PAUSE).await;
}

/// Raises the limit on open descriptors to the most that this process may have, and tells it.
/// Many systems start programs with 1,024, which connections, peers and files together exceed.
///
/// # Errors
/// The system refused; the old limit then stands.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    }
    Ok(limit.maximum.unwrap_or(u64::MAX))
}
