//! The pure core of narswarm: values in, values out.
//!
//! Nothing here opens a socket or a file, reads a clock, or asks the operating system for
//! randomness; time and seeds are arguments. The node performs what this crate decides, and the
//! simulator drives the very same code.
//!
//! A map, in the order in which a substitute travels:
//!
//! - names: [`base32`], [`hash`], [`store_path`], [`content_address`];
//! - trust: [`sexp`], [`acl`], [`signature`], [`narinfo`] (`Unverified…` becomes `Verified…` only
//!   by a signature of an authorised key), [`voucher`] (whose word for a piece list counts);
//! - content: [`nar`] (the archive format), [`piece`] (pieces, piece lists, roots), [`piece_set`]
//!   (who holds which pieces);
//! - entry and discovery: [`seed_list`] (signed addresses of entry nodes), [`dht_size`] (how many
//!   nodes there are), [`provider_key`] (where holders are looked up), [`filter`] (what a seed has);
//! - conversation: [`wire`] (messages between peers);
//! - decisions: [`fetch`] (whom to ask for which piece, and what to do when it goes wrong),
//!   [`read_ahead`] (which nars to fetch before they are asked for), [`upload`] (who is given which
//!   piece next), [`announce`] (what is told to whom, and whom to ask who holds what);
//! - [`limits`]: every bound, with its reason.

#![forbid(unsafe_code)]

pub mod acl;
pub mod announce;
pub mod base32;
pub mod content_address;
pub mod dht_size;
pub mod fetch;
pub mod filter;
pub mod hash;
pub mod limits;
pub mod nar;
pub mod narinfo;
mod octets;
pub mod piece;
pub mod piece_set;
pub mod provider_key;
pub mod read_ahead;
pub mod seed_list;
pub mod sexp;
pub mod signature;
pub mod store_path;
pub mod upload;
pub mod voucher;
pub mod wire;
