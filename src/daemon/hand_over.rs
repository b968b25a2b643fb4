//! What root writes into somebody else's directory is given to its owner, who may do with the directory
//! what they like meanwhile: only what was opened is given, never what a path leads to.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{CWD, Dir, Mode, OFlags, fchown, openat};
use rustix::process::{Gid, Uid, geteuid};

/// Gives a directory and all in it that is ours to `owner`, and has it on disk. Follows no link.
pub fn hand_over(path: &Path, owner: (u32, u32)) -> io::Result<()> {
    let opened = openat(CWD, path, FLAGS | OFlags::DIRECTORY, Mode::empty())?;
    give(opened, owner)
}

/// A pipe in a file's place must not hang this.
const FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

fn give(opened: OwnedFd, owner: (u32, u32)) -> io::Result<()> {
    let file = File::from(opened);
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        for entry in Dir::read_from(&file)? {
            let entry = entry?;
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            give(openat(&file, entry.file_name(), FLAGS, Mode::empty())?, owner)?;
        }
    }
    // Its contents first: it is not the owner's before there is nothing more to do in it.
    if (metadata.uid(), metadata.gid()) != owner && is_ours(&metadata) {
        fchown(&file, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)))?;
    }
    file.sync_all()
}

/// A file with a second name may be somebody else's file.
fn is_ours(metadata: &Metadata) -> bool {
    let plain = metadata.is_dir() || (metadata.is_file() && metadata.nlink() == 1);
    plain && metadata.uid() == geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_leads_nowhere_and_a_second_name_gives_nothing_away() {
        if !geteuid().is_root() {
            return;
        }
        let place = tempfile::tempdir().unwrap();
        let (inside, outside) = (place.path().join("in"), place.path().join("out"));
        std::fs::create_dir_all(inside.join("deep")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        for path in [inside.join("deep/own"), outside.join("linked"), outside.join("other")] {
            std::fs::write(path, "").unwrap();
        }
        std::fs::hard_link(outside.join("linked"), inside.join("second-name")).unwrap();
        let owner = (65_534, 65_534);
        hand_over(&inside, owner).unwrap();
        let uid = |path: &str| place.path().join(path).symlink_metadata().unwrap().uid();
        assert_eq!((uid("in"), uid("in/deep"), uid("in/deep/own")), (65_534, 65_534, 65_534));
        assert_eq!(uid("out/linked"), 0);
        std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
        assert!(hand_over(&inside, owner).is_err(), "a link within is refused");
        assert!(hand_over(&inside.join("link"), owner).is_err(), "so is one in its place");
        assert_eq!((uid("out"), uid("out/other")), (0, 0));
    }
}
