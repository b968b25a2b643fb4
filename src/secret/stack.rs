//! Clears what a piece of work leaves behind of its secrets: frames on the stack, where block ciphers
//! have their blocks, and vector registers, through which every copy goes. A core file holds both.
#![allow(unsafe_code)] // the frames of a finished call belong to nobody; registers are cleared by name

use super::heap::wipe;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

/// How far down is cleared, in bytes. Sealing reaches about 6 KiB down in an unoptimised build.
const DEPTH: usize = 32 * 1024;

/// Does `work`, then overwrites the stack that it ran on and the vector registers.
///
/// Clears 32 KiB below the caller: what the work keeps deeper than that, or hands on to another
/// thread, is not reached.
#[inline(never)]
pub fn with_wiped_stack<T>(work: impl FnOnce() -> T) -> T {
    let result = on_frames_of_its_own(work);
    clear_below();
    clear_registers();
    result
}

/// Clears this thread's vector registers. On processors other than x86-64 it does nothing: there, up
/// to 32 bytes of what was copied last stay until the next copy.
pub fn clear_registers() {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::{asm, is_x86_feature_detected};
        if is_x86_feature_detected!("avx") {
            // SAFETY: on a processor that has AVX; the registers are declared as overwritten, and
            // nothing else is touched.
            unsafe { asm!("vzeroall", clobber_abi("C"), options(nomem, nostack)) };
        } else {
            // SAFETY: as above, with what every processor of this kind has.
            unsafe {
                asm!(
                    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
                    "pxor xmm\\n, xmm\\n",
                    ".endr",
                    clobber_abi("C"),
                    options(nomem, nostack)
                );
            }
        }
        // The C library copies through the upper sixteen where there are any.
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: as above, on a processor that has AVX-512.
            unsafe {
                asm!(
                    ".irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31",
                    "vpxord zmm\\n, zmm\\n, zmm\\n",
                    ".endr",
                    clobber_abi("C"),
                    options(nomem, nostack)
                );
            }
        }
    }
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
    #[cfg(target_arch = "x86_64")]
    fn nothing_is_left_in_the_registers() {
        use std::arch::asm;
        let (mut low, mut high) = ([0_u8; 16], [0_u8; 64]);
        let wide = std::arch::is_x86_feature_detected!("avx512f");
        // SAFETY: registers are filled and read back within what they are declared as; the widest are
        // touched only where the processor has them.
        unsafe {
            asm!("pcmpeqd xmm9, xmm9", out("xmm9") _);
            if wide {
                asm!("vpternlogd zmm27, zmm27, zmm27, 255", clobber_abi("C"));
            }
            clear_registers();
            asm!("movdqu [{0}], xmm9", in(reg) low.as_mut_ptr(), out("xmm9") _);
            if wide {
                asm!("vmovdqu64 [{0}], zmm27", in(reg) high.as_mut_ptr(), clobber_abi("C"));
            }
        }
        assert_eq!((low, high), ([0; 16], [0; 64]));
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
