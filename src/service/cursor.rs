//! Where a page of a list ended, sealed: a cursor tells its bearer nothing, and only one that was given for
//! the same list to the same caller is taken.
//!
//! ```text
//! cursor = base64url(IV ‖ AES-256-GCM(key of this process, IV, AAD, length ‖ name ‖ zeros))
//! AAD    = list ‖ 0 ‖ caller ‖ 0 ‖ prefix
//! ```
//!
//! All cursors are of one length. The key is drawn when the process starts and kept nowhere.

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use zeroize::Zeroizing;

use super::error::Error;
use crate::identity::Caller;
use crate::key::Name;

/// What a cursor is for.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub list: &'static str,
    pub caller: &'a Caller,
    pub prefix: &'a str,
}

/// Seals and opens the cursors of one process.
pub(super) struct Cursors(Aes256Gcm);

const IV: usize = 12;

/// A length and the longest name.
const PLAIN: usize = 1 + 63;

impl Cursors {
    /// Draws the key.
    pub fn new() -> Self {
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(key.as_mut_slice()).expect("the kernel gives random bytes");
        Self(Aes256Gcm::new((&*key).into()))
    }

    /// A cursor that stands behind this name.
    pub fn seal(&self, place: Place<'_>, name: &Name) -> Result<String, Error> {
        let name = name.as_str().as_bytes();
        let mut plain = [0; PLAIN];
        plain[0] = u8::try_from(name.len()).map_err(|_| Error::Cursor)?;
        plain.get_mut(1..=name.len()).ok_or(Error::Cursor)?.copy_from_slice(name);
        let mut iv = [0; IV];
        getrandom::fill(&mut iv).map_err(|_| Error::Busy)?;
        let payload = Payload { msg: &plain, aad: &place.bytes() };
        let sealed = self.0.encrypt(&Nonce::from(iv), payload).map_err(|_| Error::Cursor)?;
        Ok(BASE64_URL_SAFE_NO_PAD.encode([&iv[..], &sealed].concat()))
    }

    /// The name that a cursor stands behind.
    ///
    /// # Errors
    /// [`Error::Cursor`] for whatever was not sealed here, for this place.
    pub fn open(&self, place: Place<'_>, cursor: &str) -> Result<Name, Error> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(cursor).map_err(|_| Error::Cursor)?;
        let (iv, sealed) = bytes.split_first_chunk::<IV>().ok_or(Error::Cursor)?;
        let payload = Payload { msg: sealed, aad: &place.bytes() };
        let plain = self.0.decrypt(&Nonce::from(*iv), payload).map_err(|_| Error::Cursor)?;
        let (length, rest) = plain.split_first().ok_or(Error::Cursor)?;
        let name = rest.get(..usize::from(*length)).ok_or(Error::Cursor)?;
        let name = std::str::from_utf8(name).map_err(|_| Error::Cursor)?;
        Name::parse(name).map_err(|_| Error::Cursor)
    }
}

impl Place<'_> {
    fn bytes(self) -> Vec<u8> {
        [self.list, &self.caller.name(), self.prefix].join("\0").into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::UnixPeer;

    fn caller(uid: u32) -> Caller {
        Caller::Unix(UnixPeer { uid, gid: uid, pid: 1, groups: Vec::new() })
    }

    #[test]
    fn a_cursor_opens_where_it_was_given_and_nowhere_else() {
        let (cursors, one, other) = (Cursors::new(), caller(1), caller(2));
        let place = Place { list: "keys", caller: &one, prefix: "a" };
        let longest = "a".repeat(63);
        for name in ["a", "payments", &longest] {
            let name = Name::parse(name).unwrap();
            let cursor = cursors.seal(place, &name).unwrap();
            assert_eq!(cursor.len(), 123, "one length for all");
            assert_ne!(cursor, cursors.seal(place, &name).unwrap());
            assert_eq!(cursors.open(place, &cursor).unwrap(), name);
            let elsewhere = [
                Place { list: "secrets", ..place },
                Place { caller: &other, ..place },
                Place { prefix: "b", ..place },
            ];
            for place in elsewhere {
                assert!(matches!(cursors.open(place, &cursor), Err(Error::Cursor)));
            }
            assert!(matches!(Cursors::new().open(place, &cursor), Err(Error::Cursor)));
            for at in 0..cursor.len() {
                let mut forged = cursor.clone().into_bytes();
                forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
                let forged = String::from_utf8(forged).unwrap();
                assert!(cursors.open(place, &forged).is_err(), "{at}");
            }
        }
        for nonsense in ["", "a", "payments", "!", &"A".repeat(123)] {
            assert!(cursors.open(place, nonsense).is_err(), "{nonsense}");
        }
    }
}
