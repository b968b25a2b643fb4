//! The directory itself: opened once, never left by a link, and nobody else's.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, Metadata, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, renameat, unlinkat,
};
use rustix::process::{Gid, Uid, geteuid};

/// Why custody's state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("custody's state {}: {cause}, while {during}", path.display())]
    Io { path: PathBuf, during: &'static str, cause: io::Error },
    #[error(
        "custody's state: {} {why}; give it to custody's user alone (chown, chmod {mode:03o}), or name another \
         [custody] state_directory",
        path.display()
    )]
    Unsafe { path: PathBuf, why: String, mode: u32 },
    #[error(
        "custody's state: {} is damaged, or was not written by this version; put it back from a copy, or move \
         it away, and say what is right with `strongroom accept-rollback`",
        .0.display()
    )]
    Damaged(PathBuf),
    #[error("custody's state: {} would be longer than custody reads; nothing was noted", .0.display())]
    TooLong(PathBuf),
    #[error("custody's state {} is in use by another custody; end that one", .0.display())]
    InUse(PathBuf),
}

/// An open directory that only this user can change, with its lock.
pub(super) struct Directory {
    directory: File,
    path: PathBuf,
    /// A section was there.
    found: AtomicBool,
    /// The files that could not be written the last time, and why.
    trouble: Mutex<BTreeMap<String, String>>,
    _lock: File,
}

/// How long the lock is waited for: a custody that ends takes a moment.
const TRIES: u32 = 60;
const PAUSE: Duration = Duration::from_millis(50);

