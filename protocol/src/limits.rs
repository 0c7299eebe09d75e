//! Every bound on what strangers may send and on what this node may use, with its reason.
//!
//! Units stand last in each name.

mod discovery;
mod net;
mod system_store;

pub use discovery::*;
pub use net::*;
pub use system_store::*;

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

// --- fetching

/// Pieces asked for together with the piece list, before anything is known of the peer: 2 MiB of
/// smallest pieces, enough to keep a fast path busy for the first round trips.
pub const FIRST_WINDOW_PIECES: u32 = 8;

/// A window never falls below this: one piece being sent and one waiting keep a slow path full,
/// and more would only wait where others could take it.
pub const MIN_WINDOW_PIECES: u32 = 2;

/// In a crowd, pieces outstanding at least at one that has everything, so that it can choose what it
/// has given nobody: with half as many, one in fifteen is given twice before each is given once.
pub const CROWD_WISHES_PIECES: u32 = 8;

/// Most that is outstanding at one source. 16 MiB fill 400 MB/s at 40 ms; more would only be
/// memory.
pub const MAX_WINDOW_BYTES: u64 = 16 << 20;

/// Silence, with requests outstanding, after which a source counts as frozen and its pieces are
/// asked of others: within the second that a user may notice.
pub const FREEZE_AFTER: std::time::Duration = std::time::Duration::from_millis(700);

/// The same in a crowd, for a source that owes nothing that the reader waits for. There a piece
/// shares a slow line with those of many others, and one of them may starve for more than a second
/// on a line that loses packets; to ask another for it meanwhile would mostly bring it twice. What
/// is wanted at the end is taken from the silent without waiting for this.
pub const CROWD_FREEZE_AFTER: std::time::Duration = std::time::Duration::from_secs(2);

/// Silence after which a frozen source is given up for this fetch.
pub const FORGET_FROZEN_AFTER: std::time::Duration = std::time::Duration::from_secs(20);

/// Peers used at once for one nar. A crowd of hundreds in which each knows this many at random
/// is connected whoever leaves, and a piece reaches all of them in three steps.
pub const MAX_ACTIVE_PEERS: usize = 16;

/// Peers asked for their piece list before one is known: enough that one that is slow and one that
/// lies don't decide, few enough that small nars don't bother many.
pub const FIRST_PEERS: usize = 3;

/// So many missing pieces are work for one more peer: less isn't worth opening it.
pub const PIECES_FOR_A_PEER: u32 = 4;

/// How often a fetch that takes its time may use one more peer than its pieces are work for.
pub const ANOTHER_PEER_EVERY: std::time::Duration = std::time::Duration::from_millis(300);

/// Peers remembered for one nar, in use or in reserve.
pub const MAX_SOURCES: usize = 64;

/// Most that is outstanding in all for one nar: what one source may owe, so that many sources take
/// no more memory than one. It fills a line of 1 Gbit/s at a round trip of 130 ms.
pub const MAX_IN_FLIGHT_BYTES: u64 = 16 << 20;

/// The same for pieces above [`LARGE_PIECE_BYTES`]. Each takes its whole room as soon as it has begun, and
/// with few pieces outstanding at each of many sources nearly all have begun. It fills a line of
/// 1 Gbit/s at a round trip of 65 ms.
pub const MAX_LARGE_IN_FLIGHT_BYTES: u64 = 8 << 20;

/// Pieces of nars up to 2 GiB are no larger, so that sixteen of them that have begun take 8 MiB.
pub const LARGE_PIECE_BYTES: u64 = 512 << 10;

/// How long a piece list that only one peer has shown waits for the others that were asked, before
/// what it covers goes to the reader.
pub const SECOND_OPINION: std::time::Duration = std::time::Duration::from_millis(100);

/// How long a fetch that knows of nobody waits before it asks upstream: a query to the peers that
/// are connected has mostly been answered before, and the reader must not notice.
pub const NOBODY_PATIENCE: std::time::Duration = std::time::Duration::from_millis(15);

