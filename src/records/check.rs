//! Opens every record there is, and every key in them: what a copy of a store is worth.

use std::collections::{BTreeSet, HashMap};

use futures_util::StreamExt;
use futures_util::stream::iter;

use super::{RecordError, Records, ResealedRecord, address, recovery};
use crate::custody::protocol::{Fault, KeyAddress};
use crate::custody::{CustodyError, generation_of};
use crate::key::Name;
use crate::store::{Stored, Table};

/// What was opened, and what did not open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    pub store_keys: u64,
    pub keys: u64,
    /// Versions whose private key was opened and belongs to its public key.
    pub versions: u64,
    /// Versions that have no private key any more.
    pub destroyed: u64,
    pub secrets: u64,
    /// The addresses that do not open, or do not hold what belongs there: `key/payments`.
    pub broken: BTreeSet<String>,
}

/// How many records are read, and how many are asked for at the same time.
const PAGE: usize = 256;
const AT_ONCE: usize = 16;

impl Records {
    /// Opens everything; `progress` is called after every page.
    ///
    /// # Errors
    /// Where store, token or custody does not work: that says nothing about a record.
    pub async fn check_all(
        &self,
        mut progress: impl FnMut(&Checked),
    ) -> Result<Checked, RecordError> {
        let mut checked = Checked::default();
        self.check_store_keys(&mut checked).await?;
        self.check_recovery(&mut checked).await?;
        checked.take(self.rotation().await)?;
        checked.take(self.note::<ResealedRecord>().await)?;
        checked.take(self.reach().await)?;
        let mut versions = HashMap::new();
        let mut after: Option<String> = None;
        while let Some(page) = self.page(Table::Key, &mut after)? {
            let each = page.into_iter().map(|(key, stored)| async move {
                let name = Name::parse(&key).map_err(|_| RecordError::Broken(format!("key/{key}")));
                let result = match name {
                    Ok(name) => self.check_whole(&name, stored).await,
                    Err(error) => Err(error),
                };
                (key, result)
            });
            let mut results = iter(each).buffer_unordered(AT_ONCE);
            while let Some((key, result)) = results.next().await {
                let count = checked.take(result)?;
                checked.keys += u64::from(count.is_some());
                versions.insert(key, count);
            }
            progress(&checked);
        }
        let mut after: Option<String> = None;
        while let Some(page) = self.page(Table::KeyVersion, &mut after)? {
            let known = &versions;
            let each = page.into_iter().map(|(key, stored)| self.check_one(key, stored, known));
            let mut results = iter(each).buffer_unordered(AT_ONCE);
            while let Some(result) = results.next().await {
                match checked.take(result)? {
                    Some(true) => checked.versions += 1,
                    Some(false) => checked.destroyed += 1,
                    None => {}
                }
            }
            progress(&checked);
        }
        let mut after: Option<String> = None;
        while let Some(page) = self.page(Table::Secret, &mut after)? {
            let each = page.into_iter().map(|(key, stored)| async move {
                let name = Name::parse(&key);
                let name = name.map_err(|_| RecordError::Broken(format!("secret/{key}")))?;
                self.open_secret(&name, stored).await.map(drop)
            });
            let mut results = iter(each).buffer_unordered(AT_ONCE);
            while let Some(result) = results.next().await {
                checked.secrets += u64::from(checked.take(result)?.is_some());
            }
            progress(&checked);
        }
        Ok(checked)
    }

    /// Has each store key seal something, which it can only do when it was opened.
    async fn check_store_keys(&self, checked: &mut Checked) -> Result<(), RecordError> {
        let home = self.home().ok_or(RecordError::NotInitialised)?;
        for store_key in &home.store_keys {
            let at = address(Table::Appliance, "check", 0);
            let broken = || format!("appliance/store-key/{:010}", store_key.id);
            let sealed = match home.is_gone(generation_of(&store_key.wrapped)) {
                true => Err(RecordError::Broken(broken())),
                false => told(self.custody.seal_record(store_key, at, Vec::new()).await, broken),
            };
            let opened = checked.take(sealed)?;
            checked.store_keys += u64::from(opened.is_some());
        }
        Ok(())
    }

    /// What would open this without its token: every wrap of a store key that is there is the one that was
    /// kept, and where all were said to be there, none is missing.
    async fn check_recovery(&self, checked: &mut Checked) -> Result<(), RecordError> {
        let set = checked.take(self.recovery().await)?.flatten();
        let home = self.home().ok_or(RecordError::NotInitialised)?;
        for store_key in &home.store_keys {
            if home.is_gone(generation_of(&store_key.wrapped)) {
                continue;
            }
            let found = checked.take(self.store_key_recovery(store_key).await)?;
            let wanted = set.as_ref().filter(|set| set.complete_at.is_some());
            if let (Some(found), Some(wanted)) = (found, wanted)
                && found != Some(wanted.fingerprint)
            {
                checked.broken.insert(format!("appliance/{}", recovery::at(store_key.id)));
            }
        }
        Ok(())
    }

    /// Whether a version has a private key, which was opened then.
    async fn check_one(
        &self,
        key: String,
        stored: Stored,
        known: &HashMap<String, Option<usize>>,
    ) -> Result<bool, RecordError> {
        let broken = || RecordError::Broken(format!("key-version/{key}"));
        let (name, version) = key.split_once('/').ok_or_else(broken)?;
        let version: u32 = version.parse().map_err(|_| broken())?;
        match known.get(name) {
            // A key that is broken itself does not say how many it has.
            Some(None) => {}
            Some(Some(count)) if u32::try_from(*count).is_ok_and(|count| version <= count) => {}
            _ => return Err(broken()),
        }
        let Some((sealed, public)) = self.check_version(&key, stored).await? else {
            return Ok(false);
        };
        let home = self.home().ok_or(RecordError::NotInitialised)?;
        if home.is_gone(generation_of(&sealed)) {
            return Err(broken());
        }
        let address = KeyAddress { name: name.to_owned(), version };
        let result = self.custody.check_key(address, sealed, public).await;
        told(result, || format!("key-version/{key}")).map(|()| true)
    }

    /// The next records of a table; `None` at its end.
    fn page(
        &self,
        table: Table,
        after: &mut Option<String>,
    ) -> Result<Option<Vec<(String, Stored)>>, RecordError> {
        let page = self.store.scan(table, "", after.as_deref(), PAGE)?;
        *after = page.last().map(|(key, _)| key.clone());
        Ok((!page.is_empty()).then_some(page))
    }
}

impl Checked {
    /// Takes in what came of a record; what is broken is named and no reason to end.
    fn take<T>(&mut self, result: Result<T, RecordError>) -> Result<Option<T>, RecordError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(RecordError::Broken(address)) => {
                self.broken.insert(address);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// What custody said of a sealed form.
fn told<T>(
    result: Result<T, CustodyError>,
    address: impl FnOnce() -> String,
) -> Result<T, RecordError> {
    result.map_err(|error| match error {
        CustodyError::Fault(Fault::SealBroken | Fault::BadKey(_)) => RecordError::Broken(address()),
        other => other.into(),
    })
}
