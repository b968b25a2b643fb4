//! How much each principal may have of something in a day, all of it at once after a rest: bytes of the audit
//! log, records of the store.
//!
//! What counts is what was had: the lines as they are written. An operation begins as long as its principal has
//! anything left: a budget is exceeded by what is under way, and by no more.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Principals that have everything left are forgotten once there are so many.
const TIDY_AT: usize = 1024;

/// What every principal has spent. Kept in memory: a start gives all of it back.
pub struct Budgets {
    per_day: u64,
    spent: Mutex<HashMap<String, Spent>>,
}

struct Spent {
    /// Of `per_day`, at the time `at`.
    units: f64,
    at: Instant,
}

impl Budgets {
    /// With 0 a day there is no bound.
    pub fn new(per_day: u64) -> Self {
        Self { per_day, spent: Mutex::default() }
    }

    /// Notes that this principal has had so much.
    pub fn spend(&self, principal: &str, units: usize) {
        if self.per_day == 0 {
            return;
        }
        let now = Instant::now();
        let mut spent = self.spent();
        match spent.get_mut(principal) {
            Some(known) => {
                self.regain(known, now);
                known.units += units as f64;
            }
            None => {
                if spent.len() >= TIDY_AT {
                    spent.retain(|_, known| {
                        self.regain(known, now);
                        known.units > 0.0
                    });
                }
                spent.insert(principal.to_owned(), Spent { units: units as f64, at: now });
            }
        }
    }

    /// Whether this principal has anything left; else after how many seconds it has.
    pub fn check(&self, principal: &str) -> Result<(), u32> {
        if self.per_day == 0 {
            return Ok(());
        }
        let mut spent = self.spent();
        let Some(known) = spent.get_mut(principal) else { return Ok(()) };
        self.regain(known, Instant::now());
        // One whole unit has to be left.
        let over = known.units + 1.0 - self.per_day as f64;
        if over <= 0.0 {
            return Ok(());
        }
        let seconds = over / self.per_day as f64 * DAY.as_secs_f64();
        // A number of seconds that is too large for the type becomes its largest.
        Err((seconds.ceil() as u32).max(1))
    }

    fn regain(&self, spent: &mut Spent, now: Instant) {
        let days = now.saturating_duration_since(spent.at).as_secs_f64() / DAY.as_secs_f64();
        spent.units = (spent.units - days * self.per_day as f64).max(0.0);
        spent.at = now;
    }

    fn spent(&self) -> MutexGuard<'_, HashMap<String, Spent>> {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_principal_has_its_own_and_gets_it_back_with_time() {
        let budgets = Budgets::new(86_400);
        budgets.spend("unix:1", 86_399);
        assert_eq!(budgets.check("unix:1"), Ok(()));
        budgets.spend("unix:1", 1000);
        let wait = budgets.check("unix:1").expect_err("nothing is left");
        assert!((990..=1000).contains(&wait), "{wait}");
        assert_eq!(budgets.check("unix:2"), Ok(()));
        for spent in budgets.spent().values_mut() {
            spent.at -= Duration::from_secs(1100);
        }
        assert_eq!(budgets.check("unix:1"), Ok(()));
    }

    #[test]
    fn without_a_bound_nothing_is_counted_and_those_who_rest_are_forgotten() {
        let none = Budgets::new(0);
        none.spend("unix:1", usize::MAX);
        assert_eq!(none.check("unix:1"), Ok(()));
        assert!(none.spent().is_empty());
        let budgets = Budgets::new(1000);
        for uid in 0..5000 {
            budgets.spend(&format!("unix:{uid}"), 100);
            for spent in budgets.spent().values_mut() {
                spent.at -= DAY;
            }
        }
        assert!(budgets.spent().len() <= TIDY_AT, "{}", budgets.spent().len());
    }
}
