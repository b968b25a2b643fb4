//! Carries out destructions that fell due, also those that did while the daemon was down.

use uuid::Uuid;

use super::error::Error;
use super::gate::{Appliance, Call, Request, Trace, outcome, told};
use super::precondition::Preconditions;
use super::view::{KeyView, Page};
use crate::audit::{Details, Intent};
use crate::identity::Caller;
use crate::key::{Name, Transition};
use crate::policy::{Action, Permit, Resource};
use crate::records::RecordError;

/// The part of Strongroom that acts here, as it stands in the trail: `system:sweep`.
pub(super) const PART: &str = "sweep";

/// How far the first sweep has come through all keys.
#[derive(Debug)]
pub enum Seen {
    /// To this one and not beyond.
    UpTo(Option<String>),
    All,
}

/// Destroy one version whose waiting period is over.
struct DestroyDue {
    name: Name,
    version: u32,
}

impl Request for DestroyDue {
    const ACTION: Action = Action::KeyDestroy;
    const TRACE: Trace = Trace::Before;
    type Reply = KeyView;

    fn resource(&self) -> Resource {
        Resource::Key(self.name.clone())
    }

    fn details(&self) -> Details {
        Details { version: Some(self.version), ..Details::default() }
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<KeyView, Error> {
        appliance
            .step(&permit, Some(self.version), Transition::Destroy, &Preconditions::default())
            .await
    }
}

impl Appliance {
    /// Destroys what is due; returns how many versions were. The first one looks through all keys, those
    /// after it only at keys that something waits of. A key that cannot be dealt with is named in the log
    /// and passed over until the next one.
    ///
    /// # Errors
    /// What ended the sweep early, because it is not about one key; what it did stays done, the next one
    /// goes on.
    pub async fn sweep(&self, seen: &mut Seen) -> Result<usize, Error> {
        let mut destroyed = 0;
        self.settle_destructions().await;
        while let Seen::UpTo(after) = seen {
            let page = self.records.key_names(after.as_deref(), Page::MOST)?;
            for name in &page {
                self.sweep_key(name, &mut destroyed).await?;
                *seen = Seen::UpTo(Some(name.clone()));
            }
            if page.len() < Page::MOST {
                *seen = Seen::All;
            }
        }
        for name in self.records.due_keys(self.due_now()) {
            self.sweep_key(&name, &mut destroyed).await?;
        }
        self.destroy_due_masters().await;
        Ok(destroyed)
    }

    /// Destroys what is due of one key. What stops this one alone is no error.
    async fn sweep_key(&self, name: &str, destroyed: &mut usize) -> Result<(), Error> {
        let result = self.destroy_due_of(name, destroyed).await;
        if result.is_err() {
            self.records.doubt_waiting(name);
        }
        match result {
            Err(error) if !stops_all(&error) => {
                tracing::error!(key = name, %error, "the sweep passes this key over");
                Ok(())
            }
            result => result,
        }
    }

    async fn destroy_due_of(&self, name: &str, destroyed: &mut usize) -> Result<(), Error> {
        let broken = || Error::Record(RecordError::Broken("key/?".to_owned()));
        let name = Name::parse(name).map_err(|_| broken())?;
        let Some(key) = self.records.look_at_waiting(&name).await? else { return Ok(()) };
        for version in key.meta.due(self.due_now()) {
            self.destroy_due(DestroyDue { name: name.clone(), version }).await?;
            *destroyed += 1;
        }
        Ok(())
    }

    /// The same way as every request, but for the judging: it was permitted when it was scheduled.
    async fn destroy_due(&self, request: DestroyDue) -> Result<(), Error> {
        let call = Call { caller: Caller::System(PART), request_id: Uuid::now_v7() };
        let resource = request.resource();
        let intent = Intent::new(call.request_id, &call.caller, Action::KeyDestroy, &resource)
            .with(request.details());
        let (name, version, request_id) = (request.name.clone(), request.version, call.request_id);
        let entry = self.trail.begin(intent).durable().await?;
        let permit = Permit::of_system(PART, Action::KeyDestroy, resource);
        let result = request.run(permit, self).await;
        let changes = Some(self.records.changes());
        let outcome = outcome(&result);
        let details = Details { changes, ..outcome.details.clone() };
        let written = self.trail.close(entry, outcome.with(details)).durable().await;
        told(result, written)?;
        tracing::info!(%request_id, key = %name, version, "destroyed, its waiting period being over");
        Ok(())
    }
}

/// Whether it would be the same with every other key: it is about trail, store, token or custody.
fn stops_all(error: &Error) -> bool {
    !matches!(
        error.code(),
        "record-broken" | "conflict" | "key-state" | "no-such-version" | "outcome-unrecorded"
    )
}
