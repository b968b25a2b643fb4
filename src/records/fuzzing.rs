//! What must hold for any bytes that a record may hold once it was opened.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{ClockRecord, HomeRecord, LockRecord, PassRecord, SecretRecord};
use crate::custody::protocol::StoreKey;

/// A record's value; the first byte says of what kind.
pub fn stored_record(data: &[u8]) {
    let Some((kind, value)) = data.split_first() else { return };
    match kind % 7 {
        0 => super::key_form::read_again(value),
        1 => same_again::<SecretRecord>(value),
        2 => same_again::<HomeRecord>(value),
        3 => same_again::<LockRecord>(value),
        4 => same_again::<StoreKey>(value),
        5 => same_again::<ClockRecord>(value),
        _ => same_again::<PassRecord>(value),
    }
}

fn same_again<T: Serialize + DeserializeOwned>(value: &[u8]) {
    let Ok(record) = serde_json::from_slice::<T>(value) else { return };
    let written = serde_json::to_vec(&record).expect("what was read can be written");
    let again: T = serde_json::from_slice(&written).expect("its own form");
    assert_eq!(serde_json::to_vec(&again).expect("as before"), written);
}
