//! Keys that are there and are not what they must be: refused by name, used for nothing.

use cryptoki::{
    mechanism::{Mechanism, MechanismType},
    object::{Attribute, AttributeType, KeyType, ObjectClass},
    session::Session,
};
use strongroom::{
    secret::DataKey,
    token::{Token, TokenError, WrappedKey},
};

use crate::{
    open, stranger,
    support::{Kind, TestToken},
};

/// The template of a fit master, as it is demanded.
fn fit(generation: u32) -> Vec<Attribute> {
    let name = format!("strongroom master/{generation}").into_bytes();
    let mut template = vec![Attribute::Id(name.clone()), Attribute::Label(name)];
    template.push(Attribute::ValueLen(32.into()));
    template.push(Attribute::AllowedMechanisms(vec![MechanismType::AES_GCM]));
    template.extend([
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Modifiable(false),
        Attribute::Copyable(false),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Sign(false),
        Attribute::Verify(false),
        Attribute::Derive(false),
    ]);
    template
}

fn with(generation: u32, changed: Attribute) -> Vec<Attribute> {
    let mut template = without(generation, changed.attribute_type());
    template.push(changed);
    template
}

fn without(generation: u32, kind: AttributeType) -> Vec<Attribute> {
    let mut template = fit(generation);
    template.retain(|attribute| attribute.attribute_type() != kind);
    template
}

#[test]
fn unfit_masters_are_refused_on_softhsm() {
    let name = "unfit::unfit_masters_are_refused_on_softhsm";
    let Some(token) = TestToken::in_own_process(name, Kind::SoftHsm) else { return };
    unfit_masters_are_refused(&token);
}

#[test]
fn unfit_masters_are_refused_on_kryoptic() {
    let name = "unfit::unfit_masters_are_refused_on_kryoptic";
    let Some(token) = TestToken::in_own_process(name, Kind::Kryoptic) else { return };
    unfit_masters_are_refused(&token);
}

fn unfit_masters_are_refused(token: &TestToken) {
    let opened = open(token);
    let session = stranger(token);
    let both = vec![MechanismType::AES_GCM, MechanismType::AES_ECB];
    let cases = [
        (with(1, Attribute::Extractable(true)), "EXTRACTABLE"),
        (with(2, Attribute::Sensitive(false)), "SENSITIVE"),
        (with(3, Attribute::Modifiable(true)), "MODIFIABLE"),
        (with(4, Attribute::Copyable(true)), "COPYABLE"),
        (with(5, Attribute::Wrap(true)), "WRAP"),
        (with(6, Attribute::Unwrap(true)), "UNWRAP"),
        (with(7, Attribute::Encrypt(false)), "ENCRYPT"),
        (with(8, Attribute::Decrypt(false)), "DECRYPT"),
        (with(9, Attribute::AllowedMechanisms(both)), "ALLOWED_MECHANISMS"),
        (without(10, AttributeType::AllowedMechanisms), "ALLOWED_MECHANISMS"),
        (with(11, Attribute::ValueLen(16.into())), "VALUE_LEN"),
        (with(12, Attribute::Verify(true)), "VERIFY"),
    ];
    for (generation, (template, named)) in (1..).zip(cases) {
        session.generate_key(&Mechanism::AesKeyGen, &template).expect("made");
        refused(&opened, &session, generation, named);
    }
    // The right template on a key that came from outside.
    let mut imported = without(13, AttributeType::ValueLen);
    imported.extend([
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Value(vec![7; 32]),
    ]);
    session.create_object(&imported).expect("imported");
    refused(&opened, &session, 13, "LOCAL");
    let mut other_type = without(14, AttributeType::AllowedMechanisms);
    other_type.push(Attribute::KeyType(KeyType::GENERIC_SECRET));
    session.generate_key(&Mechanism::GenericSecretKeyGen, &other_type).expect("made");
    refused(&opened, &session, 14, "KEY_TYPE");
    // And the template of these tests, unchanged, is one that is taken.
    session.generate_key(&Mechanism::AesKeyGen, &fit(15)).expect("made");
    assert!(opened.master(15).expect("asked").is_some());
}

