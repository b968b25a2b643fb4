//! Random moments and choices that can be had again: from a seed that is printed.

use std::time::Duration;

/// A generator of numbers (SplitMix64); no secret comes from it.
#[derive(Debug, Clone)]
pub struct Dice(u64);

/// Give the seed of an earlier run again with this variable.
const SEED: &str = "STRONGROOM_TEST_SEED";
/// How many rounds a test goes, where it is to be more than what belongs to every run.
const ROUNDS: &str = "STRONGROOM_TEST_ROUNDS";

impl Dice {
    /// Dice of the run's seed, which is printed under the test's name.
    pub fn of_run(test: &str) -> Self {
        let seed = number(SEED).unwrap_or_else(|| {
            let mut bytes = [0; 8];
            getrandom::fill(&mut bytes).expect("random numbers");
            u64::from_le_bytes(bytes) >> 16
        });
        println!("{test}: {SEED}={seed} gives these moments again");
        Self(seed)
    }

    /// Other dice that depend on these and a number alone.
    pub fn fork(&mut self, number: u64) -> Self {
        Self(self.next() ^ number.wrapping_mul(0xD6E8_FEB8_6659_FD93))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True once in so many throws.
    pub fn once_in(&mut self, throws: u64) -> bool {
        self.below(throws) == 0
    }

    pub fn moment(&mut self, from_ms: u64, to_ms: u64) -> Duration {
        Duration::from_micros(from_ms * 1000 + self.below((to_ms - from_ms) * 1000))
    }
}

/// The rounds of this run.
pub fn rounds(usual: u64) -> u64 {
    number(ROUNDS).unwrap_or(usual)
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}
