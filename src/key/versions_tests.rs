//! A key's rules over its versions, also over random lives.

use proptest::prelude::*;

use super::super::{ForRecovery, Pick, WaitingPeriod};
use super::*;

const DAY: i64 = 24 * 3600;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn key() -> KeyMeta {
    KeyMeta::new(
        Name::parse("pay").unwrap(),
        Algorithm::Rsa2048,
        Mgf1Hash::Sha256,
        Labels::default(),
        "k1".to_owned(),
        at(0),
    )
}

fn schedule(days: u16) -> Transition {
    Transition::ScheduleDestruction(WaitingPeriod::of_days(days).unwrap())
}

#[test]
fn rotation_adds_an_active_version_and_leaves_the_older_ones() {
    let mut key = key();
    assert_eq!(key.rotate("k2".to_owned(), at(5)), Ok(2));
    assert_eq!(key.current().map(VersionMeta::version), Some(2));
    assert_eq!(key.version(1).map(VersionMeta::state), Some(State::Active));
    let same = key.rotate("k1".to_owned(), at(6)).unwrap_err();
    assert_eq!(same, RotateError::SameKey { version: 1 });
}

#[test]
fn rotation_waits_for_a_halted_key_and_mends_a_compromised_one() {
    let mut key = key();
    key.apply(None, Transition::Suspend, at(1)).unwrap();
    assert_eq!(key.rotate("k2".to_owned(), at(2)), Err(RotateError::Suspended));
    key.apply(None, schedule(1), at(2)).unwrap();
    assert_eq!(key.rotate("k2".to_owned(), at(2)), Err(RotateError::Scheduled { at: at(DAY + 2) }));
    key.apply(None, Transition::Restore, at(3)).unwrap();
    key.apply(None, Transition::Compromise, at(4)).unwrap();
    assert_eq!(key.rotate("k2".to_owned(), at(5)), Ok(2));
    assert_eq!(key.state(), State::Active);
}

#[test]
fn a_destroyed_key_stays_destroyed() {
    let mut key = key();
    key.apply(None, schedule(1), at(0)).unwrap();
    assert_eq!((key.destroy_at(), key.due(at(DAY - 1))), (Some(at(DAY)), vec![]));
    assert_eq!(key.due(at(DAY)), vec![1]);
    key.apply(None, Transition::Destroy, at(DAY)).unwrap();
    assert_eq!((key.state(), key.destroy_at(), key.next_due()), (State::Destroyed, None, None));
    assert_eq!(key.rotate("k2".to_owned(), at(DAY)), Err(RotateError::Destroyed));
    let error = key.apply(None, Transition::Compromise, at(DAY)).unwrap_err();
    assert_eq!(error, TransitionError::Destroyed { version: 1 });
}

#[test]
fn a_step_of_the_whole_key_takes_every_version_that_can() {
    let mut key = key();
    key.rotate("k2".to_owned(), at(1)).unwrap();
    key.rotate("k3".to_owned(), at(2)).unwrap();
    key.apply(Some(2), Transition::Deactivate, at(3)).unwrap();
    assert_eq!(key.apply(None, Transition::Suspend, at(4)), Ok(vec![1, 3]));
    assert_eq!(key.state(), State::Suspended);
    let again = key.apply(None, Transition::Suspend, at(5)).unwrap_err();
    assert!(matches!(again, TransitionError::WrongState { version: 3, .. }), "{again}");
    let missing = key.apply(Some(9), Transition::Suspend, at(5)).unwrap_err();
    assert_eq!(missing, TransitionError::NoVersion { version: 9, newest: 3 });
}

#[test]
fn the_first_stored_form_stays_readable() {
    let json = r#"{"name":"pay","algorithm":"RSA-2048","mgf1_hash":"SHA-1","labels":{"env":"live"},
        "created_at":"2026-01-02T03:04:05Z","versions":[
        {"version":1,"state":"compromised","kid":"a","created_at":"2026-01-02T03:04:05Z",
         "activated_at":"2026-01-02T03:04:05Z","compromised_at":"2026-02-02T03:04:05Z",
         "destroy_at":"2026-03-02T03:04:05Z"},
        {"version":2,"state":"active","kid":"b","created_at":"2026-01-03T03:04:05Z"}]}"#;
    let key: KeyMeta = serde_json::from_str(json).unwrap();
    assert_eq!(key.current().map(VersionMeta::kid), Some("b"));
    assert_eq!(key.next_due().unwrap().to_string(), "2026-03-02T03:04:05Z");
    let again = serde_json::to_string(&key).unwrap();
    assert_eq!(serde_json::from_str::<KeyMeta>(&again).unwrap(), key);
}

