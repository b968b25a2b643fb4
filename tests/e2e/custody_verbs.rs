//! Somebody owns the front: connects to custody as the front's user and asks for everything there is.
//! Whatever it asks, no key comes out, nothing is unwrapped to the outside, and nothing is signed that
//! is no checkpoint.
#![allow(unsafe_code)] // the environment of a process with one thread

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};
use strongroom::audit::{Hash, VerifyKey};
use strongroom::custody::protocol::{
    Fault, Home, KeyAddress, Passing, RecordAddress, Reply, StoreKey, Verb,
};
use strongroom::custody::{Checkpoint, Mark};
use strongroom::key::{Algorithm, Mgf1Hash};
use strongroom::records::read_home;
use strongroom::secret::{self, DataKey, Pkcs8Der, Use};
use strongroom::store::sled_store::{Settings, SledStore};
use strongroom::store::{Store, Table};
use strongroom::token::pkcs11::Pkcs11Token;
use strongroom::token::{Token, WrappedKey, read_pin};

use crate::acts::{base64, encrypt, put_secret};
use crate::apart::{Custody, apart_with};
use crate::appliance::{Appliance, wait_until};
use crate::callers::{User, open_to_all};
use crate::intruder::Intruder;
use crate::key_parts;
use crate::promises::imported_key;
use crate::scan::{Needles, scan_file};
use crate::token::{Kind, PIN, TestToken};

/// An appliance whose front is gone, what it left in the store, and the way to its custody.
pub struct Conquered {
    pub appliance: Appliance,
    pub custody: Custody,
    pub home: Home,
    records: Vec<(RecordAddress, Vec<u8>)>,
    /// The private key that was brought in, PKCS#8.
    brought: Vec<u8>,
    /// Of the secret's plaintext.
    ciphertext: Vec<u8>,
}

impl Conquered {
    pub fn new() -> Self {
        Self::configured(|_| {})
    }

    /// The same, with a configuration that `change` has changed.
    pub fn configured(change: impl FnOnce(&mut toml::Table)) -> Self {
        secret::start(&secret::Settings::default(), Use::Front).expect("an arena");
        let (mut appliance, custody) = apart_with(change);
        appliance.create_key("made");
        let brought = imported_key(&appliance.path(""));
        let body = json!({ "private_key": base64(&brought) });
        appliance.post("/v1/keys/brought/import", &body).expect_status(201);
        put_secret(&appliance, "s", "brought", "a secret's value").expect_status(201);
        let ciphertext = BASE64_STANDARD.decode(encrypt(&appliance, "brought", "hello"));
        appliance.kill();
        let path = appliance.path("store");
        let store = SledStore::open(&Settings { path, ..Settings::default() }).expect("a store");
        let home = read_home(&store).expect("readable").expect("founded").for_custody();
        let mut records = Vec::new();
        for table in [Table::Key, Table::KeyVersion, Table::Secret] {
            for (key, stored) in store.scan(table, "", None, 100).expect("readable") {
                let (table, revision) = (table.as_str().to_owned(), stored.revision);
                records.push((RecordAddress { table, key, revision }, stored.value));
            }
        }
        assert_eq!(records.len(), 5);
        let ciphertext = ciphertext.expect("base64");
        Self { appliance, custody, home, records, brought, ciphertext }
    }

    pub fn connect(&self) -> Intruder {
        Intruder::connect(&self.appliance.path("custody.sock"))
    }

    pub fn unlock(&self, intruder: &mut Intruder) {
        self.unlock_as(intruder, false);
    }

    /// The same where custody remembers a lock.
    pub fn unlock_locked(&self, intruder: &mut Intruder) {
        self.unlock_as(intruder, true);
    }

    fn unlock_as(&self, intruder: &mut Intruder, by_operator: bool) {
        let appliance = Some(self.home.clone());
        let unlock = Verb::Unlock { appliance, pin: None, by_operator, look_first: false };
        assert!(matches!(intruder.done(&unlock), Reply::Unlocked { .. }));
    }

    pub fn open(&self, intruder: &mut Intruder, table: &str, key: &str) -> Value {
        let found = self.records.iter().find(|(at, _)| at.table == table && at.key == key);
        let (address, sealed) = found.expect("there").clone();
        let store_key = self.home.store_key.clone();
        let opened = intruder.done(&Verb::OpenRecord { store_key, address, sealed });
        let Reply::Opened(value) = opened else { panic!("another reply") };
        serde_json::from_slice(&value).expect("JSON")
    }

