//! What to do next, for every way in which a command of the daemon's own can fail.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::DaemonError;
use super::backup::BackupError;
use super::config::ConfigError;
use super::unit;
use crate::audit::AuditError;
use crate::cli::{self, Failure, Global, Report};
use crate::http::ListenError;
use crate::policy::PolicyError;
use crate::records::OfflineError;
use crate::sandbox;
use crate::store::StoreError;
use crate::token::{ModuleFault, TokenError};

/// Why a file that its user may read cannot be read again, and the ways round it.
const REPLACED: &str = "where its user may read it, it was replaced by another file, or lies in another \
     directory than at the start, and the sandbox lets this process read neither: write into the file that \
     was there (cat NEW > FILE) and reload, or restart: systemctl restart strongroom";

/// What to do about a file that others could change; the error names the command.
pub(super) const TRUST: &str = "make it root's (or its user's) alone to change, as the error says, once you have looked at what it holds";

/// What to do about a directory that belongs to another user than the daemon.
const RUN_AS_OWNER: &str =
    "run the daemon as that user, or give the directory to the daemon's user: chown -R USER: DIR";

/// What a command ends with: its report on stdout, or its error on stderr.
pub fn told(global: &Global, result: Result<Report, DaemonError>) -> ExitCode {
    cli::told(global, result.map_err(|error| error.failure()))
}

/// The same for a process that says nothing where it ends well. It ends, too, where stderr is not read.
pub fn ended(global: &Global, result: Result<(), DaemonError>) -> ExitCode {
    let (global, result) = (global.clone(), result.map_err(|error| error.failure()));
    let (sender, code) = std::sync::mpsc::channel();
    let unsaid = Arc::new(Mutex::new(Some((global, result))));
    let print = |unsaid: &Mutex<Option<_>>| {
        let unsaid = unsaid.lock().unwrap_or_else(PoisonError::into_inner).take();
        unsaid.map(|(global, result)| cli::finish(&global, result))
    };
    let shared = Arc::clone(&unsaid);
    match std::thread::Builder::new().spawn(move || sender.send(print(&shared))) {
        Ok(_) => code.recv_timeout(LAST_ERROR).ok().flatten().unwrap_or(ExitCode::FAILURE),
        // That no thread can be made may be what is to be said.
        Err(_) => print(&unsaid).unwrap_or(ExitCode::FAILURE),
    }
}

/// How long the end of a daemon waits for its last error to be read.
const LAST_ERROR: Duration = Duration::from_secs(1);

impl DaemonError {
    fn failure(&self) -> Failure {
        let (what, next) = (self.to_string(), self.next());
        match self {
            Self::WrongUse { .. } => Failure::wrong_use(what, next),
            _ => Failure::failed(what, next),
        }
    }

    /// The same of a daemon that was to read its files again, and may be shut in.
    pub(super) fn next_of_reload(&self) -> String {
        let kind = match self {
            Self::Config(ConfigError::Unreadable { error, .. })
            | Self::Policy(
                PolicyError::Directory { error, .. } | PolicyError::File { error, .. },
            ) => error.kind(),
            _ => return self.next(),
        };
        match kind {
            std::io::ErrorKind::PermissionDenied if sandbox::entered().is_some() => {
                REPLACED.to_owned()
            }
            _ => self.next(),
        }
    }

    /// The next step of whoever reads the error.
    pub(super) fn next(&self) -> String {
        let own = match self {
            Self::Config(error) => return of_config(error),
            Self::Refused { next, .. } => return next.clone(),
            Self::Said { next, .. } | Self::WrongUse { next, .. } => next,
            Self::Backup(error) => return of_backup(error),
            Self::Store(error) => of_store(error),
            Self::Trail(error) => of_trail(error),
            Self::Policy(error) => of_policy(error),
            Self::Recovery(error @ OfflineError::Token(TokenError::PinIncorrect(_))) => {
                of_recovery(error)
            }
            Self::Recovery(error @ OfflineError::Token(_)) => {
                return format!("{}{}", of_recovery(error), unit::hint());
            }
            Self::Recovery(error) => of_recovery(error),
            Self::StoreBehind { .. } => {
                "put the right one at [store] path of the configuration, or accept it as it is with \
                 [audit] on_break = \"record\""
            }
            Self::StoreLost(_) => {
                "look at its disk, then start the front again; what was acknowledged is there"
            }
            Self::Logging(_) => "see [log] target of the configuration",
            Self::Custody(_) => "see [custody] of the configuration, and the limits of its unit",
            Self::Records(_) => {
                "restore a backup, or name the right store at [store] path of the configuration"
            }
            Self::Module(ModuleFault::Untrusted(_)) => TRUST,
            Self::Module(_) => "install the token's PKCS#11 library, or name it at [token] module",
            Self::Untrusted(_) => TRUST,
            Self::User(_) => {
                "run it as root, or as the user whose directories they are: runuser -u USER --"
            }
            Self::Listen(ListenError::GroupRefused { group }) => {
                return format!(
                    "add the daemon's user to it: usermod -aG {group} USER (SupplementaryGroups={group} of the \
                     unit), or take a group that it is in, or leave [listen] group out"
                );
            }
            Self::Listen(_) => "see [listen] of the configuration",
            Self::Arena(_) => {
                "raise the limit of locked memory: LimitMEMLOCK= of the unit, `ulimit -l` of a shell"
            }
            Self::Harden(_) => "run it where the process may set its own limits",
            Self::Sandbox(_) => "see [sandbox] mode of the configuration",
            Self::Unsupervised | Self::Unconnected | Self::Closed => {
                "nothing, where systemd starts it anew"
            }
            Self::Io { .. } => {
                "look at the file, the disk and the limits that it is about; try again"
            }
        };
        own.to_owned()
    }
}