/// A peer that lacks so many pieces of those it said to hold, and has given none, is of no use for this
/// nar: its store has lost it. Asking on would cost a round trip for each window of pieces. Two,
/// since a crowd's member that turns to another piece list may lack one just promised.
pub const MISSED_BY_USELESS: u32 = 2;

/// How long the swarm is given before upstream is asked as well.
pub const UPSTREAM_PATIENCE: std::time::Duration = std::time::Duration::from_millis(300);

/// How often a failed upstream is tried again within one fetch.
pub const UPSTREAM_TRIES: u32 = 2;

/// How long a fetch waits before it looks for more peers: members of a crowd that began at the same
/// moment are then known to have something.
pub const FIND_AGAIN_AFTER: std::time::Duration = std::time::Duration::from_secs(1);

/// How long a fetch waits before it asks someone who has just asked for the same nar: by then he
/// has the piece list, without which he could give nothing, and it is a small part of what a nar
/// takes that is worth sharing.
pub const ASKER_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// A nar of at least this size is announced as soon as pieces of it can be given. Smaller ones have
/// come before an announcement has reached the DHT.
pub const ANNOUNCE_EARLY_BYTES: u64 = 8 << 20;

/// The longest time between two such looks.
pub const FIND_AGAIN_AT_MOST: std::time::Duration = std::time::Duration::from_secs(30);

/// How long a fetch with nobody left to ask waits for discovery before it fails.
pub const NO_SOURCE_PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// How long members of a crowd that have nothing to give are waited for while somebody shows another
/// piece list: a few pieces' time on a slow uplink, within which one of them gets something.
pub const CROWD_PATIENCE: std::time::Duration = std::time::Duration::from_millis(1500);

/// How long a fetch that knows only peers with nothing to give goes on without any of them getting
/// a piece: longer than the smallest piece takes at 10 kB/s. Else members of a crowd that nobody
/// gives the rest would wait for each other for ever.
pub const STANDSTILL_PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// Decoded pieces of one fetch kept in memory for its readers, 32 of the smallest: a reader that
/// pauses for a moment still finds its place there. As much is kept of what came too early to be
/// hashed, mostly the same pieces.
pub const FETCH_MEMORY_BYTES: usize = 8 << 20;

/// The same by the size of pieces: half as much of those above [`LARGE_PIECE_BYTES`], of which more are in
/// memory while they come.
#[must_use]
pub const fn fetch_memory_bytes(piece_size: u64) -> usize {
    if piece_size > LARGE_PIECE_BYTES { FETCH_MEMORY_BYTES / 2 } else { FETCH_MEMORY_BYTES }
}

/// Pieces of one fetch between network and disk, uncompressed: enough for two cores to decode one
/// of the largest common pieces (1 MiB) each while others wait to be written, whatever the number
/// of sources. Incompressible ones take twice that, with the frames that they came as.
pub const FETCH_PIPELINE_BYTES: usize = 4 << 20;

/// Nars up to this size are small, as most are: many of them share a session with a peer, and they
/// are fetched before they are asked for. Two pieces at most, so that none is long in the way of
/// another.
pub const SMALL_NAR_BYTES: u64 = 512 * 1024;

/// Items that a client may ask for next, since it asked for their narinfos: two of guix's batches.
pub const MAX_LISTED_ITEMS: usize = 2048;

/// How long a client is expected to ask for what it has asked the narinfo of: what a command
/// downloads mostly comes within minutes.
pub const LISTED_LIFE: std::time::Duration = std::time::Duration::from_secs(600);

/// Small nars fetched ahead when a client asks for its first nar. If that is all it wants, little
/// was done in vain.
pub const FIRST_AHEAD_ITEMS: usize = 4;

/// Most small nars that are fetched ahead and have not been asked for yet.
pub const MAX_AHEAD_ITEMS: usize = 64;

