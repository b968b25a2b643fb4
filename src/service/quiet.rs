//! Log lines that anybody can provoke: at most one of a kind a second, the others are counted and told.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The kinds.
#[derive(Default)]
pub struct Quiet {
    pub denied: Sparing,
    pub troubles: Sparing,
    pub turned_away: Sparing,
    pub not_accepted: Sparing,
}

impl Quiet {
    /// Tells of lines that were left out and that none has followed. Meant for once a second.
    pub fn tell(&self) {
        let kinds = [
            (&self.denied, "further requests were refused by policy"),
            (&self.troubles, "further requests could not be done"),
            (&self.turned_away, "further callers were turned away"),
            (&self.not_accepted, "further connections could not be accepted"),
        ];
        for (kind, what) in kinds {
            if let Some(left_out) = kind.rest() {
                tracing::warn!(left_out, "{what}");
            }
        }
    }
}

/// One kind of line.
#[derive(Default)]
pub struct Sparing(Mutex<Told>);

#[derive(Default)]
struct Told {
    last: Option<Instant>,
    left_out: u64,
}

const PERIOD: Duration = Duration::from_secs(1);

impl Sparing {
    /// `Some` where a line may be written now, with how many were left out since the one before.
    pub fn now(&self) -> Option<u64> {
        let mut told = self.told();
        let due = told.due();
        told.left_out += u64::from(due.is_none());
        due
    }

    /// How many were left out since the last line, where that is a while ago.
    fn rest(&self) -> Option<u64> {
        let mut told = self.told();
        if told.left_out > 0 { told.due() } else { None }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Told {
    fn due(&mut self) -> Option<u64> {
        let now = Instant::now();
        if self.last.is_some_and(|last| now - last < PERIOD) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_and_then_a_number() {
        let kind = Sparing::default();
        assert_eq!(kind.rest(), None);
        assert_eq!(kind.now(), Some(0));
        assert_eq!((kind.now(), kind.now(), kind.rest()), (None, None, None));
        kind.told().last = None;
        assert_eq!((kind.rest(), kind.rest()), (Some(2), None));
        kind.told().last = None;
        assert_eq!(kind.now(), Some(0));
    }
}
