//! Kinds measured in turns, each round in an order of its own, and compared by Welch's t-test on the samples
//! below several percentiles: what is slow for other reasons is cropped away, from all kinds alike.

use std::fmt;
use std::time::{Duration, Instant};

/// Beyond this, two means differ by more than chance: as dudect has it.
const DIFFERS: f64 = 4.5;

/// Which part of all samples stays, in percent.
const CROPS: [usize; 6] = [20, 40, 60, 80, 95, 100];

/// A kind against kind 0.
#[derive(Debug, Clone, Copy)]
pub struct Comparison {
    /// The largest t of all croppings, with its sign: positive where the kind takes longer.
    pub t: f64,
    /// Difference of the medians.
    pub median_ns: f64,
    pub rounds: usize,
}

impl Comparison {
    pub fn differs(&self) -> bool {
        self.t.abs() > DIFFERS
    }

    /// Keeps of a difference what another measurement shows, too: nothing, where they contradict.
    pub fn confirm(&mut self, again: &Self) {
        let same = self.t.signum() == again.t.signum();
        if !same {
            self.t = 0.0;
        } else if again.t.abs() < self.t.abs() {
            self.t = again.t;
        }
        if again.median_ns.abs() < self.median_ns.abs() {
            self.median_ns = again.median_ns;
        }
        self.rounds = self.rounds.min(again.rounds);
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { t, median_ns, rounds } = self;
        write!(f, "t {t:>8.2}  median {median_ns:>+9.0} ns  {rounds} rounds")
    }
}

/// Measures each kind once per round for so long, and compares all with kind 0.
pub fn compare(
    kinds: usize,
    time: Duration,
    once: &mut impl FnMut(usize) -> f64,
) -> Vec<Comparison> {
    let mut samples = vec![Vec::new(); kinds];
    let mut order: Vec<usize> = (0..kinds).collect();
    let mut dice = Dice::new();
    // What is loaded and learned at first is not measured.
    (0..20).for_each(|_| (0..kinds).for_each(|kind| _ = once(kind)));
    let until = Instant::now() + time;
    while Instant::now() < until || samples[0].len() < 100 {
        dice.shuffle(&mut order);
        for &kind in &order {
            let nanoseconds = once(kind);
            samples[kind].push(nanoseconds);
        }
    }
    let (base, others) = samples.split_first().expect("kind 0");
    others.iter().map(|other| against(base, other)).collect()
}

fn against(base: &[f64], other: &[f64]) -> Comparison {
    let mut all: Vec<f64> = base.iter().chain(other).copied().collect();
    all.sort_unstable_by(f64::total_cmp);
    let t = CROPS.iter().map(|percent| {
        let limit = all[(all.len() * percent / 100).clamp(1, all.len()) - 1];
        let below = |samples: &[f64]| -> Vec<f64> {
            samples.iter().copied().filter(|sample| *sample <= limit).collect()
        };
        welch(&below(base), &below(other))
    });
    let t = t.fold(0.0, |worst: f64, t| if t.abs() > worst.abs() { t } else { worst });
    Comparison { t, median_ns: median(other) - median(base), rounds: base.len() }
}

/// Welch's t of two samples: the difference of their means in units of its standard error.
fn welch(base: &[f64], other: &[f64]) -> f64 {
    let (Some((mean_a, error_a)), Some((mean_b, error_b))) = (mean(base), mean(other)) else {
        return 0.0;
    };
    let error = (error_a + error_b).sqrt();
    if error > 0.0 { (mean_b - mean_a) / error } else { 0.0 }
}

/// The mean, and the square of its standard error.
fn mean(samples: &[f64]) -> Option<(f64, f64)> {
    let count = samples.len() as f64;
    if count < 30.0 {
        return None;
    }
    let mean = samples.iter().sum::<f64>() / count;
    let variance = samples.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / (count - 1.0);
    Some((mean, variance / count))
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Random choices that cost nothing (xorshift64*), from a seed of the kernel's.
pub struct Dice(u64);

impl Dice {
    pub fn new() -> Self {
        Self(getrandom::u64().expect("a seed") | 1)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    fn shuffle(&mut self, order: &mut [usize]) {
        for at in (1..order.len()).rev() {
            order.swap(at, self.below(at + 1));
        }
    }
}

#[test]
fn the_test_sees_a_shift_and_no_difference_where_there_is_none() {
    // A rough kind of noise with a long tail, as a busy machine has it.
    let mut dice = Dice::new();
    let mut noise = move || {
        let tail = if dice.below(50) == 0 { dice.below(2_000_000) } else { 0 };
        (250_000 + dice.below(20_000) + tail) as f64
    };
    let base: Vec<f64> = (0..5000).map(|_| noise()).collect();
    let same: Vec<f64> = (0..5000).map(|_| noise()).collect();
    let later: Vec<f64> = (0..5000).map(|_| noise() + 2000.0).collect();
    let shifted = against(&base, &later);
    assert!(shifted.differs() && shifted.median_ns > 500.0, "{shifted}");
    let level = against(&base, &same);
    assert!(level.t.abs() < 6.0 && level.median_ns.abs() < 1000.0, "{level}");
}
