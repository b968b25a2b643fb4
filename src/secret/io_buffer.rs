//! A locked buffer that the kernel can read and write: what secrets pass through on a socket.
//!
//! The arena may be secret memory, from which the kernel does no I/O; so bytes are copied here on
//! purpose, and wiped as soon as they were sent or taken in.
#![allow(unsafe_code)] // maps, locks and unmaps memory

use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap_anonymous, munmap};

use super::heap::wipe;

/// Memory of its own pages: locked against swap, left out of core dumps, empty in a forked child.
pub struct IoBuffer {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone, and it hands out borrows by the usual rules.
unsafe impl Send for IoBuffer {}
// SAFETY: shared access only reads.
unsafe impl Sync for IoBuffer {}

impl IoBuffer {
    /// Maps and locks `len` bytes, zeroed.
    ///
    /// # Errors
    /// ENOMEM or EPERM where RLIMIT_MEMLOCK leaves no room; see mlock(2).
    pub fn new(len: NonZeroUsize) -> Result<Self, Errno> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh private mapping at an address of the kernel's choice.
        let start = unsafe { mmap_anonymous(None, len, protection, MapFlags::MAP_PRIVATE) }?;
        let buffer = Self { start: start.cast(), len: len.get() };
        // SAFETY: the range is the mapping just made.
        unsafe {
            mlock(start, buffer.len)?;
            madvise(start, buffer.len, MmapAdvise::MADV_DONTDUMP)?;
            madvise(start, buffer.len, MmapAdvise::MADV_WIPEONFORK)?;
        }
        Ok(buffer)
    }

    /// Overwrites the first `len` bytes, or all where it is no longer.
    pub fn wipe(&mut self, len: usize) {
        // SAFETY: within the mapping, which is writable.
        unsafe { wipe(self.start, len.min(self.len)) };
    }
}

impl Deref for IoBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is `len` readable bytes for as long as `self` lives.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for IoBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` is the only borrow.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for IoBuffer {
    fn drop(&mut self) {
        self.wipe(self.len);
        // SAFETY: the mapping is ours and no borrow of it is left; unmapping also unlocks it.
        let _ = unsafe { munmap(self.start.cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_zeroed_and_holds_what_is_written() {
        let mut buffer = IoBuffer::new(NonZeroUsize::new(5000).unwrap()).unwrap();
        assert!(buffer.iter().all(|&byte| byte == 0));
        buffer[4999] = 7;
        assert_eq!(buffer.len(), 5000);
        assert_eq!(buffer[4999], 7);
    }
}
