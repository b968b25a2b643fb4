//! Brings away: the form of a backup, written as a stream and read back from a file.
//!
//! A backup is a tar archive (POSIX ustar) whose every byte is accounted for, in this order:
//!
//! ```text
//! store/000001 …        the store's addresses, deleted ones too; of one that comes twice the last counts
//! trail/trail-….jsonl … the files of the trail as they are, the last one up to the backup's head
//! manifest.json         what it is a backup of, and size and SHA-256 of each part before ([`Manifest`])
//! manifest.sig          ECDSA P-256 (r ‖ s) by the token's audit key over "strongroom backup v1\n",
//!                       the manifest's SHA-256 in hex, "\n"
//! ```
//!
//! One address of the store, integers big-endian:
//!
//! ```text
//! table u8 | kept u8 (1 a value, 0 deleted) | key length u8 | revision u64 | value length u32 | key | value
//! ```
//!
//! Nothing in it opens without the token. The trail in it can be read as it can be where it lies.

mod entry;
mod manifest;
mod read;
mod write;

pub use entry::EntryError;
pub use manifest::{Manifest, Part, TrailPart, signed_message};
pub use read::{Archive, ArchiveError, Damage};
pub use write::{Facts, Unsigned, Writer};

/// The version of the form.
const FORMAT: u32 = 1;

const MANIFEST: &str = "manifest.json";
const SIGNATURE: &str = "manifest.sig";
const STORE: &str = "store/";
const TRAIL: &str = "trail/";

/// The size of a tar block: headers are one, and contents are filled up to whole ones with zeros.
const BLOCK: u64 = 512;

/// The header of a part: nothing in it but name and size is not always the same.
fn header(name: &str, bytes: u64) -> std::io::Result<tar::Header> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name)?;
    header.set_size(bytes);
    header.set_mode(0o600);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    Ok(header)
}
