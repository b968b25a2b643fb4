//! What must hold for any name, label and public key that comes in.

use super::{Labels, Name, PublicKey};

/// A name, and labels in JSON: what is taken keeps the rules and is written as it was read.
pub fn words(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(name) = Name::parse(text) {
        assert_eq!(name.as_str(), text);
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        assert!(text.len() <= Name::MAX && text.starts_with(plain));
        assert!(text.chars().all(|c| plain(c) || matches!(c, '.' | '_' | '-')));
    }
    if let Ok(labels) = serde_json::from_str::<Labels>(text) {
        assert!(labels.iter().count() <= Labels::MAX);
        for (name, value) in labels.iter() {
            assert!(Name::parse(name.as_str()).is_ok());
            assert!(value.chars().count() <= Labels::MAX_VALUE);
            assert!(!value.chars().any(char::is_control));
            assert_eq!(labels.get(name.as_str()), Some(value));
        }
        let written = serde_json::to_string(&labels).expect("texts have a form");
        assert_eq!(serde_json::from_str::<Labels>(&written).expect("its own form"), labels);
    }
}

/// A public key in any form: every form that is written of it is read as the same key.
pub fn public_key(data: &[u8]) {
    let Ok(key) = PublicKey::from_any(data) else { return };
    let jwk = serde_json::to_string(&key.jwk(super::Mgf1Hash::Sha256)).expect("texts have a form");
    for form in
        [key.spki_der(), key.spki_pem().into_bytes(), key.pkcs1_pem().into_bytes(), jwk.into()]
    {
        let again = PublicKey::from_any(&form).expect("its own form");
        assert_eq!(again, key);
        assert_eq!(again.kid(), key.kid());
    }
    assert_eq!(key.modulus().len(), key.algorithm().ciphertext_len());
}