fn refused(token: &dyn Token, session: &Session, generation: u32, named: &str) {
    let count = || session.find_objects(&[]).expect("found").len();
    let (before, key) = (count(), DataKey::generate().expect("a key"));
    let wrapped = WrappedKey { generation, iv: [1; 12], ciphertext: vec![0; 48] };
    let all = [
        token.master(generation).err(),
        token.create_master(generation).err(),
        token.wrap(generation, b"here", &key).err(),
        token.unwrap(generation, b"here", &wrapped).err(),
        token.canary(generation).err(),
    ];
    for error in all {
        match error {
            Some(TokenError::KeyUnfit { why, .. }) => {
                assert!(why.contains(named), "{named}: {why}")
            }
            other => panic!("{named}: {other:?}"),
        }
    }
    assert_eq!(count(), before, "{named}: a refusal made or removed a key");
}

#[test]
fn two_masters_of_one_generation_are_refused() {
    let name = "unfit::two_masters_of_one_generation_are_refused";
    let Some(token) = TestToken::in_own_process(name, Kind::SoftHsm) else { return };
    let opened = open(&token);
    opened.create_master(1).expect("made");
    stranger(&token).generate_key(&Mechanism::AesKeyGen, &fit(1)).expect("made");
    let ambiguous = |error| matches!(error, TokenError::KeyAmbiguous { count: 2, .. });
    assert!(opened.master(1).is_err_and(ambiguous));
    assert!(opened.create_master(1).is_err_and(ambiguous));
}

#[test]
fn another_key_in_the_master_s_place_is_noticed() {
    let name = "unfit::another_key_in_the_master_s_place_is_noticed";
    let Some(token) = TestToken::in_own_process(name, Kind::SoftHsm) else { return };
    let opened = open(&token);
    opened.create_master(1).expect("made");
    let wrapped = opened.wrap(1, b"here", &DataKey::generate().expect("a key")).expect("wrapped");
    let session = stranger(&token);
    let master = Attribute::Class(ObjectClass::SECRET_KEY);
    for object in session.find_objects(&[master]).expect("found") {
        session.destroy_object(object).expect("destroyed");
    }
    let lost = |error| matches!(error, TokenError::Fatal(_));
    assert!(opened.unwrap(1, b"here", &wrapped).is_err_and(lost));
    assert!(opened.master(1).is_err_and(lost));
    assert!(opened.create_master(1).is_err_and(lost));
    session.generate_key(&Mechanism::AesKeyGen, &fit(1)).expect("made");
    let other = |error| matches!(error, TokenError::KeyUnfit { .. });
    assert!(opened.master(1).is_err_and(other));
    assert!(opened.unwrap(1, b"here", &wrapped).is_err_and(other));
}

#[test]
fn a_signer_whose_public_half_was_replaced_is_refused() {
    let name = "unfit::a_signer_whose_public_half_was_replaced_is_refused";
    let Some(token) = TestToken::in_own_process(name, Kind::SoftHsm) else { return };
    let opened = open(&token);
    opened.create_signer(1).expect("made");
    let other = opened.create_signer(2).expect("made");
    let session = stranger(&token);
    let id = Attribute::Id(b"strongroom audit/1".to_vec());
    let public = Attribute::Class(ObjectClass::PUBLIC_KEY);
    for object in session.find_objects(&[public.clone(), id.clone()]).expect("found") {
        session.destroy_object(object).expect("destroyed");
    }
    let unfit = |error| matches!(error, TokenError::KeyUnfit { .. });
    assert!(opened.signer(1).is_err_and(unfit));
    let p256 = vec![0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    let point = [&[0x04, 65][..], &other.public_point].concat();
    let forged = [
        public,
        id,
        Attribute::KeyType(KeyType::EC),
        Attribute::Token(true),
        Attribute::Private(false),
        Attribute::Verify(true),
        Attribute::EcParams(p256),
        Attribute::EcPoint(point),
    ];
    session.create_object(&forged).expect("imported");
    assert!(opened.signer(1).is_err_and(unfit));
    assert!(opened.create_signer(1).is_err_and(unfit));
    assert_eq!(opened.signer(2).expect("asked"), Some(other));
}