const OPEN: OFlags = OFlags::CLOEXEC.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK);
const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Whether the next custody could take the directory as it is now. Nothing is opened: this one may not open a
/// directory that was put in the place of its own.
pub fn check_directory(path: &Path) -> Result<(), StateError> {
    let looked =
        |path: &Path| path.symlink_metadata().map_err(|cause| of_io(path, "looking at it", cause));
    let parent = parent_of(path);
    judge_parent(
        parent,
        &parent.metadata().map_err(|cause| of_io(parent, "looking at it", cause))?,
    )?;
    let found = looked(path)?;
    let (owner, mode) = (found.uid(), found.mode() & 0o777);
    if !found.is_dir() || owner != geteuid().as_raw() || mode & 0o077 != 0 {
        let why = format!("belongs to user {owner}, mode {mode:03o}, or is no directory");
        return Err(StateError::Unsafe { path: path.to_owned(), why, mode: 0o700 });
    }
    Ok(())
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Whoever may rename the directory away has custody forget.
fn judge_parent(parent: &Path, found: &Metadata) -> Result<(), StateError> {
    let is_sticky = found.mode() & 0o1000 != 0;
    let is_ours = found.uid() == 0 || found.uid() == geteuid().as_raw();
    if !is_ours || (found.mode() & 0o022 != 0 && !is_sticky) {
        let why = format!("belongs to user {}, mode {:03o}", found.uid(), found.mode() & 0o777);
        return Err(StateError::Unsafe { path: parent.to_owned(), why, mode: 0o755 });
    }
    Ok(())
}

impl Directory {
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let failed = |during| move |cause| of_io(path, during, cause);
        let parent = parent_of(path);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .map_err(failed("making what it lies in"))?;
        let parent_file = File::open(parent).map_err(failed("opening what it lies in"))?;
        let found = parent_file.metadata().map_err(failed("opening what it lies in"))?;
        judge_parent(parent, &found)?;
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => parent_file.sync_all().map_err(failed("making it"))?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(of_io(path, "making it", error)),
        }
        let directory = open_directory(path)?;
        must_be_ours(&directory, path, 0o700)?;
        let lock = openat(&directory, "lock", OPEN | OFlags::CREATE | OFlags::WRONLY, PRIVATE)
            .map(File::from)
            .map_err(|errno| of_io(path, "opening its lock", errno.into()))?;
        must_be_ours(&lock, &path.join("lock"), 0o600)?;
        take_lock(&lock, path)?;
        Ok(Self {
            directory,
            path: path.to_owned(),
            found: AtomicBool::new(false),
            trouble: Mutex::default(),
            _lock: lock,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Notes that a section was there, or not.
    pub fn note_found(&self, found: bool) {
        self.found.fetch_or(found, Ordering::Relaxed);
    }

    pub fn has_found(&self) -> bool {
        self.found.load(Ordering::Relaxed)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.json"))
    }

    pub fn damaged(&self, name: &str) -> StateError {
        StateError::Damaged(self.file(name))
    }

    /// All of a file, `None` where there is none. One that is longer than `most` is damaged.
    pub fn read(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.file(name);
        let Some(file) = self.open_file(&path)? else { return Ok(None) };
        must_be_ours(&file, &path, 0o600)?;
        contents(&file, &path, most).map(Some)
    }

    /// Removes a file, durably, where there is one.
    pub fn remove(&self, name: &str) -> Result<(), StateError> {
        let path = self.file(name);
        match unlinkat(&self.directory, file_name(&path), AtFlags::empty()) {
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            removed => removed.map_err(io::Error::from),
        }
        .and_then(|()| self.directory.sync_all())
        .map_err(|cause| of_io(&path, "removing it", cause))
    }

    /// Why one of its files could not be written the last time.
    pub fn first_trouble(&self) -> Option<String> {
        self.trouble().values().next().cloned()
    }

    fn trouble(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what came of writing a file; the journal is told once whenever that changes.
    fn note(&self, name: &str, written: &Result<(), StateError>) {
        let mut known = self.trouble();
        match written {
            Ok(()) => {
                if known.remove(name).is_some() && known.is_empty() {
                    tracing::info!(path = %self.path.display(), "custody's state can be written again");
                }
            }
            Err(error) => {
                let error = error.to_string();
                if known.is_empty() {
                    tracing::error!(
                        error,
                        "custody's state cannot be written: until it can, no checkpoint is signed, no PIN is \
                         tried and no token is opened. Free some room on its file system, or mend its \
                         permissions"
                    );
                }
                known.insert(name.to_owned(), error);
            }
        }
    }

    /// Replaces a file; durable when this returns.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.file(name);
        let written = replace(&self.directory, file_name(&path), bytes, None)
            .map_err(|cause| of_io(&path, "writing it", cause));
        self.note(name, &written);
        written
    }

    /// Writes a few bytes beside a file and takes them back, without waiting for the disk.
    pub fn probe(&self, name: &str) -> Result<(), StateError> {
        let path = self.file(name);
        let new = file_name(&path).with_extension("new");
        let tried = make_new(&self.directory, &new)
            .and_then(|mut file| file.write_all(&[b' '; 64]))
            .and_then(|()| Ok(unlinkat(&self.directory, &new, AtFlags::empty())?))
            .map_err(|cause| of_io(&path, "writing it", cause));
        self.note(name, &tried);
        tried
    }

    fn open_file(&self, path: &Path) -> Result<Option<File>, StateError> {
        match openat(&self.directory, file_name(path), OPEN | OFlags::RDONLY, Mode::empty()) {
            Ok(file) => Ok(Some(File::from(file))),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(errno) => Err(of_io(path, "opening it", errno.into())),
        }
    }
}

/// Puts a file that custody takes as an order ([`super::State::read_order`]) into the directory at `path`,
/// for the directory's owner. For root and custody's user, beside a custody that runs.
///
/// # Errors
/// [`StateError`] where the directory is not there or belongs to neither.
pub fn leave_order(path: &Path, name: &str, bytes: &[u8]) -> Result<(), StateError> {
    leave_in(&open_without_links(path)?, path, name, bytes)
}

fn leave_in(directory: &File, path: &Path, name: &str, bytes: &[u8]) -> Result<(), StateError> {
    let found = directory.metadata().map_err(|cause| of_io(path, "opening it", cause))?;
    if found.mode() & 0o077 != 0 {
        let why = format!("has mode {:03o}", found.mode() & 0o777);
        return Err(StateError::Unsafe { path: path.to_owned(), why, mode: 0o700 });
    }
    let owner = (Uid::from_raw(found.uid()), Gid::from_raw(found.gid()));
    replace(directory, format!("{name}.json").as_ref(), bytes, Some(owner))
        .map_err(|cause| of_io(path, "writing an order", cause))
}

/// An empty file in the place of such an order, to be filled by a process that has become another user since:
/// while it is empty it orders nothing. Makes the directory for `owner` where there is none.
///
/// # Errors
/// [`StateError`] where this user may not write there.
pub fn prepare_order(path: &Path, name: &str, owner: (u32, u32)) -> Result<File, StateError> {
    let failed = |during| move |cause: io::Error| of_io(path, during, cause);
    let parent = open_without_links(path.parent().unwrap_or(path))?;
    let is_new = match mkdirat(&parent, file_name(path), Mode::RWXU) {
        Ok(()) => true,
        Err(rustix::io::Errno::EXIST) => false,
        Err(errno) => return Err(failed("making it")(errno.into())),
    };
    let directory = openat(&parent, file_name(path), OPEN | OFlags::DIRECTORY, Mode::empty())
        .map(File::from)
        .map_err(|errno| failed("opening it")(errno.into()))?;
    let found = directory.metadata().map_err(failed("opening it"))?;
    if found.uid() != owner.0 && found.uid() != geteuid().as_raw() {
        let why = format!("belongs to user {}", found.uid());
        return Err(StateError::Unsafe { path: path.to_owned(), why, mode: 0o700 });
    }
    if is_new && owner.0 != geteuid().as_raw() {
        let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
        rustix::fs::fchown(&directory, Some(uid), Some(gid))
            .map_err(|errno| failed("making it")(errno.into()))?;
    }
    leave_in(&directory, path, name, b"")?;
    let file = openat(&directory, format!("{name}.json"), OPEN | OFlags::WRONLY, Mode::empty())
        .map(File::from)
        .map_err(|errno| failed("opening an order")(errno.into()))?;
    let order = file.metadata().map_err(failed("opening an order"))?;
    match order.is_file() && order.nlink() == 1 && order.len() == 0 {
        true => Ok(file),
        false => Err(failed("opening an order")(ErrorKind::InvalidData.into())),
    }
}

/// Opens a directory for root, in whose path a lesser user may have put a link.
fn open_without_links(path: &Path) -> Result<File, StateError> {
    let flags = OPEN | OFlags::DIRECTORY | OFlags::RDONLY;
    openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS).map(File::from).map_err(
        |errno| match errno {
            rustix::io::Errno::LOOP => StateError::Unsafe {
                path: path.to_owned(),
                why: "is reached by a symbolic link; name its real path".to_owned(),
                mode: 0o700,
            },
            errno => of_io(path, "opening it", errno.into()),
        },
    )
}

/// Writes a new file beside the old one, syncs it, renames it, and syncs the directory.
fn replace(
    directory: &File,
    name: &Path,
    bytes: &[u8],
    owner: Option<(Uid, Gid)>,
) -> io::Result<()> {
    let new = name.with_extension("new");
    let mut file = make_new(directory, &new)?;
    let written = file
        .write_all(bytes)
        .and_then(|()| match owner {
            Some((uid, gid)) if uid != geteuid() => {
                Ok(rustix::fs::fchown(&file, Some(uid), Some(gid))?)
            }
            _ => Ok(()),
        })
        .and_then(|()| file.sync_all())
        .and_then(|()| Ok(renameat(directory, &new, directory, name)?))
        .and_then(|()| directory.sync_all());
    if written.is_err() {
        let _ = unlinkat(directory, &new, AtFlags::empty());
    }
    written
}

/// An empty file of this name, in the place of what a kill has left.
fn make_new(directory: &File, name: &Path) -> io::Result<File> {
    match unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OPEN | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    Ok(File::from(openat(directory, name, flags, PRIVATE)?))
}

fn open_directory(path: &Path) -> Result<File, StateError> {
    openat(CWD, path, OPEN | OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())
        .map(File::from)
        .map_err(|errno| of_io(path, "opening it", errno.into()))
}

fn take_lock(lock: &File, path: &Path) -> Result<(), StateError> {
    for _ in 0..TRIES {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
            Err(TryLockError::Error(error)) => return Err(of_io(path, "locking it", error)),
        }
    }
    Err(StateError::InUse(path.to_owned()))
}

