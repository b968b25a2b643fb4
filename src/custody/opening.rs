//! How custody comes to work with a token, and with what is in it: an unlock, an init, another generation.

use std::sync::{Arc, PoisonError};

use super::custodian::Custodian;
use super::keyring::{self, Keyring};
use super::pins::now;
use super::protocol::{Answer, Fault, Home, Passing, Reply, SignerFacts, TokenFacts};
use super::{masters, sealed};
use crate::secret::Pin;
use crate::token::Token;

impl Custodian {
    /// Opens the token; where the appliance was initialised, its master key must be there and fit.
    pub(super) fn unlock(
        &self,
        home: Option<Home>,
        pin: Option<Passing<Pin>>,
        by_operator: bool,
    ) -> Answer {
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
        let is_configured = given.is_none();
        let token = match (self.opener.open)(given) {
            Err(Fault::PinRefused(why)) => {
                // One that somebody gave says nothing of the configured one.
                if is_configured {
                    *refused = Some(why.clone());
                }
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
        let was_locked = self.history.compare_with(token.as_ref())?;
        self.heed_lock_in_token(was_locked, by_operator)?;
        if let Some(signer) = &signer {
            self.history.know_signer(signer)?;
        }
        let facts = facts_of(token.as_ref())?;
        if let Some(home) = &home {
            self.generations.put_in_use(home.generation, None, now());
        }
        let generations = Arc::clone(&self.generations);
        let opened = Arc::clone(&token);
        self.install(Keyring::new(token, facts.clone(), home, self.cache.clone(), generations));
        self.end_lock()?;
        self.history.remember_in(opened.as_ref());
        drop(opened);
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
    pub(super) fn init(&self, appliance: String, resume: bool) -> Answer {
        let _one_at_a_time = self.unlocking.lock().unwrap_or_else(PoisonError::into_inner);
        let keyring = self.keyring().ok_or(Fault::Locked)?;
        let token = keyring.token.as_ref();
        if let Some(home) = &keyring.home {
            return again(home, resume && keyring.is_founded);
        }
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
        if signer.is_none() {
            self.history.start_again(token)?;
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
        self.history.know_signer(&signer)?;
        let store_key = keyring::new_store_key(token, &appliance, FIRST, (FIRST, 0))?;
        let (signer_point, signer_generation) = (signer.public_point, FIRST);
        let home =
            Home { appliance, generation: FIRST, store_key, signer_point, signer_generation };
        self.install(keyring.founded(home.clone()));
        Ok(Reply::Initialised { created, home })
    }

    /// Goes on with another generation in use; opened keys stay open, for they are the same.
    pub(super) fn use_home(&self, home: Home) -> Answer {
        let _one_at_a_time = self.unlocking.lock().unwrap_or_else(PoisonError::into_inner);
        let keyring = self.keyring().ok_or(Fault::Locked)?;
        let known = keyring.home.as_ref().filter(|known| known.appliance == home.appliance);
        let known = known.ok_or(Fault::NotInitialised)?;
        if home.generation < known.generation {
            return Err(Fault::Refused(format!(
                "master generation {} is in use, and none before it comes back into use",
                known.generation
            )));
        }
        prove_home(keyring.token.as_ref(), &home)?;
        let mut unlocked = self.unlocked.write().unwrap_or_else(PoisonError::into_inner);
        // A lock that came meanwhile counts.
        if unlocked.as_ref().is_none_or(|now| !Arc::ptr_eq(now, &keyring)) {
            return Err(Fault::Locked);
        }
        let (generation, before) = (home.generation, known.generation);
        *unlocked = Some(Arc::new(keyring.with_home(home)));
        drop(unlocked);
        self.generations.put_in_use(generation, Some(before), now());
        Ok(Reply::Done)
    }

    /// Like a login, what generates or destroys keys in the token is not to be cut off.
    pub(super) fn make_master(&self, generation: u32) -> Answer {
        let _one_at_a_time = self.unlocking.lock().unwrap_or_else(PoisonError::into_inner);
        self.keyring().ok_or(Fault::Locked)?.make_master(generation)
    }

    /// Destroys a master key that has been out of use for long enough, or that root has ordered destroyed. A
    /// PIN must be right where one is given, and takes the place of neither: it came through the front, which
    /// may have kept it from another request.
    pub(super) fn destroy_master(&self, generation: u32, pin: Option<Passing<Pin>>) -> Answer {
        let _one_at_a_time = self.unlocking.lock().unwrap_or_else(PoisonError::into_inner);
        let keyring = self.keyring().ok_or(Fault::Locked)?;
        keyring.must_not_need(generation)?;
        // Of one that is not there nothing is remembered, however many of them are named.
        if masters::is_missing(keyring.token.as_ref(), generation)? {
            return Ok(Reply::Done);
        }
        if let Some(pin) = pin.map(Passing::taken).transpose()? {
            (self.opener.prove)(&pin)?;
        }
        if !self.generations.is_ordered(generation, now()) {
            self.generations.may_destroy(generation, now())?;
        }
        keyring.destroy_master(generation)
    }

    fn install(&self, keyring: Keyring) {
        *self.unlocked.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(keyring));
    }
}

/// The answer to an init where a home is in use: what one that was made just now came to, for whoever could not
/// keep it. Custody becomes no other appliance while it is open.
fn again(home: &Home, is_founded: bool) -> Answer {
    match is_founded {
        true => Ok(Reply::Initialised { created: Vec::new(), home: home.clone() }),
        false => Err(Fault::Exists(format!("custody is open as appliance {}", home.appliance))),
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
