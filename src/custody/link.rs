//! The task that keeps the link: it connects, says hello, unlocks custody where that is wanted, and
//! starts over when custody has gone.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::client::{LONG_PATIENCE, Shared, Wanted};
use super::connection::Connection;
use super::link_state::LinkState;
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
                End::NotOpened => {}
                End::Broken => failures += 1,
            },
            Err(error) => {
                let path = shared.settings.socket.display();
                let outage = Outage::new(Reason::CustodyGone, format!("{path}: {error}"));
                shared.unreachable(outage, failures == SHORT_PAUSES);
                failures += 1;
            }
        }
        let pause = if failures <= SHORT_PAUSES { SHORT_PAUSE } else { LONG_PAUSE };
        tokio::time::sleep(pause).await;
    }
}

/// Holds one connection until it ends.
async fn hold(shared: &Arc<Shared>, connection: Arc<Connection>) -> End {
    shared.connection.send_replace(Some(Arc::clone(&connection)));
    let reader = tokio::spawn({
        let (connection, shared) = (Arc::clone(&connection), Arc::clone(shared));
        async move { connection.hand_out(|notice| shared.hear(&connection, &notice)).await }
    });
    let mut silent = std::pin::pin!(silence(shared, &connection));
    let wanted = shared.wanted.borrow().clone();
    match wanted {
        Wanted::Locked => {
            shared.turn_to(LinkState::Locked);
            stay_locked(shared, &connection).await;
        }
        Wanted::Unlocked(home) => tokio::select! {
            () = bring_up(shared, &connection, home) => {}
            outage = silent.as_mut() => shared.down(outage),
        },
    }
    let is_down = || matches!(*shared.state.borrow(), LinkState::Down(_));
    let not_opened = is_down();
    if not_opened {
        // What needs no token is asked meanwhile: which checkpoint is the newest.
        tokio::time::sleep(NEXT_LOOK).await;
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

/// Has custody remember a lock that came while it could not be told, or that it could not keep.
async fn stay_locked(shared: &Shared, connection: &Connection) {
    match connection.ask(&Verb::StayLocked, shared.settings.deadline).await {
        Ok(Ok(_) | Err(Fault::Unlocked)) => {}
        Ok(Err(fault)) => tracing::error!(%fault, "custody could not note that it is locked"),
        Err(error) => tracing::debug!(%error, "custody was not told that it is locked"),
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
        let deadline = shared.settings.deadline;
        // Behind a crowd the question itself may wait for longer, while others are answered.
        if let Err(error @ WireError::Silent) = connection.ask_status(deadline).await
            && !connection.heard_within(deadline)
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
        Ok(Err(Fault::PinUnavailable(why))) => LinkState::PinUnavailable(why),
        Ok(Err(Fault::Master(why))) => LinkState::Unfit(why),
        Ok(Err(Fault::State(why))) => LinkState::Down(Outage::new(Reason::CustodyState, why)),
        Ok(Err(Fault::Locked)) => return shared.found_locked(),
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

    /// What custody says of its token, asked or unasked, is what is known of it from now on. What comes
    /// late, from a custody that another has taken the place of, says nothing.
    pub fn hear(&self, connection: &Arc<Connection>, said: &Answer) {
        let outage = match said {
            Err(Fault::TokenUnavailable(outage) | Fault::BrownOut(outage)) => outage,
            Ok(Reply::BrownOut(outage)) => outage,
            _ => return,
        };
        let is_late =
            self.connection.borrow().as_ref().is_some_and(|now| !Arc::ptr_eq(now, connection));
        match said {
            _ if is_late => {}
            Err(Fault::TokenUnavailable(_)) => self.down(outage.clone()),
            _ => self.brown_out(outage),
        }
    }

    /// Opened keys serve without the token.
    fn brown_out(&self, outage: &Outage) {
        self.state.send_if_modified(|state| {
            let LinkState::Unlocked { token, .. } = state else { return false };
            *state = LinkState::BrownOut { outage: outage.clone(), token: token.clone() };
            self.breaker.see(state);
            true
        });
    }

    /// Custody or its token is away. What an operator said, or has to mend, stays what is known; and
    /// that nobody answers does not hide what is known of the token.
    pub fn down(&self, outage: Outage) {
        self.unreachable(outage, false);
    }

    /// The same, of which the breaker is told `in_any_case`. Of a custody that is to be locked nothing is
    /// missed: a lock ends it.
    fn unreachable(&self, outage: Outage, in_any_case: bool) {
        let _turning = self.turning();
        if *self.wanted.borrow() == Wanted::Locked {
            return;
        }
        if in_any_case {
            self.breaker.lost(outage.clone());
        }
        self.breaker.see(&LinkState::Down(outage.clone()));
        self.state.send_if_modified(|state| match state {
            state if state.is_settled() => false,
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

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
    use std::path::Path;

    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept, bind, listen, socket,
    };

    use super::super::client::{Client, LinkSettings};
    use super::super::protocol::{Hello, TokenFacts};
    use super::super::wire::Packet;
    use super::*;

    /// A custody whose token is away, and which says so to those alone who ask for something.
    fn tongue_tied(path: &Path) {
        let listener =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::empty(), None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
        listen(&listener, Backlog::new(1).unwrap()).unwrap();
        std::thread::spawn(move || {
            // SAFETY: accept returned a descriptor that nobody else owns.
            #[allow(unsafe_code)] // a number becomes an owner
            let front = unsafe { OwnedFd::from_raw_fd(accept(listener.as_raw_fd()).unwrap()) };
            let mut packet = Packet::new().unwrap();
            packet.receive::<Hello>(front.as_fd()).unwrap();
            packet.send(front.as_fd(), 0, &Hello::OURS).unwrap();
            while let Ok((id, verb)) = packet.receive::<Verb>(front.as_fd()) {
                let answer: Answer = match verb {
                    Verb::Unlock { .. } => Ok(Reply::Unlocked { token: facts(), signer: None }),
                    Verb::Status => Ok(Reply::Done),
                    _ => Err(Fault::BrownOut(away())),
                };
                packet.send(front.as_fd(), id, &answer).unwrap();
            }
        });
    }

    fn facts() -> TokenFacts {
        let text = String::new;
        TokenFacts { label: text(), serial: text(), manufacturer: text(), model: text() }
    }

    fn away() -> Outage {
        Outage::new(Reason::TokenAbsent, "why")
    }

    /// A client of that custody, once it is unlocked.
    async fn client(directory: &Path) -> Client {
        crate::secret::start(&Default::default(), crate::secret::Use::Front).unwrap();
        let path = directory.join("custody.sock");
        tongue_tied(&path);
        let settings = LinkSettings {
            socket: path,
            dialer: crate::custody::Dialer::Itself,
            deadline: Duration::from_millis(300),
            custody_uid: nix::unistd::getuid().as_raw(),
            max_outage_grace_seconds: 0,
        };
        let client = Client::start(settings, Wanted::Unlocked(None));
        let unlocked = |state: &LinkState| matches!(state, LinkState::Unlocked { .. });
        let mut states = client.watch();
        let waited = tokio::time::timeout(Duration::from_secs(20), states.wait_for(unlocked)).await;
        assert!(waited.is_ok(), "{:?}", client.state());
        client
    }

    #[tokio::test]
    async fn a_brown_out_is_known_though_no_notice_of_it_came() {
        let directory = tempfile::tempdir().unwrap();
        let client = client(directory.path()).await;
        assert!(client.ask(Verb::RecoveryKey).await.is_err());
        let state = client.state();
        assert!(matches!(&state, LinkState::BrownOut { outage, .. } if *outage == away()));
        assert_eq!(client.token_away().map(|(_, reason)| reason), Some(Reason::TokenAbsent));
    }

    #[tokio::test]
    async fn that_a_locked_custody_ends_is_no_outage() {
        let directory = tempfile::tempdir().unwrap();
        let client = client(directory.path()).await;
        client.shared.turn_to_locked();
        client.shared.unreachable(Outage::new(Reason::CustodyGone, "why"), true);
        client.shared.down(away());
        assert_eq!((client.state(), client.token_away()), (LinkState::Locked, None));
    }

    #[tokio::test]
    async fn what_an_earlier_custody_says_late_is_no_news() {
        let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [now, before] =
            [client(directories[0].path()).await, client(directories[1].path()).await];
        let earlier = before.shared.connection.borrow().clone().unwrap();
        for said in [Fault::TokenUnavailable(away()), Fault::BrownOut(away())] {
            now.shared.hear(&earlier, &Err(said));
            assert!(matches!(now.state(), LinkState::Unlocked { .. }), "{:?}", now.state());
        }
        assert_eq!(now.token_away(), None);
        let current = now.shared.connection.borrow().clone().unwrap();
        now.shared.hear(&current, &Err(Fault::TokenUnavailable(away())));
        assert!(matches!(now.state(), LinkState::Down(_)));
    }
}
