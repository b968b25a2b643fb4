//! Code in the front has master keys made and destroyed, with all that lies under them, backups included.

use serde_json::json;
use strongroom::custody::protocol::{Fault, Home, Passing, Reply, StoreKey, Verb};
use strongroom::secret::Pin;

use crate::acts::base64;
use crate::apart::Custody;
use crate::appliance::{Appliance, wait_until};
use crate::custody_verbs::{Conquered, at};
use crate::intruder::Intruder;
use crate::token::PIN;

/// As shipped: custody waits.
fn shipped(config: &mut toml::Table) {
    config["custody"].as_table_mut().expect("a table").remove("master_destroy_wait_days");
}

fn destroy(generation: u32, pin: Option<&str>) -> Verb {
    let pin = pin.map(|pin| Passing::new(Pin::copy_from(pin.as_bytes()).expect("room")));
    Verb::DestroyMaster { generation, pin }
}

#[track_caller]
fn refused(intruder: &mut Intruder, verb: &Verb) -> String {
    match intruder.refused("the end of a master key", verb) {
        Fault::Refused(why) => why,
        other => panic!("{other:?}"),
    }
}

/// Every key still opens.
fn opens(conquered: &Conquered, intruder: &mut Intruder, sealed: &[u8]) {
    intruder.done(&Verb::DropKeys { name: None, version: None });
    intruder.done(&conquered.decrypt("brought", 1, sealed));
}

fn rewrapped(conquered: &Conquered, intruder: &mut Intruder, generation: u32) -> StoreKey {
    let store_key = conquered.home.store_key.clone();
    let Reply::StoreKey(later) = intruder.done(&Verb::RewrapStoreKey { store_key, generation })
    else {
        panic!("another reply")
    };
    later
}

#[test]
fn three_requests_do_not_destroy_all_keys() {
    let conquered = Conquered::configured(|_| {});
    let mut intruder = conquered.connect();
    conquered.unlock(&mut intruder);
    let sealed = conquered.sealed_key(&mut intruder, "brought");
    intruder.done(&Verb::MakeMaster { generation: 2 });
    intruder.done(&Verb::UseHome { home: Home { generation: 2, ..conquered.home.clone() } });
    let why = refused(&mut intruder, &destroy(1, None));
    assert!(why.contains("store key"), "{why}");
    // Not even with the PIN.
    refused(&mut intruder, &destroy(1, Some(PIN)));
    opens(&conquered, &mut intruder, &sealed);
}

#[test]
fn a_master_key_is_destroyed_after_custodys_own_time_and_not_before() {
    let mut conquered = Conquered::configured(shipped);
    let mut intruder = conquered.connect();
    conquered.unlock(&mut intruder);
    let sealed = conquered.sealed_key(&mut intruder, "brought");
    intruder.done(&Verb::MakeMaster { generation: 2 });
    let store_key = rewrapped(&conquered, &mut intruder, 2);
    let home = Home { generation: 2, store_key, ..conquered.home.clone() };
    intruder.done(&Verb::UseHome { home: home.clone() });
    let why = refused(&mut intruder, &destroy(1, None));
    assert!(why.contains("master_destroy_wait_days"), "{why}");
    // Nor by becoming another appliance, and nor by starting again.
    let other = "0".repeat(32);
    let back = Verb::UseHome { home: conquered.home.clone() };
    assert!(matches!(intruder.refused("an earlier one", &back), Fault::Refused(_)));
    let init = Verb::Init { appliance: other, resume: true };
    assert!(matches!(intruder.refused("another appliance", &init), Fault::Exists(_)));
    for _ in 0..2 {
        drop(intruder);
        end(&mut conquered);
        conquered.custody = Custody::start(&conquered.appliance);
        intruder = connect(&conquered.appliance);
        conquered.home = home.clone();
        conquered.unlock_locked(&mut intruder);
        refused(&mut intruder, &destroy(1, None));
    }
    opens(&conquered, &mut intruder, &sealed);
    // Custody's own clock decides.
    drop(intruder);
    end(&mut conquered);
    conquered.appliance.move_clock("+31d");
    conquered.custody = Custody::start(&conquered.appliance);
    let mut intruder = connect(&conquered.appliance);
    conquered.unlock_locked(&mut intruder);
    intruder.done(&destroy(1, None));
    let opened = conquered.decrypt("brought", 1, &sealed);
    assert!(matches!(intruder.refused("a key under it", &opened), Fault::Master(_)));
}

