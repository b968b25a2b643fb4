//! Root reads custody's memory while it works. On a processor without AVX512-IFMA the library copies whole
//! primes into its frames: those must lie in locked memory, on every code path that the processor has.
//!
//! Custody runs with a mask that hides instructions from the library (`OPENSSL_ia32cap`), its locked memory
//! of the kind that root can read, so that a copy elsewhere is told from one where it belongs. Keys of every
//! size are imported, opened and used all the time; the memory is read again and again meanwhile.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use serde_json::json;
use strongroom::custody::rsa::PrivateKey;
use strongroom::key::Algorithm;
use strongroom::secret::{self, Settings, Use};

use crate::acts::{base64, decrypt, encrypt, expect_plaintext};
use crate::appliance::Appliance;
use crate::key_parts::add_needles;
use crate::scan::{self, Needles, Snapshot};

/// How often the memory is read while the load runs, at least.
const LOOKS: usize = 60;

/// One key of each size, in PKCS#8; all tests use the same.
fn known_keys() -> &'static [Vec<u8>] {
    static KEYS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    KEYS.get_or_init(|| {
        secret::start(&Settings::default(), Use::Custody).expect("an arena");
        let made = Algorithm::ALL.map(|algorithm| PrivateKey::generate(algorithm).expect("a key"));
        made.iter().map(|key| key.to_pkcs8().expect("encodes").expose().to_vec()).collect()
    })
}

fn needles() -> Needles {
    let mut needles = Needles::default();
    for (algorithm, der) in Algorithm::ALL.iter().zip(known_keys()) {
        add_needles(&mut needles, &format!("{} ", algorithm.bits()), der);
    }
    needles
}

/// An appliance whose library does not see the instructions of this mask.
fn masked(mask: &str) -> Appliance {
    let mut appliance = Appliance::prepared(|config| {
        let custody = config["custody"].as_table_mut().expect("a table");
        custody.insert("arena".to_owned(), toml::toml! { kind = "mlock" }.into());
        // Room for one key at a time: most decryptions open one, the next with the same key finds it open.
        custody.insert("cache".to_owned(), toml::toml! { max_bytes = 16_000 }.into());
    });
    appliance.set_environment("OPENSSL_ia32cap", mask);
    appliance.start();
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance
}

fn import(appliance: &Appliance, name: &str, der: &[u8]) {
    let body = json!({ "private_key": base64(der) });
    appliance.post(&format!("/v1/keys/{name}/import"), &body).expect_status(201);
}

/// Nothing of any key outside of locked memory, however often it is looked, while all are used.
fn nothing_is_to_be_seen_at_work(mask: &str) -> String {
    let appliance = masked(mask);
    let keys: Vec<(String, String)> = known_keys()
        .iter()
        .enumerate()
        .map(|(number, der)| {
            let name = format!("k{number}");
            import(&appliance, &name, der);
            let ciphertext = encrypt(&appliance, &name, "kept");
            (name, ciphertext)
        })
        .collect();
    let (enough, used, imported) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    let needles = needles();
    let searcher = needles.searcher();
    let custody = appliance.custody_pid();
    let found = std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !enough.load(Ordering::Relaxed) {
                    for (name, ciphertext) in keys.iter().flat_map(|key| [key; 3]) {
                        expect_plaintext(&decrypt(&appliance, name, ciphertext, None), "kept");
                        used.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        scope.spawn(|| {
            while !enough.load(Ordering::Relaxed) {
                let number = imported.fetch_add(1, Ordering::Relaxed);
                let der = &known_keys()[number as usize % Algorithm::ALL.len()];
                import(&appliance, &format!("i{number}"), der);
            }
        });
        let mut found = Vec::new();
        let mut looks = 0;
        while found.is_empty()
            && (looks < LOOKS
                || used.load(Ordering::Relaxed) < 100
                || imported.load(Ordering::Relaxed) < 6)
        {
            let snapshot = Snapshot::of(custody).expect("root reads it");
            assert!(snapshot.len() > 1 << 18, "{} bytes are not the process", snapshot.len());
            found = snapshot.search(&searcher);
            looks += 1;
        }
        enough.store(true, Ordering::Relaxed);
        found
    });
    assert!(found.is_empty(), "on {}: {found:x?} in ordinary memory", code_path(&appliance));
    assert_eq!(appliance.custody_pid(), custody, "it was another that was looked at");
    let after = scan::scan(custody, &needles).expect("root reads it");
    assert!(after.hits.iter().all(|hit| hit.mapping.is_locked()), "{:?}", after.needles_found());
    assert!(!after.hits.is_empty(), "the key that was used last lies in the arena");
    code_path(&appliance)
}

/// What `doctor` says of the library's arithmetic in custody.
fn code_path(appliance: &Appliance) -> String {
    let doctor = appliance.get("/v1/doctor").expect_status(200).json();
    let checks = doctor["checks"].as_array().expect("checks");
    let check = checks.iter().find(|check| check["name"] == "RSA code path").expect("the check");
    check["detail"].as_str().expect("a text").to_owned()
}

/// What a processor lacks is not to be tested here; the path that ran instead was looked at, and is named.
#[test]
fn nothing_is_to_be_seen_with_all_that_the_processor_has() {
    println!("ran on: {}", nothing_is_to_be_seen_at_work("~0x0:~0x0"));
}

#[test]
fn nothing_is_to_be_seen_without_ifma() {
    let path = nothing_is_to_be_seen_at_work("~0x0:~0x200000");
    println!("ran on: {path}");
    assert!(!path.contains("IFMA"), "{path}");
}

#[test]
fn nothing_is_to_be_seen_without_ifma_and_adx() {
    let path = nothing_is_to_be_seen_at_work("~0x0:~0x280000");
    println!("ran on: {path}");
    assert!(!path.contains("IFMA") && !path.contains("ADX"), "{path}");
}

#[test]
fn nothing_is_to_be_seen_without_ifma_adx_bmi2_and_avx2() {
    let path = nothing_is_to_be_seen_at_work("~0x0:~0x280120");
    println!("ran on: {path}");
    if cfg!(target_arch = "x86_64") {
        assert_eq!(path, "plain multiplication");
    }
}
