//! The ordinary heap, wiped on free: for buffers that belong to libraries (HTTP, JSON) and that a
//! secret passed through on its way into the arena.
#![allow(unsafe_code)] // an allocator works on addresses

use super::heap::wipe;
use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::NonNull;

/// The system's allocator; every block is overwritten with zeros before it goes back.
///
/// A block that grows moves (the trait's own `realloc` takes a new one and frees the old), since the
/// system may move a block by itself and would leave its content behind.
pub struct WipingHeap;

// SAFETY: blocks are the system's; a block is written to only until it is handed back.
unsafe impl GlobalAlloc for WipingHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(start) = NonNull::new(block) {
            // SAFETY: the block is the caller's, as long as its layout says, until it is freed below.
            unsafe { wipe(start, layout.size()) };
        }
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_keeps_its_content_and_leaves_none_behind() {
        let layout = Layout::from_size_align(1 << 16, 16).expect("a layout");
        // SAFETY: blocks are used within their layouts; the old one is read after it was freed, which
        // the system's heap keeps mapped while a block above it lives.
        unsafe {
            let block = WipingHeap.alloc(layout);
            let above = WipingHeap.alloc_zeroed(layout);
            block.write_bytes(0xa5, layout.size());
            let moved = WipingHeap.realloc(block, layout, 2 << 16);
            assert_ne!(moved, block);
            assert!(std::slice::from_raw_parts(moved, 1 << 16).iter().all(|&byte| byte == 0xa5));
            assert!(std::slice::from_raw_parts(above, 1 << 16).iter().all(|&byte| byte == 0));
            WipingHeap.dealloc(moved, Layout::from_size_align(2 << 16, 16).expect("a layout"));
            WipingHeap.dealloc(above, layout);
        }
    }
}
