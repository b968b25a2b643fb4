//! The appliance is locked and unlocked.

use std::io::ErrorKind::TimedOut;
use std::time::Duration;

use serde::Deserialize;
use utoipa::ToSchema;

use super::binary::SecretBinary;
use super::error::Error;
use super::gate::{Appliance, Request, Trace, request_id};
use super::lifecycle::Reason;
use super::status::StatusView;
use crate::audit::{Code, Details, Event, EventNote};
use crate::custody::LinkState;
use crate::policy::{Action, Permit, Resource};
use crate::records::{LockRecord, RecordError};
use crate::secret::Pin;
use crate::store::StoreError;
use crate::token::pin_in;

/// Wipe all keys from memory, forget the PIN, and refuse work until `unlock`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    pub reason: Option<Reason>,
}

/// Work again, with a PIN or with the configured one.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Unlock {
    /// The token's user PIN; base64, like every binary field.
    pub pin: Option<SecretBinary>,
}

impl Request for Lock {
    const ACTION: Action = Action::Lock;
    // Whoever has to lock it does not wait for a disk.
    const TRACE: Trace = Trace::Owed;
    type Reply = StatusView;

    fn resource(&self) -> Resource {
        Resource::Appliance
    }

    fn details(&self) -> Details {
        Details { reason: self.reason.map(|reason| Code(reason.as_str())), ..Details::default() }
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<StatusView, Error> {
        let by = permit.caller().name();
        let since = appliance.now();
        let _no_unlock_ends = appliance.locking.lock().await;
        // The last chance to have the trail signed. A token that is away must not keep it open.
        let signed = tokio::time::timeout(LAST_CHECKPOINT, appliance.trail.checkpoint()).await;
        if !matches!(signed, Ok(Ok(_))) {
            tracing::warn!(request_id = request_id(), "no checkpoint before the lock");
        }
        appliance.standing.forget_unlock();
        appliance.close(LockRecord { since, by }).await?;
        Ok(appliance.status().await)
    }
}

impl Appliance {
    /// The PIN of a request, if there is one and whoever asks may give one.
    pub(super) async fn given_pin(
        &self,
        permit: &Permit,
        pin: Option<&SecretBinary>,
    ) -> Result<Option<Pin>, Error> {
        let Some(given) = pin else { return Ok(None) };
        let _may = self.permit_also(permit, Action::GivePin, &Resource::Appliance).await?;
        // No token has such a PIN, and each wrong one brings it nearer to its lock.
        if !(1..=LONGEST_PIN).contains(&given.len()) {
            let rule = format!("1 to {LONGEST_PIN} bytes");
            return Err(Error::Invalid { member: "pin", rule });
        }
        let pin = pin_in(given.plaintext()?.expose()).map_err(|found| {
            let rule = format!("no PIN: it {found}");
            Error::Invalid { member: "pin", rule }
        })?;
        Ok(Some(Pin::copy_from(pin)?))
    }

    /// Has custody end first, whatever the store says, and then keeps the record of it. Where that cannot
    /// be kept now it is owed. To be called with `locking` held.
    async fn close(&self, record: LockRecord) -> Result<(), Error> {
        let closed = self.custody.lock().await;
        let event = match self.keep_lock(&record).await {
            Ok(()) => EventNote::new(Event::Locked),
            Err(error) => {
                tracing::error!(
                    request_id = request_id(),
                    %error,
                    "it is locked, and the store could not be told; it is told as soon as it can be"
                );
                self.standing.owe_lock(Some(record));
                EventNote::because(Event::Locked, Code(Error::from(error).code()))
            }
        };
        self.tell(event).await;
        Ok(closed?)
    }

    async fn keep_lock(&self, record: &LockRecord) -> Result<(), RecordError> {
        let kept = self.records.set_locked(Some(record.clone()));
        let late = || RecordError::Store(StoreError::Io { during: "locking", kind: TimedOut });
        tokio::time::timeout(LONGEST_KEEPING, kept).await.unwrap_or_else(|_| Err(late()))
    }

    /// Keeps the record of a lock that the store could not be told of, as soon as it can.
    pub async fn keep_owed_lock(&self) {
        loop {
            tokio::time::sleep(NEXT_KEEPING).await;
            if self.standing.owed_lock().is_none() || self.store.health().is_err() {
                continue;
            }
            let _no_unlock_ends = self.locking.lock().await;
            if let Some(record) = self.standing.owed_lock()
                && self.keep_lock(&record).await.is_ok()
            {
                self.standing.owe_lock(None);
                tracing::info!("the store has the lock that it could not be told of before");
            }
        }
    }
}

/// How long a lock waits for its record, and how long until one that is owed is tried again.
const LONGEST_KEEPING: Duration = Duration::from_secs(2);
const NEXT_KEEPING: Duration = Duration::from_millis(200);

/// Who asked for an unlock is told what is wrong with the PIN.
pub(super) fn told(error: Error) -> Error {
    match error {
        Error::PinUnavailable { why, .. } => Error::PinUnavailable { why, told: true },
        Error::PinRefused { why, .. } => Error::PinRefused { why, told: true },
        other => other,
    }
}

/// How long a lock waits for the trail to be signed.
const LAST_CHECKPOINT: Duration = Duration::from_secs(1);

/// The longest PIN, in bytes.
const LONGEST_PIN: usize = 255;

impl Request for Unlock {
    const ACTION: Action = Action::Unlock;
    const TRACE: Trace = Trace::Before;
    type Reply = StatusView;

    fn resource(&self) -> Resource {
        Resource::Appliance
    }

    fn details(&self) -> Details {
        Details { with_pin: self.pin.is_some().then_some(true), ..Details::default() }
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<StatusView, Error> {
        // An unlock may take long, and a lock waits for none: the one that comes later counts.
        let locks = {
            let _behind_a_lock = appliance.locking.lock().await;
            appliance.custody.locks()
        };
        let state = appliance.custody.state();
        if matches!(state, LinkState::Unlocked { .. } | LinkState::BrownOut { .. }) {
            return Err(Error::NotLocked);
        }
        // It could not be noted that it is open.
        appliance.store.health().map_err(RecordError::from)?;
        let pin = appliance.given_pin(&permit, self.pin.as_ref()).await?;
        let home = appliance.records.home().map(|home| home.for_custody());
        let unlocked = appliance.custody.unlock(locks, home, pin).await;
        unlocked.map_err(|error| {
            let error = error.into();
            appliance.standing.unlock_failed(&error);
            told(error)
        })?;
        // The token's memory, too, says now whether this is the newest.
        appliance.check_history().await;
        let _no_lock_begins = appliance.locking.lock().await;
        if appliance.custody.locks() != locks {
            return Err(Error::Locked);
        }
        // The trail first: a lock that it knows of and the store does not was taken away by somebody else.
        // An appliance that ends between the two is locked, and nobody was told that it is not.
        if let Err(unwritten) = appliance.trail.event(EventNote::new(Event::Unlocked)).await {
            appliance.custody.lock().await?;
            appliance.tell(EventNote::new(Event::Locked)).await;
            return Err(unwritten.into());
        }
        if let Err(unkept) = appliance.records.set_locked(None).await {
            // Nobody is told that it is open, so it is not.
            let (since, by) = (appliance.now(), permit.caller().name());
            appliance.close(LockRecord { since, by }).await?;
            return Err(unkept.into());
        }
        appliance.standing.owe_lock(None);
        Ok(appliance.status().await)
    }
}
