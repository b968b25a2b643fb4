//! Since when each master key is out of use, as custody itself has seen it: none is destroyed before it has
//! been so for the time that root's configuration says.
//!
//! The time begins when another generation comes into use, when something was last opened under it, or, where
//! custody has not seen either, when its destruction is first asked for. Backups of that time open with it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::protocol::Fault;
use super::state::{Kept, Section, State, StateError};

/// What is remembered: generation, and since when it is out of use, in seconds of Unix time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutOfUse {
    since: BTreeMap<u32, i64>,
    /// When those were made that were made lately.
    #[serde(default)]
    made: BTreeMap<u32, i64>,
}

/// An order of root's to destroy a master key without the wait. It counts once, for a day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Destroy {
    pub generation: u32,
    /// When it was given, and the uid of who gave it.
    pub at: Timestamp,
    pub by: u32,
}

impl Destroy {
    /// The name of its file, without `.json`: each generation has its own, so a request about another one does
    /// not use it up.
    pub fn name(generation: u32) -> String {
        format!("destroy-{generation}")
    }
}

impl Section for OutOfUse {
    const NAME: &'static str = "master-keys";
}

/// The record, and how long a generation has to be out of use.
pub struct Generations {
    known: Kept<OutOfUse>,
    /// Where root leaves its orders.
    state: State,
    wait_days: u32,
}

const DAY: i64 = 86_400;

/// Master keys that are made within a day, at most, whatever custody was told of them and however often it started.
const MOST_A_DAY: usize = 32;

/// Generations before the one in use that are noted, at most.
const MOST_EARLIER: u32 = 64;

/// Uses of an old generation that are so close to each other are noted once, in seconds.
const NOTED_EVERY: i64 = 3600;

impl Generations {
    /// # Errors
    /// [`StateError`] where what was remembered cannot be read.
    pub fn open(state: &State, wait_days: u32) -> Result<Self, StateError> {
        Ok(Self { known: state.load()?, state: state.clone(), wait_days })
    }

    /// Whether root has ordered that a generation need not wait; the order is used up.
    pub fn is_ordered(&self, generation: u32, now: i64) -> bool {
        let order = self.state.take_order(&Destroy::name(generation));
        let order = order.inspect_err(|error| tracing::error!(%error, "an order does not count"));
        let order = order.ok().flatten();
        let order = order.and_then(|bytes| serde_json::from_slice::<Destroy>(&bytes).ok());
        order.is_some_and(|order| {
            let age = now.saturating_sub(order.at.as_second());
            order.generation == generation && (0..DAY).contains(&age)
        })
    }

    /// A generation is in use; `before` was until now.
    pub fn put_in_use(&self, generation: u32, before: Option<u32>, now: i64) {
        // Of those before it that custody has not seen in use, the time begins now.
        let earlier = generation.saturating_sub(MOST_EARLIER).max(1)..generation;
        let out: Vec<u32> = earlier.chain(before).filter(|other| *other != generation).collect();
        let known = self.known.get().since;
        if known.contains_key(&generation) || out.iter().any(|other| !known.contains_key(other)) {
            self.keep(|since| {
                since.remove(&generation);
                for other in out {
                    since.entry(other).or_insert(now);
                }
            });
        }
    }

    /// Something was opened under a generation that is not in use.
    pub fn used(&self, generation: u32, now: i64) {
        let since = self.known.get().since.get(&generation).copied();
        if since.is_some_and(|since| now.saturating_sub(since) >= NOTED_EVERY) {
            self.keep(|since| {
                since.insert(generation, now);
            });
        }
    }

    /// Notes that a generation is about to be made.
    ///
    /// # Errors
    /// [`Fault::Refused`] where many were made lately.
    pub fn may_make(&self, generation: u32, now: i64) -> Result<(), Fault> {
        self.known.change(|known| {
            known.made.retain(|_, at| at.saturating_add(DAY) > now);
            if known.made.len() >= MOST_A_DAY && !known.made.contains_key(&generation) {
                let first = known.made.values().min().copied().unwrap_or(now);
                let due = Timestamp::from_second(first.saturating_add(DAY)).unwrap_or(Timestamp::MAX);
                return Err(Fault::Refused(format!(
                    "{MOST_A_DAY} master keys were made within a day, and the next one is made from {due} on"
                )));
            }
            known.made.insert(generation, now);
            Ok(())
        })
    }