/// Most octets of them.
pub const MAX_AHEAD_BYTES: u64 = 8 << 20;

/// Most octets of nars that are on their way ahead at a time: what is asked for must not wait for
/// long behind them. At 20 Mbit/s it waits for 0.4 s at most, at 100 for 0.1.
pub const MAX_AHEAD_FLYING_BYTES: u64 = 1 << 20;

/// How long a nar that was fetched ahead may go without being asked for until that counts as
/// having fetched it in vain. guix unpacks what it has got meanwhile, which may be large.
pub const AHEAD_LIFE: std::time::Duration = std::time::Duration::from_secs(60);

/// How long fetching ahead may take, as long as nobody asks for the nar. A peer that takes longer
/// is none to read ahead from.
pub const AHEAD_PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// How often peers are asked whether they hold what a client may ask for next, when that isn't known
/// of anybody.
pub const ASK_ABOUT_AGAIN_AFTER: std::time::Duration = std::time::Duration::from_secs(60);

/// Items after the last one that was asked for among which the next ones are looked for at a time:
/// many may be held, large, or known to nobody.
pub const MAX_AHEAD_LOOKED_AT: usize = 512;
// --- trust

/// Largest s-expression that is read: an ACL of a thousand keys has 200 kB.
pub const MAX_SEXP_BYTES: usize = 1024 * 1024;

/// Deepest nesting of an s-expression. An ACL nests five deep, a signature four; the bound keeps
/// every walk over one far from the end of the stack.
pub const MAX_SEXP_DEPTH: usize = 32;

/// Longest value of a `Signature` field. A real one has 850 octets; white space and foreign
/// elements, which Guix tolerates, may make it longer.
pub const MAX_SIGNATURE_FIELD_BYTES: usize = 16 * 1024;

/// Most URL/Compression/FileSize groups that are looked at. `guix publish` writes at most three,
/// one for each compression it was told to use.
pub const MAX_NAR_SOURCES: usize = 16;

/// Longest URL of a nar, the length that web servers commonly accept at least.
pub const MAX_NAR_URL_BYTES: usize = 4096;

/// Most `Sig` fields of a narinfo in Nix's dialect: the cache's own, a mirror's and an
/// organisation's make three; each costs a verification when its name is a trusted one.
pub const MAX_NIX_SIGNATURES: usize = 16;

/// Longest name of a key of Nix's: a host and a number, as in `cache.example.org-1`.
pub const MAX_NIX_KEY_NAME_BYTES: usize = 255;

/// Deepest nesting of a `nix.conf`'s includes: installers nest one, for the users' own settings.
pub const MAX_NIX_INCLUDE_DEPTH: usize = 8;

/// Most files that a `nix.conf` includes, one counted each time that it is named.
pub const MAX_NIX_INCLUDES: usize = 64;
// --- wire

/// Largest body of a query: a thousand store hashes of 20 octets and the CBOR around them.
pub const MAX_QUERY_BODY_BYTES: usize = MAX_QUERY_HASHES * 20 + 64;

/// Largest body of one frame of answers: four of the largest narinfos, and about a third of the
/// answers to a usual query of a thousand, so that the first are used while the last still travel.
pub const MAX_ANSWERS_BODY_BYTES: usize = 1 << 20;

/// Most octets of answers to one query. Narinfos are 1 to 2 kB, so a thousand of them fit three
/// times over; it bounds what a stranger's query makes a node read and a stranger's answer makes
/// it hold.
pub const MAX_QUERY_ANSWER_BYTES: usize = 8 << 20;

/// Largest body of the small messages of a fetch session, whose fields take under 80 octets;
/// the rest is room for fields of later versions.
pub const MAX_FETCH_SMALL_BODY_BYTES: usize = 512;

/// Largest body of an opened nar: 4,096 piece hashes, a bitfield and some fields.
pub const MAX_OPENED_BODY_BYTES: usize = MAX_PIECES as usize * (32 + 1) + 512;

