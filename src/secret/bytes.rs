//! A run of secret bytes in the arena.
#![allow(unsafe_code)] // owns a block of the arena by address

use super::arena::{self, ArenaError};
use super::heap;
use std::alloc::Layout;
use std::ptr::NonNull;

/// Blocks start at multiples of this, so that word-wise code meets no unaligned block.
const ALIGNMENT: usize = 16;

/// Bytes that lie in the locked arena and are wiped when dropped. No Debug, no Clone.
pub struct SecretBytes {
    block: NonNull<u8>,
    len: usize,
    /// `None` when the block is empty and takes nothing of the arena.
    layout: Option<Layout>,
}

// SAFETY: the block belongs to this value alone, and shared access to it is read-only.
unsafe impl Send for SecretBytes {}
// SAFETY: as above.
unsafe impl Sync for SecretBytes {}

impl SecretBytes {
    /// `len` zero bytes. Fails when the arena was not started or has no room.
    pub fn zeroed(len: usize) -> Result<Self, ArenaError> {
        let arena = arena::running()?;
        if len == 0 {
            return Ok(Self { block: NonNull::dangling(), len, layout: None });
        }
        let layout = Layout::from_size_align(len, ALIGNMENT).map_err(|_| ArenaError::Full)?;
        let block = arena.heap.allocate(layout).ok_or(ArenaError::Full)?;
        // SAFETY: the block is `len` bytes long and nobody else has it.
        unsafe { block.as_ptr().write_bytes(0, len) };
        Ok(Self { block, len, layout: Some(layout) })
    }

    /// A copy of `bytes`; wiping the source is the caller's duty.
    pub fn copy_from(bytes: &[u8]) -> Result<Self, ArenaError> {
        let mut new = Self::zeroed(bytes.len())?;
        new.expose_mut().copy_from_slice(bytes);
        Ok(new)
    }

    /// The bytes themselves: every call is a place to look at in a review.
    pub fn expose(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes, or none at a dangling but aligned address.
        unsafe { std::slice::from_raw_parts(self.block.as_ptr(), self.len) }
    }

    /// The bytes themselves, to be written.
    pub fn expose_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `expose`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.block.as_ptr(), self.len) }
    }

    /// Keeps the first `len` bytes and wipes the rest; nothing happens when there are no more.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len {
            // SAFETY: `len..self.len` lies within the block.
            unsafe { heap::wipe(self.block.add(len), self.len - len) };
            self.len = len;
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for SecretBytes {
    fn drop(&mut self) {
        if let (Some(layout), Ok(arena)) = (self.layout, arena::running()) {
            // SAFETY: allocated from this heap with this layout; an arena never ends.
            unsafe { arena.heap.release(self.block, layout) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::arena::{Settings, Use};

    #[test]
    fn bytes_lie_in_the_arena_and_start_as_zeros() {
        arena::start(&Settings::default(), Use::Front).expect("an arena");
        let mut bytes = SecretBytes::zeroed(100).expect("room");
        assert!(bytes.expose().iter().all(|&byte| byte == 0));
        bytes.expose_mut().fill(7);
        let heap = &arena::running().expect("started").heap;
        assert!(heap.holds(bytes.expose().as_ptr().addr()));

        bytes.truncate(200);
        assert_eq!(bytes.len(), 100);
        bytes.truncate(40);
        assert_eq!(bytes.expose(), [7; 40]);
        // SAFETY: the block is still 100 bytes long.
        let tail = unsafe { std::slice::from_raw_parts(bytes.block.as_ptr().add(40), 60) };
        assert_eq!(tail, [0; 60]);
    }

    #[test]
    fn nothing_takes_no_room_and_too_much_is_refused() {
        arena::start(&Settings::default(), Use::Front).expect("an arena");
        let none = SecretBytes::copy_from(&[]).expect("nothing fits always");
        assert!(none.is_empty() && none.expose().is_empty());
        for len in [usize::MAX, usize::MAX / 2, arena::usage().size_bytes] {
            assert!(matches!(SecretBytes::zeroed(len), Err(ArenaError::Full)), "{len}");
        }
    }
}
