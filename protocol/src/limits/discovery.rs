//! Bounds on announcing, finding, and what is kept for others.

use super::{MAX_PEER_ADDRESSES, MAX_QUERY_HASHES};

/// How many nodes keep a bucket. A day and a half after an announcement, when half of them have
/// left and a tenth doesn't answer, three or four are still there.
pub const REPLICAS: usize = 8;

/// How many of the nearest have to confirm that nobody is nearer, where the neighbourhood isn't
/// known yet.
pub const LOOK_NODES: usize = 3;

/// The same where it was known before, and nothing is announced: whoever is asked later names those that
/// it knows to be nearer.
pub const LOOK_AGAIN_NODES: usize = 2;

/// How long an announcement is remembered: longer than [`REANNOUNCE`] by half a day, so that a node
/// that was off over night is still known in the morning.
pub const ANNOUNCED_LIFE: std::time::Duration = std::time::Duration::from_secs(48 * 3600);

/// The shortest and the longest time between two announcements of a bucket. With 64 buckets and
/// [`REPLICAS`] that makes 410 messages a day on average.
pub const MIN_REANNOUNCE: std::time::Duration = std::time::Duration::from_secs(24 * 3600);
/// See [`MIN_REANNOUNCE`].
pub const REANNOUNCE: std::time::Duration = std::time::Duration::from_secs(36 * 3600);

/// Over how long buckets are spread that fell due while the node was off: by the life of an
/// announcement there is half a day for them, and a room of machines starts at once.
pub const RESTART_SPREAD: std::time::Duration = std::time::Duration::from_secs(300);

/// Nodes near each meeting point that are written down: after a night half of them are still there, and
/// one is enough to hear of the others.
pub const SAVED_NEIGHBOURS: usize = 4;

/// Peers that are written down: of each bucket, those who keep it, twice over, and those near it.
pub const MAX_ANNOUNCED_PEERS: usize = 64 * (2 * REPLICAS + SAVED_NEIGHBOURS);

/// Own addresses that are written down, to see whether this node has moved: those of a few
/// interfaces and relays, on two transports each.
pub const MAX_SAVED_OWN_ADDRESSES: usize = 32;

/// Twice this after an announcement a bucket that has too few keepers is announced to nodes that have come
/// since, or didn't answer: soon, as where there are few they often start together; doubled each time, ...
pub const REANNOUNCE_TO_NEWCOMERS: std::time::Duration = std::time::Duration::from_secs(2);

/// ... so often: four minutes at last, where whoever didn't answer has rested for one.
pub const NEWCOMER_DOUBLINGS: u32 = 7;

/// How long new items are gathered before they are announced: others are to find them within two
/// seconds.
pub const GATHER_NEW_ITEMS: std::time::Duration = std::time::Duration::from_millis(400);

/// How long withdrawn items are gathered. Nobody is harmed by asking in vain for a while, and a
/// collection of garbage goes through the store for longer.
pub const GATHER_WITHDRAWN_ITEMS: std::time::Duration = std::time::Duration::from_secs(20);

/// Announcements of new items, each of one bucket, that may be made without a pause: an upgrade of a
/// whole system, in two bursts.
pub const ANNOUNCE_BURST: u32 = 128;

/// How often one more may be made. Items that come one by one all day long are so gathered, and
/// cost no more than 7,700 messages.
pub const ANNOUNCE_TOKEN_EVERY: std::time::Duration = std::time::Duration::from_secs(90);

/// Most keys of one message: more than a workstation's share of any bucket.
pub const MAX_ANNOUNCED_KEYS: usize = 4096;

/// How often an item is looked up whose providers were all named in vain.
pub const SEARCH_TRIES: u32 = 3;

/// Most keys of one lookup message: all of a batch may fall into one bucket.
pub const MAX_LOOKUP_KEYS: usize = MAX_QUERY_HASHES;

/// An item of which at least so many providers are known is announced more thinly, ...
pub const MANY_PROVIDERS: u8 = 16;

/// ... and one of which at most so many are known less thinly.
pub const FEW_PROVIDERS: u8 = 8;

/// The thinnest: in every 64th round. Twenty providers of what a thousand hold.
pub const MAX_THINNING: u8 = 6;

/// How long a node that has just begun pauses between looking who is near one meeting point and the
/// next, and when it looks again where it has nothing to announce, this run or a later one: so that
/// searches know whom to ask. Some 250 messages for all, as half of those known a day ago are gone.
/// As long as [`REANNOUNCE`], so that neither makes the other come too soon.
pub const EXPLORE_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);
/// See [`EXPLORE_PAUSE`].
pub const EXPLORE_AGAIN: std::time::Duration = std::time::Duration::from_secs(36 * 3600);

