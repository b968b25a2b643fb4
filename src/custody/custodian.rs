//! The verbs, carried out: what custody does once it was asked, whichever thread asks.
//!
//! [`Custodian::quick`] answers what needs no token (a loaded key, a known store key) on the thread
//! that read the request; the rest goes to the token's threads and ends in [`Custodian::slow`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, TryLockError};
use std::time::{Duration, Instant};

use super::brown_out::Stand;
use super::cache::{self, KeyCache};
use super::keyring::{self, Keyring};
use super::masters;
use super::notice::Notices;
use super::probe::{Probe, Unseen};
use super::protocol::{
    Answer, Check, Fault, Home, Outage, Passing, Reason, Reply, SignerFacts, Status, TokenFacts,
    Verb, Verdict,
};
use super::recovery::{Fingerprint, RecoveryKey};
use super::sealed;
use crate::sandbox;
use crate::secret::{self, Pin};
use crate::token::Token;

/// Opens the token: with the PIN given, else with the configured one.
pub type Opener = Box<dyn Fn(Option<Pin>) -> Result<Arc<dyn Token>, Fault> + Send + Sync>;

/// Makes the checks of `doctor` that need this process.
pub type Examiner = Box<dyn Fn(Result<OpenToken<'_>, &str>) -> Vec<Check> + Send + Sync>;

/// The open token and the generation in use, if the appliance is initialised.
pub type OpenToken<'a> = (&'a dyn Token, Option<u32>);

/// The state of custody: locked, or unlocked with a token and the keys opened under it.
pub struct Custodian {
    opener: Opener,
    examiner: Examiner,
    cache: cache::Settings,
    arena: String,
    /// The one key that data keys are wrapped to besides the master; or why it cannot be had.
    recovery: Result<Option<RecoveryKey>, String>,
    unlocked: RwLock<Option<Arc<Keyring>>>,
    unlocking: Mutex<()>,
    pub(super) stand: Mutex<Stand>,
    /// Held while it is decided what a lost token means.
    pub(super) losing: Mutex<()>,
    pub(super) probe: Probe,
    /// What the front is told unasked.
    pub notices: Notices,
    /// Why the token refused the configured PIN, until an operator unlocks.
    refused: Mutex<Option<String>>,
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
            Verb::Unlock { .. } | Verb::Init { .. } | Verb::Doctor => Quick::Token(verb),
            verb => match self.keyring() {
                None => Quick::Answered(Err(Fault::Locked)),
                Some(keyring) => keyring.quick(verb),
            },
        }
    }

    /// Carries out what [`Custodian::quick`] handed on; may wait for the token.
    pub fn slow(&self, verb: Verb) -> Answer {
        let unlocking = matches!(verb, Verb::Unlock { .. });
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
            Verb::MakeMaster { generation } => self.make_master(generation),
            Verb::DestroyMaster { generation } => self.destroy_master(generation),
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
            Err(Fault::PinRefused(_) | Fault::Unlocked | Fault::TokenAbsent(_)) | Ok(_) => {}
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
            Unseen::Absent(why) => Fault::TokenAbsent(Outage::new(Reason::TokenAbsent, why)),
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

    /// Opens the token; where the appliance was initialised, its master key must be there and fit.
    fn unlock(&self, home: Option<Home>, pin: Option<Passing<Pin>>, by_operator: bool) -> Answer {
        let _one_at_a_time = self.unlocking.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keyring) = self.keyring() {
            // The link asks for what an operator was faster to do, and has it then.
            let is_the_same = !by_operator && keyring.home == home;
            return if is_the_same { Ok(keyring.is_unlocked()) } else { Err(Fault::Unlocked) };
        }
        let given = pin.map(Passing::taken).transpose()?;
        // A PIN that was refused is not tried again by itself: each wrong try may lock the token.
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if let (None, false, Some(why)) = (&given, by_operator, refused.as_ref()) {
            return Err(Fault::PinRefused(why.clone()));
        }
        let token = match (self.opener)(given) {
            Err(Fault::PinRefused(why)) => {
                *refused = Some(why.clone());
                return Err(Fault::PinRefused(why));
            }
            opened => opened?,
        };
        *refused = None;
        drop(refused);
        let signer = match &home {
            Some(home) => Some(prove_home(token.as_ref(), home)?),
            None => None,
        };
        let facts = facts_of(token.as_ref())?;
        self.install(Keyring::new(token, facts.clone(), home, self.cache.clone()));
        tracing::info!(
            token = facts.label,
            serial = facts.serial,
            arena = self.arena,
            "custody is open"
        );
        Ok(Reply::Unlocked { token: facts, signer })
    }

    /// Generates the first master key, signing key and store key. Without `resume` anything found in
    /// the token ends it. Whether an appliance was initialised before is known to the front, which
    /// keeps what this comes to: where that failed, `resume` has to work on the same open token.
    fn init(&self, appliance: String, resume: bool) -> Answer {
        let _one_at_a_time = self.unlocking.lock().unwrap_or_else(PoisonError::into_inner);
        let keyring = self.keyring().ok_or(Fault::Locked)?;
        let token = keyring.token.as_ref();
        let (master, signer) = (token.master(FIRST)?, token.signer(FIRST)?);
        if !resume {
            refuse_existing(master.is_some(), signer.is_some())?;
        }
        // After a rotation the first generation may be gone, and the token is somebody's all the same.
        if let Some(later) = masters::newest(token)?.filter(|newest| *newest > FIRST) {
            return Err(Fault::Exists(format!(
                "the token holds a master key of generation {later}"
            )));
        }
        let mut created = Vec::new();
        if master.is_none() {
            token.create_master(FIRST)?;
            created.push(format!("master key, generation {FIRST}"));
        }
        if signer.is_none() {
            token.create_signer(FIRST)?;
            created.push(format!("trail signing key, generation {FIRST}"));
        }
        let signer = prove_keys(token, FIRST, FIRST)?;
        let store_key = keyring::new_store_key(token, &appliance, FIRST, FIRST)?;
        let (signer_point, signer_generation) = (signer.public_point, FIRST);
        let home =
            Home { appliance, generation: FIRST, store_key, signer_point, signer_generation };
        self.install(keyring.with_home(home.clone()));
        Ok(Reply::Initialised { created, home })
    }

    /// Goes on with another generation in use; opened keys stay open, for they are the same.
    fn use_home(&self, home: Home) -> Answer {
        let _one_at_a_time = self.unlocking.lock().unwrap_or_else(PoisonError::into_inner);
        let keyring = self.keyring().ok_or(Fault::Locked)?;
        if keyring.home.as_ref().is_none_or(|known| known.appliance != home.appliance) {
            return Err(Fault::NotInitialised);
        }
        prove_home(keyring.token.as_ref(), &home)?;
        let mut unlocked = self.unlocked.write().unwrap_or_else(PoisonError::into_inner);
        // A lock that came meanwhile counts.
        if unlocked.as_ref().is_none_or(|now| !Arc::ptr_eq(now, &keyring)) {
            return Err(Fault::Locked);
        }
        *unlocked = Some(Arc::new(keyring.with_home(home)));
        Ok(Reply::Done)
    }

    /// Like a login, what generates or destroys keys in the token is not to be cut off.
    fn make_master(&self, generation: u32) -> Answer {
        let _one_at_a_time = self.unlocking.lock().unwrap_or_else(PoisonError::into_inner);
        self.keyring().ok_or(Fault::Locked)?.make_master(generation)
    }

    fn destroy_master(&self, generation: u32) -> Answer {
        let _one_at_a_time = self.unlocking.lock().unwrap_or_else(PoisonError::into_inner);
        self.keyring().ok_or(Fault::Locked)?.destroy_master(generation)
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

    fn install(&self, keyring: Keyring) {
        *self.unlocked.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(keyring));
    }
}

