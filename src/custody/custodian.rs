//! The verbs, carried out: what custody does once it was asked, whichever thread asks.
//!
//! [`Custodian::quick`] answers what needs no token (a loaded key, a known store key) on the thread
//! that read the request; the rest goes to the token's threads and ends in [`Custodian::slow`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, TryLockError};
use std::time::{Duration, Instant};

use super::backup_rate::BackupRate;
use super::brown_out::Stand;
use super::cache::{self, KeyCache};
use super::generations::Generations;
use super::history::{History, ToSign};
use super::keyring::Keyring;
use super::lock_memory::LockMemory;
use super::notice::Notices;
use super::probe::{Probe, Unseen};
use super::protocol::{Answer, Check, Fault, Outage, Reason, Reply, Status, Verb, Verdict};
use super::recovery::{Fingerprint, RecoveryKey};
use crate::sandbox;
use crate::secret::{self, Pin};
use crate::token::Token;

/// Opens the token: with the PIN given, else with the configured one.
pub type Open = Box<dyn Fn(Option<Pin>) -> Result<Arc<dyn Token>, Fault> + Send + Sync>;

/// Whether a PIN is the one that the token was opened with.
pub type Prove = Box<dyn Fn(&Pin) -> Result<(), Fault> + Send + Sync>;

/// What is done with PINs.
pub struct Opener {
    pub open: Open,
    pub prove: Prove,
}

/// Makes the checks of `doctor` that need this process.
pub type Examiner = Box<dyn Fn(Result<OpenToken<'_>, &str>) -> Vec<Check> + Send + Sync>;

/// The open token and the generation in use, if the appliance is initialised.
pub type OpenToken<'a> = (&'a dyn Token, Option<u32>);

/// The state of custody: locked, or unlocked with a token and the keys opened under it.
pub struct Custodian {
    pub(super) opener: Opener,
    examiner: Examiner,
    pub(super) cache: cache::Settings,
    pub(super) arena: String,
    /// The one key that data keys are wrapped to besides the master; or why it cannot be had.
    recovery: Result<Option<RecoveryKey>, String>,
    pub(super) unlocked: RwLock<Option<Arc<Keyring>>>,
    pub(super) unlocking: Mutex<()>,
    pub(super) stand: Mutex<Stand>,
    /// Held while it is decided what a lost token means.
    pub(super) losing: Mutex<()>,
    pub(super) probe: Probe,
    /// What the front is told unasked.
    pub notices: Notices,
    /// Why the token refused the configured PIN, until an operator unlocks.
    pub(super) refused: Mutex<Option<String>>,
    /// Which checkpoints were signed.
    pub(super) history: History,
    /// How often a backup was signed.
    backups: BackupRate,
    /// Whether an operator locked it.
    pub(super) lock: Arc<LockMemory>,
    /// Called before the process ends, when keys have been wiped.
    pub(super) before_exit: fn(),
    /// Since when each master key is out of use.
    pub(super) generations: Arc<Generations>,
}

/// How long the end of the process waits for a login or a generation that is under way.
const LONGEST_LOGIN: Duration = Duration::from_millis(500);

/// Where a verb is to be carried out.
pub enum Quick {
    Answered(Answer),
    /// Needs the token: for its threads.
    Token(Verb),
    /// Takes long on a processor: for the thread that generates keys.
    Generation(Verb),
}

impl Custodian {
    pub fn new(
        opener: Opener,
        examiner: Examiner,
        probe: Probe,
        cache: cache::Settings,
        arena: String,
        recovery: Result<Option<RecoveryKey>, String>,
        (history, generations, lock): (History, Generations, LockMemory),
    ) -> Self {
        Self {
            opener,
            examiner,
            cache,
            arena,
            recovery,
            unlocked: RwLock::new(None),
            unlocking: Mutex::new(()),
            stand: Mutex::default(),
            losing: Mutex::new(()),
            probe,
            notices: Notices::default(),
            refused: Mutex::new(None),
            history,
            backups: BackupRate::default(),
            lock: Arc::new(lock),
            before_exit: || {},
            generations: Arc::new(generations),
        }
    }

    /// Wipes what has been kept too long.
    pub fn expire(&self, now: Instant) {
        if let Some(cache) = self.opened() {
            cache.expire(now);
        }
    }

    /// Tries the token with a known blob; nothing to try while locked. That the token is busy, or the
    /// arena full, says nothing against it.
    ///
    /// # Errors
    /// What the token said; the process is past use then.
    pub fn try_canary(&self) -> Result<(), Fault> {
        let Some(keyring) = self.keyring() else { return Ok(()) };
        let Some(home) = &keyring.home else { return Ok(()) };
        match keyring.token.canary(home.generation).map_err(Fault::from) {
            Ok(()) | Err(Fault::Busy | Fault::ArenaFull) => Ok(()),
            Err(Fault::TokenCall(why)) => {
                Err(Fault::TokenUnavailable(Outage::new(Reason::TokenFailed, why)))
            }
            Err(fault) => Err(fault),
        }
    }

