//! Asks as other Unix users: what the kernel tells of a connection is that of the thread that made it.
#![allow(unsafe_code)] // credentials of one thread alone can only be changed by the raw system calls

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::appliance::{Appliance, JSON, Reply};

/// Somebody else on this machine; needs no entry in passwd.
#[derive(Clone, Copy, Debug)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: &'static [u32],
}

impl User {
    pub const fn new(uid: u32) -> Self {
        Self { uid, gid: uid, groups: &[] }
    }

    /// Does something on a thread that is this user.
    pub fn does<T: Send>(self, deed: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                self.become_it();
                deed()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn become_it(self) {
        // SAFETY: the kernel reads `groups.len()` numbers from a live slice; the raw calls change the
        // calling thread alone, which ends with the deed.
        let done = unsafe {
            libc::syscall(libc::SYS_setgroups, self.groups.len(), self.groups.as_ptr()) == 0
                && libc::syscall(libc::SYS_setresgid, self.gid, self.gid, self.gid) == 0
                && libc::syscall(libc::SYS_setresuid, self.uid, self.uid, self.uid) == 0
        };
        assert!(done, "cannot be another user: run these tests as root");
    }

    /// One request as this user.
    pub fn asks(
        self,
        appliance: &Appliance,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Reply {
        self.does(|| match body {
            Some(body) => appliance.request(method, path, JSON, body.to_string().as_bytes()),
            None => appliance.request(method, path, "", b""),
        })
    }
}

/// Lets every user of the machine reach the socket; what else lies there is closed by its own modes.
pub fn open_to_all(appliance: &Appliance) {
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(appliance.path(""), open).expect("changed");
}
