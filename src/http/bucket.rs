//! Requests a second of one user: a token bucket in one number.
//!
//! The generic cell rate algorithm (ITU-T I.371): what is kept is the time at which the bucket would be
//! full again. A request moves that by one step, and is refused where it would lie further ahead than
//! the burst. One compare-and-swap, no lock, nothing to refill.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Times are nanoseconds since any fixed moment.
pub struct Bucket {
    full_at: AtomicU64,
    step: u64,
    burst: u64,
}

impl Bucket {
    /// `per_second` in the long run, `burst` at once after a rest.
    pub fn new(per_second: u32, burst: u32) -> Self {
        let step = 1_000_000_000 / u64::from(per_second.max(1));
        Self { full_at: AtomicU64::new(0), step, burst: step * u64::from(burst.max(1)) }
    }

    /// Takes one at the time `now`, or says how long there will be none.
    pub fn take(&self, now: u64) -> Result<(), Duration> {
        let mut full_at = self.full_at.load(Ordering::Relaxed);
        loop {
            let next = full_at.max(now) + self.step;
            let ahead = next - now;
            if ahead > self.burst {
                return Err(Duration::from_nanos(ahead - self.burst));
            }
            match self.full_at.compare_exchange_weak(
                full_at,
                next,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(()),
                Err(changed) => full_at = changed,
            }
        }
    }

    /// Whether nothing would be lost by forgetting it.
    pub fn is_full(&self, now: u64) -> bool {
        self.full_at.load(Ordering::Relaxed) <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_burst_then_the_rate() {
        let bucket = Bucket::new(10, 5);
        let now = 7 * SECOND;
        assert!((0..5).all(|_| bucket.take(now).is_ok()));
        assert_eq!(bucket.take(now), Err(Duration::from_millis(100)));
        assert_eq!(bucket.take(now + SECOND / 20), Err(Duration::from_millis(50)));
        assert!(bucket.take(now + SECOND / 10).is_ok());
        assert!(bucket.take(now + SECOND / 10).is_err());
        assert!(!bucket.is_full(now + SECOND / 10) && bucket.is_full(now + SECOND));
        let taken =
            (0..1000).filter(|at| bucket.take(now + 2 * SECOND + at * SECOND / 100).is_ok());
        assert!((100..=106).contains(&taken.count()), "ten seconds of ten, and the burst");
    }

    #[test]
    fn many_at_once_take_no_more_than_there_is() {
        let bucket = Bucket::new(1, 1000);
        let taken: usize = std::thread::scope(|scope| {
            let take = || (0..1000).filter(|_| bucket.take(0).is_ok()).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, 1000);
    }
}
