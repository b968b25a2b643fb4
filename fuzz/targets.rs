//! The targets by name, for `cargo test`: every committed input goes through its target.
//!
//! `fuzz/seeds/NAME/` are examples to begin with, `fuzz/found/NAME/` what once broke a target.

use std::path::{Path, PathBuf};

type Target = fn(&[u8]);

const TARGETS: &[(&str, Target)] = &[
    ("binary", crate::http::fuzzing::binary),
    ("changed_trail", crate::audit::fuzzing::changed_trail),
    ("ciphertext", crate::cli::fuzzing::ciphertext),
    ("config", crate::daemon::fuzzing::config),
    ("packet", crate::custody::fuzzing::packet),
    ("policy", crate::policy::fuzzing::policy),
    ("private_key", crate::custody::fuzzing::private_key),
    ("public_key", crate::key::fuzzing::public_key),
    ("request", crate::http::fuzzing::request),
    ("roles", crate::policy::fuzzing::roles),
    ("sealed_form", crate::custody::fuzzing::sealed_form),
    ("stored_record", crate::records::fuzzing::stored_record),
    ("torn_tail", crate::audit::fuzzing::torn_tail),
    ("trail_line", crate::audit::fuzzing::line),
    ("words", crate::key::fuzzing::words),
];

fn inputs(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).filter(|p| p.is_file()).collect();
    paths.sort();
    paths
}

#[test]
fn every_committed_input_goes_through_its_target() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    for (name, target) in TARGETS {
        let seeds = inputs(&fuzz.join("seeds").join(name));
        assert!(!seeds.is_empty(), "{name} has nothing to begin with");
        for path in seeds.into_iter().chain(inputs(&fuzz.join("found").join(name))) {
            let input = std::fs::read(&path).expect("readable");
            eprintln!("{}", path.display()); // shown where it fails
            target(&input);
            // And what stands near it.
            for at in (0..input.len()).step_by(input.len() / 16 + 1) {
                target(&input[..at]);
                let mut flipped = input.clone();
                flipped[at] ^= 1 << (at % 8);
                target(&flipped);
            }
        }
    }
}

/// A target that only one of both sides knows is not tried by the other.
#[test]
fn the_fuzzers_targets_are_these() {
    let files = inputs(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets"));
    let names = files.iter().filter_map(|path| path.file_stem()?.to_str());
    let known: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names.collect::<Vec<_>>(), known);
}
