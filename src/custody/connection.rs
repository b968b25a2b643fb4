//! One connection to custody: requests go out as they come, answers are handed to whoever waits.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::client::LinkSettings;
use super::notice::UNASKED;
use super::protocol::{Answer, Hello, Reply, Status, Verb};
use super::wire::{Packet, WireError};

/// How old what custody said of itself may be. It is asked a second after each answer.
const MOMENTS: Duration = Duration::from_secs(2);

/// One connection, and who waits for an answer on it.
pub struct Connection {
    socket: AsyncFd<OwnedFd>,
    next: AtomicU64,
    output: Mutex<Packet>,
    waiting: Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>,
    /// What custody last said of itself, and when.
    status: Mutex<Option<(Instant, Status)>>,
    /// When custody last said anything.
    heard: Mutex<Instant>,
}

impl Connection {
    /// Connects and says hello.
    pub async fn open(settings: &LinkSettings) -> Result<Self, WireError> {
        let greeted = tokio::time::timeout(settings.deadline, Self::greet(settings)).await;
        greeted.unwrap_or(Err(WireError::Silent))
    }

    async fn greet(settings: &LinkSettings) -> Result<Self, WireError> {
        let fd = settings.dialer.dial(&settings.socket).await?;
        // The kernel names who listens: custody itself, or the supervisor that made its socket.
        let uids = [settings.custody_uid, 0];
        if !uids.iter().any(|&uid| super::wire::peer_is(fd.as_fd(), uid)) {
            return Err(WireError::Stranger);
        }
        // SAFETY: the descriptor is owned by the value that registers it, and is closed after it.
        #[allow(unsafe_code)] // a plain OwnedFd keeps what `register` asks for
        let socket = unsafe { AsyncFd::register(fd) }.map_err(|_| WireError::Closed)?;
        let connection = Self {
            socket,
            next: AtomicU64::new(1),
            output: Mutex::new(Packet::new()?),
            waiting: Mutex::new(Some(HashMap::new())),
            status: Mutex::default(),
            heard: Mutex::new(Instant::now()),
        };
        connection.send(0, &Hello::OURS).await?;
        let mut input = Packet::new()?;
        let (_, theirs): (u64, Hello) = connection.receive(&mut input).await?;
        if theirs == Hello::OURS { Ok(connection) } else { Err(WireError::Malformed) }
    }

    /// Asks, and waits for the answer up to `patience`; an answer that comes later goes nowhere.
    pub async fn ask(&self, verb: &Verb, patience: Duration) -> Result<Answer, WireError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        match self.waiting().as_mut() {
            Some(waiting) => waiting.insert(id, sender),
            None => return Err(WireError::Closed),
        };
        let mut sent = false;
        let answered = async {
            self.send(id, verb).await?;
            sent = true;
            receiver.await.map_err(|_| WireError::Closed)
        };
        let waited = tokio::time::timeout(patience, answered).await;
        let in_time = waited.unwrap_or(Err(WireError::Silent));
        let answer = match in_time {
            Err(WireError::Silent) if !sent && self.heard_within(patience) => {
                Err(WireError::Crowded)
            }
            answer => answer,
        };
        if answer.is_err()
            && let Some(waiting) = self.waiting().as_mut()
        {
            waiting.remove(&id);
        }
        answer
    }

    /// Ends the connection for both directions: nobody blocks on it any more, here or there.
    pub fn close(&self) {
        let _ = shutdown(self.socket.get_ref().as_raw_fd(), Shutdown::Both);
    }

    async fn send<T: serde::Serialize>(&self, id: u64, message: &T) -> Result<(), WireError> {
        loop {
            let sent = self.output().send(self.socket.get_ref().as_fd(), id, message);
            match sent {
                Err(WireError::WouldBlock) => {
                    let mut ready = self.socket.writable().await.map_err(|_| WireError::Closed)?;
                    ready.clear_ready();
                }
                other => return other,
            }
        }
    }

    async fn receive<T: serde::de::DeserializeOwned>(
        &self,
        input: &mut Packet,
    ) -> Result<(u64, T), WireError> {
        loop {
            let mut ready = self.socket.readable().await.map_err(|_| WireError::Closed)?;
            match input.receive(self.socket.get_ref().as_fd()) {
                Err(WireError::WouldBlock) => ready.clear_ready(),
                other => return other,
            }
        }
    }

    /// Hands answers to those who wait, and what nobody asked for to `notice`, until the connection ends;
    /// then nobody waits any more.
    pub async fn hand_out(&self, notice: impl Fn(Answer)) -> WireError {
        let mut input = match Packet::new() {
            Ok(input) => input,
            Err(error) => return error,
        };
        let end = loop {
            match self.receive::<Answer>(&mut input).await {
                Ok((UNASKED, answer)) => {
                    self.hear();
                    notice(answer);
                }
                Ok((id, answer)) => {
                    self.hear();
                    let waiter = self.waiting().as_mut().and_then(|waiting| waiting.remove(&id));
                    if let Some(waiter) = waiter {
                        let _ = waiter.send(answer);
                    }
                }
                Err(error) => break error,
            }
        };
        self.close();
        self.waiting().take();
        end
    }

    /// What custody is like. Where it is at work, that is what it said within the last moments, for the
    /// question would wait behind the work.
    pub async fn status(&self, patience: Duration) -> Result<Answer, WireError> {
        let at_work = self.waiting().as_ref().is_some_and(|waiting| !waiting.is_empty());
        let known = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if at_work
            && let Some((at, status)) = known
            && at.elapsed() < MOMENTS
        {
            return Ok(Ok(Reply::Status(status)));
        }
        self.ask_status(patience).await
    }

    /// The same, from custody in any case.
    pub async fn ask_status(&self, patience: Duration) -> Result<Answer, WireError> {
        let answer = self.ask(&Verb::Status, patience).await?;
        if let Ok(Reply::Status(status)) = &answer {
            let mut known = self.status.lock().unwrap_or_else(PoisonError::into_inner);
            *known = Some((Instant::now(), status.clone()));
        }
        Ok(answer)
    }

    fn hear(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Whether custody has said anything within the last of so much time: who does may be slow, and is there.
    pub fn heard_within(&self, time: Duration) -> bool {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).elapsed() < time
    }

    fn waiting(&self) -> MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Answer>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn output(&self) -> MutexGuard<'_, Packet> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