/// Vouchers that come with a piece list: one institution's, and a few others whose word may be
/// passed on; checking one costs 50 µs.
pub const MAX_VOUCHERS: usize = 4;

/// Nars whose vouchers are remembered, to be passed on: 600 octets each.
pub const MAX_REMEMBERED_VOUCHERS: u64 = 4096;

/// Most ranges in one availability update: every other piece of the longest list.
pub const MAX_HAVE_RANGES: usize = MAX_PIECES as usize / 2;

/// Largest body of an availability update: eight octets a range.
pub const MAX_HAVE_BODY_BYTES: usize = MAX_HAVE_RANGES * 8 + 512;

/// Most nars open at once in one fetch session: above the number of substitutes that guix
/// downloads at once, and few enough that a session's piece lists stay under 8 MiB.
pub const MAX_FETCH_SLOTS: usize = 64;

/// Most pieces that one fetch session may have asked for and not yet been given or cancelled:
/// 256 MiB at the smallest piece size, which is two seconds of the fastest path measured.
pub const MAX_WANTED_PIECES: u32 = 1024;

// --- the node's memory of others

/// Narinfos kept ready to be served: 24 MiB are some 5,000, more than any one `guix` command asks
/// for.
pub const KNOWN_NARINFO_BYTES: u64 = 24 << 20;

/// Entries of each of the smaller memories: misses, holders, bans. At a hundred octets an entry
/// a few MiB.
pub const MAX_REMEMBERED: u64 = 20_000;

/// How long a miss is believed: guix asks again at the next command, by when the search in the
/// background may have found something.
pub const MISS_LIFE: std::time::Duration = std::time::Duration::from_secs(10);

/// How long a peer's word that it holds an item is used without asking again.
pub const HOLDER_LIFE: std::time::Duration = std::time::Duration::from_secs(300);

/// How long a peer that misbehaved is avoided, and a false root remembered.
pub const BAN_LIFE: std::time::Duration = std::time::Duration::from_secs(3600);

/// Round trip assumed of a peer of which none was measured.
pub const UNKNOWN_LATENCY: std::time::Duration = std::time::Duration::from_millis(100);

/// Nars fetched at once. Each may hold 8 MiB for its readers and twice as much on its way.
pub const MAX_FETCHES: usize = 64;

/// How long a client waits for a place when all are taken, by fetches that run or by a disk that
/// is slow to keep what was fetched. Longer than a disk's worst pauses, and short enough that guix
/// isn't left without any answer.
pub const FETCH_PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// When a client that found every place taken may come back.
pub const BUSY_PAUSE: std::time::Duration = std::time::Duration::from_secs(2);

// --- resolving narinfos

/// Peers asked in one query round: the nearest few know most of what a region uses.
pub const MAX_QUERIED_PEERS: usize = 8;

/// How long a definite "no" of upstream waits for peers that were asked at the same time.
pub const PEER_GRACE: std::time::Duration = std::time::Duration::from_millis(300);

/// How long the swarm alone (no upstream, or a broken one) may take for an answer.
pub const SWARM_DEADLINE: std::time::Duration = std::time::Duration::from_secs(4);

/// How long a node that was told of peers waits for the first connection.
pub const FIRST_PEER_PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);

/// How long a nar whose holders all failed waits for another peer before it is a miss: a
/// connection under way is made by then.
pub const ANOTHER_PEER_PATIENCE: std::time::Duration = std::time::Duration::from_secs(1);

/// Longest that any narinfo request waits for upstream.
pub const NARINFO_DEADLINE: std::time::Duration = std::time::Duration::from_secs(20);

/// Hashes looked up in the DHT in one round: as many as fit into one search, whose messages are as
/// many for a thousand as for a hundred. Whoever is found is asked for all the others too.
pub const MAX_LOOKED_UP_HASHES: usize = MAX_QUERY_HASHES;

