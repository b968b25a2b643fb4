//! The front's way to custody: one connection, many requests under way, answers in any order.
//!
//! The link is kept by a task: it connects, says hello, unlocks custody where that is wanted, and
//! starts over when custody has gone. Requests wait for the link up to a deadline.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::connection::Connection;
use super::protocol::{Fault, Home, Passing, Reply, SignerFacts, TokenFacts, Verb};
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
    Away(String),
    #[error("the message to custody is too long")]
    TooLong,
    #[error("custody answered something else than was asked")]
    Confused,
}

/// What the front knows of custody at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// Not connected, or connected and not unlocked yet; with the reason.
    Down(String),
    /// Locked, because an operator said so.
    Locked,
    /// The token refused the PIN: an operator has to act, it is not tried again.
    PinRefused(String),
    /// The token answers, and does not hold the master key that it should.
    Unfit(String),
    /// Ready to work.
    Unlocked { token: TokenFacts, signer: Option<SignerFacts> },
}

/// How the front reaches custody.
#[derive(Debug, Clone)]
pub struct LinkSettings {
    pub socket: PathBuf,
    /// How long a request may wait for custody to come (back).
    pub deadline: Duration,
    /// The user that custody must run as.
    pub custody_uid: u32,
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
    shared: Arc<Shared>,
}

struct Shared {
    settings: LinkSettings,
    wanted: watch::Sender<Wanted>,
    state: watch::Sender<LinkState>,
    connection: watch::Sender<Option<Arc<Connection>>>,
}

/// How often custody is asked how it is, so that one that hangs is noticed.
const PING_PERIOD: Duration = Duration::from_secs(1);

/// How long an answer may take that needs much arithmetic, or a token that opens slowly.
const LONG_PATIENCE: Duration = Duration::from_secs(60);

/// Between two tries to connect: short for about a second, for a start beside custody or a restart of
/// it, and long after that.
const SHORT_PAUSE: Duration = Duration::from_millis(3);
const LONG_PAUSE: Duration = Duration::from_millis(500);
const SHORT_PAUSES: u32 = 250;

