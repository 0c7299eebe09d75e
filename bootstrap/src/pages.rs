//! What the operator sees over HTTP: `/healthz` and `/metrics`. Everything is read from counters,
//! so that nobody can make it work by asking.

use crate::metrics::Metrics;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use narswarm_node::metrics::OPENMETRICS_TYPE;
use parking_lot::Mutex;
use serde::Serialize;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Silence of the network's task after which the node counts as ill: it ticks every second.
const STUCK_AFTER: Duration = Duration::from_secs(15);

/// What the pages are made of.
pub struct Site {
    /// Who this is.
    pub peer_id: String,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// When the node was started.
    pub started: Instant,
    /// When the network's task last said that it lives.
    pub alive: Mutex<Instant>,
}

/// The body of `/healthz`.
#[derive(Debug, Serialize)]
struct Health {
    ok: bool,
    peer_id: String,
    version: &'static str,
    uptime_s: u64,
    connections: i64,
    table_peers: i64,
}

/// Serves the pages until `stop`.
///
/// # Errors
/// When the listening socket fails.
pub async fn serve(
    listener: TcpListener,
    site: Arc<Site>,
    stop: CancellationToken,
) -> io::Result<()> {
    let pages = Router::new()
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .with_state(site);
    axum::serve(listener, pages).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn healthz(State(site): State<Arc<Site>>) -> Response {
    let ok = site.alive.lock().elapsed() < STUCK_AFTER;
    let health = Health {
        ok,
        peer_id: site.peer_id.clone(),
        version: env!("CARGO_PKG_VERSION"),
        uptime_s: site.started.elapsed().as_secs(),
        connections: site.metrics.connections.get(),
        table_peers: site.metrics.table_peers.get(),
    };
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health)).into_response()
}

async fn metrics(State(site): State<Arc<Site>>) -> Response {
    match site.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
