//! Root reads custody's memory while keys are rewrapped under another master, wrapped to the recovery key, used, and
//! custody is unlocked again and again. Of private keys nothing is seen at any time; of data keys and the store key,
//! which pass through the token's module, nothing once the work is done.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use strongroom::custody::fingerprint_of;
use strongroom::custody::protocol::Verb;

use crate::custody_verbs::{Conquered, at, everything_secret};
use crate::recovery::pair;
use crate::scan::Snapshot;
use crate::token::{Kind, TestToken};

/// How often the memory is read while the load runs, at least, and how often custody is unlocked meanwhile.
const LOOKS: usize = 60;
const UNLOCKS: u32 = 10;

/// All that is asked between two unlocks, several at once.
fn requests(conquered: &Conquered, keys: &[(&str, &[u8])], fingerprint: [u8; 32]) -> Vec<Verb> {
    let store_key = || conquered.home.store_key.clone();
    let mut verbs = vec![
        Verb::RewrapStoreKey { store_key: store_key(), generation: 2 },
        Verb::WrapStoreKeyForRecovery { store_key: store_key(), fingerprint },
    ];
    for (name, sealed) in keys {
        let (address, sealed) = (at(name, 1), sealed.to_vec());
        verbs.push(Verb::RewrapKey {
            address: address.clone(),
            sealed: sealed.clone(),
            generation: 2,
        });
        verbs.push(Verb::WrapKeyForRecovery { address, sealed, fingerprint });
    }
    verbs.push(Verb::DropKeys { name: None, version: None });
    verbs.push(conquered.decrypt("brought", 1, keys[1].1));
    verbs
}

#[test]
fn rewraps_recovery_wraps_and_unlocks_show_no_key() {
    let name = "attacks::memory_at_rewrap::rewraps_recovery_wraps_and_unlocks_show_no_key";
    if TestToken::in_own_process(name, Kind::SoftHsm).is_none() {
        return;
    }
    let place = tempfile::tempdir().expect("a directory");
    let (_, public) = pair(place.path(), "recovery", 4096);
    let fingerprint = fingerprint_of(&std::fs::read(&public).expect("readable")).expect("RSA-4096");
    let conquered = Conquered::configured(|config| {
        let custody = config["custody"].as_table_mut().expect("a table");
        custody.insert("recovery_key".to_owned(), public.display().to_string().into());
        custody.insert("arena".to_owned(), toml::toml! { kind = "mlock" }.into());
    });
    let mut intruder = conquered.connect();
    conquered.unlock(&mut intruder);
    let made = conquered.sealed_key(&mut intruder, "made");
    let brought = conquered.sealed_key(&mut intruder, "brought");
    intruder.done(&Verb::MakeMaster { generation: 2 });
    let mut secrets = everything_secret(&conquered, &made, &brought);
    drop(intruder);
    let (wrapped, _) = secrets.pop().expect("data keys and the store key");
    let private: Vec<_> = secrets.iter().map(|(needles, _)| needles.searcher()).collect();
    let custody = conquered.custody.pid();
    let (enough, unlocks) = (AtomicBool::new(false), AtomicU32::new(0));
    let found = std::thread::scope(|scope| {
        scope.spawn(|| {
            let keys = [("made", made.as_slice()), ("brought", brought.as_slice())];
            while !enough.load(Ordering::Relaxed) {
                let mut intruder = conquered.connect();
                conquered.unlock(&mut intruder);
                for _ in 0..4 {
                    let verbs = requests(&conquered, &keys, fingerprint);
                    verbs.iter().for_each(|verb| intruder.ask_only(verb));
                    for _ in &verbs {
                        let (_, answer) = intruder.receive().expect("custody answers");
                        let answer =
                            postcard::from_bytes::<strongroom::custody::protocol::Answer>(&answer);
                        assert!(answer.expect("an answer").is_ok());
                    }
                }
                unlocks.fetch_add(1, Ordering::Relaxed);
            }
        });
        let (mut found, mut looks) = (Vec::new(), 0);
        while found.is_empty() && (looks < LOOKS || unlocks.load(Ordering::Relaxed) < UNLOCKS) {
            let snapshot = Snapshot::of(custody).expect("root reads it");
            assert!(snapshot.len() > 1 << 18, "{} bytes are not the process", snapshot.len());
            found = private.iter().flat_map(|searcher| snapshot.search(searcher)).collect();
            looks += 1;
        }
        enough.store(true, Ordering::Relaxed);
        found
    });
    assert!(found.is_empty(), "{found:x?} in ordinary memory");
    // Custody has wiped what it had opened, and is still the one that was looked at.
    let mut intruder = conquered.connect();
    intruder.done(&Verb::Status);
    let after = Snapshot::of(custody).expect("root reads it").search(&wrapped.searcher());
    assert!(after.is_empty(), "{after:x?} in ordinary memory");
}
