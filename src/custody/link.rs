//! The task that keeps the link: it connects, says hello, unlocks custody where that is wanted, and
//! starts over when custody has gone.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::client::{LONG_PATIENCE, LinkState, Shared, Wanted};
use super::connection::Connection;
use super::protocol::{Answer, Fault, Home, Outage, Reason, Reply, Verb};
use super::wire::WireError;

/// How often custody is asked how it is, so that one that hangs is noticed.
const PING_PERIOD: Duration = Duration::from_secs(1);

/// Between two tries to connect: short for about a second, for a start beside custody or a restart of
/// it, and long after that.
const SHORT_PAUSE: Duration = Duration::from_millis(3);
const LONG_PAUSE: Duration = Duration::from_millis(500);
const SHORT_PAUSES: u32 = 250;

/// After custody said that the token does not open.
const NEXT_LOOK: Duration = Duration::from_millis(300);

/// How long custody may take to end once it said that it will.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How a connection ended.
enum End {
    /// Custody was unlocked over it.
    Worked,
    /// Custody answered, and the token did not open.
    NotOpened,
    /// Custody said nothing of use.
    Broken,
}

/// Connects, brings custody to what is wanted, hands out answers, and starts over.
pub(super) async fn keep_link(shared: Arc<Shared>) {
    let mut failures = 0;
    loop {
        match Connection::open(&shared.settings).await {
            Ok(connection) => match hold(&shared, Arc::new(connection)).await {
                End::Worked => failures = 0,
                End::NotOpened => tokio::time::sleep(NEXT_LOOK).await,
                End::Broken => failures += 1,
            },
            Err(error) => {
                let path = shared.settings.socket.display();
                let outage = Outage::new(Reason::CustodyGone, format!("{path}: {error}"));
                if failures == SHORT_PAUSES {
                    shared.breaker.lost(outage.clone());
                }
                shared.down(outage);
                failures += 1;
            }
        }
        let pause = if failures <= SHORT_PAUSES { SHORT_PAUSE } else { LONG_PAUSE };
        tokio::time::sleep(pause).await;
    }
}

/// Holds one connection until it ends.
async fn hold(shared: &Arc<Shared>, connection: Arc<Connection>) -> End {
    let reader = tokio::spawn({
        let (connection, shared) = (Arc::clone(&connection), Arc::clone(shared));
        async move { connection.hand_out(|notice| shared.take_notice(notice)).await }
    });
    shared.connection.send_replace(Some(Arc::clone(&connection)));
    let mut silent = std::pin::pin!(silence(shared, &connection));
    let wanted = shared.wanted.borrow().clone();
    match wanted {
        Wanted::Locked => shared.turn_to(LinkState::Locked),
        Wanted::Unlocked(home) => tokio::select! {
            () = bring_up(shared, &connection, home) => {}
            outage = silent.as_mut() => shared.down(outage),
        },
    }
    let is_down = || matches!(*shared.state.borrow(), LinkState::Down(_));
    let not_opened = is_down();
    if not_opened {
        connection.close();
    }
    let outage = tokio::select! {
        end = reader => {
            let why = end.map_or_else(|_| "the link broke".to_owned(), |error| error.to_string());
            Outage::new(Reason::CustodyGone, format!("custody is gone: {why}"))
        }
        outage = silent => outage,
        outage = given_up(shared, &connection), if !not_opened => outage,
    };
    // A custody that said why it ends is down already, with a better reason.
    let is_up =
        matches!(*shared.state.borrow(), LinkState::Unlocked { .. } | LinkState::BrownOut { .. });
    if is_up {
        shared.down(outage);
    }
    shared.connection.send_replace(None);
    match not_opened {
        true => End::NotOpened,
        false if is_down() => End::Worked,
        false => End::Broken,
    }
}