    /// The sealed private key of a version, as its record has it.
    pub fn sealed_key(&self, intruder: &mut Intruder, key: &str) -> Vec<u8> {
        let record = self.open(intruder, "key-version", &format!("{key}/0000000001"));
        BASE64_STANDARD.decode(record["sealed"].as_str().expect("a text")).expect("base64")
    }

    pub fn decrypt(&self, name: &str, version: u32, sealed: &[u8]) -> Verb {
        Verb::Decrypt {
            address: at(name, version),
            sealed: sealed.to_vec(),
            mgf1_hash: Mgf1Hash::Sha256,
            ciphertext: self.ciphertext.clone(),
            label: Vec::new(),
            allowance: 0,
        }
    }
}

pub fn at(name: &str, version: u32) -> KeyAddress {
    KeyAddress { name: name.to_owned(), version }
}

/// Length of a wrapped key's form, in bytes: it is the beginning of a sealed key.
const WRAPPED: usize = 6 + 12 + 48;

#[test]
fn no_verb_lets_a_key_out() {
    let name = "custody_verbs::no_verb_lets_a_key_out";
    if TestToken::in_own_process(name, Kind::SoftHsm).is_none() {
        return;
    }
    let conquered = Conquered::new();
    let mut intruder = conquered.connect();
    assert_eq!(intruder.refused("a record", &conquered.decrypt("made", 1, &[])), Fault::Locked);
    conquered.unlock(&mut intruder);
    let (made, brought) = (
        conquered.sealed_key(&mut intruder, "made"),
        conquered.sealed_key(&mut intruder, "brought"),
    );
    // What the front is there for works, and that is all that comes out of a private key.
    let Reply::Plaintext { plaintext, .. } =
        intruder.done(&conquered.decrypt("brought", 1, &brought))
    else {
        panic!("another reply")
    };
    assert_eq!(plaintext.taken().expect("room").expose(), b"hello");
    conquered.open(&mut intruder, "key", "made");
    let secret = conquered.open(&mut intruder, "secret", "s").to_string();
    assert!(!secret.contains("a secret's value"), "a secret's record is a ciphertext");

    unwrap_with_records(&conquered, &mut intruder, &made, &brought);
    unwrap_elsewhere(&conquered, &mut intruder, &made, &brought);
    rewraps(&conquered, &mut intruder, &made, &brought);
    the_other_verbs(&conquered, &mut intruder, &made);
    nothing_but_checkpoints_is_signed(&conquered, &mut intruder);

    // All of it is looked through for all that is secret, which the test itself takes out of the token.
    let file = conquered.appliance.path("seen");
    assert!(intruder.seen.len() > 5_000, "{} bytes were seen", intruder.seen.len());
    for (needles, planted) in everything_secret(&conquered, &made, &brought) {
        std::fs::write(&file, &intruder.seen).expect("written");
        assert_eq!(scan_file(&file, &needles).expect("readable"), [""; 0]);
        std::fs::write(&file, [intruder.seen.as_slice(), &planted].concat()).expect("written");
        assert!(!scan_file(&file, &needles).expect("readable").is_empty(), "the scan is blind");
    }
    assert!(!intruder.seen.windows(PIN.len()).any(|part| part == PIN.as_bytes()));
}

/// A data key is handed in as what a record is sealed under, and as a record.
fn unwrap_with_records(c: &Conquered, intruder: &mut Intruder, made: &[u8], brought: &[u8]) {
    let address = RecordAddress { table: "secret".to_owned(), key: "s".to_owned(), revision: 1 };
    for sealed_key in [made, brought] {
        for id in [0, 1, 2] {
            let store_key = StoreKey { id, first: 0, wrapped: sealed_key[..WRAPPED].to_vec() };
            let (value, sealed) = (b"x".to_vec(), sealed_key[WRAPPED..].to_vec());
            let seal =
                Verb::SealRecord { store_key: store_key.clone(), address: address.clone(), value };
            assert_eq!(intruder.refused("a seal under a data key", &seal), Fault::SealBroken);
            let open = Verb::OpenRecord { store_key, address: address.clone(), sealed };
            assert_eq!(intruder.refused("a private key as record", &open), Fault::SealBroken);
        }
        let wrapped = &sealed_key[..WRAPPED];
        for sealed in [sealed_key, wrapped, &sealed_key[WRAPPED..]] {
            let (store_key, sealed) = (c.home.store_key.clone(), sealed.to_vec());
            let open = Verb::OpenRecord { store_key, address: address.clone(), sealed };
            assert_eq!(intruder.refused("a key as record", &open), Fault::SealBroken);
        }
    }
    let (_, record) = c.records.last().expect("records");
    let of_store_key = [&c.home.store_key.wrapped, &record[6..]].concat();
    for name in ["made", "s"] {
        let decrypt = c.decrypt(name, 1, &of_store_key);
        assert_eq!(intruder.refused("a store key as data key", &decrypt), Fault::SealBroken);
    }
}

