//! `/narswarm/announce/1`: "I hold these", "I no longer hold these", "who holds these?".
//!
//! The asker opens a stream, sends one [`AnnounceRequest`]; the node that keeps the bucket answers
//! with one [`AnnounceReply`], whatever was asked, and closes. Every answer names nodes near the
//! bucket's meeting point, so that a search and an announcement find their way without further
//! messages. Whoever sends too much gets no answer.

use super::{Message, WireError, bounded, read_body, write_body};
use crate::announce::{Bucket, ItemKey, Share};
use crate::limits::{
    ANNOUNCED_LIFE, MAX_ANNOUNCE_BODY_BYTES, MAX_ANNOUNCE_REPLY_BODY_BYTES, MAX_ANNOUNCED_KEYS,
    MAX_HITS, MAX_LOOKUP_KEYS, MAX_NAMED_NODES, MAX_NAMED_PROVIDERS, MAX_PEER_ADDRESSES,
    MAX_PEER_ID_BYTES, MAX_WIRE_ADDRESS_BYTES,
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use std::time::Duration;

/// The name under which libp2p negotiates this protocol.
pub const PROTOCOL: &str = "/narswarm/announce/1";

/// Octets of one hit on the wire: two numbers of 16 bits.
const HIT_BYTES: usize = 4;

/// The asker's only message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnnounceRequest {
    /// Only who is near.
    Look {
        /// The meeting point.
        bucket: Bucket,
    },
    /// The sender holds these.
    Announce {
        /// The meeting point.
        bucket: Bucket,
        /// At most [`MAX_ANNOUNCED_KEYS`].
        keys: Vec<ItemKey>,
        /// For how long it is to be remembered, at most [`ANNOUNCED_LIFE`].
        life: Duration,
        /// Where the sender is reached, as octets of multiaddresses.
        addresses: Vec<Vec<u8>>,
        /// What share of the time it is there.
        share: Share,
    },
    /// The sender no longer holds these.
    Withdraw {
        /// The meeting point.
        bucket: Bucket,
        /// At most [`MAX_ANNOUNCED_KEYS`].
        keys: Vec<ItemKey>,
    },
    /// Who holds these?
    Find {
        /// The meeting point.
        bucket: Bucket,
        /// At most [`MAX_LOOKUP_KEYS`].
        keys: Vec<ItemKey>,
    },
}

/// The only answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AnnounceReply {
    /// Nodes near the meeting point.
    pub nearer: Vec<NamedPeer>,
    /// To an announcement: of each key, how many providers are known, the sender included; 0 where
    /// there was no room.
    pub known: Vec<u8>,
    /// To a search: who holds something.
    pub providers: Vec<NamedPeer>,
    /// To a search: which key, counted from zero, is held by which of `providers`.
    pub hits: Vec<(u16, u16)>,
}

/// Somebody, and where they say they are reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedPeer {
    /// The octets of the peer id.
    #[serde(rename = "i", with = "serde_bytes")]
    pub peer: Vec<u8>,
    /// Octets of multiaddresses.
    #[serde(rename = "a", deserialize_with = "bounded::vec::<_, _, MAX_PEER_ADDRESSES>")]
    pub addresses: Vec<ByteBuf>,
    /// Seconds since the sender has last had to do with it.
    #[serde(rename = "s", default, skip_serializing_if = "is_zero")]
    pub seen: u32,
    /// Of a provider: what share of the time it says to be there, in percent.
    #[serde(rename = "u", default, skip_serializing_if = "Option::is_none")]
    pub share: Option<u8>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[derive(Serialize, Deserialize)]
struct RequestBody {
    #[serde(rename = "b")]
    bucket: u8,
    /// All keys in one byte string.
    #[serde(rename = "k", with = "serde_bytes", default, skip_serializing_if = "Vec::is_empty")]
    keys: Vec<u8>,
    #[serde(rename = "t", default, skip_serializing_if = "is_zero")]
    life_seconds: u32,
    #[serde(
        rename = "a",
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "bounded::vec::<_, _, MAX_PEER_ADDRESSES>"
    )]
    addresses: Vec<ByteBuf>,
    /// In percent.
    #[serde(rename = "u", default, skip_serializing_if = "Option::is_none")]
    share: Option<u8>,
}

#[derive(Serialize, Deserialize)]
struct ReplyBody {
    #[serde(rename = "n", default, deserialize_with = "bounded::vec::<_, _, MAX_NAMED_NODES>")]
    nearer: Vec<NamedPeer>,
    #[serde(rename = "k", with = "serde_bytes", default, skip_serializing_if = "Vec::is_empty")]
    known: Vec<u8>,
    #[serde(
        rename = "p",
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "bounded::vec::<_, _, MAX_NAMED_PROVIDERS>"
    )]
    providers: Vec<NamedPeer>,
    /// Pairs of numbers, big-endian.
    #[serde(rename = "h", with = "serde_bytes", default, skip_serializing_if = "Vec::is_empty")]
    hits: Vec<u8>,
}

fn field<T>(
    message: &'static str,
    field: &'static str,
    found: usize,
    limit: usize,
) -> Result<T, WireError> {
    Err(WireError::Field { message, field, found: found as u64, limit: limit as u64 })
}

fn check_address(message: &'static str, address: &[u8]) -> Result<(), WireError> {
    if address.len() > MAX_WIRE_ADDRESS_BYTES {
        return field(message, "an address's length", address.len(), MAX_WIRE_ADDRESS_BYTES);
    }
    Ok(())
}

