//! The store held against its own record of its state, once custody has opened the store key that it is keyed with.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{HomeRecord, RECOVERY, ROTATION, RecordError, Records};
use crate::custody::protocol::StoreKey;
use crate::store::{Parts, StateCheck, StateFuture, Table};

/// Whether the store was compared in this process.
#[derive(Default)]
pub(super) struct State(AtomicBool);

impl Records {
    /// Whether the store was compared with its record.
    pub fn state_is_checked(&self) -> bool {
        self.state.0.load(Ordering::Acquire)
    }

    /// It was.
    pub fn state_was_checked(&self) {
        self.state.0.store(true, Ordering::Release);
    }

    /// Adds up the whole store and compares it with what the last commit recorded; with `adopt`, what is there counts
    /// from here on. Records can be changed once it fits or was adopted.
    ///
    /// # Errors
    /// Where custody or the store does not work: it is to be asked again.
    pub async fn check_state(&self, adopt: bool) -> Result<StateCheck, RecordError> {
        let home = self.home().ok_or(RecordError::NotInitialised)?;
        let Some(store_key) = state_store_key(&home, self.store.state_key()?) else {
            // A store key that is not there, or of the time before a restore.
            return self.adopt_if(&home, adopt).await;
        };
        let key = self.custody.state_key(store_key).await?;
        let found = self.add_up(key, store_key, adopt).await?;
        if let StateCheck::Differs(parts) = found
            && !adopt
            && !parts.have_appliance()
        {
            self.behind.hold_parts(parts);
            for resource in [RECOVERY, ROTATION] {
                let key = resource.trim_start_matches("appliance/");
                if parts.have(Table::Appliance, key) {
                    self.hold_back(resource);
                }
            }
        }
        Ok(found)
    }

    async fn adopt_if(&self, home: &HomeRecord, adopt: bool) -> Result<StateCheck, RecordError> {
        if adopt {
            let newest = home.newest_store_key();
            let key = self.custody.state_key(newest).await?;
            self.add_up(key, newest, true).await?;
        }
        Ok(StateCheck::Differs(Parts::ALL))
    }

    fn add_up(
        &self,
        key: crate::secret::StateKey,
        store_key: &StoreKey,
        adopt: bool,
    ) -> StateFuture {
        self.store.check_state(key, store_key.id, adopt)
    }
}

/// The store key that the record is keyed with, or the newest where there is no record; `None` where it does not count.
pub(super) fn state_store_key(home: &HomeRecord, recorded: Option<u32>) -> Option<&StoreKey> {
    let Some(id) = recorded else { return Some(home.newest_store_key()) };
    home.store_keys.iter().find(|key| key.id == id && id >= home.first_store_key())
}
