//! Bounds on connections, streams, and what is remembered of peers and their addresses.

use super::MAX_QUERY_HASHES;

/// Most streams of one connection, in both directions. A remote that opens more loses the
/// connection, so it is above what both sides may have open: 32 and 16 of ours, 64 of the DHT's,
/// a few of ping and identify. Each stream may hold 256 KiB that nobody has read yet.
pub const MAX_CONNECTION_STREAMS: usize = 128;

/// Most octets that one connection may have received and nobody has read: 32 MiB for the first
/// 256 KiB of every stream, 48 MiB for the streams that prove fast. The largest product of
/// bandwidth and delay measured to matter, 338 MiB/s at 40 ms, takes 14 MiB.
pub const MAX_CONNECTION_WINDOW_BYTES: usize = 80 << 20;

/// Most streams of one of our protocols that this node opens on one connection at a time; others
/// wait their turn. One fetch session carries many nars, and a query takes a round trip.
pub const MAX_OUTBOUND_STREAMS: usize = 8;

/// Most streams of one of our protocols that a remote may have open on one connection: twice what
/// it opens if it is like us, as ours may still be closing when it opens the next.
pub const MAX_INBOUND_STREAMS: usize = 2 * MAX_OUTBOUND_STREAMS;

/// Most requests to open a stream that wait on one connection.
pub const MAX_QUEUED_OPENS: usize = 1024;

/// Most peers that are dialled because somebody wants to open a stream to them.
pub const MAX_AWAITED_PEERS: usize = 256;

/// Most fetch sessions that are served at once: each waits the longer for its turn, and may have up
/// to 64 nars open. What is read ahead is bounded for all of them by [`MAX_GIVEN_BYTES`](super::MAX_GIVEN_BYTES).
pub const MAX_SERVED_FETCHES: usize = 128;

/// Most queries that are answered at once: each holds up to 8 MiB of answers when narinfos are
/// unusually large, and 2 MB at most usually.
pub const MAX_SERVED_QUERIES: usize = 64;

/// Most calls for content or narinfos that run on blocking threads for peers at once; disks gain
/// little from more.
pub const MAX_BLOCKING_CALLS: usize = 16;

/// Octets of frames that are read in one go for a fetch session; at least one frame is.
pub const FETCH_BURST_BYTES: usize = 1 << 20;

/// Bursts that wait to be written in one fetch session, besides the one being read and the one
/// being written.
pub const FETCH_BURSTS_AHEAD: usize = 2;

/// Most connections that others may have made to this node, and most in all. An idle one takes
/// about 30 KiB, so all of them take under 20 MiB.
pub const MAX_INCOMING_CONNECTIONS: u32 = 384;
/// See [`MAX_INCOMING_CONNECTIONS`].
pub const MAX_CONNECTIONS: u32 = 512;

/// Most connections with one peer: one each way over TCP and QUIC.
pub const MAX_CONNECTIONS_PER_PEER: u32 = 4;

/// Most handshakes of incoming connections at once: each takes a millisecond of processor time.
pub const MAX_PENDING_INCOMING: u32 = 64;

/// Most attempts to connect at once, for the same reason, with the lookups of the DHT in mind.
pub const MAX_PENDING_OUTGOING: u32 = 128;

/// Relays at which a node that others cannot reach has a place: one may go, and another is in use
/// at once.
pub const RELAYS_WANTED: usize = 2;

/// Peers at other addresses that a node which others cannot reach keeps a QUIC connection with: what
/// they see of it tells what its NAT does, and two are the least that can differ.
pub const OBSERVERS_WANTED: usize = 2;

/// Most nodes that have a place at this node's relay; each keeps one connection.
pub const MAX_RELAY_RESERVATIONS: usize = 128;

/// Most conversations that this node relays at once. Most end within seconds, when a direct
/// connection has been made.
pub const MAX_RELAY_CIRCUITS: usize = 32;

/// Most of them from or to one peer.
pub const MAX_RELAY_CIRCUITS_PER_PEER: usize = 4;

/// Octets that one relayed conversation may carry each way: a median nar thirty times over. Whoever
/// wants more of somebody who cannot be reached otherwise asks again, and others get their turn.
pub const MAX_RELAY_CIRCUIT_BYTES: u64 = 16 << 20;

