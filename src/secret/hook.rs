//! aws-lc's allocator: every block the library takes lies in the arena of a custody process, and on
//! the ordinary heap, wiped on free, everywhere else.
//!
//! aws-lc declares these four functions weakly (`crypto/mem.c`) and takes them where they exist. They
//! may run under any lock of the library or of the C runtime: no panic, no log, no call into aws-lc.
#![allow(unsafe_code)] // C calls these by name, with addresses

use super::arena::{self, ArenaError};
use super::heap::wipe;
use std::alloc::{Layout, alloc, dealloc};
use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::{NonNull, null_mut};

/// Each block starts this far before the address that aws-lc sees; its first word is the length it
/// asked for. The same number is the alignment.
const HEADER: usize = 16;

thread_local! {
    /// Whether an allocation on this thread was refused since it was last asked.
    static REFUSED: Cell<bool> = const { Cell::new(false) };
}

/// Takes `size` bytes; null when there is no room.
#[unsafe(no_mangle)]
extern "C" fn OPENSSL_memory_alloc(size: usize) -> *mut c_void {
    let block = layout_of(size).and_then(|layout| match arena::running() {
        Ok(arena) if arena.serves_custody() => arena.heap.allocate(layout),
        // SAFETY: the layout holds the header at least, so it is not empty.
        _ => NonNull::new(unsafe { alloc(layout) }),
    });
    let Some(block) = block else {
        REFUSED.set(true);
        return null_mut();
    };
    // SAFETY: the block is aligned for a word and `HEADER + size` bytes long.
    unsafe {
        block.cast::<usize>().write(size);
        block.add(HEADER).as_ptr().cast()
    }
}

/// Wipes and frees a block; where it lies decides whose it is.
#[unsafe(no_mangle)]
extern "C" fn OPENSSL_memory_free(pointer: *mut c_void) {
    let Some(seen) = NonNull::new(pointer.cast::<u8>()) else { return };
    // SAFETY: aws-lc frees only what `OPENSSL_memory_alloc` returned: the header lies before it.
    let (block, size) = unsafe { (seen.sub(HEADER), seen.sub(HEADER).cast::<usize>().read()) };
    let Some(layout) = layout_of(size) else { return };
    match arena::running() {
        Ok(arena) if arena.heap.holds(block.as_ptr().addr()) => {
            // SAFETY: it lies in the arena, so it came from there, with this layout.
            unsafe { arena.heap.release(block, layout) };
        }
        // SAFETY: otherwise it came from the ordinary heap, with this layout.
        _ => unsafe {
            wipe(block, layout.size());
            dealloc(block.as_ptr(), layout);
        },
    }
}

/// The length in bytes that a block was asked for with.
#[unsafe(no_mangle)]
extern "C" fn OPENSSL_memory_get_size(pointer: *mut c_void) -> usize {
    NonNull::new(pointer.cast::<u8>()).map_or(0, |seen| {
        // SAFETY: as in `OPENSSL_memory_free`.
        unsafe { seen.sub(HEADER).cast::<usize>().read() }
    })
}

/// Moves a block to one of `size` bytes and wipes the old one; null, and the old one untouched, when
/// there is no room.
#[unsafe(no_mangle)]
extern "C" fn OPENSSL_memory_realloc(pointer: *mut c_void, size: usize) -> *mut c_void {
    let new = OPENSSL_memory_alloc(size);
    if !new.is_null() && !pointer.is_null() {
        let kept = size.min(OPENSSL_memory_get_size(pointer));
        // SAFETY: both blocks hold `kept` bytes, and the new one overlaps nothing.
        unsafe { new.cast::<u8>().copy_from_nonoverlapping(pointer.cast(), kept) };
        OPENSSL_memory_free(pointer);
    }
    new
}

fn layout_of(size: usize) -> Option<Layout> {
    Layout::from_size_align(size.checked_add(HEADER)?, HEADER).ok()
}

/// Whether the arena had no room for aws-lc on this thread since the last call: a failure of the
/// library may then be no more than that.
pub fn take_refusal() -> bool {
    REFUSED.replace(false)
}

/// Refers to the four functions, so that the linker takes them out of the library.
pub(super) fn keep_linked() {
    std::hint::black_box((
        OPENSSL_memory_alloc as *const c_void,
        OPENSSL_memory_free as *const c_void,
        OPENSSL_memory_get_size as *const c_void,
        OPENSSL_memory_realloc as *const c_void,
    ));
}

/// Proves that aws-lc allocates, grows and frees in the arena of this process, by doing it.
pub fn hook_self_test() -> Result<(), ArenaError> {
    let heap = &arena::running()?.heap;
    // SAFETY: plain allocations, checked for null, freed once.
    let in_arena = unsafe {
        let first = aws_lc_sys::OPENSSL_malloc(64);
        let first_lies = heap.holds(first.addr());
        let grown = aws_lc_sys::OPENSSL_realloc(first, 4096);
        let grown_lies = heap.holds(grown.addr());
        aws_lc_sys::OPENSSL_free(if grown.is_null() { first } else { grown });
        first_lies && grown_lies
    };
    if in_arena { Ok(()) } else { Err(ArenaError::Unhooked) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::arena::{Settings, Use};

    #[test]
    fn aws_lc_allocates_from_the_arena_in_custody() {
        // Taken before the switch in some orders of the tests, after it in others: either is freed
        // where it lies.
        let early = OPENSSL_memory_alloc(100);
        arena::start(&Settings::default(), Use::Custody).expect("an arena");
        hook_self_test().expect("the symbols are ours");
        OPENSSL_memory_free(early);
    }

    #[test]
    fn blocks_are_aligned_sized_and_kept_when_they_move() {
        arena::start(&Settings::default(), Use::Custody).expect("an arena");
        for size in [0, 1, 15, 16, 17, 1000] {
            let block = OPENSSL_memory_alloc(size);
            assert!(!block.is_null());
            assert_eq!(block.addr() % 16, 0);
            assert_eq!(OPENSSL_memory_get_size(block), size);
            // SAFETY: `size` bytes are ours.
            unsafe { block.cast::<u8>().write_bytes(0x5a, size) };
            let grown = OPENSSL_memory_realloc(block, size + 100);
            // SAFETY: the first `size` bytes were copied over.
            let kept = unsafe { std::slice::from_raw_parts(grown.cast::<u8>(), size) };
            assert!(kept.iter().all(|&byte| byte == 0x5a));
            let shrunk = OPENSSL_memory_realloc(grown, size / 2);
            assert_eq!(OPENSSL_memory_get_size(shrunk), size / 2);
            OPENSSL_memory_free(shrunk);
        }
    }

    #[test]
    fn a_refusal_is_null_and_remembered_once() {
        arena::start(&Settings::default(), Use::Custody).expect("an arena");
        take_refusal();
        assert!(OPENSSL_memory_alloc(usize::MAX).is_null());
        assert!(take_refusal());
        assert!(OPENSSL_memory_alloc(64 << 20).is_null(), "more than the arena");
        assert!(take_refusal());
        assert!(!take_refusal());
    }
}
