//! Master keys over the generations: found, made and destroyed in the token; and the rewrap, which gives
//! the same 32 bytes another key above them. What those seal is never opened for it.

use super::keyring::{Keyring, open_store_key};
use super::pins::now;
use super::protocol::{Answer, Fault, Home, KeyAddress, MasterFacts, MasterFound, Reply, StoreKey};
use super::sealed;
use crate::secret::DataKey;
use crate::token::{Token, TokenError, WrappedKey};

/// Generations that are looked for where nothing says which there are.
const MOST_GENERATIONS: u32 = 64;

/// Generations that are looked for in one request.
pub const MOST_ASKED: usize = 1024;

/// Generations later than the one in use that the token may hold.
const MOST_UNUSED: u32 = 8;

/// Master keys that the token holds, whichever of them are in use. None is made beyond them, so that whoever
/// says that one after the other is in use does not fill the token.
const MOST_HELD: usize = 72;

/// Generations before the next one that are looked for when those that are held are counted.
const MOST_COUNTED: u32 = 1024;

/// The answer to a request for more than [`MOST_ASKED`].
pub fn too_many() -> Fault {
    Fault::Protocol(format!("more than {MOST_ASKED} generations in one request"))
}

/// Master keys in the token of later generations than the one in use.
pub fn later_than(token: &dyn Token, in_use: u32) -> Result<Vec<u32>, Fault> {
    let mut later = Vec::new();
    for generation in in_use.saturating_add(1)..=in_use.saturating_add(MOST_UNUSED) {
        if !is_missing(token, generation)? {
            later.push(generation);
        }
    }
    Ok(later)
}