/// Sealed forms anywhere else than where they belong, and forms put together from two.
fn unwrap_elsewhere(c: &Conquered, intruder: &mut Intruder, made: &[u8], brought: &[u8]) {
    // Not from memory: a key that is loaded already is known by its address and its seal.
    intruder.done(&Verb::DropKeys { name: None, version: None });
    let mixed = [&made[..WRAPPED], &brought[WRAPPED..]].concat();
    let mut generation = made.to_vec();
    generation[5] = 2;
    let cases: [(&str, u32, &[u8]); 9] = [
        ("brought", 1, made),
        ("made", 2, made),
        ("made", 0, made),
        ("mad", 1, made),
        ("made", 1, &mixed),
        ("brought", 1, &mixed),
        ("made", 1, &made[..made.len() - 1]),
        ("made", 1, &made[..WRAPPED]),
        ("made", 1, &[]),
    ];
    for (name, version, sealed) in cases {
        let decrypt = c.decrypt(name, version, sealed);
        assert_eq!(intruder.refused("an address", &decrypt), Fault::SealBroken, "{name}/{version}");
    }
    intruder.refused("a generation", &c.decrypt("made", 1, &generation));
    for at in (0..made.len()).step_by(37) {
        let mut flipped = made.to_vec();
        flipped[at] ^= 1;
        intruder.refused("a flipped form", &c.decrypt("made", 1, &flipped));
    }
    for (address, sealed) in &c.records {
        let elsewhere = RecordAddress { revision: address.revision + 1, ..address.clone() };
        let other = RecordAddress { table: "appliance".to_owned(), ..address.clone() };
        for address in [elsewhere, other] {
            let (store_key, sealed) = (c.home.store_key.clone(), sealed.clone());
            let open = Verb::OpenRecord { store_key, address, sealed };
            assert_eq!(intruder.refused("a record elsewhere", &open), Fault::SealBroken);
        }
    }
}

