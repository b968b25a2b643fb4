//! A clock that jumps both ways: destructions are not early, and trail and records stay as they are.

use jiff::Timestamp;
use serde_json::{Value, json};
use strongroom::store::sled_store::{Settings, SledStore};
use strongroom::store::{Batch, Expect, Store, Table};

use crate::appliance::{Appliance, wait_until};
use crate::witness::{lines, verify};

/// One that looks for due destructions every second, and its clock.
fn appliance() -> Appliance {
    appliance_at("+0")
}

fn appliance_at(clock: &str) -> Appliance {
    let mut appliance = Appliance::prepared(|config| {
        let keys = toml::toml! {
            sweep_seconds = 1
            destroy_wait_days = 1
        };
        config.insert("keys".to_owned(), keys.into());
    });
    appliance.follow_clock();
    appliance.set_clock(clock);
    appliance.start();
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance
}

fn destroy(appliance: &Appliance, key: &str) -> Value {
    let body = json!({ "waiting_period_days": 1 });
    appliance.delete(&format!("/v1/keys/{key}"), &body).expect_status(200).json()
}

fn waits(appliance: &Appliance, key: &str) -> bool {
    let view = appliance.get(&format!("/v1/keys/{key}")).expect_status(200).json();
    view["versions"][0].get("destroy_at").is_some()
}

fn clock(appliance: &Appliance) -> Value {
    appliance.get("/v1/status").expect_status(200).json()["clock"].clone()
}

fn wait_for_event(appliance: &Appliance, event: &str) {
    wait_until(event, || lines(&appliance.trail()).iter().any(|line| line["event"] == event));
}

/// Waits until the daemon has lived so many seconds longer: it has looked for due destructions then.
fn outlast_a_sweep(appliance: &Appliance) {
    let uptime =
        || appliance.get("/v1/status").json()["uptime_seconds"].as_u64().expect("a number");
    let since = uptime();
    wait_until("two sweeps", || uptime() >= since + 3);
}

#[test]
fn a_clock_that_jumps_ahead_destroys_nothing_before_an_operator_confirms_it() {
    let mut appliance = appliance();
    for key in ["k", "l"] {
        appliance.create_key(key);
        destroy(&appliance, key);
    }
    assert_eq!(clock(&appliance)["state"], "agrees");
    appliance.set_clock("+2d");
    wait_for_event(&appliance, "clock-ahead");
    let doubted = clock(&appliance);
    assert_eq!(doubted["state"], "ahead");
    let ahead = doubted["ahead_seconds"].as_i64().expect("a number");
    assert!((172_700..172_900).contains(&ahead), "{doubted}");
    assert!(doubted["next"].as_str().expect("a text").contains("confirm-clock"));
    outlast_a_sweep(&appliance);
    // Another start does not make it true.
    appliance.restart();
    assert_eq!(clock(&appliance)["state"], "ahead");
    outlast_a_sweep(&appliance);
    assert!(waits(&appliance, "k") && waits(&appliance, "l"));
    // What waits can still be cancelled, although by the clock its time is over.
    appliance.post("/v1/keys/l/restore", &json!({})).expect_status(200);
    // What is doubted is said where operators look.
    let doctor = appliance.cli(&["doctor"]);
    assert!(String::from_utf8_lossy(&doctor.stdout).contains("ahead of the time that has passed"));

    let confirmed = appliance.cli(&["confirm-clock"]);
    assert!(confirmed.status.success(), "{}", String::from_utf8_lossy(&confirmed.stderr));
    assert_eq!(clock(&appliance)["state"], "agrees");
    wait_until("the destruction", || !waits(&appliance, "k"));
    assert_eq!(appliance.get("/v1/keys/l").json()["state"], "active");
    let lines = lines(&appliance.trail());
    let at = |is: &dyn Fn(&Value) -> bool| lines.iter().position(is).expect("a line");
    let ahead = at(&|line| line["event"] == "clock-ahead");
    let confirmed = at(&|line| line["action"] == "appliance:confirm-clock");
    let swept = at(&|line| line["caller"] == "system:sweep");
    assert!(ahead < confirmed && confirmed < swept, "{ahead} {confirmed} {swept}");
    verify(&appliance);
}

