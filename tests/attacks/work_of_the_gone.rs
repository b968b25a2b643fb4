//! A process of the front's user asks for work that takes long and goes, or stays and asks for more: those who are
//! served beside it and after it do not wait for that.

use std::time::{Duration, Instant};

use strongroom::custody::protocol::{Fault, Verb};
use strongroom::key::Algorithm;

use crate::custody_verbs::{Conquered, at};

/// Of a key that takes a processor about a second.
fn generate(number: u32) -> Verb {
    Verb::GenerateKey { address: at(&format!("x{number}"), 1), algorithm: Algorithm::Rsa4096 }
}

#[test]
fn work_for_a_connection_that_has_gone_is_not_done() {
    let conquered = Conquered::new();
    let mut intruder = conquered.connect();
    conquered.unlock(&mut intruder);
    for number in 0..300 {
        intruder.ask_only(&generate(number));
    }
    std::thread::sleep(Duration::from_millis(500));
    drop(intruder);
    let mut next = conquered.connect();
    conquered.unlock(&mut next);
    // One that was begun is not interrupted.
    let algorithm = Algorithm::Rsa2048;
    next.done(&Verb::GenerateKey { address: at("honest", 1), algorithm });
}

#[test]
fn work_for_one_connection_waits_for_none_of_the_others() {
    let conquered = Conquered::new();
    let mut appliance = conquered.appliance;
    appliance.spawn();
    appliance.wait_for_state("ready");
    let mut intruder = crate::intruder::Intruder::connect(&appliance.path("custody.sock"));
    let home = Some(conquered.home.clone());
    intruder.done(&Verb::Unlock {
        appliance: home,
        pin: None,
        by_operator: false,
        look_first: false,
    });
    for number in 0..300 {
        intruder.ask_only(&generate(number));
    }
    let began = Instant::now();
    appliance.create_key("honest");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    let done =
        intruder.answers().iter().filter(|answer| !matches!(answer, Err(Fault::Busy))).count();
    assert!(done < 100, "{done} keys were made first");
}