/// Returns a while after custody said that its token is past use, if it has not ended by then.
async fn given_up(shared: &Shared, connection: &Connection) -> Outage {
    let mut states = shared.state.subscribe();
    let is_down = |state: &LinkState| matches!(state, LinkState::Down(_));
    let outage = match states.wait_for(is_down).await.as_deref() {
        Ok(LinkState::Down(outage)) => outage.clone(),
        _ => Outage::new(Reason::CustodyGone, "custody is not needed any more"),
    };
    tokio::time::sleep(LAST_WORDS).await;
    connection.close();
    outage
}

/// Returns once custody does not even say how it is, and ends the connection.
async fn silence(shared: &Shared, connection: &Connection) -> Outage {
    loop {
        shared.heard();
        tokio::time::sleep(PING_PERIOD).await;
        if let Err(error @ WireError::Silent) =
            connection.ask(&Verb::Status, shared.settings.deadline).await
        {
            connection.close();
            return Outage::new(Reason::CustodySilent, error.to_string());
        }
    }
}

/// Unlocks custody with the configured PIN. What an operator has to mend is not tried again.
async fn bring_up(shared: &Shared, connection: &Connection, home: Option<Home>) {
    let refused = matches!(*shared.state.borrow(), LinkState::PinRefused(_));
    if refused {
        return;
    }
    let look_first = shared.breaker.away().is_some();
    let verb = Verb::Unlock { appliance: home, pin: None, by_operator: false, look_first };
    let state = match connection.ask(&verb, LONG_PATIENCE).await {
        Ok(Ok(Reply::Unlocked { token, signer })) => LinkState::Unlocked { token, signer },
        Ok(Err(Fault::PinRefused(why))) => LinkState::PinRefused(why),
        Ok(Err(Fault::Master(why))) => LinkState::Unfit(why),
        Ok(Err(Fault::TokenUnavailable(outage) | Fault::TokenAbsent(outage))) => {
            LinkState::Down(outage)
        }
        Ok(Err(fault)) => LinkState::Down(Outage::new(Reason::TokenFailed, fault.to_string())),
        Ok(Ok(_)) => {
            let why = "custody answered something else than was asked";
            LinkState::Down(Outage::new(Reason::CustodyGone, why))
        }
        // No verdict on the token: what was known of it stays known.
        Err(error) => {
            return shared.down(Outage::new(Reason::CustodyGone, error.to_string()));
        }
    };
    if !shared.turn_unless_locked(state) {
        // An operator locked meanwhile, and that is what counts.
        let _ = connection.ask(&Verb::Lock, shared.settings.deadline).await;
    }
}

impl Shared {
    /// Custody has said something.
    fn heard(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Another state of the link, for everybody who waits for one.
    pub fn turn_to(&self, state: LinkState) {
        self.breaker.see(&state);
        self.state.send_replace(state);
    }

    /// What custody says unasked.
    fn take_notice(&self, notice: Answer) {
        match notice {
            Err(Fault::TokenUnavailable(outage)) => self.down(outage),
            Ok(Reply::BrownOut(outage)) => {
                let state = self.state.borrow().clone();
                if let LinkState::Unlocked { token, .. } = state {
                    self.turn_unless_locked(LinkState::BrownOut { outage, token });
                }
            }
            _ => {}
        }
    }

    /// Custody or its token is away. What an operator said, or has to mend, stays what is known; and
    /// that nobody answers does not hide what is known of the token.
    pub fn down(&self, outage: Outage) {
        self.breaker.see(&LinkState::Down(outage.clone()));
        self.state.send_if_modified(|state| match state {
            LinkState::Locked | LinkState::PinRefused(_) | LinkState::Unfit(_) => false,
            LinkState::Down(known) if *known == outage => false,
            LinkState::Down(known)
                if outage.reason.is_about_the_link() && !known.reason.is_about_the_link() =>
            {
                false
            }
            state => {
                *state = LinkState::Down(outage);
                true
            }
        });
    }
}
