//! Waiting for conditions, never for time to pass, and never for ever.

use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Longest time that a test waits for one thing: far above what any takes, since test machines
/// may be slow and busy; a test that waits in vain fails either way.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(10);

/// Waits for something.
///
/// # Panics
/// When it takes longer than [`PATIENCE`].
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain: {what}"),
    }
}

/// Waits until `condition` holds.
///
/// # Panics
/// When it doesn't within [`PATIENCE`].
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        sleep(INTERVAL).await;
    }
}
