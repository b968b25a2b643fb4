//! Promise 2: a private key in the clear lies in the locked arena and nowhere else.
//!
//! This program starts itself again as a child that works with a key, and looks at the child from
//! outside, as root: its memory, and a core file of it. With aws-lc on the ordinary heap it must
//! find the key, or it would be blind.

#[path = "memory/child.rs"]
mod child;
#[path = "support/key_parts.rs"]
mod key_parts;
#[path = "support/scan.rs"]
#[allow(dead_code)] // each test binary uses another part of it
mod scan;

use child::{Child, Job};
use key_parts::{core_file, needles};
use std::os::unix::fs::MetadataExt;
use strongroom::secret::STACK_SIZE;
use strongroom::secret::arena::KindChoice;

/// Looks at a child that keeps its key in the arena, with the key loaded and after it was dropped.
fn holds_its_key_in_the_arena(kind: KindChoice, readable: bool, job: Job) {
    let mut child = Child::start(job, Some(kind));
    let needles = needles(&child.key());

    let loaded = scan::scan(child.pid(), &needles).expect("root reads it");
    assert!(loaded.bytes_read > 1 << 20, "{} bytes are not the process", loaded.bytes_read);
    assert!(loaded.hits_outside_the_arena().is_empty(), "{:?}", loaded.hits_outside_the_arena());
    let mappings = scan::mappings(child.pid()).expect("root reads them");
    let locked = mappings.iter().filter(|mapping| mapping.is_arena());
    let (stacks, arenas): (Vec<_>, Vec<_>) =
        locked.partition(|mapping| mapping.end - mapping.start == STACK_SIZE as u64);
    assert_eq!(arenas.len(), 1);
    assert!((1..=4).contains(&stacks.len()), "of the threads that used the key: {stacks:?}");
    assert_eq!(loaded.unreadable.iter().any(scan::Mapping::is_arena), !readable);
    if readable {
        for name in ["p reversed", "q reversed", "d reversed", "qinv reversed"] {
            assert!(loaded.needles_found().contains(&name), "{name} lies in the arena");
        }
    } else {
        assert!(loaded.hits.is_empty(), "{:?}", loaded.hits);
    }
    assert_eq!(core_file(child.pid(), &needles), [""; 0]);

    child.drop_key();
    let dropped = scan::scan(child.pid(), &needles).expect("root reads it");
    assert!(dropped.hits.is_empty(), "{:?}", dropped.hits);
    assert_eq!(core_file(child.pid(), &needles), [""; 0]);
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
    let dumped = core_file(child.pid(), &needles);
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
