//! Promise 2 on the daemon itself: as root, from outside, through the memory of both its processes and
//! a core file of each, with a key in use and after it was dropped.
//!
//! What came in or went out over HTTP is looked for as well: imported PEM text, plaintexts, the PIN.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};
use strongroom::custody::rsa::PrivateKey;
use strongroom::key::Algorithm;
use strongroom::secret::{self, Settings, Use};

use crate::appliance::{Appliance, JSON, PATIENCE, openssl_encrypt, wait_until};
use crate::key_parts::{core_file, needles};
use crate::scan::{self, Hit, Needles, Scan};
use crate::token::write_private;

/// An appliance with a known key, and what of it must not be seen.
struct Watched {
    appliance: Appliance,
    key: Vec<u8>,
    plaintext: Vec<u8>,
    needles: Needles,
}

impl Watched {
    /// Its locked memory is of this kind; `change` may change more of the configuration.
    fn new(kind: &str, change: impl FnOnce(&mut toml::Table)) -> Self {
        let appliance = Appliance::configured(|config| {
            set(config, "arena", "kind", kind.into());
            change(config);
        });
        appliance.post("/v1/init", &json!({})).expect_status(201);
        let (key, plaintext) = (known_key(), random(90));
        let mut needles = needles(&key);
        needles.add_exactly("plaintext", &plaintext);
        needles.add_exactly("plaintext's base64", BASE64_STANDARD.encode(&plaintext).as_bytes());
        Self { appliance, key, plaintext, needles }
    }

    /// The key as PEM text, as OpenSSL writes it.
    fn pem(&self) -> String {
        let text = BASE64_STANDARD.encode(&self.key);
        let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
        format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"))
    }

    /// The plaintext, encrypted for the key by somebody else.
    fn ciphertext(&self) -> String {
        let public = self.appliance.get("/v1/keys/known/public?version=1&format=spki-pem");
        let public = public.expect_status(200).text();
        let directory = self.appliance.path("");
        BASE64_STANDARD.encode(openssl_encrypt(&public, &self.plaintext, &directory))
    }

    /// Decrypts with the known key, which loads it where it is not.
    fn decrypt(&self, ciphertext: &str) {
        let body = json!({ "ciphertext": ciphertext, "version": 1 });
        let reply = self.appliance.post("/v1/keys/known/decrypt", &body);
        let plaintext = reply.expect_status(200).json()["plaintext"].clone();
        assert_eq!(plaintext, BASE64_STANDARD.encode(&self.plaintext));
    }

    fn scan(&self, pid: u32) -> Scan {
        let scan = scan::scan(pid, &self.needles).expect("root reads it");
        assert!(scan.bytes_read > 10 << 20, "{} bytes are not the process", scan.bytes_read);
        scan
    }

    /// Nothing in the front, nothing in custody outside of its arena. Returns custody's scan.
    #[track_caller]
    fn expect_clean(&self, when: &str) -> Scan {
        let front = self.scan(self.appliance.front_pid());
        assert!(front.hits.is_empty(), "{when}, in the front: {:?}", told(&front.hits));
        let custody = self.scan(self.appliance.custody_pid());
        let outside = custody.hits_outside_the_arena();
        assert!(outside.is_empty(), "{when}, in custody: {:?}", told(outside));
        custody
    }

    /// Nothing anywhere, the arena included where it can be read.
    #[track_caller]
    fn expect_gone(&self, when: &str) {
        let custody = self.expect_clean(when);
        assert!(custody.hits.is_empty(), "{when}, in the arena: {:?}", told(&custody.hits));
    }

    #[track_caller]
    fn expect_clean_core_files(&self) {
        for pid in [self.appliance.front_pid(), self.appliance.custody_pid()] {
            assert_eq!(core_file(pid, &self.needles), [""; 0], "in a core file of {pid}");
        }
    }

    fn loaded_keys(&self) -> Value {
        self.appliance.get("/v1/status").json()["loaded_keys"].clone()
    }

    /// Locks, and waits until the process that held the keys has given way to another.
    fn lock(&self) {
        let before = self.appliance.custody_pid();
        self.appliance.post("/v1/lock", &json!({})).expect_status(200);
        wait_until("another custody", || self.appliance.custody_pid() != before);
        wait_until("its arena", || {
            let mappings = scan::mappings(self.appliance.custody_pid()).unwrap_or_default();
            mappings.iter().any(scan::Mapping::is_arena)
        });
    }
}

/// Sets one key of a part of `[custody]`.
fn set(config: &mut toml::Table, part: &str, key: &str, value: toml::Value) {
    let custody = config["custody"].as_table_mut().expect("a table");
    let part = custody.entry(part).or_insert_with(|| toml::Table::new().into());
    part.as_table_mut().expect("a table").insert(key.to_owned(), value);
}

