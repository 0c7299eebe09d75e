//! The narinfo requests of one substitute server: a queue, a few connections that take from it,
//! and what becomes of requests that the server cannot answer.
//!
//! Connections are tasks. They take as many requests off the queue as may be under way, answer
//! them (`exchange`), and give back what a broken connection left unanswered. What the server
//! lacks or fails to give goes to the next server in the chain at once.

use super::breaker::{Admission, Breaker, Failure};
use super::dial::{Link, Origin, dial};
use super::error::UpstreamError;
use super::exchange::{self, Ending};
use super::request::Request;
use super::{UpstreamConfig, probe};
use narswarm_protocol::limits::MAX_WAITING_NARINFO_REQUESTS;
use narswarm_protocol::store_path::StoreHash;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Requests that one connection takes at a time, so that a burst spreads over the connections.
const TAKEN_AT_ONCE: usize = 256;

/// Connections that may break while one request is the one to answer: the second time may be
/// chance, the third time it is the request.
const MAX_ATTEMPTS: u8 = 3;

/// Pause before connecting anew after a quick failure; with three strikes this costs 150 ms.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

/// One server's requests, connections and standing.
pub(super) struct Pipeline {
    pub(super) index: usize,
    pub(super) origin: Origin,
    pub(super) config: UpstreamConfig,
    pub(super) wake: Notify,
    pub(super) stop: CancellationToken,
    tls: Arc<rustls::ClientConfig>,
    next: Option<Arc<Pipeline>>,
    state: Mutex<State>,
}

struct State {
    queue: VecDeque<Request>,
    connections: usize,
    breaker: Breaker,
    /// After how many answers this server was seen to close connections.
    answers_per_connection: usize,
}

impl Pipeline {
    /// The pipeline of server `index`; what it lacks is asked of `next`.
    pub(super) fn new(
        index: usize,
        origin: Origin,
        config: UpstreamConfig,
        tls: Arc<rustls::ClientConfig>,
        next: Option<Arc<Self>>,
        stop: CancellationToken,
    ) -> Self {
        let breaker = Breaker::new(config.probe_patience);
        let state = State {
            queue: VecDeque::new(),
            connections: 0,
            breaker,
            answers_per_connection: usize::MAX,
        };
        let state = Mutex::new(state);
        Self { index, origin, config, wake: Notify::new(), stop, tls, next, state }
    }

    /// Takes requests on, or passes them to the next server if this one is resting.
    pub(super) fn enqueue(self: &Arc<Self>, mut requests: Vec<Request>) {
        if requests.is_empty() {
            return;
        }
        let refused = {
            let mut state = self.state.lock();
            let admission = state.breaker.admit(std::time::Instant::now());
            if admission == Admission::Refuse {
                requests
            } else {
                let room = MAX_WAITING_NARINFO_REQUESTS.saturating_sub(state.queue.len());
                let excess = requests.split_off(requests.len().min(room));
                state.queue.extend(requests);
                match admission {
                    Admission::Probe(until) => {
                        tokio::spawn(probe::probe(Arc::clone(self), until.into()));
                    }
                    Admission::Send => self.connect_as_needed(&mut state),
                    Admission::Wait(_) | Admission::Refuse => {}
                }
                excess
            }
        };
        self.fail_all(refused, &UpstreamError::Resting { url: self.label() });
    }

    /// Opens connections for what waits, and wakes those that idle.
    fn connect_as_needed(self: &Arc<Self>, state: &mut State) {
        let wanted = state.queue.len().div_ceil(TAKEN_AT_ONCE).min(self.config.connections.max(1));
        for _ in state.connections..wanted {
            state.connections += 1;
            tokio::spawn(work(Arc::clone(self), None));
        }
        self.wake.notify_waiters();
    }

    /// Opens one connection if there is none, so that the next batch need not wait for it.
    pub(super) fn connect_ahead(self: &Arc<Self>) {
        let mut state = self.state.lock();
        if state.connections == 0 && state.breaker.is_working() {
            state.connections += 1;
            tokio::spawn(work(Arc::clone(self), None));
        }
    }

    /// Connects within the deadline.
    pub(super) async fn dial(&self) -> Result<Box<dyn Link>, UpstreamError> {
        let after = self.config.connect_timeout;
        match timeout(after, dial(&self.origin, &self.tls)).await {
            Ok(Ok(link)) => Ok(link),
            Ok(Err(source)) => {
                Err(UpstreamError::Connect { url: self.label(), source: Arc::new(source) })
            }
            Err(_) => Err(UpstreamError::Silent { url: self.label(), after, during: "connecting" }),
        }
    }