/// The generation that init makes, and the number of its store key.
const FIRST: u32 = 1;

fn refuse_existing(master: bool, signer: bool) -> Result<(), Fault> {
    let found = match (master, signer) {
        (false, false) => return Ok(()),
        (true, false) => "a master key",
        (false, true) => "a trail signing key",
        (true, true) => "a master key and a trail signing key",
    };
    Err(Fault::Exists(format!("the token holds {found} of generation {FIRST}")))
}

/// Makes sure that the token holds the very keys that are in use: the master that the newest store key
/// lies under, which is of the generation in use, or of an older one until the front has it rewrapped; and
/// the known signing key.
fn prove_home(token: &dyn Token, home: &Home) -> Result<SignerFacts, Fault> {
    let other = |what: &str, generation: u32| {
        Fault::Master(format!(
            "the {what} of generation {generation} in the token is not the one that this appliance \
             was initialised with; is it the right token?"
        ))
    };
    let signer = prove_keys(token, home.generation, home.signer_generation)?;
    let store_key = &home.store_key;
    let under = sealed::generation_of(&store_key.wrapped);
    let Some(under) = under.filter(|under| *under <= home.generation) else {
        return Err(Fault::Master(format!(
            "the store key lies under a later master key than generation {}, which is in use; the \
             store was changed outside Strongroom",
            home.generation
        )));
    };
    match keyring::open_store_key(token, &home.appliance, store_key) {
        Err(Fault::SealBroken) => return Err(other("master key", under)),
        opened => drop(opened?),
    }
    if signer.public_point != home.signer_point {
        return Err(other("trail signing key", home.signer_generation));
    }
    Ok(signer)
}

/// Makes sure that a master and a signing key are there, fit and alive.
fn prove_keys(token: &dyn Token, master: u32, signer: u32) -> Result<SignerFacts, Fault> {
    let missing = |what: &str, generation: u32| {
        Fault::Master(format!(
            "the token is open and holds no {what} of generation {generation}; is it the right \
             token? Strongroom never makes a new one in its place"
        ))
    };
    token.master(master)?.ok_or_else(|| missing("master key", master))?;
    token.canary(master)?;
    let found = token.signer(signer)?.ok_or_else(|| missing("trail signing key", signer))?;
    Ok(SignerFacts { generation: found.generation, public_point: found.public_point.to_vec() })
}

fn facts_of(token: &dyn Token) -> Result<TokenFacts, Fault> {
    let info = token.info()?;
    Ok(TokenFacts {
        label: info.label,
        serial: info.serial,
        manufacturer: info.manufacturer,
        model: info.model,
    })
}
