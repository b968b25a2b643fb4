//! One session that stays logged in, and a small pool beside it that does the work.
//!
//! The login belongs to the token, not to a session, and ends with the last one: so an anchor session
//! is opened first, logged in, and never used for anything else.

use std::{sync::Mutex, time::Duration};

use cryptoki::{
    context::Pkcs11,
    session::{Session, SessionState},
    slot::Slot,
};

use super::{
    failure::Failure,
    pool::{Pool, TimedOut},
};
use crate::token::{Place, TokenError};

/// Sessions of one logged-in token.
pub(super) struct Sessions {
    module: Pkcs11,
    slot: Slot,
    place: Place,
    pool: Pool<Session>,
    // Dropped last: fields go in the order they are written in. The lock makes it shareable.
    _anchor: Mutex<Session>,
}

impl Sessions {
    /// Opens the anchor and logs it in by `login`; pooled sessions are opened as they are needed.
    pub(super) fn open(
        module: Pkcs11,
        slot: Slot,
        place: Place,
        size: usize,
        wait: Duration,
        login: impl FnOnce(&Session) -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        let anchor = module.open_ro_session(slot)?;
        login(&anchor)?;
        require_login(&anchor)?;
        let pool = Pool::new(size, wait);
        Ok(Self { module, slot, place, pool, _anchor: Mutex::new(anchor) })
    }

    /// How many sessions work at once, at most.
    pub(super) fn size(&self) -> usize {
        self.pool.size()
    }

    /// Runs `work` in a session of the pool, first come first served.
    ///
    /// The session goes back only if `work` did well, or failed for a reason that has nothing to do
    /// with it; else, and if `work` panics, it is closed.
    pub(super) fn run<T>(
        &self,
        work: impl FnOnce(&Session) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut loan = self.pool.lend().map_err(|TimedOut| {
            let waited_ms = self.pool.wait().as_millis().try_into().unwrap_or(u64::MAX);
            TokenError::Busy { place: self.place.clone(), waited_ms }
        })?;
        let result = work(loan.item(|| self.module.open_ro_session(self.slot))?);
        if result.as_ref().err().is_none_or(Failure::spares_session) {
            loan.keep();
        }
        result
    }

    /// Runs `work` in a session of its own that may write.
    pub(super) fn run_writing<T>(
        &self,
        work: impl FnOnce(&Session) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        work(&self.module.open_rw_session(self.slot)?)
    }
}

/// "Nothing found" means nothing in a session that is not logged in: private keys are hidden there.
pub(super) fn require_login(session: &Session) -> Result<(), Failure> {
    match session.get_session_info()?.session_state() {
        SessionState::RoUser | SessionState::RwUser => Ok(()),
        _ => Err(Failure::not_logged_in()),
    }
}

/// The pool's size: what is wished for, at least 1, and two less than the token allows (the anchor,
/// and the one that writes when a key is made).
pub(super) fn pool_size(wished: usize, allowed: Option<u64>) -> usize {
    let allowed = allowed.and_then(|max| usize::try_from(max).ok()).unwrap_or(usize::MAX);
    wished.min(allowed.saturating_sub(2)).max(1)
}

#[cfg(test)]
mod tests {
    use super::pool_size;

    #[test]
    fn the_token_s_limit_lowers_the_pool() {
        assert_eq!(pool_size(4, None), 4);
        assert_eq!(pool_size(4, Some(100)), 4);
        assert_eq!(pool_size(8, Some(6)), 4);
        assert_eq!(pool_size(8, Some(2)), 1);
        assert_eq!(pool_size(0, None), 1);
    }
}
