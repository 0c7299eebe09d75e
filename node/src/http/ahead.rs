//! Reading ahead: requests are parsed as they arrive, and all narinfos that were asked for at
//! once are resolved at once, however long the answers before them take.
//!
//! What is read ahead is bounded, in requests and in bytes; beyond that the client's own writes
//! block until answers have gone out.

use super::backend::NarinfoAnswer;
use super::request::{Refusal, Request};
use super::route::Route;
use super::server::Site;
use super::socket::{Gone, Read, Socket};
use bytes::{Buf, BytesMut};
use futures::future::BoxFuture;
use narswarm_protocol::limits::{MAX_DISCARDED_BYTES, MAX_READ_AHEAD_BYTES, MAX_REQUESTS_AHEAD};
use std::collections::VecDeque;
use std::future::pending;
use tokio::time::Instant;

/// Read at a time: half a burst of guix's.
const READ_CHUNK_BYTES: usize = 64 * 1024;

/// A queue that has grown beyond this is given back when the connection idles.
const IDLE_QUEUE_LENGTH: usize = 16;

/// A request in the queue, and for narinfos the answer that is being found.
pub(super) struct Asked {
    pub request: Request,
    pub answer: Option<Awaited>,
}

/// An answer that is being found.
pub(super) struct Awaited {
    pub future: BoxFuture<'static, NarinfoAnswer>,
    pub since: Instant,
}

/// What has been read of a connection and not been answered yet.
#[derive(Default)]
pub(super) struct Ahead {
    queue: VecDeque<Asked>,
    /// Bytes that are not parsed yet: the beginning of a head, or what the queue has no room for.
    unparsed: BytesMut,
    /// Whole requests may stand in `unparsed`, because the queue was full.
    has_backlog: bool,
    /// No request after those in the queue will be read.
    last_was_read: bool,
    /// Bytes thrown away behind the last request.
    discarded: usize,
    /// When the client's end of file arrived. It may still be reading.
    ended_at: Option<Instant>,
}

impl Ahead {
    /// The next request, in the order of their arrival.
    pub fn pop(&mut self, site: &Site) -> Option<Asked> {
        // Refilling at the half keeps the batches large.
        if self.has_backlog && self.queue.len() <= MAX_REQUESTS_AHEAD / 2 {
            self.parse(site);
        }
        self.queue.pop_front()
    }

    /// Whether no request will come any more.
    pub fn is_finished(&self) -> bool {
        self.queue.is_empty() && (self.last_was_read || self.ended_at.is_some())
    }

    /// When the client's end of file arrived, if it has.
    pub fn ended_at(&self) -> Option<Instant> {
        self.ended_at
    }

    /// Whether the beginning of a request has arrived, but not its end.
    pub fn is_in_mid_head(&self) -> bool {
        !self.unparsed.is_empty()
    }

    /// Whether a request waits in the queue.
    pub fn has_requests(&self) -> bool {
        !self.queue.is_empty()
    }

    /// From now on, whatever comes is thrown away.
    pub fn discard(&mut self) {
        self.last_was_read = true;
        self.has_backlog = false;
        self.queue = VecDeque::new();
        self.unparsed = BytesMut::new();
    }

    /// Takes what is left of the connection as refused: its last request.
    pub fn refuse_rest(&mut self, refusal: Refusal) {
        self.last_was_read = true;
        self.unparsed = BytesMut::new();
        self.queue.push_back(Asked { request: Request::refused(refusal), answer: None });
    }

    /// Gives back the memory that a burst took.
    pub fn shrink(&mut self) {
        if self.queue.capacity() > IDLE_QUEUE_LENGTH {
            self.queue.shrink_to(IDLE_QUEUE_LENGTH);
        }
    }

    /// Waits for bytes, reads all that have arrived, and begins to resolve what they ask for.
    /// Never returns while there is no room, or when the client has sent its last byte. Can be
    /// cancelled at any time without losing anything.
    ///
    /// # Errors
    /// The client has reset the connection.
    pub async fn read(&mut self, socket: &Socket, site: &Site) -> Result<(), Gone> {
        if self.is_full() || self.ended_at.is_some() {
            return pending().await;
        }
        socket.readable().await?;
        while !self.is_full() {
            let room = MAX_READ_AHEAD_BYTES - self.unparsed.len();
            self.unparsed.reserve(room.min(READ_CHUNK_BYTES));
            match socket.read(&mut self.unparsed)? {
                Read::Bytes(count) if self.last_was_read => {
                    self.discarded += count;
                    self.unparsed.clear();
                }
                Read::Bytes(_) => {}
                Read::Nothing => break,
                Read::End => {
                    self.ended_at = Some(Instant::now());
                    break;
                }
            }
        }
        socket.acknowledge_quickly();
        self.parse(site);
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.unparsed.len() >= MAX_READ_AHEAD_BYTES || self.discarded >= MAX_DISCARDED_BYTES
    }

    /// Moves whole requests into the queue, and hands their narinfos on as one batch.
    fn parse(&mut self, site: &Site) {
        let first = self.queue.len();
        let mut hashes = Vec::new();
        while self.queue.len() < MAX_REQUESTS_AHEAD && !self.unparsed.is_empty() {
            let Some((request, length)) = Request::parse(&self.unparsed, &site.hosts) else {
                break;
            };
            self.unparsed.advance(length);
            if let Ok(Route::Narinfo(hash)) = request.target {
                hashes.push(hash);
            }
            let is_last = !request.keep_alive;
            self.queue.push_back(Asked { request, answer: None });
            if is_last {
                self.last_was_read = true;
                self.unparsed.clear();
            }
        }
        self.has_backlog = self.queue.len() >= MAX_REQUESTS_AHEAD && !self.unparsed.is_empty();
        // A short rest must not keep a long buffer alive.
        if self.unparsed.is_empty() {
            self.unparsed = BytesMut::new();
        } else if self.unparsed.capacity() > READ_CHUNK_BYTES.max(2 * self.unparsed.len()) {
            self.unparsed = BytesMut::from(&self.unparsed[..]);
        }
        if !hashes.is_empty() {
            site.metrics.narinfo_batches.inc();
            let since = Instant::now();
            let mut answers = site.backend.resolve(&hashes).into_iter();
            for asked in self.queue.range_mut(first..) {
                if let Ok(Route::Narinfo(_)) = asked.request.target {
                    asked.answer = answers.next().map(|future| Awaited { future, since });
                }
            }
        }
    }
}
