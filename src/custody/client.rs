//! The front's way to custody: many requests under way over one link, answers in any order.
//!
//! A request waits for an unlocked custody up to a deadline. One that was under way when custody ended
//! is asked again over the next link, within the same deadline: custody keeps nothing, so whatever makes
//! no key in the token may be asked twice.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::breaker::{Breaker, Turn};
use super::connection::Connection;
use super::dial::Dialer;
use super::link::keep_link;
use super::link_state::LinkState;
use super::protocol::{Answer, Fault, Home, Outage, Passing, Reason, Reply, Status, Verb};
use super::turning::Locks;
use super::wire::WireError;
use crate::secret::Pin;

/// Why custody did not give a result.
#[derive(Debug, thiserror::Error)]
pub enum CustodyError {
    /// Custody answered, and said no.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// Nobody answered in time.
    #[error("custody cannot be reached: {0}")]
    Away(Outage),
    /// It ended before it answered.
    #[error("custody has gone")]
    Gone,
    #[error("the message to custody is too long")]
    TooLong,
    #[error("custody answered something else than was asked")]
    Confused,
}

/// How the front reaches custody.
#[derive(Debug, Clone)]
pub struct LinkSettings {
    pub socket: PathBuf,
    /// Who connects to it.
    pub dialer: Dialer,
    /// How long a request may wait for custody to come (back).
    pub deadline: Duration,
    /// The user that custody must run as.
    pub custody_uid: u32,
    /// The most seconds of an outage that custody lets a key serve.
    pub max_outage_grace_seconds: u32,
}

/// What the link should bring custody to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    Locked,
    Unlocked(Option<Home>),
}

/// The front's handle; cloning it shares the link.
#[derive(Clone)]
pub struct Client {
    pub(super) shared: Arc<Shared>,
}

/// What the handles share with the task that keeps the link.
pub(super) struct Shared {
    pub settings: LinkSettings,
    pub wanted: watch::Sender<Wanted>,
    pub state: watch::Sender<LinkState>,
    /// How often it was locked; held while the two above change together.
    pub locks: Mutex<u64>,
    pub connection: watch::Sender<Option<Arc<Connection>>>,
    pub breaker: Breaker,
    /// When custody last said something.
    pub heard: Mutex<std::time::Instant>,
}

/// How long an answer may take that needs much arithmetic, or a token that opens slowly.
pub(super) const LONG_PATIENCE: Duration = Duration::from_secs(60);

/// What an answer is given at least, however long the request has waited for custody.
const LEAST_PATIENCE: Duration = Duration::from_millis(250);

/// How long an unlock waits for the successor of a custody that ends.
const SUCCESSION: Duration = Duration::from_secs(10);

/// Before a call that failed is tried again with a token that is well.
const NEXT_TRY: Duration = Duration::from_millis(50);

impl Client {
    /// Starts to keep the link; `wanted` is what custody is brought to whenever it comes.
    pub fn start(settings: LinkSettings, wanted: Wanted) -> Self {
        let down = Outage::new(Reason::CustodyGone, "custody was not reached yet");
        let down = LinkState::Down(down);
        let shared = Arc::new(Shared {
            settings,
            wanted: watch::Sender::new(wanted),
            state: watch::Sender::new(down),
            locks: Mutex::default(),
            connection: watch::Sender::new(None),
            breaker: Breaker::new(),
            heard: Mutex::new(std::time::Instant::now()),
        });
        tokio::spawn(keep_link(Arc::clone(&shared)));
        Self { shared }
    }

    /// What is known of custody now.
    pub fn state(&self) -> LinkState {
        self.shared.state.borrow().clone()
    }

    /// Follows what is known of custody.
    pub fn watch(&self) -> watch::Receiver<LinkState> {
        self.shared.state.subscribe()
    }

    /// When service by the token stops and when it is back; for the one who tells of it, `None` for
    /// everybody after.
    pub fn turns(&self) -> Option<UnboundedReceiver<Turn>> {
        self.shared.breaker.turns()
    }

    /// Since when service by the token has stopped, if it has, and why, as it is known now.
    pub fn token_away(&self) -> Option<(Timestamp, Reason)> {
        self.shared.breaker.away()
    }