/// The first and the longest pause after an announcement that reached nobody.
pub const ANNOUNCE_RETRY: std::time::Duration = std::time::Duration::from_secs(5);
/// See [`ANNOUNCE_RETRY`].
pub const MAX_ANNOUNCE_RETRY: std::time::Duration = std::time::Duration::from_secs(600);

/// Buckets announced at once: a whole round takes a few seconds, and never more than a few dozen
/// connections at a time.
pub const MAX_BUCKETS_AT_ONCE: usize = 8;

/// Nodes of one bucket that are told at once.
pub const PARALLEL_ANNOUNCES: usize = 4;

/// Nodes of one bucket that are asked at once by a search, where one in ten is dead and one in five
/// may lie; ...
pub const FIND_PARALLEL: usize = 3;

/// ... and by a search that goes to many buckets, where waiting for one costs less than asking all.
pub const FIND_PARALLEL_WIDE: usize = 2;

/// So many nodes that know a provider of an item are enough: others would name the same.
pub const ENOUGH_WITNESSES: usize = 2;

/// Nodes of one network among those who keep a bucket, and providers of one network among those of
/// an item while there are others.
pub const NETWORK_SHARE: usize = 3;

/// Where more than so many times the usual number of nodes stand around a meeting point, somebody
/// crowds around it: chance alone does that once in a million times.
pub const CROWDED_FACTOR: usize = 3;

/// Most nodes that one walk asks: the usual ones, and 45 who crowd around the point.
pub const MAX_WALK_NODES: usize = 64;

/// Messages of discovery that are under way at once: all buckets of a large search.
pub const MAX_ASKED_AT_ONCE: usize = 128;

/// Nodes remembered for discovery: sixteen for each bucket, and some everywhere. 200 octets each.
pub const MAX_CONTACTS: usize = 2048;

/// How long a node that failed isn't asked, doubled with each failure, ...
pub const CONTACT_REST: std::time::Duration = std::time::Duration::from_secs(30);

/// ... and how many failures in a row make it forgotten.
pub const MAX_CONTACT_FAILURES: u8 = 4;

/// Searches that run at once; others end without having found anything.
pub const MAX_SEARCHES: usize = 256;

/// How long it is believed that nobody provides an item, at first: less than it takes until a new
/// provider is to be found. Doubled each time up to [`NOBODY_LIFE_AT_MOST`].
pub const NOBODY_LIFE: std::time::Duration = std::time::Duration::from_millis(1500);
/// See [`NOBODY_LIFE`].
pub const NOBODY_LIFE_AT_MOST: std::time::Duration = std::time::Duration::from_secs(60);

/// Items of which it is remembered that nobody provides them.
pub const MAX_NOBODY: usize = 10_000;

/// How long a provider that was gone is left out of what is found: until keepers have noticed, see
/// [`PROBE_AFTER`].
pub const GONE_PROVIDER_LIFE: std::time::Duration = PROBE_AFTER;

/// Providers of which it is remembered that they were gone.
pub const MAX_GONE_PROVIDERS: usize = 4096;

/// How much of the past a node counts of which share of the time it is there: weekends included.
pub const PRESENCE_MEMORY: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3600);

/// As if a node had been there for half of this before it was ever started: a day shows what kind of
/// node it is.
pub const PRESENCE_PRIOR: std::time::Duration = std::time::Duration::from_secs(12 * 3600);

/// After so long, half of what was to be known by having seen a node is lost: half of the sessions of
/// workstations last longer.
pub const PRESENCE_HALF: std::time::Duration = std::time::Duration::from_secs(5 * 3600);

/// How long a holder that is asked may take before another is asked as well: so many round trips as
/// this node usually sees. One that has to be dialled takes three; one more of those that are likely
/// there costs less than waiting for it; ...
pub const HOLDER_STAGGER_TRIPS: u32 = 2;

/// ... at least so long, as answers between neighbours wait for processors rather than lines; ...
pub const HOLDER_STAGGER: std::time::Duration = std::time::Duration::from_millis(150);

/// ... and at most so long: nobody waits longer for one that may be gone.
pub const HOLDER_STAGGER_AT_MOST: std::time::Duration = std::time::Duration::from_millis(400);

