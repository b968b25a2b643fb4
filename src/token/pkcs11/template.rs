//! How keys are made, and what is demanded of those that are found.

use cryptoki::{
    mechanism::MechanismType,
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};

use super::failure::Failure;
use crate::token::KeyName;

/// `secp256r1` as DER object identifier (RFC 5480 §2.1.1.1).
const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

/// A master key to generate: for AES-GCM alone, and never to leave or to change.
pub(super) fn new_master(key: KeyName) -> Vec<Attribute> {
    let mut template = named(key);
    template.extend([Attribute::Class(ObjectClass::SECRET_KEY), Attribute::KeyType(KeyType::AES)]);
    template.push(Attribute::ValueLen(32.into()));
    template.extend(kept_inside());
    template.extend(master_uses());
    template
}

/// What a master key must be when it is found: as it was made, and never otherwise since.
pub(super) fn fit_master() -> Vec<Attribute> {
    let mut fit = vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::ValueLen(32.into()),
    ];
    fit.extend(kept_inside());
    fit.extend(always_inside());
    fit.extend(master_uses());
    fit
}

/// The private half of a signing pair to generate.
pub(super) fn new_signer(key: KeyName) -> Vec<Attribute> {
    let mut template = named(key);
    template.extend(kept_inside());
    template.extend(signer_uses());
    template
}

/// What the private half must be when it is found.
pub(super) fn fit_signer() -> Vec<Attribute> {
    let mut fit = vec![
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::KeyType(KeyType::EC),
        Attribute::EcParams(P256.to_vec()),
    ];
    fit.extend(kept_inside());
    fit.extend(always_inside());
    fit.extend(signer_uses());
    fit
}

/// The public half of a signing pair to generate.
pub(super) fn new_signer_public(key: KeyName) -> Vec<Attribute> {
    let mut template = named(key);
    template.extend([
        Attribute::Token(true),
        Attribute::Private(false),
        Attribute::Modifiable(false),
        Attribute::Verify(true),
        Attribute::Encrypt(false),
        Attribute::Wrap(false),
        Attribute::EcParams(P256.to_vec()),
    ]);
    template
}

/// `CKA_ID` of a key, by which it is found; the label is the same, for people.
pub(super) fn id(key: KeyName) -> Attribute {
    Attribute::Id(key.to_string().into_bytes())
}

/// Compares what the token says of `object` with what it must be; `Some` lists every difference.
///
/// An attribute that the token does not have, or that cannot be read, is a difference.
pub(super) fn unfit(
    session: &Session,
    object: ObjectHandle,
    fit: &[Attribute],
) -> Result<Option<String>, Failure> {
    let types: Vec<AttributeType> = fit.iter().map(Attribute::attribute_type).collect();
    let found = match session.get_attributes(object, &types) {
        Ok(found) => found,
        Err(error @ cryptoki::error::Error::Pkcs11(..)) => return Err(error.into()),
        // Values that no key of ours has, such as mechanisms that nobody has heard of.
        Err(error) => return Ok(Some(format!("its attributes cannot be understood ({error})"))),
    };
    let wrong: Vec<String> = fit.iter().filter_map(|fit| difference(fit, &found)).collect();
    Ok((!wrong.is_empty()).then(|| wrong.join(", ")))
}

fn difference(fit: &Attribute, found: &[Attribute]) -> Option<String> {
    let kind = fit.attribute_type();
    match found.iter().find(|found| found.attribute_type() == kind) {
        None => Some(format!("{kind} is missing (must be {fit:?})")),
        Some(found) if found == fit => None,
        Some(found) => Some(format!("{kind} is {found:?} (must be {fit:?})")),
    }
}

fn named(key: KeyName) -> Vec<Attribute> {
    vec![id(key), Attribute::Label(key.to_string().into_bytes())]
}

/// `CKA_COPYABLE` too: kryoptic lets a copy of a key that cannot be modified differ from it, so that
/// a copy of the master could wrap, or be modified after all.
fn kept_inside() -> [Attribute; 6] {
    [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Modifiable(false),
        Attribute::Copyable(false),
    ]
}

/// Set by the token alone: generated in it, and in the clear nowhere else, ever.
fn always_inside() -> [Attribute; 3] {
    [Attribute::AlwaysSensitive(true), Attribute::NeverExtractable(true), Attribute::Local(true)]
}

/// What is not spelled out is the token's choice: SoftHSM lets a key verify, wrap and work block by
/// block unless told otherwise.
fn master_uses() -> [Attribute; 8] {
    [
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Sign(false),
        Attribute::Verify(false),
        Attribute::Derive(false),
        Attribute::AllowedMechanisms(vec![MechanismType::AES_GCM]),
    ]
}

fn signer_uses() -> [Attribute; 6] {
    [
        Attribute::Sign(true),
        Attribute::SignRecover(false),
        Attribute::Decrypt(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
        Attribute::AllowedMechanisms(vec![MechanismType::ECDSA]),
    ]
}
