//! What was opened last at an address, in memory for as long as the same bytes lie there.
//!
//! Nobody has to say that something was changed: the store is asked each time, so that neither who began
//! to read before a change, nor a commit of which it is open whether it was done, leaves anything old here.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The last answer, and what it was made of.
pub(super) struct Memo<From, To>(Mutex<Option<(From, Arc<To>)>>);

impl<From, To> Default for Memo<From, To> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<From: PartialEq, To> Memo<From, To> {
    /// What came of `from`, where it was the last that was kept.
    pub fn of(&self, from: &From) -> Option<Arc<To>> {
        let kept = self.kept();
        let (_, to) = kept.as_ref().filter(|(known, _)| known == from)?;
        Some(Arc::clone(to))
    }

    pub fn keep(&self, from: From, to: To) -> Arc<To> {
        let to = Arc::new(to);
        *self.kept() = Some((from, Arc::clone(&to)));
        to
    }

    fn kept(&self) -> MutexGuard<'_, Option<(From, Arc<To>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_began_to_read_before_a_change_brings_nothing_old_back() {
        let memo = Memo::<u64, &str>::default();
        assert!(memo.of(&1).is_none());
        memo.keep(2, "new");
        // This one read before the change, and ends after it.
        assert_eq!(*memo.keep(1, "old"), "old");
        assert_eq!(memo.of(&2), None, "it is opened again");
        memo.keep(2, "new");
        assert_eq!(memo.of(&2).as_deref(), Some(&"new"));
        assert_eq!(memo.of(&1), None);
    }
}
