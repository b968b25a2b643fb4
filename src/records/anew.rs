//! A restore begins another time: what was sealed between the backup and the restore is authentic, at
//! revisions that are used again, and must not pass for what comes after it.
//!
//! So everything that the backup holds is sealed anew, at its revision, under a store key beside which no
//! older one counts; that is bound to the store key, and to every later one.

use futures_util::StreamExt;
use futures_util::stream::iter;

use super::home::put_store_key;
use super::recovery::RECOVERY;
use super::sealing::{Count, seals_after};
use super::{At, HomeRecord, RecordError, Records, RecoveryRecord, address};
use crate::custody::protocol::{Fault, StoreKey};
use crate::custody::{CustodyError, generation_of, store_key_of};
use crate::store::{Batch, Stored, Table};

/// How many records are read and written at once, and how many are asked for at the same time.
const PAGE: usize = 256;
const AT_ONCE: usize = 16;

impl Records {
    /// Seals every record anew that opens; what is broken stays so. Nobody else works with the store.
    /// Returns the store key that counts from here on.
    ///
    /// # Errors
    /// Where store, token or custody does not work.
    pub async fn begin_anew(&self) -> Result<u32, RecordError> {
        let home = self.home().ok_or(RecordError::NotInitialised)?;
        let id = home.newest_store_key().id + 1;
        let made = self.custody.new_store_key(id, id).await?;
        let batch = put_store_key(Batch::new(), &made)?;
        let set = match self.recovery().await {
            Err(RecordError::Broken(_)) => None,
            set => set?,
        };
        let with_wrap = |batch| {
            self.put_store_key_recovery(batch, &made, set.as_ref().map(|it| it.fingerprint))
        };
        let (batch, wrapped) = match with_wrap(batch).await {
            // Custody has not the recovery key that is set: all else is as good as it was.
            Err(RecordError::Custody(CustodyError::Fault(Fault::Recovery(_)))) => {
                (put_store_key(Batch::new(), &made)?, false)
            }
            batch => (batch?, true),
        };
        self.store.commit(batch).await?;
        for table in Table::ALL {
            self.seal_table_anew(&home, &made, table).await?;
        }
        let mut next = home.as_ref().clone();
        next.store_keys.push(made);
        self.replace_home(next);
        *self.count.lock().await = Count::read(self.store.as_ref())?;
        if !wrapped {
            self.not_every_key().await?;
        }
        Ok(id)
    }

    async fn seal_table_anew(
        &self,
        home: &HomeRecord,
        made: &StoreKey,
        table: Table,
    ) -> Result<(), RecordError> {
        let mut after: Option<String> = None;
        loop {
            let page = self.store.scan(table, "", after.as_deref(), PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(last.clone());
            let each = page.into_iter().map(|(key, stored)| async move {
                let revision = stored.revision;
                let sealed = self.sealed_anew(home, made, (table, &key), stored).await;
                sealed.map(|sealed| sealed.map(|sealed| (key, revision, sealed)))
            });
            let mut sealed = iter(each).buffer_unordered(AT_ONCE);
            let (mut batch, mut seals) = (Batch::new(), 0);
            while let Some(one) = sealed.next().await {
                if let Some((key, revision, value)) = one? {
                    batch = batch.put_again(table, &key, revision, value);
                    seals += 1;
                }
            }
            let batch = seals_after(self.store.as_ref(), made.id, seals)?(batch)?;
            self.store.commit(batch).await?;
        }
    }

    /// A record under the store key that was made; `None` where it is not sealed, or does not open.
    async fn sealed_anew(
        &self,
        home: &HomeRecord,
        made: &StoreKey,
        (table, key): (Table, &str),
        stored: Stored,
    ) -> Result<Option<Vec<u8>>, RecordError> {
        let id = store_key_of(&stored.value).filter(|id| *id >= home.first_store_key());
        let old = home.store_keys.iter().find(|old| Some(old.id) == id);
        let Some(old) = old.filter(|old| !home.is_gone(generation_of(&old.wrapped))) else {
            return Ok(None);
        };
        let address = address(table, key, stored.revision);
        match self.custody.open_record(old, address.clone(), stored.value).await {
            Err(CustodyError::Fault(Fault::SealBroken)) => Ok(None),
            value => Ok(Some(self.custody.seal_record(made, address, value?).await?)),
        }
    }

    /// Says no more that every key can be recovered.
    async fn not_every_key(&self) -> Result<(), RecordError> {
        let found = self.load::<RecoveryRecord>(Table::Appliance, RECOVERY).await?;
        let Some(At { revision, record }) = found else { return Ok(()) };
        let record = RecoveryRecord { complete_at: None, ..record };
        let at = (Table::Appliance, RECOVERY, Some(revision));
        let store_key = self.key_for_pass().await?;
        let batch = self.put_sealed_under(&store_key, Batch::new(), at, &record).await?;
        Ok(self.store.commit(batch).await?)
    }
}
