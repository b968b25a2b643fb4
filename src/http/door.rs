//! The door: connections are accepted on a thread of their own, so that a crowd before it keeps nobody
//! inside waiting, and so that who comes behind the crowd gets in while those inside are at work.

use std::io;
use std::os::unix::net::{UnixListener as StdListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::problem::Problem;
use super::serve::stopped;
use super::share::{Place, Shares};
use crate::identity::{Caller, UnixPeer};
use crate::service::Appliance;

/// Who stands at the door.
pub struct Door {
    pub appliance: Arc<Appliance>,
    pub shares: Arc<Shares>,
}

/// Somebody who was let in.
pub struct Admitted {
    pub stream: UnixStream,
    pub caller: Caller,
    pub place: Place,
}

/// How long nothing is accepted after the kernel could not hand over a connection.
const PAUSE: Duration = Duration::from_millis(20);

impl Door {
    /// Accepts until `stop` turns true. There are never more of those who were let in than places.
    pub fn open(
        self,
        listener: StdListener,
        mut stop: watch::Receiver<bool>,
    ) -> io::Result<mpsc::UnboundedReceiver<Admitted>> {
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _of_the_door = runtime.enter();
            UnixListener::from_std(listener)?
        };
        let (inside, admitted) = mpsc::unbounded_channel();
        let accept = async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted.and_then(|(stream, _)| stream.into_std()),
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
            let _ = io::Write::write(&mut &stream, &Problem::crowded().farewell(request_id));
            return None;
        };
        Some(Admitted { stream, caller: Caller::Unix(peer), place })
    }
}
