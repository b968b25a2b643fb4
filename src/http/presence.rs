//! Whether several users ask, seen by the two that asked last.

use std::sync::atomic::{AtomicU64, Ordering};

/// Guesses may be wrong for a moment.
#[derive(Default)]
pub struct Presence {
    last: AtomicU64,
    before: AtomicU64,
}

impl Presence {
    /// Notes that `uid` asks, and says whether nobody else has for a second.
    pub fn alone(&self, uid: u32, now: u64) -> bool {
        // In tenths of seconds; so that nothing was ever heard of uid 0 at the start, it is long ago.
        let tenths = now / 100_000_000 + 100;
        let own = u64::from(uid) << 32 | (tenths & 0xffff_ffff);
        let is_other = |seen: u64| {
            (seen >> 32) as u32 != uid && tenths.saturating_sub(seen & 0xffff_ffff) <= 10
        };
        let last = self.last.load(Ordering::Relaxed);
        if (last >> 32) as u32 == uid {
            if last != own {
                self.last.store(own, Ordering::Relaxed);
            }
            !is_other(self.before.load(Ordering::Relaxed))
        } else {
            self.before.store(last, Ordering::Relaxed);
            self.last.store(own, Ordering::Relaxed);
            !is_other(last)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_alone_until_another_asks() {
        let presence = Presence::default();
        let second = 1_000_000_000;
        assert!(presence.alone(0, 0) && presence.alone(0, second));
        assert!(!presence.alone(7, second), "the other has just asked");
        assert!(!presence.alone(0, second) && !presence.alone(0, second + second / 2));
        assert!(presence.alone(0, 3 * second));
        assert!(!presence.alone(8, 3 * second) && presence.alone(8, 5 * second));
    }
}
