//! When the token is away: whether this process ends at once, or lets opened keys serve on that may.
//!
//! A brown-out begins only where the token is not to be found from outside this process either, and some
//! opened key has an allowance. No call reaches the module any more. It ends, and with it the process,
//! when the token is found again, when nobody can look for it any more, or when the last allowance has
//! run out.

use std::sync::{MutexGuard, PoisonError};
use std::time::Instant;

use super::custodian::Custodian;
use super::faults::outage_of;
use super::probe::Unseen;
use super::protocol::{Fault, Outage, Reason, Reply};

/// How this process stands to its token.
#[derive(Debug, Clone, Default)]
pub enum Stand {
    #[default]
    Well,
    /// The token is away, and opened keys serve without it.
    BrownOut(Outage),
    /// The token, its module or a session is past use, and this process with it.
    PastUse(Outage),
}

impl Custodian {
    fn stand(&self) -> MutexGuard<'_, Stand> {
        self.stand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this process has to be replaced.
    pub fn is_past_use(&self) -> bool {
        matches!(*self.stand(), Stand::PastUse(_))
    }

    /// The outage in which keys serve without the token.
    pub fn brown_out(&self) -> Option<Outage> {
        match &*self.stand() {
            Stand::BrownOut(outage) => Some(outage.clone()),
            _ => None,
        }
    }

    /// The token is away for this process, and why; the first who notices decides what becomes of it.
    pub fn lose_token(&self, fault: &Fault) {
        let _one = self.losing.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*self.stand(), Stand::Well) {
            return;
        }
        let mut outage = outage_of(fault);
        // A token that never opened is for the front to tell of: it may be the hundredth try.
        let Some(opened) = self.opened() else {
            *self.stand() = Stand::PastUse(outage);
            return;
        };
        let may_serve_on = opened.allowed() > 0;
        let look = match may_serve_on || outage.reason.is_vague() {
            true => self.probe.look(),
            false => Ok(()),
        };
        if let Err(Unseen::Absent(found)) = &look
            && (outage.reason.is_vague() && found.reason == Reason::TokenAbsent)
        {
            outage =
                Outage::new(found.reason, format!("{}; before that: {}", found.why, outage.why));
        }
        let (reason, why) = (outage.reason.as_str(), outage.why.clone());
        // Where nobody can look, nobody would see it come back.
        if may_serve_on && matches!(look, Err(Unseen::Absent(_))) {
            let keys = opened.lose_token(Instant::now());
            *self.stand() = Stand::BrownOut(outage.clone());
            tracing::error!(reason, why, keys, "the token is away; some keys serve without it");
            self.notices.tell(&Ok(Reply::BrownOut(outage)));
        } else {
            *self.stand() = Stand::PastUse(outage);
            tracing::error!(reason, why, "the token is past use; custody starts anew");
        }
    }

    /// Ends a brown-out in which nothing is left to serve, or whose token is back.
    pub fn tend_brown_out(&self) {
        let Some(outage) = self.brown_out() else { return };
        let left = self.opened().map_or(0, |opened| opened.len());
        if left == 0 {
            tracing::warn!("no key may serve without the token any longer; custody starts anew");
        } else {
            match self.probe.look() {
                Ok(()) => tracing::info!("the token is found again; custody starts anew"),
                Err(Unseen::Lost(why)) => tracing::error!(why, "custody starts anew"),
                Err(Unseen::Absent(_)) => return,
            }
        }
        *self.stand() = Stand::PastUse(outage);
    }

    /// Ends a process that has lost its probe while all is well: without one, no key could serve once the token
    /// is away, and a new one can only be split off from a new process.
    pub fn tend_probe(&self) {
        if self.probe.is_there() {
            return;
        }
        let mut stand = self.stand();
        if matches!(*stand, Stand::Well) {
            let why =
                "the process that looks for the token has ended; custody starts anew for another";
            tracing::error!("{why}; the token itself is well");
            *stand = Stand::PastUse(Outage::new(Reason::CustodyGone, why));
        }
    }

    /// Tells the front why the process ends, where there is a reason.
    pub fn say_why(&self) {
        let outage = match &*self.stand() {
            Stand::PastUse(outage) | Stand::BrownOut(outage) => outage.clone(),
            Stand::Well => return,
        };
        self.notices.tell(&Err(Fault::TokenUnavailable(outage)));
    }
}
