//! Notices work with the token that does not come to an end: a module that hangs cannot be called off,
//! only left behind with its process.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is under way, and until when each has to be done.
#[derive(Default)]
pub struct HangWatch {
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    next: u64,
    until: HashMap<u64, Instant>,
}

impl HangWatch {
    /// Does `work`, which is overdue after `limit`.
    pub fn during<T>(&self, limit: Duration, work: impl FnOnce() -> T) -> T {
        let id = {
            let mut running = self.running();
            running.next += 1;
            let id = running.next;
            running.until.insert(id, Instant::now() + limit);
            id
        };
        let result = work();
        self.running().until.remove(&id);
        result
    }

    /// Whether anything should have been done by `now`.
    pub fn is_overdue(&self, now: Instant) -> bool {
        self.running().until.values().any(|until| *until < now)
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_under_way_can_be_overdue() {
        let (watch, limit) = (HangWatch::default(), Duration::from_secs(10));
        let later = Instant::now() + Duration::from_secs(11);
        watch.during(limit, || {
            assert!(!watch.is_overdue(Instant::now()));
            assert!(watch.is_overdue(later));
        });
        assert!(!watch.is_overdue(later));
    }
}
