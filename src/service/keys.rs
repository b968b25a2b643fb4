//! Keys come to be and are looked at: create, import, list, show, public forms.

use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::authorize::{facts_of_key, owner_of};
use super::binary::decode_secret;
use super::error::Error;
use super::gate::{Appliance, Request, Trace, Traced, needed_also};
use super::precondition::Preconditions;
use super::scheduling::{Cost, Rank};
use super::transfer::must_be_able_to_own;
use super::view::{KeyView, Named};
use crate::audit::{Details, Words};
use crate::custody::NewKey;
use crate::custody::protocol::KeyAddress;
use crate::key::pem;
use crate::key::{
    Algorithm, Jwk, KeyMeta, Labels, Mgf1Hash, Name, Origin, Owner, Pick, PublicKey, VersionMeta,
};
use crate::policy::{Action, Facts, Permit, Resource};
use crate::records::KeyRecord;
use crate::secret::{Pkcs8Der, SecretBytes};

/// Generate a key; its first version is active at once.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    #[schema(value_type = String, pattern = "^[a-z0-9][a-z0-9._-]{0,62}$")]
    pub name: Name,
    #[schema(value_type = String, example = "RSA-2048")]
    pub algorithm: Algorithm,
    /// The hash inside MGF1: `SHA-256` unless said; `SHA-1` for clients that cannot do otherwise.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub mgf1_hash: Mgf1Hash,
    /// Up to 16 tags.
    #[serde(default)]
    #[schema(value_type = Option<std::collections::BTreeMap<String, String>>)]
    pub labels: Labels,
    /// For how many seconds of an outage of the token the opened key may go on serving; not at all unless
    /// said.
    #[serde(default)]
    #[schema(value_type = Option<u32>, maximum = 604800)]
    pub serve_without_token_seconds: u32,
    /// Whom it is to belong to, like `unix:1000`; needs the permission `key:transfer`, too. Its caller
    /// unless said.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub owner: Option<Owner>,
}

/// Body of an import.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportBody {
    /// PKCS#8 or PKCS#1, as PEM text or as DER in base64; or a JWK as text.
    #[serde(deserialize_with = "private_key")]
    #[schema(value_type = String)]
    pub private_key: Pkcs8Der,
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub mgf1_hash: Mgf1Hash,
    #[serde(default)]
    #[schema(value_type = Option<std::collections::BTreeMap<String, String>>)]
    pub labels: Labels,
    /// For how many seconds of an outage of the token the opened key may go on serving; not at all unless
    /// said.
    #[serde(default)]
    #[schema(value_type = Option<u32>, maximum = 604800)]
    pub serve_without_token_seconds: u32,
    /// Whom it is to belong to, like `unix:1000`; needs the permission `key:transfer`, too. Its caller
    /// unless said.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub owner: Option<Owner>,
}

/// Take in a private key that was made elsewhere.
pub type ImportKey = Named<ImportBody>;

/// Show one key.
pub struct ShowKey(pub Name);

/// Which version of a public key, in which form.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct PublicKeyQuery {
    /// The current one unless said.
    pub version: Option<u32>,
    /// `jwk` (default), `pkcs1-pem` or `spki-pem`.
    #[param(value_type = Option<String>)]
    pub format: PublicForm,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PublicForm {
    #[default]
    Jwk,
    Pkcs1Pem,
    SpkiPem,
}

/// Fetch a public key: what a client needs to encrypt.
pub type ShowPublic = Named<PublicKeyQuery>;

/// A public key in the form that was asked for.
pub enum PublicKeyReply {
    Jwk { version: u32, jwk: Box<Jwk> },
    Pem { version: u32, pem: String },
}

/// What is said of a text that is no private key.
pub const NO_PRIVATE_KEY: &str =
    "must be a private key as PEM text, as DER in base64 in one line, or a JWK as text";

fn private_key<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Pkcs8Der, D::Error> {
    struct Text;
    impl serde::de::Visitor<'_> for Text {
        type Value = Pkcs8Der;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(NO_PRIVATE_KEY.trim_start_matches("must be "))
        }
        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Pkcs8Der, E> {
            let is_jwk = pem::bare(text.as_bytes()).first() == Some(&b'{');
            let bytes = if is_jwk || pem::is_pem(text.as_bytes()) {
                SecretBytes::copy_from(text.as_bytes()).ok()
            } else {
                decode_secret(text)
            };
            bytes.map(Pkcs8Der::new).ok_or_else(|| E::custom(NO_PRIVATE_KEY))
        }
        fn visit_string<E: serde::de::Error>(self, mut text: String) -> Result<Pkcs8Der, E> {
            let taken = self.visit_str(&text);
            zeroize::Zeroize::zeroize(&mut text);
            taken
        }
    }
    deserializer.deserialize_str(Text)
}

impl Request for CreateKey {
    const ACTION: Action = Action::KeyCreate;
    const TRACE: Trace = Trace::Before;
    type Reply = KeyView;

    fn resource(&self) -> Resource {
        Resource::Key(self.name.clone())
    }

