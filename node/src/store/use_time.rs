//! The coarse clock of last uses: ten-minute units since 1970.
//!
//! Coarse, so that a nar that is read a thousand times in a minute costs one write to the index;
//! fine enough that eviction tells this morning's use from yesterday's.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds of one unit.
const UNIT_SECS: u64 = 600;

/// The unit that contains `time`; 0 before 1970.
#[must_use]
pub fn of(time: SystemTime) -> u32 {
    let secs = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    u32::try_from(secs / UNIT_SECS).unwrap_or(u32::MAX)
}

/// The unit that contains this moment.
#[must_use]
pub fn now() -> u32 {
    of(SystemTime::now())
}
