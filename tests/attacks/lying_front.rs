//! Code in the front says things to custody that are not true: how long keys may serve without the token, how
//! many generations there are, how long names are. What custody does not believe, it refuses or bounds.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use strongroom::custody::protocol::{Fault, Home, RecordAddress, Reply, StoreKey, Verb, Verdict};
use strongroom::key::Algorithm;

use crate::apart::Custody;
use crate::appliance::wait_until;
use crate::custody_verbs::{Conquered, at};
use crate::intruder::Intruder;

/// A conquered appliance whose token is soon found to be away.
fn conquered(change: impl FnOnce(&mut toml::Table)) -> Conquered {
    Conquered::configured(|config| {
        let custody = config["custody"].as_table_mut().expect("a table");
        custody.insert("canary_seconds".to_owned(), 1.into());
        change(custody);
    })
}

fn with_grace(conquered: &Conquered, sealed: &[u8], grace: u32) -> Verb {
    let mut verb = conquered.decrypt("brought", 1, sealed);
    let Verb::Decrypt { allowance, .. } = &mut verb else { panic!("another verb") };
    *allowance = grace;
    verb
}

fn pull_the_token(conquered: &Conquered) -> PathBuf {
    let away = conquered.appliance.token().tokens().with_extension("away");
    std::fs::rename(conquered.appliance.token().tokens(), &away).expect("moved");
    away
}

/// How long custody decrypts on with this request, at most `longest`; it may end the connection after.
fn serves_for(intruder: &mut Intruder, verb: &Verb, longest: Duration) -> (Duration, bool) {
    let (began, mut without_token) = (Instant::now(), false);
    while began.elapsed() < longest {
        intruder.ask_only(verb);
        std::thread::sleep(Duration::from_millis(200));
        for answer in intruder.answers() {
            match answer {
                Ok(Reply::Plaintext { without_token: alone, .. }) => without_token |= alone,
                Ok(_) => {}
                Err(_) => return (began.elapsed(), without_token),
            }
        }
        if intruder.has_ended_within(0) {
            break;
        }
    }
    (began.elapsed(), without_token)
}

#[test]
fn a_grace_is_not_raised_while_the_token_is_away() {
    let conquered = conquered(|_| {});
    let mut intruder = conquered.connect();
    conquered.unlock(&mut intruder);
    let sealed = conquered.sealed_key(&mut intruder, "brought");
    intruder.done(&with_grace(&conquered, &sealed, 6));
    let away = pull_the_token(&conquered);
    let (lie, longest) = (with_grace(&conquered, &sealed, u32::MAX), Duration::from_secs(20));
    // Until custody notices, it serves as always.
    std::thread::sleep(Duration::from_secs(3));
    intruder.ask_only(&Verb::Allow { name: "brought".to_owned(), allowance: u32::MAX });
    let (served, without_token) = serves_for(&mut intruder, &lie, longest);
    assert!(without_token, "it was to serve for a while");
    assert!(served < Duration::from_secs(15), "{served:?}");
    std::fs::rename(away, conquered.appliance.token().tokens()).expect("moved back");
}

#[test]
fn no_grace_is_longer_than_custodys_configuration_allows() {
    let conquered = conquered(|custody| {
        custody.insert("max_outage_grace_seconds".to_owned(), 4.into());
    });
    let mut intruder = conquered.connect();
    conquered.unlock(&mut intruder);
    let sealed = conquered.sealed_key(&mut intruder, "brought");
    let lie = with_grace(&conquered, &sealed, u32::MAX);
    intruder.done(&lie);
    intruder.done(&Verb::Allow { name: "brought".to_owned(), allowance: u32::MAX });
    let away = pull_the_token(&conquered);
    let (served, without_token) = serves_for(&mut intruder, &lie, Duration::from_secs(20));
    assert!(without_token, "it was to serve for a while");
    assert!(served < Duration::from_secs(15), "{served:?}");
    std::fs::rename(away, conquered.appliance.token().tokens()).expect("moved back");
}

