//! What a start has touched of the program's own file is let go of: the pages stay in the kernel's
//! cache, and those that are used again come back by themselves, without a read from disk.
//!
//! Parsing settings and policies, reading the command line and a dozen libraries' first steps touch
//! most of a large program once. Half of what a daemon has resident would be that.
#![allow(unsafe_code)] // madvise(2) works on addresses

use std::path::Path;

use nix::sys::mman::{MmapAdvise, madvise};
use std::ptr::NonNull;

/// Where this program's own code and constants are mapped. Pages with relocations hold what is nowhere
/// else and are not among them, and neither is any library.
pub struct Footprint(Vec<(usize, usize)>);

impl Footprint {
    /// To be taken before the sandbox is entered, which leaves no way to learn it.
    pub fn of_this_program() -> Self {
        let program = std::fs::read_link("/proc/self/exe").unwrap_or_default();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        Self(maps.lines().filter_map(|line| unwritten(line, &program)).collect())
    }

    /// Lets go of these pages, and of what the heap has free.
    pub fn let_go(&self) {
        give_back_free_memory();
        for &(start, length) in &self.0 {
            let start = NonNull::new(std::ptr::without_provenance_mut(start));
            let Some(start) = start else { continue };
            // SAFETY: a private mapping of a file that nothing was ever written to (the kernel maps it
            // unwritable from the beginning): dropped pages are read from the file again.
            let dropped = unsafe { madvise(start, length, MmapAdvise::MADV_DONTNEED) };
            if let Err(error) = dropped {
                tracing::debug!(%error, "pages of the start stay resident");
            }
        }
    }
}

/// What the start has freed goes back to the kernel: with glibc, which keeps it else.
fn give_back_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no preconditions; it takes the allocator's own locks.
    let _ = unsafe { libc::malloc_trim(0) };
}

/// Start and length of a mapping, where it is code of `program`, or constants from the file's
/// beginning on: the linker puts what is relocated, and thus written, behind the code.
fn unwritten(line: &str, program: &Path) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (range, permissions, offset) = (fields.next()?, fields.next()?, fields.next()?);
    let path = fields.nth(2)?;
    let is_code = permissions == "r-xp";
    let is_first = permissions == "r--p" && offset.bytes().all(|digit| digit == b'0');
    if Path::new(path) != program || !(is_code || is_first) {
        return None;
    }
    let (from, to) = range.split_once('-')?;
    let from = usize::from_str_radix(from, 16).ok()?;
    let to = usize::from_str_radix(to, 16).ok()?;
    Some((from, to.checked_sub(from)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_first_constants_of_the_program_alone() {
        let program = Path::new("/usr/bin/strongroom");
        let taken = |permissions, offset, path| {
            let line = format!("5000-7000 {permissions} {offset} fe:00 1234     {path}");
            unwritten(&line, program)
        };
        let own = "/usr/bin/strongroom";
        assert_eq!(taken("r-xp", "00712000", own), Some((0x5000, 0x2000)));
        assert_eq!(taken("r--p", "00000000", own), Some((0x5000, 0x2000)));
        for (permissions, offset, path) in [
            ("r--p", "00f12000", own),
            ("rw-p", "00f13000", own),
            ("rw-p", "00000000", own),
            ("r-xp", "00001000", "/usr/lib/libcrypto.so.3"),
            ("r-xp", "00000000", "[vdso]"),
        ] {
            assert_eq!(taken(permissions, offset, path), None);
        }
        assert_eq!(unwritten("5000-7000 rw-p 00000000 00:00 0 ", program), None);
    }

    #[test]
    fn the_program_goes_on_with_less() {
        let resident = || {
            let text = std::fs::read_to_string("/proc/self/statm").expect("statm");
            text.split(' ').nth(2).and_then(|pages| pages.parse::<usize>().ok()).expect("a number")
        };
        // Touched here, so that there is something to let go of.
        let text = format!("{:?}", toml::from_str::<toml::Table>("a = [1, 2.5, 'x']"));
        let before = resident();
        Footprint::of_this_program().let_go();
        assert!(resident() < before, "{} of {before} pages", resident());
        assert_eq!(text, format!("{:?}", toml::from_str::<toml::Table>("a = [1, 2.5, 'x']")));
    }
}
