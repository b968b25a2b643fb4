//! What is written is durable, and known to be; what was never finished is not taken for it.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// Syncs what was written to `file`, whose first byte must have been written before, and makes sure that
/// the file system still commits.
///
/// A journal that is being shut down for an error can take a commit as done that it has only given up:
/// `fdatasync` then succeeds and nothing is on the disk. Whatever begins a change of the file system
/// after that is refused; so one is begun that changes nothing.
///
/// # Errors
/// Where the sync or the change is refused; what was written may then be lost.
pub fn sync_data(file: &File) -> io::Result<()> {
    file.sync_data()?;
    match fallocate(file, FallocateFlags::KEEP_SIZE, 0, 1) {
        // Of a file system without this no such journal is known.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes the snapshot of its log that sled was writing when it ended. It writes one whenever it opens, under
/// a name that it takes for a snapshot's the next time: half of one, as a full disk or a crash leaves it, is
/// then "a bad checksum". What it was made of is all there until it has its own name.
///
/// Nobody else may have the store open.
pub fn remove_unfinished_snapshots(store: &Path) -> io::Result<()> {
    for entry in store.read_dir()? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn it_leaves_the_file_as_it_is() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"line\n").unwrap();
        sync_data(&file).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 5);
    }

    #[test]
    fn only_what_is_unfinished_is_removed() {
        let store = tempfile::tempdir().unwrap();
        let names = ["db", "snap.0000000000000123", "snap.0000000000000456.generating"];
        for name in names {
            std::fs::write(store.path().join(name), name).unwrap();
        }
        remove_unfinished_snapshots(store.path()).unwrap();
        assert_eq!(names.map(|name| store.path().join(name).exists()), [true, true, false]);
    }

    #[test]
    fn what_cannot_be_synced_is_an_error() {
        let (reader, _writer) = io::pipe().unwrap();
        assert!(sync_data(&File::from(std::os::fd::OwnedFd::from(reader))).is_err());
    }
}