fn known_key() -> Vec<u8> {
    secret::start(&Settings::default(), Use::Custody).expect("an arena");
    let key = PrivateKey::generate(Algorithm::Rsa2048).expect("a key");
    key.to_pkcs8().expect("encodes").expose().to_vec()
}

fn random(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    getrandom::fill(&mut bytes).expect("random bytes");
    bytes
}

/// A request that comes in two pieces, on a connection that this end keeps open: whatever buffers the
/// daemon has for it stay for as long as they may.
fn ask_and_hold(appliance: &Appliance, target: &str, body: &Value, status: u16) -> UnixStream {
    let (body, mut stream) =
        (body.to_string(), UnixStream::connect(appliance.socket()).expect("connects"));
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let length = body.len();
    let head = format!("{target} HTTP/1.1\r\nhost: x\r\n{JSON}content-length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("written");
    std::thread::sleep(Duration::from_millis(20)); // proves nothing, lets the body come by itself
    let _ = stream.write_all(body.as_bytes()); // one that refuses early may have closed by now
    let mut start = [0; 12];
    stream.read_exact(&mut start).expect("an answer");
    assert_eq!(start, *format!("HTTP/1.1 {status}").as_bytes(), "{target}");
    stream
}

/// What was found and where, each once.
fn told<'a>(hits: impl IntoIterator<Item = &'a Hit>) -> BTreeSet<String> {
    let place = |hit: &Hit| format!("{} at {:x}", hit.mapping.name, hit.mapping.start);
    hits.into_iter().map(|hit| format!("{} in {}", hit.needle, place(hit))).collect()
}

/// The life of an imported key: brought in, used by many at once, dropped by a rotation and by a lock.
fn an_imported_key_is_not_to_be_seen(kind: &str, readable: bool) {
    let watched = Watched::new(kind, |_| {});
    let appliance = &watched.appliance;
    let import = json!({ "private_key": watched.pem() });
    let _held = ask_and_hold(appliance, "POST /v1/keys/known/import", &import, 201);
    watched.expect_clean("after the import");
    let ciphertext = watched.ciphertext();

    let enough = AtomicBool::new(false);
    let during = std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !enough.load(Ordering::Relaxed) {
                    let body = json!({ "ciphertext": ciphertext });
                    appliance.post("/v1/keys/known/decrypt", &body).expect_status(200);
                }
            });
        }
        wait_until("the key in the cache", || watched.loaded_keys() == 1);
        // What goes out is in buffers while it goes: only the key is looked for here.
        let of_key = needles(&watched.key);
        let pids = [appliance.front_pid(), appliance.custody_pid()];
        let scans = pids.map(|pid| scan::scan(pid, &of_key).expect("root reads it"));
        enough.store(true, Ordering::Relaxed);
        scans
    });
    assert!(during[0].hits.is_empty(), "in the front, at work: {:?}", told(&during[0].hits));
    let outside = during[1].hits_outside_the_arena();
    assert!(outside.is_empty(), "in custody, at work: {:?}", told(outside));

    let loaded = watched.expect_clean("after decryptions");
    watched.expect_clean_core_files();
    assert_eq!(loaded.unreadable.iter().any(scan::Mapping::is_arena), !readable);
    for part in ["p", "q", "d", "dp", "dq", "qinv"] {
        let words = format!("{part} reversed"); // little-endian, as the library computes
        assert_eq!(loaded.needles_found().contains(&words.as_str()), readable, "{words}");
    }

    appliance.post("/v1/keys/known/rotate", &json!({})).expect_status(200);
    watched.expect_gone("after a rotation");
    watched.decrypt(&ciphertext);
    assert_eq!(watched.loaded_keys(), 1);
    watched.lock();
    watched.expect_gone("after a lock");
}

#[test]
fn an_imported_key_is_not_to_be_seen_in_secret_memory() {
    an_imported_key_is_not_to_be_seen("memfd-secret", false);
}

#[test]
fn an_imported_key_lies_in_locked_memory_only() {
    an_imported_key_is_not_to_be_seen("mlock", true);
}

#[test]
fn a_key_that_nobody_uses_is_wiped() {
    let watched = Watched::new("mlock", |config| {
        set(config, "cache", "idle_seconds", 1.into());
    });
    let import = json!({ "private_key": BASE64_STANDARD.encode(&watched.key) });
    watched.appliance.post("/v1/keys/known/import", &import).expect_status(201);
    let ciphertext = watched.ciphertext();
    watched.decrypt(&ciphertext);
    wait_until("the key's expiry", || watched.loaded_keys() == 0);
    watched.expect_gone("after its idle time");
    watched.decrypt(&ciphertext);
}

