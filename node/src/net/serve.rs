//! Serving peers: the holder's side of our protocols, bounded in all it does.

pub(super) mod announce;
mod busy;
mod fetch;
mod filter;
mod giving;
mod numbers;
mod query;
mod queue;
mod write;

use super::config::NetTiming;
use super::counters::NetCounters;
use super::error::PeerError;
use super::messages::Conversation;
use super::responder::Responder;
use super::routing::dht::Machine;
use super::streams::{Accept, PeerStream, Protocol};
use giving::Giving;
use libp2p::PeerId;
use narswarm_protocol::limits::{
    MAX_BLOCKING_CALLS, MAX_REFUSED_FETCHES, MAX_SERVED_ANNOUNCES, MAX_SERVED_FETCHES,
    MAX_SERVED_FILTERS, MAX_SERVED_QUERIES,
};
use narswarm_protocol::upload::UploadConfig;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Serves what peers ask for.
pub struct Server {
    responder: Arc<dyn Responder>,
    timing: NetTiming,
    counters: Arc<NetCounters>,
    queries: Arc<Semaphore>,
    fetches: Arc<Semaphore>,
    /// Bounds the messages of discovery that are answered at once.
    announces: Arc<Semaphore>,
    filters: Arc<Semaphore>,
    /// Who was given a whole filter when.
    wholes: filter::Wholes,
    /// Answers messages of discovery, once there is a network.
    machine: OnceLock<Weak<Machine>>,
    /// Bounds the sessions that are told that the node is busy.
    refusals: Arc<Semaphore>,
    /// Decides what is given next, for all sessions.
    giving: Arc<Giving>,
    /// Bounds the calls of the responder.
    calls: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Server {
    /// A server that gives what `responder` has, as much as `upload` allows.
    pub fn new(
        responder: Arc<dyn Responder>,
        upload: UploadConfig,
        timing: NetTiming,
        counters: Arc<NetCounters>,
    ) -> Self {
        let (giving, tasks) = (Arc::new(Giving::new(upload)), TaskTracker::new());
        let stop = CancellationToken::new();
        let (clock, stopped) = (giving.clone(), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = clock.run() => {}
                () = stopped.cancelled() => {}
            }
        });
        Self {
            responder,
            timing,
            counters,
            queries: Arc::new(Semaphore::new(MAX_SERVED_QUERIES)),
            fetches: Arc::new(Semaphore::new(MAX_SERVED_FETCHES)),
            announces: Arc::new(Semaphore::new(MAX_SERVED_ANNOUNCES)),
            filters: Arc::new(Semaphore::new(MAX_SERVED_FILTERS)),
            wholes: filter::Wholes::default(),
            machine: OnceLock::new(),
            refusals: Arc::new(Semaphore::new(MAX_REFUSED_FETCHES)),
            giving,
            calls: Arc::new(Semaphore::new(MAX_BLOCKING_CALLS)),
            tasks,
            stop,
        }
    }

    /// Says who answers messages of discovery.
    pub fn set_machine(&self, machine: &Arc<Machine>) {
        // There is one network only.
        let _ = self.machine.set(Arc::downgrade(machine));
    }

    fn machine(&self) -> Option<Arc<Machine>> {
        self.machine.get()?.upgrade()
    }

    /// Ends all conversations and waits for their tasks.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// How a stream is dealt with, and the place that it takes.
enum Admitted {
    Query(OwnedSemaphorePermit),
    Fetch(OwnedSemaphorePermit),
    Announce(OwnedSemaphorePermit),
    Filter(OwnedSemaphorePermit),
    /// It is told that there is no room.
    Busy(OwnedSemaphorePermit),
}

impl Server {
    /// A place for one more stream; `None` when it is not even told that there is none.
    fn admit(&self, protocol: Protocol) -> Option<Admitted> {
        let place = |places: &Arc<Semaphore>| places.clone().try_acquire_owned().ok();
        let admitted = match protocol {
            Protocol::Query => place(&self.queries).map(Admitted::Query),
            Protocol::Fetch => place(&self.fetches).map(Admitted::Fetch),
            Protocol::Announce => place(&self.announces).map(Admitted::Announce),
            Protocol::Filter => place(&self.filters).map(Admitted::Filter),
        };
        if admitted.is_some() {
            return admitted;
        }
        self.counters.refused_busy.fetch_add(1, Ordering::Relaxed);
        match protocol {
            Protocol::Query | Protocol::Announce | Protocol::Filter => None,
            Protocol::Fetch => place(&self.refusals).map(Admitted::Busy),
        }
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
        let Some(admitted) = server.admit(protocol) else {
            tracing::debug!(%peer, protocol = protocol.name(), "refused: too many are served");
            return;
        };
        let with = Conversation { peer, protocol: protocol.name(), stall: server.timing.stall };
        let (tasks, stop) = (server.tasks.clone(), server.stop.clone());
        let serve = async move {
            let (served, permit) = match admitted {
                Admitted::Query(permit) => (query::serve(&server, with, stream).await, permit),
                Admitted::Fetch(permit) => (fetch::serve(&server, with, stream).await, permit),
                Admitted::Announce(permit) => {
                    (announce::serve(&server, with, stream).await, permit)
                }
                Admitted::Filter(permit) => (filter::serve(&server, with, stream).await, permit),
                Admitted::Busy(permit) => (busy::refuse(with, stream).await, permit),
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
