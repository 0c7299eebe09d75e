//! What has happened in conversations with peers, for status and metrics.

use std::sync::atomic::AtomicU64;

/// Counts since the start; read each with a relaxed load.
#[derive(Debug, Default)]
pub struct NetCounters {
    /// Octets of pieces received from peers.
    pub fetched_bytes: AtomicU64,
    /// Octets of pieces sent to peers.
    pub served_bytes: AtomicU64,
    /// Pieces sent to peers.
    pub served_pieces: AtomicU64,
    /// Queries of peers answered.
    pub served_queries: AtomicU64,
    /// Messages of discovery answered.
    pub served_announces: AtomicU64,
    /// Streams of peers refused because too many were being served in all.
    pub refused_busy: AtomicU64,
    /// Streams of peers reset because they broke the protocol or stalled.
    pub refused_faulty: AtomicU64,
}
