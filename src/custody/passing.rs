//! Secrets on their way between the front and custody.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::protocol::Fault;
use crate::secret::{Pin, Pkcs8Der, Plaintext, StateKey};

/// A secret on its way through the socket: the one place where it is written out and read in. A secret
/// that finds no room in the arena of the end that reads it does not spoil the message around it.
pub struct Passing<T>(Option<T>);

impl<T> Passing<T> {
    pub fn new(secret: T) -> Self {
        Self(Some(secret))
    }

    /// The secret, or [`Fault::ArenaFull`] where there was no room for it.
    pub fn taken(self) -> Result<T, Fault> {
        self.0.ok_or(Fault::ArenaFull)
    }
}

/// The roles that may pass, and how they are taken apart and made again.
pub trait Passable: Sized {
    fn shown(&self) -> &[u8];
    fn taken(bytes: &[u8]) -> Option<Self>;
}

macro_rules! passable {
    ($($role:ident),*) => {$(
        impl Passable for $role {
            fn shown(&self) -> &[u8] {
                self.expose()
            }
            fn taken(bytes: &[u8]) -> Option<Self> {
                Self::copy_from(bytes).ok()
            }
        }
    )*};
}
passable!(Pin, Pkcs8Der, Plaintext, StateKey);

impl<T: Passable> Serialize for Passing<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0.as_ref().map_or(&[], T::shown))
    }
}

impl<'de, T: Passable> Deserialize<'de> for Passing<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = <&[u8]>::deserialize(deserializer)?;
        Ok(Passing(T::taken(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::protocol::Verb;
    use super::*;

    #[test]
    fn secrets_pass_and_come_out_the_same() {
        crate::secret::start(&Default::default(), crate::secret::Use::Front).unwrap();
        let verb = Verb::Unlock {
            appliance: None,
            pin: Some(Passing::new(Pin::copy_from(b"1234").unwrap())),
            by_operator: true,
            look_first: false,
        };
        let bytes = postcard::to_allocvec(&verb).unwrap();
        let Verb::Unlock { pin: Some(pin), .. } = postcard::from_bytes(&bytes).unwrap() else {
            panic!("another verb came out");
        };
        assert_eq!(pin.taken().ok().unwrap().expose(), b"1234");
    }
}