/// Holders of one item that are waited for at once, ...
pub const HOLDERS_AT_ONCE: usize = 4;

/// ... and how long: what a relay on the other side of the world takes, three times.
pub const HOLDER_PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);

/// A holder that is there with a likelihood of less than so many percent is asked only when no better
/// one has answered for a while: a workstation after an hour, a server hardly ever.
pub const DOUBTFUL_HOLDER_BELOW: u8 = 90;

/// How long better ones have to answer before such a one is asked: what a far one takes that has to be
/// dialled through a relay, five round trips of three tenths of a second.
pub const DOUBTFUL_STAGGER: std::time::Duration = std::time::Duration::from_millis(1500);

/// So many items searched for at once, ...
pub const BUSY_KEYS: usize = 8;

/// ... or two searches within so long, are the work of somebody who will search again.
pub const SEARCH_AGAIN: std::time::Duration = std::time::Duration::from_secs(60);

/// How long after the last search a node stays connected with a keeper of each bucket.
pub const ANCHOR_LIFE: std::time::Duration = std::time::Duration::from_secs(600);

/// How often it is seen to it that it is.
pub const ANCHOR_CHECK: std::time::Duration = std::time::Duration::from_secs(10);

/// Providers of one item that an answer names, ...
pub const PROVIDERS_IN_ANSWER: usize = 8;

/// ... unless it is for so few items that all who are known may be named: the more are, the likelier
/// whoever asks is connected with one.
pub const ITEMS_IN_SHORT_ANSWER: usize = 4;

/// A provider that was not heard of for so long is probed when somebody asks for what it holds.
pub const PROBE_AFTER: std::time::Duration = std::time::Duration::from_secs(900);

/// Seeds of one farm that are used, those of all farms, and those that are tried to find the best.
pub const MAX_SEEDS: usize = 3;
/// See [`MAX_SEEDS`].
pub const MAX_SEEDS_IN_ALL: usize = 8;
/// See [`MAX_SEEDS`].
pub const MAX_SEEDS_TRIED: usize = 24;

/// How often seeds are looked for when some are used; and when none is, at first and at last, doubled
/// each time: a seed that starts with others is found soon. Each look takes up to 17 connections, 240 kB
/// in all, which once an hour are 67 octets a second.
pub const SEEDS_EVERY: std::time::Duration = std::time::Duration::from_secs(3600);
/// See [`SEEDS_EVERY`].
pub const SEEDS_AGAIN: std::time::Duration = std::time::Duration::from_secs(5);
/// See [`SEEDS_EVERY`].
pub const SEEDS_AGAIN_AT_MOST: std::time::Duration = SEEDS_EVERY;

/// A node that is connected with fewer peers which answer queries, ...
pub const LONELY_PEERS: usize = 3;

/// ... in a network of fewer nodes that answer others, looks for those who are connected with as few, ...
/// With more nodes the connections only cost: everybody can be asked by the DHT when it comes to that.
pub const LONELY_NETWORK: u64 = 32;

/// ... so often at first and at last, doubled each time. In a network of some size it has found others
/// before the first.
pub const LONELY_PAUSE: std::time::Duration = std::time::Duration::from_secs(10);
/// See [`LONELY_PAUSE`].
pub const LONELY_PAUSE_AT_MOST: std::time::Duration = std::time::Duration::from_secs(600);

/// Others who know as few that are asked in one look.
pub const MAX_LONELY_ASKED: usize = 8;

// --- filters of seeds

/// How often a seed makes a filter of what has come, and others ask for it: what a seed has got is
/// found there after twice that. A change of a thousand items takes 3 kB.
pub const FILTER_EVERY: std::time::Duration = std::time::Duration::from_secs(600);

/// How often a seed looks through everything that it holds, to leave out of its filter what has gone.
pub const FILTER_REBUILD: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

/// Most items of a filter, three times those of the largest farms: fingerprints of 32 bits tell them
/// apart.
pub const MAX_FILTER_ITEMS: u64 = 1 << 25;

/// Largest filter: as many items at 8 bits each.
pub const MAX_FILTER_BYTES: usize = 32 << 20;

/// Most items of one part of a filter: four times what is usual in one that has grown, so that a look
/// takes a tenth of a millisecond at worst, and a part is always shorter than 64 KiB.
pub const MAX_PART_ITEMS: usize = 4096;

/// Most changes of a filter that are told or remembered at once: ten days of the largest seeds; two
/// octets each.
pub const MAX_DELTA_ITEMS: usize = 1 << 20;