    /// Waits, for a while, until nobody logs in or generates keys. SoftHSM rewrites the file that makes
    /// a directory a token at every login: a process that ends in the middle of it leaves no token.
    pub fn let_finish(&self) -> Option<MutexGuard<'_, ()>> {
        let until = Instant::now() + LONGEST_LOGIN;
        loop {
            match self.unlocking.try_lock() {
                Ok(guard) => return Some(guard),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() >= until => return None,
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Forgets every key, as a lock or the end of the process asks for. What is left is the token, which
    /// whoever drops it last closes by calls into the module.
    pub fn wipe(&self) -> Option<Arc<Keyring>> {
        let taken = self.unlocked.write().unwrap_or_else(PoisonError::into_inner).take();
        taken.inspect(|keyring| keyring.cache.forget(None, None))
    }

    /// Answers what needs neither token nor long arithmetic; says where the rest belongs.
    pub fn quick(&self, verb: Verb) -> Quick {
        match verb {
            Verb::Status => Quick::Answered(Ok(Reply::Status(self.status()))),
            Verb::NewestCheckpoint => Quick::Answered(Ok(self.history.newest())),
            Verb::Unlock { .. }
            | Verb::Init { .. }
            | Verb::Doctor
            | Verb::BeginTrail { .. }
            | Verb::NoteLine { .. }
            | Verb::StayLocked => Quick::Token(verb),
            verb => match self.keyring() {
                None => Quick::Answered(Err(Fault::Locked)),
                Some(keyring) => keyring.quick(verb),
            },
        }
    }

    /// Carries out what [`Custodian::quick`] handed on; may wait for the token.
    pub fn slow(&self, verb: Verb) -> Answer {
        let unlocking = matches!(verb, Verb::Unlock { .. });
        if let Verb::Unlock { by_operator, .. } = &verb {
            self.may_unlock(*by_operator)?;
        }
        // What needs no token.
        match &verb {
            Verb::BeginTrail { trail, newest, behind_end, holds } => {
                return self.history.begin(trail, *newest, *behind_end, *holds);
            }
            Verb::NoteLine { trail, noted, closes } => {
                return self.history.note(trail, *noted, *closes);
            }
            Verb::StayLocked => return self.stay_locked(),
            _ => {}
        }
        if let Some(outage) = self.brown_out() {
            return match verb {
                Verb::Doctor => Ok(Reply::Checks((self.examiner)(Err(&outage.why)))),
                _ => Err(Fault::BrownOut(outage)),
            };
        }
        let answer = match verb {
            Verb::Unlock { appliance, pin, by_operator, look_first } => {
                self.look(look_first).and_then(|()| self.unlock(appliance, pin, by_operator))
            }
            Verb::Doctor => Ok(Reply::Checks(self.examine())),
            Verb::Init { appliance, resume } => self.init(appliance, resume),
            Verb::UseHome { home } => self.use_home(home),
            Verb::RecoveryKey => self.recovery_key(),
            Verb::WrapKeyForRecovery { address, sealed, fingerprint } => self
                .with_recovery(&fingerprint, |keyring, key| {
                    keyring.wrap_key_for(key, &address, &sealed)
                }),
            Verb::WrapStoreKeyForRecovery { store_key, fingerprint } => self
                .with_recovery(&fingerprint, |keyring, key| {
                    keyring.wrap_store_key_for(key, &store_key)
                }),
            Verb::SignCheckpoint { trail, covers, head, before, closes, stored } => {
                let keyring = self.keyring().ok_or(Fault::Locked)?;
                let generation = keyring.home()?.signer_generation;
                let wanted = ToSign { trail: &trail, covers, head, before, closes, stored };
                self.history.sign(keyring.token.as_ref(), generation, &wanted)
            }
            Verb::SignBackup { message } => self.backups.take(Instant::now()).and_then(|()| {
                let signed = self.keyring().ok_or(Fault::Locked)?.sign_backup(&message)?;
                let message = String::from_utf8_lossy(&message);
                tracing::info!(manifest = message.lines().nth(1), "a backup's manifest was signed");
                Ok(signed)
            }),
            Verb::MakeMaster { generation } => self.make_master(generation),
            Verb::DestroyMaster { generation, pin } => self.destroy_master(generation, pin),
            verb => self.keyring().ok_or(Fault::Locked)?.slow(verb),
        };
        let answer = match answer {
            // A module that did not open cannot be trusted to open anew in this process; a refused PIN
            // waits for an operator instead.
            Err(Fault::TokenCall(why)) if unlocking => {
                Err(Fault::TokenUnavailable(Outage::new(Reason::TokenFailed, why)))
            }
            // What a single call says may be about what it was given: a known blob decides.
            Err(Fault::TokenCall(why)) => Err(self.judge(why)),
            answer => answer,
        };
        match &answer {
            Err(fault @ Fault::TokenUnavailable(_)) => self.lose_token(fault),
            Err(
                Fault::Locked
                | Fault::PinRefused(_)
                | Fault::PinUnavailable(_)
                | Fault::Unlocked
                | Fault::TokenAbsent(_),
            )
            | Ok(_) => {}
            Err(fault) if unlocking => self.lose_token(fault),
            Err(_) => {}
        }
        match (answer, self.brown_out()) {
            (Err(Fault::TokenUnavailable(_)), Some(outage)) => Err(Fault::BrownOut(outage)),
            (answer, _) => answer,
        }
    }

    fn look(&self, look_first: bool) -> Result<(), Fault> {
        let Err(unseen) = (if look_first { self.probe.look() } else { Ok(()) }) else {
            return Ok(());
        };
        // An operator may have opened it meanwhile, or be about to.
        let _one_at_a_time = self.unlocking.lock().unwrap_or_else(PoisonError::into_inner);
        if self.keyring().is_some() {
            return Ok(());
        }
        Err(match unseen {
            Unseen::Absent(outage) => Fault::TokenAbsent(outage),
            // The next process has another to look; of the token this says nothing.
            Unseen::Lost(why) => Fault::TokenUnavailable(Outage::new(Reason::CustodyGone, why)),
        })
    }

    /// Whether a failed call was the token's end: the canary decides, where there is a key for one.
    fn judge(&self, why: String) -> Fault {
        let has_canary = self.keyring().is_some_and(|keyring| keyring.home.is_some());
        match self.try_canary() {
            Ok(()) if has_canary => Fault::TokenCall(why),
            Err(Fault::TokenUnavailable(outage)) => Fault::TokenUnavailable(outage),
            _ => Fault::TokenUnavailable(Outage::new(Reason::TokenFailed, why)),
        }
    }

    pub(super) fn keyring(&self) -> Option<Arc<Keyring>> {
        self.unlocked.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The opened keys, for those who must not be the last to hold the token.
    pub(super) fn opened(&self) -> Option<Arc<KeyCache>> {
        let unlocked = self.unlocked.read().unwrap_or_else(PoisonError::into_inner);
        unlocked.as_ref().map(|keyring| Arc::clone(&keyring.cache))
    }

    fn status(&self) -> Status {
        let keyring = self.keyring();
        let usage = secret::usage();
        Status {
            unlocked: keyring.is_some(),
            token: keyring.as_ref().map(|keyring| keyring.facts.clone()),
            arena: self.arena.clone(),
            sandbox: sandbox::entered().map(ToString::to_string).unwrap_or_default(),
            arena_size_bytes: usage.size_bytes as u64,
            arena_used_bytes: usage.used_bytes as u64,
            loaded_keys: keyring.map_or(0, |keyring| keyring.cache.len() as u64),
        }
    }

    fn examine(&self) -> Vec<Check> {
        let mut checks = self.examine_token();
        checks.extend(self.history.checks());
        checks.push(self.probe.check());
        checks.extend(self.recovery.as_ref().err().map(|why| Check {
            name: "recovery key".to_owned(),
            verdict: Verdict::Fail,
            found: why.clone(),
            remedy: "[custody] recovery_key, then restart custody".to_owned(),
        }));
        checks
    }

    fn examine_token(&self) -> Vec<Check> {
        match self.keyring() {
            Some(keyring) => {
                let generation = keyring.home.as_ref().map(|home| home.generation);
                (self.examiner)(Ok((keyring.token.as_ref(), generation)))
            }
            None => (self.examiner)(Err("custody is locked")),
        }
    }

    fn recovery_key(&self) -> Answer {
        match &self.recovery {
            Ok(key) => Ok(Reply::RecoveryKey(key.as_ref().map(RecoveryKey::fingerprint))),
            Err(why) => Err(Fault::Recovery(why.clone())),
        }
    }

    /// With the recovery key of this fingerprint: custody's own, or none.
    fn with_recovery(
        &self,
        wanted: &Fingerprint,
        work: impl FnOnce(&Keyring, &RecoveryKey) -> Answer,
    ) -> Answer {
        let why = match &self.recovery {
            Ok(Some(key)) if key.fingerprint() == *wanted => {
                return work(self.keyring().ok_or(Fault::Locked)?.as_ref(), key);
            }
            Ok(Some(_)) => "[custody] recovery_key names another one than is set",
            Ok(None) => "[custody] recovery_key names none, and one is set",
            Err(why) => why,
        };
        Err(Fault::Recovery(why.to_owned()))
    }
}