    fn details(&self) -> Details {
        Details {
            algorithm: Some(self.algorithm),
            mgf1_hash: Some(self.mgf1_hash),
            labels: Words::of_labels(&self.labels),
            owner: self.owner.clone().map(Box::new),
            outage_seconds: Some(self.serve_without_token_seconds).filter(|seconds| *seconds > 0),
            ..Details::default()
        }
    }

    fn to_be(&self) -> Option<(Option<&Owner>, &Labels)> {
        Some((self.owner.as_ref(), &self.labels))
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<KeyView, Error> {
        let without_token = appliance.grace(self.serve_without_token_seconds)?;
        let owner = appliance.owner_to_be(&permit, self.owner, &self.labels)?;
        appliance.must_be_free(&permit, &self.name, &Preconditions::default()).await?;
        let work = (Cost::of_generation(self.algorithm), Rank::Other);
        let _slot = appliance.generation_slot(permit.caller(), work).await?;
        let address = first_version(&self.name);
        let _same_master = appliance.same_master().await?;
        appliance.may_still_make(&permit, owner.as_ref(), &self.labels)?;
        let made = appliance.custody.generate_key(address, self.algorithm).await?;
        let (mgf1_hash, labels, origin) = (self.mgf1_hash, self.labels, Origin::Generated);
        let key = NewMeta { mgf1_hash, labels, without_token, owner, origin };
        appliance.keep_first(self.name, key, made).await
    }
}

impl Request for ImportKey {
    const ACTION: Action = Action::KeyImport;
    const TRACE: Trace = Trace::Before;
    type Reply = KeyView;

    fn resource(&self) -> Resource {
        Resource::Key(self.name.clone())
    }

    fn details(&self) -> Details {
        let seconds = Some(self.with.serve_without_token_seconds);
        Details {
            mgf1_hash: Some(self.with.mgf1_hash),
            labels: Words::of_labels(&self.with.labels),
            owner: self.with.owner.clone().map(Box::new),
            outage_seconds: seconds.filter(|seconds| *seconds > 0),
            ..Details::default()
        }
    }

    fn to_be(&self) -> Option<(Option<&Owner>, &Labels)> {
        Some((self.with.owner.as_ref(), &self.with.labels))
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<KeyView, Error> {
        let Named { name, with, conditions } = self;
        let ImportBody { private_key, mgf1_hash, labels, serve_without_token_seconds, owner } =
            with;
        let owner = appliance.owner_to_be(&permit, owner, &labels)?;
        if private_key.expose().len() > LONGEST_IMPORT {
            return Err(Error::BadKey("longer than any RSA key that is taken".to_owned()));
        }
        appliance.must_be_free(&permit, &name, &conditions).await?;
        let work = (Cost::OF_IMPORT, Rank::Other);
        let _slot = appliance.generation_slot(permit.caller(), work).await?;
        let _same_master = appliance.same_master().await?;
        appliance.may_still_make(&permit, owner.as_ref(), &labels)?;
        let taken = appliance.custody.import_key(first_version(&name), private_key).await?;
        let without_token = appliance.grace(serve_without_token_seconds)?;
        let origin = Origin::Imported;
        let key = NewMeta { mgf1_hash, labels, without_token, owner, origin };
        appliance.keep_first(name, key, taken).await
    }
}

impl Request for ShowKey {
    const ACTION: Action = Action::KeyShow;
    const TRACE: Trace = Trace::Beside;
    type Reply = KeyView;

    fn resource(&self) -> Resource {
        Resource::Key(self.0.clone())
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<KeyView, Error> {
        Ok(KeyView::of(&*appliance.permitted_key(&permit).await?))
    }
}

impl Request for ShowPublic {
    const ACTION: Action = Action::KeyPublic;
    const TRACE: Trace = Trace::Beside;
    type Reply = PublicKeyReply;

    fn resource(&self) -> Resource {
        Resource::Key(self.name.clone())
    }

