//! Custody where systemd does not run it: the front has a process of its own start it and end it.
//!
//! The front gives up the right to execute programs, so the one that executes custody is split off
//! before (`supervisor`). It stays outside the front's sandbox and takes three orders from it.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, setpgid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{DaemonError, io, logging, supervisor};
use crate::sandbox::User;

/// What the front says to the supervisor: one byte each. The end of the connection says stop.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub enum Order {
    /// Start custody, and start it anew whenever it ends. The number of the process that connects to it for the
    /// front follows, four bytes; 0 where the front does so itself.
    Begin = b'b',
    /// End a custody that hangs; it is then started anew. Answered by one byte: whether one ran.
    EndCustody = b'e',
}

/// How custody is started.
pub struct Start {
    pub config: PathBuf,
    /// Whose process it is, where it is not this one's user's.
    pub user: Option<User>,
    /// A socket that listens already.
    pub listener: Option<OwnedFd>,
}

/// Custody's supervisor; custody ends when it is stopped or dropped.
pub struct CustodyChild {
    supervisor: Pid,
    orders: UnixStream,
}

/// How long the supervisor is waited for; it takes less to end custody and itself.
const PATIENCE: Duration = Duration::from_millis(1200);

impl CustodyChild {
    /// Splits the supervisor off. This process must have one thread, and none of what custody must not
    /// inherit. Custody is started by [`CustodyChild::begin`].
    pub fn prepare(config: &Path, log: &logging::Settings) -> Result<Self, DaemonError> {
        Self::prepare_with(
            Start { config: config.to_owned(), user: None, listener: None },
            log,
            || (),
        )
    }

    /// The same with custody as another user, or on a socket that listens already. `after` is done by the
    /// supervisor, as the user that this process is now, when custody has ended.
    #[allow(unsafe_code)] // fork(2)
    pub fn prepare_with(
        start: Start,
        log: &logging::Settings,
        after: impl FnOnce(),
    ) -> Result<Self, DaemonError> {
        let program = std::env::current_exe().map_err(io("finding this program"))?;
        let (orders, theirs) = UnixStream::pair().map_err(io("preparing custody's start"))?;
        let failed = |errno: nix::errno::Errno| DaemonError::Io {
            during: "splitting off custody's supervisor",
            cause: errno.into(),
        };
        // SAFETY: there is one thread, so the child finds every lock as it should be.
        match unsafe { fork() }.map_err(failed)? {
            ForkResult::Parent { child } => Ok(Self { supervisor: child, orders }),
            ForkResult::Child => {
                drop(orders);
                let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
                let _ = prctl::set_name(c"supervisor");
                // Whoever may trace it has every custody that it starts.
                if let Err(error) = crate::secret::harden_process() {
                    eprintln!("error: {error}");
                    std::process::exit(1);
                }
                let logs = logging::start(log);
                if let Ok(logs) = &logs {
                    logs.write();
                }
                let end = supervisor::follow(theirs, &program, start);
                after();
                if let Err(error) = &end {
                    tracing::error!(%error, "custody cannot be supervised");
                }
                drop(logs);
                std::process::exit(i32::from(end.is_err()))
            }
        }
    }

    /// Has custody started, and started anew whenever it ends.
    pub fn begin(&mut self, dialer: Option<Pid>) -> Result<(), DaemonError> {
        let [a, b, c, d] = dialer.map_or(0, Pid::as_raw).to_le_bytes();
        let order = [Order::Begin as u8, a, b, c, d];
        self.orders.write_all(&order).map_err(io("having custody started"))
    }

    /// A handle to end a custody that hangs. Needs a runtime around it.
    pub fn hang_guard(&self) -> Result<HangGuard, DaemonError> {
        let orders = self.orders.try_clone().and_then(|orders| {
            orders.set_nonblocking(true)?;
            tokio::net::UnixStream::from_std(orders)
        });
        Ok(HangGuard(orders.map_err(io("watching custody"))?))
    }

    /// The supervisor's process.
    pub fn pid(&self) -> Pid {
        self.supervisor
    }

    /// Whether the supervisor has ended, which it does not by itself: nobody starts custody any more.
    pub fn has_ended(&self) -> bool {
        !matches!(waitpid(self.supervisor, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive))
    }

    /// Ends custody and waits for its end.
    pub fn stop(self) {}
}

impl Drop for CustodyChild {
    fn drop(&mut self) {
        let _ = self.orders.shutdown(std::net::Shutdown::Both);
        let asked = Instant::now();
        while !self.has_ended() && asked.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Ends custody from outside, see [`CustodyChild::hang_guard`].
pub struct HangGuard(tokio::net::UnixStream);

impl HangGuard {
    /// Has custody asked to end, and killed where it does not; false where none runs.
    pub async fn end_custody(&mut self) -> bool {
        let asked = self.0.write_all(&[Order::EndCustody as u8]).await.is_ok();
        asked && matches!(self.0.read_u8().await, Ok(1))
    }
}
