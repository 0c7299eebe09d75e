//! The connections to which nothing is owed, oldest first: when there are too many connections,
//! these are closed to make room. Clients reopen an idle connection that was closed; they do not
//! survive a busy one that is.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::Notify;

/// All idle connections of a server.
#[derive(Default)]
pub(super) struct IdleConnections {
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    by_age: BTreeMap<u64, Arc<Notify>>,
}

impl IdleConnections {
    /// Enters a connection for as long as the ticket lives; `close` tells it to go.
    pub fn enter(&self, close: &Arc<Notify>) -> IdleTicket<'_> {
        let mut waiting = self.waiting.lock();
        let age = waiting.next;
        waiting.next += 1;
        waiting.by_age.insert(age, Arc::clone(close));
        IdleTicket { of: self, age }
    }

    /// Tells the connection that has idled longest to close; false if none idles.
    pub fn close_oldest(&self) -> bool {
        let oldest = self.waiting.lock().by_age.pop_first();
        oldest.inspect(|(_, close)| close.notify_one()).is_some()
    }
}

/// Takes the connection off the list when it is dropped.
pub(super) struct IdleTicket<'a> {
    of: &'a IdleConnections,
    age: u64,
}

impl Drop for IdleTicket<'_> {
    fn drop(&mut self) {
        self.of.waiting.lock().by_age.remove(&self.age);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn closes_the_oldest_that_still_idles() {
        let all = IdleConnections::default();
        let [a, b, c] = [(); 3].map(|()| Arc::new(Notify::new()));
        let first = all.enter(&a);
        let _second = all.enter(&b);
        let _third = all.enter(&c);
        drop(first);
        assert!(all.close_oldest());
        assert!(a.notified().now_or_never().is_none());
        assert!(b.notified().now_or_never().is_some());
        assert!(all.close_oldest());
        assert!(c.notified().now_or_never().is_some());
        assert!(!all.close_oldest());
    }
}
