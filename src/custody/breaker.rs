//! When service by the token stopped and when it was back: each told once, however often custody was
//! started anew in between.

use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::link_state::LinkState;
use super::protocol::{Outage, Reason, TokenFacts};

/// What is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// Service by the token has stopped.
    Lost(Outage),
    /// The outage turned out to be one that an operator has to end.
    Turned(Outage),
    /// It is back, or there for the first time.
    Back(TokenFacts),
}

/// Follows the states of the link.
pub struct Breaker {
    inside: Mutex<Inside>,
    turns: UnboundedSender<Turn>,
}

struct Inside {
    stand: Stand,
    /// The reasons that were told in this outage.
    told: Vec<Reason>,
    listener: Option<UnboundedReceiver<Turn>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stand {
    /// Nothing was heard of the token since the start.
    Unknown,
    There,
    Away {
        since: Timestamp,
        reason: Reason,
    },
}

impl Breaker {
    pub fn new() -> Self {
        let (turns, listener) = unbounded_channel();
        let inside = Inside { stand: Stand::Unknown, told: Vec::new(), listener: Some(listener) };
        Self { inside: Mutex::new(inside), turns }
    }

    /// All turns, for the one who tells of them; `None` for everybody after the first.
    pub fn turns(&self) -> Option<UnboundedReceiver<Turn>> {
        self.inside().listener.take()
    }

    /// Since when service by the token has stopped, if it has, and why, in the word that was told last.
    pub fn away(&self) -> Option<(Timestamp, Reason)> {
        let inside = self.inside();
        match inside.stand {
            Stand::Away { since, reason } => {
                Some((since, inside.told.last().copied().unwrap_or(reason)))
            }
            _ => None,
        }
    }

    /// Takes notice of a state. A lock is no outage, and does not end one.
    pub fn see(&self, state: &LinkState) {
        if let LinkState::Unlocked { token, .. } = state {
            return self.back(token);
        }
        let Some(outage) = state.outage() else { return };
        // Before custody was there for the first time, that it is not there tells nothing.
        if self.inside().stand != Stand::Unknown || !outage.reason.is_about_the_link() {
            self.lost(outage);
        }
    }

    /// Service by the token is away, whatever was known before. What is known of the token is not
    /// forgotten because nobody answers; what an operator has to end is told once in an outage.
    pub fn lost(&self, outage: Outage) {
        let mut inside = self.inside();
        let reason = outage.reason;
        match &mut inside.stand {
            Stand::Away { reason: known, .. } if reason == *known => return,
            Stand::Away { reason: known, .. }
                if reason.is_about_the_link() && !known.is_about_the_link() =>
            {
                return;
            }
            Stand::Away { reason: known, .. } => *known = reason,
            stand => {
                *stand = Stand::Away { since: Timestamp::now(), reason };
                inside.told = vec![reason];
                let _ = self.turns.send(Turn::Lost(outage));
                return;
            }
        }
        if reason.needs_operator() && !inside.told.contains(&reason) {
            inside.told.push(reason);
            let _ = self.turns.send(Turn::Turned(outage));
        }
    }

    fn back(&self, token: &TokenFacts) {
        let mut inside = self.inside();
        if inside.stand != Stand::There {
            inside.stand = Stand::There;
            let _ = self.turns.send(Turn::Back(token.clone()));
        }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unlocked() -> LinkState {
        let text = String::new;
        let token =
            TokenFacts { label: text(), serial: text(), manufacturer: text(), model: text() };
        LinkState::Unlocked { token, signer: None }
    }

    fn down(reason: Reason) -> LinkState {
        LinkState::Down(Outage::new(reason, "why"))
    }

    #[test]
    fn each_outage_is_told_once_and_again_where_an_operator_has_to_act() {
        let breaker = Breaker::new();
        let mut turns = breaker.turns().unwrap();
        let mut told = || match turns.try_recv().ok() {
            Some(Turn::Lost(outage)) => outage.reason.as_str(),
            Some(Turn::Turned(outage)) => {
                assert_eq!(outage.reason, Reason::MasterUnfit);
                "turned"
            }
            Some(Turn::Back(_)) => "back",
            None => "nothing",
        };
        breaker.see(&down(Reason::CustodyGone));
        assert_eq!(told(), "nothing", "custody has not come yet");
        breaker.see(&unlocked());
        assert_eq!(told(), "back");
        breaker.see(&down(Reason::TokenFailed));
        for _ in 0..100 {
            breaker.see(&down(Reason::CustodyGone));
            breaker.see(&down(Reason::TokenAbsent));
            breaker.see(&LinkState::Unfit("why".to_owned()));
        }
        breaker.see(&down(Reason::CustodyGone));
        let known = breaker.away().map(|(_, reason)| reason);
        assert_eq!(known, Some(Reason::MasterUnfit), "what was told last");
        breaker.see(&LinkState::Locked);
        assert!(breaker.away().is_some(), "a lock is not its end");
        breaker.see(&unlocked());
        breaker.see(&LinkState::Locked);
        breaker.see(&unlocked());
        let all = [told(), told(), told(), told()];
        assert_eq!(all, ["token-failed", "turned", "back", "nothing"]);
        assert_eq!(breaker.away(), None);
    }

    #[test]
    fn a_start_without_the_token_is_told() {
        for (state, word) in [
            (down(Reason::TokenAbsent), "token-absent"),
            (LinkState::PinRefused(String::new()), "pin-refused"),
        ] {
            let breaker = Breaker::new();
            breaker.see(&state);
            let told = breaker.turns().unwrap().try_recv().unwrap();
            assert!(matches!(told, Turn::Lost(outage) if outage.reason.as_str() == word));
        }
    }
}
