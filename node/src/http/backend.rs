//! What the shim asks of the rest of the node, and the answers it can put into HTTP.
//!
//! The shim knows nothing of peers, upstreams or the store. Whatever a [`Backend`] answers must
//! already be trustworthy: narinfos signed for the very hash that was asked for, nar bytes that
//! are verified, or withheld until they are.

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use narswarm_protocol::hash::NarHash;
use narswarm_protocol::store_path::{ItemName, StoreHash};
use std::ops::Range;
use std::time::Duration;

use super::range::ByteRange;
use super::status::StatusReport;

/// The node, as the shim sees it.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Begins to resolve all of `hashes` together and returns at once; `answers[i]` belongs to
    /// `hashes[i]`. Called once for each batch that the look-ahead finds, with at most
    /// [`MAX_REQUESTS_AHEAD`](narswarm_protocol::limits::MAX_REQUESTS_AHEAD) hashes.
    ///
    /// The shim polls the answers one after the other, in the order of the requests, and drops
    /// those whose client has gone away: the work itself must not depend on being polled. An
    /// answer that takes longer than [`HttpConfig::narinfo_deadline`](super::HttpConfig) is
    /// answered as [`NarinfoAnswer::Unavailable`] in its place.
    fn resolve(&self, hashes: &[StoreHash]) -> Vec<BoxFuture<'static, NarinfoAnswer>>;

    /// Opens the nar of `item` in `form`.
    ///
    /// For [`NarWant::Head`] only the length and hash of the reply are used, its body is dropped
    /// unread. Dropping the returned future or the body means that the client has gone away.
    ///
    /// # Errors
    /// See [`NarRefusal`]; each becomes a complete HTTP answer, on which a client goes on to the
    /// next URL.
    async fn nar(
        &self,
        item: &ItemName,
        form: NarForm,
        want: NarWant,
    ) -> Result<NarReply, NarRefusal>;

    /// Opens the content-addressed file `name` whose content has the given SHA-256
    /// (`/file/NAME/sha256/HASH`, as `guix publish` serves sources). `name` is one that a store
    /// accepts.
    ///
    /// # Errors
    /// See [`NarRefusal`]. Without files, everything is [`NarRefusal::NotFound`].
    async fn file(
        &self,
        name: &str,
        sha256: [u8; 32],
        want: NarWant,
    ) -> Result<NarReply, NarRefusal> {
        let _ = (name, sha256, want);
        Err(NarRefusal::NotFound)
    }

    /// What the node is doing, for `/api/status` and the dashboard.
    fn status(&self) -> StatusReport;
}

/// The answer for one store hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NarinfoAnswer {
    /// The item is to be had.
    Hit {
        /// The narinfo, ready to send.
        body: Bytes,
        /// How long the client may keep it.
        max_age: Duration,
    },
    /// Nobody is known to have it (a 404).
    Miss {
        /// How long the client may believe that: short while the search goes on.
        max_age: Duration,
    },
    /// It could not be found out in time (a 404 too: clients keep misses only for as long as
    /// they are told, but keep any other status for a minute).
    Unavailable {
        /// How long the client shall wait before it asks again.
        max_age: Duration,
    },
}

/// The form in which a nar is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NarForm {
    /// The archive itself (`/nar/ITEM`).
    Plain,
    /// As zstd frames (`/nar/zstd/ITEM`).
    Zstd,
    /// As a narinfo from before 2022 names it in its signed part (`/nar/gzip/ITEM`).
    Signed(SignedCompression),
}

/// A compression that only signed URLs of old narinfos lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SignedCompression {
    /// gzip
    Gzip,
    /// lzip
    Lzip,
    /// xz
    Xz,
    /// bzip2
    Bzip2,
}

impl SignedCompression {
    /// The word that stands in URLs and after `Compression:`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Lzip => "lzip",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
        }
    }
}

/// How much of a nar is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NarWant {
    /// Its length and hash; no byte of it will be read.
    Head,
    /// Its bytes.
    Body {
        /// A part of them; [`ByteRange::resolve`] turns it into offsets once the length is
        /// known. A backend that cannot seek may ignore it and send all, saying so in
        /// [`NarReply::range`].
        range: Option<ByteRange>,
    },
}

/// A nar that is being sent.
pub struct NarReply {
    /// Bytes of the whole nar in the form that was asked for, whatever part of it is sent.
    pub length: u64,
    /// The bytes of it that `body` yields; `None` for all of them.
    pub range: Option<Range<u64>>,
    /// The nar's identity, where it is known; it becomes the ETag of the plain form.
    pub nar_hash: Option<NarHash>,
    /// Exactly the bytes announced, in chunks (256 KiB each are best: fewer bytes cost system
    /// calls, more cost memory). An error, a byte too few or too many, or a wait longer than
    /// [`HttpConfig::body_stall`](super::HttpConfig) resets the connection.
    pub body: BoxStream<'static, Result<Bytes, NarAborted>>,
}

impl std::fmt::Debug for NarReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NarReply")
            .field("length", &self.length)
            .field("range", &self.range)
            .field("nar_hash", &self.nar_hash)
            .finish_non_exhaustive()
    }
}

/// Why a nar is not sent.
#[derive(Debug, thiserror::Error)]
pub enum NarRefusal {
    /// No source has it in that form, or the node never vouched for it (404).
    #[error("no source has this item in this form")]
    NotFound,
    /// The range begins behind the end (416).
    #[error("the range lies outside the {length} bytes of the item")]
    RangeNotSatisfiable {
        /// Bytes of the whole.
        length: u64,
    },
    /// Too much is under way already (503).
    #[error("too many transfers are under way; retry in {} s", retry_after.as_secs())]
    Busy {
        /// When to come back.
        retry_after: Duration,
    },
    /// Sources were tried and failed (502).
    #[error("every source failed: {0}")]
    Failed(#[source] NarAborted),
    /// No source answered in time (504).
    #[error("no source answered in time")]
    TimedOut,
}

/// Why a nar ended before its last byte. Seen by the client as a reset connection, or as a 502
/// when no byte of the answer had been sent.
#[derive(Debug, thiserror::Error)]
pub enum NarAborted {
    /// The content does not have the signed hash.
    #[error("the content does not match its signed hash")]
    Mismatch,
    /// No source is left.
    #[error("every source was lost")]
    SourcesLost,
    /// No source delivered in time.
    #[error("no source delivered in time")]
    Stalled,
    /// Something failed on this machine.
    #[error("local failure: {0}")]
    Local(#[source] std::io::Error),
}
