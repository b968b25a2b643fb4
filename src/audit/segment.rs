//! The files of a trail: their names, their order, and careful appending.
//!
//! A file is named for the number of its first line, `trail-00000000000000000001.jsonl`, so that the
//! order is in the names and a missing file leaves a gap that can be seen.

use std::fs::{DirBuilder, File, Permissions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::AuditError;
use super::place::Place;
use crate::sandbox::{Open, open_plain};
use crate::store::sync_data;

/// A file of the trail that exists.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SegmentFile {
    pub first: u64,
    pub path: PathBuf,
}

impl SegmentFile {
    pub fn at(directory: &Path, first: u64) -> Self {
        Self { first, path: directory.join(format!("trail-{first:020}.jsonl")) }
    }

    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// All files of a trail, oldest first. Other files in the directory are not looked at.
pub(super) fn list(directory: &Path) -> io::Result<Vec<SegmentFile>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let digits = name.and_then(|name| name.strip_prefix("trail-")?.strip_suffix(".jsonl"));
        if let Some(first) = digits.filter(|d| d.len() == 20).and_then(|d| d.parse().ok()) {
            files.push(SegmentFile { first, path });
        }
    }
    files.sort();
    Ok(files)
}

/// The file that is being written.
pub(super) struct Segment {
    file: File,
    place: Place,
    /// Everything up to here is durable.
    good: u64,
    /// Something may lie beyond `good` that must go before more is written.
    dirty: bool,
    /// Up to here the disk's room is the file's own, whoever else fills the disk.
    held: u64,
    /// So many bytes of the disk it had when it was opened: what a process before has kept needs no room again.
    owned: u64,
}

/// What `st_blocks` counts in, whatever the file system does (stat(2)).
const BLOCK: u64 = 512;

/// Room is taken for a file in steps of this many bytes.
const STEP: u64 = 64 * 1024;

impl Segment {
    /// Makes the file for lines from `first` on, durably.
    pub fn create(directory: &Path, first: u64) -> Result<Self, AuditError> {
        let path = SegmentFile::at(directory, first).path;
        // One may be there, empty: made before a write that failed.
        let file = open_plain(&path, Open::MakeAppend)
            .map_err(|error| of_opening("making a file", &path, &error))?;
        let len = file.metadata().map_err(|error| of_io("making a file", &error))?.len();
        if len != 0 {
            return Err(AuditError::Io { during: "making a file", kind: ErrorKind::AlreadyExists });
        }
        sync_directory(directory)?;
        let place = Place::of(&file, &path).map_err(|error| of_io("making a file", &error))?;
        Ok(Self { file, place, good: 0, dirty: false, held: 0, owned: 0 })
    }

    /// Goes on with a file whose first `good` bytes have been checked.
    pub fn resume(file: &SegmentFile, good: u64) -> Result<Self, AuditError> {
        let path = &file.path;
        let failed = |error| of_opening("opening the newest file", path, &error);
        let file = open_plain(path, Open::Append).map_err(failed)?;
        let place = Place::of(&file, path).map_err(failed)?;
        // Room that was kept behind the end before a crash is the file's still.
        let owned = file.metadata().map_err(failed)?.blocks().saturating_mul(BLOCK);
        Ok(Self { file, place, good, dirty: true, held: good, owned })
    }

    pub fn len(&self) -> u64 {
        self.good
    }

    /// Whether it still lies where it was made, and nothing but this process has changed its length.
    pub fn in_place(&self) -> Result<(), AuditError> {
        match self.place.check_length(self.good) {
            // A write that failed may have left something behind the end.
            Err(AuditError::Resized { found, .. }) if self.dirty && found > self.good => Ok(()),
            checked => checked,
        }
    }