/// How long guix may keep a hit: what is signed stays true, and 36 hours is what guix assumes
/// when nothing is said.
pub const HIT_MAX_AGE: std::time::Duration = std::time::Duration::from_secs(36 * 3600);

/// How long a node that is told to stop waits for what is under way.
pub const STOP_PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);
// --- http

/// Most requests of one connection that are read ahead of their answers. Guix pipelines 1,000
/// at a time and sends the next thousand while it reads: two such bursts.
pub const MAX_REQUESTS_AHEAD: usize = 2048;

/// Most bytes of one connection that wait to be parsed: 1,000 of guix's requests are 106 kB,
/// two bursts and some room.
pub const MAX_READ_AHEAD_BYTES: usize = 256 * 1024;

/// Largest head of an HTTP request. Guix's are 106 bytes; browsers with many cookies for
/// `localhost` send several kilobytes.
pub const MAX_HTTP_HEAD_BYTES: usize = 16 * 1024;

/// Longest request line: the longest that can be answered has a name of 211 octets, each of
/// them percent-encoded, and stays under 1 KiB.
pub const MAX_HTTP_REQUEST_LINE_BYTES: usize = 8 * 1024;

/// Most header fields in a request. Guix sends two, browsers about twenty.
pub const MAX_HTTP_FIELDS: usize = 64;

/// Answers that are gathered before they are written: one large segment's worth; more brings
/// nothing on loopback and only delays the first.
pub const MAX_GATHERED_ANSWER_BYTES: usize = 64 * 1024;

/// Bytes that are read and thrown away after the last answer on a connection, so that the
/// answer to an oversized request is not lost to a reset while the client is still sending.
pub const MAX_DISCARDED_BYTES: usize = 4 * 1024 * 1024;
// --- upstream

/// Longest status line and headers of a substitute server's reply. Farms send under 1 KiB;
/// common proxies add a few cookies, and servers themselves cap requests at 8 or 16 KiB.
pub const MAX_RESPONSE_HEAD_BYTES: usize = 16 * 1024;

/// Most headers of a substitute server's reply: three times what content networks add.
pub const MAX_RESPONSE_HEADERS: usize = 64;

/// Octets of narinfos that wait in memory for the asker of one batch to take them: two thousand
/// ordinary ones, so that only replies of unusual size ever wait for the asker.
pub const MAX_WAITING_NARINFO_BYTES: usize = 4 * 1024 * 1024;

/// Narinfo requests that wait for one substitute server: thirty clients' full bursts. What comes
/// above is refused at once instead of waiting for longer than any client does.
pub const MAX_WAITING_NARINFO_REQUESTS: usize = 64 * 1024;

/// Most substitute servers that are asked in turn; each is a round trip for a missing item.
pub const MAX_UPSTREAMS: usize = 16;

/// Memory of an LZMA decoder: `xz -9` has a dictionary of 64 MiB, `lzip -9` (what build farms
/// use) one of 32 MiB; a stream that wants more is refused, where the format would allow 4 GiB.
pub const MAX_LZMA_DECODER_BYTES: u64 = 72 * 1024 * 1024;

/// Window of a zstd decoder as a power of two: 128 MiB, what `zstd --ultra -22 --long` makes and
/// what the reference decoder accepts without being asked for more.
pub const MAX_ZSTD_WINDOW_LOG: u32 = 27;
// --- store

/// Largest window of a zstd frame that is kept: what RFC 8878 asks every decoder to support, so
/// that whoever reads a cached nar as a stream can.
pub const MAX_FRAME_WINDOW_BYTES: u64 = 8 << 20;

/// Most peers that are remembered across restarts: some tens suffice to find back in, a thousand
/// leave a choice after a long absence.
pub const MAX_SAVED_PEERS: usize = 1000;

/// Most addresses remembered of one peer: a few interfaces on two transports each.
pub const MAX_SAVED_ADDRESSES: usize = 8;

