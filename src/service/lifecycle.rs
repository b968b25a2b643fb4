//! Keys change: rotation, and the states of SP 800-57 part 1 §7.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Deserialize;
use utoipa::ToSchema;

use super::authorize::facts_of_key;
use super::error::Error;
use super::gate::{Appliance, Request, Trace, request_id};
use super::keys::thumbprint;
use super::precondition::Preconditions;
use super::scheduling::{Cost, Rank};
use super::view::{KeyView, Named};
use crate::audit::{Code, Details};
use crate::custody::protocol::KeyAddress;
use crate::key::{Name, Transition, WaitingPeriod};
use crate::policy::{Action, Permit, Resource};
use crate::records::{KeyRecord, RecordError, VersionRecord};

/// Why a key changes; a word of a fixed set, so that it can be told to the trail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    Unspecified,
    KeyCompromise,
    SuspectedCompromise,
    Superseded,
    CessationOfOperation,
    Cryptoperiod,
    Maintenance,
    Mistake,
}

/// Body of a change of state.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeBody {
    /// The version to change; all that can take the step unless said.
    pub version: Option<u32>,
    pub reason: Option<Reason>,
}

/// Body of a destruction.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DestroyBody {
    pub version: Option<u32>,
    pub reason: Option<Reason>,
    /// Days to wait, up to 365; the configured ones are the fewest, and wait unless said.
    #[schema(value_type = Option<u16>)]
    pub waiting_period_days: Option<u16>,
}

/// Body of a rotation.
pub struct Rotate {
    pub name: Name,
    pub with: ChangeBody,
    pub conditions: Preconditions,
}

