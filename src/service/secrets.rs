//! Secrets: ciphertexts that clients made, kept and opened for whoever may.

use base64::prelude::{BASE64_STANDARD, Engine};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::authorize::{facts_of_key, facts_of_secret, owner_of};
use super::binary::{Binary, Disclosed, SecretBinary};
use super::crypt::{Decrypted, protect};
use super::error::Error;
use super::gate::{Appliance, Request, Trace, Traced, request_id};
use super::page::{Entry, Filling};
use super::precondition::Preconditions;
use super::view::{Named, Page};
use crate::audit::Details;
use crate::key::{Name, Owner, Pick};
use crate::policy::{Action, Facts, Permit, Resource};
use crate::records::{At, KeyRecord, RecordError, SecretRecord};

/// Body of a put: a ciphertext that the client made, or a plaintext that the daemon encrypts.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PutBody {
    /// The key that it is, or is to be, encrypted for.
    #[schema(value_type = String)]
    pub key: Name,
    #[serde(default)]
    pub ciphertext: Option<Binary>,
    #[serde(default)]
    pub plaintext: Option<SecretBinary>,
    /// The version that the ciphertext was made for; the current one unless said.
    #[serde(default)]
    pub version: Option<u32>,
    #[serde(default)]
    pub kid: Option<String>,
    /// Open it at once, and keep it only if that works; needs the permission to decrypt, too.
    #[serde(default)]
    pub verify: bool,
}

/// Store a secret, new or in the place of what is there.
pub type PutSecret = Named<PutBody>;

/// List the secrets, a page at a time: of each page those that the caller may be shown.
pub struct ListSecrets(pub Page);

/// Show what is known of a secret, never its value.
pub struct ShowSecret(pub Name);

/// Open a secret.
pub struct RevealSecret(pub Name);

/// Delete a secret.
pub struct DeleteSecret {
    pub name: Name,
    pub conditions: Preconditions,
}

/// Nothing is left of it but the count of its changes, for the trail.
pub struct Deleted {
    pub revision: u64,
}

