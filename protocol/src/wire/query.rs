//! `/narswarm/query/1`: "which of these store items do you hold?", in one round trip.
//!
//! The asker opens a stream, sends one [`QueryRequest`] and closes its side. The holder answers
//! with frames of [`QueryResponse`], the last one marked. An item that no answer mentions is not
//! held (or not public: the two can't be told apart). A holder stops at
//! [`MAX_QUERY_ANSWER_BYTES`](crate::limits::MAX_QUERY_ANSWER_BYTES) and says from which hash on
//! it has to be asked again.

use super::{Message, WireError, bounded, read_body, write_body};
use crate::hash::Root;
use crate::limits::{
    MAX_ANSWERS_BODY_BYTES, MAX_NARINFO_BYTES, MAX_PIECES, MAX_QUERY_BODY_BYTES, MAX_QUERY_HASHES,
};
use crate::store_path::StoreHash;
use serde::{Deserialize, Serialize};

/// The name under which libp2p negotiates this protocol.
pub const PROTOCOL: &str = "/narswarm/query/1";

/// Octets of one store hash on the wire.
const STORE_HASH_BYTES: usize = 20;

/// The CBOR around an answer's narinfo is at most this long: a map header, four tags, a root of
/// 34 octets, two numbers of 5 and a byte string's header of 5, rounded up.
pub const ANSWER_OVERHEAD_BYTES: usize = 64;

/// The asker's only message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryRequest {
    /// At most [`MAX_QUERY_HASHES`].
    pub hashes: Vec<StoreHash>,
}

/// One frame of answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct QueryResponse {
    /// Answers with rising indices, this frame's after those of the frames before.
    pub answers: Vec<Answer>,
    /// Whether no frame follows.
    pub last: bool,
    /// In the last frame: the first hash that was not looked at because the answer was full.
    pub ask_again_from: Option<u32>,
}

/// A held item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Which hash of the request this answers, counted from zero.
    #[serde(rename = "i")]
    pub index: u32,
    /// The signed narinfo, unverified.
    #[serde(rename = "n", with = "serde_bytes")]
    pub narinfo: Vec<u8>,
    /// The root, when the holder has hashed the nar.
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
    /// How many pieces of the nar the holder can give.
    #[serde(rename = "p")]
    pub pieces_held: u32,
}

#[derive(Serialize, Deserialize)]
struct RequestBody {
    /// All hashes in one byte string.
    #[serde(rename = "h", with = "serde_bytes")]
    hashes: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct ResponseBody {
    #[serde(rename = "a", deserialize_with = "bounded::vec::<_, _, MAX_QUERY_HASHES>")]
    answers: Vec<Answer>,
    #[serde(rename = "l", default, skip_serializing_if = "std::ops::Not::not")]
    last: bool,
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    ask_again_from: Option<u32>,
}

impl Message for QueryRequest {
    const NAME: &'static str = "query request";

    fn limit(kind: u8) -> Option<usize> {
        (kind == 1).then_some(MAX_QUERY_BODY_BYTES)
    }

    fn decode(kind: u8, body: &[u8]) -> Result<Self, WireError> {
        let body: RequestBody = read_body::<Self, _>(kind, body)?;
        let (hashes, rest) = body.hashes.as_chunks::<STORE_HASH_BYTES>();
        let field = |field, found: usize, limit: usize| {
            let (found, limit) = (found as u64, limit as u64);
            Err(WireError::Field { message: Self::NAME, field, found, limit })
        };
        if !rest.is_empty() {
            return field("the length of the last hash", rest.len(), STORE_HASH_BYTES);
        }
        if hashes.len() > MAX_QUERY_HASHES {
            return field("the number of hashes", hashes.len(), MAX_QUERY_HASHES);
        }
        Ok(Self { hashes: hashes.iter().copied().map(StoreHash).collect() })
    }

    fn encode_body(&self, out: &mut Vec<u8>) -> u8 {
        let hashes = self.hashes.iter().flat_map(|hash| hash.0).collect();
        write_body(&RequestBody { hashes }, out);
        1
    }
}

impl Message for QueryResponse {
    const NAME: &'static str = "query response";

    fn limit(kind: u8) -> Option<usize> {
        (kind == 2).then_some(MAX_ANSWERS_BODY_BYTES)
    }

    fn decode(kind: u8, body: &[u8]) -> Result<Self, WireError> {
        let ResponseBody { answers, last, ask_again_from } = read_body::<Self, _>(kind, body)?;
        let field = |field, found: u64, limit: u64| {
            Err(WireError::Field { message: Self::NAME, field, found, limit })
        };
        let mut least = 0;
        for answer in &answers {
            let index = answer.index;
            if index as usize >= MAX_QUERY_HASHES || index < least {
                return field("an answer's index", index.into(), MAX_QUERY_HASHES as u64 - 1);
            }
            least = index + 1;
            if answer.narinfo.len() > MAX_NARINFO_BYTES {
                let found = answer.narinfo.len() as u64;
                return field("a narinfo's length", found, MAX_NARINFO_BYTES as u64);
            }
            if answer.pieces_held > MAX_PIECES {
                return field("the pieces held", answer.pieces_held.into(), MAX_PIECES.into());
            }
        }
        Ok(Self { answers, last, ask_again_from })
    }

    fn encode_body(&self, out: &mut Vec<u8>) -> u8 {
        // Encoded field by field from a borrow, so that narinfos are not copied twice.
        #[derive(Serialize)]
        struct Borrowed<'a> {
            #[serde(rename = "a")]
            answers: &'a [Answer],
            #[serde(rename = "l", skip_serializing_if = "std::ops::Not::not")]
            last: bool,
            #[serde(rename = "m", skip_serializing_if = "Option::is_none")]
            ask_again_from: Option<u32>,
        }
        let Self { answers, last, ask_again_from } = self;
        write_body(&Borrowed { answers, last: *last, ask_again_from: *ask_again_from }, out);
        2
    }
}