    /// Writes and syncs; on failure nothing of it stays.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), AuditError> {
        if self.dirty {
            self.cut_back()?;
        }
        self.dirty = true;
        let written = self
            .file
            .write_all(bytes)
            .map_err(|error| of_io("writing", &error))
            .and_then(|()| sync_data(&self.file).map_err(|error| of_io("syncing", &error)));
        match written {
            Ok(()) => {
                self.good += bytes.len() as u64;
                self.dirty = false;
            }
            // Where this fails too, it is tried again before the next write.
            Err(_) => drop(self.cut_back()),
        }
        written
    }

    /// Sees to it that behind `bytes` more the file has room for `reserve`, and that as much is free on the
    /// disk for what else has to be written in need, the store's records.
    ///
    /// # Errors
    /// [`AuditError::Full`] where that is not so: only what may use the reserve is written then.
    pub fn hold(&mut self, bytes: u64, reserve: u64) -> Result<(), AuditError> {
        let wanted = self.good.saturating_add(bytes).saturating_add(reserve);
        if reserve == 0 || wanted <= self.held {
            return Ok(());
        }
        let wanted = wanted.saturating_add(STEP);
        let missing = wanted.saturating_sub(self.held.max(self.good).max(self.owned));
        if free_bytes(&self.file).is_some_and(|free| free < missing.saturating_add(reserve)) {
            return Err(AuditError::Full);
        }
        let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, self.good, wanted - self.good) {
            Ok(()) => self.held = wanted,
            // Not every file system can; what is free was looked at, and is again with the next lines.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
            Err(error) => return Err(of_io("keeping room", &error.into())),
        }
        Ok(())
    }

    /// Whether so much is free that a further file can be made, which then has the reserve of this one.
    pub fn leaves_room_for_another(&self, reserve: u64) -> bool {
        let needed = reserve.saturating_add(2 * STEP);
        reserve == 0 || free_bytes(&self.file).is_none_or(|free| free >= needed)
    }

    /// Whether lines could be written: tries it, and takes it back. What a crash leaves of it is cut off
    /// like half a line.
    pub fn try_out(&mut self, reserve: u64) -> Result<(), AuditError> {
        self.hold(4096, reserve)?;
        let good = self.good;
        self.append(&[b' '; 4096])?;
        (self.good, self.dirty) = (good, true);
        self.cut_back()?;
        self.hold(0, reserve)
    }

    /// Cuts off whatever lies behind the last good line, and gives up the room that was kept: nothing more is
    /// appended here.
    pub fn finish(&mut self) -> Result<(), AuditError> {
        if self.dirty || self.held > self.good { self.truncate() } else { Ok(()) }
    }

    fn cut_back(&mut self) -> Result<(), AuditError> {
        let failed = |error| of_io("cutting back", &error);
        let length = self.file.metadata().map_err(failed)?.len();
        if length != self.good {
            return self.truncate();
        }
        // To cut nothing off would give up the room that is kept behind the end.
        self.file.sync_data().map_err(failed)?;
        self.dirty = false;
        Ok(())
    }

    fn truncate(&mut self) -> Result<(), AuditError> {
        self.file
            .set_len(self.good)
            .and_then(|()| self.file.sync_data())
            .map_err(|error| of_io("cutting back", &error))?;
        (self.dirty, self.held, self.owned) = (false, self.good, 0);
        Ok(())
    }
}

/// The lock of a trail: keeps other writers out for as long as this is held.
pub struct Claim {
    place: Place,
    _lock: File,
}

impl Claim {
    /// Whether the trail's directory is still the one that was claimed.
    pub fn in_place(&self) -> Result<(), AuditError> {
        self.place.check()
    }
}

/// Makes the directory or checks that it is closed to others, and keeps other writers out.
pub fn claim(directory: &Path) -> Result<Claim, AuditError> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => {
            std::fs::set_permissions(directory, Permissions::from_mode(0o700))
                .map_err(|error| of_io("making the directory", &error))?;
            if let Some(parent) = directory.parent().filter(|path| !path.as_os_str().is_empty()) {
                sync_directory(parent)?;
            }
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let metadata = directory.metadata();
            let metadata = metadata.map_err(|e| of_io("looking at the directory", &e))?;
            let (mode, owner) = (metadata.mode() & 0o777, metadata.uid());
            if mode & 0o077 != 0 {
                return Err(AuditError::Mode { mode });
            }
            let own = rustix::process::geteuid().as_raw();
            if owner != own {
                return Err(AuditError::Owner { path: directory.to_owned(), owner, own });
            }
        }
        Err(error) => return Err(of_io("making the directory", &error)),
    }
    let path = directory.join("lock");
    let lock = open_plain(&path, Open::Make);
    let lock = lock.map_err(|error| of_opening("opening the lock", &path, &error))?;
    let place = Place::of(&lock, &path).map_err(|error| of_io("opening the lock", &error))?;
    for _ in 0..20 {
        match lock.try_lock() {
            Ok(()) => return Ok(Claim { place, _lock: lock }),
            // A process that was just forked keeps the locks of its parent until it runs its own
            // program, and one that ends takes a moment.
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(50)),
            Err(TryLockError::Error(error)) => return Err(of_io("locking", &error)),
        }
    }
    Err(AuditError::InUse)
}

fn free_bytes(file: &File) -> Option<u64> {
    let found = rustix::fs::fstatvfs(file).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

pub(super) fn sync_directory(directory: &Path) -> Result<(), AuditError> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| of_io("syncing the directory", &error))
}

/// The same of a file that was to be opened: what lies there may be no file of the trail's.
pub(super) fn of_opening(during: &'static str, path: &Path, error: &io::Error) -> AuditError {
    match error.kind() {
        ErrorKind::InvalidInput => {
            AuditError::Odd { path: path.to_owned(), why: error.to_string() }
        }
        _ => of_io(during, error),
    }
}

pub(super) fn of_io(during: &'static str, error: &io::Error) -> AuditError {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            AuditError::Full
        }
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => AuditError::ReadOnly,
        kind => AuditError::Io { during, kind },
    }
}
