//! Promise 2: a private key in the clear lies in the locked arena and nowhere else.
//!
//! This program starts itself again as a child that works with a key, and looks at the child from
//! outside, as root: its memory, and a core file of it. With aws-lc on the ordinary heap it must
//! find the key, or it would be blind.

#[path = "memory/child.rs"]
mod child;
#[path = "support/scan.rs"]
mod scan;

use child::{Child, Job};
use rsa::BigUint;
use rsa::pkcs8::DecodePrivateKey;
use rsa::traits::{PrivateKeyParts, PublicKeyParts};
use scan::Needles;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use strongroom::secret::arena::KindChoice;

/// Everything that is secret in a PKCS#8 DER, by name, in both byte orders.
fn needles(der: &[u8]) -> Needles {
    let key = rsa::RsaPrivateKey::from_pkcs8_der(der).expect("the child's key");
    let (p, q) = (&key.primes()[0], &key.primes()[1]);
    let mut needles = Needles::default();
    let d: &BigUint = key.d();
    needles.add("p", &p.to_bytes_be());
    needles.add("q", &q.to_bytes_be());
    needles.add("d", &d.to_bytes_be());
    needles.add("dp", &(d % (p - 1_u8)).to_bytes_be());
    needles.add("dq", &(d % (q - 1_u8)).to_bytes_be());
    needles.add("qinv", &q.modpow(&(p - 2_u8), p).to_bytes_be());
    // What stands before d in PKCS#8 is public: the algorithm, n and e.
    let modulus = key.n().to_bytes_be();
    let at = der.windows(modulus.len()).position(|window| window == modulus).expect("n");
    needles.add("pkcs8", &der[at + modulus.len() + 5..]);
    // And as text, from a boundary of three bytes on.
    let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
    needles.add_exactly("base64", &text.as_bytes()[(at + modulus.len() + 7) / 3 * 4..]);
    needles
}

/// Writes a core file of the child with gdb's `gcore` and looks through it.
fn core_file(child: &Child, needles: &Needles) -> Vec<String> {
    let directory = tempfile::tempdir().expect("a directory");
    let prefix = directory.path().join("core");
    let run = Command::new("gcore").arg("-o").arg(&prefix).arg(child.pid().to_string()).output();
    let run = run.expect("gcore (of the package gdb) runs");
    let path = directory.path().join(format!("core.{}", child.pid()));
    let written = path.metadata().map(|data| data.len()).unwrap_or(0);
    assert!(written > 100_000, "{}", String::from_utf8_lossy(&run.stderr));
    scan::scan_file(Path::new(&path), needles).expect("a core file")
}

/// Looks at a child that keeps its key in the arena, with the key loaded and after it was dropped.
fn holds_its_key_in_the_arena(kind: KindChoice, readable: bool, job: Job) {
    let mut child = Child::start(job, Some(kind));
    let needles = needles(&child.key());

    let loaded = scan::scan(child.pid(), &needles).expect("root reads it");
    assert!(loaded.bytes_read > 1 << 20, "{} bytes are not the process", loaded.bytes_read);
    assert!(loaded.hits_outside_the_arena().is_empty(), "{:?}", loaded.hits_outside_the_arena());
    let arenas = scan::mappings(child.pid()).expect("root reads them");
    assert_eq!(arenas.iter().filter(|mapping| mapping.is_arena()).count(), 1);
    assert_eq!(loaded.unreadable.iter().any(scan::Mapping::is_arena), !readable);
    if readable {
        for name in ["p reversed", "q reversed", "d reversed", "qinv reversed"] {
            assert!(loaded.needles_found().contains(&name), "{name} lies in the arena");
        }
    } else {
        assert!(loaded.hits.is_empty(), "{:?}", loaded.hits);
    }
    assert_eq!(core_file(&child, &needles), [""; 0]);

    child.drop_key();
    let dropped = scan::scan(child.pid(), &needles).expect("root reads it");
    assert!(dropped.hits.is_empty(), "{:?}", dropped.hits);
    assert_eq!(core_file(&child, &needles), [""; 0]);
    child.end();
}

#[test]
fn a_loaded_key_is_not_to_be_seen_in_secret_memory() {
    holds_its_key_in_the_arena(KindChoice::MemfdSecret, false, Job::Load);
}

#[test]
fn a_generated_key_is_not_to_be_seen_in_secret_memory() {
    holds_its_key_in_the_arena(KindChoice::MemfdSecret, false, Job::Generate);
}

#[test]
fn a_loaded_key_lies_in_locked_memory_only() {
    holds_its_key_in_the_arena(KindChoice::Mlock, true, Job::Load);
}

#[test]
fn a_generated_key_lies_in_locked_memory_only() {
    holds_its_key_in_the_arena(KindChoice::Mlock, true, Job::Generate);
}

#[test]
fn an_imported_pem_lies_in_locked_memory_only() {
    holds_its_key_in_the_arena(KindChoice::Mlock, true, Job::ImportPem);
}

#[test]
fn without_the_arena_the_key_is_seen() {
    let mut child = Child::start(Job::Load, None);
    let needles = needles(&child.key());
    let loaded = scan::scan(child.pid(), &needles).expect("root reads it");
    let dumped = core_file(&child, &needles);
    for name in ["p", "q", "d", "dp", "dq", "qinv"] {
        let reversed = format!("{name} reversed");
        let found = loaded.hits_outside_the_arena().iter().any(|hit| hit.needle == reversed);
        assert!(found, "{name} lies on the heap, as little-endian words");
        assert!(dumped.contains(&reversed), "{name} is in the core file");
    }
    child.drop_key();
    child.end();
}

#[test]
fn the_scanner_sees_every_form_it_is_told_of() {
    let mut child = Child::start(Job::Leak, None);
    let needles = needles(&child.key());
    let seen = scan::scan(child.pid(), &needles).expect("root reads it");
    for name in ["p", "q", "d", "dp", "dq", "qinv", "pkcs8", "base64"] {
        assert!(seen.needles_found().contains(&name), "{name}: {:?}", seen.needles_found());
    }
    child.drop_key();
    child.end();
}

#[test]
fn a_full_arena_is_told_from_a_bad_ciphertext() {
    Child::start(Job::Fill, Some(KindChoice::Auto)).end();
}

#[test]
fn a_user_with_the_usual_limit_starts_and_one_with_too_little_is_told() {
    let child = Child::start(Job::Unprivileged, None);
    // The kernel gives an undumpable process's files to root, whoever runs it.
    let memory = std::fs::metadata(format!("/proc/{}/mem", child.pid())).expect("it runs");
    assert_eq!(memory.uid(), 0);
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.pid())).expect("runs");
    assert!(status.contains("Uid:\t65534\t65534\t65534\t65534"), "{status}");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.pid())).expect("runs");
    let core = limits.lines().find(|line| line.starts_with("Max core file size"));
    assert_eq!(core.map(|line| line.matches(" 0 ").count()), Some(2), "{limits}");
    child.end();
}