/// A secret as it is shown.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SecretView {
    #[schema(value_type = String)]
    pub name: Name,
    #[schema(value_type = String)]
    pub key: Name,
    pub version: u32,
    pub kid: String,
    /// Grows with every change; what `if-match` is held against.
    pub revision: u64,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
    /// Who stored it last.
    pub updated_by: String,
    /// Who made it, or whom it was transferred to; absent where it was made before there were owners.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "unix:1000")]
    pub owner: Option<Owner>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SecretPage {
    /// May be fewer than were asked for, also where there is a next page: where a very long stretch may not
    /// be shown.
    pub secrets: Vec<SecretView>,
    /// Secrets of this page whose records were damaged or changed outside Strongroom; absent where none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>, required = false)]
    pub broken: Vec<Name>,
    /// What to give as `after` for the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What was stored, and whether the name is new.
pub struct PutReply {
    pub created: bool,
    pub secret: SecretView,
}

#[derive(Serialize, ToSchema)]
pub struct Revealed {
    pub plaintext: Disclosed,
    #[serde(flatten)]
    pub secret: SecretView,
    /// Whether it was a recovery, for the trail.
    #[serde(skip)]
    pub for_recovery: bool,
    /// True where the token was away and the opened key served by its allowance; absent otherwise.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    pub without_token: bool,
}

impl SecretView {
    pub(super) fn of(At { revision, record }: At<SecretRecord>) -> Self {
        let SecretRecord { name, key, version, kid, created_at, updated_at, .. } = record;
        let SecretRecord { updated_by, owner, .. } = record;
        Self { name, key, version, kid, revision, created_at, updated_at, updated_by, owner }
    }

    fn details(&self) -> Details {
        Details {
            key: Some(self.key.clone()),
            version: Some(self.version),
            revision: Some(self.revision),
            ..Details::default()
        }
    }
}

impl Request for PutSecret {
    const ACTION: Action = Action::SecretPut;
    const TRACE: Trace = Trace::Before;
    type Reply = PutReply;

    fn resource(&self) -> Resource {
        Resource::Secret(self.name.clone())
    }

    fn details(&self) -> Details {
        let verify = self.with.verify.then_some(true);
        Details { key: Some(self.with.key.clone()), verify, ..Details::default() }
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<PutReply, Error> {
        let Named { name, with: body, conditions } = self;
        // Whoever stores for a key could as well encrypt with it, and whoever has it verified learns
        // what it opens: nothing gets round the key's policy.
        let of_key = Resource::Key(body.key.clone());
        let mut of_the_key =
            vec![appliance.permit_also(&permit, Action::KeyEncrypt, &of_key).await?];
        if body.verify {
            of_the_key.push(appliance.permit_also(&permit, Action::KeyDecrypt, &of_key).await?);
        }
        let known = appliance.permitted_secret(&permit).await?;
        conditions.check(known.as_ref().map(|known| known.revision))?;
        if known.is_some()
            && conditions.is_empty()
            && appliance.secret_settings().require_precondition
        {
            return Err(Error::NoPrecondition);
        }
        let key = appliance.key(&body.key).await?;
        for permit in &of_the_key {
            appliance.must_cover(permit, facts_of_key(&key.meta))?;
        }
        let kept = appliance.ciphertext_to_keep(&of_the_key, &key, body).await?;
        // It may have waited: what it was permitted for has to be permitted still.
        for permit in &of_the_key {
            let now = appliance.key(key.meta.name()).await?;
            appliance.must_still_cover(permit, &key, &now)?;
        }
        match &known {
            Some(known) => appliance.must_cover(&permit, facts_of_secret(&known.record))?,
            None => appliance.must_cover(&permit, Facts::Absent)?,
        }
        let (now, created, under) = (appliance.now(), known.is_none(), name.clone());
        let record = SecretRecord {
            created_at: known.as_ref().map_or(now, |known| known.record.created_at),
            name,
            key: key.meta.name().clone(),
            version: kept.version,
            kid: kept.kid,
            ciphertext: BASE64_STANDARD.encode(&kept.ciphertext.0),
            updated_at: now,
            updated_by: permit.caller().name(),
            owner: match &known {
                // What is put under a role's name is not what somebody owns who put there before, and may have
                // left the role, or given the name away.
                Some(known) if !appliance.policy().shares_name(permit.caller(), &under) => {
                    known.record.owner.clone()
                }
                _ => owner_of(permit.caller()),
            },
        };
        let put = appliance.records.put_secret(known.map(|at| at.revision), &record).await;
        let revision = match put.map_err(Error::from) {
            Err(error) => return Err(appliance.lost(&record.name, &conditions, error).await),
            Ok(revision) => revision,
        };
        Ok(PutReply { created, secret: SecretView::of(At { revision, record }) })
    }
}

impl Appliance {
    /// What to say of a change of a secret that failed: where another one came first, the condition that
    /// does not hold any more.
    async fn lost(&self, name: &Name, conditions: &Preconditions, error: Error) -> Error {
        match self.records.secret(name).await {
            Ok(now) => conditions.of_conflict(error, now.map(|now| now.revision)),
            Err(_) => error,
        }
    }

    /// The ciphertext that a put asks for: the client's, once its version may protect or process, or
    /// one made here.
    async fn ciphertext_to_keep(
        &self,
        of_the_key: &[Permit],
        key: &KeyRecord,
        body: PutBody,
    ) -> Result<super::crypt::Encrypted, Error> {
        let invalid = |member, rule: &str| Err(Error::Invalid { member, rule: rule.to_owned() });
        match (body.ciphertext, body.plaintext) {
            (None, Some(plaintext)) => {
                if body.version.is_some() || body.kid.is_some() || body.verify {
                    return invalid("plaintext", "version, kid and verify go with a ciphertext");
                }
                protect(key, &key.meta.to_protect()?, &plaintext, &Binary::default())
            }
            (Some(ciphertext), None) => {
                let pick = match (body.version, body.kid.as_deref()) {
                    (Some(version), None) => Pick::Version(version),
                    (None, Some(kid)) => Pick::Kid(kid),
                    (None, None) => Pick::Current,
                    (Some(_), Some(_)) => {
                        return invalid("kid", "give either version or kid");
                    }
                };
                // To verify it needs the last of them, which is to decrypt.
                let Some(permit) = of_the_key.last() else { return Err(Error::Abandoned) };
                let proof = self.may_process(permit, key, pick).await?;
                if ciphertext.0.len() != key.meta.algorithm().ciphertext_len() {
                    let len = key.meta.algorithm().ciphertext_len();
                    return invalid("ciphertext", &format!("a key of this size makes {len} bytes"));
                }
                if body.verify {
                    let bytes = ciphertext.0.clone();
                    let input = (bytes, Vec::new());
                    drop(self.process(permit, key, &proof, input).await?);
                }
                let (version, kid) = (proof.version(), proof.kid().to_owned());
                Ok(super::crypt::Encrypted { ciphertext, version, kid })
            }
            _ => invalid("ciphertext", "give either ciphertext or plaintext"),
        }
    }
}

impl Request for ListSecrets {
    const ACTION: Action = Action::SecretList;
    const TRACE: Trace = Trace::Beside;
    type Reply = SecretPage;

    fn resource(&self) -> Resource {
        Resource::Appliance
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<SecretPage, Error> {
        let page = &self.0;
        let mut filling = Filling::begin(appliance, &permit, "secrets", page, usize::MAX)?;
        while let Some((after, count)) = filling.wants() {
            let listed = appliance.records.list_secrets(page.prefix(), after, count).await?;
            let read = listed.found.len() + listed.broken.len();
            let may_see = |name: &Name, facts: Facts<'_>| {
                let secret = Resource::Secret(name.clone());
                appliance.may_see(&permit, Action::SecretShow, &secret, facts)
            };
            let whole = listed
                .found
                .into_iter()
                .filter(|at| may_see(&at.record.name, facts_of_secret(&at.record)));
            let whole =
                whole.map(|at| (at.record.name.clone(), 1, Entry::Whole(SecretView::of(at))));
            let broken = listed.broken.iter().filter(|name| may_see(name, Facts::Unknown));
            let broken = broken.map(|name| (name.clone(), 1, Entry::Broken));
            let shown = whole.chain(broken).collect();
            filling.take(shown, read, listed.next);
        }
        let filled = filling.filled()?;
        Ok(SecretPage { secrets: filled.entries, broken: filled.broken, next: filled.next })
    }
}

impl Request for ShowSecret {
    const ACTION: Action = Action::SecretShow;
    const TRACE: Trace = Trace::Beside;
    type Reply = SecretView;

    fn resource(&self) -> Resource {
        Resource::Secret(self.0.clone())
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<SecretView, Error> {
        let found = appliance.permitted_secret(&permit).await?;
        found.map(SecretView::of).ok_or_else(|| appliance.absent("secret"))
    }
}

impl Request for RevealSecret {
    const ACTION: Action = Action::SecretReveal;
    const TRACE: Trace = Trace::Beside;
    type Reply = Revealed;

    fn resource(&self) -> Resource {
        Resource::Secret(self.0.clone())
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<Revealed, Error> {
        let found = appliance.permitted_secret(&permit).await?;
        let found = found.ok_or_else(|| appliance.absent("secret"))?;
        let opened = appliance.open_secret(&permit, &found.record).await.inspect_err(|error| {
            let (key, version) = (&found.record.key, found.record.version);
            let (request_id, code) = (request_id(), error.code());
            tracing::info!(request_id, secret = %self.0, %key, version, code, "not opened");
        })?;
        let Decrypted { plaintext, for_recovery, without_token, .. } = opened;
        let secret = SecretView::of(found);
        Ok(Revealed { plaintext, secret, for_recovery, without_token })
    }
}

impl Appliance {
    /// Opens a stored ciphertext for the caller of `permit`.
    async fn open_secret(
        &self,
        permit: &Permit,
        secret: &SecretRecord,
    ) -> Result<Decrypted, Error> {
        // A stored ciphertext is a ciphertext: to see it opened, one must be allowed to decrypt.
        let of_key = Resource::Key(secret.key.clone());
        let to_decrypt = self.permit_also(permit, Action::KeyDecrypt, &of_key).await?;
        let key = self.permitted_key(&to_decrypt).await?;
        let proof = self.may_process(permit, &key, Pick::Version(secret.version)).await?;
        let ciphertext = BASE64_STANDARD
            .decode(&secret.ciphertext)
            .map_err(|_| RecordError::Broken(format!("secret/{}", secret.name)))?;
        let opened = self.process(&to_decrypt, &key, &proof, (ciphertext, Vec::new())).await?;
        // The secret, too, may have become another's meanwhile, or its policy another.
        match self.permitted_secret(permit).await? {
            Some(_) => Ok(opened),
            None => Err(self.absent("secret")),
        }
    }
}

impl Request for DeleteSecret {
    const ACTION: Action = Action::SecretDelete;
    const TRACE: Trace = Trace::Before;
    type Reply = Deleted;

    fn resource(&self) -> Resource {
        Resource::Secret(self.name.clone())
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<Deleted, Error> {
        let found = appliance.permitted_secret(&permit).await?;
        self.conditions.check(found.as_ref().map(|found| found.revision))?;
        let known = found.ok_or_else(|| appliance.absent("secret"))?.revision;
        if let Err(error) = appliance.records.delete_secret(&self.name, known).await {
            return Err(appliance.lost(&self.name, &self.conditions, error.into()).await);
        }
        Ok(Deleted { revision: known + 1 })
    }
}

impl Traced for Deleted {
    fn details(&self) -> Details {
        Details { revision: Some(self.revision), ..Details::default() }
    }
}

impl Traced for PutReply {
    fn details(&self) -> Details {
        self.secret.details()
    }
}

impl Traced for SecretPage {}

impl Traced for SecretView {
    fn details(&self) -> Details {
        SecretView::details(self)
    }
}

impl Traced for Revealed {
    fn details(&self) -> Details {
        let bytes = self.plaintext.0.expose().len() as u64;
        let recovery = self.for_recovery.then_some(true);
        let without_token = self.without_token.then_some(true);
        Details { output_bytes: Some(bytes), recovery, without_token, ..self.secret.details() }
    }
}
