//! One narinfo asked for, and the reply it must get: exactly one, whatever happens on the way.
//!
//! A request belongs to a batch, remembers what the servers asked so far said, and replies when
//! the last of them has spoken. If it is lost (a task that panics, a node that stops), dropping
//! it replies too.

use super::error::UpstreamError;
use bytes::Bytes;
use futures::Stream;
use narswarm_protocol::limits::MAX_WAITING_NARINFO_BYTES;
use narswarm_protocol::store_path::StoreHash;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

/// How long a connection waits for an asker that takes no replies before it gives the reply up:
/// others wait on the same connection.
const ASKER_PATIENCE: Duration = Duration::from_secs(10);

/// What the substitute servers said about one store hash.
#[derive(Debug, Clone)]
pub enum NarinfoReply {
    /// A server gave a narinfo. Nothing about it has been checked, not even that it is about the
    /// item asked for.
    Found {
        /// Which server, as in [`super::Upstreams::url`].
        upstream: usize,
        /// The narinfo.
        body: Bytes,
    },
    /// Every server answered, and none has it.
    NotFound {
        /// The shortest `max-age` that came with a miss: when to ask again.
        max_age: Option<Duration>,
    },
    /// No server that could be asked has it, and at least one could not be asked.
    Failed(UpstreamError),
}

/// The replies to one batch as they come, in any order, one for each hash asked for.
///
/// Dropping it cancels what has not been sent yet.
#[derive(Debug)]
pub struct NarinfoReplies {
    replies: mpsc::UnboundedReceiver<Reply>,
}

impl NarinfoReplies {
    /// The next reply; `None` when each hash has had its reply.
    pub async fn next(&mut self) -> Option<(StoreHash, NarinfoReply)> {
        self.replies.recv().await.map(|reply| (reply.hash, reply.reply))
    }

    /// Appends the replies that are there, at most `limit`, to `to`, waiting for the first; 0 when
    /// each hash has had its reply. Cancelling it loses nothing.
    pub async fn next_many(
        &mut self,
        to: &mut Vec<(StoreHash, NarinfoReply)>,
        limit: usize,
    ) -> usize {
        let Some(first) = self.next().await else { return 0 };
        to.push(first);
        let mut count = 1;
        while count < limit {
            let Ok(reply) = self.replies.try_recv() else { break };
            to.push((reply.hash, reply.reply));
            count += 1;
        }
        count
    }
}

impl Stream for NarinfoReplies {
    type Item = (StoreHash, NarinfoReply);

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.replies.poll_recv(cx).map(|reply| reply.map(|reply| (reply.hash, reply.reply)))
    }
}

#[derive(Debug)]
struct Reply {
    hash: StoreHash,
    reply: NarinfoReply,
    /// Gives the room back when the asker takes the reply.
    _room: Option<OwnedSemaphorePermit>,
}

/// Where the replies of one batch go.
#[derive(Debug)]
struct Batch {
    /// Unbounded in number, since the asker chose it; bounded in octets by `room`.
    replies: mpsc::UnboundedSender<Reply>,
    room: Arc<Semaphore>,
}

/// One narinfo that somebody wants.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) hash: StoreHash,
    /// Connections that broke while this was the request to answer.
    pub(super) attempts: u8,
    /// When the server it now waits for was first to be asked.
    pub(super) since: Instant,
    batch: Arc<Batch>,
    max_age: Option<Duration>,
    failure: Option<UpstreamError>,
    is_answered: bool,
}

/// A batch of requests and the stream of their replies.
pub(super) fn batch(hashes: Vec<StoreHash>) -> (Vec<Request>, NarinfoReplies) {
    let (sender, replies) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(MAX_WAITING_NARINFO_BYTES));
    let batch = Arc::new(Batch { replies: sender, room });
    let since = Instant::now();
    let requests = hashes
        .into_iter()
        .map(|hash| Request {
            hash,
            attempts: 0,
            since,
            batch: Arc::clone(&batch),
            max_age: None,
            failure: None,
            is_answered: false,
        })
        .collect();
    (requests, NarinfoReplies { replies })
}

