//! Every bound on what strangers may send and on what this node may use, with its reason.
//!
//! Units stand last in each name.

/// Longest name of a store item after hash and dash: the daemon's own limit (`checkStoreName`).
pub const MAX_ITEM_NAME_BYTES: usize = 211;

/// Largest narinfo that is read. The largest seen has 1,500 references in 87 kB; three times
/// that leaves room and still bounds a batch of a thousand.
pub const MAX_NARINFO_BYTES: usize = 256 * 1024;

/// Largest nar that is handled: 1 TiB, far above any known substitute, and small enough that
/// every sum of sizes stays exact in 64 bits.
pub const MAX_NAR_BYTES: u64 = 1 << 40;

/// Smallest piece: large enough that a frame's and a message's overhead vanish, small enough
/// that a slow source is found out soon.
pub const MIN_PIECE_BYTES: u64 = 256 * 1024;

/// Most pieces of one nar: a piece list is then at most 128 KiB, one message.
pub const MAX_PIECES: u32 = 4096;

/// Most store hashes in one query, the number that guix itself pipelines.
pub const MAX_QUERY_HASHES: usize = 1000;
