//! The door: connections are accepted on a thread of their own, so that a crowd before it keeps nobody
//! inside waiting, and so that who comes behind the crowd gets in while those inside are at work.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc, watch};
use uuid::Uuid;

use super::linger::linger;
use super::listen::{Listener, SocketPlace};
use super::problem::Problem;
use super::serve::{Limits, stopped};
use super::share::{Place, Shares};
use crate::identity::{Caller, UnixPeer};
use crate::service::Appliance;

/// When connections could last be accepted: for whoever answers for this process to a service manager.
#[derive(Debug, Clone)]
pub struct Accepting(Arc<Mutex<Instant>>);

/// For so long nothing may be accepted, in which it is checked several times.
const LONGEST_DEAF: Duration = Duration::from_secs(4);

impl Accepting {
    pub(super) fn begin() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    /// Whether connections can be accepted, as far as was seen in the last seconds.
    pub fn goes_on(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed() < LONGEST_DEAF
    }

    fn went_well(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// A connection needs a descriptor of its own, and so does this.
    fn check(&self, listener: &UnixListener) {
        match listener.as_fd().try_clone_to_owned() {
            Ok(_) => self.went_well(),
            Err(error) => {
                tracing::error!(%error, "no connection can be accepted; with a watchdog, the front is started again")
            }
        }
    }
}

/// Who stands at the door.
pub struct Door {
    accepting: Accepting,
    appliance: Arc<Appliance>,
    shares: Arc<Shares>,
    /// Slots for connections that were turned away and may still write.
    lingering: Arc<Semaphore>,
    body_bytes: usize,
}

/// How many connections that were turned away are read from at a time.
const LINGERING: usize = 32;

/// Somebody who was let in.
pub struct Admitted {
    pub stream: UnixStream,
    pub caller: Caller,
    pub place: Place,
}

/// How long nothing is accepted after the kernel could not hand over a connection.
const PAUSE: Duration = Duration::from_millis(20);

/// How often it is checked that the socket lies at its path.
const BETWEEN_CHECKS: Duration = Duration::from_secs(1);

/// The socket, to be accepted from by the runtime around this.
fn of_this_runtime(socket: std::os::unix::net::UnixListener) -> io::Result<UnixListener> {
    socket.set_nonblocking(true)?;
    UnixListener::from_std(socket)
}

impl Door {
    pub fn new(
        accepting: Accepting,
        appliance: Arc<Appliance>,
        shares: Arc<Shares>,
        limits: &Limits,
    ) -> Self {
        let lingering = Arc::new(Semaphore::new(LINGERING));
        Self { accepting, appliance, shares, lingering, body_bytes: limits.body_bytes }
    }

    /// Accepts until `stop` turns true. There are never more of those who were let in than places.
    pub fn open(
        self,
        listener: Listener,
        mut stop: watch::Receiver<bool>,
    ) -> io::Result<mpsc::UnboundedReceiver<Admitted>> {
        let Listener { socket, mut place } = listener;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut listener = {
            let _of_the_door = runtime.enter();
            of_this_runtime(socket)?
        };
        let (inside, admitted) = mpsc::unbounded_channel();
        let accept = async move {
            let mut checks = tokio::time::interval(BETWEEN_CHECKS);
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted.and_then(|(stream, _)| stream.into_std()),
                    _ = checks.tick() => {
                        if let Some(new) = self.check(&mut place) {
                            listener = new;
                        }
                        self.accepting.check(&listener);
                        continue;
                    }
                    () = stopped(&mut stop) => return,
                };
                let admitted = match accepted {
                    Ok(stream) => self.admit(stream),
                    Err(error) => {
                        if let Some(left_out) = self.appliance.quiet().not_accepted.now() {
                            tracing::warn!(%error, left_out, "a connection could not be accepted");
                        }
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                };
                if admitted.is_some_and(|admitted| inside.send(admitted).is_err()) {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("door".into());
        thread.spawn(move || runtime.block_on(accept))?;
        Ok(admitted)
    }

    /// Makes the socket again where it does not lie at its path any more, and reports either.
    fn check(&self, place: &mut SocketPlace) -> Option<UnixListener> {
        let state = self.appliance.socket();
        let Some(fault) = place.fault() else {
            state.is_in_place();
            return None;
        };
        match place
            .make_again()
            .map_err(|error| error.to_string())
            .and_then(|socket| of_this_runtime(socket).map_err(|error| error.to_string()))
        {
            Ok(listener) => {
                tracing::warn!("{fault}; it was made again");
                state.was_made_again(&fault);
                Some(listener)
            }
            Err(why) => {
                let what = format!("{fault}, so that no new connection reaches this daemon: {why}");
                if state.is_missing(&what) {
                    tracing::error!("{what}");
                }
                None
            }
        }
    }

    /// Answers, and reads on for a moment: a client that writes its request before it reads would find the
    /// connection reset, and never see why. Of many at once only some are waited for.
    fn turn_away(&self, stream: UnixStream, farewell: &[u8]) {
        let _ = io::Write::write(&mut &stream, farewell);
        let Ok(slot) = Arc::clone(&self.lingering).try_acquire_owned() else { return };
        let _ = stream.shutdown(Shutdown::Write);
        if let Ok(stream) = tokio::net::UnixStream::from_std(stream) {
            let body_bytes = self.body_bytes;
            tokio::spawn(async move {
                linger(stream, body_bytes).await;
                drop(slot);
            });
        }
    }

    /// Who it is, and a place among those that are served; `None` where there is none.
    fn admit(&self, stream: UnixStream) -> Option<Admitted> {
        let quiet = &self.appliance.quiet().turned_away;
        let peer = UnixPeer::of(&stream).inspect_err(|error| {
            if let Some(left_out) = quiet.now() {
                tracing::warn!(%error, left_out, "a caller without identity was turned away");
            }
        });
        let peer = peer.ok()?;
        let Some(place) = self.shares.admit(peer.uid) else {
            let request_id = Uuid::now_v7();
            if let Some(left_out) = quiet.now() {
                let uid = peer.uid;
                tracing::warn!(%request_id, uid, left_out, "too many connections; turned away");
            }
            self.turn_away(stream, &Problem::crowded().farewell(request_id));
            return None;
        };
        Some(Admitted { stream, caller: Caller::Unix(peer), place })
    }
}