#[test]
fn a_clock_that_comes_back_has_done_nothing() {
    let appliance = appliance();
    appliance.create_key("k");
    destroy(&appliance, "k");
    appliance.set_clock("+400d");
    wait_for_event(&appliance, "clock-ahead");
    outlast_a_sweep(&appliance);
    appliance.set_clock("+0");
    wait_for_event(&appliance, "clock-agrees");
    assert_eq!(clock(&appliance)["state"], "agrees");
    assert!(waits(&appliance, "k"));
    verify(&appliance);
}

#[test]
fn a_clock_that_jumps_back_shortens_no_waiting_and_breaks_no_line() {
    let mut appliance = appliance();
    appliance.create_key("k");
    appliance.set_clock("-3d");
    wait_for_event(&appliance, "clock-behind");
    assert_eq!(clock(&appliance)["state"], "behind");
    // Made, changed and used under the wrong clock.
    appliance.create_key("l");
    appliance.post("/v1/keys/k/rotate", &json!({})).expect_status(200);
    appliance.delete("/v1/keys/k", &json!({})).expect_problem(409, "clock-doubted");
    verify(&appliance);
    appliance.restart();
    assert_eq!(clock(&appliance)["state"], "behind");
    // Behind by so little that it is believed.
    appliance.set_clock("-3h");
    wait_until("the clock to agree", || clock(&appliance)["state"] == "agrees");
    let view = destroy(&appliance, "k");
    let at: Timestamp =
        view["versions"][0]["destroy_at"].as_str().expect("a time").parse().unwrap();
    let wait = at.duration_since(Timestamp::now());
    assert!(wait.as_hours() >= 23, "it waits only {wait:?} by the right clock");
    appliance.set_clock("+0");
    wait_until("the clock to agree", || clock(&appliance)["state"] == "agrees");
    outlast_a_sweep(&appliance);
    assert!(waits(&appliance, "k"));
    let body = json!({ "plaintext": "eA==" });
    appliance.post("/v1/keys/l/encrypt", &body).expect_status(200);
    verify(&appliance);
    appliance.restart();
    verify(&appliance);
}

#[test]
fn a_first_clock_that_was_wrongly_ahead_postpones_nothing_for_good() {
    let appliance = appliance_at("+3650d");
    for key in ["k", "l"] {
        appliance.create_key(key);
    }
    destroy(&appliance, "k");
    appliance.set_clock("+0");
    wait_for_event(&appliance, "clock-behind");
    appliance.delete("/v1/keys/l", &json!({})).expect_problem(409, "clock-doubted");
    appliance.post("/v1/clock/confirm", &json!({})).expect_status(200);
    // What was scheduled while it was believed is moved by hand.
    appliance.post("/v1/keys/k/restore", &json!({})).expect_status(200);
    for key in ["k", "l"] {
        let view = destroy(&appliance, key);
        let at = view["versions"][0]["destroy_at"].as_str().expect("a time");
        let wait = at.parse::<Timestamp>().unwrap().duration_since(Timestamp::now());
        assert!((23..=24).contains(&wait.as_hours()), "{key} waits {wait:?}");
    }
    verify(&appliance);
}

#[test]
fn time_that_the_machine_was_off_is_believed_within_bounds() {
    let mut appliance = appliance();
    // A start within the same boot counts on: it does not take the clock as it is.
    appliance.set_clock("+5h");
    appliance.restart();
    let ahead = clock(&appliance)["ahead_seconds"].as_i64().expect("a number");
    assert!((17_900..18_100).contains(&ahead), "{ahead}");
    appliance.set_clock("+0");
    for (hours, state) in [(2, "agrees"), (48, "ahead"), (-48, "behind")] {
        appliance.stop();
        let then = Timestamp::now() - jiff::SignedDuration::from_hours(hours);
        let other = json!({ "boot": "another", "uptime_ms": 7, "time": then });
        let path = appliance.path("store");
        let store = SledStore::open(&Settings { path, ..Settings::default() }).unwrap();
        let record = serde_json::to_vec(&other).unwrap();
        let batch = Batch::new().put(Table::Appliance, "clock", Expect::Any, record);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(store.commit(batch)).unwrap();
        drop(store);
        appliance.start();
        assert_eq!(clock(&appliance)["state"], state, "{hours} h");
        appliance.post("/v1/clock/confirm", &json!({})).expect_status(200);
        assert_eq!(clock(&appliance)["state"], "agrees", "{hours} h");
    }
}
