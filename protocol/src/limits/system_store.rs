//! Bounds on looking after the system's store.

/// Most items of the system's store that are looked after: ten times those of the largest
/// workstations, at some 400 octets of memory each.
pub const MAX_STORE_ITEMS: usize = 500_000;

/// Octets of layouts of the store's trees that are kept at hand: that of TeX Live and some thousand
/// ordinary ones. What isn't at hand is made anew in milliseconds.
pub const LAYOUT_CACHE_BYTES: u64 = 16 << 20;

/// Most folders of guix's narinfo cache that are looked into, one for each server that guix has
/// ever asked.
pub const MAX_GUIX_CACHES: usize = 64;

/// The store's database is looked at so often, at the cost of two system calls.
pub const STORE_LOOK_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// Most items of the store for which narinfos are asked of others at once: a tenth of what guix
/// itself asks for at once.
pub const STORE_LOOKUP_BATCH: usize = 100;

/// When nobody has a narinfo of an item of the store, it is asked for again after so long, after
/// twice as long the next time, and so on: a farm that lags builds it within hours.
pub const STORE_LOOKUP_FIRST_PAUSE: std::time::Duration = std::time::Duration::from_secs(6 * 3600);

/// The same when somebody who was to be asked didn't answer: a line that was down is up again.
pub const STORE_LOOKUP_RETRY_PAUSE: std::time::Duration = std::time::Duration::from_secs(300);

/// How long is waited for what peers and then servers say of items of the store; nobody waits for
/// that but the thread that looks for it.
pub const STORE_LOOKUP_DEADLINE: std::time::Duration = std::time::Duration::from_secs(20);

/// Longest that the first pause becomes: an item that was built here is asked for once a month.
pub const STORE_LOOKUP_MAX_PAUSE: std::time::Duration =
    std::time::Duration::from_secs(30 * 24 * 3600);

/// An item that couldn't be hashed is tried again after so long: what was just being built is
/// finished, what this user can't read costs nothing.
pub const HASHING_RETRY_PAUSE: std::time::Duration = std::time::Duration::from_secs(600);

/// Items of the store that are announced together while others are still being hashed.
pub const STORE_ANNOUNCE_BATCH: usize = 1000;