    /// Moves up to `room` waiting requests behind those `under_way`. While there are some, it
    /// waits until many fit: refilling one by one would make a segment of each request.
    pub(super) fn take(&self, under_way: &mut VecDeque<Request>, room: usize) {
        let after = self.config.request_timeout;
        let mut late = Vec::new();
        {
            let mut state = self.state.lock();
            let worthwhile = state.queue.len().min(TAKEN_AT_ONCE).min(self.config.window / 4);
            if !state.breaker.is_working() || (!under_way.is_empty() && room < worthwhile) {
                return;
            }
            let mut room = room.min(TAKEN_AT_ONCE);
            while room > 0 {
                let Some(request) = state.queue.pop_front() else { break };
                if request.since.elapsed() > after {
                    late.push(request);
                } else if !request.is_abandoned() {
                    under_way.push_back(request);
                    room -= 1;
                }
            }
        }
        if !late.is_empty() {
            let during = "a narinfo request waited its turn";
            self.fail_all(late, &UpstreamError::Silent { url: self.label(), after, during });
        }
    }

    /// After how many answers the server is expected to close a connection.
    pub(super) fn answers_per_connection(&self) -> usize {
        self.state.lock().answers_per_connection
    }

    /// Learns that the server closed a connection after `answers`, or did not.
    pub(super) fn learn_limit(&self, answers: usize, is_closed: bool) {
        let mut state = self.state.lock();
        state.answers_per_connection =
            if is_closed { answers.max(1) } else { answers.saturating_mul(2).max(1) };
    }

    /// The server answered.
    pub(super) fn succeeded(&self) {
        self.state.lock().breaker.succeeded();
    }

    /// A probe succeeded: sends what waited for it, over the probe's connection first.
    pub(super) fn resume(self: &Arc<Self>, link: Box<dyn Link>) {
        let mut state = self.state.lock();
        state.breaker.succeeded();
        state.connections += 1;
        tokio::spawn(work(Arc::clone(self), Some(link)));
        self.connect_as_needed(&mut state);
    }

    /// The server failed; if it rests from now on, what waits goes to the next server.
    pub(super) fn failed(self: &Arc<Self>, failure: Failure) {
        let drained = {
            let mut state = self.state.lock();
            if state.breaker.failed(failure, std::time::Instant::now()) {
                std::mem::take(&mut state.queue)
            } else {
                VecDeque::new()
            }
        };
        if !drained.is_empty() {
            tracing::debug!(upstream = %self.origin.label, "is left alone after failures");
        }
        self.fail_all(drained.into(), &UpstreamError::Resting { url: self.label() });
    }

    /// Stops waiting for a probe.
    pub(super) fn give_up_waiting(self: &Arc<Self>) {
        let drained = {
            let mut state = self.state.lock();
            if state.breaker.is_working() {
                VecDeque::new()
            } else {
                std::mem::take(&mut state.queue)
            }
        };
        self.fail_all(drained.into(), &UpstreamError::Resting { url: self.label() });
    }

    /// Forgets past failures.
    pub(super) fn forgive(&self) {
        self.state.lock().breaker.forgive(std::time::Instant::now());
    }

    /// Whether the server is not resting.
    pub(super) fn is_working(&self) -> bool {
        self.state.lock().breaker.is_working()
    }

    /// Notes the failure on each request and passes them on.
    pub(super) fn fail_all(&self, mut requests: Vec<Request>, error: &UpstreamError) {
        for request in &mut requests {
            request.failed(error);
        }
        self.pass_on(requests);
    }

    /// Asks the next server, or replies if there is none.
    pub(super) fn pass_on(&self, mut requests: Vec<Request>) {
        requests.retain(|request| !request.is_abandoned());
        match &self.next {
            Some(next) => {
                requests.iter_mut().for_each(Request::start_over);
                next.enqueue(requests);
            }
            None => requests.into_iter().for_each(Request::conclude),
        }
    }