#[test]
fn no_request_is_longer_than_it_can_honestly_be() {
    let conquered = Conquered::new();
    let mut intruder = conquered.connect();
    conquered.unlock(&mut intruder);
    let generations = (1..=20_000).collect();
    let refused = intruder.refused("a scan of the token", &Verb::Masters { generations });
    assert!(matches!(refused, Fault::Protocol(_)), "{refused:?}");
    let address = at(&"n".repeat(60_000), 1);
    intruder.ask_only(&Verb::GenerateKey { address, algorithm: Algorithm::Rsa2048 });
    assert!(intruder.has_ended_within(5_000), "a name of 60 000 bytes was taken");
}

/// Ends custody in order and starts the next one.
fn start_again(conquered: &mut Conquered, mut intruder: Intruder) -> Intruder {
    let _ = intruder.ask(&Verb::Lock);
    assert!(intruder.has_ended_within(5_000));
    drop(intruder);
    conquered.custody = Custody::start(&conquered.appliance);
    let path = conquered.appliance.path("custody.sock");
    wait_until("custody", || Intruder::dial(&path).is_ok());
    let mut intruder = conquered.connect();
    conquered.unlock_locked(&mut intruder);
    intruder
}

#[test]
fn custodys_state_does_not_grow_with_what_is_named() {
    let mut conquered = conquered(|custody| {
        custody.remove("master_destroy_wait_days");
    });
    let mut intruder = conquered.connect();
    conquered.unlock(&mut intruder);
    let path = conquered.appliance.token().state_directory().join("master-keys.json");
    for some in (0x8000_0000..0x8000_0000 + 12_000).collect::<Vec<u32>>().chunks(200) {
        for generation in some {
            intruder.ask_only(&Verb::DestroyMaster { generation: *generation, pin: None });
        }
        let mut answers = 0;
        wait_until("the answers", || {
            answers += intruder.answers().len();
            answers == some.len()
        });
    }
    let length = std::fs::metadata(path).map_or(0, |found| found.len());
    assert!(length < 4096, "{length} bytes are remembered");
    let mut intruder = start_again(&mut conquered, intruder);
    intruder.done(&Verb::Masters { generations: vec![1] });
}