    /// Whether a generation has been out of use for long enough to be destroyed.
    ///
    /// # Errors
    /// [`Fault::Refused`], with the time from which on it may be.
    pub fn may_destroy(&self, generation: u32, now: i64) -> Result<(), Fault> {
        if self.wait_days == 0 {
            return Ok(());
        }
        let kept: Result<i64, StateError> =
            self.known.change(|known| Ok(*known.since.entry(generation).or_insert(now)));
        let since = kept.map_err(|error| {
            Fault::Refused(format!("it could not be noted since when it is out of use: {error}"))
        })?;
        let due = since.saturating_add(i64::from(self.wait_days) * DAY);
        if now >= due {
            return Ok(());
        }
        let at = |seconds| Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
        Err(Fault::Refused(format!(
            "master generation {generation} is out of use since {}, and is destroyed from {} on: ask again then. \
             At once where root types `strongroom accept-destruction {generation} --config FILE` first, or sets \
             [custody] master_destroy_wait_days lower and restarts custody",
            at(since),
            at(due)
        )))
    }

    /// What could not be kept makes the time begin later, and never earlier.
    fn keep(&self, change: impl FnOnce(&mut BTreeMap<u32, i64>)) {
        let kept: Result<(), StateError> = self.known.change(|known| {
            change(&mut known.since);
            Ok(())
        });
        if let Err(error) = kept {
            tracing::error!(%error, "it could not be noted which master key is in use");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::leave_order;
    use super::*;

    #[test]
    fn roots_order_counts_once_for_its_own_generation_and_for_a_day() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("state");
        let generations = Generations::open(&State::open(&path).unwrap(), 30).unwrap();
        let order = |named: u32, generation: u32| {
            let order = Destroy { generation, at: Timestamp::from_second(1000).unwrap(), by: 0 };
            let text = serde_json::to_vec(&order).unwrap();
            leave_order(&path, &Destroy::name(named), &text).unwrap();
        };
        assert!(!generations.is_ordered(1, 1000));
        order(1, 1);
        assert!(!generations.is_ordered(2, 1000) && generations.is_ordered(1, 1010));
        assert!(!generations.is_ordered(1, 1010), "it was used up");
        for (named, now) in [(1, 1000 + DAY), (1, 999), (2, 1000)] {
            order(named, 1);
            assert!(!generations.is_ordered(named, now), "{named} at {now}");
        }
    }

    #[test]
    fn no_more_are_made_in_a_day_over_starts() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("state");
        let open = || Generations::open(&State::open(&path).unwrap(), 30).unwrap();
        for generation in 2..18 {
            open().may_make(generation, 100).unwrap();
        }
        let generations = open();
        for generation in 18..34 {
            generations.may_make(generation, 200).unwrap();
        }
        generations.may_make(33, 300).unwrap();
        let refused = generations.may_make(34, DAY).unwrap_err().to_string();
        assert!(refused.contains("1970-01-02T00:01:40Z"), "{refused}");
        generations.may_make(34, 100 + DAY).unwrap();
    }

    #[test]
    fn a_generation_waits_from_its_last_use_on_over_any_end_of_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let open = |days| Generations::open(&State::open(&path).unwrap(), days).unwrap();
        let generations = open(30);
        generations.put_in_use(1, None, 0);
        generations.put_in_use(2, Some(1), DAY);
        drop(generations);
        let generations = open(30);
        generations.put_in_use(2, None, 2 * DAY);
        let refused = generations.may_destroy(1, 30 * DAY).unwrap_err().to_string();
        assert!(refused.contains("1970-01-02T00:00:00Z"), "{refused}");
        assert!(refused.contains("1970-02-01T00:00:00Z"), "{refused}");
        generations.may_destroy(1, 31 * DAY).unwrap();
        generations.used(1, 31 * DAY);
        generations.may_destroy(1, 31 * DAY).unwrap_err();
        generations.used(2, 31 * DAY);
        // It came back into use, and went out of it again.
        generations.put_in_use(1, None, 40 * DAY);
        generations.put_in_use(2, Some(1), 50 * DAY);
        generations.may_destroy(1, 79 * DAY).unwrap_err();
        generations.may_destroy(1, 80 * DAY).unwrap();
        // Of one that it never saw, the time begins when it is asked for.
        generations.may_destroy(7, 90 * DAY).unwrap_err();
        generations.may_destroy(7, 119 * DAY).unwrap_err();
        generations.may_destroy(7, 120 * DAY).unwrap();
        drop(generations);
        open(0).may_destroy(9, 0).unwrap();
    }
}
