//! Keys and secrets get another owner.

use serde::Deserialize;
use utoipa::ToSchema;

use super::error::Error;
use super::gate::{Appliance, Request, Trace};
use super::precondition::Preconditions;
use super::secrets::SecretView;
use super::view::{KeyView, Named};
use crate::audit::Details;
use crate::key::{Name, Owner};
use crate::policy::{Action, Permit, Resource};
use crate::records::{At, KeyRecord};

/// Body of a transfer.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TransferBody {
    /// Whom it belongs to from now on: a Unix user by uid, like `unix:1000`.
    #[schema(value_type = String, example = "unix:1000")]
    pub owner: Owner,
}

/// Give a key another owner.
pub struct TransferKey {
    name: Name,
    with: TransferBody,
    conditions: Preconditions,
}

/// Give a secret another owner.
pub struct TransferSecret {
    name: Name,
    with: TransferBody,
    conditions: Preconditions,
}

/// Refuses an owner that no principal could be.
pub(super) fn must_be_able_to_own(owner: &Owner) -> Result<(), Error> {
    let invalid =
        |error: crate::key::OwnerError| Error::Invalid { member: "owner", rule: error.to_string() };
    owner.must_exist().map_err(invalid)
}

impl From<Named<TransferBody>> for TransferKey {
    fn from(Named { name, with, conditions }: Named<TransferBody>) -> Self {
        Self { name, with, conditions }
    }
}

impl From<Named<TransferBody>> for TransferSecret {
    fn from(Named { name, with, conditions }: Named<TransferBody>) -> Self {
        Self { name, with, conditions }
    }
}

impl Request for TransferKey {
    const ACTION: Action = Action::KeyTransfer;
    const TRACE: Trace = Trace::Before;
    type Reply = KeyView;

    fn resource(&self) -> Resource {
        Resource::Key(self.name.clone())
    }

    fn details(&self) -> Details {
        Details { owner: Some(Box::new(self.with.owner.clone())), ..Details::default() }
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<KeyView, Error> {
        must_be_able_to_own(&self.with.owner)?;
        let old = appliance.permitted_key(&permit).await?;
        self.conditions.check(Some(old.revision))?;
        let change = |key: &mut KeyRecord| {
            key.meta.transfer(Some(self.with.owner.clone()));
            Ok(())
        };
        let kept = appliance.change(old, false, change).await?;
        Ok(KeyView::changed(&kept, None))
    }
}

impl Request for TransferSecret {
    const ACTION: Action = Action::SecretTransfer;
    const TRACE: Trace = Trace::Before;
    type Reply = SecretView;

    fn resource(&self) -> Resource {
        Resource::Secret(self.name.clone())
    }

    fn details(&self) -> Details {
        Details { owner: Some(Box::new(self.with.owner.clone())), ..Details::default() }
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<SecretView, Error> {
        must_be_able_to_own(&self.with.owner)?;
        let found = appliance.permitted_secret(&permit).await?;
        self.conditions.check(found.as_ref().map(|found| found.revision))?;
        let At { revision, mut record } = found.ok_or_else(|| appliance.absent("secret"))?;
        record.owner = Some(self.with.owner);
        let revision = appliance.records.put_secret(Some(revision), &record).await?;
        Ok(SecretView::of(At { revision, record }))
    }
}
