//! Log lines that anybody can provoke: a few of a kind a second, the others are counted and told.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The kinds.
pub struct Quiet {
    pub denied: Sparing,
    pub troubles: Sparing,
    pub turned_away: Sparing,
    pub not_accepted: Sparing,
}

impl Default for Quiet {
    /// What names a request is worth a few lines; of callers without one, one is like the other.
    fn default() -> Self {
        let [denied, troubles] = [10, 10].map(Sparing::new);
        let [turned_away, not_accepted] = [1, 1].map(Sparing::new);
        Self { denied, troubles, turned_away, not_accepted }
    }
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
pub struct Sparing {
    per_second: u32,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    /// When the second began, and the lines in it.
    since: Option<Instant>,
    lines: u32,
    left_out: u64,
}

const SECOND: Duration = Duration::from_secs(1);

impl Sparing {
    pub fn new(per_second: u32) -> Self {
        Self { per_second, told: Mutex::default() }
    }

    /// `Some` where a line may be written now, with how many were left out since the one before.
    pub fn now(&self) -> Option<u64> {
        let mut told = self.told();
        let now = Instant::now();
        if told.since.is_none_or(|since| now - since >= SECOND) {
            (told.since, told.lines) = (Some(now), 0);
        }
        if told.lines >= self.per_second {
            told.left_out += 1;
            return None;
        }
        told.lines += 1;
        Some(std::mem::take(&mut told.left_out))
    }

    /// How many were left out since the last line, where its second is over.
    fn rest(&self) -> Option<u64> {
        let mut told = self.told();
        let is_over = told.since.is_some_and(|since| since.elapsed() >= SECOND);
        (is_over && told.left_out > 0).then(|| std::mem::take(&mut told.left_out))
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_lines_and_then_a_number() {
        let kind = Sparing::new(2);
        assert_eq!((kind.rest(), kind.now(), kind.now()), (None, Some(0), Some(0)));
        assert_eq!((kind.now(), kind.now(), kind.rest()), (None, None, None));
        let pass = || kind.told().since = Instant::now().checked_sub(SECOND);
        pass();
        assert_eq!((kind.rest(), kind.rest(), kind.now()), (Some(2), None, Some(0)));
        assert_eq!((kind.now(), kind.now()), (Some(0), None));
        pass();
        assert_eq!(kind.now(), Some(1));
    }
}
