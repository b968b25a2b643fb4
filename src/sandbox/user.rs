//! Becomes another user for good: root does nothing by path in a directory that a lesser user owns.

use std::ffi::CString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::{
    Gid, Uid, User as Entry, geteuid, getgrouplist, setgroups, setresgid, setresuid, setuid,
};

/// Who a process is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    groups: Vec<u32>,
}

/// Why a process could not become somebody.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error(
        "this is done as uid {uid}, whose files they are, and uid {own} cannot become that: run it as root, \
         or as that user"
    )]
    NotRoot { uid: u32, own: u32 },
    #[error("uid {uid} could not be taken on: {errno}")]
    Refused { uid: u32, errno: Errno },
    #[error("uid {0} was taken on, and root could be again")]
    NotForGood(u32),
}

impl User {
    /// The user that this process is.
    pub fn current() -> Self {
        let (uid, gid) = (geteuid().as_raw(), nix::unistd::getegid().as_raw());
        Self { uid, gid, groups: Vec::new() }
    }

    /// The owner of a file or directory, in the group of that.
    pub fn owner_of(found: &Metadata) -> Self {
        Self { uid: found.uid(), gid: found.gid(), groups: Vec::new() }
    }

    /// A user with the groups that the machine's list of users gives it, if it is in that.
    pub fn of_uid(uid: u32) -> Self {
        let Some(entry) = Entry::from_uid(Uid::from_raw(uid)).ok().flatten() else {
            return Self { uid, gid: uid, groups: Vec::new() };
        };
        let groups = CString::new(entry.name).ok();
        let groups = groups.and_then(|name| getgrouplist(&name, entry.gid).ok());
        let groups = groups.unwrap_or_default().into_iter().map(Gid::as_raw).collect();
        Self { uid, gid: entry.gid.as_raw(), groups }
    }

    pub fn is_current(&self) -> bool {
        self.uid == geteuid().as_raw()
    }

    /// Whether this process may become it.
    pub fn check(&self) -> Result<(), UserError> {
        let own = geteuid().as_raw();
        match own == self.uid || own == 0 {
            true => Ok(()),
            false => Err(UserError::NotRoot { uid: self.uid, own }),
        }
    }

    /// Becomes it, in all threads, without a way back. Does nothing where the process is this user already.
    pub fn assume(&self) -> Result<(), UserError> {
        self.check()?;
        if self.is_current() {
            return Ok(());
        }
        let uid = self.uid;
        let refused = |errno| UserError::Refused { uid, errno };
        let groups: Vec<Gid> = self.groups.iter().map(|group| Gid::from_raw(*group)).collect();
        let (user, group) = (Uid::from_raw(uid), Gid::from_raw(self.gid));
        setgroups(&groups).map_err(refused)?;
        setresgid(group, group, group).map_err(refused)?;
        setresuid(user, user, user).map_err(refused)?;
        // A change of user may have opened it to tracers of the new one (prctl(2), PR_SET_DUMPABLE).
        prctl::set_dumpable(false).map_err(refused)?;
        match setuid(Uid::from_raw(0)) {
            Err(Errno::EPERM) if geteuid() == user => Ok(()),
            _ => Err(UserError::NotForGood(uid)),
        }
    }
}
