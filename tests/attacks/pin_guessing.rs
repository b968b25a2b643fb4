//! Whoever may unlock, or has the front's place, searches for the token's PIN. What counts is how often the
//! token itself was asked, which the module under it writes down.

use std::time::Duration;

use serde_json::json;
use strongroom::custody::protocol::{Fault, Passing, Reply, Verb};
use strongroom::records::read_home;
use strongroom::secret::{self, Pin, Use};
use strongroom::store::sled_store::{Settings, SledStore};

use crate::acts::base64;
use crate::apart::Custody;
use crate::appliance::{Appliance, Reply as HttpReply};
use crate::intruder::Intruder;
use crate::shim::Shim;
use crate::token::PIN;

/// The pause after a first wrong PIN, and after a second one, and a bit.
const PAUSES: [Duration; 2] = [Duration::from_millis(6_000), Duration::from_millis(11_000)];

fn unlock_with(pin: &str) -> Verb {
    Verb::Unlock {
        appliance: None,
        pin: Some(Passing::new(Pin::copy_from(pin.as_bytes()).expect("room"))),
        by_operator: true,
        look_first: false,
    }
}

/// Tries as many wrong PINs as a second gives room for.
fn guess(intruder: &mut Intruder) -> Vec<String> {
    let mut refusals = Vec::new();
    for number in 0..25 {
        let refused = intruder.refused("a wrong PIN", &unlock_with(&format!("90{number:04}")));
        assert!(matches!(refused, Fault::PinRefused(_)), "{refused:?}");
        refusals.push(refused.to_string());
    }
    refusals
}

#[test]
fn a_front_that_guesses_pins_has_two_tries() {
    secret::start(&secret::Settings::default(), Use::Front).expect("an arena");
    let (mut appliance, shim) = Shim::prepared(|config| {
        let custody = config["custody"].as_table_mut().expect("a table");
        custody.insert("spawn".to_owned(), "never".into());
    });
    let custody = Custody::start(&appliance);
    appliance.spawn();
    appliance.wait_for_state("not-initialised");
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance.kill();
    let path = appliance.path("custody.sock");
    let before = shim.calls("C_Login");
    let tries = || shim.calls("C_Login") - before;

    let told = guess(&mut Intruder::connect(&path));
    assert_eq!(tries(), 1, "{told:#?}");
    assert!(told[1].contains("the next is tried from"), "{}", told[1]);
    std::thread::sleep(PAUSES[0]);
    let told = guess(&mut Intruder::connect(&path));
    assert_eq!(tries(), 2, "{told:#?}");
    assert!(told[1].contains("max_wrong_pins = 2"), "{}", told[1]);
    std::thread::sleep(PAUSES[1]);
    guess(&mut Intruder::connect(&path));
    assert_eq!(tries(), 2, "no pause gives a third one");

    // Neither an end of custody nor the configured PIN gives any back.
    drop(custody);
    let custody = Custody::start(&appliance);
    let mut intruder = connect(&appliance);
    guess(&mut intruder);
    assert_eq!(tries(), 2, "custody has forgotten");
    let configured =
        Verb::Unlock { appliance: None, pin: None, by_operator: false, look_first: false };
    assert!(matches!(intruder.done(&configured), Reply::Unlocked { .. }));
    drop((intruder, custody));
    let custody = Custody::start(&appliance);
    let mut intruder = connect(&appliance);
    guess(&mut intruder);
    assert_eq!(tries(), 3, "the configured PIN bought more tries");
    let right = intruder.refused("even the right one", &unlock_with(PIN));
    assert!(matches!(right, Fault::PinRefused(_)), "{right:?}");
    drop((intruder, custody));

    // Root's configuration does.
    appliance.change_config(|config| {
        let custody = config["custody"].as_table_mut().expect("a table");
        custody.insert("max_wrong_pins".to_owned(), 3.into());
    });
    let _custody = Custody::start(&appliance);
    assert!(matches!(connect(&appliance).done(&unlock_with(PIN)), Reply::Unlocked { .. }));
    assert_eq!(tries(), 4);
    // It is the appliance that it was.
    appliance.spawn();
    appliance.wait_for_state("ready");
    appliance.stop();
    let path = appliance.path("store");
    let store = SledStore::open(&Settings { path, ..Settings::default() }).expect("a store");
    assert!(read_home(&store).expect("readable").is_some());
}

/// As soon as custody is there.
fn connect(appliance: &Appliance) -> Intruder {
    let path = appliance.path("custody.sock");
    crate::appliance::wait_until("custody", || Intruder::dial(&path).is_ok());
    Intruder::connect(&path)
}

fn unlock(appliance: &Appliance, pin: &str) -> HttpReply {
    appliance.post("/v1/unlock", &json!({ "pin": base64(pin) }))
}

#[test]
fn an_operator_who_guesses_pins_has_two_tries_and_is_told_when() {
    let (appliance, shim) = Shim::appliance(|_| {});
    appliance.post("/v1/lock", &json!({})).expect_status(200);
    let before = shim.calls("C_Login");
    for number in 0..25 {
        let refused = unlock(&appliance, &format!("90{number:04}"));
        refused.expect_problem(503, "pin-refused");
        let is_told = refused.text().contains("the next is tried from");
        assert!(number == 0 || is_told, "{}", refused.text());
    }
    assert_eq!(shim.calls("C_Login") - before, 1);
    std::thread::sleep(PAUSES[0]);
    assert_eq!(unlock(&appliance, PIN).expect_status(200).json()["state"], "ready");
    assert_eq!(shim.calls("C_Login") - before, 2);
}

#[test]
fn to_unlock_is_not_to_give_a_pin() {
    let (mut appliance, shim) = Shim::appliance(|_| {});
    appliance.stop();
    let policy = appliance.path("own-policy");
    std::fs::create_dir(&policy).expect("made");
    let text = "@id(\"all-but-a-pin\")\npermit (principal, action in [Action::\"operate\", \
                Action::\"observe\", Action::\"manage\"], resource);\n";
    std::fs::write(policy.join("own.cedar"), text).expect("written");
    appliance.change_config(|config| {
        config["policy"]["directory"] = policy.display().to_string().into();
    });
    appliance.start();
    let before = shim.calls("C_Login");
    let retire = json!({ "generation": 1, "pin": base64(PIN) });
    appliance.post("/v1/master/retire", &retire).expect_problem(403, "denied");
    appliance.post("/v1/lock", &json!({})).expect_status(200);
    unlock(&appliance, "909090").expect_problem(403, "denied");
    unlock(&appliance, PIN).expect_problem(403, "denied");
    assert_eq!(shim.calls("C_Login"), before, "a PIN was tried for one who may not give any");
    appliance.post("/v1/unlock", &json!({})).expect_status(200);
}
