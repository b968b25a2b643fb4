//! One user's heavy work stands before nobody else's: batches of RSA-4096, and keys that are generated.
//!
//! What is counted is the order: how much of the one's work is done while the other waits for a little. How
//! long that takes is printed.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::acts::encrypt;
use crate::appliance::{Appliance, wait_until};
use crate::callers::{User, open_to_all};

const BUSY: User = User::new(60_061);
const OTHER: User = User::new(60_062);

/// Both users may do all that is done here.
fn appliance() -> Appliance {
    let appliance = Appliance::configured(|config| {
        config["log"]["level"] = "info".into();
        for role in ["service", "operator"] {
            let users = config["policy"]["roles"][role]["users"].as_array_mut().expect("users");
            users.extend([BUSY, OTHER].map(|user| toml::Value::from(i64::from(user.uid))));
        }
    });
    open_to_all(&appliance);
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance
}

/// Ends what runs beside it, also where something fails.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn batches_of_large_keys_leave_another_user_its_turn() {
    const BATCH: usize = 16;
    const SINGLES: usize = 100;
    let appliance = appliance();
    let labels = json!({ "shared": "services" });
    let large = json!({ "name": "large", "algorithm": "RSA-4096", "labels": labels });
    appliance.post("/v1/keys", &large).expect_status(201);
    appliance.create_shared_key("small");
    let item = json!({ "ciphertext": encrypt(&appliance, "large", "x") });
    let batch = json!({ "items": vec![item; BATCH] });
    let single = json!({ "ciphertext": encrypt(&appliance, "small", "x") });
    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (heavy, waits) = std::thread::scope(|scope| {
        let end = OnDrop(&stop);
        for _ in 0..8 {
            scope.spawn(|| {
                BUSY.does(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let reply = appliance.post("/v1/keys/large/decrypt", &batch);
                        assert!([200, 503].contains(&reply.status), "{}", reply.text());
                        if reply.status == 200 {
                            done.fetch_add(BATCH, Ordering::Relaxed);
                        }
                    }
                });
            });
        }
        wait_until("the batches", || done.load(Ordering::Relaxed) >= 10 * BATCH);
        let before = done.load(Ordering::Relaxed);
        let waits: Vec<Duration> = OTHER.does(|| {
            let one = || {
                let begin = Instant::now();
                appliance.post("/v1/keys/small/decrypt", &single).expect_status(200);
                begin.elapsed()
            };
            (0..SINGLES).map(|_| one()).collect()
        });
        let heavy = done.load(Ordering::Relaxed) - before;
        drop(end);
        (heavy, waits)
    });
    let mut waits = waits;
    waits.sort();
    println!(
        "heavy batches: {heavy} of RSA-4096 beside {SINGLES} of RSA-2048; the other's p50 {:?}, p99 {:?}",
        waits[SINGLES / 2],
        waits[SINGLES - 2]
    );
    // Each processor does one of the large ones before it comes to the small one, and the batches that were
    // under way at the beginning are counted as well.
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let fair = SINGLES * 3 * processors / 2 + 8 * BATCH;
    assert!(
        heavy <= fair,
        "{heavy} large ones came before {SINGLES} small ones, at most {fair} may"
    );
}

/// Asks for this many keys at once, waits until some work was done on them, and returns how many were
/// finished before `other` was.
fn finished_before(appliance: &Appliance, keys: usize, other: impl FnOnce() + Send) -> usize {
    let done = AtomicUsize::new(0);
    // One that is alone may have all of them under way.
    std::thread::sleep(Duration::from_millis(1500));
    std::thread::scope(|scope| {
        for number in 0..keys {
            let done = &done;
            scope.spawn(move || {
                BUSY.does(|| {
                    let name = format!("{:?}-{number}", std::thread::current().id());
                    let name: String = name.to_lowercase().replace(['(', ')'], "-");
                    let body = json!({ "name": name, "algorithm": "RSA-3072" });
                    let made = appliance.post("/v1/keys", &body);
                    // Its own user's others may be under way for too long before it.
                    assert!([201, 503].contains(&made.status), "{}", made.text());
                    done.fetch_add(usize::from(made.status == 201), Ordering::Relaxed);
                });
            });
        }
        wait_until("the first key", || done.load(Ordering::Relaxed) > 0);
        let before = done.load(Ordering::Relaxed);
        other();
        done.load(Ordering::Relaxed) - before
    })
}

#[test]
fn a_rotation_waits_for_no_more_than_the_key_that_is_being_made() {
    let appliance = appliance();
    appliance.create_key("payments");
    let before = finished_before(&appliance, 8, || {
        let begin = Instant::now();
        let rotated = OTHER.asks(&appliance, "POST", "/v1/keys/payments/rotate", Some(&json!({})));
        rotated.expect_status(200);
        println!("heavy batches: a rotation beside eight new keys took {:?}", begin.elapsed());
    });
    assert!(before <= 2, "{before} keys were made before the rotation");
}

#[test]
fn another_user_s_new_key_and_its_imports_come_between_those_of_one() {
    let appliance = appliance();
    let small: Value = json!({ "name": "small", "algorithm": "RSA-2048" });
    let before = finished_before(&appliance, 8, || {
        OTHER.asks(&appliance, "POST", "/v1/keys", Some(&small)).expect_status(201);
    });
    assert!(before <= 2, "{before} keys were made before the other's");
}