impl Request {
    /// Whether nobody waits for the reply any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.batch.replies.is_closed()
    }

    /// Replies with a narinfo, waiting for room if the asker is slow.
    pub(super) async fn found(mut self, upstream: usize, body: Bytes, url: &Arc<str>) {
        // A body is at most MAX_NARINFO_BYTES, which fits both the semaphore and 32 bits.
        let octets = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.batch.room);
        let permit = match Arc::clone(&room).try_acquire_many_owned(octets) {
            Ok(permit) => Some(permit),
            Err(_) => tokio::select! {
                permit = room.acquire_many_owned(octets) => permit.ok(),
                () = self.batch.replies.closed() => None,
                () = tokio::time::sleep(ASKER_PATIENCE) => None,
            },
        };
        match permit {
            Some(_) => self.reply(NarinfoReply::Found { upstream, body }, permit),
            None => {
                let url = Arc::clone(url);
                self.reply(NarinfoReply::Failed(UpstreamError::GivenUp { url }), None);
            }
        }
    }

    /// Notes that a server answered and does not have it.
    pub(super) fn missed(&mut self, max_age: Option<Duration>) {
        self.max_age = match (self.max_age, max_age) {
            (Some(known), Some(told)) => Some(known.min(told)),
            (known, told) => known.or(told),
        };
    }

    /// Notes that a server could not be asked. The first failure is the one that is told.
    pub(super) fn failed(&mut self, error: &UpstreamError) {
        self.failure.get_or_insert_with(|| error.clone());
    }

    /// Readies the request for the next server.
    pub(super) fn start_over(&mut self) {
        self.attempts = 0;
        self.since = Instant::now();
    }

    /// Replies with what the servers said; there is none left to ask.
    pub(super) fn conclude(mut self) {
        let reply = match self.failure.take() {
            Some(error) => NarinfoReply::Failed(error),
            None => NarinfoReply::NotFound { max_age: self.max_age },
        };
        self.reply(reply, None);
    }

    fn reply(&mut self, reply: NarinfoReply, room: Option<OwnedSemaphorePermit>) {
        self.is_answered = true;
        // An asker that went away needs no reply.
        let _ = self.batch.replies.send(Reply { hash: self.hash, reply, _room: room });
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if !self.is_answered {
            let url = Arc::from("the substitute servers");
            self.reply(NarinfoReply::Failed(UpstreamError::GivenUp { url }), None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(count: u8) -> Vec<StoreHash> {
        (0..count).map(|n| StoreHash([n; 20])).collect()
    }

    #[tokio::test]
    async fn every_request_replies_even_when_it_is_lost() {
        let (requests, mut replies) = batch(hashes(3));
        let url: Arc<str> = Arc::from("http://x");
        for (n, mut request) in requests.into_iter().enumerate() {
            match n {
                0 => request.found(7, Bytes::from_static(b"narinfo"), &url).await,
                1 => {
                    request.missed(Some(Duration::from_secs(9)));
                    request.missed(Some(Duration::from_secs(5)));
                    request.missed(None);
                    request.conclude();
                }
                _ => drop(request),
            }
        }
        let mut seen = Vec::new();
        while let Some((_, reply)) = replies.next().await {
            seen.push(reply);
        }
        assert!(matches!(&seen[0], NarinfoReply::Found { upstream: 7, body } if body == "narinfo"));
        let five = Some(Duration::from_secs(5));
        assert!(matches!(seen[1], NarinfoReply::NotFound { max_age } if max_age == five));
        assert!(matches!(seen[2], NarinfoReply::Failed(UpstreamError::GivenUp { .. })));
        assert_eq!(seen.len(), 3);
    }

    #[tokio::test]
    async fn an_asker_that_takes_nothing_does_not_fill_the_memory() {
        use futures::FutureExt;
        let (requests, mut replies) = batch(hashes(17));
        let url: Arc<str> = Arc::from("http://x");
        let body = Bytes::from(vec![0; MAX_WAITING_NARINFO_BYTES / 16]);
        let mut waiting = Vec::new();
        for request in requests {
            let mut found = Box::pin(request.found(0, body.clone(), &url));
            if found.as_mut().now_or_never().is_none() {
                waiting.push(found);
            }
        }
        assert_eq!(waiting.len(), 1);
        assert!(replies.next().await.is_some());
        waiting.remove(0).await;
        while let Some((_, reply)) = replies.next().await {
            assert!(matches!(reply, NarinfoReply::Found { .. }));
        }
    }
}
