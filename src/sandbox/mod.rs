//! What a process of ours may still do once it has started: which files it opens (Landlock), which
//! system calls it makes (seccomp). For good, for all its threads and children, whoever owns its code.
//!
//! The kernel asks for no privilege to give rights up, so this holds without systemd, too. It is entered
//! before the first thread starts: a thread that was there earlier would stay free.

mod calls;
mod directory;
mod files;
pub mod trusted;
mod user;

use std::fmt;
use std::path::PathBuf;
use std::sync::OnceLock;

use nix::sys::prctl;
use nix::sys::stat::{Mode as StatMode, umask};
use serde::{Deserialize, Serialize};

pub use directory::{Directory, Open, all_plain, open_plain};
pub use trusted::Untrusted;
pub use user::{User, UserError};

/// Whether a process without a sandbox may serve.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It may not: a kernel that lacks a part keeps it from starting.
    Require,
    /// Each part that the kernel has is entered, and must be; what it lacks, `doctor` names.
    #[default]
    Available,
    /// There is none.
    Off,
}

/// The `[sandbox]` part of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    pub mode: Mode,
    /// Whether the front may ask daemons of this machine for users and groups that policy names: sssd, LDAP,
    /// systemd-homed. It may then connect to any Unix socket that is open to its user.
    pub directory_services: bool,
    /// Files and directories that the front reads besides, such as those of a module of the name service that
    /// policy's users and groups come from.
    pub read: Vec<PathBuf>,
}

/// Which sockets may still be made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sockets {
    /// Nothing is connected to, and nothing sent to an address: what is connected before stays so.
    #[default]
    None,
    /// Every Unix socket, and netlink, for daemons of this machine.
    Local,
    /// Those of the network as well.
    Network,
}

/// What a process needs once it serves; a path that is not there is left out.
#[derive(Debug, Clone, Default)]
pub struct Needs {
    /// Files, and directories with all beneath them.
    pub read: Vec<PathBuf>,
    /// The same, to write, make and remove in; devices too.
    pub write: Vec<PathBuf>,
    /// Directories in which a socket is put and replaced.
    pub socket_in: Vec<PathBuf>,
    /// Never granted, though it may lie beneath what is: its siblings are granted one by one instead.
    pub never: Vec<PathBuf>,
    pub sockets: Sockets,
    /// Whether it makes a Unix socket to listen on.
    pub listens: bool,
    /// Whether its log lines go to the journal's socket, each to its address: datagrams to any other that its
    /// user may write to cannot be told from them.
    pub journal: bool,
    /// Whether it speaks to others by shared memory, message queues and semaphores that have a name.
    pub ipc: bool,
    /// Whether it changes who may open a file. One that may not makes files for its own user alone.
    pub modes: bool,
    /// Whether it stays one process: what it would leave behind could use its connections after its end.
    pub alone: bool,
}

/// Why a process could not be shut in.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("{part} is not in force: {why}; [sandbox] mode = \"require\" asks for it")]
    Missing { part: &'static str, why: String },
    #[error("{part} could not be entered: {why}")]
    Refused { part: &'static str, why: String },
    #[error("{0} threads run already, and would stay outside")]
    Late(usize),
}

/// What is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The version of Landlock's interface that is used; 0 where the kernel has none.
    pub landlock: u8,
    pub seccomp: bool,
    mode: Mode,
}

impl Report {
    /// Whether everything is in force that this program knows of.
    pub fn is_whole(&self) -> bool {
        self.landlock >= files::NEWEST && self.seccomp
    }

    /// Why it is not, and what would change that; empty where it is.
    pub fn remedy(&self) -> &'static str {
        match (self.mode, self.is_whole()) {
            (_, true) => "",
            (Mode::Off, _) => "[sandbox] mode",
            _ => "a kernel with Landlock (Linux 6.12 or newer has all of it) and seccomp",
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.mode == Mode::Off {
            return f.write_str("off");
        }
        match self.landlock {
            0 => f.write_str("no Landlock: any file of its user can be opened")?,
            version if version < files::NEWEST => {
                write!(f, "Landlock {version} of {}", files::NEWEST)?
            }
            version => write!(f, "Landlock {version}")?,
        }
        f.write_str(if self.seccomp { ", seccomp" } else { ", no seccomp" })
    }
}

static ENTERED: OnceLock<Report> = OnceLock::new();

/// What this process has entered; nothing before [`enter`].
pub fn entered() -> Option<&'static Report> {
    ENTERED.get()
}

/// Whether it is this process's sandbox alone that keeps it from reading a file or directory: its user may.
pub fn hides(path: &std::path::Path) -> bool {
    let may = nix::unistd::eaccess(path, nix::unistd::AccessFlags::R_OK);
    entered().is_some_and(|report| report.landlock > 0) && may.is_ok()
}

/// Shuts this process in. The process must have one thread, and does not come out again.
///
/// # Errors
/// Where a part that has to be in force is not: the process must not go on then.
pub fn enter(settings: &Settings, needs: &Needs) -> Result<&'static Report, SandboxError> {
    let report = match settings.mode {
        Mode::Off => Report { landlock: 0, seccomp: false, mode: Mode::Off },
        mode => {
            alone()?;
            let refused = |errno: nix::errno::Errno| SandboxError::Refused {
                part: "no_new_privs",
                why: errno.to_string(),
            };
            prctl::set_no_new_privs().map_err(refused)?;
            let landlock = files::enter(needs)?;
            if landlock == 0 && mode == Mode::Require {
                let why = "this kernel was built or started without it".to_owned();
                return Err(SandboxError::Missing { part: "Landlock", why });
            }
            if !needs.modes {
                umask(StatMode::from_bits_truncate(0o077));
            }
            let seccomp = calls::enter(needs)?;
            if !seccomp && mode == Mode::Require {
                let why = "this kernel was built without it".to_owned();
                return Err(SandboxError::Missing { part: "seccomp", why });
            }
            Report { landlock, seccomp, mode }
        }
    };
    Ok(ENTERED.get_or_init(|| report))
}

/// Landlock and seccomp are entered by a thread, and by those that it starts.
fn alone() -> Result<(), SandboxError> {
    match std::fs::read_dir("/proc/self/task").map(Iterator::count) {
        Ok(1) | Err(_) => Ok(()),
        Ok(threads) => Err(SandboxError::Late(threads)),
    }
}
