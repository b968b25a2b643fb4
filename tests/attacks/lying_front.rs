//! Code in the front says things to custody that are not true: how long keys may serve without the token, how
//! many generations there are, how long names are. What custody does not believe, it refuses or bounds.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use strongroom::custody::protocol::{Fault, Reply, Verb};
use strongroom::key::Algorithm;

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
