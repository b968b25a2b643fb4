//! What callers are shown of keys: never a key.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::error::Error;
use super::precondition::Preconditions;
use crate::key::{Name, Origin, Owner, VersionMeta};
use crate::records::KeyRecord;

/// A request about one named thing, with what came in the body or the query.
pub struct Named<T> {
    pub name: Name,
    pub with: T,
    /// From its headers.
    pub conditions: Preconditions,
}

/// Which page of a list.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct Page {
    /// At most this many, 1 to 1000; 100 unless said.
    pub limit: Option<usize>,
    /// What the page before gave as `next`. It holds for this caller, this list and this prefix, until the
    /// daemon is started again.
    pub after: Option<String>,
    /// Only those whose names begin so.
    pub prefix: Option<String>,
}

impl Page {
    /// The most entries of a page.
    pub const MOST: usize = 1000;

    /// How many entries this page may have.
    ///
    /// # Errors
    /// More than a page can have, or none, is asked for: nobody is to take a page for more than it is.
    pub fn limit(&self) -> Result<usize, Error> {
        page_limit(self.limit)
    }

    /// What names begin with.
    pub fn prefix(&self) -> &str {
        self.prefix.as_deref().unwrap_or_default()
    }
}

/// The entries of a page: 100 unless another number is asked for.
pub(super) fn page_limit(asked: Option<usize>) -> Result<usize, Error> {
    match asked.unwrap_or(100) {
        limit if (1..=Page::MOST).contains(&limit) => Ok(limit),
        _ => {
            let rule = format!("1 to {}; the rest comes with `after`", Page::MOST);
            Err(Error::Invalid { member: "limit", rule })
        }
    }
}

/// A key as it is shown.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct KeyView {
    #[schema(value_type = String)]
    pub name: Name,
    /// `RSA-2048`, `RSA-3072` or `RSA-4096`.
    pub algorithm: &'static str,
    /// The hash inside MGF1: `SHA-256`, or `SHA-1` where the key was made so.
    pub mgf1_hash: &'static str,
    /// State of the key as a whole (SP 800-57 part 1 §7); `destruction-pending` where a destruction of all
    /// of it waits: it serves nobody meanwhile.
    pub state: &'static str,
    /// What the operator tagged it with.
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub labels: crate::key::Labels,
    /// Who made it, or whom it was transferred to; absent where it was made before there were owners.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "unix:1000")]
    pub owner: Option<Owner>,
    /// For how many seconds of an outage of the token the opened key may go on serving; 0 is not at all.
    pub serve_without_token_seconds: u32,
    /// Where the private key of the newest version comes from, as each version says.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub origin: Option<Origin>,
    /// The version that protects; absent where none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_version: Option<u32>,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When the next destruction that waits falls due, of the key or of a version; `restore` cancels it until
    /// then.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub destroy_at: Option<Timestamp>,
    pub versions: Vec<VersionView>,
    /// Grows with every change, a rewrap under another master key among them; what `if-match` is held
    /// against.
    pub revision: u64,
    /// The one version that was made or changed, for the trail.
    #[serde(skip)]
    pub about: Option<u32>,
    /// Whether the key was made or changed, so that the trail is told its revision.
    #[serde(skip)]
    pub is_changed: bool,
}

/// A version of a key as it is shown.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct VersionView {
    pub version: u32,
    /// `pre-active`, `active`, `suspended`, `deactivated`, `compromised` or `destroyed`. With `destroy_at` it
    /// serves nobody, whatever its state.
    pub state: &'static str,
    /// RFC 7638 thumbprint of the public key.
    pub kid: String,
    /// `generated` in custody, or `imported`, so that there may be copies elsewhere; absent where the version is
    /// older than this record of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub origin: Option<Origin>,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub activated_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub suspended_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub deactivated_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub compromised_at: Option<Timestamp>,
    /// When a destruction that waits falls due; `restore` cancels it until then.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub destroy_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub destroyed_at: Option<Timestamp>,
}

impl KeyView {
    pub fn of(record: &KeyRecord) -> Self {
        let meta = &record.meta;
        Self {
            name: meta.name().clone(),
            algorithm: meta.algorithm().as_str(),
            mgf1_hash: meta.mgf1_hash().as_str(),
            state: match meta.destroy_at() {
                Some(_) => "destruction-pending",
                None => meta.state().as_str(),
            },
            labels: meta.labels().clone(),
            owner: meta.owner().cloned(),
            serve_without_token_seconds: meta.serve_without_token_seconds(),
            origin: meta.versions().last().and_then(VersionMeta::origin),
            current_version: meta.current().map(VersionMeta::version),
            created_at: meta.created_at(),
            destroy_at: meta.next_due(),
            versions: meta.versions().iter().map(VersionView::of).collect(),
            revision: record.revision,
            about: None,
            is_changed: false,
        }
    }

    /// A key that was made or changed: the trail is told its revision, and the version if it was one.
    pub fn changed(record: &KeyRecord, version: Option<u32>) -> Self {
        Self { about: version, is_changed: true, ..Self::of(record) }
    }
}

impl VersionView {
    fn of(meta: &VersionMeta) -> Self {
        Self {
            version: meta.version(),
            state: meta.state().as_str(),
            kid: meta.kid().to_owned(),
            origin: meta.origin(),
            created_at: meta.created_at(),
            activated_at: meta.activated_at(),
            suspended_at: meta.suspended_at(),
            deactivated_at: meta.deactivated_at(),
            compromised_at: meta.compromised_at(),
            destroy_at: meta.destroy_at(),
            destroyed_at: meta.destroyed_at(),
        }
    }
}