/// Has custody end by itself, which closes the token in order.
fn end(conquered: &mut Conquered) {
    let mut intruder = connect(&conquered.appliance);
    let _ = intruder.ask(&Verb::Lock);
    assert!(intruder.has_ended_within(5_000));
}

fn connect(appliance: &Appliance) -> Intruder {
    let path = appliance.path("custody.sock");
    wait_until("custody", || Intruder::dial(&path).is_ok());
    Intruder::connect(&path)
}

/// Root says that a master key need not wait.
fn order(appliance: &Appliance, generation: &str) {
    let config = appliance.config_file().display().to_string();
    let output = appliance.cli(&["accept-destruction", generation, "--config", &config]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A PIN that was typed once stays with whoever has the front's place.
#[test]
fn no_pin_takes_the_place_of_the_wait_and_a_wrong_one_counts() {
    let conquered = Conquered::configured(shipped);
    let mut intruder = conquered.connect();
    conquered.unlock(&mut intruder);
    intruder.done(&Verb::MakeMaster { generation: 2 });
    let store_key = rewrapped(&conquered, &mut intruder, 2);
    intruder
        .done(&Verb::UseHome { home: Home { generation: 2, store_key, ..conquered.home.clone() } });
    let mut told = Vec::new();
    for number in 0..25 {
        let wrong = destroy(1, Some(&format!("90{number:04}")));
        let Fault::PinRefused(why) = intruder.refused("a wrong PIN", &wrong) else {
            panic!("another")
        };
        told.push(why);
    }
    assert!(told[1].contains("the next is tried from"), "{told:#?}");
    let early = intruder.refused("too early", &destroy(1, Some(PIN)));
    assert!(matches!(early, Fault::PinRefused(_)), "{early:?}");
    std::thread::sleep(std::time::Duration::from_millis(6_000));
    let why = refused(&mut intruder, &destroy(1, Some(PIN)));
    assert!(why.contains("accept-destruction 1"), "{why}");
    // Root's order does, once; a request about another one does not use it up.
    order(&conquered.appliance, "1");
    intruder.done(&destroy(7, None));
    intruder.done(&destroy(1, None));
    let Reply::Masters(found) = intruder.done(&Verb::Masters { generations: vec![1, 2] }) else {
        panic!("another reply")
    };
    assert_eq!(format!("{:?}", found[0].found), "Missing");
}

#[test]
fn only_the_next_generation_is_made_and_not_many() {
    let conquered = Conquered::new();
    let mut intruder = conquered.connect();
    conquered.unlock(&mut intruder);
    for far in [0, 3, 7, 65, u32::MAX] {
        refused(&mut intruder, &Verb::MakeMaster { generation: far });
    }
    for next in 2..=9 {
        intruder.done(&Verb::MakeMaster { generation: next });
    }
    refused(&mut intruder, &Verb::MakeMaster { generation: 10 });
    // Nothing goes back under an older one.
    let sealed = conquered.sealed_key(&mut intruder, "brought");
    let store_key = rewrapped(&conquered, &mut intruder, 2);
    intruder
        .done(&Verb::UseHome { home: Home { generation: 2, store_key, ..conquered.home.clone() } });
    let old = Verb::RewrapKey { address: at("brought", 1), sealed, generation: 1 };
    refused(&mut intruder, &old);
}

#[test]
fn an_operator_retires_a_generation_at_once_where_root_has_said_so() {
    let appliance = Appliance::configured(shipped);
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance.create_key("k");
    assert!(appliance.cli(&["master", "rotate"]).status.success());
    let state = || appliance.get("/v1/master").json()["generations"][0]["state"].clone();
    appliance.post("/v1/master/retire", &json!({ "generation": 1 })).expect_status(200);
    assert_eq!(state(), "destruction-pending");
    let wrong = json!({ "generation": 1, "pin": base64("909090") });
    appliance.post("/v1/master/retire", &wrong).expect_problem(503, "pin-refused");
    assert_eq!(appliance.get("/v1/status").json()["state"], "ready", "it serves on");
    assert_eq!(state(), "destruction-pending");
    std::thread::sleep(std::time::Duration::from_millis(6_000));
    let typed = format!("{PIN}\n");
    let retire = ["master", "retire", "1", "--yes", "--pin-file", "-"];
    let output = appliance.cli_with(&retire, typed.as_bytes());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("accept-destruction 1"), "{said}");
    assert_eq!(state(), "destruction-pending");
    order(&appliance, "1");
    let output = appliance.cli_with(&retire, typed.as_bytes());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(state(), "retired");
}