/// Longest address remembered, as octets of the multiaddress: a relayed one with a DNS name has
/// about 150.
pub const MAX_SAVED_ADDRESS_BYTES: usize = 512;

// --- nar

/// Longest name of a directory entry in a nar: what Linux file systems hold (`NAME_MAX`).
pub const MAX_NAR_NAME_BYTES: usize = 255;

/// Longest symlink target in a nar: what Linux gives back (`PATH_MAX` without the final NUL).
pub const MAX_NAR_TARGET_BYTES: usize = 4095;

/// Deepest nesting of directories in a nar: ten times what store items have, and little enough
/// that a reader's stack of names (128 KiB) and a recursive consumer both fit.
pub const MAX_NAR_DEPTH: usize = 512;

/// Most entries of one directory in a nar: the largest seen have some twenty thousand, and
/// whoever lists a directory in memory must be able to.
pub const MAX_NAR_DIRECTORY_ENTRIES: u32 = 1 << 20;

/// Most entries of a nar in all: ten times TeX Live's, so that nobody is made to create inodes
/// without end.
pub const MAX_NAR_ENTRIES: u32 = 1 << 22;

// --- entry

/// Longest seed list: the most addresses that are allowed, at the length of real ones, thrice.
pub const MAX_SEED_LIST_BYTES: usize = 512 * 1024;

/// Most addresses of a seed list: some tens are sensible; a thousand leave room for an institution
/// that lists all its machines, and are dialled a few at a time all the same.
pub const MAX_SEED_LIST_ADDRESSES: usize = 1000;

/// Longest address in a seed list: what is remembered of any peer's.
pub const MAX_SEED_LIST_ADDRESS_BYTES: usize = MAX_SAVED_ADDRESS_BYTES;

/// Most signatures of a seed list that are looked at: an old key and a new one, of a few parties.
pub const MAX_SEED_LIST_SIGNATURES: usize = 8;

/// Most names and lists of entry nodes that one node follows: any one suffices.
pub const MAX_ENTRY_SOURCES: usize = 64;

/// Most addresses that are used of one source of entry nodes.
pub const MAX_SOURCE_ADDRESSES: usize = MAX_SEED_LIST_ADDRESSES;

/// Most names that are looked up for one name of entry nodes: a few zones, each once.
pub const MAX_DNSADDR_LOOKUPS: usize = 8;

/// Most attempts to connect of one source at a time: addresses that swallow packets hold their
/// places for ten seconds each, and the source's others have to come to their turn.
pub const MAX_ENTRY_DIALS_PER_SOURCE: usize = 8;

/// Most attempts of all sources at a time: half of what may be under way at all, so that the
/// lookups of the DHT and the requests of guix always find room.
pub const MAX_ENTRY_DIALS: usize = 64;

/// Neighbours from which the size of the DHT is estimated: as many as Kademlia keeps close to
/// itself, and so knows without gaps.
pub const MAX_SIZE_NEIGHBOURS: usize = 20;

/// With fewer neighbours nothing is estimated: they are counted.
pub const MIN_SIZE_NEIGHBOURS: usize = 8;

// --- serving

/// How long an asker whose wishes wait is left without a word. Less than half of the silence
/// after which it takes a source for frozen, so that one late message does no harm.
pub const UPLOAD_HEARTBEAT: std::time::Duration = std::time::Duration::from_millis(300);

/// Octets of pieces in slots above which no other is begun: what every slot takes of the smallest
/// pieces, thrice, and one piece at a time of the largest nars.
pub const MAX_GIVEN_BYTES: u64 = 24 << 20;

/// Nars of which it is remembered how often each piece was given, besides those that are wanted
/// now: 4 KiB each for large ones.
pub const MAX_COUNTED_NARS: usize = 1024;

/// Most fetch sessions that are being told that the node is busy; each takes a few kilobytes for
/// two seconds at most.
pub const MAX_REFUSED_FETCHES: usize = 128;
