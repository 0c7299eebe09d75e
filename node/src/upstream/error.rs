//! What can go wrong between this node and a substitute server, told apart by what to do next:
//! an item that is *not here* is asked of the next server, a *broken* server is left alone for a
//! while.

use narswarm_protocol::narinfo::Compression;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Why a substitute server did not give what it was asked for.
///
/// Cheap to clone: one broken connection fails a thousand requests with the same cause.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UpstreamError {
    /// No substitute server has this number.
    #[error("there is no substitute server number {index}, only {count}")]
    NoSuchUpstream {
        /// The number asked for, from zero.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// A URL in a narinfo that is not followed.
    #[error("the URL {url:?} is not followed: {reason}")]
    Url {
        /// As it stood in the narinfo, joined with the server's base.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The server failed repeatedly a short while ago and is being left alone.
    #[error("{url} is left alone for a while after repeated failures")]
    Resting {
        /// Base URL of the server.
        url: Arc<str>,
    },
    /// No connection: refused, unreachable, unknown name, or a failed TLS handshake.
    #[error("cannot connect to {url}: {source}")]
    Connect {
        /// Base URL of the server.
        url: Arc<str>,
        /// What the operating system, the resolver or TLS said.
        source: Arc<io::Error>,
    },
    /// Nothing happened for too long.
    #[error("{url} was silent for {after:?} while {during}")]
    Silent {
        /// What was asked for.
        url: Arc<str>,
        /// How long was waited.
        after: Duration,
        /// What was being waited for.
        during: &'static str,
    },
    /// The connection ended before the answer did.
    #[error("{url} closed the connection before it had answered")]
    Closed {
        /// What was asked for.
        url: Arc<str>,
    },
    /// The answer is not HTTP, or HTTP that no honest server sends.
    #[error("{url} answered with something that is not HTTP/1.1: {problem}")]
    Protocol {
        /// What was asked for.
        url: Arc<str>,
        /// What was wrong with it.
        problem: ResponseProblem,
    },
    /// 404 or 410.
    #[error("{url} is not there (status {status})")]
    NotHere {
        /// What was asked for.
        url: Arc<str>,
        /// The status.
        status: u16,
    },
    /// Another status than 200.
    #[error("{url} answered with status {status}")]
    Status {
        /// What was asked for.
        url: Arc<str>,
        /// The status.
        status: u16,
    },
    /// The HTTP client failed while it fetched a nar.
    #[error("fetching {url} failed: {source}")]
    Transfer {
        /// What was asked for.
        url: Arc<str>,
        /// The cause.
        source: Arc<reqwest::Error>,
    },
    /// The compressed stream does not decode.
    #[error("{url} does not decode as {compression:?}: {source}")]
    Corrupt {
        /// What was asked for.
        url: Arc<str>,
        /// The compression.
        compression: Compression,
        /// What the decoder said.
        source: Arc<io::Error>,
    },
    /// More octets than the narinfo's signed part says.
    #[error("{url} holds more than the {nar_size} octets of its NarSize")]
    TooLong {
        /// What was asked for.
        url: Arc<str>,
        /// The signed NarSize.
        nar_size: u64,
    },
    /// Fewer octets than the narinfo's signed part says.
    #[error("{url} ended after {received} of the {nar_size} octets of its NarSize")]
    TooShort {
        /// What was asked for.
        url: Arc<str>,
        /// Decoded octets received.
        received: u64,
        /// The signed NarSize.
        nar_size: u64,
    },
    /// The caller took no replies for too long, or the node is shutting down.
    #[error("the request to {url} was given up")]
    GivenUp {
        /// Base URL of the server.
        url: Arc<str>,
    },
}

impl UpstreamError {
    /// Whether the server works and merely lacks the thing, as opposed to being broken.
    #[must_use]
    pub fn is_not_here(&self) -> bool {
        matches!(self, Self::NotHere { .. })
    }
}

/// What makes bytes no acceptable HTTP/1.1 response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResponseProblem {
    /// Status line or headers do not parse.
    #[error("the status line or headers do not parse: {0}")]
    Head(httparse::Error),
    /// Status line and headers are longer than anyone needs.
    #[error("status line and headers exceed {limit} octets")]
    HeadTooLong {
        /// Most octets that are read.
        limit: usize,
    },
    /// Two lengths that differ, a length that is no number, or an unknown transfer coding.
    #[error("the length of the body is not told in a way that can be trusted")]
    Length,
    /// The chunked framing is broken.
    #[error("the chunked body is malformed")]
    Chunk,
    /// The body is longer than a narinfo can be.
    #[error("the body exceeds {limit} octets")]
    BodyTooLong {
        /// Most octets that are read.
        limit: usize,
    },
    /// Too many provisional (1xx) responses before the real one.
    #[error("too many provisional responses")]
    Provisional,
}
