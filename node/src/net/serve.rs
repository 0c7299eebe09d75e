//! Serving peers: the holder's side of both protocols, bounded in all it does.

mod fetch;
mod query;
mod queue;

use super::config::NetTiming;
use super::counters::NetCounters;
use super::error::PeerError;
use super::messages::Conversation;
use super::responder::Responder;
use super::streams::{Accept, PeerStream, Protocol};
use libp2p::PeerId;
use narswarm_protocol::limits::{MAX_BLOCKING_CALLS, MAX_SERVED_FETCHES, MAX_SERVED_QUERIES};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Serves what peers ask for.
pub struct Server {
    responder: Arc<dyn Responder>,
    timing: NetTiming,
    counters: Arc<NetCounters>,
    queries: Arc<Semaphore>,
    fetches: Arc<Semaphore>,
    /// Bounds the calls of the responder.
    calls: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Server {
    /// A server that gives what `responder` has.
    pub fn new(
        responder: Arc<dyn Responder>,
        timing: NetTiming,
        counters: Arc<NetCounters>,
    ) -> Self {
        Self {
            responder,
            timing,
            counters,
            queries: Arc::new(Semaphore::new(MAX_SERVED_QUERIES)),
            fetches: Arc::new(Semaphore::new(MAX_SERVED_FETCHES)),
            calls: Arc::new(Semaphore::new(MAX_BLOCKING_CALLS)),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    /// Ends all conversations and waits for their tasks.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Runs a call of the responder on a blocking thread, when one is free.
async fn call<T: Send + 'static>(
    calls: &Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let permit = calls.clone().acquire_owned().await.ok()?;
    let done = tokio::task::spawn_blocking(move || {
        let result = work();
        drop(permit);
        result
    });
    // A panic of the responder ends this conversation and no other.
    done.await.ok()
}

/// A server that accepts streams.
pub struct Acceptor(pub Arc<Server>);

impl Accept for Acceptor {
    fn accept(&self, peer: PeerId, protocol: Protocol, stream: PeerStream) {
        let server = self.0.clone();
        let slots = match protocol {
            Protocol::Query => &server.queries,
            Protocol::Fetch => &server.fetches,
        };
        let Ok(permit) = slots.clone().try_acquire_owned() else {
            server.counters.refused_busy.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%peer, protocol = protocol.name(), "refused: too many are served");
            return;
        };
        let with = Conversation { peer, protocol: protocol.name(), stall: server.timing.stall };
        let (tasks, stop) = (server.tasks.clone(), server.stop.clone());
        let serve = async move {
            let served = match protocol {
                Protocol::Query => query::serve(&server, with, stream).await,
                Protocol::Fetch => fetch::serve(&server, with, stream).await,
            };
            drop(permit);
            if let Err(error) = served {
                note(&server.counters, &error);
            }
        };
        tasks.spawn(async move {
            tokio::select! {
                () = serve => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

/// Counts and logs how a conversation ended that did not end well.
fn note(counters: &NetCounters, error: &PeerError) {
    match error {
        PeerError::Violation { .. } | PeerError::TimedOut { .. } => {
            counters.refused_faulty.fetch_add(1, Ordering::Relaxed);
            tracing::info!(%error, "stopped serving");
        }
        _ => tracing::debug!(%error, "stopped serving"),
    }
}
