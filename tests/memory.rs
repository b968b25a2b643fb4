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

/// Looks many times at the ordinary memory of a child that does all there is with keys of every size, on one
/// code path of the library.
fn leaves_nothing_in_its_frames(mask: &str) {
    const LOOKS: usize = 100;
    const MADE: usize = 3;
    let child = Child::masked(Job::Work, Some(KindChoice::Mlock), mask);
    let mut snapshots = Vec::new();
    while snapshots.len() < LOOKS || child.keys().1.len() < MADE {
        let snapshot = scan::Snapshot::of(child.pid()).expect("root reads it");
        assert!(snapshot.len() > 1 << 16, "{} bytes are not the process", snapshot.len());
        if snapshots.len() < LOOKS {
            snapshots.push(snapshot);
        }
    }
    let (used, made) = child.keys();
    child.end();

    let mut secrets = scan::Needles::default();
    used.iter().for_each(|der| key_parts::add_needles(&mut secrets, "used ", der));
    made.iter().for_each(|der| key_parts::add_needles(&mut secrets, "made ", der));
    let mut marks = scan::Needles::default();
    (0..child::THREADS).for_each(|n| marks.add_exactly(&n.to_string(), &child::mark(n)));
    let (secrets, marks) = (secrets.searcher(), marks.searcher());
    for (number, snapshot) in snapshots.iter().enumerate() {
        let found = snapshot.search(&secrets);
        assert!(found.is_empty(), "look {number}: {found:x?}");
        if number % 10 > 0 {
            continue;
        }
        let seen = snapshot.search(&marks);
        let threads: std::collections::BTreeSet<_> = seen.iter().map(|(name, _)| name).collect();
        assert_eq!(threads.len(), usize::from(child::THREADS), "the frames of all were seen");
    }
}

#[test]
fn work_leaves_nothing_in_its_frames_with_all_that_the_processor_has() {
    leaves_nothing_in_its_frames("~0x0:~0x0");
}

#[test]
fn work_leaves_nothing_in_its_frames_without_ifma() {
    leaves_nothing_in_its_frames("~0x0:~0x200000");
}

#[test]
fn work_leaves_nothing_in_its_frames_without_ifma_and_adx() {
    leaves_nothing_in_its_frames("~0x0:~0x280000");
}

#[test]
fn work_leaves_nothing_in_its_frames_without_ifma_adx_bmi2_and_avx2() {
    leaves_nothing_in_its_frames("~0x0:~0x280120");
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
