//! How often a backup's manifest is signed: seldom enough that whoever has the front's place does not have custody
//! sign whatever it likes by the thousand, and each with a line in custody's own journal.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::protocol::Fault;

/// So many at once after a rest, and one more in so long.
const BURST: u32 = 16;
const EVERY: Duration = Duration::from_secs(30);

/// What is left of it.
#[derive(Default)]
pub struct BackupRate(Mutex<Option<Signed>>);

#[derive(Clone, Copy)]
struct Signed {
    count: u32,
    /// Up to when what was signed is made up for.
    since: Instant,
}

impl BackupRate {
    /// # Errors
    /// [`Fault::Busy`] where there were too many.
    pub fn take(&self, now: Instant) -> Result<(), Fault> {
        let mut signed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = signed.unwrap_or(Signed { count: 0, since: now });
        let rested = now.saturating_duration_since(known.since).as_secs() / EVERY.as_secs();
        let rested = u32::try_from(rested).unwrap_or(u32::MAX);
        let count = known.count.saturating_sub(rested);
        let since = match count {
            0 => now,
            _ => known.since + EVERY.saturating_mul(rested),
        };
        let is_full = count >= BURST;
        *signed = Some(Signed { count: count + u32::from(!is_full), since });
        if is_full { Err(Fault::Busy) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_at_once_and_then_one_at_a_time() {
        let (rate, start) = (BackupRate::default(), Instant::now());
        for _ in 0..BURST {
            rate.take(start).unwrap();
        }
        rate.take(start).unwrap_err();
        rate.take(start + EVERY - Duration::from_secs(1)).unwrap_err();
        rate.take(start + EVERY).unwrap();
        rate.take(start + EVERY).unwrap_err();
        rate.take(start + EVERY * 3).unwrap();
        rate.take(start + EVERY * 3).unwrap();
        rate.take(start + EVERY * 3).unwrap_err();
        for _ in 0..BURST {
            rate.take(start + EVERY * 100).unwrap();
        }
        rate.take(start + EVERY * 100).unwrap_err();
    }
}