pub fn is_missing(token: &dyn Token, generation: u32) -> Result<bool, Fault> {
    match token.master(generation) {
        Ok(found) => Ok(found.is_none()),
        Err(TokenError::KeyUnfit { .. } | TokenError::KeyAmbiguous { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The newest generation of which the token holds a master key, fit or not.
pub fn newest(token: &dyn Token) -> Result<Option<u32>, Fault> {
    let mut newest = None;
    for generation in 1..=MOST_GENERATIONS {
        if !is_missing(token, generation)? {
            newest = Some(generation);
        }
    }
    Ok(newest)
}

impl Keyring {
    pub(super) fn masters(&self, generations: &[u32]) -> Answer {
        if generations.len() > MOST_ASKED {
            return Err(too_many());
        }
        let facts = generations.iter().map(|&generation| {
            let found = match self.token.master(generation) {
                Ok(Some(_)) => MasterFound::Fit,
                Ok(None) => MasterFound::Missing,
                Err(error @ (TokenError::KeyUnfit { .. } | TokenError::KeyAmbiguous { .. })) => {
                    MasterFound::Unfit(error.to_string())
                }
                Err(error) => return Err(error.into()),
            };
            Ok(MasterFacts { generation, found })
        });
        facts.collect::<Result<_, _>>().map(Reply::Masters)
    }

    /// Makes the master of a generation, or takes the one that is there: whoever asks has made sure, and
    /// kept it on record, that there was none before. It is the next one for which the token has room.
    pub(super) fn make_master(&self, generation: u32) -> Answer {
        let in_use = self.home()?.generation;
        if self.token.master(generation)?.is_none() {
            self.must_be_next(in_use, generation)?;
            self.must_have_room(generation)?;
            self.generations.may_make(generation, now())?;
            self.token.create_master(generation)?;
        }
        self.token.canary(generation)?;
        Ok(Reply::Done)
    }

    /// Between the generation in use and the next one there are only those that the token has already: of a
    /// later state of a store that was restored, perhaps.
    fn must_be_next(&self, in_use: u32, generation: u32) -> Result<(), Fault> {
        let unused = generation.checked_sub(in_use).filter(|unused| *unused > 0);
        let Some(unused) = unused.filter(|unused| *unused <= MOST_UNUSED) else {
            return Err(Fault::Refused(format!(
                "master generation {generation} is not the next one after {in_use}, which is in use, or the \
                 token holds {MOST_UNUSED} later ones that are not: `strongroom doctor` names them"
            )));
        };
        for between in in_use + 1..in_use + unused {
            if is_missing(self.token.as_ref(), between)? {
                return Err(Fault::Refused(format!(
                    "master generation {generation} is not the next one: the token holds none of \
                     generation {between}"
                )));
            }
        }
        Ok(())
    }

    fn must_have_room(&self, next: u32) -> Result<(), Fault> {
        let mut held = 0;
        for generation in next.saturating_sub(MOST_COUNTED).max(1)..next {
            held += usize::from(!is_missing(self.token.as_ref(), generation)?);
        }
        match held < MOST_HELD {
            true => Ok(()),
            false => Err(Fault::Refused(format!(
                "the token holds {held} master keys: `strongroom master show` names them; have old ones \
                 destroyed (`strongroom master retire`) before another one is made"
            ))),
        }
    }

    /// Nothing that custody works with lies under a generation.
    pub(super) fn must_not_need(&self, generation: u32) -> Result<(), Fault> {
        let home = self.home()?;
        if home.generation == generation {
            return Err(Fault::Protocol(format!("master generation {generation} is in use")));
        }
        if sealed::generation_of(&home.store_key.wrapped) == Some(generation) {
            return Err(Fault::Refused(format!(
                "the newest store key lies under master generation {generation}"
            )));
        }
        Ok(())
    }

    pub(super) fn destroy_master(&self, generation: u32) -> Answer {
        match self.token.destroy_master(generation) {
            Err(TokenError::KeyMissing { .. }) => Ok(Reply::Done),
            other => Ok(other.map(|()| Reply::Done)?),
        }
    }

    pub(super) fn rewrap_key(&self, address: &KeyAddress, bytes: &[u8], generation: u32) -> Answer {
        let appliance = &self.rewrapping_to(generation)?.appliance;
        let (wrapped, _) = sealed::read_key(bytes)?;
        let aad = |generation| sealed::data_key_aad(appliance, generation, address);
        let (key, wrapped) = self.rewrapped(&wrapped, generation, aad)?;
        let sealed = sealed::with_wrap(bytes, &wrapped)?;
        // Once more, from the very bytes that are handed out.
        let (again, _) = sealed::read_key(&sealed)?;
        let again = self.token.unwrap(generation, &aad(generation), &again)?;
        if again.same_as(&key) { Ok(Reply::Sealed(sealed)) } else { Err(Fault::SealBroken) }
    }

    pub(super) fn rewrap_store_key(&self, store_key: &StoreKey, generation: u32) -> Answer {
        let appliance = &self.rewrapping_to(generation)?.appliance;
        let wrapped = sealed::read_wrapped(&store_key.wrapped)?;
        let StoreKey { id, first, .. } = *store_key;
        let aad = |generation| sealed::store_key_aad(appliance, generation, (id, first));
        let (key, wrapped) = self.rewrapped(&wrapped, generation, aad)?;
        let made = StoreKey { id, first, wrapped: sealed::write_wrapped(&wrapped) };
        let again = open_store_key(self.token.as_ref(), appliance, &made)?;
        if again.same_as(&key) { Ok(Reply::StoreKey(made)) } else { Err(Fault::SealBroken) }
    }

    /// Nothing goes back under an older master key than the one in use.
    fn rewrapping_to(&self, generation: u32) -> Result<&Home, Fault> {
        let home = self.home()?;
        if generation >= home.generation {
            return Ok(home);
        }
        Err(Fault::Refused(format!(
            "master generation {generation} is older than {}, which is in use",
            home.generation
        )))
    }

    /// Unwraps under the old generation and wraps under the new one.
    fn rewrapped(
        &self,
        old: &WrappedKey,
        generation: u32,
        aad: impl Fn(u32) -> Vec<u8>,
    ) -> Result<(DataKey, WrappedKey), Fault> {
        let key = self.unwrap(&aad(old.generation), old)?;
        let wrapped = self.token.wrap(generation, &aad(generation), &key)?;
        Ok((key, wrapped))
    }
}
