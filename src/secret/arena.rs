//! The locked arena of this process: started once, asked for by everything that holds a secret.
#![allow(unsafe_code)] // hands the mapping to the heap

use super::heap::Heap;
use super::{hook, mapping};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// How much locked memory this process takes, and of which kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Size of the arena in bytes, rounded up to whole pages. It counts against RLIMIT_MEMLOCK
    /// (`LimitMEMLOCK=` of the unit). aws-lc takes about 140 KiB of it for itself, a loaded
    /// RSA-2048 key about 6 KiB and 1 KiB more for each thread that uses it at the same time. The
    /// stacks that work with opened keys runs on come on top, 64 KiB for each thread.
    pub size_bytes: usize,
    /// Which kind of memory: `auto` takes `memfd-secret` if the kernel has it, else `mlock`.
    pub kind: KindChoice,
}

impl Settings {
    /// The smallest arena, in bytes: below it not even the library's own state fits.
    pub const MIN_SIZE: usize = 256 * 1024;
    /// The largest arena, in bytes.
    pub const MAX_SIZE: usize = 1 << 32;
}

impl Default for Settings {
    /// 4 MiB: starts under the usual limit of 8 MiB.
    fn default() -> Self {
        Self { size_bytes: 4 * 1024 * 1024, kind: KindChoice::Auto }
    }
}

/// The kind of memory a configuration asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KindChoice {
    #[default]
    Auto,
    MemfdSecret,
    Mlock,
}

/// The kind of memory an arena lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArenaKind {
    /// `memfd_secret(2)`: out of the kernel's own map; not even root reads it from outside.
    MemfdSecret,
    /// Anonymous memory under `mlock(2)`: never swapped and in no core file, but root can read it.
    Mlock,
}

impl std::fmt::Display for ArenaKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ArenaKind::MemfdSecret => "memfd_secret",
            ArenaKind::Mlock => "mlock",
        })
    }
}

/// What the process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Holds keys: aws-lc allocates from the arena too.
    Custody,
    /// Holds no keys: aws-lc allocates from the ordinary heap, wiped on free.
    Front,
}

/// What the arena is made of; its text is for the start-up line and for `doctor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArenaReport {
    pub kind: ArenaKind,
    pub size_bytes: usize,
}

impl std::fmt::Display for ArenaReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let means = match self.kind {
            ArenaKind::MemfdSecret => "unreadable from outside, even for root",
            ArenaKind::Mlock => "never swapped or dumped, but readable by root",
        };
        write!(f, "{} KiB of {} memory ({means})", self.size_bytes / 1024, self.kind)
    }
}

/// How full the arena is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArenaUsage {
    pub used_bytes: usize,
    pub size_bytes: usize,
}

/// Why there is no arena, or nothing more in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ArenaError {
    #[error("the locked arena was not started in this process")]
    NotStarted,
    #[error("the locked arena is full: raise size_bytes of the arena, or keep fewer keys loaded")]
    Full,
    #[error("the kernel gave no random bytes")]
    Random,
    #[error("size_bytes of the arena is {0}: it must lie between {min} and {max}",
        min = Settings::MIN_SIZE, max = Settings::MAX_SIZE)]
    Size(usize),
    #[error(
        "this kernel has no memfd_secret(2) (5.14 or newer, CONFIG_SECRETMEM, not switched off by \
         secretmem.enable=0): set kind of the arena to \"auto\" or \"mlock\""
    )]
    NoSecretMemory,
    #[error(
        "the kernel refused {size_bytes} bytes of {kind} memory at {step} ({errno}); RLIMIT_MEMLOCK \
         is {limit_bytes} bytes: raise LimitMEMLOCK= of the unit (`ulimit -l` in a shell), or lower \
         size_bytes of the arena"
    )]
    Refused {
        kind: ArenaKind,
        size_bytes: usize,
        step: &'static str,
        errno: Errno,
        limit_bytes: u64,
    },
    #[error(
        "aws-lc does not allocate from the locked arena: this binary was linked without \
         Strongroom's allocator, or the arena was not started for custody"
    )]
    Unhooked,
}

