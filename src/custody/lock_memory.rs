//! Whether an operator locked the appliance, as custody itself remembers it, where the front cannot write.
//!
//! The store says so, too; but the store is the front's, and read before any record of it can be opened: whoever
//! edits it while nothing runs could take the lock away. A token is opened without an operator only where neither
//! of the two knows of a lock.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::custodian::Custodian;
use super::protocol::{Answer, Fault, Reply};
use super::state::{Kept, Section, StateError};

/// The section of the state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LockState {
    locked: bool,
}

impl Section for LockState {
    const NAME: &'static str = "locked";
}

/// What is remembered of it.
pub struct LockMemory {
    kept: Kept<LockState>,
    /// `[audit] on_break = "record"`: what is remembered and the store does not know is given up.
    accepts: bool,
    /// A lock was asked for in this process, which ends: no unlock that is under way takes it back.
    requested: AtomicBool,
}

/// How long the end of the process waits for its disk.
const LONGEST: Duration = Duration::from_millis(500);

impl LockMemory {
    pub fn new(kept: Kept<LockState>, accepts: bool) -> Self {
        Self { kept, accepts, requested: AtomicBool::new(false) }
    }

    pub fn is_locked(&self) -> bool {
        self.requested.load(Ordering::SeqCst) || self.kept.get().locked
    }

    /// # Errors
    /// [`Fault::State`] where a later lock could not be remembered.
    pub fn must_be_writable(&self) -> Result<(), Fault> {
        Ok(self.kept.try_out()?)
    }

    /// Remembers a lock that an operator asked for in another process, or that the token alone remembers.
    fn stay(&self) -> Result<(), Fault> {
        if self.kept.get().locked {
            return Ok(());
        }
        self.kept.change(|state| {
            state.locked = true;
            Ok(())
        })
    }

    /// Remembers a lock.
    fn lock(&self) {
        self.requested.store(true, Ordering::SeqCst);
        let kept: Result<(), StateError> = self.kept.change(|state| {
            state.locked = true;
            Ok(())
        });
        if let Err(error) = kept {
            tracing::error!(%error, "custody is locked, and could not note that it is");
        }
    }

    /// An operator has unlocked.
    ///
    /// # Errors
    /// [`Fault::Locked`] where a lock came meanwhile, [`Fault::State`] where it cannot be noted.
    pub fn unlock(&self) -> Result<(), Fault> {
        if !self.is_locked() {
            return Ok(());
        }
        self.kept.change(|state| {
            // A lock changes the state after it was requested, so either this sees it or is overwritten.
            if self.requested.load(Ordering::SeqCst) {
                return Err(Fault::Locked);
            }
            state.locked = false;
            Ok(())
        })
    }
}

impl Custodian {
    /// Forgets every opened key, and remembers the lock, in the state and in the token; a disk or a token that
    /// hangs does not hold up the end.
    pub fn note_lock(self: &Arc<Self>) {
        if let Some(cache) = self.opened() {
            cache.forget(None, None);
        }
        let (custodian, (done, noted)) = (Arc::clone(self), channel());
        let note = move || {
            custodian.lock.lock();
            // One that is away is not asked, and what it remembers is compared when it is back.
            if let Some(keyring) = custodian.keyring()
                && custodian.brown_out().is_none()
            {
                custodian.history.remember_lock(keyring.token.as_ref());
            }
            let _ = done.send(());
        };
        let builder = std::thread::Builder::new().name("lock".to_owned());
        match builder.spawn(note) {
            Ok(_) => drop(noted.recv_timeout(LONGEST)),
            Err(error) => {
                tracing::error!(%error, "custody is locked, and could not note that it is")
            }
        }
    }

    /// Whether it may be opened, before any token is: only an operator opens what one has locked, and what
    /// could not be locked again is not opened.
    pub(super) fn may_unlock(&self, by_operator: bool) -> Result<(), Fault> {
        if self.keyring().is_some() {
            return Ok(());
        }
        if self.lock.is_locked() && !by_operator {
            if !self.lock.accepts {
                return Err(Fault::Locked);
            }
            tracing::error!("custody remembers a lock, and it is opened, as the settings say");
        }
        self.lock.must_be_writable()
    }

    /// The front knows of a lock that custody may not know of.
    pub(super) fn stay_locked(&self) -> Answer {
        if self.keyring().is_some() {
            return Err(Fault::Unlocked);
        }
        self.lock.stay()?;
        Ok(Reply::Done)
    }

    /// Heeds a lock that the token remembers and the state may not: the state was put back.
    ///
    /// # Errors
    /// [`Fault::Locked`] where no operator asks.
    pub(super) fn heed_lock_in_token(
        &self,
        was_locked: bool,
        by_operator: bool,
    ) -> Result<(), Fault> {
        if !was_locked || by_operator || self.lock.accepts || self.history.forgets() {
            return Ok(());
        }
        tracing::error!(
            "the token remembers that an operator locked custody, and custody's own state does not: it was put \
             back or changed. It stays locked"
        );
        self.lock.stay()?;
        Err(Fault::Locked)
    }

    /// It has been opened, so that it is not locked any more. Where that cannot be noted it is closed again.
    pub(super) fn end_lock(&self) -> Result<(), Fault> {
        self.lock.unlock().inspect_err(|_| {
            let token = self.unlocked.write().unwrap_or_else(PoisonError::into_inner).take();
            drop(token.inspect(|keyring| keyring.cache.forget(None, None)));
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::custody::state::State;

    fn memory(path: &std::path::Path) -> LockMemory {
        LockMemory::new(State::open(path).unwrap().load().unwrap(), false)
    }

    #[test]
    fn a_lock_outlives_the_process_and_only_an_unlock_ends_it() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("state");
        let first = memory(&path);
        assert!(!first.is_locked());
        first.unlock().unwrap();
        first.lock();
        assert!(first.is_locked());
        assert!(matches!(first.unlock(), Err(Fault::Locked)), "one that began before it");
        drop(first);
        let second = memory(&path);
        assert!(second.is_locked());
        second.unlock().unwrap();
        assert!(!second.is_locked());
        drop(second);
        assert!(!memory(&path).is_locked());
    }

    #[test]
    fn an_unlock_that_cannot_be_noted_is_none() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("state");
        memory(&path).lock();
        let lock = memory(&path);
        std::fs::create_dir(path.join("locked.new")).unwrap();
        assert!(matches!(lock.unlock(), Err(Fault::State(_))) && lock.is_locked());
        assert!(matches!(lock.must_be_writable(), Err(Fault::State(_))));
        std::fs::remove_dir(path.join("locked.new")).unwrap();
        lock.must_be_writable().unwrap();
        assert!(lock.is_locked());
    }
}