/// A file or directory of this very user, which nobody else may open, and no second name of another's.
fn must_be_ours(file: &File, path: &Path, mode: u32) -> Result<(), StateError> {
    let found = file.metadata().map_err(|cause| of_io(path, "looking at it", cause))?;
    let is_plain = found.is_dir() || (found.is_file() && found.nlink() == 1);
    let why = if found.uid() != geteuid().as_raw() {
        format!("belongs to user {}", found.uid())
    } else if found.mode() & 0o077 != 0 {
        format!("has mode {:03o}", found.mode() & 0o777)
    } else if !is_plain {
        "is no ordinary file with one name".to_owned()
    } else {
        return Ok(());
    };
    Err(StateError::Unsafe { path: path.to_owned(), why, mode })
}

fn contents(file: &File, path: &Path, most: u64) -> Result<Vec<u8>, StateError> {
    let mut bytes = Vec::new();
    file.take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(|cause| of_io(path, "reading it", cause))?;
    if bytes.len() as u64 > most {
        return Err(StateError::Damaged(path.to_owned()));
    }
    Ok(bytes)
}

fn file_name(path: &Path) -> &Path {
    path.file_name().map_or(path, Path::new)
}

fn of_io(path: &Path, during: &'static str, cause: io::Error) -> StateError {
    StateError::Io { path: path.to_owned(), during, cause }
}
