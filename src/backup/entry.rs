//! One address of the store, written and read.

use crate::store::{Copied, MAX_KEY, MAX_VALUE, Table};

/// What should be an address of the store is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what should be an address of the store at byte {at} is none")]
pub struct EntryError {
    pub at: usize,
}

/// The bytes before key and value.
const HEAD: usize = 1 + 1 + 1 + 8 + 4;

/// Appends one address.
pub(super) fn write(out: &mut Vec<u8>, entry: &Copied) {
    let value = entry.value.as_deref();
    out.push(entry.table.tag());
    out.push(u8::from(value.is_some()));
    // The store takes no longer ones.
    out.push(u8::try_from(entry.key.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(&entry.revision.to_be_bytes());
    let len = u32::try_from(value.map_or(0, <[u8]>::len)).unwrap_or(u32::MAX);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(entry.key.as_bytes());
    out.extend_from_slice(value.unwrap_or_default());
}

/// Reads all that a part holds.
///
/// # Errors
/// Where something is no address, or the part ends within one.
pub(super) fn read_all(bytes: &[u8]) -> Result<Vec<Copied>, EntryError> {
    let (mut rest, mut all) = (bytes, Vec::new());
    while !rest.is_empty() {
        let at = bytes.len() - rest.len();
        let (entry, after) = read(rest).ok_or(EntryError { at })?;
        all.push(entry);
        rest = after;
    }
    Ok(all)
}

fn read(bytes: &[u8]) -> Option<(Copied, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
    let [tag, kept, key, revision @ .., a, b, c, d] = *head;
    let table = Table::of_tag(tag)?;
    let (key, len) = (usize::from(key), u32::from_be_bytes([a, b, c, d]));
    let len = usize::try_from(len).ok()?;
    if kept > 1 || key == 0 || key > MAX_KEY || len > MAX_VALUE || (kept == 0 && len > 0) {
        return None;
    }
    let (key, rest) = rest.split_at_checked(key)?;
    let (value, rest) = rest.split_at_checked(len)?;
    let entry = Copied {
        table,
        key: std::str::from_utf8(key).ok()?.to_owned(),
        revision: u64::from_be_bytes(revision),
        value: (kept == 1).then(|| value.to_vec()),
    };
    Some((entry, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_were_written_and_not_when_cut_or_bent() {
        let all = [
            Copied { table: Table::Key, key: "a".to_owned(), revision: 7, value: Some(vec![1; 9]) },
            Copied { table: Table::Secret, key: "b".repeat(255), revision: 1, value: None },
            Copied {
                table: Table::Appliance,
                key: "c".to_owned(),
                revision: 2,
                value: Some(vec![]),
            },
        ];
        let (mut bytes, mut ends) = (Vec::new(), vec![0]);
        for entry in &all {
            write(&mut bytes, entry);
            ends.push(bytes.len());
        }
        assert_eq!(read_all(&bytes).unwrap(), all);
        for cut in 0..bytes.len() {
            assert_eq!(read_all(&bytes[..cut]).is_ok(), ends.contains(&cut), "{cut}");
        }
        for (at, value) in [(0, 9), (1, 2), (2, 0), (11, 0xff)] {
            let mut bent = bytes.clone();
            bent[at] = value;
            assert!(read_all(&bent).is_err(), "byte {at}");
        }
    }
}
