//! What the front knows of custody and its token at the moment.

use super::protocol::{Fault, Outage, Reason, SignerFacts, TokenFacts};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// Not connected, or connected and not unlocked yet; with the reason.
    Down(Outage),
    /// Locked, because an operator said so.
    Locked,
    /// The token refused the PIN: an operator has to act, it is not tried again.
    PinRefused(String),
    /// There is no PIN to try: an operator has to act.
    PinUnavailable(String),
    /// The token answers, and does not hold the master key that it should.
    Unfit(String),
    /// The token is away, and what custody holds open serves on where it may.
    BrownOut { outage: Outage, token: TokenFacts },
    /// Ready to work.
    Unlocked { token: TokenFacts, signer: Option<SignerFacts> },
}

impl LinkState {
    /// Why the token does not serve, where it does not; a lock is no outage.
    pub fn outage(&self) -> Option<Outage> {
        match self {
            LinkState::Unlocked { .. } | LinkState::Locked => None,
            LinkState::Down(outage) | LinkState::BrownOut { outage, .. } => Some(outage.clone()),
            LinkState::PinRefused(why) => Some(Outage::new(Reason::PinRefused, why.clone())),
            LinkState::PinUnavailable(why) => {
                Some(Outage::new(Reason::PinUnavailable, why.clone()))
            }
            LinkState::Unfit(why) => Some(Outage::new(Reason::MasterUnfit, why.clone())),
        }
    }

    /// Whether it stays until somebody has acted: news of the link do not change it.
    pub(super) fn is_settled(&self) -> bool {
        use LinkState::{Locked, PinRefused, PinUnavailable, Unfit};
        matches!(self, Locked | PinRefused(_) | PinUnavailable(_) | Unfit(_))
    }

    /// What a request is told in a state in which custody does not work; `None` where it does.
    pub(super) fn refusal(&self) -> Option<Fault> {
        match self {
            LinkState::Unlocked { .. } | LinkState::BrownOut { .. } => None,
            LinkState::Locked => Some(Fault::Locked),
            LinkState::PinRefused(why) => Some(Fault::PinRefused(why.clone())),
            LinkState::PinUnavailable(why) => Some(Fault::PinUnavailable(why.clone())),
            LinkState::Unfit(why) => Some(Fault::Master(why.clone())),
            LinkState::Down(outage) => Some(Fault::TokenUnavailable(outage.clone())),
        }
    }
}
