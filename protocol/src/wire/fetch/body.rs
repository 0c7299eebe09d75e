//! The tags of every message of this protocol. A tag keeps its meaning for ever.
//!
//! `s` slot, `h` nar hash, `z` nar size, `f` first piece, `c` count, `w` why, `r` root,
//! `l` piece list, `a` available pieces, `i` index, `e` encoding, `n` octets that follow,
//! `g` gained ranges, `v` vouchers.

use crate::hash::{NarHash, Root};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
pub struct Open {
    #[serde(rename = "s")]
    pub slot: u32,
    #[serde(rename = "h")]
    pub nar_hash: NarHash,
    #[serde(rename = "z")]
    pub nar_size: u64,
    #[serde(rename = "f")]
    pub first: u32,
    #[serde(rename = "c")]
    pub count: u32,
}

#[derive(Serialize, Deserialize)]
pub struct Range {
    #[serde(rename = "s")]
    pub slot: u32,
    #[serde(rename = "f")]
    pub first: u32,
    #[serde(rename = "c")]
    pub count: u32,
}

#[derive(Serialize, Deserialize)]
pub struct Close {
    #[serde(rename = "s")]
    pub slot: u32,
}

#[derive(Serialize, Deserialize)]
pub struct Opened {
    #[serde(rename = "s")]
    pub slot: u32,
    #[serde(rename = "r")]
    pub root: Root,
    #[serde(rename = "z")]
    pub nar_size: u64,
    #[serde(rename = "l", with = "serde_bytes")]
    pub list: Vec<u8>,
    /// Absent when all pieces are available.
    #[serde(rename = "a", default, with = "serde_bytes")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<Vec<u8>>,
    /// One after the other; absent when there are none.
    #[serde(rename = "v", default, with = "serde_bytes")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vouchers: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
pub struct Refused {
    #[serde(rename = "s")]
    pub slot: u32,
    #[serde(rename = "w")]
    pub reason: u8,
}

#[derive(Serialize, Deserialize)]
pub struct Piece {
    #[serde(rename = "s")]
    pub slot: u32,
    #[serde(rename = "i")]
    pub index: u32,
    #[serde(rename = "e")]
    pub encoding: u8,
    #[serde(rename = "n")]
    pub len: u32,
}

#[derive(Serialize, Deserialize)]
pub struct Missing {
    #[serde(rename = "s")]
    pub slot: u32,
    #[serde(rename = "i")]
    pub index: u32,
}

#[derive(Serialize, Deserialize)]
pub struct Have {
    #[serde(rename = "s")]
    pub slot: u32,
    /// First and count of each range, each as four octets, big-endian.
    #[serde(rename = "g", with = "serde_bytes")]
    pub ranges: Vec<u8>,
}
