//! What must hold for any bytes that custody parses: packets both ways, sealed forms, private keys.

use std::sync::Once;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::protocol::{Answer, Hello, Verb};
use super::rsa::PrivateKey;
use super::{sealed, wire};
use crate::secret::{self, Use};
use crate::token::WrappedKey;

/// Secrets are taken into the arena, so there has to be one.
fn arena() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        secret::start(&secret::Settings::default(), Use::Front).expect("an arena");
    });
}

/// A message of either end, or the first words: what is taken has one meaning, and none of it is left
/// unread.
pub fn packet(data: &[u8]) {
    arena();
    let Some((kind, message)) = data.split_first() else { return };
    match kind % 3 {
        0 => same_again::<Verb>(message),
        1 => same_again::<Answer>(message),
        _ => same_again::<Hello>(message),
    }
}

fn same_again<T: Serialize + DeserializeOwned>(message: &[u8]) {
    let Ok(read) = wire::parse::<T>(message) else { return };
    let written = postcard::to_allocvec(&read).expect("what was read can be written");
    assert!(written.len() <= message.len(), "the written form is the shortest");
    let again: T = wire::parse(&written).unwrap_or_else(|_| panic!("cannot read its own form"));
    assert_eq!(postcard::to_allocvec(&again).expect("writable"), written);
    let longer = [&written, [0].as_slice()].concat();
    assert!(wire::parse::<T>(&longer).is_err(), "something behind a message was passed over");
}

/// Sealed forms: there is one text for each, and no two kinds of form take the same wrapped key.
pub fn sealed_form(data: &[u8]) {
    if let Ok(wrapped) = sealed::read_wrapped(data) {
        assert_eq!(sealed::write_wrapped(&wrapped), data);
        assert!(sealed::read_key(data).is_err(), "a store key was taken for a sealed key");
    }
    if let Ok((wrapped, inner)) = sealed::read_key(data) {
        assert_eq!(sealed::write_key(&wrapped, inner.iv, inner.ciphertext), data);
    }
    if let Some(generation) = sealed::generation_of(data) {
        let wrapped = WrappedKey { generation: 7, iv: [1; 12], ciphertext: vec![2; 48] };
        let moved = sealed::with_wrap(data, &wrapped).expect("it has a wrap");
        assert_eq!((moved.len(), sealed::generation_of(&moved)), (data.len(), Some(7)));
        assert!(sealed::generation_of(&data[..5]).is_none(), "{generation} from nothing");
    }
    if let Ok((fingerprint, ciphertext)) = sealed::read_recovery(data) {
        assert_eq!(sealed::write_recovery(&fingerprint, ciphertext), data);
        assert!(
            sealed::generation_of(data).is_none(),
            "a recovery wrap was taken for a wrapped key"
        );
    }
    let named = sealed::store_key_of(data);
    if let Ok((id, inner)) = sealed::read_record(data) {
        assert_eq!(sealed::write_record(id, inner.iv, inner.ciphertext), data);
        assert_eq!(named, Some(id));
    }
}

/// A private key that a caller brings: what is taken is written as PKCS#8 and read again as the same.
pub fn private_key(data: &[u8]) {
    arena();
    let direct = PrivateKey::from_pkcs8(data);
    let Ok(key) = PrivateKey::import(data) else { return };
    let der = key.to_pkcs8().expect("a key that was taken has a form");
    let again = PrivateKey::from_pkcs8(der.expose()).expect("its own form");
    assert_eq!(again.public(), key.public());
    assert_eq!(again.to_pkcs8().expect("writable").expose(), der.expose());
    if let Ok(direct) = direct {
        assert_eq!(direct.public(), key.public());
    }
}
