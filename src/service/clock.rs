//! Whether the clock can be believed: destructions wait by it, and a clock that jumps ahead must not
//! carry them out early.
//!
//! Beside the clock on the wall stands the **time that has passed**: a moment whose time was known, plus
//! what the kernel has counted since. Within one boot nothing but that count moves it, also across
//! starts of the daemon. After another boot, time on the wall that has gone on by no more than
//! `clock_doubt_hours` is believed; what goes beyond is not.
//!
//! A clock that is further ahead than these hours is doubted, and destructions go by the time that has
//! passed, until an operator confirms the clock or it comes back. One that is behind only delays them.
//! While it is doubted, either way, none is scheduled: nobody knows when its waiting would end.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use utoipa::ToSchema;

use super::error::Error;
use super::gate::{Appliance, Request, Trace};
use super::status::StatusView;
use crate::audit::{Event, EventNote};
use crate::policy::{Action, Permit, Resource};
use crate::records::{ClockRecord, RecordError, keep_clock, read_clock};
use crate::store::Store;

/// The time that has passed, and how the clock stood to it last.
pub struct Clock {
    boot: String,
    state: Mutex<State>,
    /// Told when the clock is believed again.
    believed: Notify,
}

struct State {
    /// A moment of this boot whose time is known.
    known: ClockRecord,
    standing: Standing,
    kept: Option<Instant>,
}

/// How the clock stands to the time that has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Agrees,
    Ahead,
    Behind,
}

/// How the clock stands to the time that has passed since it was last believed.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ClockView {
    /// `agrees`, `ahead` or `behind`.
    pub state: &'static str,
    /// By how much it is ahead; less than 0 where it is behind.
    pub ahead_seconds: i64,
    /// What to do about it.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub next: &'static str,
}

/// Say that the clock is right.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfirmClock {}

/// How often what is known of the time is kept: so much of a time that the machine was off is unknown.
const KEEP: Duration = Duration::from_secs(600);

