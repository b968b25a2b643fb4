//! The daemon's two processes, put together from their parts: start, signals, reload, graceful stop.

mod accept;
mod advice;
mod backup;
mod binary;
mod child;
mod config;
mod config_check;
mod custody;
mod descriptors;
mod explain;
mod failure_note;
mod footprint;
mod front;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod house;
mod inspect;
pub mod logging;
mod needs;
mod next_start;
mod notify;
mod offline;
mod offline_store;
mod overlaps;
mod process_state;
mod recovery;
mod reload;
mod start;
mod store_check;
mod supervisor;
mod threads;
mod token_watch;
mod trail_keeping;
mod unit;

pub use accept::{accept_destruction, accept_rollback};
pub use advice::{ended, told};
pub use backup::{restore_backup, verify_backup, verify_created};
pub use config_check::check_config;
pub use custody::custody;
pub use explain::explain;
pub use inspect::{check_policy, doctor, return_values, show_config};
pub use recovery::recover;
pub use reload::reload_daemon;
pub use start::serve;

use config::ConfigError;

/// Why a process did not start, or ended early.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Backup(#[from] backup::BackupError),
    #[error("{0}")]
    Logging(#[from] logging::LoggingError),
    #[error("{0}")]
    Custody(#[from] crate::custody::StartError),
    #[error("{0}")]
    Store(#[from] crate::store::StoreError),
    #[error("{0}")]
    StoreLost(crate::store::StoreError),
    #[error("{0}")]
    Recovery(#[from] crate::records::OfflineError),
    #[error("{0}")]
    Records(#[from] crate::records::RecordError),
    #[error(
        "the store holds {found} changes, and the trail knows of {known}: it lost its end, or an older \
         copy was put back"
    )]
    StoreBehind { found: u64, known: u64 },
    #[error("{0}")]
    Trail(#[from] crate::audit::AuditError),
    #[error("{0}")]
    Policy(#[from] crate::policy::PolicyError),
    #[error("[token] module: {0}")]
    Module(#[from] crate::token::ModuleFault),
    #[error("{0}")]
    Untrusted(#[from] crate::sandbox::Untrusted),
    #[error("{0}")]
    User(#[from] crate::sandbox::UserError),
    #[error("{0}")]
    Listen(#[from] crate::http::ListenError),
    #[error("locked memory: {0}")]
    Arena(#[from] crate::secret::ArenaError),
    #[error("{0}")]
    Harden(#[from] crate::secret::HardenError),
    #[error("the sandbox: {0}")]
    Sandbox(#[from] crate::sandbox::SandboxError),
    #[error(
        "the process that starts custody has ended; the front ends with it, to be started anew"
    )]
    Unsupervised,
    #[error(
        "the process that connects to custody has ended; the front ends with it, to be started anew"
    )]
    Unconnected,
    #[error("nobody is let in any more; the front ends, to be started anew")]
    Closed,
    /// The command was used wrongly; nothing was done.
    #[error("{what}")]
    WrongUse { what: String, next: &'static str },
    #[error("{what}")]
    Said { what: String, next: &'static str },
    /// What a running daemon refused, with its own next step.
    #[error("{what}")]
    Refused { what: String, next: String },
    #[error("{during}: {cause}")]
    Io { during: &'static str, cause: std::io::Error },
}

/// Turns an I/O error into ours.
fn io(during: &'static str) -> impl Fn(std::io::Error) -> DaemonError {
    move |cause| DaemonError::Io { during, cause }
}

/// Whether this process is a unit's main process.
fn under_systemd() -> bool {
    std::env::var_os("INVOCATION_ID").is_some() && std::env::var_os("NOTIFY_SOCKET").is_some()
}
