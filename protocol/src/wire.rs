//! The messages between peers: how each is framed, encoded and bounded.
//!
//! A frame is the number of octets that follow (`u32`, big-endian), the kind of the message (one
//! octet), and its body: one CBOR map whose keys are one-character tags that are never given a
//! second meaning. Unknown tags are skipped, unknown kinds are faults: a new kind of message needs
//! a new version in the protocol's name. The size limit of a kind is known from the five octets
//! of the header, so nothing is allocated for a body that is too long.
//!
//! | protocol | from | kind | message | largest body |
//! |---|---|---|---|---|
//! | `/narswarm/query/1` | asker | 1 | [`query::QueryRequest`] | 20 KB |
//! | | holder | 2 | [`query::QueryResponse`] | 1 MiB, 8 MiB in all |
//! | `/narswarm/fetch/1` | asker | 1 | [`fetch::FetchRequest::Open`] | 512 B |
//! | | asker | 2 | [`fetch::FetchRequest::Want`] | 512 B |
//! | | asker | 3 | [`fetch::FetchRequest::Cancel`] | 512 B |
//! | | asker | 4 | [`fetch::FetchRequest::Close`] | 512 B |
//! | | holder | 17 | [`fetch::FetchReply::Opened`] | 132 KiB |
//! | | holder | 18 | [`fetch::FetchReply::Refused`] | 512 B |
//! | | holder | 19 | [`fetch::FetchReply::Piece`], then the frame's octets outside the CBOR | 512 B |
//! | | holder | 20 | [`fetch::FetchReply::Missing`] | 512 B |
//! | | holder | 21 | [`fetch::FetchReply::Have`] | 16 KiB |
//! | `/narswarm/announce/1` | asker | 1–4 | [`announce::AnnounceRequest`] | 66 KiB |
//! | | keeper | 17 | [`announce::AnnounceReply`] | 384 KiB |
//! | `/narswarm/filter/1` | asker | 1 | [`filter::FilterRequest`] | 64 B |
//! | | seed | 17 | [`filter::FilterReply::Head`] | 256 B |
//! | | seed | 18 | [`filter::FilterReply::Chunk`] | 256 KiB, 32 MiB in all |

pub mod announce;
pub mod bounded;
pub mod fetch;
pub mod filter;
pub mod query;

#[cfg(test)]
mod tests;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Octets before a body: the length and the kind.
pub const HEADER_BYTES: usize = 5;

/// How deep the CBOR of a body may nest. Ours nests three levels; the rest is room for fields of
/// later versions, which are skipped by recursion.
const MAX_NESTING: usize = 16;

/// Why octets are not the message that they claim to be. Each is the sender's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A frame shorter than its kind octet.
    #[error("{message}: an empty frame")]
    Empty {
        /// The direction of the protocol that was being read.
        message: &'static str,
    },
    /// A kind that this direction of this protocol doesn't have.
    #[error("{message}: no message has kind {kind}")]
    Kind {
        /// The direction of the protocol that was being read.
        message: &'static str,
        /// The kind octet.
        kind: u8,
    },
    /// A body above the limit of its kind.
    #[error("{message}: a body of {found} octets for kind {kind}, at most {limit} are allowed")]
    TooLong {
        /// The direction of the protocol that was being read.
        message: &'static str,
        /// The kind octet.
        kind: u8,
        /// Octets announced.
        found: usize,
        /// Octets allowed.
        limit: usize,
    },
    /// The body is not CBOR of the right shape.
    #[error("{message}: malformed body of kind {kind}: {reason}")]
    Malformed {
        /// The direction of the protocol that was being read.
        message: &'static str,
        /// The kind octet.
        kind: u8,
        /// What the decoder says.
        reason: String,
    },
    /// A field is out of its bounds.
    #[error("{message}: {field} is {found}, beyond {limit}")]
    Field {
        /// The direction of the protocol that was being read.
        message: &'static str,
        /// The field.
        field: &'static str,
        /// Its value.
        found: u64,
        /// The largest value, or the exact one.
        limit: u64,
    },
}

/// The five octets before a body, read and within the limit of their kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The kind of the message.
    pub kind: u8,
    /// Octets of its body.
    pub body_len: usize,
}

/// All messages of one direction of one protocol.
pub trait Message: Sized {
    /// What the direction is called in errors.
    const NAME: &'static str;

    /// The largest body of messages of this kind, in octets; `None` if there is no such kind.
    fn limit(kind: u8) -> Option<usize>;

    /// Reads a body.
    ///
    /// # Errors
    /// See [`WireError`]; whatever is returned as `Ok` is within all bounds.
    fn decode(kind: u8, body: &[u8]) -> Result<Self, WireError>;

    /// Appends the body to `out` and returns its kind.
    fn encode_body(&self, out: &mut Vec<u8>) -> u8;

    /// Reads a header and checks the announced length against the limit of its kind.
    ///
    /// # Errors
    /// [`WireError::Empty`], [`WireError::Kind`] or [`WireError::TooLong`].
    fn header(octets: [u8; HEADER_BYTES]) -> Result<Header, WireError> {
        let [a, b, c, d, kind] = octets;
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        let body_len = len.checked_sub(1).ok_or(WireError::Empty { message: Self::NAME })?;
        let limit = Self::limit(kind).ok_or(WireError::Kind { message: Self::NAME, kind })?;
        if body_len > limit {
            let (message, found) = (Self::NAME, body_len);
            return Err(WireError::TooLong { message, kind, found, limit });
        }
        Ok(Header { kind, body_len })
    }

    /// Appends the whole frame to `out`.
    fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER_BYTES]);
        let kind = self.encode_body(out);
        let len = (out.len() - start - HEADER_BYTES + 1) as u32;
        out[start..start + 4].copy_from_slice(&len.to_be_bytes());
        out[start + 4] = kind;
    }
}

/// Appends a body as CBOR.
fn write_body<T: Serialize>(body: &T, out: &mut Vec<u8>) {
    ciborium::into_writer(body, out).expect("a vector takes every octet and derived maps encode");
}

/// Reads a body that is exactly one CBOR item.
fn read_body<M: Message, T: DeserializeOwned>(kind: u8, body: &[u8]) -> Result<T, WireError> {
    let malformed = |reason| WireError::Malformed { message: M::NAME, kind, reason };
    let limit = M::limit(kind).ok_or(WireError::Kind { message: M::NAME, kind })?;
    if body.len() > limit {
        return Err(WireError::TooLong { message: M::NAME, kind, found: body.len(), limit });
    }
    let mut rest = body;
    let value = ciborium::de::from_reader_with_recursion_limit(&mut rest, MAX_NESTING)
        .map_err(|error| malformed(describe(&error)))?;
    if !rest.is_empty() {
        return Err(malformed(format!("{} octets after the body", rest.len())));
    }
    Ok(value)
}

/// Says in a few words what is wrong, without repeating what a stranger wrote.
fn describe<E>(error: &ciborium::de::Error<E>) -> String {
    use ciborium::de::Error;
    match error {
        Error::Io(_) => "cut off".to_owned(),
        Error::Syntax(offset) => format!("no CBOR at octet {offset}"),
        Error::Semantic(Some(offset), _) => format!("an unexpected item at octet {offset}"),
        Error::Semantic(None, _) => "an unexpected or missing item".to_owned(),
        Error::RecursionLimitExceeded => "nested too deep".to_owned(),
    }
}