#[test]
fn stored_keys_with_bent_versions_are_refused() {
    let version = |number: u32, kid: &str| {
        format!(
            r#"{{"version":{number},"state":"active","kid":"{kid}","created_at":"2026-01-02T03:04:05Z"}}"#
        )
    };
    let bent = [
        vec![],
        vec![version(2, "a")],
        vec![version(1, "a"), version(1, "b")],
        vec![version(1, "a"), version(3, "b")],
        vec![version(1, "a"), version(2, "a")],
    ];
    for versions in bent {
        let json = format!(
            r#"{{"name":"pay","algorithm":"RSA-2048","created_at":"2026-01-02T03:04:05Z","versions":[{}]}}"#,
            versions.join(",")
        );
        let error = serde_json::from_str::<KeyMeta>(&json).unwrap_err();
        assert!(error.to_string().contains("numbered upwards"), "{json}: {error}");
    }
}

#[derive(Debug, Clone)]
enum Deed {
    Rotate,
    Step(Option<u32>, Transition),
}

fn deeds() -> impl Strategy<Value = Vec<(Deed, i64)>> {
    let transition = prop_oneof![
        Just(Transition::Activate),
        Just(Transition::Suspend),
        Just(Transition::Resume),
        Just(Transition::Deactivate),
        Just(Transition::Compromise),
        (1u16..4).prop_map(schedule),
        Just(Transition::Restore),
        Just(Transition::Destroy),
    ];
    let version = prop_oneof![Just(None), (1u32..6).prop_map(Some)];
    let deed = prop_oneof![
        1 => Just(Deed::Rotate),
        6 => (version, transition).prop_map(|(version, step)| Deed::Step(version, step)),
    ];
    prop::collection::vec((deed, 0..2 * DAY), 0..60)
}

/// What must hold between a key before a deed and after it.
fn check(before: &KeyMeta, after: &KeyMeta, accepted: bool) -> Result<(), TestCaseError> {
    if !accepted {
        prop_assert_eq!(before, after);
    }
    for old in before.versions() {
        let new = after.version(old.version()).expect("no version goes away");
        prop_assert_eq!((old.kid(), old.created_at()), (new.kid(), new.created_at()));
        if old.state() == State::Destroyed {
            prop_assert_eq!(old, new);
        }
        if old.state() == State::Compromised {
            prop_assert!(matches!(new.state(), State::Compromised | State::Destroyed));
        }
        if new.state() == State::Destroyed && old.state() != State::Destroyed {
            prop_assert!(old.destroy_at().is_some());
        }
    }
    Ok(())
}

/// What must hold of every key at any time.
fn check_uses(key: &KeyMeta) -> Result<(), TestCaseError> {
    let newest_usable = key
        .versions()
        .iter()
        .filter(|version| version.state() == State::Active && version.destroy_at().is_none())
        .map(VersionMeta::version)
        .max();
    prop_assert_eq!(key.current().map(VersionMeta::version), newest_usable);
    prop_assert_eq!(key.to_protect().ok().map(|proof| proof.version()), newest_usable);
    prop_assert_eq!(
        key.state() == State::Active && key.destroy_at().is_none(),
        newest_usable.is_some()
    );
    for version in key.versions() {
        let pick = Pick::Version(version.version());
        let plain = key.to_process(pick, None).is_ok();
        let recovery = ForRecovery::granted_by_policy(key.name().clone());
        let with_recovery = key.to_process(pick, Some(recovery)).is_ok();
        let waits = version.destroy_at().is_some();
        prop_assert_eq!(plain, version.state() == State::Active && !waits);
        let recoverable = matches!(version.state(), State::Compromised | State::Deactivated);
        prop_assert_eq!(with_recovery, plain || (recoverable && !waits));
        prop_assert_eq!(version.destroyed_at().is_some(), version.state() == State::Destroyed);
    }
    let json = serde_json::to_string(key).unwrap();
    prop_assert_eq!(&serde_json::from_str::<KeyMeta>(&json).unwrap(), key);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 512, ..Default::default() })]

    #[test]
    fn no_life_of_a_key_breaks_the_rules(deeds in deeds()) {
        let mut key = key();
        let mut now = 0;
        for (number, (deed, passes)) in deeds.into_iter().enumerate() {
            now += passes;
            let before = key.clone();
            let accepted = match deed {
                Deed::Rotate => key.rotate(format!("r{number}"), at(now)).is_ok(),
                Deed::Step(version, step) => key.apply(version, step, at(now)).is_ok(),
            };
            check(&before, &key, accepted)?;
            check_uses(&key)?;
        }
    }
}