    /// When custody last said something; it is asked every second.
    pub fn last_heard(&self) -> std::time::Instant {
        *self.shared.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks custody; waits for an unlocked one up to the deadline, and asks again where custody ends
    /// before it has answered.
    ///
    /// # Errors
    /// [`CustodyError::Fault`] where custody says no, [`CustodyError::Away`] where it does not come.
    pub async fn ask(&self, verb: Verb) -> Result<Reply, CustodyError> {
        let until = Instant::now() + self.shared.settings.deadline;
        loop {
            let connection = self.unlocked(until).await?;
            let answer = connection.ask(&verb, self.patience(&verb, until)).await;
            let error = match self.read(&connection, answer) {
                Err(error) if may_be_repeated(&verb) && Instant::now() < until => error,
                settled => return settled,
            };
            match &error {
                CustodyError::Fault(Fault::TokenCall(_)) => tokio::time::sleep(NEXT_TRY).await,
                // This custody ends, now or when its token is back, and that was not the last word.
                CustodyError::Gone
                | CustodyError::Fault(Fault::TokenUnavailable(_) | Fault::BrownOut(_)) => {
                    self.see_the_end_of(&connection, until).await;
                }
                CustodyError::Fault(Fault::Locked) if !self.is_to_be_locked() => {
                    self.see_the_end_of(&connection, until).await;
                }
                _ => return Err(error),
            }
            if Instant::now() >= until {
                return Err(error);
            }
        }
    }

    /// Asks custody whether or not it is unlocked, once.
    pub async fn ask_any(&self, verb: &Verb) -> Result<Reply, CustodyError> {
        let until = Instant::now() + self.shared.settings.deadline;
        let connection = self.connected(until).await?;
        let answer = connection.ask(verb, self.patience(verb, until)).await;
        self.read(&connection, answer)
    }

    /// The link, unlocked or not, as soon as there is one.
    async fn connected(&self, until: Instant) -> Result<Arc<Connection>, CustodyError> {
        let mut connections = self.shared.connection.subscribe();
        let found = async { connections.wait_for(Option::is_some).await.ok()?.clone() };
        let connection = timeout_at(until, found).await.ok().flatten();
        connection.ok_or_else(|| self.away())
    }

    /// What custody is like if it answers at once; what tells how the appliance does never waits.
    pub async fn glance(&self) -> Option<Status> {
        let connection = self.shared.connection.borrow().clone()?;
        let answer = connection.status(LEAST_PATIENCE).await;
        match self.read(&connection, answer) {
            Ok(Reply::Status(status)) => Some(status),
            _ => None,
        }
    }

    /// Unlocks custody with a PIN, or with the configured one, here and after every restart.
    ///
    /// # Errors
    /// `Fault::Locked` where somebody locked it since.
    pub async fn unlock(
        &self,
        since: Locks,
        home: Option<Home>,
        pin: Option<Pin>,
    ) -> Result<(), CustodyError> {
        let pin = pin.map(Passing::new);
        let (appliance, by_operator) = (home.clone(), true);
        let verb = Verb::Unlock { appliance, pin, by_operator, look_first: false };
        let until = Instant::now() + self.shared.settings.deadline.max(SUCCESSION);
        let connection = self.connected(until).await?;
        let asked = connection.ask(&verb, LONG_PATIENCE).await;
        let answer = match self.read(&connection, asked) {
            // One that was started while the token was away may not see it, or another PIN file in the
            // place of the one that it knew; the next one does. No PIN was tried.
            Err(CustodyError::Fault(Fault::TokenUnavailable(_))) => {
                self.see_the_end_of(&connection, until).await;
                let next = self.connected(until).await?;
                let asked = next.ask(&verb, LONG_PATIENCE).await;
                self.read(&next, asked)
            }
            answer => answer,
        };
        let state = match answer {
            Ok(Reply::Unlocked { token, signer }) => Some(LinkState::Unlocked { token, signer }),
            Err(CustodyError::Fault(Fault::Unlocked)) => None,
            // A lock ends the custody that was asked.
            Err(_) if self.locks() != since => return Err(Fault::Locked.into()),
            Ok(_) => return Err(CustodyError::Confused),
            Err(error) => return Err(error),
        };
        if self.shared.turn_to_unlocked(since, home, state) {
            return Ok(());
        }
        self.end_custody().await?;
        Err(Fault::Locked.into())
    }

    /// Locks custody: it wipes everything, ends, and stays locked when it comes back.
    pub async fn lock(&self) -> Result<(), CustodyError> {
        self.shared.turn_to_locked();
        self.end_custody().await
    }

    /// Has the custody that there is wipe everything and end.
    async fn end_custody(&self) -> Result<(), CustodyError> {
        let Some(connection) = self.shared.connection.borrow().clone() else { return Ok(()) };
        let until = Instant::now() + self.shared.settings.deadline;
        let answer = connection.ask(&Verb::Lock, self.patience(&Verb::Lock, until)).await;
        match self.read(&connection, answer) {
            Ok(_)
            | Err(
                CustodyError::Away(_) | CustodyError::Gone | CustodyError::Fault(Fault::Locked),
            ) => {
                // A custody that does not end keeps nobody waiting: it is locked all the same.
                self.see_the_end_of(&connection, until).await;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Waits until the link is no longer this one, so that what is asked next goes to a new custody.
    async fn see_the_end_of(&self, connection: &Arc<Connection>, until: Instant) {
        let mut links = self.shared.connection.subscribe();
        let is_another = |now: &Option<Arc<Connection>>| {
            now.as_ref().is_none_or(|now| !Arc::ptr_eq(now, connection))
        };
        let _ = timeout_at(until, links.wait_for(is_another)).await;
    }

    fn is_to_be_locked(&self) -> bool {
        *self.shared.wanted.borrow() == Wanted::Locked
    }

    async fn unlocked(&self, until: Instant) -> Result<Arc<Connection>, CustodyError> {
        if let Some(connection) = self.ready() {
            return Ok(connection);
        }
        let mut states = self.shared.state.subscribe();
        loop {
            let is_settled = |state: &LinkState| !matches!(state, LinkState::Down(_));
            let refusal = match timeout_at(until, states.wait_for(is_settled)).await {
                Ok(Ok(state)) => state.refusal(),
                _ => return Err(self.away()),
            };
            match (refusal, self.ready()) {
                (Some(fault), _) => return Err(fault.into()),
                (None, Some(connection)) => return Ok(connection),
                // The link has just ended, and the state is about to say so.
                (None, None) if states.changed().await.is_err() => return Err(self.away()),
                (None, None) => {}
            }
        }
    }

    /// The link, where custody is unlocked.
    fn ready(&self) -> Option<Arc<Connection>> {
        let unlocked = |state: &LinkState| {
            matches!(state, LinkState::Unlocked { .. } | LinkState::BrownOut { .. })
        };
        if unlocked(&self.shared.state.borrow()) {
            self.shared.connection.borrow().clone()
        } else {
            None
        }
    }

    fn away(&self) -> CustodyError {
        match self.state() {
            LinkState::Down(outage) => CustodyError::Away(outage),
            _ => CustodyError::Away(Outage::new(Reason::CustodyGone, "it has just ended")),
        }
    }

    /// What came of a question; what custody says of the token is what is known of it from now on.
    fn read(
        &self,
        connection: &Arc<Connection>,
        answer: Result<Answer, WireError>,
    ) -> Result<Reply, CustodyError> {
        match answer {
            Ok(answer) => {
                self.shared.hear(connection, &answer);
                Ok(answer?)
            }
            Err(WireError::TooLong) => Err(CustodyError::TooLong),
            Err(WireError::Crowded) => Err(Fault::Busy.into()),
            Err(error @ WireError::Silent) => {
                Err(CustodyError::Away(Outage::new(Reason::CustodySilent, error.to_string())))
            }
            Err(_) => Err(CustodyError::Gone),
        }
    }

    /// How long an answer may take: generating a large key takes its time.
    fn patience(&self, verb: &Verb, until: Instant) -> Duration {
        match verb {
            Verb::GenerateKey { .. }
            | Verb::ImportKey { .. }
            | Verb::Init { .. }
            | Verb::MakeMaster { .. }
            | Verb::DestroyMaster { .. }
            | Verb::UseHome { .. }
            | Verb::RewrapKey { .. }
            | Verb::RewrapStoreKey { .. }
            | Verb::WrapKeyForRecovery { .. }
            | Verb::WrapStoreKeyForRecovery { .. }
            | Verb::Unlock { .. } => LONG_PATIENCE,
            _ => until.saturating_duration_since(Instant::now()).max(LEAST_PATIENCE),
        }
    }
}

/// Whether a verb may be asked again when it is not known what became of it: all but those that make
/// or destroy keys in the token, or turn the key in the door.
fn may_be_repeated(verb: &Verb) -> bool {
    !matches!(
        verb,
        Verb::Init { .. }
            | Verb::Unlock { .. }
            | Verb::Lock
            | Verb::MakeMaster { .. }
            | Verb::DestroyMaster { .. }
    )
}
