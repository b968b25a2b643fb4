//! What is written is durable, and known to be.

use std::fs::File;
use std::io;

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
    fn what_cannot_be_synced_is_an_error() {
        let (reader, _writer) = io::pipe().unwrap();
        assert!(sync_data(&File::from(std::os::fd::OwnedFd::from(reader))).is_err());
    }
}
