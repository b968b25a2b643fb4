//! Deals out blocks of one mapping. Whatever comes back is wiped before it can be dealt out again.
//!
//! The mapping is taken over step by step, as room is needed: the kernel has promised all of it, and
//! what nobody needs takes no memory.
#![allow(unsafe_code)] // an allocator works on addresses

use std::alloc::Layout;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use talc::base::{CHUNK_UNIT, Talc};
use talc::{DefaultBinning, source::Manual};

/// The part of the mapping that is in use, and the allocator over it.
struct Blocks {
    talc: Talc<Manual, DefaultBinning>,
    end: NonNull<u8>,
}

// SAFETY: the end points into the mapping that the allocator has taken over, which every thread may
// use; it is read and written under the lock around it alone.
unsafe impl Send for Blocks {}

/// How much of the mapping is taken over at once, in bytes: the kernel needs about 20 µs for each page
/// of secret memory that is touched first.
const STEP: usize = 256 * 1024;

/// An allocator over one mapping, for all threads of the process.
pub(super) struct Heap {
    range: Range<usize>,
    blocks: Mutex<Blocks>,
    used: AtomicUsize,
}

impl Heap {
    /// Takes the mapping over; `None` if it is too small to hold the allocator's own lists.
    ///
    /// # Safety
    /// `start..start + size` is readable and writable, nobody else uses it, and it is never unmapped.
    pub(super) unsafe fn over(start: NonNull<u8>, size: usize) -> Option<Self> {
        let mut talc = Talc::new(Manual);
        let first = size.min(STEP);
        bring_in(start, first);
        // SAFETY: the caller hands the memory over.
        let end = unsafe { talc.claim(start.as_ptr(), first) }?;
        let from = start.as_ptr().addr();
        Some(Self {
            range: from..from + size,
            blocks: Mutex::new(Blocks { talc, end }),
            used: AtomicUsize::new(0),
        })
    }

    /// A block whose content is unspecified, or `None` when there is no room.
    pub(super) fn allocate(&self, layout: Layout) -> Option<NonNull<u8>> {
        if layout.size() == 0 || layout.size() > self.range.len() {
            return None;
        }
        let mut blocks = self.lock();
        let block = loop {
            // SAFETY: the size is not zero.
            match unsafe { blocks.talc.allocate(layout) } {
                Some(block) => break block,
                None => self.take_over_more(&mut blocks)?,
            }
        };
        drop(blocks);
        self.used.fetch_add(footprint(layout), Ordering::Relaxed);
        Some(block)
    }

    /// Wipes a block and takes it back.
    ///
    /// # Safety
    /// `block` came from `allocate` of this heap with the same layout and is not used any more.
    pub(super) unsafe fn release(&self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the block is as long as its layout says, by the contract above.
        unsafe {
            wipe(block, layout.size());
            self.lock().talc.deallocate(block.as_ptr(), layout);
        }
        self.used.fetch_sub(footprint(layout), Ordering::Relaxed);
    }

    /// Takes over the next step of the mapping; `None` where there is no more.
    fn take_over_more(&self, blocks: &mut Blocks) -> Option<()> {
        let left = self.range.end - blocks.end.as_ptr().addr();
        let more = left.min(STEP);
        // Less than this is not worth the allocator's while.
        if more < CHUNK_UNIT {
            return None;
        }
        bring_in(blocks.end, more);
        // SAFETY: up to the end of the mapping, which is all this heap's; what lies behind the
        // allocator's end has not been dealt out.
        blocks.end = unsafe { blocks.talc.extend(blocks.end, blocks.end.as_ptr().add(more)) };
        Some(())
    }

    /// Whether an address lies in the mapping.
    pub(super) fn holds(&self, address: usize) -> bool {
        self.range.contains(&address)
    }

