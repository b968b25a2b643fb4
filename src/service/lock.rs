//! The appliance is locked and unlocked.

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
use crate::records::LockRecord;
use crate::secret::Pin;

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
    const TRACE: Trace = Trace::Before;
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
        appliance.records.set_locked(Some(LockRecord { since, by })).await?;
        // The last chance to have the trail signed. A token that is away must not keep it open.
        let signed = tokio::time::timeout(LAST_CHECKPOINT, appliance.trail.checkpoint()).await;
        if !matches!(signed, Ok(Ok(_))) {
            tracing::warn!(request_id = request_id(), "no checkpoint before the lock");
        }
        appliance.standing.forget_unlock();
        appliance.custody.lock().await?;
        appliance.tell(EventNote::new(Event::Locked)).await;
        Ok(appliance.status().await)
    }
}

/// Who asked for an unlock is told what is wrong with the PIN.
fn told(error: Error) -> Error {
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

    async fn run(self, _permit: Permit, appliance: &Appliance) -> Result<StatusView, Error> {
        // An unlock may take long, and a lock waits for none: the one that comes later counts.
        let locks = {
            let _behind_a_lock = appliance.locking.lock().await;
            appliance.custody.locks()
        };
        let state = appliance.custody.state();
        if matches!(state, LinkState::Unlocked { .. } | LinkState::BrownOut { .. }) {
            return Err(Error::NotLocked);
        }
        let pin = match &self.pin {
            // No token has such a PIN, and each wrong one brings it nearer to its lock.
            Some(given) if !(1..=LONGEST_PIN).contains(&given.len()) => {
                let rule = format!("1 to {LONGEST_PIN} bytes");
                return Err(Error::Invalid { member: "pin", rule });
            }
            Some(given) => Some(Pin::copy_from(given.plaintext()?.expose())?),
            None => None,
        };
        let home = appliance.records.home().map(|home| home.for_custody());
        let unlocked = appliance.custody.unlock(locks, home, pin).await;
        unlocked.map_err(|error| {
            let error = error.into();
            appliance.standing.unlock_failed(&error);
            told(error)
        })?;
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
        appliance.records.set_locked(None).await?;
        Ok(appliance.status().await)
    }
}
