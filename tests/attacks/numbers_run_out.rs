//! Checkpoint numbers do not run out: whoever has the front's place names one that is near the last, or has root
//! type it.

use strongroom::custody::Mark;
use strongroom::custody::protocol::{Fault, Home, Reply, Verb};

use crate::apart::Custody;
use crate::appliance::{Appliance, wait_until};
use crate::custody_verbs::Conquered;
use crate::intruder::Intruder;

const TRAIL: &str = "0123456789abcdef";

fn place(number: u64, covers: u64) -> Mark {
    Mark { number, covers, head: [0; 32] }
}

fn sign(covers: u64, before: Mark) -> Verb {
    Verb::SignCheckpoint {
        trail: TRAIL.to_owned(),
        covers,
        head: [0; 32],
        before,
        closes: false,
        stored: false,
    }
}

/// A custody that remembers nothing, of an appliance that was just made.
fn fresh() -> (Appliance, Custody, Intruder, Home) {
    let appliance = Appliance::prepared(|config| {
        let custody = config["custody"].as_table_mut().expect("a table");
        custody.insert("spawn".to_owned(), "never".into());
    });
    let custody = Custody::start(&appliance);
    let path = appliance.path("custody.sock");
    wait_until("custody", || Intruder::dial(&path).is_ok());
    let mut intruder = Intruder::connect(&path);
    let unlock = Verb::Unlock { appliance: None, pin: None, by_operator: false, look_first: false };
    intruder.done(&unlock);
    let init = Verb::Init { appliance: "a".repeat(32), resume: false };
    let Reply::Initialised { home, .. } = intruder.done(&init) else { panic!("another reply") };
    (appliance, custody, intruder, home)
}

#[test]
fn no_number_near_the_last_is_believed() {
    let (_appliance, _custody, mut intruder, _home) = fresh();
    for number in [1 << 62, u64::MAX, (1 << 48) + 1] {
        let refused = intruder.refused("a number", &sign(10, place(number, 5)));
        assert!(matches!(refused, Fault::Protocol(_)), "{refused:?}");
    }
    // One that is believed leaves room: what custody signed itself is always gone on from.
    let (mut before, mut covers) = (place(1 << 48, 5), 10);
    for _ in 0..5 {
        let Reply::Checkpoint { checkpoint, .. } = intruder.done(&sign(covers, before)) else {
            panic!("another reply")
        };
        assert_eq!(checkpoint.mark.number, before.number + 1);
        (before, covers) = (checkpoint.mark, covers + 10);
    }
}

#[test]
fn root_orders_no_such_number_and_custody_follows_none() {
    let conquered = Conquered::new();
    let config = conquered.appliance.config_file().display().to_string();
    let typed = |number: u64| format!("{TRAIL}:{number}:5:{}", "0".repeat(64));
    let order = |number: u64| {
        conquered.appliance.cli(&["accept-rollback", "--config", &config, &typed(number)])
    };
    let output = order(1 << 62);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("no audit log has"), "{said}");
    assert!(order(1 << 47).status.success());
    let mut intruder = conquered.connect();
    conquered.unlock(&mut intruder);
    let newest = place(1 << 62, 5);
    let begin =
        Verb::BeginTrail { trail: TRAIL.to_owned(), newest, behind_end: false, holds: None };
    let refused = intruder.refused("a number", &begin);
    assert!(matches!(refused, Fault::Protocol(_)), "{refused:?}");
}
