//! Records that are older than is known from elsewhere, or gone: authentic, and yet not what was kept last.

use std::collections::HashSet;
use std::sync::{PoisonError, RwLock};

use super::{RecordError, Records};
use crate::key::Name;
use crate::store::{Parts, Table};

/// The records of the recovery key and of the pass over all keys, as [`Records::reached`] takes them.
pub const RECOVERY: &str = "appliance/recovery";
pub const ROTATION: &str = "appliance/rotation";

/// Addresses that are not served until the process starts anew.
#[derive(Default)]
pub struct Behind(RwLock<HashSet<(Table, String)>>, RwLock<Parts>);

impl Behind {
    /// Nothing in these parts of the store is served.
    pub(super) fn hold_parts(&self, parts: Parts) {
        *self.1.write().unwrap_or_else(PoisonError::into_inner) = parts;
    }
}

impl Records {
    /// The revision that the record of a resource (`key/payments`, `secret/stripe`) has reached, deleted
    /// or not; `None` where no resource of this name could have one.
    pub fn reached(&self, resource: &str) -> Result<Option<u64>, RecordError> {
        match address_of(resource) {
            Some((table, key)) => Ok(Some(self.store.next_revision(table, key)?.saturating_sub(1))),
            None => Ok(None),
        }
    }

    /// Takes the record of a resource for broken from now on: the one that is there, and none, too.
    pub fn hold_back(&self, resource: &str) {
        let Some((table, key)) = address_of(resource) else { return };
        let mut behind = self.behind.0.write().unwrap_or_else(PoisonError::into_inner);
        behind.insert((table, key.to_owned()));
        drop(behind);
        if let (Table::Key, Ok(name)) = (table, Name::parse(key)) {
            self.opened.forget(&name);
        }
    }

    /// Serves again what was held back, because it was made anew.
    pub(super) fn release(&self, resources: &[&str]) {
        let mut behind = self.behind.0.write().unwrap_or_else(PoisonError::into_inner);
        for (table, key) in resources.iter().filter_map(|resource| address_of(resource)) {
            behind.remove(&(table, key.to_owned()));
        }
    }

    /// Refuses what is held back.
    pub(super) fn must_not_be_behind(&self, table: Table, key: &str) -> Result<(), RecordError> {
        let behind = self.behind.0.read().unwrap_or_else(PoisonError::into_inner);
        let parts = *self.behind.1.read().unwrap_or_else(PoisonError::into_inner);
        let is_of_part = table != Table::Appliance && parts.have(table, key);
        if is_of_part || !behind.is_empty() && behind.contains(&(table, key.to_owned())) {
            return Err(RecordError::Broken(format!("{}/{key}", table.as_str())));
        }
        Ok(())
    }
}

fn address_of(resource: &str) -> Option<(Table, &str)> {
    let (kind, name) = resource.split_once('/')?;
    let table = match kind {
        _ if [RECOVERY, ROTATION].contains(&resource) => return Some((Table::Appliance, name)),
        "key" => Table::Key,
        "secret" => Table::Secret,
        _ => return None,
    };
    Name::parse(name).is_ok().then_some((table, name))
}
