//! A data key that went through a module lies in the arena alone, while it is held and after.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
};

use strongroom::{secret::DataKey, token::Token};

use crate::{
    open,
    support::{Kind, TestToken},
};

/// What hides the pattern from its own search.
const MASK: u8 = 0xa5;

#[test]
fn unwrapped_keys_lie_in_the_arena_alone_on_softhsm() {
    let name = "memory::unwrapped_keys_lie_in_the_arena_alone_on_softhsm";
    let Some(token) = TestToken::in_own_process(name, Kind::SoftHsm) else { return };
    unwrapped_keys_lie_in_the_arena_alone(&token);
}

#[test]
fn unwrapped_keys_lie_in_the_arena_alone_on_kryoptic() {
    let name = "memory::unwrapped_keys_lie_in_the_arena_alone_on_kryoptic";
    let Some(token) = TestToken::in_own_process(name, Kind::Kryoptic) else { return };
    unwrapped_keys_lie_in_the_arena_alone(&token);
}

fn unwrapped_keys_lie_in_the_arena_alone(token: &TestToken) {
    let opened = open(token);
    opened.create_master(1).expect("made");
    let key = DataKey::generate().expect("a key");
    let arena = key.expose().as_ptr() as u64;
    let masked: Vec<u8> = key.expose().iter().map(|byte| byte ^ MASK).collect();

    let planted = key.expose().to_vec();
    assert_eq!(outside(arena, &masked), 1, "the search does not see what is there");
    drop(zeroize::Zeroizing::new(planted));
    assert_eq!(outside(arena, &masked), 0, "generated");

    let wrapped = opened.wrap(1, b"here", &key).expect("wrapped");
    assert_eq!(outside(arena, &masked), 0, "wrapped");
    drop(key);
    let keys: Vec<DataKey> =
        (0..50).map(|_| opened.unwrap(1, b"here", &wrapped).expect("opened")).collect();
    assert_eq!(outside(arena, &masked), 0, "unwrapped");
    drop(keys);
    drop(opened);
    assert_eq!(outside(arena, &masked), 0, "closed");
}

/// How often the first half of the key is found in writable memory other than the arena's mapping.
fn outside(arena: u64, masked: &[u8]) -> usize {
    let maps = fs::read_to_string("/proc/self/maps").expect("maps");
    let mut memory = File::open("/proc/self/mem").expect("memory");
    let mut count = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (start, end) =
            line.split_once(' ').expect("a range").0.split_once('-').expect("a range");
        let start = u64::from_str_radix(start, 16).expect("an address");
        let end = u64::from_str_radix(end, 16).expect("an address");
        if (start..end).contains(&arena) {
            continue;
        }
        let mut bytes = vec![0; usize::try_from(end - start).expect("a length")];
        memory.seek(SeekFrom::Start(start)).expect("sought");
        // The kernel's own pages in the list cannot be read.
        if memory.read_exact(&mut bytes).is_ok() {
            let half = &masked[..16];
            let same = |at: &&[u8]| at.iter().zip(half).all(|(byte, mask)| *byte == mask ^ MASK);
            count += bytes.windows(16).filter(same).count();
        }
        bytes.fill(0);
    }
    count
}
