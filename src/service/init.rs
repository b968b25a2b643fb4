//! The appliance begins: its keys are made in the token.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::Error;
use super::gate::{Appliance, Request, Trace, Traced, request_id};
use crate::audit::{Event, EventNote};
use crate::custody::CustodyError;
use crate::custody::protocol::Fault;
use crate::policy::{Action, Permit, Resource};
use crate::records::HomeRecord;
use crate::secret::ArenaError;

/// Generate master key and trail signing key in the token, and the store key.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Init {
    /// Finish an initialisation that was cut off: keeps what is in the token already.
    pub resume: bool,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct InitView {
    /// The appliance's identifier, 32 hex digits.
    pub appliance: String,
    /// Master generation in use.
    pub generation: u32,
    /// What was generated now.
    pub created: Vec<String>,
}

impl Request for Init {
    const ACTION: Action = Action::Initialise;
    const TRACE: Trace = Trace::Before;
    type Reply = InitView;

    fn resource(&self) -> Resource {
        Resource::Appliance
    }

    async fn run(self, _permit: Permit, appliance: &Appliance) -> Result<InitView, Error> {
        let _one_at_a_time = appliance.founding.lock().await;
        // An earlier one may have been kept although its disk failed at it.
        if appliance.records.home().is_none() {
            appliance.records.reload_home().await?;
        }
        if let Some(home) = appliance.records.home() {
            let mut what = format!("it is appliance {}", home.appliance);
            let (state, why) = appliance.state();
            if state == "master-unfit" {
                what += &format!(", and this token is not the one that it was made with ({why})");
            }
            return Err(Error::AlreadyInitialised(what));
        }
        // Nothing is made in the token that the store could not be told of.
        appliance.must_take_changes()?;
        if self.resume {
            appliance.history_must_be_ours().await?;
        }
        let id = fresh_id()?;
        let made = match appliance.custody.init(&id, self.resume).await {
            Err(CustodyError::Fault(Fault::Exists(what))) => {
                return Err(Error::AlreadyInitialised(format!(
                    "{what}; nothing was changed. If an earlier init was cut off, finish it with \
                     --resume; if this token belongs to another appliance, use another one"
                )));
            }
            other => other?,
        };
        // Before the record is kept: a custody that ends meanwhile comes back with the new home, and
        // nothing opens by it until the record is there.
        appliance.custody.keep_home(&made.home);
        let (made_for, generation) = (made.home.appliance.clone(), made.home.generation);
        let home = HomeRecord {
            // Of an earlier one that could not be kept, perhaps.
            appliance: made.home.appliance.clone(),
            generation,
            store_keys: vec![made.home.store_key],
            signer_point: made.home.signer_point,
            signer_generation: generation,
            created_at: appliance.now(),
            generations: Vec::new(),
            masters_apart: false,
        };
        appliance.records.found(home).await?;
        appliance.check_history().await;
        appliance.tell(EventNote::new(Event::Initialised)).await;
        // From the first line on the trail is signed; should it fail now, it is tried again anyway.
        if let Err(error) = appliance.trail.checkpoint().await {
            tracing::warn!(request_id = request_id(), %error, "no checkpoint at init");
        }
        Ok(InitView { appliance: made_for, generation, created: made.created })
    }
}

/// 16 random bytes as 32 hex digits.
fn fresh_id() -> Result<String, Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| Error::Arena(ArenaError::Random))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

impl Traced for InitView {}