impl Clock {
    /// Goes on from what was kept.
    pub fn open(store: &dyn Store, doubt_hours: u64) -> Result<Self, RecordError> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_else(|error| {
            tracing::warn!(%error, "this boot cannot be told from others; starts count as boots");
            String::new()
        });
        let boot = boot.trim().to_owned();
        let (now, uptime_ms) = (Timestamp::now(), uptime_ms());
        let known = go_on(read_clock(store)?, &boot, uptime_ms, now, bound(doubt_hours));
        let state = State { known, standing: Standing::Agrees, kept: None };
        Ok(Self { boot, state: Mutex::new(state), believed: Notify::new() })
    }

    /// The time that has passed.
    fn passed(&self) -> Timestamp {
        self.state().known.at(uptime_ms())
    }

    /// The time that destructions fall due by.
    pub(super) fn due(&self, now: Timestamp, doubt_hours: u64) -> Timestamp {
        let passed = self.passed();
        match standing(now, passed, bound(doubt_hours)) {
            Standing::Ahead => passed,
            Standing::Agrees | Standing::Behind => now,
        }
    }

    /// The time that waiting for a destruction begins at: no clock that is a little behind shortens it.
    pub(super) fn begin(&self, now: Timestamp) -> Timestamp {
        now.max(self.passed())
    }

    fn view(&self, now: Timestamp, doubt_hours: u64) -> ClockView {
        let passed = self.passed();
        let (state, next) = match standing(now, passed, bound(doubt_hours)) {
            Standing::Agrees => ("agrees", ""),
            Standing::Ahead => (
                "ahead",
                "destructions are held back: set the clock right, or say that it is: \
                 `strongroom confirm-clock`",
            ),
            Standing::Behind => (
                "behind",
                "destructions are late: set the clock right, or say that it is: \
                 `strongroom confirm-clock`",
            ),
        };
        ClockView { state, ahead_seconds: now.duration_since(passed).as_secs(), next }
    }

    /// What is known now, as it is to be kept.
    fn record(&self) -> ClockRecord {
        let (boot, uptime_ms) = (self.boot.clone(), uptime_ms());
        ClockRecord { boot, uptime_ms, time: self.state().known.at(uptime_ms) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClockRecord {
    /// What time it is at another moment of the same boot.
    fn at(&self, uptime_ms: i64) -> Timestamp {
        let since = SignedDuration::from_millis(uptime_ms.saturating_sub(self.uptime_ms).max(0));
        self.time.checked_add(since).unwrap_or(self.time)
    }
}

/// The known moment that a start goes on from.
fn go_on(
    kept: Option<ClockRecord>,
    boot: &str,
    uptime_ms: i64,
    now: Timestamp,
    bound: SignedDuration,
) -> ClockRecord {
    let time = match kept {
        None => now,
        Some(kept) if kept.boot == boot && !boot.is_empty() => return kept,
        // While the machine was off nothing counted; the clock is believed as far as it is likely.
        Some(kept) if standing(now, kept.time, bound) == Standing::Ahead => kept.time,
        Some(kept) => now.max(kept.time),
    };
    ClockRecord { boot: boot.to_owned(), uptime_ms, time }
}

fn standing(now: Timestamp, passed: Timestamp, bound: SignedDuration) -> Standing {
    // The kernel's count is one of milliseconds.
    let ahead = SignedDuration::from_millis(now.as_millisecond() - passed.as_millisecond());
    if ahead > bound {
        Standing::Ahead
    } else if ahead < -bound {
        Standing::Behind
    } else {
        Standing::Agrees
    }
}

fn bound(hours: u64) -> SignedDuration {
    SignedDuration::from_hours(i64::try_from(hours).unwrap_or(i64::MAX / 7200))
}

/// Milliseconds since the boot, time asleep included.
fn uptime_ms() -> i64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec.saturating_mul(1000).saturating_add(time.tv_nsec / 1_000_000)
}

impl Appliance {
    /// Holds the clock against the time that has passed, tells trail and journal when that changes, and
    /// keeps what is known now and then. To be called every few seconds.
    pub async fn tend_clock(&self) {
        let view = self.clock_view();
        let found = match view.state {
            "ahead" => Standing::Ahead,
            "behind" => Standing::Behind,
            _ => Standing::Agrees,
        };
        let before = std::mem::replace(&mut self.clock.state().standing, found);
        if before != found {
            let seconds = view.ahead_seconds;
            let event = match found {
                Standing::Ahead => {
                    tracing::error!(seconds, "the clock is ahead: destructions are held back");
                    Event::ClockAhead
                }
                Standing::Behind => {
                    tracing::error!(seconds, "the clock is behind: destructions are late");
                    Event::ClockBehind
                }
                Standing::Agrees => {
                    tracing::info!("the clock agrees with the time that has passed");
                    self.clock.believed.notify_one();
                    Event::ClockAgrees
                }
            };
            self.tell(EventNote::new(event)).await;
        }
        if self.clock.state().kept.is_none_or(|kept| kept.elapsed() >= KEEP) {
            let record = self.clock.record();
            match keep_clock(self.store.as_ref(), &record).await {
                Ok(()) => self.clock.state().kept = Some(Instant::now()),
                Err(error) => tracing::debug!(%error, "the time could not be kept"),
            }
        }
    }

    /// Resolves when the clock, having been doubted, is believed again: what was held back is due.
    pub async fn clock_believed(&self) {
        self.clock.believed.notified().await;
    }

    /// How the clock stands.
    pub(super) fn clock_view(&self) -> ClockView {
        self.clock.view(self.now(), self.settings().clock_doubt_hours)
    }

    /// Only a clock that is believed says when a destruction falls due: scheduled by one that is wrong,
    /// it would be early or late by as much, for good.
    pub(super) fn must_believe_clock(&self) -> Result<(), Error> {
        match self.clock_view().state {
            "agrees" => Ok(()),
            state => Err(Error::ClockDoubted(state)),
        }
    }

    /// The time that waiting for a destruction begins at.
    pub(super) fn waiting_begins(&self) -> Timestamp {
        self.clock.begin(self.now())
    }

    /// The time that destructions fall due by.
    pub(super) fn due_now(&self) -> Timestamp {
        self.clock.due(self.now(), self.settings().clock_doubt_hours)
    }
}

impl Request for ConfirmClock {
    const ACTION: Action = Action::ConfirmClock;
    const TRACE: Trace = Trace::Before;
    type Reply = StatusView;

    fn resource(&self) -> Resource {
        Resource::Appliance
    }

    async fn run(self, _permit: Permit, appliance: &Appliance) -> Result<StatusView, Error> {
        let time = appliance.now();
        let boot = appliance.clock.boot.clone();
        let record = ClockRecord { boot, uptime_ms: uptime_ms(), time };
        keep_clock(appliance.store.as_ref(), &record).await?;
        appliance.clock.state().known = record;
        appliance.tend_clock().await;
        Ok(appliance.status().await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: SignedDuration = SignedDuration::from_hours(6);
    const HOUR: i64 = 3600;

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + hours * HOUR).unwrap()
    }

    fn kept(boot: &str, uptime_hours: i64, hours: i64) -> Option<ClockRecord> {
        let uptime_ms = uptime_hours * HOUR * 1000;
        Some(ClockRecord { boot: boot.to_owned(), uptime_ms, time: at(hours) })
    }

    /// How the clock stands at a start, so many hours after the kept moment by the wall's clock and by
    /// the kernel's count.
    fn start(boot: &str, uptime_hours: i64, wall: i64) -> Standing {
        let uptime_ms = uptime_hours * HOUR * 1000;
        let known = go_on(kept("a", 10, 0), boot, uptime_ms, at(wall), BOUND);
        standing(at(wall), known.at(uptime_ms), BOUND)
    }

    #[test]
    fn within_a_boot_only_what_the_kernel_counted_has_passed() {
        assert_eq!(start("a", 10 + 100, 100), Standing::Agrees);
        assert_eq!(start("a", 10 + 100, 106), Standing::Agrees);
        assert_eq!(start("a", 10 + 100, 107), Standing::Ahead);
        assert_eq!(start("a", 10 + 100, 93), Standing::Behind);
    }

    #[test]
    fn after_another_boot_the_clock_is_believed_as_far_as_is_likely() {
        assert_eq!(start("b", 1, 6), Standing::Agrees);
        assert_eq!(start("b", 1, 7), Standing::Ahead);
        assert_eq!(start("b", 1, -7), Standing::Behind);
        // Where boots cannot be told apart, each start is one.
        let known = go_on(kept("", 10, 0), "", 20 * HOUR * 1000, at(1), BOUND);
        assert_eq!(known.time, at(1));
    }

    #[test]
    fn the_first_clock_is_believed() {
        assert_eq!(go_on(None, "a", 5, at(77), BOUND).time, at(77));
    }

    #[test]
    fn parts_of_a_millisecond_are_no_difference() {
        let later = at(6) + SignedDuration::from_micros(999);
        assert_eq!(standing(later, at(0), BOUND), Standing::Agrees);
        assert_eq!(standing(at(0), later, BOUND), Standing::Agrees);
    }

    #[test]
    fn any_number_of_hours_is_a_bound() {
        assert!(bound(u64::MAX) > bound(1_000_000));
    }
}
