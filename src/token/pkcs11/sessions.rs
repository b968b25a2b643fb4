//! One session that stays logged in, and a small pool beside it that is handed out in turn.
//!
//! The login belongs to the token, not to a session, and ends with the last one: so an anchor session
//! is opened first, logged in, and never used for anything else.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cryptoki::{
    context::Pkcs11,
    session::{Session, SessionState},
    slot::Slot,
};

use super::failure::Failure;
use crate::token::{Place, TokenError};

/// Sessions of one logged-in token.
pub(super) struct Sessions {
    module: Pkcs11,
    slot: Slot,
    place: Place,
    size: usize,
    wait: Duration,
    pool: Mutex<Pool>,
    turn: Condvar,
    // Dropped last: fields go in the order they are written in.
    _anchor: Mutex<Session>,
}

struct Pool {
    idle: Vec<Session>,
    /// Sessions that exist, idle or handed out.
    open: usize,
    /// Who waits, in order of arrival.
    queue: VecDeque<u64>,
    tickets: u64,
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
        let pool = Pool { idle: Vec::new(), open: 0, queue: VecDeque::new(), tickets: 0 };
        Ok(Self {
            module,
            slot,
            place,
            size,
            wait,
            pool: Mutex::new(pool),
            turn: Condvar::new(),
            _anchor: Mutex::new(anchor),
        })
    }

    /// How many sessions are handed out at most.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Runs `work` in a session of the pool, first come first served.
    ///
    /// The session goes back only if `work` did well, or failed for a reason that has nothing to do
    /// with it; else, and if `work` panics, it is closed.
    pub(super) fn run<T>(
        &self,
        work: impl FnOnce(&Session) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut lease = Lease { of: self, session: self.take()?, keep: false };
        let session = match &lease.session {
            Some(session) => session,
            None => &*lease.session.insert(self.module.open_ro_session(self.slot)?),
        };
        let result = work(session);
        lease.keep = result.as_ref().err().is_none_or(Failure::spares_session);
        result
    }

    /// Runs `work` in a session of its own that may write.
    pub(super) fn run_writing<T>(
        &self,
        work: impl FnOnce(&Session) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        work(&self.module.open_rw_session(self.slot)?)
    }

    /// Waits for its turn: an idle session, or `None` with the right to open one.
    fn take(&self) -> Result<Option<Session>, Failure> {
        let deadline = Instant::now() + self.wait;
        let mut pool = self.lock();
        let ticket = pool.tickets;
        pool.tickets += 1;
        pool.queue.push_back(ticket);
        loop {
            let free = !pool.idle.is_empty() || pool.open < self.size;
            if free && pool.queue.front() == Some(&ticket) {
                pool.queue.pop_front();
                let session = pool.idle.pop();
                pool.open += usize::from(session.is_none());
                self.turn.notify_all();
                return Ok(session);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                pool.queue.retain(|waiting| *waiting != ticket);
                self.turn.notify_all();
                let waited_ms = self.wait.as_millis().try_into().unwrap_or(u64::MAX);
                return Err(TokenError::Busy { place: self.place.clone(), waited_ms }.into());
            }
            pool = self.turn.wait_timeout(pool, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session on loan.
struct Lease<'a> {
    of: &'a Sessions,
    session: Option<Session>,
    keep: bool,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let session = self.session.take().filter(|_| self.keep);
        // Here, a session that is not kept has been closed already, so the token has room again.
        let mut pool = self.of.lock();
        match session {
            Some(session) => pool.idle.push(session),
            None => pool.open -= 1,
        }
        drop(pool);
        self.of.turn.notify_all();
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
