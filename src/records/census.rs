//! What lies under which master generation, and what could be recovered without the token.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::join_all;

use super::{RecordError, Records};
use crate::custody::{Fingerprint, generation_of, recovery_of};
use crate::key::Name;

/// What lies under a master generation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dependents {
    pub store_keys: u64,
    pub key_versions: u64,
    /// The first of them, in words.
    pub first: Vec<String>,
}

/// What lies under which generation, and what could not be asked because it does not open.
#[derive(Debug, Default)]
pub struct Census {
    pub under: BTreeMap<u32, Dependents>,
    /// How many of them are wrapped to the recovery key, too.
    pub recoverable_versions: u64,
    pub recoverable_store_keys: u64,
    pub broken: Vec<String>,
}

/// How many are named where something is refused for them.
const NAMED: usize = 5;

/// How many keys are read side by side.
const ABREAST: usize = 16;

impl Records {
    /// What lies under which generation. Opens the record of every key, and keeps none of them.
    pub async fn census(&self) -> Result<Census, RecordError> {
        let mut census = Census::default();
        let home = self.home().ok_or(RecordError::NotInitialised)?;
        // By a record that is none, nothing can be recovered for certain.
        let (fingerprint, unproved) = match self.recovery().await {
            Err(RecordError::Broken(_)) => (None, Arc::default()),
            set => (set?.map(|set| set.fingerprint), self.unproved_store_keys().await?),
        };
        for store_key in &home.store_keys {
            let is_gone = home.is_gone(generation_of(&store_key.wrapped));
            let recoverable = !is_gone && !unproved.contains(&store_key.id);
            census.recoverable_store_keys += u64::from(fingerprint.is_some() && recoverable);
            match generation_of(&store_key.wrapped) {
                Some(generation) => {
                    census.add(generation, format!("store key {}", store_key.id)).store_keys += 1;
                }
                None => census.broken.push(format!("store key {}", store_key.id)),
            }
        }
        let mut after: Option<String> = None;
        loop {
            let page = self.key_names(after.as_deref(), PAGE)?;
            for names in page.chunks(ABREAST) {
                let read = names.iter().map(|name| self.census_of(name, fingerprint));
                for (name, found) in names.iter().zip(join_all(read).await) {
                    census.take(name, found)?;
                }
            }
            match page.last() {
                Some(last) if page.len() == PAGE => after = Some(last.clone()),
                _ => return Ok(census),
            }
        }
    }

    /// The numbers of a key's versions, which generation each lies under, and whether it is recoverable.
    async fn census_of(
        &self,
        name: &str,
        recovery: Option<Fingerprint>,
    ) -> Result<Vec<(u32, u32, bool)>, RecordError> {
        let broken = || RecordError::Broken(format!("key/{name}"));
        let parsed = Name::parse(name).map_err(|_| broken())?;
        let record = match self.opened.key(&parsed) {
            Some(known) => known,
            None => match self.stored_key(&parsed).await? {
                Some(stored) => Arc::new(stored),
                None => return Ok(Vec::new()),
            },
        };
        let mut found = Vec::new();
        for (version, slot) in (1..).zip(&record.versions) {
            if !slot.sealed.is_empty() {
                let recoverable = recovery.is_some() && recovery_of(&slot.recovery) == recovery;
                let generation = generation_of(&slot.sealed).ok_or_else(broken)?;
                found.push((version, generation, recoverable));
            }
        }
        Ok(found)
    }

    /// How many keys there are, as they stand in the store.
    pub fn count_keys(&self) -> Result<u64, RecordError> {
        let (mut count, mut after) = (0, None::<String>);
        loop {
            let page = self.key_names(after.as_deref(), PAGE)?;
            count += page.len() as u64;
            match page.last() {
                Some(last) if page.len() == PAGE => after = Some(last.clone()),
                _ => return Ok(count),
            }
        }
    }
}

/// How many names are read at once.
const PAGE: usize = 1000;

impl Census {
    fn add(&mut self, generation: u32, what: String) -> &mut Dependents {
        let dependents = self.under.entry(generation).or_default();
        if dependents.first.len() < NAMED {
            dependents.first.push(what);
        }
        dependents
    }

    fn take(
        &mut self,
        name: &str,
        found: Result<Vec<(u32, u32, bool)>, RecordError>,
    ) -> Result<(), RecordError> {
        match found {
            Ok(versions) => {
                for (version, generation, recoverable) in versions {
                    self.recoverable_versions += u64::from(recoverable);
                    let what = format!("key/{name} version {version}");
                    self.add(generation, what).key_versions += 1;
                }
                Ok(())
            }
            Err(RecordError::Broken(_)) => {
                self.broken.push(format!("key/{name}"));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