    /// Takes back what a connection left unanswered, in order, and judges why.
    fn settle(self: &Arc<Self>, unanswered: VecDeque<Request>, ending: Ending) {
        let (error, failure, is_every_ones_fault) = match ending {
            Ending::Stale | Ending::Limit => {
                // Nobody's fault: send them again over a new connection.
                return self.put_back(unanswered);
            }
            Ending::Closed { answered } => {
                let had_answered = answered > 0;
                if had_answered {
                    self.learn_limit(answered, true);
                }
                let error = UpstreamError::Closed { url: self.url_of_first(&unanswered) };
                (error, (!had_answered).then_some(Failure::Quick), !had_answered)
            }
            Ending::Silent { after } => {
                let url = self.url_of_first(&unanswered);
                let during = "a narinfo was asked for";
                let error = UpstreamError::Silent { url, after, during };
                self.fail_all(unanswered.into(), &error);
                return self.failed(Failure::Slow);
            }
            Ending::TooLong(problem) => {
                let url = self.url_of_first(&unanswered);
                let mut unanswered = unanswered;
                if let Some(first) = unanswered.pop_front() {
                    self.fail_all(vec![first], &UpstreamError::Protocol { url, problem });
                }
                self.put_back(unanswered);
                return self.failed(Failure::Quick);
            }
            Ending::Garbage(problem) => {
                let url = self.url_of_first(&unanswered);
                self.fail_all(unanswered.into(), &UpstreamError::Protocol { url, problem });
                return self.failed(Failure::Slow);
            }
        };
        let (mut kept, mut lost) = (VecDeque::new(), Vec::new());
        for (position, mut request) in unanswered.into_iter().enumerate() {
            request.attempts += u8::from(position == 0 || is_every_ones_fault);
            if request.attempts < MAX_ATTEMPTS {
                kept.push_back(request);
            } else {
                lost.push(request);
            }
        }
        self.put_back(kept);
        self.fail_all(lost, &error);
        if let Some(failure) = failure {
            self.failed(failure);
        }
    }

    /// Sends requests again, before all that wait; a resting server's go to the next one.
    fn put_back(self: &Arc<Self>, mut requests: VecDeque<Request>) {
        let mut state = self.state.lock();
        if state.breaker.is_working() {
            requests.append(&mut state.queue);
            state.queue = requests;
            self.wake.notify_waiters();
        } else {
            drop(state);
            self.fail_all(requests.into(), &UpstreamError::Resting { url: self.label() });
        }
    }

    /// Whether a connection task has more to do; if not, it no longer counts.
    fn goes_on(&self) -> bool {
        let mut state = self.state.lock();
        let goes_on =
            state.breaker.is_working() && !state.queue.is_empty() && !self.stop.is_cancelled();
        if !goes_on {
            state.connections -= 1;
        }
        goes_on
    }

    /// The server's base URL.
    pub(super) fn label(&self) -> Arc<str> {
        Arc::clone(&self.origin.label)
    }

    /// Where the server keeps the narinfo of `hash`.
    pub(super) fn narinfo_url(&self, hash: StoreHash) -> Arc<str> {
        format!("{}/{hash}.narinfo", self.origin.label).into()
    }

    fn url_of_first(&self, requests: &VecDeque<Request>) -> Arc<str> {
        requests.front().map_or_else(|| self.label(), |first| self.narinfo_url(first.hash))
    }
}

/// One connection's life: connect, answer, and again while requests wait.
async fn work(pipeline: Arc<Pipeline>, mut link: Option<Box<dyn Link>>) {
    loop {
        let stop = pipeline.stop.clone();
        let connected = match link.take() {
            Some(link) => Ok(link),
            None => tokio::select! {
                connected = pipeline.dial() => connected,
                () = stop.cancelled() => Err(UpstreamError::GivenUp { url: pipeline.label() }),
            },
        };
        match connected {
            Ok(link) => {
                let (unanswered, ending) = exchange::exchange(&pipeline, link).await;
                pipeline.settle(unanswered, ending);
            }
            Err(error) => {
                tracing::debug!(%error, "no connection to a substitute server");
                pipeline.failed(failure_of(&error));
                tokio::time::sleep(RECONNECT_PAUSE).await;
            }
        }
        if !pipeline.goes_on() {
            break;
        }
    }
}

/// How much a failure to connect counts.
pub(super) fn failure_of(error: &UpstreamError) -> Failure {
    match error {
        UpstreamError::Silent { .. } => Failure::Slow,
        UpstreamError::Connect { source, .. } if source.kind() == io::ErrorKind::TimedOut => {
            Failure::Slow
        }
        _ => Failure::Quick,
    }
}