fn of_config(error: &ConfigError) -> String {
    use std::io::ErrorKind::{NotFound, PermissionDenied};
    match error {
        ConfigError::Unreadable { error, .. } => match error.kind() {
            NotFound => "give the path of the configuration: --config FILE",
            PermissionDenied => "run it as a user who may read it, such as root",
            _ => "give the path of a file: --config FILE",
        }
        .to_owned(),
        ConfigError::Untrusted(_) => TRUST.to_owned(),
        ConfigError::Malformed { .. } => {
            "correct it there; `strongroom config show` prints every setting and its default"
                .to_owned()
        }
        ConfigError::Unfit { path, .. } => format!(
            "correct it there; `strongroom config check --config {}` says whether it is sound",
            path.display()
        ),
    }
}

fn of_backup(error: &BackupError) -> String {
    let own = match error {
        BackupError::Archive(_) | BackupError::NoAppliance => "take another backup",
        BackupError::Token(_) => {
            let hint = unit::hint();
            return format!(
                "name the token that the backup was made with under [token], and its PIN (--pin-file){hint}"
            );
        }
        BackupError::NotEmpty(path) => {
            let path = path.display();
            return format!(
                "stop Strongroom, with its sockets, or the next caller starts it: systemctl stop \
                 strongroom.socket strongroom-custody.socket strongroom strongroom-custody; then move it \
                 away: mv {path} {path}.old"
            );
        }
        BackupError::CutOff { store, trail } => {
            let (store, trail) = (store.display(), trail.display());
            return format!(
                "delete what it left, and restore again: rm -rf {store} {trail}; strongroom backup restore \
                 FILE"
            );
        }
        BackupError::Place(_) => "name another one with --scratch",
        BackupError::Io { .. } => "see that this user may use it, and that its disk has room",
    };
    own.to_owned()
}

fn of_store(error: &StoreError) -> &'static str {
    match error {
        StoreError::InUse => {
            "stop the other one first (systemctl stop strongroom), or name another [store] path"
        }
        StoreError::Mode { .. } => "chmod 700 the directory at [store] path of the configuration",
        StoreError::Owner { .. } => RUN_AS_OWNER,
        StoreError::Odd { .. } => "look what it is, and move it away: mv",
        StoreError::Newer { .. } => "use the newer program",
        StoreError::Corrupt { .. } => "restore a backup: strongroom backup restore FILE",
        StoreError::Served { .. } => {
            "name the directory of a store, as [store] path of a configuration does, and see who may go there"
        }
        StoreError::Full => "make room on the disk that [store] path of the configuration lies on",
        _ => {
            "see [store] path of the configuration: the directory above it must be there, and its user \
             may write there"
        }
    }
}

/// What to do about a trail that could not be opened.
fn of_trail(error: &AuditError) -> &'static str {
    match error {
        AuditError::CutTail { .. } | AuditError::RolledBack { .. } | AuditError::Damaged { .. } => {
            "put the trail back from a copy; only if that cannot be, it is accepted as it is with \
             [audit] on_break = \"record\", and its line says so"
        }
        AuditError::InUse => "stop the other one first: systemctl stop strongroom",
        AuditError::Mode { .. } => {
            "chmod 700 the directory at [audit] directory of the configuration"
        }
        AuditError::Owner { .. } => RUN_AS_OWNER,
        AuditError::Odd { .. } => "look what it is, and move it away: mv",
        AuditError::Full => {
            "make room on the disk that [audit] directory of the configuration lies on"
        }
        _ => {
            "see [audit] directory of the configuration: the directory above it must be there, and its \
             user may write there"
        }
    }
}

pub(super) fn of_policy(error: &PolicyError) -> &'static str {
    match error {
        PolicyError::Directory { .. } | PolicyError::File { .. } => {
            "see [policy] directory of the configuration, and who may read there"
        }
        PolicyError::Untrusted(_) => TRUST,
        PolicyError::Invalid(_) => {
            "correct the files; `strongroom policy check` reads them without a daemon"
        }
        PolicyError::Role(_) => {
            "correct [policy.roles] of the configuration, or make the user or group"
        }
        PolicyError::Schema(_) => "report this: the program is broken",
    }
}

fn of_recovery(error: &OfflineError) -> &'static str {
    match error {
        OfflineError::PrivateKey(_) => {
            "give the private half of the recovery key, unencrypted: `openssl pkey -in recovery.key`, \
             piped in"
        }
        OfflineError::NoWrap(_) => {
            "take a copy or a backup of the store from after `strongroom recovery set`; what was never \
             wrapped to a recovery key opens with its token alone"
        }
        OfflineError::NotOpened { .. } | OfflineError::Changed(_) => {
            "take the private half of the key that was set, and a store that was written after that"
        }
        OfflineError::Edited => {
            "put the right store at [store] path: a copy that nobody changed, or a restored backup"
        }
        OfflineError::TokenInUse(_) => "name an empty token under [token] of the configuration",
        OfflineError::TokenOpens(_) => {
            "start the daemon; for a new master key in this token, `strongroom master rotate`. To go to \
             another token, name that one under [token]; to reseal under this one all the same: --same-token"
        }
        OfflineError::Token(TokenError::PinIncorrect(_)) => {
            "correct the PIN before it is run again"
        }
        OfflineError::Token(_) => {
            "see [token] of the configuration; `strongroom doctor --config FILE`"
        }
        OfflineError::Record(_) => "take a whole copy of the store of an initialised appliance",
    }
}
