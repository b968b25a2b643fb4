//! Gets locked memory from the kernel: `memfd_secret(2)`, or anonymous memory under `mlock(2)`.
//!
//! Either kind lies between two pages that nobody may touch, stays out of core dumps and is not
//! handed on to a forked child.
#![allow(unsafe_code)] // mappings are made, placed and protected by address

use super::arena::{ArenaError, ArenaKind};
use nix::errno::Errno;
use nix::sys::mman::{self, MapFlags, MmapAdvise, ProtFlags};
use nix::sys::resource::{Resource, getrlimit};
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// A locked run of memory that lasts as long as the process.
pub(super) struct Mapping {
    pub(super) kind: ArenaKind,
    pub(super) start: NonNull<u8>,
    /// In bytes, a multiple of the page size.
    pub(super) size: usize,
}

/// Maps `size` bytes (rounded up to whole pages) of the wanted kind; `None` takes the stronger kind
/// if the kernel has it.
pub(super) fn map(size: usize, wanted: Option<ArenaKind>) -> Result<Mapping, ArenaError> {
    match wanted {
        Some(kind) => map_between(size, kind, 1),
        None => map_between(size, ArenaKind::MemfdSecret, 1)
            .or_else(|_| map_between(size, ArenaKind::Mlock, 1)),
    }
}

/// Maps `size` bytes of one kind between two runs of `guard` bytes that nobody may touch; all are rounded
/// up to whole pages.
pub(super) fn map_between(
    size: usize,
    kind: ArenaKind,
    guard: usize,
) -> Result<Mapping, ArenaError> {
    let page = page_size();
    let (size, guard) = (size.next_multiple_of(page), guard.next_multiple_of(page));
    let whole = size + 2 * guard;
    let reserved = reserve(whole).map_err(|errno| refused(kind, size, "mmap", errno))?;
    // SAFETY: `guard` bytes into a reservation that is twice as many longer than `size`.
    let start = unsafe { reserved.add(guard) };
    let filled = match kind {
        ArenaKind::MemfdSecret => fill_with_secret_memory(start, size),
        ArenaKind::Mlock => fill_with_locked_memory(start, size),
    };
    match filled {
        Ok(()) => Ok(Mapping { kind, start: start.cast(), size }),
        Err((step, errno)) => {
            // SAFETY: the reservation was made above and nobody was told of it.
            let _ = unsafe { mman::munmap(reserved, whole) };
            Err(refused(kind, size, step, errno))
        }
    }
}

/// Address space that faults when touched; what is not filled of it stays as the guard pages.
fn reserve(size: usize) -> Result<NonNull<c_void>, Errno> {
    let length = NonZeroUsize::new(size).ok_or(Errno::EINVAL)?;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
    unsafe { mman::mmap_anonymous(None, length, ProtFlags::PROT_NONE, flags) }
}

type Step = (&'static str, Errno);

fn fill_with_secret_memory(start: NonNull<c_void>, size: usize) -> Result<(), Step> {
    let file = memfd_secret().map_err(|errno| ("memfd_secret", errno))?;
    let length = libc::off_t::try_from(size).map_err(|_| ("ftruncate", Errno::EFBIG))?;
    nix::unistd::ftruncate(&file, length).map_err(|errno| ("ftruncate", errno))?;
    // SAFETY: `start..start + size` lies within our own reservation, which MAP_FIXED replaces.
    let mapped = unsafe {
        libc::mmap(
            start.as_ptr(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_FIXED,
            file.as_raw_fd(),
            0,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(("mmap", Errno::last()));
    }
    advise(start, size, MmapAdvise::MADV_DONTFORK, "MADV_DONTFORK")
}

fn fill_with_locked_memory(start: NonNull<c_void>, size: usize) -> Result<(), Step> {
    let open = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: `start..start + size` lies within our own reservation.
    unsafe { mman::mprotect(start, size, open) }.map_err(|errno| ("mprotect", errno))?;
    advise(start, size, MmapAdvise::MADV_DONTDUMP, "MADV_DONTDUMP")?;
    advise(start, size, MmapAdvise::MADV_WIPEONFORK, "MADV_WIPEONFORK")?;
    advise(start, size, MmapAdvise::MADV_DONTFORK, "MADV_DONTFORK")?;
    // SAFETY: as above; locking brings every page in, or fails.
    unsafe { mman::mlock(start, size) }.map_err(|errno| ("mlock", errno))
}

fn memfd_secret() -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes flags only; its result is checked before it is used.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    let fd = Errno::result(fd)?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel just made this descriptor and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn advise(
    start: NonNull<c_void>,
    size: usize,
    advice: MmapAdvise,
    step: &'static str,
) -> Result<(), Step> {
    // SAFETY: `start..start + size` is our own mapping; no advice used here discards its content.
    unsafe { mman::madvise(start, size, advice) }.map_err(|errno| (step, errno))
}

fn page_size() -> usize {
    // SAFETY: no preconditions.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

fn refused(kind: ArenaKind, size_bytes: usize, step: &'static str, errno: Errno) -> ArenaError {
    if kind == ArenaKind::MemfdSecret && step == "memfd_secret" && errno == Errno::ENOSYS {
        return ArenaError::NoSecretMemory;
    }
    let limit_bytes = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
    ArenaError::Refused { kind, size_bytes, step, errno, limit_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The permissions of the mappings that end at, lie over and begin after the arena.
    fn permissions_around(mapping: &Mapping) -> [String; 3] {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("the kernel shows our maps");
        let start = mapping.start.as_ptr().addr();
        let at = |address: usize| {
            maps.lines()
                .find_map(|line| {
                    let (range, rest) = line.split_once(' ')?;
                    let (from, to) = range.split_once('-')?;
                    let from = usize::from_str_radix(from, 16).ok()?;
                    let to = usize::from_str_radix(to, 16).ok()?;
                    (from <= address && address < to).then(|| rest[..4].to_owned())
                })
                .unwrap_or_default()
        };
        [at(start - 1), at(start), at(start + mapping.size)]
    }

    #[test]
    fn both_kinds_lie_between_guard_pages() {
        for (kind, own) in [(ArenaKind::MemfdSecret, "rw-s"), (ArenaKind::Mlock, "rw-p")] {
            let mapping = map(100_000, Some(kind)).expect("a small mapping of each kind");
            assert_eq!(mapping.kind, kind);
            assert_eq!(mapping.size % page_size(), 0);
            assert!(mapping.size >= 100_000);
            assert_eq!(permissions_around(&mapping), ["---p", own, "---p"], "{kind}");
            // SAFETY: made above, used by nobody.
            unsafe { mman::munmap(mapping.start.cast(), mapping.size) }.expect("unmapped again");
        }
    }

    #[test]
    fn too_much_is_refused_with_the_limit_and_the_next_step() {
        let beyond = 1 << 60; // no address space is this large, so nothing is tried for long
        let refused = map(beyond, Some(ArenaKind::Mlock)).err().expect("refused");
        let text = refused.to_string();
        assert!(text.contains("RLIMIT_MEMLOCK") && text.contains("LimitMEMLOCK="), "{text}");
    }
}