impl Message for AnnounceRequest {
    const NAME: &'static str = "announce request";

    fn limit(kind: u8) -> Option<usize> {
        (1..=4).contains(&kind).then_some(MAX_ANNOUNCE_BODY_BYTES)
    }

    fn decode(kind: u8, body: &[u8]) -> Result<Self, WireError> {
        let body: RequestBody = read_body::<Self, _>(kind, body)?;
        let Some(bucket) = Bucket::new(body.bucket) else {
            return field(
                Self::NAME,
                "the bucket",
                body.bucket.into(),
                crate::announce::BUCKETS - 1,
            );
        };
        let (keys, rest) = body.keys.as_chunks::<{ ItemKey::BYTES }>();
        if !rest.is_empty() {
            return field(Self::NAME, "the length of the last key", rest.len(), ItemKey::BYTES);
        }
        let most = if kind == 4 { MAX_LOOKUP_KEYS } else { MAX_ANNOUNCED_KEYS };
        if keys.len() > most {
            return field(Self::NAME, "the number of keys", keys.len(), most);
        }
        let keys: Vec<_> = keys.iter().copied().map(ItemKey).collect();
        if keys.iter().any(|key| key.bucket() != bucket) {
            return field(Self::NAME, "a key of another bucket", 1, 0);
        }
        Ok(match kind {
            1 => Self::Look { bucket },
            2 => {
                let life = Duration::from_secs(body.life_seconds.into()).min(ANNOUNCED_LIFE);
                let addresses: Vec<_> = body.addresses.into_iter().map(ByteBuf::into_vec).collect();
                for address in &addresses {
                    check_address(Self::NAME, address)?;
                }
                let share = body.share.map_or(Share::UNKNOWN, Share::percent);
                Self::Announce { bucket, keys, life, addresses, share }
            }
            3 => Self::Withdraw { bucket, keys },
            _ => Self::Find { bucket, keys },
        })
    }

    fn encode_body(&self, out: &mut Vec<u8>) -> u8 {
        let (kind, bucket, keys): (_, _, &[ItemKey]) = match self {
            Self::Look { bucket } => (1, bucket, &[]),
            Self::Announce { bucket, keys, .. } => (2, bucket, keys),
            Self::Withdraw { bucket, keys } => (3, bucket, keys),
            Self::Find { bucket, keys } => (4, bucket, keys),
        };
        let mut body = RequestBody {
            bucket: bucket.number(),
            keys: keys.iter().flat_map(|key| key.0).collect(),
            life_seconds: 0,
            addresses: Vec::new(),
            share: None,
        };
        if let Self::Announce { life, addresses, share, .. } = self {
            body.life_seconds = u32::try_from(life.as_secs()).unwrap_or(u32::MAX);
            body.addresses = addresses.iter().cloned().map(ByteBuf::from).collect();
            body.share = Some(share.in_percent()).filter(|_| *share != Share::UNKNOWN);
        }
        write_body(&body, out);
        kind
    }
}

impl Message for AnnounceReply {
    const NAME: &'static str = "announce reply";

    fn limit(kind: u8) -> Option<usize> {
        (kind == 17).then_some(MAX_ANNOUNCE_REPLY_BODY_BYTES)
    }

    fn decode(kind: u8, body: &[u8]) -> Result<Self, WireError> {
        let ReplyBody { nearer, known, providers, hits } = read_body::<Self, _>(kind, body)?;
        for named in nearer.iter().chain(&providers) {
            let len = named.peer.len();
            if len > MAX_PEER_ID_BYTES {
                return field(Self::NAME, "a peer id's length", len, MAX_PEER_ID_BYTES);
            }
            for address in &named.addresses {
                check_address(Self::NAME, address)?;
            }
        }
        if known.len() > MAX_ANNOUNCED_KEYS {
            return field(Self::NAME, "the number of counts", known.len(), MAX_ANNOUNCED_KEYS);
        }
        let (pairs, rest) = hits.as_chunks::<HIT_BYTES>();
        if !rest.is_empty() || pairs.len() > MAX_HITS {
            return field(Self::NAME, "the number of hits", pairs.len(), MAX_HITS);
        }
        let pair = |[a, b, c, d]: &[u8; HIT_BYTES]| {
            (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]))
        };
        let hits: Vec<_> = pairs.iter().map(pair).collect();
        for (key, provider) in &hits {
            if usize::from(*key) >= MAX_LOOKUP_KEYS {
                return field(Self::NAME, "a hit's key", (*key).into(), MAX_LOOKUP_KEYS - 1);
            }
            if usize::from(*provider) >= providers.len() {
                return field(Self::NAME, "a hit's peer", (*provider).into(), providers.len());
            }
        }
        Ok(Self { nearer, known, providers, hits })
    }

    fn encode_body(&self, out: &mut Vec<u8>) -> u8 {
        let Self { nearer, known, providers, hits } = self.clone();
        let pair = |(key, provider): (u16, u16)| {
            let ([a, b], [c, d]) = (key.to_be_bytes(), provider.to_be_bytes());
            [a, b, c, d]
        };
        let hits = hits.into_iter().flat_map(pair).collect();
        write_body(&ReplyBody { nearer, known, providers, hits }, out);
        17
    }
}
