//! `/narswarm/filter/1`: "what do you hold, and what has changed of it since?"
//!
//! The asker opens a stream and sends one [`FilterRequest`]. A seed answers with the signed head of
//! its filter, then with the octets that make it, in chunks: of all of it, of what has changed since
//! the one that the asker has, or none. Who is no seed, or has given the asker the whole a moment ago,
//! answers nothing.

use super::{Message, WireError, read_body, write_body};
use crate::filter::{FilterHead, Shape, SignedHead};
use crate::limits::{
    FILTER_CHUNK_BYTES, MAX_DELTA_BYTES, MAX_FILTER_BODY_BYTES, MAX_FILTER_BYTES, MAX_FILTER_ITEMS,
};
use serde::{Deserialize, Serialize};

/// The name under which libp2p negotiates this protocol.
pub const PROTOCOL: &str = "/narswarm/filter/1";

/// Largest body of a request.
const MAX_REQUEST_BYTES: usize = 64;

/// Largest body of a head.
const MAX_HEAD_BYTES: usize = 256;

/// The asker's only message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilterRequest {
    /// Series and generation of the filter that the asker has.
    pub have: Option<(u64, u32)>,
    /// Only the head is wanted.
    pub head_only: bool,
}

/// What follows a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Following {
    /// Nothing: it is the one that the asker has, or only the head was wanted.
    Nothing,
    /// What has changed, in so many octets.
    Changes(u32),
    /// All of it, in so many octets.
    Whole(u32),
}

impl Following {
    /// How many octets.
    #[must_use]
    pub fn octets(self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Changes(octets) | Self::Whole(octets) => octets as usize,
        }
    }
}

/// What a seed answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilterReply {
    /// First, which filter it is.
    Head {
        /// As the seed has signed it.
        head: SignedHead,
        /// What the chunks are.
        following: Following,
    },
    /// The next octets.
    Chunk(Vec<u8>),
}

#[derive(Serialize, Deserialize)]
struct RequestBody {
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    series: Option<u64>,
    #[serde(rename = "g", default, skip_serializing_if = "Option::is_none")]
    generation: Option<u32>,
    #[serde(rename = "o", default, skip_serializing_if = "std::ops::Not::not")]
    head_only: bool,
}

#[derive(Serialize, Deserialize)]
struct HeadBody {
    #[serde(rename = "s")]
    series: u64,
    #[serde(rename = "g")]
    generation: u32,
    #[serde(rename = "b")]
    bits: u8,
    #[serde(rename = "p")]
    part_bits: u8,
    #[serde(rename = "n")]
    items: u64,
    #[serde(rename = "h", with = "serde_bytes")]
    hash: [u8; 32],
    #[serde(rename = "x", with = "serde_bytes")]
    signature: [u8; 64],
    /// 0 nothing, 1 changes, 2 the whole.
    #[serde(rename = "w")]
    what: u8,
    #[serde(rename = "l")]
    octets: u32,
}

#[derive(Serialize, Deserialize)]
struct ChunkBody {
    #[serde(rename = "d", with = "serde_bytes")]
    octets: Vec<u8>,
}

impl Message for FilterRequest {
    const NAME: &'static str = "filter request";

    fn limit(kind: u8) -> Option<usize> {
        (kind == 1).then_some(MAX_REQUEST_BYTES)
    }

    fn decode(kind: u8, body: &[u8]) -> Result<Self, WireError> {
        let RequestBody { series, generation, head_only } = read_body::<Self, _>(kind, body)?;
        Ok(Self { have: series.zip(generation), head_only })
    }

    fn encode_body(&self, out: &mut Vec<u8>) -> u8 {
        let (series, generation) = self.have.unzip();
        write_body(&RequestBody { series, generation, head_only: self.head_only }, out);
        1
    }
}

impl Message for FilterReply {
    const NAME: &'static str = "filter reply";

    fn limit(kind: u8) -> Option<usize> {
        match kind {
            17 => Some(MAX_HEAD_BYTES),
            18 => Some(MAX_FILTER_BODY_BYTES),
            _ => None,
        }
    }

