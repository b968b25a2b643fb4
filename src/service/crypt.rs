//! Keys are used: encrypt with the public half, decrypt in custody.

use futures_util::FutureExt;
use futures_util::stream::{self, StreamExt};
use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::ToSchema;

use super::binary::{Binary, Disclosed, SecretBinary};
use super::error::Error;
use super::gate::{Appliance, Request, Trace, Traced, request_id};
use super::keys::public_key;
use super::view::Named;
use crate::audit::{Details, Versions};
use crate::custody::protocol::{Fault, KeyAddress};
use crate::custody::{CustodyError, SealedKey};
use crate::key::{Algorithm, EncryptError, MayProcess, MayProtect, Pick, UseError, VersionMeta};
use crate::policy::{Action, Permit, Resource};
use crate::records::KeyRecord;

/// Body of an encryption.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EncryptBody {
    pub plaintext: SecretBinary,
    /// OAEP label, up to 4096 bytes; the same is needed to decrypt.
    #[serde(default)]
    pub label: Binary,
}

/// Encrypt with the current version.
pub type Encrypt = Named<EncryptBody>;

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Encrypted {
    pub ciphertext: Binary,
    pub version: u32,
    pub kid: String,
}

/// One ciphertext to be opened. Without version and kid it must be of the current version.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DecryptItem {
    pub ciphertext: Binary,
    #[serde(default)]
    pub version: Option<u32>,
    #[serde(default)]
    pub kid: Option<String>,
    #[serde(default)]
    pub label: Binary,
}

/// Body of a decryption: one ciphertext, or `items` with up to 256 of them.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DecryptBody {
    #[serde(default)]
    pub ciphertext: Option<Binary>,
    #[serde(default)]
    pub version: Option<u32>,
    #[serde(default)]
    pub kid: Option<String>,
    #[serde(default)]
    pub label: Option<Binary>,
    #[serde(default, deserialize_with = "items")]
    pub items: Option<Vec<DecryptItem>>,
}

/// Items, each of which has to be an object: serde by itself takes an array for a struct, too.
fn items<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<DecryptItem>>, D::Error> {
    struct Object(DecryptItem);
    struct Members;
    impl<'de> de::Visitor<'de> for Members {
        type Value = Object;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Object, A::Error> {
            DecryptItem::deserialize(de::value::MapAccessDeserializer::new(map)).map(Object)
        }
    }
    impl<'de> Deserialize<'de> for Object {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_map(Members)
        }
    }
    let given = Option::<Vec<Object>>::deserialize(deserializer)?;
    Ok(given.map(|items| items.into_iter().map(|Object(item)| item).collect()))
}

/// Decrypt in custody.
pub type Decrypt = Named<DecryptBody>;

#[derive(Serialize, ToSchema)]
pub struct Decrypted {
    pub plaintext: Disclosed,
    pub version: u32,
    pub kid: String,
    /// Whether it was a recovery, for the trail.
    #[serde(skip)]
    pub for_recovery: bool,
    /// True where the token was away and the opened key served by its allowance; absent otherwise.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    pub without_token: bool,
}

