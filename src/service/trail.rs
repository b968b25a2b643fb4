//! The trail is read: its lines, and the public key that its checkpoints are verified with.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::error::Error;
use super::gate::{Appliance, Request, Trace, Traced};
use super::view::page_limit;
use crate::audit::{Filter, VerifyKey};
use crate::custody::protocol::SignerFacts;
use crate::custody::{CustodyError, LinkState};
use crate::policy::{Action, Permit, Resource};
use crate::records::RecordError;

/// Read lines of the trail.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct ReadAudit {
    /// Lines after this sequence number.
    pub after: Option<u64>,
    /// At most this many, 1 to 1000; 100 unless said.
    pub limit: Option<usize>,
    /// Only lines about this action, like `key:decrypt`.
    pub action: Option<String>,
    /// Only lines of this caller, like `unix:1000`.
    pub caller: Option<String>,
    /// Only lines about this, like `key/payments`.
    pub resource: Option<String>,
    /// Only lines written at this time or later, RFC 3339 like `2026-01-02T03:04:05Z`.
    #[param(value_type = Option<String>, format = DateTime)]
    pub since: Option<Timestamp>,
    /// Only lines written at this time or earlier, RFC 3339 like `2026-01-02T03:04:05Z`.
    #[param(value_type = Option<String>, format = DateTime)]
    pub until: Option<Timestamp>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct AuditPage {
    /// The lines, byte for byte as they are hashed.
    #[schema(value_type = Vec<Object>)]
    pub lines: Vec<Box<RawValue>>,
    /// What to give as `after` to go on; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// A P-256 public key: SubjectPublicKeyInfo in PEM.
pub struct PublicKeyPem(pub String);

/// Fetch the public key of the trail's signing key.
pub struct ReadPublicKey;

impl Request for ReadAudit {
    const ACTION: Action = Action::AuditRead;
    const TRACE: Trace = Trace::Beside;
    const TELLS_OF_STORE: bool = false;
    type Reply = AuditPage;

    fn resource(&self) -> Resource {
        Resource::Appliance
    }

    async fn run(self, _permit: Permit, appliance: &Appliance) -> Result<AuditPage, Error> {
        let filter = Filter {
            action: self.action,
            caller: self.caller,
            resource: self.resource,
            since: self.since,
            until: self.until,
            ..Filter::default()
        };
        let limit = page_limit(self.limit)?;
        let (trail, after) = (Arc::clone(&appliance.trail), self.after.unwrap_or(0));
        let read = tokio::task::spawn_blocking(move || trail.read(&filter, after, limit));
        let page = read.await.map_err(|_| Error::Abandoned)??;
        Ok(AuditPage { lines: page.lines, next: page.next })
    }
}

impl Request for ReadPublicKey {
    const ACTION: Action = Action::AuditRead;
    const TRACE: Trace = Trace::Never;
    type Reply = PublicKeyPem;

    fn resource(&self) -> Resource {
        Resource::Appliance
    }

    async fn run(self, _permit: Permit, appliance: &Appliance) -> Result<PublicKeyPem, Error> {
        let home = appliance.records.home().ok_or(Error::NotInitialised)?;
        let known = appliance.proven_signer().await?;
        let broken = || Error::Record(RecordError::Broken("appliance/home".to_owned()));
        // The store's record can be edited while the token is not open.
        if known.public_point != home.signer_point {
            return Err(broken());
        }
        VerifyKey::pem_of_point(&known.public_point).map(PublicKeyPem).ok_or_else(broken)
    }
}

impl Appliance {
    /// The key that signs checkpoints: as the open token proved it, else as custody remembers it.
    async fn proven_signer(&self) -> Result<SignerFacts, Error> {
        let state = self.custody.state();
        if let LinkState::Unlocked { signer: Some(signer), .. } = state {
            return Ok(signer);
        }
        if let Some(signer) = self.custody.newest_checkpoint().await?.signer {
            return Ok(signer);
        }
        Err(match state.outage() {
            Some(outage) => CustodyError::Away(outage).into(),
            None => Error::Locked,
        })
    }
}

impl Traced for AuditPage {}
impl Traced for PublicKeyPem {}