#[test]
fn refused_imports_leave_nothing_behind() {
    let watched = Watched::new("mlock", |_| {});
    let appliance = &watched.appliance;
    appliance.create_key("taken");
    let (pem, half) = (watched.pem(), watched.key.len() / 2);
    let whole = json!({ "private_key": pem });
    let asked = [
        ("POST /v1/keys/taken/import", whole.clone(), 409),
        ("POST /v1/keys/K/import", whole.clone(), 400),
        ("POST /v1/keys/%6b/import", whole.clone(), 400),
        ("POST /v1/nowhere", whole, 404),
        ("POST /v1/keys/new/import", json!({ "private_key": pem, "other": 1 }), 400),
        ("POST /v1/keys/new/import", json!({ "other": pem }), 400),
        ("POST /v1/keys/new/import", json!({ "private_key": format!("{pem}{pem}") }), 422),
        (
            "POST /v1/keys/new/import",
            json!({ "private_key": BASE64_STANDARD.encode(&watched.key[half..]) }),
            422,
        ),
    ];
    let _held: Vec<_> = asked
        .iter()
        .map(|(target, body, status)| ask_and_hold(appliance, target, body, *status))
        .collect();
    watched.expect_gone("after refusals");
}

#[test]
fn plaintexts_leave_nothing_behind() {
    let watched = Watched::new("mlock", |_| {});
    let appliance = &watched.appliance;
    appliance.create_key("known");
    let text = BASE64_STANDARD.encode(&watched.plaintext);
    let put = json!({ "key": "known", "plaintext": text });
    let _one = ask_and_hold(appliance, "PUT /v1/secrets/token", &put, 201);
    watched.expect_gone("after a secret was put");
    let encrypt = json!({ "plaintext": text });
    let _two = ask_and_hold(appliance, "POST /v1/keys/known/encrypt", &encrypt, 200);
    watched.expect_gone("after an encryption");
    let _three = ask_and_hold(appliance, "POST /v1/secrets/token/reveal", &json!({}), 200);
    let revealed = appliance.post("/v1/secrets/token/reveal", &json!({}));
    assert_eq!(revealed.expect_status(200).json()["plaintext"], text);
    watched.expect_gone("after the secret was revealed");
    let ciphertext = watched.ciphertext();
    let items = vec![json!({ "ciphertext": ciphertext }); 20];
    let decrypt = json!({ "items": items });
    let _four = ask_and_hold(appliance, "POST /v1/keys/known/decrypt", &decrypt, 200);
    watched.expect_gone("after decryptions");
}

#[test]
fn the_pin_leaves_nothing_behind() {
    let mut watched = Watched::new("mlock", |_| {});
    let pin: String = random(24).iter().map(|byte| format!("{byte:02x}")).collect();
    watched.needles.add_exactly("pin", pin.as_bytes());
    watched.needles.add_exactly("pin's base64", BASE64_STANDARD.encode(&pin).as_bytes());
    let appliance = &watched.appliance;
    appliance.token().pkcs11_tool(&["--change-pin", "--new-pin", &pin]);
    watched.lock();
    let unlock = json!({ "pin": BASE64_STANDARD.encode(&pin) });
    let _held = ask_and_hold(appliance, "POST /v1/unlock", &unlock, 200);
    watched.expect_gone("after an unlock with the PIN");
    watched.lock();
    write_private(&appliance.token().pin_file(), &pin);
    appliance.post("/v1/unlock", &json!({})).expect_status(200);
    watched.expect_gone("after an unlock with the PIN's file");
}

/// The scan would be worth nothing if it could not see into these very processes.
#[test]
fn what_is_no_secret_is_seen_in_both_processes() {
    let mut watched = Watched::new("mlock", |_| {});
    let name = "a-name-that-is-no-secret-and-is-kept-in-memory";
    let public = watched.appliance.create_key(name);
    let der: String = public.lines().filter(|line| !line.starts_with('-')).collect();
    let der = BASE64_STANDARD.decode(der).expect("PEM");
    watched.needles.add("modulus", &der[40..280]);
    watched.needles.add_exactly("name", name.as_bytes());
    let ciphertext = openssl_encrypt(&public, b"x", &watched.appliance.path(""));
    let body = json!({ "ciphertext": BASE64_STANDARD.encode(ciphertext) });
    watched.appliance.post(&format!("/v1/keys/{name}/decrypt"), &body).expect_status(200);
    let front = watched.scan(watched.appliance.front_pid());
    assert!(front.needles_found().contains(&"name"), "{:?}", front.needles_found());
    let custody = watched.scan(watched.appliance.custody_pid());
    for seen in ["name", "modulus", "modulus reversed"] {
        assert!(custody.needles_found().contains(&seen), "{:?}", custody.needles_found());
    }
}
