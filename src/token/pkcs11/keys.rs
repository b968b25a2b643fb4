//! Finds, checks, makes and uses keys within one session.

use std::sync::Arc;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use cryptoki::{
    mechanism::Mechanism,
    object::{Attribute, AttributeType, ObjectClass, ObjectHandle},
    session::Session,
};
use cryptoki_sys::{CKR_ARGUMENTS_BAD, CKR_MECHANISM_PARAM_INVALID};
use sha2::{Digest, Sha256};

use super::{calls::Calls, failure::Failure, sessions::require_login, template};
use crate::{
    secret::{DataKey, SecretBytes},
    token::{KeyName, MasterInfo, Place, SignerInfo, TokenError, WrappedKey},
};

/// A master key that was found fit.
pub(super) struct Master {
    pub(super) handle: ObjectHandle,
    pub(super) info: MasterInfo,
    pub(super) canary: Arc<Canary>,
}

/// A key that was wrapped when the master was first seen: what must always open.
pub(super) struct Canary {
    pub(super) key: DataKey,
    pub(super) wrapped: WrappedKey,
}

impl Canary {
    pub(super) const AAD: &[u8] = b"strongroom canary";
}

/// A signing pair that was found fit.
#[derive(Clone, Copy)]
pub(super) struct Signer {
    pub(super) private: ObjectHandle,
    pub(super) info: SignerInfo,
}

/// The master of a generation, its template checked; `None` where a logged-in session finds none.
pub(super) fn find_master(
    calls: &Calls,
    session: &Session,
    place: &Place,
    generation: u32,
) -> Result<Option<(ObjectHandle, MasterInfo)>, Failure> {
    let key = KeyName::Master(generation);
    let Some(handle) = find(session, place, ObjectClass::SECRET_KEY, key)? else {
        return Ok(None);
    };
    require_fit(session, place, key, handle, &template::fit_master())?;
    let check_value = check_value(calls, session, handle)?;
    Ok(Some((handle, MasterInfo { generation, check_value })))
}

/// The signing pair of a generation, checked: template, and a signature that the public half verifies.
pub(super) fn find_signer(
    session: &Session,
    place: &Place,
    generation: u32,
) -> Result<Option<Signer>, Failure> {
    let key = KeyName::Signer(generation);
    let Some(private) = find(session, place, ObjectClass::PRIVATE_KEY, key)? else {
        return Ok(None);
    };
    require_fit(session, place, key, private, &template::fit_signer())?;
    let unfit = |why: &str| TokenError::KeyUnfit { key, place: place.clone(), why: why.to_owned() };
    let public = find(session, place, ObjectClass::PUBLIC_KEY, key)?
        .ok_or_else(|| unfit("its public half is missing"))?;
    let public_point = public_point(session, public)?
        .ok_or_else(|| unfit("its public half is no point of P-256"))?;
    // Anybody may have put a public key there: it is believed when it verifies a fresh signature.
    let mut message = *b"strongroom signer check ........";
    session.generate_random_slice(&mut message[24..])?;
    let signature = sign(session, private, &Sha256::digest(message).into())?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &public_point)
        .verify(&message, &signature)
        .map_err(|_| unfit("its public half belongs to another key"))?;
    Ok(Some(Signer { private, info: SignerInfo { generation, public_point } }))
}

/// Generates a master key; the caller has made sure that there is none.
pub(super) fn make_master(session: &Session, key: KeyName) -> Result<ObjectHandle, Failure> {
    Ok(session.generate_key(&Mechanism::AesKeyGen, &template::new_master(key))?)
}

/// Generates a signing pair; the caller has made sure that there is none.
pub(super) fn make_signer(session: &Session, key: KeyName) -> Result<[ObjectHandle; 2], Failure> {
    let (public, private) = (template::new_signer_public(key), template::new_signer(key));
    let (public, private) =
        session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private)?;
    Ok([public, private])
}

/// Removes public halves whose private half does not exist: what a generation leaves that was cut off
/// in its middle. The caller has made sure that there is no private half; nothing can be done with one
/// alone, and two would keep the pair from being found.
pub(super) fn clear_public_halves(session: &Session, key: KeyName) -> Result<(), Failure> {
    let left = session.find_objects(&[
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::Token(true),
        template::id(key),
    ])?;
    unmake(session, &left)
}

/// Takes back what was made a moment ago and turned out to be unfit.
pub(super) fn unmake(session: &Session, made: &[ObjectHandle]) -> Result<(), Failure> {
    Ok(made.iter().try_for_each(|object| session.destroy_object(*object))?)
}

/// Encrypts a data key under the master, with an IV from the token.
///
/// The IV is drawn by `C_GenerateRandom`. A token that does not take IVs of others (FIPS mode) gets
/// an empty one to fill in; either way the one that was used is read back.
pub(super) fn encrypt(
    calls: &Calls,
    session: &Session,
    master: ObjectHandle,
    generation: u32,
    aad: &[u8],
    key: &DataKey,
) -> Result<WrappedKey, Failure> {
    let mut iv = [0; 12];
    session.generate_random_slice(&mut iv)?;
    let mut ciphertext = vec![0; WrappedKey::CIPHERTEXT_LEN];
    let first = calls.gcm_encrypt(session, master, &mut iv, aad, key.expose(), &mut ciphertext);
    let len = match first {
        Err(failure) if wants_own_iv(&failure) => {
            iv = [0; 12];
            calls.gcm_encrypt(session, master, &mut iv, aad, key.expose(), &mut ciphertext)?
        }
        result => result?,
    };
    if iv == [0; 12] {
        return Err(Failure::answer("C_Encrypt", "the token does not say which IV it used"));
    }
    if len != WrappedKey::CIPHERTEXT_LEN {
        return Err(Failure::answer("C_Encrypt", format!("{len} bytes are no wrapped key")));
    }
    Ok(WrappedKey { generation, iv, ciphertext })
}