/// How long one relayed conversation may last: what 16 MiB take at 30 kB/s.
pub const MAX_RELAY_CIRCUIT_TIME: std::time::Duration = std::time::Duration::from_secs(600);

/// How long a fetch waits for a direct connection with a peer that is reached through a relay.
/// Punching through two NATs takes a round trip through the relay and one straight, or fails.
pub const PUNCH_PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);

/// How long a relayed connection stays beside a direct one: what is under way on it may end.
pub const RELAYED_GRACE: std::time::Duration = std::time::Duration::from_secs(10);

/// Addresses that this node remembers to have sent something to: who knocks from another one proves
/// that strangers can. At some 50 octets each 400 kB.
pub const MAX_CONTACTED_ADDRESSES: usize = 8192;

/// Addresses on this machine and network that may be dialled although strangers far away are
/// connected.
pub const MAX_NEAR_ADDRESSES: usize = 4096;

/// What others say of this node's address: so many of them are remembered for each transport.
pub const MAX_OBSERVATIONS: usize = 16;

/// Most connections that peers of one network (a /24 of IPv4, a /48 of IPv6) have made to this node:
/// a university behind one address may need tens, and an attacker with one network gets a twelfth of
/// all places. Peers on this machine and on private networks are not counted.
pub const MAX_INCOMING_PER_NETWORK: usize = 32;

/// Most connections that this node has made to peers of one network.
pub const MAX_OUTGOING_PER_NETWORK: usize = 32;

/// Most connections over relays that others have made to this node: their networks aren't seen.
pub const MAX_INCOMING_RELAYED: usize = 64;

/// Attempts to connect that one network may make at once, and in each second afterwards: far above
/// what peers do that are like us, and little work.
pub const INCOMING_BURST_PER_NETWORK: u32 = 64;
/// See [`INCOMING_BURST_PER_NETWORK`].
pub const INCOMING_PER_SECOND_PER_NETWORK: u32 = 4;

/// Networks whose attempts are counted; the one that was quiet for longest is forgotten.
pub const MAX_COUNTED_NETWORKS: usize = 4096;

/// Most nodes of one network in one bucket of the DHT's table, and in all of it. A bucket has room
/// for 20, so that whoever has one network cannot stand between this node and a part of the key
/// space.
pub const MAX_BUCKET_NODES_PER_NETWORK: usize = 2;
/// See [`MAX_BUCKET_NODES_PER_NETWORK`].
pub const MAX_TABLE_NODES_PER_NETWORK: usize = 8;

/// Most peers whose addresses are remembered: 8 addresses of some 40 octets each, 1.5 MiB.
pub const MAX_KNOWN_PEERS: usize = 4096;

/// Most addresses remembered of one peer.
pub const MAX_PEER_ADDRESSES: usize = 8;

/// Most peers that are banned at once; the longest banned is let go.
pub const MAX_BANS: usize = 4096;

/// Most peers that ask this node for what it keeps whose idle connections are kept as long as they
/// like: a quarter of all that others may make, so that newcomers find room.
pub const MAX_GUESTS: usize = 96;

/// Most useful peers whose idle connections are kept.
pub const MAX_KEPT_PEERS: usize = 32;

/// Most provider records that this node keeps for others: 16 MiB.
pub const MAX_PROVIDER_RECORDS: usize = 400_000;

/// Most provider records of one peer: the items of a large workstation.
pub const MAX_PROVIDER_RECORDS_PER_PEER: usize = 50_000;

/// Most providers kept of one item: as many as one answer of the DHT carries.
pub const MAX_PROVIDERS_PER_ITEM: usize = 20;

/// Most keys of items that one lookup asks the DHT for.
pub const MAX_FIND_KEYS: usize = MAX_QUERY_HASHES;

/// How long a node with an address of its own waits to be reached there before it asks for a place
/// at a relay: servers that try it answer within a few round trips and a handshake.
pub const CONFIRMATION_PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// How long a node that knows of no address of its own waits before it announces what it holds: by
/// then it has a place at a relay, or there is none.
pub const ADDRESS_PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);
