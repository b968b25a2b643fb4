//! Files of a directory that others may have written in: opened one name deep through the directory's own
//! descriptor, following no link, and taken only where they are what they should be.
//!
//! Whoever can write in a directory can plant a link under any name that is opened there; opened by path, it
//! leads anywhere that this process may go.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use rustix::process::geteuid;

/// An open directory.
pub struct Directory(OwnedFd);

/// What a file in it is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// To be read.
    Read,
    /// To be written; it must be there.
    Write,
    /// The same, at its end.
    Append,
    /// To be written; made where it is not there.
    Make,
    /// The same, at its end.
    MakeAppend,
    /// To be written; it must not be there.
    New,
}

impl Directory {
    /// Opens a directory; what leads to it is followed.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(openat(CWD, path, flags, Mode::empty())?))
    }

    /// Opens a regular file of this name. To be written in, it must have no other name, and be this user's
    /// or root's.
    ///
    /// # Errors
    /// Also where a link, a pipe or a device lies there: nothing is read or written then.
    pub fn file(&self, name: &OsStr, open: Open) -> io::Result<File> {
        // O_NONBLOCK: a pipe in the file's place must not hang this.
        let common = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let flags = common
            | match open {
                Open::Read => OFlags::RDONLY,
                Open::Write => OFlags::WRONLY,
                Open::Append => OFlags::WRONLY | OFlags::APPEND,
                Open::Make => OFlags::WRONLY | OFlags::CREATE,
                Open::MakeAppend => OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND,
                Open::New => OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL,
            };
        let mode = match open {
            Open::Read | Open::Write | Open::Append => Mode::empty(),
            _ => Mode::RUSR | Mode::WUSR,
        };
        let file =
            File::from(self.open_beneath(name, flags, mode).map_err(|errno| of(name, errno))?);
        let found = file.metadata()?;
        match is_plain(&found) || open == Open::Read && found.is_file() {
            true => Ok(file),
            false => Err(odd(name)),
        }
    }

    fn open_beneath(&self, name: &OsStr, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        if name.as_bytes().contains(&b'/') || matches!(name.as_bytes(), b"" | b"." | b"..") {
            return Err(Errno::INVAL);
        }
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match openat2(&self.0, name, flags, mode, resolve) {
            // A kernel before 5.6, or a container that does not know the call: one name deep, O_NOFOLLOW
            // says the same.
            Err(Errno::NOSYS | Errno::PERM) => openat(&self.0, name, flags, mode),
            opened => opened,
        }
    }

    /// Has names that were made or removed in it on disk.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.0)?)
    }
}

/// Opens a file of a directory by its path; the directory's own path is followed.
pub fn open_plain(path: &Path, open: Open) -> io::Result<File> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    Directory::open(parent)?.file(name, open)
}

/// Refuses a directory in which something lies that is neither a plain file of this user's nor a directory
/// with nothing but such, one level deep. For a library that opens by path what lies there.
pub fn all_plain(path: &Path) -> io::Result<()> {
    plain_in(path, 1)
}

fn plain_in(path: &Path, deeper: u8) -> io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        // Of the entry itself: a link is not followed.
        let found = entry.metadata()?;
        if found.is_dir() && deeper > 0 {
            match plain_in(&entry.path(), deeper - 1) {
                // As a file system's own lost+found is, which is root's.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                checked => checked?,
            }
        } else if !found.is_dir() && !is_plain(&found) {
            return Err(odd(&entry.file_name()));
        }
    }
    Ok(())
}

fn is_plain(found: &Metadata) -> bool {
    let own = geteuid().as_raw();
    found.is_file() && found.nlink() == 1 && (found.uid() == own || found.uid() == 0)
}

fn of(name: &OsStr, errno: Errno) -> io::Error {
    match errno {
        Errno::LOOP | Errno::NXIO => odd(name),
        errno => errno.into(),
    }
}

fn odd(name: &OsStr) -> io::Error {
    let name = name.to_string_lossy();
    let what = format!(
        "{} is a link, has a second name, belongs to another user or is not a file: it is not opened; look \
         who put it there, and move it away",
        name.escape_debug()
    );
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_but_a_plain_file_is_opened_and_nothing_else_is_touched() {
        let place = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let other = outside.path().join("other");
        std::fs::write(&other, "theirs").unwrap();
        let directory = Directory::open(place.path()).unwrap();
        let writing = [Open::Write, Open::Append, Open::Make, Open::MakeAppend, Open::New];
        let refused = |name: &str| {
            if name != "second-name" {
                assert!(directory.file(name.as_ref(), Open::Read).is_err(), "{name}");
            }
            for open in writing {
                assert!(directory.file(name.as_ref(), open).is_err(), "{name} {open:?}");
            }
            assert!(all_plain(place.path()).is_err(), "{name}");
            std::fs::remove_file(place.path().join(name)).unwrap();
        };
        symlink(&other, place.path().join("link")).unwrap();
        refused("link");
        symlink(outside.path().join("none"), place.path().join("dangling")).unwrap();
        refused("dangling");
        std::fs::hard_link(&other, place.path().join("second-name")).unwrap();
        refused("second-name");
        nix::unistd::mkfifo(&place.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        refused("pipe");
        assert!(!outside.path().join("none").exists());
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "theirs");
        for name in ["", ".", "..", "../other", "a/b"] {
            assert!(directory.file(name.as_ref(), Open::Make).is_err(), "{name}");
        }
        directory.file("new".as_ref(), Open::New).unwrap().write_all(b"a").unwrap();
        directory.file("new".as_ref(), Open::Append).unwrap().write_all(b"b").unwrap();
        assert!(directory.file("new".as_ref(), Open::New).is_err());
        assert_eq!(std::fs::read_to_string(place.path().join("new")).unwrap(), "ab");
        all_plain(place.path()).unwrap();
    }
}