/// Decrypts a data key into the arena.
pub(super) fn decrypt(
    calls: &Calls,
    session: &Session,
    master: ObjectHandle,
    aad: &[u8],
    wrapped: &WrappedKey,
) -> Result<DataKey, Failure> {
    let mut room = SecretBytes::zeroed(WrappedKey::CIPHERTEXT_LEN)?;
    let data = &wrapped.ciphertext;
    let len = calls.gcm_decrypt(session, master, &wrapped.iv, aad, data, room.expose_mut())?;
    room.truncate(len);
    DataKey::from_bytes(room)
        .ok_or_else(|| Failure::answer("C_Decrypt", format!("{len} bytes are no data key")))
}

/// Signs a SHA-256 digest: r || s.
pub(super) fn sign(
    session: &Session,
    private: ObjectHandle,
    sha256: &[u8; 32],
) -> Result<[u8; 64], Failure> {
    let signature = session.sign(&Mechanism::Ecdsa, private, sha256)?;
    signature.try_into().map_err(|other: Vec<u8>| {
        Failure::answer("C_Sign", format!("{} bytes are no P-256 signature", other.len()))
    })
}

fn find(
    session: &Session,
    place: &Place,
    class: ObjectClass,
    key: KeyName,
) -> Result<Option<ObjectHandle>, Failure> {
    let found = session.find_objects(&[
        Attribute::Class(class),
        Attribute::Token(true),
        template::id(key),
    ])?;
    match found.as_slice() {
        [] => require_login(session).map(|()| None),
        [one] => Ok(Some(*one)),
        many => {
            let (place, count) = (place.clone(), many.len());
            Err(TokenError::KeyAmbiguous { key, place, count }.into())
        }
    }
}

fn require_fit(
    session: &Session,
    place: &Place,
    key: KeyName,
    object: ObjectHandle,
    fit: &[Attribute],
) -> Result<(), Failure> {
    match template::unfit(session, object, fit)? {
        None => Ok(()),
        Some(why) => Err(TokenError::KeyUnfit { key, place: place.clone(), why }.into()),
    }
}

/// Three bytes that tell a key from others: `CKA_CHECK_VALUE`, or where the token has none
///
/// ```text
/// first 3 bytes of the tag of AES-GCM(key, iv = "strongroom check", 16 zero bytes, aad = "strongroom check value")
/// ```
///
/// The IV has 16 bytes, so that its counter block is a GHASH and meets that of no 12-byte IV but by
/// chance of 2^-96. Block-wise encryption is not open to this key.
fn check_value(calls: &Calls, session: &Session, key: ObjectHandle) -> Result<[u8; 3], Failure> {
    let kept = session.get_attributes(key, &[AttributeType::CheckValue])?;
    if let Some(Attribute::CheckValue(value)) = kept.first()
        && let Ok(value) = value.as_slice().try_into()
    {
        return Ok(value);
    }
    let mut iv = *b"strongroom check";
    let mut out = [0; 32];
    let aad = b"strongroom check value";
    let len = calls.gcm_encrypt(session, key, &mut iv, aad, &[0; 16], &mut out)?;
    if len != out.len() || iv != *b"strongroom check" {
        return Err(Failure::answer("C_Encrypt", "no check value can be computed"));
    }
    Ok([out[16], out[17], out[18]])
}

/// `CKA_EC_POINT` as 65 bytes of SEC1: PKCS#11 wraps it in a DER OCTET STRING, some tokens do not.
fn public_point(session: &Session, public: ObjectHandle) -> Result<Option<[u8; 65]>, Failure> {
    let attributes = session.get_attributes(public, &[AttributeType::EcPoint])?;
    let Some(Attribute::EcPoint(bytes)) = attributes.first() else {
        return Ok(None);
    };
    Ok(uncompressed(bytes))
}

fn uncompressed(ec_point: &[u8]) -> Option<[u8; 65]> {
    let bare = match ec_point {
        [0x04, 65, point @ ..] if point.len() == 65 => point,
        point => point,
    };
    <[u8; 65]>::try_from(bare).ok().filter(|point| point[0] == 0x04)
}

/// The token refuses the parameter that held our IV.
fn wants_own_iv(failure: &Failure) -> bool {
    matches!(failure.code(), Some(CKR_MECHANISM_PARAM_INVALID | CKR_ARGUMENTS_BAD))
}

#[cfg(test)]
mod tests {
    use super::uncompressed;

    #[test]
    fn a_point_is_taken_wrapped_and_bare() {
        let mut bare = [7; 65];
        bare[0] = 4;
        let wrapped = [&[0x04, 65][..], &bare].concat();
        assert_eq!(uncompressed(&bare), Some(bare));
        assert_eq!(uncompressed(&wrapped), Some(bare));
    }

    #[test]
    fn what_is_no_uncompressed_point_is_refused() {
        for bytes in [&[][..], &[4; 64], &[4; 66], &[2; 65], &[0x04, 65, 4], &[0x04; 97]] {
            assert_eq!(uncompressed(bytes), None);
        }
    }
}
