//! Clears the stack under a piece of work that keeps secrets there: block ciphers do, in their frames.
#![allow(unsafe_code)] // the frames of a finished call belong to nobody

use super::heap::wipe;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

/// How far down is cleared, in bytes. Sealing reaches about 6 KiB down in an unoptimised build.
const DEPTH: usize = 32 * 1024;

/// Does `work`, then overwrites the stack that it ran on.
///
/// Clears 32 KiB below the caller: what the work keeps deeper than that, or hands on to another
/// thread, is not reached.
#[inline(never)]
pub fn with_wiped_stack<T>(work: impl FnOnce() -> T) -> T {
    let result = on_frames_of_its_own(work);
    clear_below();
    result
}

#[inline(never)]
fn on_frames_of_its_own<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn clear_below() {
    let mut frames = MaybeUninit::<[u8; DEPTH]>::uninit();
    // SAFETY: `frames` is `DEPTH` bytes of this function's own frame, which lies where the finished
    // work had its own.
    unsafe { wipe(NonNull::from(&mut frames).cast(), DEPTH) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    /// Leaves a marker in a frame and tells where it was.
    #[inline(never)]
    fn leave() -> usize {
        let marker = std::hint::black_box([0xa5_u8; 4096]);
        std::hint::black_box(&marker).as_ptr().addr()
    }

    /// How much of the marker is there still, as seen from outside.
    fn left_at(address: usize) -> usize {
        let memory = std::fs::File::open("/proc/self/mem").expect("our own memory");
        let mut bytes = vec![0; 4096];
        memory.read_exact_at(&mut bytes, address as u64).expect("the stack is mapped");
        bytes.iter().filter(|&&byte| byte == 0xa5).count()
    }

    #[test]
    fn nothing_is_left_in_the_frames_of_the_work() {
        // Far enough down that looking does not cover what there is to see.
        #[inline(never)]
        fn deep(levels: usize) -> usize {
            let room = std::hint::black_box([0_u8; 4096]);
            let address = if levels == 0 { leave() } else { deep(levels - 1) };
            std::hint::black_box(&room);
            address
        }
        assert!(left_at(deep(1)) > 2048, "the test sees what it looks for");
        assert_eq!(left_at(with_wiped_stack(|| deep(1))), 0);
    }
}