/// Declares the request structs whose act is one [`Transition`].
macro_rules! transitions {
    ($($(#[$doc:meta])* $name:ident: $action:ident, $transition:ident;)*) => {$(
        $(#[$doc])*
        pub struct $name {
            pub name: Name,
            pub with: ChangeBody,
            pub conditions: Preconditions,
        }

        impl From<Named<ChangeBody>> for $name {
            fn from(Named { name, with, conditions }: Named<ChangeBody>) -> Self {
                Self { name, with, conditions }
            }
        }

        impl Request for $name {
            const ACTION: Action = Action::$action;
            const TRACE: Trace = Trace::Before;
            type Reply = KeyView;

            fn resource(&self) -> Resource {
                Resource::Key(self.name.clone())
            }

            fn details(&self) -> Details {
                told(self.with.version, self.with.reason)
            }

            async fn run(self, permit: Permit, appliance: &Appliance) -> Result<KeyView, Error> {
                let step = Transition::$transition;
                appliance.step(&permit, self.with.version, step, &self.conditions).await
            }
        }
    )*};
}

transitions! {
    /// Halt a version, or all active ones, for the time being.
    Suspend: KeySuspend, Suspend;
    /// Let suspended versions work again.
    Resume: KeyResume, Resume;
    /// End the cryptoperiod of a version, or of all.
    Deactivate: KeyDeactivate, Deactivate;
    /// Stop a version, or all, at once: somebody else knows it, or may.
    Compromise: KeyCompromise, Compromise;
    /// Cancel a destruction that waits.
    Restore: KeyRestore, Restore;
}

/// Destroy a version, or the key, after a waiting period.
pub type Destroy = Named<DestroyBody>;

impl From<Named<ChangeBody>> for Rotate {
    fn from(Named { name, with, conditions }: Named<ChangeBody>) -> Self {
        Self { name, with, conditions }
    }
}

impl Request for Destroy {
    const ACTION: Action = Action::KeyDestroy;
    const TRACE: Trace = Trace::Before;
    type Reply = KeyView;

    fn resource(&self) -> Resource {
        Resource::Key(self.name.clone())
    }

    fn details(&self) -> Details {
        let days = self.with.waiting_period_days;
        Details { days, ..told(self.with.version, self.with.reason) }
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<KeyView, Error> {
        let period = appliance.waiting_period(self.with.waiting_period_days)?;
        appliance.must_believe_clock()?;
        let step = Transition::ScheduleDestruction(period);
        appliance.step(&permit, self.with.version, step, &self.conditions).await
    }
}

impl Request for Rotate {
    const ACTION: Action = Action::KeyRotate;
    const TRACE: Trace = Trace::Before;
    type Reply = KeyView;

    fn resource(&self) -> Resource {
        Resource::Key(self.name.clone())
    }

    fn details(&self) -> Details {
        told(None, self.with.reason)
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<KeyView, Error> {
        if self.with.version.is_some() {
            let rule = "a rotation makes a new version and takes none".to_owned();
            return Err(Error::Invalid { member: "version", rule });
        }
        let old = appliance.permitted_key(&permit).await?;
        self.conditions.check(Some(old.revision))?;
        old.meta.may_rotate()?;
        let algorithm = old.meta.algorithm();
        // Another may have changed the key while this waited, and is seen after it.
        drop(old);
        let work = (Cost::of_generation(algorithm), Rank::First);
        let _slot = appliance.generation_slot(permit.caller(), work).await?;
        let old = appliance.permitted_key(&permit).await?;
        self.conditions.check(Some(old.revision))?;
        old.meta.may_rotate()?;
        let version = u32::try_from(old.versions.len()).unwrap_or(u32::MAX).saturating_add(1);
        let address = KeyAddress { name: self.name.to_string(), version };
        let _same_master = appliance.same_master().await?;
        let made = appliance.custody.generate_key(address.clone(), old.meta.algorithm()).await?;
        let kid = thumbprint(&made.public)?;
        let record = Arc::new(appliance.to_keep(address, made).await?);
        appliance.must_cover(&permit, facts_of_key(&old.meta))?;
        let add = |key: &mut KeyRecord| {
            key.meta.rotate(kid.clone(), appliance.now())?;
            key.versions.push(Arc::clone(&record));
            Ok(())
        };
        let kept = appliance.change(old, false, add).await?;
        appliance.forget_opened(&self.name).await;
        Ok(KeyView::changed(&kept, Some(version)))
    }
}

/// What the trail is told of a change before it is made.
fn told(version: Option<u32>, reason: Option<Reason>) -> Details {
    let reason = reason.map(|reason| Code(reason.as_str()));
    Details { version, reason, ..Details::default() }
}

impl Reason {
    /// The word on the wire and in the trail: `key-compromise`.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Unspecified => "unspecified",
            Reason::KeyCompromise => "key-compromise",
            Reason::SuspectedCompromise => "suspected-compromise",
            Reason::Superseded => "superseded",
            Reason::CessationOfOperation => "cessation-of-operation",
            Reason::Cryptoperiod => "cryptoperiod",
            Reason::Maintenance => "maintenance",
            Reason::Mistake => "mistake",
        }
    }
}

impl Appliance {
    /// How long a destruction waits: the configured days are the fewest, and what waits them unless said.
    pub(super) fn waiting_period(&self, asked: Option<u16>) -> Result<WaitingPeriod, Error> {
        let least = self.settings().destroy_wait_days;
        let Some(days) = asked else { return Ok(least) };
        let period = WaitingPeriod::of_days(days)?;
        if period.days() >= least.days() {
            return Ok(period);
        }
        let rule = format!(
            "at least {} days, which the configuration sets ([keys] destroy_wait_days)",
            least.days()
        );
        Err(Error::Invalid { member: "waiting_period_days", rule })
    }

    /// Takes a step with one version of a key, or with all that can take it.
    pub(super) async fn step(
        &self,
        permit: &Permit,
        version: Option<u32>,
        transition: Transition,
        conditions: &Preconditions,
    ) -> Result<KeyView, Error> {
        let old = self.permitted_key(permit).await?;
        conditions.check(Some(old.revision))?;
        let name = old.meta.name().clone();
        let mut changed = Vec::new();
        let take = |key: &mut KeyRecord| {
            changed = key.meta.apply(version, transition, self.time_for(transition))?;
            if transition == Transition::Destroy {
                for version in &changed {
                    shred(key, *version);
                }
            }
            Ok(())
        };
        let kept = self.change(old, transition.restricts(), take).await?;
        self.forget_opened(&name).await;
        let one = match changed[..] {
            [one] => Some(one),
            _ => None,
        };
        Ok(KeyView::changed(&kept, one))
    }

    /// Changes a key and keeps it. Where all that another did to it meanwhile was to rewrap it, which no
    /// caller has to know of, the change is made to what it has become. What `restricts` the key is not
    /// refused for want of room.
    pub(super) async fn change(
        &self,
        mut old: Arc<KeyRecord>,
        restricts: bool,
        mut change: impl FnMut(&mut KeyRecord) -> Result<(), Error>,
    ) -> Result<Arc<KeyRecord>, Error> {
        loop {
            let mut new = KeyRecord::clone(&old);
            change(&mut new)?;
            let changed = match restricts {
                true => self.records.restrict_key(&old, new).await,
                false => self.records.change_key(&old, new).await,
            };
            match changed {
                Err(RecordError::Conflict) => {
                    let now = self.key(old.meta.name()).await?;
                    if now.meta != old.meta || now.revision == old.revision {
                        return Err(Error::Conflict);
                    }
                    old = now;
                }
                result => return Ok(result?),
            }
        }
    }

    /// The time that a step is taken at. Waiting goes by the time that has passed where the clock cannot
    /// be believed.
    fn time_for(&self, transition: Transition) -> Timestamp {
        match transition {
            Transition::ScheduleDestruction(_) => self.waiting_begins(),
            Transition::Restore => self.due_now(),
            _ => self.now(),
        }
    }

    /// Has custody wipe what it holds open of a key. Should custody be away, it holds nothing.
    pub(super) async fn forget_opened(&self, name: &Name) {
        if let Err(error) = self.custody.drop_keys(Some(name.as_str()), None).await {
            tracing::warn!(request_id = request_id(), key = %name, %error, "custody could not be told to forget a key");
        }
    }
}

/// Takes the sealed key, and with it its wrapped data key, out of a version's record.
fn shred(record: &mut KeyRecord, version: u32) {
    let index = usize::try_from(version).ok().and_then(|version| version.checked_sub(1));
    if let Some(slot) = index.and_then(|index| record.versions.get_mut(index)) {
        let emptied =
            VersionRecord { sealed: Vec::new(), recovery: Vec::new(), ..slot.as_ref().clone() };
        *slot = Arc::new(emptied);
    }
}