impl Client {
    /// Starts to keep the link; `wanted` is what custody is brought to whenever it comes.
    pub fn start(settings: LinkSettings, wanted: Wanted) -> Self {
        let down = LinkState::Down("custody was not reached yet".to_owned());
        let shared = Arc::new(Shared {
            settings,
            wanted: watch::Sender::new(wanted),
            state: watch::Sender::new(down),
            connection: watch::Sender::new(None),
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

    /// Says what custody should be brought to from now on, here and after every restart.
    pub fn want(&self, wanted: Wanted) {
        self.shared.wanted.send_replace(wanted);
    }

    /// Asks custody; waits for an unlocked one up to the deadline.
    ///
    /// # Errors
    /// [`CustodyError::Fault`] where custody says no, [`CustodyError::Away`] where it does not come.
    pub async fn ask(&self, verb: Verb) -> Result<Reply, CustodyError> {
        let connection = self.unlocked().await?;
        self.ask_on(&connection, verb).await
    }

    /// Asks custody whether or not it is unlocked.
    pub async fn ask_any(&self, verb: Verb) -> Result<Reply, CustodyError> {
        let mut connections = self.shared.connection.subscribe();
        let found = async { connections.wait_for(Option::is_some).await.ok()?.clone() };
        let waited = tokio::time::timeout(self.shared.settings.deadline, found).await;
        let connection = waited.ok().flatten();
        let connection = connection.ok_or_else(|| self.away())?;
        self.ask_on(&connection, verb).await
    }

    /// Unlocks custody with a PIN, or with the configured one.
    pub async fn unlock(&self, home: Option<Home>, pin: Option<Pin>) -> Result<(), CustodyError> {
        let pin = pin.map(Passing::new);
        let verb = Verb::Unlock { appliance: home.clone(), pin, by_operator: true };
        let answer = self.ask_any(verb).await;
        match answer {
            Ok(Reply::Unlocked { token, signer }) => {
                self.shared.state.send_replace(LinkState::Unlocked { token, signer });
            }
            Err(CustodyError::Fault(Fault::Unlocked)) => {}
            Ok(_) => return Err(CustodyError::Confused),
            Err(error) => return Err(error),
        }
        self.want(Wanted::Unlocked(home));
        Ok(())
    }

    /// Locks custody: it wipes everything, ends, and stays locked when it comes back.
    pub async fn lock(&self) -> Result<(), CustodyError> {
        self.want(Wanted::Locked);
        self.shared.state.send_replace(LinkState::Locked);
        let current = self.shared.connection.borrow().clone();
        match current {
            None => Ok(()),
            Some(connection) => match self.ask_on(&connection, Verb::Lock).await {
                Ok(_) | Err(CustodyError::Away(_) | CustodyError::Fault(Fault::Locked)) => {
                    self.see_the_end_of(&connection).await;
                    Ok(())
                }
                Err(error) => Err(error),
            },
        }
    }

    /// Waits until the link is no longer this one, so that what is asked next goes to a new custody.
    async fn see_the_end_of(&self, connection: &Arc<Connection>) {
        let mut links = self.shared.connection.subscribe();
        let is_another = |now: &Option<Arc<Connection>>| {
            now.as_ref().is_none_or(|now| !Arc::ptr_eq(now, connection))
        };
        let ended = links.wait_for(is_another);
        // A custody that does not end keeps nobody waiting: it is locked all the same.
        let _ = tokio::time::timeout(self.shared.settings.deadline, ended).await;
    }

    async fn unlocked(&self) -> Result<Arc<Connection>, CustodyError> {
        if matches!(*self.shared.state.borrow(), LinkState::Unlocked { .. })
            && let Some(connection) = self.shared.connection.borrow().clone()
        {
            return Ok(connection);
        }
        let mut states = self.shared.state.subscribe();
        let settled = async {
            let state = states.wait_for(|state| !matches!(state, LinkState::Down(_))).await;
            state.ok().map(|state| refusal(&state))
        };
        let waited = tokio::time::timeout(self.shared.settings.deadline, settled).await;
        match waited.ok().flatten() {
            Some(None) => {}
            Some(Some(fault)) => return Err(fault.into()),
            None => return Err(self.away()),
        }
        self.shared.connection.borrow().clone().ok_or_else(|| self.away())
    }

    fn away(&self) -> CustodyError {
        match self.state() {
            LinkState::Down(why) => CustodyError::Away(why),
            _ => CustodyError::Away("it has just ended".to_owned()),
        }
    }

    async fn ask_on(&self, connection: &Connection, verb: Verb) -> Result<Reply, CustodyError> {
        let patience = self.patience(&verb);
        Ok(connection.ask(verb, patience).await.map_err(|error| match error {
            WireError::TooLong => CustodyError::TooLong,
            WireError::Silent => CustodyError::Away(error.to_string()),
            _ => self.away(),
        })??)
    }

    /// How long an answer may take: generating a large key takes its time.
    fn patience(&self, verb: &Verb) -> Duration {
        match verb {
            Verb::GenerateKey { .. }
            | Verb::ImportKey { .. }
            | Verb::Init { .. }
            | Verb::MakeMaster { .. }
            | Verb::DestroyMaster { .. }
            | Verb::UseHome { .. }
            | Verb::RewrapKey { .. }
            | Verb::RewrapStoreKey { .. }
            | Verb::Unlock { .. } => LONG_PATIENCE,
            _ => self.shared.settings.deadline,
        }
    }
}

/// What a request is told in a state in which custody does not work; `None` where it does.
fn refusal(state: &LinkState) -> Option<Fault> {
    match state {
        LinkState::Unlocked { .. } => None,
        LinkState::Locked => Some(Fault::Locked),
        LinkState::PinRefused(why) => Some(Fault::PinRefused(why.clone())),
        LinkState::Unfit(why) => Some(Fault::Master(why.clone())),
        LinkState::Down(why) => Some(Fault::TokenUnavailable(why.clone())),
    }
}

/// Connects, brings custody to what is wanted, hands out answers, and starts over.
async fn keep_link(shared: Arc<Shared>) {
    let mut failures = 0;
    loop {
        match Connection::open(&shared.settings).await {
            Ok(connection) => {
                let unlocked = hold(&shared, Arc::new(connection)).await;
                failures = if unlocked { 0 } else { failures + 1 };
            }
            Err(error) => {
                let path = shared.settings.socket.display();
                shared.down(format!("{path}: {error}"));
                failures += 1;
            }
        }
        let pause = if failures <= SHORT_PAUSES { SHORT_PAUSE } else { LONG_PAUSE };
        tokio::time::sleep(pause).await;
    }
}

/// Holds one connection until it ends; true if custody was unlocked over it.
async fn hold(shared: &Arc<Shared>, connection: Arc<Connection>) -> bool {
    let reader = tokio::spawn({
        let connection = Arc::clone(&connection);
        async move { connection.hand_out().await }
    });
    shared.connection.send_replace(Some(Arc::clone(&connection)));
    let wanted = shared.wanted.borrow().clone();
    match wanted {
        Wanted::Locked => {
            shared.state.send_replace(LinkState::Locked);
        }
        Wanted::Unlocked(home) => bring_up(shared, &connection, home).await,
    }
    if matches!(*shared.state.borrow(), LinkState::Down(_)) {
        connection.close();
    }
    let end = tokio::select! {
        end = reader => end.map_or_else(|_| "the link broke".to_owned(), |error| error.to_string()),
        end = silence(&connection, shared.settings.deadline) => end,
    };
    let was_unlocked = matches!(*shared.state.borrow(), LinkState::Unlocked { .. });
    if was_unlocked {
        shared.down(format!("custody is gone: {end}"));
    }
    shared.connection.send_replace(None);
    was_unlocked
}

/// Returns once custody does not even say how it is, and ends the connection.
async fn silence(connection: &Connection, patience: Duration) -> String {
    loop {
        tokio::time::sleep(PING_PERIOD).await;
        if let Err(error @ WireError::Silent) = connection.ask(Verb::Status, patience).await {
            connection.close();
            return error.to_string();
        }
    }
}

/// Unlocks custody with the configured PIN. What an operator has to mend is not tried again.
async fn bring_up(shared: &Shared, connection: &Connection, home: Option<Home>) {
    let refused = matches!(*shared.state.borrow(), LinkState::PinRefused(_));
    if refused {
        return;
    }
    let verb = Verb::Unlock { appliance: home, pin: None, by_operator: false };
    let state = match connection.ask(verb, LONG_PATIENCE).await {
        Ok(Ok(Reply::Unlocked { token, signer })) => LinkState::Unlocked { token, signer },
        Ok(Err(Fault::PinRefused(why))) => LinkState::PinRefused(why),
        Ok(Err(Fault::Master(why))) => LinkState::Unfit(why),
        Ok(Err(fault)) => LinkState::Down(fault.to_string()),
        Ok(Ok(_)) => LinkState::Down("custody answered something else than was asked".to_owned()),
        // No verdict on the token: what was known of it stays known.
        Err(error) => return shared.down(error.to_string()),
    };
    if matches!(*shared.wanted.borrow(), Wanted::Locked) {
        // An operator locked meanwhile, and that is what counts.
        let _ = connection.ask(Verb::Lock, shared.settings.deadline).await;
        return;
    }
    shared.state.send_replace(state);
}

impl Shared {
    fn down(&self, why: String) {
        self.state.send_if_modified(|state| match state {
            LinkState::Locked | LinkState::PinRefused(_) | LinkState::Unfit(_) => false,
            LinkState::Down(known) if *known == why => false,
            state => {
                *state = LinkState::Down(why);
                true
            }
        });
    }
}
