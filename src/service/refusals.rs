//! Refusals are recorded, and must not fill the trail: of one user, so many a minute have a line of their
//! own, and beyond them the first of each kind, so that many cheap ones hide no other. Of the rest the trail
//! gets the number: within a second the first time, then once a minute, and at the stop.

use std::collections::{HashMap, HashSet};
use std::mem::Discriminant;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::gate::Appliance;
use crate::audit::EventNote;
use crate::identity::Caller;
use crate::policy::{Action, Resource};

/// Who was refused how often.
pub struct Refusals {
    per_minute: u32,
    by_uid: Mutex<HashMap<u32, Tally>>,
}

/// What was asked for: the action, and the kind of thing that it was to be done to. There are as many as the
/// program has, whoever asks.
pub(super) type About = (Action, Discriminant<Resource>);

struct Tally {
    caller: Caller,
    minute: Instant,
    lines: u32,
    /// What has a line in this minute.
    kinds: HashSet<(About, &'static str)>,
    left_out: u64,
    told: Option<Instant>,
}

const MINUTE: Duration = Duration::from_secs(60);

impl Refusals {
    pub(super) fn new(per_minute: u32) -> Self {
        Self { per_minute, by_uid: Mutex::default() }
    }

    /// Whether a refusal of this caller gets a line; if not it is counted, and the answer is how many
    /// seconds that goes on.
    pub(super) fn take(
        &self,
        caller: &Caller,
        about: About,
        code: &'static str,
    ) -> Result<(), u32> {
        let Caller::Unix(peer) = caller else { return Ok(()) };
        let now = Instant::now();
        let mut by_uid = self.by_uid();
        let tally = by_uid.entry(peer.uid).or_insert_with(|| Tally::new(caller, now));
        if now - tally.minute >= MINUTE {
            (tally.minute, tally.lines) = (now, 0);
            tally.kinds.clear();
        }
        let is_first = tally.kinds.insert((about, code));
        if tally.lines < self.per_minute || is_first {
            tally.lines = tally.lines.saturating_add(1);
            return Ok(());
        }
        tally.left_out += 1;
        let rest = MINUTE.saturating_sub(now - tally.minute);
        Err(u32::try_from(rest.as_secs()).unwrap_or(0) + 1)
    }

    /// A refusal that was to have a line could not have it: its number is told instead.
    pub(super) fn leave_out(&self, caller: &Caller) {
        if let Caller::Unix(peer) = caller {
            let now = Instant::now();
            let mut by_uid = self.by_uid();
            by_uid.entry(peer.uid).or_insert_with(|| Tally::new(caller, now)).left_out += 1;
        }
    }

    /// The numbers that the trail has to be told now, or all of them. Who is silent is forgotten.
    fn due(&self, all: bool) -> Vec<(Caller, u64)> {
        let now = Instant::now();
        let mut due = Vec::new();
        self.by_uid().retain(|_, tally| {
            let is_due = tally.told.is_none_or(|told| now - told >= MINUTE);
            if tally.left_out > 0 && (is_due || all) {
                due.push((tally.caller.clone(), std::mem::take(&mut tally.left_out)));
                tally.told = Some(now);
            }
            tally.left_out > 0 || now - tally.minute < MINUTE
        });
        due
    }

    fn by_uid(&self) -> MutexGuard<'_, HashMap<u32, Tally>> {
        self.by_uid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tally {
    fn new(caller: &Caller, now: Instant) -> Self {
        let (caller, kinds) = (caller.clone(), HashSet::new());
        Self { caller, minute: now, lines: 0, kinds, left_out: 0, told: None }
    }
}

impl Appliance {
    /// Tells the trail how many refusals have no line of their own, where it is time to, or at once.
    pub async fn tell_refusals(&self, at_once: bool) {
        for (caller, count) in self.refusals.due(at_once) {
            let name = caller.name();
            tracing::warn!(
                caller = name,
                count,
                "refusals were counted and not recorded one by one"
            );
            self.tell(EventNote::refusals_left_out(&caller, count)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::UnixPeer;

    fn caller(uid: u32) -> Caller {
        Caller::Unix(UnixPeer { uid, gid: 0, pid: 1, groups: Vec::new() })
    }

    fn about(action: Action) -> About {
        (action, std::mem::discriminant(&Resource::Appliance))
    }

    fn take(refusals: &Refusals, caller: &Caller) -> Result<(), u32> {
        refusals.take(caller, about(Action::KeyDecrypt), "denied")
    }

    #[test]
    fn the_first_of_each_kind_has_a_line_whatever_came_before() {
        let refusals = Refusals::new(3);
        assert_eq!((0..50).filter(|_| take(&refusals, &caller(1)).is_ok()).count(), 3);
        let destroy = about(Action::KeyDestroy);
        assert!(refusals.take(&caller(1), destroy, "denied").is_ok());
        assert!(refusals.take(&caller(1), destroy, "denied").is_err());
        assert!(refusals.take(&caller(1), destroy, "locked").is_ok(), "for another reason");
        refusals.leave_out(&caller(1));
        assert_eq!(refusals.due(true), [(caller(1), 49)]);
    }

    #[test]
    fn so_many_have_a_line_and_the_rest_a_number() {
        let refusals = Refusals::new(3);
        let lines = (0..10).filter(|_| take(&refusals, &caller(1)).is_ok()).count();
        assert_eq!(lines, 3);
        assert!(
            take(&refusals, &caller(2)).is_ok() && take(&refusals, &Caller::System("x")).is_ok()
        );
        assert_eq!(refusals.due(false), [(caller(1), 7)]);
        assert_eq!(take(&refusals, &caller(1)), Err(60));
        assert_eq!(refusals.due(false), [], "told a moment ago");
        assert_eq!(refusals.due(true), [(caller(1), 1)]);
        for tally in refusals.by_uid().values_mut() {
            tally.minute -= MINUTE;
        }
        assert!(take(&refusals, &caller(1)).is_ok(), "another minute");
        assert_eq!(refusals.due(false), []);
        assert_eq!(refusals.by_uid().len(), 1, "the silent one is forgotten");
    }
}