    /// Bytes dealt out, each block rounded up to what it takes.
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// A panic cannot leave the lists half-changed in a way that poisoning would tell of: whatever
    /// panicked did not do so between two of their writes.
    fn lock(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads each page once, so that memory that is not there is missed now and not during an operation.
fn bring_in(start: NonNull<u8>, size: usize) {
    for offset in (0..size).step_by(4096) {
        // SAFETY: within the mapping, which is readable and initialised (zero).
        let _ = unsafe { start.add(offset).read_volatile() };
    }
}

/// Overwrites `size` bytes with zeros in a way that the compiler must carry out.
///
/// # Safety
/// `start..start + size` is writable.
pub(super) unsafe fn wipe(start: NonNull<u8>, size: usize) {
    // SAFETY: writable by the contract; the empty assembly may read all of memory, so the zeros have
    // to be there before it.
    unsafe {
        start.as_ptr().write_bytes(0, size);
        std::arch::asm!("/* {0} */", in(reg) start.as_ptr(), options(nostack, preserves_flags));
    }
}

/// What the allocator takes for a block: its tail word, rounded up to its unit.
fn footprint(layout: Layout) -> usize {
    (layout.size() + size_of::<usize>()).next_multiple_of(CHUNK_UNIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small_heap(size: usize) -> Heap {
        let memory = Box::leak(vec![0_u8; size].into_boxed_slice());
        let start = NonNull::new(memory.as_mut_ptr()).expect("a box is somewhere");
        // SAFETY: leaked, so it is ours for good.
        unsafe { Heap::over(start, size) }.expect("large enough")
    }

    #[test]
    fn a_released_block_is_wiped_and_found_again() {
        let heap = small_heap(64 * 1024);
        let layout = Layout::from_size_align(1024, 16).expect("a layout");
        let block = heap.allocate(layout).expect("room");
        assert!(heap.holds(block.as_ptr().addr()));
        assert_eq!(heap.used(), 1056);
        // SAFETY: the block is 1024 bytes long; after its release the memory is still mapped, and
        // the allocator writes at most four words at each end of it.
        let middle = unsafe {
            block.as_ptr().write_bytes(0xa5, 1024);
            heap.release(block, layout);
            std::slice::from_raw_parts(block.as_ptr().add(64), 896)
        };
        assert!(middle.iter().all(|&byte| byte == 0));
        assert_eq!(heap.used(), 0);
        assert_eq!(heap.allocate(layout), Some(block));
    }

    #[test]
    fn a_full_heap_says_so_and_recovers() {
        let heap = small_heap(64 * 1024);
        let layout = Layout::from_size_align(8 * 1024, 64).expect("a layout");
        let blocks: Vec<_> = std::iter::from_fn(|| heap.allocate(layout)).collect();
        assert!((6..8).contains(&blocks.len()), "{}", blocks.len());
        for block in blocks {
            assert_eq!(block.as_ptr().addr() % 64, 0);
            // SAFETY: allocated above with this layout.
            unsafe { heap.release(block, layout) };
        }
        assert_eq!(heap.used(), 0);
        assert!(heap.allocate(layout).is_some());
        assert!(heap.allocate(Layout::from_size_align(0, 1).expect("a layout")).is_none());
    }

    #[test]
    fn a_heap_grows_to_the_end_of_its_mapping() {
        let heap = small_heap(2 * STEP + 100 * 1024);
        let layout = Layout::from_size_align(8 * 1024, 16).expect("a layout");
        let blocks: Vec<_> = std::iter::from_fn(|| heap.allocate(layout)).collect();
        assert!((74..77).contains(&blocks.len()), "{}", blocks.len());
        let wide = small_heap(4 * STEP);
        let layout = Layout::from_size_align(3 * STEP, 16).expect("a layout");
        assert!(wide.allocate(layout).is_some(), "several steps for one block");
        assert!(wide.allocate(layout).is_none());
    }

    #[test]
    fn many_threads_never_share_a_block() {
        let heap = small_heap(1024 * 1024);
        std::thread::scope(|scope| {
            for thread in 1..=4_u8 {
                let heap = &heap;
                scope.spawn(move || {
                    for round in 0..2_000_usize {
                        let size = 1 + (round * 37 + usize::from(thread)) % 3_000;
                        let layout = Layout::from_size_align(size, 16).expect("a layout");
                        let block = heap.allocate(layout).expect("room for four threads");
                        // SAFETY: the block is ours until it is released.
                        unsafe {
                            block.as_ptr().write_bytes(thread, size);
                            let seen = std::slice::from_raw_parts(block.as_ptr(), size);
                            assert!(seen.iter().all(|&byte| byte == thread));
                            heap.release(block, layout);
                        }
                    }
                });
            }
        });
        assert_eq!(heap.used(), 0);
    }
}
