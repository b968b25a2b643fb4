//! Why the token does not serve, in words for the trail, for programs and for people.

use serde::{Deserialize, Serialize};

/// Why the token does not serve: in a word for the trail and programs, and in words for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outage {
    pub reason: Reason,
    pub why: String,
}

impl Outage {
    pub fn new(reason: Reason, why: impl Into<String>) -> Self {
        Self { reason, why: why.into() }
    }
}

impl std::fmt::Display for Outage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

/// The kinds of outages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// No slot has the token that the settings name, or its device was removed.
    TokenAbsent,
    /// The token is there and does not do its work.
    TokenFailed,
    /// Somebody logged out, or the session died.
    LoginLost,
    /// The module cannot be loaded, or cannot do what is needed.
    ModuleFailed,
    /// A call into the module did not come back.
    ModuleHung,
    /// Custody ended without a word: it crashed, or was killed.
    CustodyGone,
    /// Custody does not answer.
    CustodySilent,
    /// The token refused the PIN.
    PinRefused,
    /// There is no PIN to be had: the file or credential is missing, or lies open to others.
    PinUnavailable,
    /// The token does not hold this appliance's keys, or not as they should be.
    MasterUnfit,
    /// Custody cannot write its own state, without which it opens no token.
    CustodyState,
}

impl Reason {
    pub const ALL: [Reason; 11] = [
        Reason::TokenAbsent,
        Reason::TokenFailed,
        Reason::LoginLost,
        Reason::ModuleFailed,
        Reason::ModuleHung,
        Reason::CustodyGone,
        Reason::CustodySilent,
        Reason::PinRefused,
        Reason::PinUnavailable,
        Reason::MasterUnfit,
        Reason::CustodyState,
    ];

    /// The word in the trail: `token-absent`.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::TokenAbsent => "token-absent",
            Reason::TokenFailed => "token-failed",
            Reason::LoginLost => "login-lost",
            Reason::ModuleFailed => "module-failed",
            Reason::ModuleHung => "module-hung",
            Reason::CustodyGone => "custody-gone",
            Reason::CustodySilent => "custody-silent",
            Reason::PinRefused => "pin-refused",
            Reason::PinUnavailable => "pin-unavailable",
            Reason::MasterUnfit => "master-unfit",
            Reason::CustodyState => "custody-state-unavailable",
        }
    }

    /// Whether it stays until an operator has acted.
    pub fn needs_operator(self) -> bool {
        matches!(self, Reason::PinRefused | Reason::PinUnavailable | Reason::MasterUnfit)
    }

    /// Whether another process may know better: that a call failed, or found no key, may be because the
    /// whole token is gone.
    pub fn is_vague(self) -> bool {
        matches!(self, Reason::TokenFailed | Reason::MasterUnfit)
    }

    /// Whether it says nothing of the token: only that nobody answers.
    pub fn is_about_the_link(self) -> bool {
        matches!(self, Reason::CustodyGone | Reason::CustodySilent)
    }
}