/// A key that goes under another master stays a wrapped key, and where it belongs.
fn rewraps(c: &Conquered, intruder: &mut Intruder, made: &[u8], brought: &[u8]) {
    let rewrap = |name: &str, sealed: &[u8], generation| Verb::RewrapKey {
        address: at(name, 1),
        sealed: sealed.to_vec(),
        generation,
    };
    assert!(matches!(intruder.refused("no master", &rewrap("made", made, 2)), Fault::Master(_)));
    intruder.done(&Verb::MakeMaster { generation: 2 });
    intruder.done(&Verb::Masters { generations: vec![1, 2, 3] });
    for (name, sealed) in [("made", brought), ("brought", made)] {
        assert_eq!(intruder.refused("elsewhere", &rewrap(name, sealed, 2)), Fault::SealBroken);
    }
    let Reply::Sealed(moved) = intruder.done(&rewrap("made", made, 2)) else {
        panic!("another reply")
    };
    assert_eq!((&moved[WRAPPED..], moved[5]), (&made[WRAPPED..], 2));
    intruder.refused("an address", &c.decrypt("brought", 1, &moved));
    for wrapped in [&made[..WRAPPED], &moved[..WRAPPED]] {
        let store_key = StoreKey { id: 1, first: 0, wrapped: wrapped.to_vec() };
        let rewrap = Verb::RewrapStoreKey { store_key, generation: 2 };
        assert_eq!(intruder.refused("a data key as store key", &rewrap), Fault::SealBroken);
    }
    // Nobody has a store key count from another one on than it was made for.
    let bent = StoreKey { first: 1, ..c.home.store_key.clone() };
    let rewrap_bent = Verb::RewrapStoreKey { store_key: bent, generation: 2 };
    assert_eq!(intruder.refused("another first", &rewrap_bent), Fault::SealBroken);
    let store_key = c.home.store_key.clone();
    let Reply::StoreKey(later) = intruder.done(&Verb::RewrapStoreKey { store_key, generation: 2 })
    else {
        panic!("another reply")
    };
    let strange = Home { appliance: "0".repeat(32), ..c.home.clone() };
    intruder.refused("another appliance", &Verb::UseHome { home: strange });
    let unproved = Home { generation: 3, ..c.home.clone() };
    let ahead = Home { store_key: later, ..c.home.clone() };
    for home in [unproved, ahead] {
        let refused = intruder.refused("a home without its master", &Verb::UseHome { home });
        assert!(matches!(refused, Fault::Master(_)), "{refused:?}");
    }
    // To a recovery key that custody's own configuration does not name, nothing is wrapped.
    assert!(matches!(intruder.done(&Verb::RecoveryKey), Reply::RecoveryKey(None)));
    let fingerprint = [7; 32];
    let (address, sealed) = (at("made", 1), made.to_vec());
    let store_key = c.home.store_key.clone();
    for verb in [
        Verb::WrapKeyForRecovery { address, sealed, fingerprint },
        Verb::WrapStoreKeyForRecovery { store_key, fingerprint },
    ] {
        assert!(matches!(intruder.refused("a recovery key", &verb), Fault::Recovery(_)));
    }
    let in_use = Verb::DestroyMaster { generation: 1, pin: None };
    assert!(matches!(intruder.refused("in use", &in_use), Fault::Protocol(_)));
    intruder.done(&Verb::DestroyMaster { generation: 2, pin: None });
}

fn the_other_verbs(c: &Conquered, intruder: &mut Intruder, made: &[u8]) {
    for verb in [Verb::Status, Verb::Doctor, Verb::NewStoreKey { id: 2, first: 0 }] {
        intruder.done(&verb);
    }
    let algorithm = Algorithm::Rsa2048;
    intruder.done(&Verb::GenerateKey { address: at("made", 2), algorithm });
    let import = |bytes: &[u8]| Verb::ImportKey {
        address: at("made", 3),
        private_key: Passing::new(Pkcs8Der::copy_from(bytes).expect("room")),
    };
    let Reply::Key { sealed, .. } = intruder.done(&import(&c.brought)) else {
        panic!("another reply")
    };
    assert_ne!(sealed[WRAPPED..], made[WRAPPED..]);
    for bytes in [made, &made[WRAPPED..], &c.home.store_key.wrapped] {
        assert!(matches!(intruder.refused("an import", &import(bytes)), Fault::BadKey(_)));
    }
    let made_anew = Verb::GenerateKey { address: at("checked", 1), algorithm };
    let Reply::Key { sealed, public, .. } = intruder.done(&made_anew) else {
        panic!("another reply")
    };
    let check = |version, public: &[u8]| Verb::CheckKey {
        address: at("checked", version),
        sealed: sealed.clone(),
        public: public.to_vec(),
    };
    assert!(matches!(intruder.done(&check(1, &public)), Reply::Done), "a yes, and nothing else");
    for (version, public) in [(2, &public[..]), (1, &public[1..]), (1, b"")] {
        let refused = intruder.refused("a check", &check(version, public));
        assert_eq!(refused, Fault::SealBroken);
    }
    let unlock = Verb::Unlock { appliance: None, pin: None, by_operator: true, look_first: false };
    assert_eq!(intruder.refused("a second unlock", &unlock), Fault::Unlocked);
    // The link does not say so, and comes to what an operator was faster to open.
    c.unlock(intruder);
    let appliance = c.home.appliance.clone();
    let init = Verb::Init { appliance: appliance.clone(), resume: false };
    assert!(matches!(intruder.refused("a second init", &init), Fault::Exists(_)));
    // Nor does an open custody become another appliance, or this one again.
    for appliance in ["0".repeat(32), appliance] {
        let init = Verb::Init { appliance, resume: true };
        assert!(matches!(intruder.refused("a second init", &init), Fault::Exists(_)));
    }
    // It still opens what it opened: the ciphertext is another key's.
    let opened = intruder.refused("a ciphertext", &c.decrypt("made", 1, made));
    assert_eq!(opened, Fault::DecryptionFailed);
}

