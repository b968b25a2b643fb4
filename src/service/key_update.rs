//! What may be changed of a key besides its state.

use serde::Deserialize;
use utoipa::ToSchema;

use super::error::Error;
use super::gate::{Appliance, Request, Trace};
use super::view::{KeyView, Named};
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

    async fn run(self, _permit: Permit, appliance: &Appliance) -> Result<KeyView, Error> {
        let Some(seconds) = self.with.serve_without_token_seconds else {
            let rule = "name at least one thing to change".to_owned();
            return Err(Error::Invalid { member: "serve_without_token_seconds", rule });
        };
        let seconds = allowed(seconds)?;
        let old = appliance.key(&self.name).await?;
        let before = old.meta.serve_without_token_seconds();
        let change = |key: &mut KeyRecord| {
            key.meta.serve_without_token(seconds);
            Ok(())
        };
        let kept = appliance.change(old, false, change).await?;
        if seconds < before {
            // What is open was allowed more.
            appliance.forget_opened(&self.name).await;
        }
        Ok(KeyView::changed(&kept, None))
    }
}

/// An allowance within its bound.
pub(super) fn allowed(seconds: u32) -> Result<u32, Error> {
    if seconds <= KeyMeta::LONGEST_WITHOUT_TOKEN {
        return Ok(seconds);
    }
    let rule = format!("at most {} seconds", KeyMeta::LONGEST_WITHOUT_TOKEN);
    Err(Error::Invalid { member: "serve_without_token_seconds", rule })
}
