//! Whether a path is a mount point: nobody can rename one.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Whether something is mounted at `path`, also where it is a part of the same file system; a link to a
/// mount point is none.
pub fn is_mount_point(path: &Path) -> io::Result<bool> {
    let (Ok(found), Some(parent), Some(name)) =
        (path.symlink_metadata(), path.parent(), path.file_name())
    else {
        return Ok(false);
    };
    let parent = parent.canonicalize()?;
    if found.dev() != parent.metadata()?.dev() {
        return Ok(true);
    }
    let path = parent.join(name);
    let mounts = std::fs::read("/proc/self/mountinfo")?;
    Ok(mount_points(&mounts).any(|at| at == path))
}

/// The fifth field of each line (proc_pid_mountinfo(5)).
fn mount_points(mounts: &[u8]) -> impl Iterator<Item = PathBuf> {
    let lines = mounts.split(|&byte| byte == b'\n');
    lines.filter_map(|line| Some(unescaped(line.split(|&byte| byte == b' ').nth(4)?)))
}

/// Space, tab, newline and backslash stand there as three octal digits behind a backslash.
fn unescaped(field: &[u8]) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::with_capacity(field.len()), field);
    while let [first, after @ ..] = rest {
        let digits = after.first_chunk::<3>().filter(|_| *first == b'\\');
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn what_is_mounted_is_told_from_what_is_not() {
        assert!(is_mount_point(Path::new("/proc")).unwrap());
        let directory = tempfile::tempdir().unwrap();
        assert!(!is_mount_point(directory.path()).unwrap());
        assert!(!is_mount_point(&directory.path().join("none")).unwrap());
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/proc", &link).unwrap();
        assert!(!is_mount_point(&link).unwrap());
        let line = b"36 35 98:0 /a /mnt\\040of\\134mine rw - ext3 /dev/root rw\n\n";
        let found: Vec<PathBuf> = mount_points(line).collect();
        assert_eq!(found, [Path::new("/mnt of\\mine")]);
        assert_eq!(unescaped(b"/a\\9").as_os_str().as_bytes(), b"/a\\9");
    }
}