/// Largest changes as they travel: both sets full, at four octets a number.
pub const MAX_DELTA_BYTES: usize = 2 * MAX_DELTA_ITEMS * 4 + 16;

/// Filters whose changes a seed remembers: a week, one in [`FILTER_EVERY`].
pub const MAX_DELTA_HISTORY: usize = 1008;

/// Octets of a filter in one frame.
pub const FILTER_CHUNK_BYTES: usize = 256 * 1024;

/// Largest body of a message about filters: a chunk and the CBOR around it.
pub const MAX_FILTER_BODY_BYTES: usize = FILTER_CHUNK_BYTES + 64;

/// Filters that are given away at once: each may take a minute on a slow line, and needs no memory.
pub const MAX_SERVED_FILTERS: usize = 32;

/// How long a filter may be on its way: the largest takes that on a line of half a megabit.
pub const FILTER_PATIENCE: std::time::Duration = std::time::Duration::from_secs(600);

/// How often one peer may have a whole filter; changes it may have at any time.
pub const WHOLE_FILTER_PAUSE: std::time::Duration = std::time::Duration::from_secs(600);

/// How often the whole filter of one seed is fetched: it can't make others fetch all day.
pub const WHOLE_FILTER_AGAIN: std::time::Duration = std::time::Duration::from_secs(4 * 3600);

/// Filters of one seed that were not what it had signed before it is forgotten: one may have been
/// damaged on this node's disk.
pub const MAX_BAD_FILTERS: u32 = 2;

/// How often a filter may say yes in vain, beyond what chance makes, before its seed is forgotten: a
/// lie then has cost some kilobytes.
pub const FILTER_MISSES: f64 = 64.0;

/// What came of so many items is what counts for that.
pub const FILTER_WINDOW_ITEMS: f64 = 2000.0;

/// How long a seed that was forgotten isn't used.
pub const FALSE_SEED_LIFE: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

// --- keeping

/// Providers that wait to be probed.
pub const MAX_PROBES: usize = 64;

/// How often expired announcements of others are dropped.
pub const PRUNE_EVERY: std::time::Duration = std::time::Duration::from_secs(600);

/// Longest peer id: those that hold an Ed25519 key have 38 octets, others a hash of 34.
pub const MAX_PEER_ID_BYTES: usize = 64;

/// Longest address in messages of discovery, as octets: one through a relay has about 100.
pub const MAX_WIRE_ADDRESS_BYTES: usize = 256;

/// Addresses of one peer that an answer names: the best few.
pub const NAMED_ADDRESSES: usize = 4;

/// Nodes near a meeting point that an answer names; twice the keepers are room for later.
pub const MAX_NAMED_NODES: usize = 2 * REPLICAS;

/// Different providers that an answer names.
pub const MAX_NAMED_PROVIDERS: usize = 256;

/// Pairs of key and provider in one answer: four of each key of the largest question.
pub const MAX_HITS: usize = 4 * MAX_LOOKUP_KEYS;

/// Largest body of a message of discovery: the keys, and the sender's addresses.
pub const MAX_ANNOUNCE_BODY_BYTES: usize =
    MAX_ANNOUNCED_KEYS * 16 + MAX_PEER_ADDRESSES * (MAX_WIRE_ADDRESS_BYTES + 3) + 64;

/// Largest body of its answer: 272 peers with four addresses of the longest each, and the hits.
pub const MAX_ANNOUNCE_REPLY_BODY_BYTES: usize = 384 * 1024;

/// How often what is kept for others is written down: 24 octets a record, a few megabytes at most.
pub const SAVE_KEPT_EVERY: std::time::Duration = std::time::Duration::from_secs(600);

/// Messages of discovery that one peer may send at once, and how many more each second: a node that
/// begins in a network of a few sends each of them something for every bucket, twice.
pub const DISCOVERY_BURST_PER_PEER: u32 = 512;
/// See [`DISCOVERY_BURST_PER_PEER`].
pub const DISCOVERY_RATE_PER_PEER: u32 = 4;

/// The same for all peers of one network: an institution's machines that begin together.
pub const DISCOVERY_BURST_PER_NETWORK: u32 = 4096;
/// See [`DISCOVERY_BURST_PER_NETWORK`].
pub const DISCOVERY_RATE_PER_NETWORK: u32 = 64;

/// Messages of discovery that are answered at once: each takes a millisecond at most.
pub const MAX_SERVED_ANNOUNCES: usize = 256;