#[test]
fn as_another_appliance_custody_opens_nothing_of_the_one_before() {
    let c = Conquered::new();
    let mut intruder = c.connect();
    c.unlock(&mut intruder);
    let made = c.sealed_key(&mut intruder, "made");
    drop(intruder);
    // Who comes next unlocks it for an appliance that is to be made.
    let mut intruder = c.connect();
    let unlock = Verb::Unlock { appliance: None, pin: None, by_operator: false, look_first: false };
    wait_until("custody to be locked and unlocked", || intruder.ask(&unlock).is_ok());
    intruder.done(&Verb::Init { appliance: "0".repeat(32), resume: true });
    assert_eq!(intruder.refused("a stranger", &c.decrypt("made", 1, &made)), Fault::SealBroken);
    let (address, sealed) = c.records[0].clone();
    let store_key = c.home.store_key.clone();
    let open = Verb::OpenRecord { store_key, address, sealed };
    assert_eq!(intruder.refused("a stranger", &open), Fault::SealBroken);
}

fn nothing_but_checkpoints_is_signed(c: &Conquered, intruder: &mut Intruder) {
    let tag = strongroom::custody::BACKUP_TAG;
    let bad = [
        Vec::new(),
        b"sign this".to_vec(),
        tag.to_vec(),
        [tag, b"and more"].concat(),
        [strongroom::custody::CHECKPOINT_TAG, b"0123456789abcdef\n1\n12\n".as_slice()].concat(),
        [tag, &[0; 4096]].concat(),
        [0x20; 32].to_vec(),
    ];
    for message in bad {
        let sign = Verb::SignBackup { message };
        assert!(matches!(intruder.refused("a signature", &sign), Fault::Protocol(_)));
    }
    let Reply::Newest(newest) = intruder.done(&Verb::NewestCheckpoint) else { panic!("another") };
    let known = newest.known.expect("init signs one");
    let head = Hash::of_line(b"x").0;
    let sign = |trail: &str, covers, before| {
        let trail = trail.to_owned();
        Verb::SignCheckpoint { trail, covers, head, before, closes: false, stored: true }
    };
    let start = Mark { number: 0, covers: 0, head };
    let elsewhere = Mark { head, ..known.mark };
    let higher = Mark { number: known.mark.number + 1, ..known.mark };
    let next = known.mark.covers + 1;
    for verb in [
        sign(&known.trail, next, start),
        sign(&known.trail, next, elsewhere),
        sign(&known.trail, next, higher),
        sign("0123456789abcdef", next, known.mark),
    ] {
        assert!(matches!(intruder.refused("what does not follow", &verb), Fault::NotNewest(_)));
    }
    for verb in [
        sign(&known.trail, known.mark.covers, known.mark),
        sign("0123456789ABCDEF", next, known.mark),
        sign("0123456789abcde\n", next, known.mark),
    ] {
        assert!(matches!(intruder.refused("no checkpoint", &verb), Fault::Protocol(_)));
    }
    let wanted = sign(&known.trail, next, known.mark);
    let Reply::Checkpoint { checkpoint, .. } = intruder.done(&wanted) else { panic!("another") };
    let number = known.mark.number + 1;
    assert_eq!(checkpoint.mark, Mark { number, covers: next, head });
    let Reply::Checkpoint { checkpoint: again, .. } = intruder.done(&wanted) else { panic!() };
    assert_eq!(again, checkpoint, "no number is signed twice");
    let Checkpoint { mark, before, at, .. } = &checkpoint;
    let message = strongroom::custody::checkpoint::message(&known.trail, mark, before, at);
    let key = VerifyKey::from_point(&c.home.signer_point).expect("a key");
    let signature = checkpoint.signature_bytes().expect("64 bytes");
    assert!(key.verifies(&message, &signature), "the audit log's key signed it");
}