    fn details(&self) -> Details {
        Details { version: self.with.version, ..Details::default() }
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<PublicKeyReply, Error> {
        let record = appliance.permitted_key(&permit).await?;
        let pick = self.with.version.map_or(Pick::Current, Pick::Version);
        let version = record.meta.pick(pick)?.version();
        let public = public_key(&record, version)?;
        Ok(match self.with.format {
            PublicForm::Jwk => {
                let jwk = public.jwk(record.meta.mgf1_hash());
                let origin = record.meta.version(version).and_then(VersionMeta::origin);
                let jwk = Box::new(jwk.of_origin(origin));
                PublicKeyReply::Jwk { version, jwk }
            }
            PublicForm::Pkcs1Pem => PublicKeyReply::Pem { version, pem: public.pkcs1_pem() },
            PublicForm::SpkiPem => PublicKeyReply::Pem { version, pem: public.spki_pem() },
        })
    }
}

impl Traced for KeyView {
    fn details(&self) -> Details {
        if !self.is_changed {
            return Details { version: self.about, ..Details::default() };
        }
        let destroy_at = self.destroy_at.map(Words::of_time);
        let revision = Some(self.revision);
        Details { version: self.about, revision, destroy_at, ..Details::default() }
    }
}

impl Traced for PublicKeyReply {
    fn details(&self) -> Details {
        let (PublicKeyReply::Jwk { version, .. } | PublicKeyReply::Pem { version, .. }) = self;
        Details { version: Some(*version), ..Details::default() }
    }
}

/// The public key of a version, from its record.
pub(super) fn public_key(record: &KeyRecord, version: u32) -> Result<PublicKey, Error> {
    let broken = || {
        let place = format!("key-version/{}/{version}", record.meta.name());
        Error::Record(crate::records::RecordError::Broken(place))
    };
    let stored = record.version(version).ok_or_else(broken)?;
    PublicKey::from_spki_der(&stored.public).map_err(|_| broken())
}

/// The longest text of a private key that custody is asked about, in bytes.
const LONGEST_IMPORT: usize = 32 * 1024;

fn first_version(name: &Name) -> KeyAddress {
    KeyAddress { name: name.to_string(), version: 1 }
}

/// What a new key is given besides its name and its size.
struct NewMeta {
    mgf1_hash: Mgf1Hash,
    labels: Labels,
    without_token: u32,
    owner: Option<Owner>,
    origin: Origin,
}

impl Appliance {
    /// The key of this name.
    pub(super) async fn key(&self, name: &Name) -> Result<std::sync::Arc<KeyRecord>, Error> {
        self.records.key(name).await?.ok_or_else(|| self.absent("key"))
    }

    /// What to say where there is no such thing: before it is initialised, an appliance has nothing.
    pub(super) fn absent(&self, what: &'static str) -> Error {
        match self.records.home() {
            Some(_) => Error::NotFound(what),
            None => Error::NotInitialised,
        }
    }

    /// The owner of a key that the caller of `permit` makes. To make it another's is to give it away.
    fn owner_to_be(
        &self,
        permit: &Permit,
        named: Option<Owner>,
        labels: &Labels,
    ) -> Result<Option<Owner>, Error> {
        let own = owner_of(permit.caller());
        match named {
            None => Ok(own),
            Some(named) if Some(&named) == own.as_ref() => Ok(own),
            Some(named) => {
                let facts = Facts::Known { owner: own.as_ref(), labels: Some(labels) };
                let (caller, action) = (permit.caller(), Action::KeyTransfer);
                self.policy().must_be_declared(permit, action).map_err(Error::Denied)?;
                let transfer = self.policy().permit(caller, action, permit.resource(), facts);
                drop(transfer.map_err(Error::Denied)?);
                needed_also(action);
                must_be_able_to_own(&named)?;
                Ok(Some(named))
            }
        }
    }

    /// The same after a wait, in which policy may have changed.
    fn may_still_make(
        &self,
        permit: &Permit,
        owner: Option<&Owner>,
        labels: &Labels,
    ) -> Result<(), Error> {
        if permit.is_of(&self.policy()) {
            return Ok(());
        }
        self.must_cover(permit, Facts::Known { owner, labels: Some(labels) })?;
        self.owner_to_be(permit, owner.cloned(), labels).map(drop)
    }

    /// Refuses a name that is taken. The key that has it is judged first: whoever may not make such a key in its
    /// place learns no more of it than that, and its revision only who may see the key.
    async fn must_be_free(
        &self,
        permit: &Permit,
        name: &Name,
        conditions: &Preconditions,
    ) -> Result<(), Error> {
        if self.records.home().is_none() {
            return Err(Error::NotInitialised);
        }
        let Some(known) = self.records.key(name).await? else { return conditions.check(None) };
        let facts = facts_of_key(&known.meta);
        self.must_cover(permit, facts)?;
        if self.may_see(permit, Action::KeyShow, permit.resource(), facts) {
            conditions.check(Some(known.revision))?;
        }
        Err(Error::Exists("key"))
    }

    async fn keep_first(&self, name: Name, key: NewMeta, made: NewKey) -> Result<KeyView, Error> {
        let NewMeta { mgf1_hash, labels, without_token, owner, origin } = key;
        let (kid, address) = (thumbprint(&made.public)?, first_version(&name));
        let mut meta = KeyMeta::new(name, made.algorithm, mgf1_hash, labels, kid, self.now());
        meta.serve_without_token(without_token);
        meta.transfer(owner);
        meta.comes_from(origin);
        let first = self.to_keep(address, made).await?;
        let kept = self.records.add_key(meta, first).await.map_err(|error| match error {
            crate::records::RecordError::Conflict => Error::Exists("key"),
            other => other.into(),
        })?;
        Ok(KeyView::changed(&kept, Some(1)))
    }
}

/// The `kid` of a public key that custody handed out.
pub(super) fn thumbprint(public: &[u8]) -> Result<String, Error> {
    let key = PublicKey::from_spki_der(public);
    key.map(|key| key.kid()).map_err(|error| Error::BadKey(error.to_string()))
}
