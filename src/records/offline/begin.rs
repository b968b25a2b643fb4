//! The token that a reseal is done with: whether it may be, and what is made in it first.

use serde::{Deserialize, Serialize};

use super::super::home::{counted, encode, plain, store_key_at};
use super::super::recovery::put_recovered_store_key;
use super::{Offline, OfflineError};
use crate::custody::{generation_of, token_opens};
use crate::store::{Batch, Expect, Table};
use crate::token::Token;

/// Where a reseal that has begun says which generation it makes.
pub(super) const RESEAL: &str = "reseal";

/// A reseal that has begun.
#[derive(Serialize, Deserialize)]
struct Reseal {
    generation: u32,
    /// The tokens that it was begun with, by manufacturer, model and serial; none in older records. They
    /// only tell whose a master key is: what lies under it, it proves itself.
    #[serde(default)]
    tokens: Vec<String>,
}

/// What a reseal is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// The generation that it makes.
    pub generation: u32,
    /// Whether an earlier one began with a token that held this generation, and this one does not.
    pub anew: bool,
}

impl Offline {
    /// Looks whether this is a token for a reseal, and changes nothing: one that is empty, or that an
    /// earlier call began with. `same_token`: also the one that the store lies under.
    ///
    /// # Errors
    /// [`OfflineError::TokenOpens`] where it opens the store, [`OfflineError::TokenInUse`] where it is
    /// another appliance's.
    pub fn plan(&self, token: &dyn Token, same_token: bool) -> Result<Planned, OfflineError> {
        /// Generations that a token is searched for behind the newest that is known.
        const BEHIND: u32 = 16;
        let generation = self.next_generation();
        let (begun, was_begun) = self.begun(token, generation)?;
        let mut opens = None;
        let in_use = self.home.generation;
        if token.master(in_use)?.is_some() {
            for store_key in self.home.store_keys.iter().rev() {
                let lies_there = generation_of(&store_key.wrapped) == Some(in_use);
                if lies_there && token_opens(token, &self.home.appliance, store_key)? {
                    opens = Some(in_use);
                    break;
                }
            }
        }
        match opens {
            Some(in_use) if !same_token => return Err(OfflineError::TokenOpens(in_use)),
            _ => {}
        }
        for place in 1..=generation + BEHIND {
            let is_ours = opens.is_some() && place < generation || was_begun && place == generation;
            if !is_ours && (token.master(place)?.is_some() || token.signer(place)?.is_some()) {
                return Err(OfflineError::TokenInUse(place));
            }
        }
        let anew = begun.is_some() && token.master(generation)?.is_none();
        Ok(Planned { generation, anew })
    }

    fn next_generation(&self) -> u32 {
        let newest = self.home.masters().iter().map(|known| known.generation).max().unwrap_or(0);
        newest.max(self.home.generation) + 1
    }

    /// The earlier call that began to make this generation, and whether it did with this token.
    fn begun(
        &self,
        token: &dyn Token,
        generation: u32,
    ) -> Result<(Option<Reseal>, bool), OfflineError> {
        let begun = plain::<Reseal>(self.store.as_ref(), RESEAL)?;
        let begun = begun.filter(|begun| begun.generation == generation);
        let name = name_of(token)?;
        let is_with = |begun: &Reseal| begun.tokens.is_empty() || begun.tokens.contains(&name);
        let was_begun = begun.as_ref().is_some_and(is_with);
        Ok((begun, was_begun))
    }

    /// Notes which generation is to be made, and makes it.
    pub(super) async fn begin_reseal(&mut self, token: &dyn Token) -> Result<u32, OfflineError> {
        let generation = self.next_generation();
        let (begun, was_begun) = self.begun(token, generation)?;
        let (master, signer) = (token.master(generation)?, token.signer(generation)?);
        if !was_begun {
            if master.is_some() || signer.is_some() {
                return Err(OfflineError::TokenInUse(generation));
            }
            let mut tokens = begun.map(|begun| begun.tokens).unwrap_or_default();
            tokens.push(name_of(token)?);
            let value = encode(RESEAL, &Reseal { generation, tokens })?;
            let batch = Batch::new().put(Table::Appliance, RESEAL, Expect::Any, value);
            self.store.commit(batch).await?;
        }
        if master.is_none() {
            token.create_master(generation)?;
        }
        if signer.is_none() {
            token.create_signer(generation)?;
        }
        token.canary(generation)?;
        self.have_a_store_key_that_seals(token, generation).await?;
        Ok(generation)
    }

    /// Where the newest store key is lost, another one takes its place: nothing could be sealed.
    async fn have_a_store_key_that_seals(
        &mut self,
        token: &dyn Token,
        generation: u32,
    ) -> Result<(), OfflineError> {
        let newest = self.home.newest_store_key().id;
        if self.store_keys.contains_key(&newest) {
            return Ok(());
        }
        let id = newest + 1;
        let what = || format!("store key {id}");
        let failed = |fault| OfflineError::NotOpened { what: what(), fault };
        let first = self.home.first_store_key();
        let (made, wrap) = self.recoverer.new_store_key((id, first)).map_err(failed)?;
        let stored = made.reseal(token, generation).map_err(failed)?;
        let at = store_key_at(id);
        let value = encode(&at, &stored)?;
        let batch = Batch::new().put(Table::Appliance, &at, Expect::Absent, value);
        let batch = put_recovered_store_key(self.store.as_ref(), batch, &made, wrap)?;
        self.store.commit(counted(batch)).await?;
        self.home.store_keys.push(stored);
        self.store_keys.insert(id, made);
        Ok(())
    }
}

fn name_of(token: &dyn Token) -> Result<String, OfflineError> {
    let info = token.info()?;
    Ok([info.manufacturer, info.model, info.serial].join("/"))
}
