//! File systems of a test's own: mounted where nobody else sees them, gone with the test.
#![allow(unsafe_code)] // unshare(2), mount(2), umount2(2)

use std::ffi::CString;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;

/// From here on this thread, and what it starts, has its mounts to itself: they go with the last of them,
/// whatever happens.
pub fn own_mounts() {
    assert!(nix::unistd::geteuid().is_root(), "only root can mount; run the tests as root");
    // SAFETY: it changes what this thread sees of the file systems, and no memory.
    let apart = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    assert_eq!(apart, 0, "unshare: {}", io::Error::last_os_error());
    let (none, root) = (c"none", c"/");
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: the strings end with a NUL and live long enough; no data.
    let made =
        unsafe { libc::mount(none.as_ptr(), root.as_ptr(), ptr::null(), flags, ptr::null()) };
    assert_eq!(made, 0, "mounts cannot be made private: {}", io::Error::last_os_error());
}

/// mount(2).
pub fn mount(source: &str, target: &Path, kind: &str, options: &str) {
    let (source, at, kind, options) = (c(source), c(target), c(kind), c(options));
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    // SAFETY: all four strings end with a NUL and live until the call is over.
    let mounted = unsafe {
        libc::mount(
            source.as_ptr(),
            at.as_ptr(),
            kind.as_ptr(),
            flags,
            options.as_ptr().cast::<libc::c_void>(),
        )
    };
    let error = io::Error::last_os_error();
    assert_eq!(mounted, 0, "{kind:?} cannot be mounted at {}: {error}", target.display());
}

/// Unmounts, at once for all who look from here; what is still open is closed by its users.
pub fn detach(target: &Path) {
    let at = c(target);
    // SAFETY: the string ends with a NUL and lives until the call is over.
    unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
}

fn c(text: impl AsRef<std::ffi::OsStr>) -> CString {
    CString::new(text.as_ref().as_bytes()).expect("no NUL")
}

/// An ext4 of an image, mounted over a loop device that goes when it is unmounted.
pub struct Ext4 {
    at: PathBuf,
}

impl Ext4 {
    /// An empty file system of so many MiB.
    pub fn image(mebibytes: u64, scratch: &Path) -> Vec<u8> {
        let file = scratch.join("empty.ext4");
        let made = std::fs::File::create(&file).and_then(|file| file.set_len(mebibytes << 20));
        made.expect("room for an image");
        let made = Command::new("mkfs.ext4")
            .args(["-q", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"])
            .arg(&file)
            .status();
        assert!(made.expect("mkfs.ext4: apt-get install e2fsprogs").success());
        let image = std::fs::read(&file).expect("readable");
        std::fs::remove_file(file).expect("removed");
        image
    }

    /// Mounts what lies in `file` at `at`, with the options that a plain mount has.
    pub fn mount(file: &Path, at: &Path) -> Self {
        std::fs::create_dir_all(at).expect("a directory");
        let output = Command::new("mount")
            .args(["-t", "ext4", "-o", "loop"])
            .args([file, at])
            .output()
            .expect("mount: apt-get install mount");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "no ext4 over a loop device here (root?): {text}");
        Self { at: at.to_owned() }
    }

    /// What the kernel shows of it: a directory of /sys/fs/ext4.
    pub fn sysfs(&self) -> PathBuf {
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").expect("readable");
        let at = self.at.to_str().expect("UTF-8");
        let line = mounts.lines().find(|line| line.split(' ').nth(4) == Some(at));
        let device = line.and_then(|line| line.split(" - ").nth(1)?.split(' ').nth(1));
        let name = device.and_then(|device| device.rsplit('/').next()).expect("a loop device");
        Path::new("/sys/fs/ext4").join(name)
    }

    /// Until the result is dropped nothing is written to it, and who tries waits.
    pub fn freeze(&self) -> Frozen {
        let root = std::fs::File::open(&self.at).expect("a directory");
        // SAFETY: the call takes no argument that it reads.
        let done = unsafe { libc::ioctl(root.as_raw_fd(), FIFREEZE, 0) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
        Frozen(root)
    }

    /// Unmounts it for good: nobody may have anything open in it.
    pub fn unmount(self) {
        let target = c(&self.at);
        // SAFETY: the string ends with a NUL and lives until the call is over.
        let done = || unsafe { libc::umount2(target.as_ptr(), 0) } == 0;
        crate::appliance::wait_until("the file system to be free", done);
        std::mem::forget(self);
    }
}

/// A file system that is frozen for as long as this lives.
pub struct Frozen(std::fs::File);

// linux/fs.h: _IOWR('X', 119, int) and _IOWR('X', 120, int).
const FIFREEZE: libc::Ioctl = 0xC004_5877_u32 as libc::Ioctl;
const FITHAW: libc::Ioctl = 0xC004_5878_u32 as libc::Ioctl;

impl Drop for Frozen {
    fn drop(&mut self) {
        // SAFETY: the call takes no argument that it reads.
        unsafe { libc::ioctl(self.0.as_raw_fd(), FITHAW, 0) };
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        detach(&self.at);
    }
}