/// The store key, both data keys and both private keys, each with something that has it in it: by way of
/// the token itself, with the PIN, as no verb can.
pub fn everything_secret(c: &Conquered, made: &[u8], brought: &[u8]) -> Vec<(Needles, Vec<u8>)> {
    let token = c.appliance.token();
    let (variable, conf) = token.environment();
    // SAFETY: this test runs alone in a process of its own.
    unsafe { std::env::set_var(variable, conf) };
    let settings = token.settings();
    let pin = read_pin(&settings, None).expect("a PIN");
    let opened = Pkcs11Token::open(&settings, &pin).expect("opened");
    let unwrap = |fields: &[&str], form: &[u8]| {
        let wrapped = WrappedKey {
            generation: 1,
            iv: form[6..18].try_into().expect("12 bytes"),
            ciphertext: form[18..WRAPPED].to_vec(),
        };
        opened.unwrap(1, &aad(fields), &wrapped).expect("the form is as it is documented")
    };
    let id = &c.home.appliance;
    let store_key = unwrap(&["store-key", id, "1", "1"], &c.home.store_key.wrapped);
    let (mut keys, mut all) = (Needles::default(), Vec::new());
    keys.add("store key", store_key.expose());
    for (name, sealed) in [("made", made), ("brought", brought)] {
        let data_key = unwrap(&["data-key", id, "1", name, "1"], sealed);
        keys.add(&format!("data key of {name}"), data_key.expose());
        let pkcs8 = open_sealed(&data_key, &aad(&["pkcs8", id, name, "1"]), &sealed[WRAPPED..]);
        all.push((key_parts::needles(&pkcs8), pkcs8));
    }
    all.push((keys, store_key.expose().to_vec()));
    all
}

fn aad(fields: &[&str]) -> Vec<u8> {
    let fields = fields.iter().flat_map(|field| [field.as_bytes(), b"\0"]);
    [b"strongroom/v1\0".as_slice()].into_iter().chain(fields).flatten().copied().collect()
}

/// AES-256-GCM: IV, ciphertext, tag.
fn open_sealed(key: &DataKey, aad: &[u8], sealed: &[u8]) -> Vec<u8> {
    let (iv, rest) = sealed.split_first_chunk::<12>().expect("an IV");
    let (ciphertext, tag) = rest.split_last_chunk::<16>().expect("a tag");
    let (mut bytes, cipher) = (ciphertext.to_vec(), Aes256Gcm::new(key.expose().into()));
    cipher
        .decrypt_inout_detached(
            &Nonce::from(*iv),
            aad,
            bytes.as_mut_slice().into(),
            &Tag::from(*tag),
        )
        .expect("the form is as it is documented");
    bytes
}

#[test]
fn what_is_no_request_ends_the_connection_and_nothing_else() {
    let conquered = Conquered::new();
    let sign = Verb::SignBackup { message: Vec::new() };
    let mut longer = postcard::to_allocvec(&sign).expect("writable");
    longer.push(0);
    let with_zero = Verb::GenerateKey { address: at("a\0b", 1), algorithm: Algorithm::Rsa2048 };
    let with_zero = postcard::to_allocvec(&with_zero).expect("writable");
    let init = Verb::Init { appliance: "a\0".to_owned(), resume: true };
    let init = postcard::to_allocvec(&init).expect("writable");
    let packets: [&[u8]; 8] =
        [&[], &[99], &[200], &[0xff; 64], &[3, 0xff, 0xff, 0xff], &longer, &with_zero, &init];
    for message in packets {
        let mut intruder = conquered.connect();
        intruder.send(7, message);
        assert!(intruder.receive().is_none(), "{message:?} was answered");
    }
    for packet in [&[1_u8][..], &[0; 7]] {
        let mut intruder = conquered.connect();
        intruder.send_raw(packet);
        assert!(intruder.receive().is_none(), "{} bytes were answered", packet.len());
    }
    // Other first words than ours, and other users.
    let path = conquered.appliance.path("custody.sock");
    for hello in [&b"strongroom\x63"[..], b"", b"\0\0\0\0\0\0\0\0\0\0\x01"] {
        let mut stranger = Intruder::dial(&path).expect("connected");
        stranger.send(0, hello);
        while stranger.receive().is_some() {}
    }
    open_to_all(&conquered.appliance);
    let stranger = User::new(60_021).does(|| Intruder::dial(&path).map(drop));
    assert!(stranger.is_err(), "another user was let in");
    // It is the same custody that serves the next one.
    let mut intruder = conquered.connect();
    conquered.unlock(&mut intruder);
    drop(intruder);
    let mut next = conquered.connect();
    let sealed = [1; 100];
    assert_eq!(next.refused("a new front", &conquered.decrypt("made", 1, &sealed)), Fault::Locked);
    next.done(&Verb::Status);
    wait_until("a quiet log", || !conquered.appliance.log().contains("panicked"));
}
