//! What may be changed of a key besides its state.

use std::sync::Arc;

use serde::Deserialize;
use utoipa::ToSchema;

use super::error::Error;
use super::gate::{Appliance, Request, Trace, request_id};
use super::view::{KeyView, Named};
use crate::audit::Details;
use crate::key::KeyMeta;
use crate::policy::{Action, Permit, Resource};
use crate::records::KeyRecord;

/// Body of a change of what may be changed of a key: what is not named stays as it is.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateBody {
    /// For how many seconds of an outage of the token the opened key may go on serving; 0 is not at all.
    #[schema(maximum = 604800)]
    pub serve_without_token_seconds: Option<u32>,
}

/// Change what may be changed of a key.
pub type UpdateKey = Named<UpdateBody>;

impl Request for UpdateKey {
    const ACTION: Action = Action::KeyUpdate;
    const TRACE: Trace = Trace::Before;
    type Reply = KeyView;

    fn resource(&self) -> Resource {
        Resource::Key(self.name.clone())
    }

    fn details(&self) -> Details {
        let outage_seconds = self.with.serve_without_token_seconds;
        Details { outage_seconds, ..Details::default() }
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<KeyView, Error> {
        let Some(seconds) = self.with.serve_without_token_seconds else {
            let rule = "name at least one thing to change".to_owned();
            return Err(Error::Invalid { member: "serve_without_token_seconds", rule });
        };
        let seconds = appliance.grace(seconds)?;
        let old = appliance.permitted_key(&permit).await?;
        self.conditions.check(Some(old.revision))?;
        let change = |key: &mut KeyRecord| {
            key.meta.serve_without_token(seconds);
            Ok(())
        };
        let kept = appliance.change(old, false, change).await?;
        appliance.tell_allowance(&kept).await;
        Ok(KeyView::changed(&kept, None))
    }
}

impl Appliance {
    /// A time within its bounds: that of any key, and that of custody's configuration.
    pub(super) fn grace(&self, seconds: u32) -> Result<u32, Error> {
        let most = self.custody.max_outage_grace_seconds().min(KeyMeta::LONGEST_WITHOUT_TOKEN);
        if seconds <= most {
            return Ok(seconds);
        }
        let rule = match most {
            KeyMeta::LONGEST_WITHOUT_TOKEN => format!("at most {most} seconds"),
            _ => format!("at most {most} seconds, by [custody] max_outage_grace_seconds"),
        };
        Err(Error::Invalid { member: "serve_without_token_seconds", rule })
    }

    /// Tells custody how long the opened key may serve without the token. Whoever may have told it of an
    /// older record does so, and looks again after: the last word is that of the record in force.
    pub(super) async fn tell_allowance(&self, told: &Arc<KeyRecord>) {
        let name = told.meta.name();
        let mut told = Arc::clone(told);
        loop {
            let seconds = told.meta.serve_without_token_seconds();
            if let Err(error) = self.custody.allow(name.as_str(), seconds).await {
                tracing::warn!(request_id = request_id(), key = %name, %error, "custody could not be told an allowance");
                return;
            }
            match self.key(name).await {
                Ok(now) if now.revision != told.revision => told = now,
                _ => return,
            }
        }
    }
}
