//! Whether a file that is held open still lies where others look for it. A directory that was removed,
//! moved or replaced under a running daemon takes every write without a murmur.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::AuditError;

/// The path of an open file, and which file that was.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    file: (u64, u64),
}

impl Place {
    pub fn of(file: &File, path: &Path) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self { path: path.to_owned(), file: (found.dev(), found.ino()) })
    }

    /// Checks that the very file lies at the path; nothing is read.
    pub fn check(&self) -> Result<(), AuditError> {
        self.find().map(drop)
    }

    /// The same, and that it has this many bytes: a file may be truncated or written to in its place.
    pub fn check_length(&self, expected: u64) -> Result<(), AuditError> {
        match self.find()?.len() {
            found if found == expected => Ok(()),
            found => Err(AuditError::Resized { path: self.path.clone(), expected, found }),
        }
    }

    fn find(&self) -> Result<Metadata, AuditError> {
        match std::fs::metadata(&self.path) {
            Ok(found) if (found.dev(), found.ino()) == self.file => Ok(found),
            _ => Err(AuditError::Misplaced { path: self.path.clone() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_file_is_in_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let [path, other] = ["a", "b"].map(|name| directory.path().join(name));
        let file = File::create(&path).unwrap();
        let place = Place::of(&file, &path).unwrap();
        assert_eq!(place.check(), Ok(()));
        let gone = Err(AuditError::Misplaced { path: path.clone() });
        std::fs::rename(&path, &other).unwrap();
        assert_eq!(place.check(), gone);
        std::fs::copy(&other, &path).unwrap();
        assert_eq!(place.check(), gone, "a copy is not it");
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(place.check(), Ok(()));
        std::fs::write(&path, "line\n").unwrap();
        assert_eq!(place.check_length(5), Ok(()));
        let resized = |found| Err(AuditError::Resized { path: path.clone(), expected: 5, found });
        std::fs::write(&path, "").unwrap();
        assert_eq!(place.check_length(5), resized(0), "as copytruncate leaves it");
        std::fs::write(&path, "line\nmore\n").unwrap();
        assert_eq!(place.check_length(5), resized(10), "somebody else appends");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(place.check(), gone);
    }
}
