//! Promise 7: failures to decrypt tell nothing. Their replies are the same bytes, and a statistical test in
//! the manner of dudect (Reparaz, Balasch, Verbauwhede: "Dude, is my code constant time?") finds no kind of
//! invalid ciphertext that takes another time than the others, while it does find a planted leak.
//!
//! In every run of the tests it is short and only asks for the difference between both: the planted leak is
//! found, and no real kind comes near it. `STRONGROOM_TEST_SECONDS=600` makes it long and strict, with a
//! far smaller leak (`scripts/nightly timing`).

#[path = "../support/appliance.rs"]
#[allow(dead_code)] // this binary uses a part of it
mod appliance;
mod kinds;
#[path = "../support/token.rs"]
mod token;
mod welch;

mod inside;
mod socket;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use welch::{Comparison, compare};

/// How long to measure, and how strictly to judge.
struct Effort {
    seconds: u64,
    strict: bool,
}

impl Effort {
    fn of_this_run() -> Self {
        let long = std::env::var("STRONGROOM_TEST_SECONDS").ok();
        match long.map(|text| text.parse().expect("a number of seconds")) {
            Some(seconds) => Self { seconds, strict: true },
            None => Self { seconds: 3, strict: false },
        }
    }
}

/// Measures kind against kind and judges. `once` measures kind `index` once, in nanoseconds; the last kind
/// is the one with the planted leak of this length, and kind 0 is what all are compared with.
fn judge(place: &str, names: &[&str], leak: Duration, mut once: impl FnMut(usize) -> f64) {
    // One after the other: two that measure at once are each other's noise.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let effort = Effort::of_this_run();
    let mut found = compare(names.len(), Duration::from_secs(effort.seconds), &mut once);
    // Of what looks different only that counts which does so again, twice, and in the same direction.
    for _ in 0..2 {
        if found[..names.len() - 2].iter().any(Comparison::differs) {
            let again = compare(names.len(), Duration::from_secs(effort.seconds), &mut once);
            for (first, next) in found.iter_mut().zip(&again) {
                first.confirm(next);
            }
        }
    }
    println!("\n{place}: each kind against \"{}\", {} rounds at least", names[0], found[0].rounds);
    for (name, comparison) in names[1..].iter().zip(&found) {
        println!("timing {place:<8} {name:<32} {comparison}");
    }
    let (planted, real) = found.split_last().expect("the planted leak");
    assert!(planted.differs(), "{place}: the planted leak of {leak:?} was not found: {planted}");
    if effort.strict {
        // Whether a number is 0, or not below the modulus, everybody can see: a branch that the processor
        // did not foresee tells nothing more.
        let is_told = |(name, kind): &(&&str, &Comparison)| {
            kind.differs() && !(kinds::is_plain(name) && kind.median_ns.abs() < 100.0)
        };
        let differing = names[1..].iter().zip(real).filter(is_told);
        let differing: Vec<_> = differing.map(|(name, kind)| format!("{name}: {kind}")).collect();
        assert!(
            differing.is_empty(),
            "{place}: these take another time:\n{}",
            differing.join("\n")
        );
    } else {
        let worst = real.iter().map(|kind| kind.median_ns.abs()).fold(0.0, f64::max);
        let least = planted.median_ns;
        assert!(
            worst < least / 2.0,
            "{place}: {worst:.0} ns is too near to the leak's {least:.0} ns"
        );
    }
}

/// Keeps this thread busy for so long: the planted leak.
fn burn(leak: Duration) {
    let begun = std::time::Instant::now();
    while begun.elapsed() < leak {
        std::hint::spin_loop();
    }
}
