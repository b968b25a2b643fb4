//! Master keys over the generations: found, made and destroyed in the token; and the rewrap, which gives
//! the same 32 bytes another key above them. What those seal is never opened for it.

use super::keyring::{Keyring, open_store_key};
use super::protocol::{Answer, Fault, KeyAddress, MasterFacts, MasterFound, Reply, StoreKey};
use super::sealed;
use crate::secret::DataKey;
use crate::token::{Token, TokenError, WrappedKey};

/// Generations that are looked for where nothing says which there are.
const MOST_GENERATIONS: u32 = 64;

/// The newest generation of which the token holds a master key, fit or not.
pub fn newest(token: &dyn Token) -> Result<Option<u32>, Fault> {
    let mut newest = None;
    for generation in 1..=MOST_GENERATIONS {
        match token.master(generation) {
            Ok(None) => {}
            Ok(Some(_)) | Err(TokenError::KeyUnfit { .. } | TokenError::KeyAmbiguous { .. }) => {
                newest = Some(generation);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(newest)
}

impl Keyring {
    pub(super) fn masters(&self, generations: &[u32]) -> Answer {
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
    /// kept it on record, that there was none before.
    pub(super) fn make_master(&self, generation: u32) -> Answer {
        self.home()?;
        if self.token.master(generation)?.is_none() {
            self.token.create_master(generation)?;
        }
        self.token.canary(generation)?;
        Ok(Reply::Done)
    }

    pub(super) fn destroy_master(&self, generation: u32) -> Answer {
        if self.home()?.generation == generation {
            return Err(Fault::Protocol(format!("master generation {generation} is in use")));
        }
        match self.token.destroy_master(generation) {
            Err(TokenError::KeyMissing { .. }) => Ok(Reply::Done),
            other => Ok(other.map(|()| Reply::Done)?),
        }
    }

    pub(super) fn rewrap_key(&self, address: &KeyAddress, bytes: &[u8], generation: u32) -> Answer {
        let appliance = &self.home()?.appliance;
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
        let appliance = &self.home()?.appliance;
        let wrapped = sealed::read_wrapped(&store_key.wrapped)?;
        let StoreKey { id, first, .. } = *store_key;
        let aad = |generation| sealed::store_key_aad(appliance, generation, (id, first));
        let (key, wrapped) = self.rewrapped(&wrapped, generation, aad)?;
        let made = StoreKey { id, first, wrapped: sealed::write_wrapped(&wrapped) };
        let again = open_store_key(self.token.as_ref(), appliance, &made)?;
        if again.same_as(&key) { Ok(Reply::StoreKey(made)) } else { Err(Fault::SealBroken) }
    }

    /// Unwraps under the old generation and wraps under the new one.
    fn rewrapped(
        &self,
        old: &WrappedKey,
        generation: u32,
        aad: impl Fn(u32) -> Vec<u8>,
    ) -> Result<(DataKey, WrappedKey), Fault> {
        let key = self.token.unwrap(old.generation, &aad(old.generation), old)?;
        let wrapped = self.token.wrap(generation, &aad(generation), &key)?;
        Ok((key, wrapped))
    }
}
