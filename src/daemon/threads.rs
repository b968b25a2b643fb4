//! Whether this process may make threads, checked before the first one is needed.

use nix::errno::Errno;

use super::{DaemonError, io};

/// Makes one thread and waits for its end.
///
/// # Errors
/// What forbids it. glibc makes threads with clone3, and in another way where the kernel says that it has no
/// such call; a container runtime that is older than the call says that it is forbidden instead.
pub fn check() -> Result<(), DaemonError> {
    match std::thread::Builder::new().spawn(|| {}) {
        Ok(thread) => {
            let _ = thread.join();
            Ok(())
        }
        Err(cause) if cause.raw_os_error() == Some(Errno::EPERM as i32) => Err(DaemonError::Said {
            what: format!("no thread can be started, clone3 is forbidden: {cause}"),
            next: "update the container runtime (Docker 20.10.10, runc 1.0.0, libseccomp 2.5 or newer), or \
                   allow clone3 in its seccomp profile",
        }),
        Err(cause) => Err(io("starting a thread")(cause)),
    }
}