/// The one arena of the process.
pub(super) struct Arena {
    pub(super) heap: Heap,
    report: ArenaReport,
    custody: AtomicBool,
}

static ARENA: OnceLock<Arena> = OnceLock::new();

/// Starts the arena, once. A later call returns the report of the one that runs, whatever it asks
/// for; a later call for custody switches aws-lc over to the arena and never back.
pub fn start(settings: &Settings, purpose: Use) -> Result<&'static ArenaReport, ArenaError> {
    static STARTING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    let arena = match ARENA.get() {
        Some(running) => running,
        None => {
            let new = Arena::new(settings)?;
            ARENA.get_or_init(|| new)
        }
    };
    if purpose == Use::Custody {
        hook::keep_linked();
        arena.custody.store(true, Ordering::Release);
    }
    Ok(&arena.report)
}

/// How full the arena is; all zero before the start.
pub fn usage() -> ArenaUsage {
    ARENA.get().map_or(ArenaUsage { used_bytes: 0, size_bytes: 0 }, |arena| ArenaUsage {
        used_bytes: arena.heap.used(),
        size_bytes: arena.report.size_bytes,
    })
}

/// The arena, if this process started one.
pub(super) fn running() -> Result<&'static Arena, ArenaError> {
    ARENA.get().ok_or(ArenaError::NotStarted)
}

impl Arena {
    fn new(settings: &Settings) -> Result<Self, ArenaError> {
        let size = settings.size_bytes;
        if !(Settings::MIN_SIZE..=Settings::MAX_SIZE).contains(&size) {
            return Err(ArenaError::Size(size));
        }
        let wanted = match settings.kind {
            KindChoice::Auto => None,
            KindChoice::MemfdSecret => Some(ArenaKind::MemfdSecret),
            KindChoice::Mlock => Some(ArenaKind::Mlock),
        };
        let mapping = mapping::map(size, wanted)?;
        // SAFETY: a fresh mapping that is never unmapped and that nobody else was told of.
        let heap = unsafe { Heap::over(mapping.start, mapping.size) }
            .ok_or(ArenaError::Size(mapping.size))?;
        let report = ArenaReport { kind: mapping.kind, size_bytes: mapping.size };
        Ok(Self { heap, report, custody: AtomicBool::new(false) })
    }

    /// Which kind of memory it lies in.
    pub(super) fn kind(&self) -> ArenaKind {
        self.report.kind
    }

    /// Whether aws-lc allocates here.
    pub(super) fn serves_custody(&self) -> bool {
        self.custody.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_start_returns_what_runs() {
        let first = start(&Settings::default(), Use::Front).expect("an arena");
        let other = Settings { size_bytes: Settings::MIN_SIZE, kind: KindChoice::Mlock };
        let second = start(&other, Use::Custody).expect("the same arena");
        assert!(std::ptr::eq(first, second));
        assert_eq!(usage().size_bytes, first.size_bytes);
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        for size_bytes in [0, Settings::MIN_SIZE - 1, Settings::MAX_SIZE + 1] {
            let settings = Settings { size_bytes, ..Settings::default() };
            assert_eq!(Arena::new(&settings).err(), Some(ArenaError::Size(size_bytes)));
        }
    }

    #[test]
    fn settings_are_strict() {
        let read = |text| toml::from_str::<Settings>(text);
        assert_eq!(read(""), Ok(Settings::default()));
        assert_eq!(read("kind = 'mlock'").map(|s| s.kind), Ok(KindChoice::Mlock));
        assert_eq!(read("kind = 'memfd-secret'").map(|s| s.kind), Ok(KindChoice::MemfdSecret));
        assert!(read("kind = 'swap'").is_err());
        assert!(read("size = 1").is_err());
    }
}