    fn decode(kind: u8, body: &[u8]) -> Result<Self, WireError> {
        let field = |field, found: u64, limit: u64| {
            Err(WireError::Field { message: Self::NAME, field, found, limit })
        };
        if kind == 18 {
            let ChunkBody { octets } = read_body::<Self, _>(kind, body)?;
            if octets.is_empty() || octets.len() > FILTER_CHUNK_BYTES {
                let (found, limit) = (octets.len() as u64, FILTER_CHUNK_BYTES as u64);
                return field("a chunk's length", found, limit);
            }
            return Ok(Self::Chunk(octets));
        }
        let body: HeadBody = read_body::<Self, _>(kind, body)?;
        let Ok(shape) = Shape::new(body.bits, body.part_bits) else {
            return field("a fingerprint's bits", body.bits.into(), 32);
        };
        if body.items > MAX_FILTER_ITEMS || !shape.suffices(body.items) {
            return field("the number of items", body.items, MAX_FILTER_ITEMS);
        }
        let following = match body.what {
            0 => Following::Nothing,
            1 => Following::Changes(body.octets),
            2 => Following::Whole(body.octets),
            other => return field("what follows", other.into(), 2),
        };
        let limit = match following {
            Following::Nothing => 0,
            Following::Changes(_) => MAX_DELTA_BYTES,
            Following::Whole(_) => MAX_FILTER_BYTES,
        };
        if following.octets() > limit {
            return field("the octets that follow", body.octets.into(), limit as u64);
        }
        let HeadBody { series, generation, items, hash, signature, .. } = body;
        let head = FilterHead { series, generation, shape, items, hash };
        Ok(Self::Head { head: SignedHead::new(head, signature), following })
    }

    fn encode_body(&self, out: &mut Vec<u8>) -> u8 {
        match self {
            Self::Head { head, following } => {
                let FilterHead { series, generation, shape, items, hash } = *head.unverified();
                let what = match following {
                    Following::Nothing => 0,
                    Following::Changes(_) => 1,
                    Following::Whole(_) => 2,
                };
                let body = HeadBody {
                    series,
                    generation,
                    bits: shape.bits(),
                    part_bits: shape.part_bits(),
                    items,
                    hash,
                    signature: *head.signature(),
                    what,
                    octets: following.octets() as u32,
                };
                write_body(&body, out);
                17
            }
            Self::Chunk(octets) => {
                write_body(&ChunkBody { octets: octets.clone() }, out);
                18
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::Filter;
    use crate::voucher::VoucherSigner;
    use crate::wire::HEADER_BYTES;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn head() -> SignedHead {
        let filter = Filter::build(Shape::for_items(3), &mut vec![1 << 20, 1 << 30, 7]);
        FilterHead::of(&filter, u64::MAX, 8).sign(&VoucherSigner::new(&[7; 32]))
    }

    fn body(message: &impl Message) -> (u8, Vec<u8>) {
        let mut octets = Vec::new();
        message.encode(&mut octets);
        (octets[4], octets[HEADER_BYTES..].to_vec())
    }

    #[test]
    fn what_is_written_is_read() {
        for have in [None, Some((u64::MAX, u32::MAX))] {
            for head_only in [false, true] {
                let request = FilterRequest { have, head_only };
                let (kind, octets) = body(&request);
                assert!(octets.len() <= MAX_REQUEST_BYTES);
                assert_eq!(FilterRequest::decode(kind, &octets), Ok(request));
            }
        }
        let most = u32::try_from(MAX_FILTER_BYTES).expect("a number");
        let following = [Following::Nothing, Following::Changes(7), Following::Whole(most)];
        let heads = following.map(|following| FilterReply::Head { head: head(), following });
        let chunk = FilterReply::Chunk(vec![1; FILTER_CHUNK_BYTES]);
        for reply in heads.into_iter().chain([chunk]) {
            let (kind, octets) = body(&reply);
            assert!(octets.len() <= FilterReply::limit(kind).expect("a kind"));
            assert_eq!(FilterReply::decode(kind, &octets), Ok(reply));
        }
    }

    #[test]
    fn a_request_has_these_octets() {
        let mut octets = Vec::new();
        FilterRequest { have: Some((1, 2)), head_only: false }.encode(&mut octets);
        assert_eq!(octets, *b"\0\0\0\x08\x01\xa2\x61s\x01\x61g\x02");
    }

    #[test]
    fn what_is_beyond_the_bounds_is_refused() {
        let too_much = |following| {
            let (kind, octets) = body(&FilterReply::Head { head: head(), following });
            FilterReply::decode(kind, &octets).is_err()
        };
        assert!(too_much(Following::Whole(MAX_FILTER_BYTES as u32 + 1)));
        assert!(too_much(Following::Changes(MAX_DELTA_BYTES as u32 + 1)));
        let (kind, octets) = body(&FilterReply::Chunk(Vec::new()));
        assert!(FilterReply::decode(kind, &octets).is_err());
        // A seed of more items than its fingerprints can tell apart.
        let mut dense = *head().unverified();
        dense.items = 1 << 20;
        let head = SignedHead::new(dense, [0; 64]);
        let (kind, octets) = body(&FilterReply::Head { head, following: Following::Nothing });
        assert!(FilterReply::decode(kind, &octets).is_err());
    }

    proptest! {
        #[test]
        fn whatever_octets_are_a_message_or_an_error(kind in 0_u8..20, octets in vec(any::<u8>(), 0..300)) {
            if FilterRequest::limit(kind).is_some() {
                let _ = FilterRequest::decode(kind, &octets);
            }
            if FilterReply::limit(kind).is_some() {
                let _ = FilterReply::decode(kind, &octets);
            }
        }
    }
}