/// What became of one item: its result, or its error.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum ItemResult {
    Done(Decrypted),
    Failed {
        error: ItemError,
        /// The version that it was to be opened with, where there is one: for the audit log.
        #[serde(skip)]
        version: Option<u32>,
    },
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ItemError {
    /// The same codes as those of problem documents.
    #[schema(value_type = String)]
    pub code: &'static str,
    pub detail: String,
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum DecryptReply {
    One(Decrypted),
    Items { items: Vec<ItemResult> },
}

/// The most items of one request.
const MOST_ITEMS: usize = 256;

/// The longest label, in bytes: it goes to custody with the ciphertext, in a message that has an end.
const LONGEST_LABEL: usize = 4096;

fn must_be_short(label: &Binary) -> Result<(), Error> {
    if label.0.len() <= LONGEST_LABEL {
        return Ok(());
    }
    Err(Error::Invalid { member: "label", rule: format!("at most {LONGEST_LABEL} bytes") })
}

impl Request for Encrypt {
    const ACTION: Action = Action::KeyEncrypt;
    const TRACE: Trace = Trace::Beside;
    type Reply = Encrypted;

    fn resource(&self) -> Resource {
        Resource::Key(self.name.clone())
    }

    fn details(&self) -> Details {
        let bytes = self.with.plaintext.len() as u64;
        Details { input_bytes: Some(bytes), ..Details::default() }
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<Encrypted, Error> {
        must_be_short(&self.with.label)?;
        let record = appliance.permitted_key(&permit).await?;
        let proof = record.meta.to_protect()?;
        protect(&record, &proof, &self.with.plaintext, &self.with.label)
    }
}

/// Encrypts with the version that the proof names.
pub(super) fn protect(
    record: &KeyRecord,
    proof: &MayProtect,
    plaintext: &SecretBinary,
    label: &Binary,
) -> Result<Encrypted, Error> {
    let public = public_key(record, proof.version())?;
    let algorithm = record.meta.algorithm();
    let (found, most) = (plaintext.len(), algorithm.max_plaintext_len());
    let too_long = Error::TooLong { algorithm: algorithm.as_str(), found, most };
    if found > most {
        return Err(too_long);
    }
    let plaintext = plaintext.plaintext()?;
    let encrypted = public.encrypt(record.meta.mgf1_hash(), plaintext.expose(), &label.0);
    let ciphertext = encrypted.map_err(|error| match error {
        EncryptError::TooLong { .. } => too_long,
        _ => Error::Busy,
    })?;
    let (version, kid) = (proof.version(), proof.kid().to_owned());
    Ok(Encrypted { ciphertext: Binary(ciphertext), version, kid })
}

impl Request for Decrypt {
    const ACTION: Action = Action::KeyDecrypt;
    const TRACE: Trace = Trace::Beside;
    // A plaintext is what its ciphertext was made of, whatever becomes of the store.
    const TELLS_OF_STORE: bool = false;
    type Reply = DecryptReply;

    fn resource(&self) -> Resource {
        Resource::Key(self.name.clone())
    }

    fn details(&self) -> Details {
        let items = self.with.items.as_deref();
        let named = items.iter().copied().flatten().filter_map(|item| item.version);
        let (versions, items) = (Versions::of(named), items.map(|items| items.len() as u32));
        Details { version: self.with.version, versions, items, ..Details::default() }
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<DecryptReply, Error> {
        let asked = self.with.sorted()?;
        let record = appliance.permitted_key(&permit).await?;
        match asked {
            Asked::One(item) => {
                Ok(DecryptReply::One(appliance.open(&permit, &record, item).await?))
            }
            Asked::Items(items) => {
                let opening = items.into_iter().map(|item| {
                    let version = item.pick().ok().and_then(|pick| record.meta.pick(pick).ok());
                    let version = version.map(VersionMeta::version);
                    let opened = appliance.open(&permit, &record, item);
                    opened.map(move |result| ItemResult::of(result, version))
                });
                // Others have their turns between the items.
                let abreast = 2 * std::thread::available_parallelism().map_or(1, usize::from);
                let items = stream::iter(opening).buffered(abreast).collect().await;
                // What was opened before policy or owner changed leaves no more than what came after.
                let now = appliance.key(record.meta.name()).await?;
                appliance.must_still_cover(&permit, &record, &now)?;
                Ok(DecryptReply::Items { items })
            }
        }
    }
}

enum Asked {
    One(DecryptItem),
    Items(Vec<DecryptItem>),
}

impl DecryptBody {
    /// One ciphertext or several, never both.
    fn sorted(self) -> Result<Asked, Error> {
        let invalid = |member, rule: &str| Error::Invalid { member, rule: rule.to_owned() };
        let DecryptBody { ciphertext, version, kid, label, items } = self;
        match (ciphertext, items) {
            (Some(ciphertext), None) => {
                let label = label.unwrap_or_default();
                Ok(Asked::One(DecryptItem { ciphertext, version, kid, label }))
            }
            (None, Some(_)) if version.is_some() || kid.is_some() || label.is_some() => {
                Err(invalid("items", "version, kid and label belong inside each item"))
            }
            (None, Some(items)) if items.is_empty() || items.len() > MOST_ITEMS => {
                Err(invalid("items", "1 to 256 of them"))
            }
            (None, Some(items)) => Ok(Asked::Items(items)),
            _ => Err(invalid("ciphertext", "give either ciphertext or items")),
        }
    }
}

impl ItemResult {
    fn of(result: Result<Decrypted, Error>, version: Option<u32>) -> Self {
        match result {
            Ok(done) => ItemResult::Done(done),
            Err(error) => {
                let error = ItemError { code: error.code(), detail: error.public_text() };
                ItemResult::Failed { error, version }
            }
        }
    }

    /// The version that it was opened with, or was to be.
    fn version(&self) -> Option<u32> {
        match self {
            ItemResult::Done(done) => Some(done.version),
            ItemResult::Failed { version, .. } => *version,
        }
    }
}

impl DecryptItem {
    /// Which version it is to be opened with.
    fn pick(&self) -> Result<Pick<'_>, Error> {
        match (self.version, self.kid.as_deref()) {
            (Some(version), None) => Ok(Pick::Version(version)),
            (None, Some(kid)) => Ok(Pick::Kid(kid)),
            (None, None) => Ok(Pick::Current),
            (Some(_), Some(_)) => {
                let rule = "give either version or kid".to_owned();
                Err(Error::Invalid { member: "kid", rule })
            }
        }
    }
}

impl Appliance {
    /// Opens one ciphertext, if the state of its version allows that.
    pub(super) async fn open(
        &self,
        permit: &Permit,
        record: &KeyRecord,
        item: DecryptItem,
    ) -> Result<Decrypted, Error> {
        must_be_short(&item.label)?;
        let proof = self.may_process(permit, record, item.pick()?).await?;
        let input = (item.ciphertext.0, item.label.0);
        self.process(permit, record, &proof, input).await
    }

    /// The proof that a version may open something; asks policy again where that is a recovery.
    pub(super) async fn may_process(
        &self,
        permit: &Permit,
        record: &KeyRecord,
        pick: Pick<'_>,
    ) -> Result<MayProcess, Error> {
        match record.meta.to_process(pick, None) {
            Err(refusal @ UseError::NeedsRecovery { .. }) => {
                let key = Resource::Key(record.meta.name().clone());
                match self.permit_also(permit, Action::KeyRecover, &key).await {
                    Ok(permit) => Ok(record.meta.to_process(pick, permit.for_recovery())?),
                    Err(Error::Denied(_)) => Err(refusal.into()),
                    Err(error) => Err(error),
                }
            }
            other => Ok(other?),
        }
    }

    /// Policy and key may have changed while something waited or was worked with: a caller that may no longer, and
    /// a version that was stopped meanwhile, gets and gives nothing any more.
    async fn still_may(
        &self,
        permit: &Permit,
        judged: &KeyRecord,
        proof: &MayProcess,
    ) -> Result<(), Error> {
        let now = self.key(proof.key()).await?;
        self.must_still_cover(permit, judged, &now)?;
        if !proof.for_recovery() {
            if now.revision != judged.revision {
                drop(now.meta.to_process(Pick::Version(proof.version()), None)?);
            }
        } else if now.revision != judged.revision || !permit.is_of(&self.policy()) {
            let key = Resource::Key(proof.key().clone());
            drop(self.permit_also(permit, Action::KeyRecover, &key).await?);
        }
        Ok(())
    }

    /// Has custody open a ciphertext with the version that the proof names.
    pub(super) async fn process(
        &self,
        permit: &Permit,
        record: &KeyRecord,
        proof: &MayProcess,
        (ciphertext, label): (Vec<u8>, Vec<u8>),
    ) -> Result<Decrypted, Error> {
        // What no key could have made would not even reach custody. All else is worked on there, so
        // that it takes as long as any other failure.
        if ciphertext.len() > Algorithm::Rsa4096.ciphertext_len() {
            return Err(decryption_failed(record));
        }
        let (name, version) = (proof.key().to_string(), proof.version());
        let stored = record.version(version).ok_or(UseError::NoKid)?;
        let key = SealedKey {
            address: KeyAddress { name, version },
            sealed: stored.sealed.clone(),
            mgf1_hash: record.meta.mgf1_hash(),
            allowance: record.meta.serve_without_token_seconds(),
        };
        let allowance = key.allowance;
        self.still_may(permit, record, proof).await?;
        let slot = self.operation_slot(permit.caller(), record.meta.algorithm()).await?;
        self.still_may(permit, record, proof).await?;
        let opened = self.custody.decrypt(key, ciphertext, label).await;
        drop(slot);
        let now = self.key(proof.key()).await;
        if let Ok(now) = &now
            && now.meta.serve_without_token_seconds() != allowance
        {
            self.tell_allowance(now).await;
        }
        let opened = opened.map_err(|error| match error {
            CustodyError::Fault(Fault::DecryptionFailed) => decryption_failed(record),
            other => other.into(),
        });
        let opened = opened?;
        now?;
        self.still_may(permit, record, proof).await?;
        let (kid, for_recovery) = (proof.kid().to_owned(), proof.for_recovery());
        if for_recovery {
            let request_id = request_id();
            tracing::warn!(request_id, key = %proof.key(), version, "a version was used for recovery");
        }
        let (plaintext, without_token) = (Disclosed(opened.plaintext), opened.without_token);
        Ok(Decrypted { plaintext, version, kid, for_recovery, without_token })
    }
}

/// The one error of every failure to decrypt with a key: what it says is known of the key, and nothing of
/// the ciphertext.
fn decryption_failed(record: &KeyRecord) -> Error {
    let (algorithm, mgf1_hash) = (record.meta.algorithm(), record.meta.mgf1_hash());
    Error::DecryptionFailed { algorithm: algorithm.as_str(), mgf1_hash: mgf1_hash.as_str() }
}

impl Traced for Encrypted {
    fn details(&self) -> Details {
        Details { version: Some(self.version), ..Details::default() }
    }
}

impl Traced for DecryptReply {
    fn details(&self) -> Details {
        match self {
            DecryptReply::One(one) => Details {
                version: Some(one.version),
                recovery: one.for_recovery.then_some(true),
                without_token: one.without_token.then_some(true),
                output_bytes: Some(one.plaintext.0.expose().len() as u64),
                ..Details::default()
            },
            DecryptReply::Items { items } => {
                let failed = items.iter().filter(|item| matches!(item, ItemResult::Failed { .. }));
                let recovered = |item: &ItemResult| {
                    matches!(item, ItemResult::Done(Decrypted { for_recovery: true, .. }))
                };
                let alone = |item: &ItemResult| {
                    matches!(item, ItemResult::Done(Decrypted { without_token: true, .. }))
                };
                Details {
                    items: Some(items.len() as u32),
                    failed_items: Some(failed.count() as u32),
                    versions: Versions::of(items.iter().filter_map(ItemResult::version)),
                    recovery: items.iter().any(recovered).then_some(true),
                    without_token: items.iter().any(alone).then_some(true),
                    ..Details::default()
                }
            }
        }
    }
}