#[test]
fn master_keys_are_counted_whatever_is_in_use_and_over_starts() {
    let mut conquered = conquered(|_| {});
    let mut intruder = conquered.connect();
    conquered.unlock(&mut intruder);
    let (mut made, mut why) = (1, String::new());
    for start in 0..2 {
        for generation in made + 1..=60 {
            let make = Verb::MakeMaster { generation };
            if intruder.ask(&make).is_err() {
                let home = Home { generation: generation - 1, ..conquered.home.clone() };
                intruder.done(&Verb::UseHome { home: home.clone() });
                conquered.home = home;
                match intruder.ask(&make) {
                    Ok(_) => {}
                    Err(Fault::Refused(refused)) => {
                        why = refused;
                        break;
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            made = generation;
        }
        assert!(made <= 33, "{made} master keys");
        assert!(why.contains("within a day"), "{why}");
        if start == 0 {
            intruder = start_again(&mut conquered, intruder);
        }
    }
    let Reply::Checks(checks) = intruder.done(&Verb::Doctor) else { panic!("another reply") };
    assert!(!checks.iter().any(|check| check.name == "later master keys"), "all came into use");
}

#[test]
fn doctor_names_master_keys_that_did_not_come_into_use() {
    let conquered = Conquered::new();
    let mut intruder = conquered.connect();
    conquered.unlock(&mut intruder);
    for generation in [2, 3] {
        intruder.done(&Verb::MakeMaster { generation });
    }
    let Reply::Checks(checks) = intruder.done(&Verb::Doctor) else { panic!("another reply") };
    let later = checks.iter().find(|check| check.name == "later master keys").expect("a check");
    assert_eq!(later.verdict, Verdict::Warn);
    assert!(later.found.contains("2, 3"), "{}", later.found);
}

#[test]
fn custody_that_is_open_becomes_no_other_appliance() {
    let conquered = Conquered::new();
    let mut intruder = conquered.connect();
    conquered.unlock(&mut intruder);
    let sealed = conquered.sealed_key(&mut intruder, "brought");
    for resume in [true, false] {
        let init = Verb::Init { appliance: "0".repeat(32), resume };
        let refused = intruder.refused("another appliance", &init);
        assert!(matches!(refused, Fault::Exists(_)), "{refused:?}");
    }
    intruder.done(&Verb::DropKeys { name: None, version: None });
    intruder.done(&conquered.decrypt("brought", 1, &sealed));
}

#[test]
fn nothing_comes_into_use_for_one_while_another_one_works() {
    let conquered = Conquered::new();
    let (home, mut appliance) = (conquered.home, conquered.appliance);
    appliance.spawn();
    appliance.wait_for_state("ready");
    let mut intruder = Intruder::connect(&appliance.path("custody.sock"));
    let known = Some(home.clone());
    intruder.done(&Verb::Unlock {
        appliance: known,
        pin: None,
        by_operator: false,
        look_first: false,
    });
    intruder.done(&Verb::MakeMaster { generation: 2 });
    let use_home = Verb::UseHome { home: Home { generation: 2, ..home } };
    let refused = intruder.refused("another generation", &use_home);
    assert!(matches!(refused, Fault::Refused(_)), "{refused:?}");
    appliance.create_key("after");
    drop(intruder);
    wait_until("a rotation", || {
        appliance.cli(&["master", "rotate", "--force"]);
        appliance.get("/v1/master").json()["generation"] != 1
    });
    appliance.create_key("and-after-that");
}

#[test]
fn a_store_key_that_is_open_is_no_other_one() {
    let conquered = Conquered::new();
    let mut intruder = conquered.connect();
    conquered.unlock(&mut intruder);
    let seal = |store_key: StoreKey| Verb::SealRecord {
        store_key,
        address: RecordAddress { table: "t".to_owned(), key: "k".to_owned(), revision: 1 },
        value: b"value".to_vec(),
    };
    let key = conquered.home.store_key.clone();
    intruder.done(&seal(key.clone()));
    for bent in [StoreKey { id: key.id + 6, ..key.clone() }, StoreKey { first: 5, ..key }] {
        let refused = intruder.refused("a record under another number", &seal(bent));
        assert_eq!(refused, Fault::SealBroken);
    }
}

/// Bytes of memory that a process has.
fn resident(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    let kibibytes = line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number");
    kibibytes * 1024
}

#[test]
fn many_numbers_take_no_room_while_they_wait() {
    let conquered = Conquered::new();
    let mut intruder = conquered.connect();
    conquered.unlock(&mut intruder);
    let pid = conquered.custody.pid();
    let (before, mut most) = (resident(pid), 0);
    let (holds, many) = (150, 80);
    // So that what follows has to wait for the token.
    for _ in 0..holds {
        intruder.ask_only(&Verb::Masters { generations: (2000..3024).collect() });
    }
    let mut answers = Vec::new();
    for _ in 0..many {
        intruder.ask_only(&Verb::Masters { generations: vec![1; 90_000] });
        answers.extend(intruder.answers());
        most = most.max(resident(pid));
    }
    wait_until("answers", || {
        answers.extend(intruder.answers());
        most = most.max(resident(pid));
        answers.len() == holds + many
    });
    let refused = answers.iter().filter(|answer| matches!(answer, Err(Fault::Protocol(_))));
    assert_eq!(refused.count(), many);
    let grown = most.saturating_sub(before);
    assert!(grown < 16 << 20, "{} MiB for numbers that wait", grown >> 20);
}
