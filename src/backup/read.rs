//! Reads a backup: first the whole file for its form and its digests, then the parts that are wanted.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::manifest::{Manifest, Part, hex};
use super::{
    BLOCK, EntryError, FORMAT, MANIFEST, SIGNATURE, STORE, TRAIL, entry, header, signed_message,
};
use crate::store::Copied;

/// A backup whose form holds together. What it says is to be believed once its signature is verified.
pub struct Archive {
    path: PathBuf,
    file: File,
    pub manifest: Manifest,
    /// The manifest as it stands in the archive.
    pub manifest_text: Vec<u8>,
    pub signature: Vec<u8>,
    places: BTreeMap<String, Place>,
    pub bytes: u64,
}

/// Where a part's contents lie, and what they are.
struct Place {
    offset: u64,
    bytes: u64,
    sha256: String,
}

/// Why a file is no backup that could be looked into any further.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("{} cannot be read: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{} is no backup of Strongroom", .0.display())]
    NotABackup(PathBuf),
    #[error("{} is cut off after {bytes} bytes", path.display())]
    Truncated { path: PathBuf, bytes: u64 },
    #[error("{} is damaged at byte {at}, outside of its parts", path.display())]
    Structure { path: PathBuf, at: u64 },
    #[error("manifest.json of {} is damaged, or was not written by Strongroom", .0.display())]
    Manifest(PathBuf),
    #[error(
        "{} has format {found}, this program knows up to {FORMAT}: use the newer program", path.display()
    )]
    Newer { path: PathBuf, found: u32 },
}

/// What is wrong with a part of a backup that can be looked into.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error("its bytes are not those that the manifest names")]
    Changed,
    #[error("it is missing")]
    Missing,
    #[error("the manifest does not name it")]
    Unlisted,
}

/// The longest manifest that is read; a part of it is about 130 bytes.
const MAX_MANIFEST: u64 = 256 * 1024 * 1024;

impl Archive {
    /// Reads the whole file once. Every byte of it has to be as Strongroom writes it, or within a part
    /// that is named as damaged.
    ///
    /// # Errors
    /// Where it cannot be looked into any further.
    pub fn open(path: &Path) -> Result<(Self, Vec<(String, Damage)>), ArchiveError> {
        let file = File::open(path)
            .map_err(|error| ArchiveError::Read { path: path.to_owned(), error })?;
        Self::of(file, path)
    }

    /// The same of a file that was opened at this path.
    pub fn of(file: File, path: &Path) -> Result<(Self, Vec<(String, Damage)>), ArchiveError> {
        let read = |error| ArchiveError::Read { path: path.to_owned(), error };
        let bytes = file.metadata().map_err(read)?.len();
        let walk = Walk { path, file: &file, bytes };
        let mut places = walk.all()?;
        let manifest = places.remove(MANIFEST).filter(|place| place.bytes <= MAX_MANIFEST);
        let signature = places.remove(SIGNATURE).filter(|place| place.bytes == 64);
        let (Some(manifest), Some(signature)) = (manifest, signature) else {
            return Err(ArchiveError::Manifest(path.to_owned()));
        };
        let manifest_text = contents(&file, &manifest).map_err(read)?;
        let signature = contents(&file, &signature).map_err(read)?;
        let manifest = parse(path, &manifest_text)?;
        let path = path.to_owned();
        let archive = Self { path, file, manifest, manifest_text, signature, places, bytes };
        let damages = archive.damages();
        Ok((archive, damages))
    }

    /// What the signature has to be over.
    pub fn message(&self) -> Vec<u8> {
        signed_message(&self.manifest_text)
    }

    /// The SHA-256 of the manifest: what names this backup.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.manifest_text).into()
    }

    /// The parts of the store, in their order.
    pub fn store_parts(&self) -> impl Iterator<Item = &Part> {
        self.manifest.parts.iter().filter(|part| part.name.starts_with(STORE))
    }

    /// The addresses in a part of the store. The inner error says that they do not hold together.
    pub fn addresses(&self, part: &Part) -> Result<Result<Vec<Copied>, EntryError>, ArchiveError> {
        let Some(place) = self.places.get(&part.name) else { return Ok(Ok(Vec::new())) };
        let bytes = contents(&self.file, place).map_err(|error| self.unreadable(error))?;
        Ok(entry::read_all(&bytes))
    }

    /// The files of the trail: names, and what is in them.
    pub fn trail_files(&self) -> impl Iterator<Item = (&str, impl Read + '_)> {
        self.manifest.parts.iter().filter_map(|part| {
            let name = part.name.strip_prefix(TRAIL)?;
            let Place { offset, bytes, .. } = self.places.get(&part.name)?;
            Some((name, Window { file: &self.file, at: *offset, end: offset + bytes }))
        })
    }

    fn damages(&self) -> Vec<(String, Damage)> {
        let mut damages = Vec::new();
        let mut listed = std::collections::HashSet::new();
        for part in &self.manifest.parts {
            listed.insert(part.name.as_str());
            match self.places.get(&part.name) {
                None => damages.push((part.name.clone(), Damage::Missing)),
                Some(place) if place.sha256 != part.sha256 || place.bytes != part.bytes => {
                    damages.push((part.name.clone(), Damage::Changed));
                }
                Some(_) => {}
            }
        }
        let unlisted = self.places.keys().filter(|name| !listed.contains(name.as_str()));
        damages.extend(unlisted.map(|name| (name.clone(), Damage::Unlisted)));
        damages
    }

    fn unreadable(&self, error: io::Error) -> ArchiveError {
        ArchiveError::Read { path: self.path.clone(), error }
    }
}

fn parse(path: &Path, text: &[u8]) -> Result<Manifest, ArchiveError> {
    #[derive(serde::Deserialize)]
    struct Form {
        format: u32,
    }
    let broken = |_| ArchiveError::Manifest(path.to_owned());
    let Form { format } = serde_json::from_slice(text).map_err(broken)?;
    if format > FORMAT {
        return Err(ArchiveError::Newer { path: path.to_owned(), found: format });
    }
    let manifest: Manifest = serde_json::from_slice(text).map_err(broken)?;
    match manifest.is_well_formed() {
        true => Ok(manifest),
        false => Err(ArchiveError::Manifest(path.to_owned())),
    }
}

/// Goes through the file once.
struct Walk<'a> {
    path: &'a Path,
    file: &'a File,
    bytes: u64,
}

impl Walk<'_> {
    fn all(&self) -> Result<BTreeMap<String, Place>, ArchiveError> {
        let mut places = BTreeMap::new();
        let mut at = 0;
        loop {
            let block = self.block(at)?;
            if block == [0; BLOCK as usize] {
                self.end(at, !places.is_empty())?;
                return Ok(places);
            }
            let (name, bytes) = self.header(at, &block)?;
            let offset = at + BLOCK;
            let end = offset.checked_add(bytes).filter(|end| *end <= self.bytes);
            let end = end.ok_or_else(|| self.truncated())?;
            let sha256 = self.digest(offset, end)?;
            if places.insert(name, Place { offset, bytes, sha256 }).is_some() {
                return Err(self.structure(at));
            }
            at = end.next_multiple_of(BLOCK);
            self.zeros(end, at)?;
        }
    }

    /// A header that is exactly as it is written for its name and size.
    fn header(&self, at: u64, block: &[u8; BLOCK as usize]) -> Result<(String, u64), ArchiveError> {
        let found = tar::Header::from_byte_slice(block);
        let name = found.path().ok().and_then(|path| Some(path.to_str()?.to_owned()));
        let size = found.entry_size().ok();
        let known = name.zip(size).filter(|(name, size)| {
            let ours = name.starts_with(STORE) || name.starts_with(TRAIL);
            let ours = ours || name == MANIFEST || name == SIGNATURE;
            ours && header(name, *size).is_ok_and(|header| header.as_bytes() == block)
        });
        known.ok_or_else(|| match at {
            0 => ArchiveError::NotABackup(self.path.to_owned()),
            _ => self.structure(at),
        })
    }

    /// The end of the archive: two blocks of zeros and nothing after them.
    fn end(&self, at: u64, any: bool) -> Result<(), ArchiveError> {
        let end = at + 2 * BLOCK;
        if !any {
            return Err(ArchiveError::NotABackup(self.path.to_owned()));
        }
        if self.bytes < end {
            return Err(self.truncated());
        }
        self.zeros(at, end)?;
        if self.bytes > end { Err(self.structure(end)) } else { Ok(()) }
    }

    fn block(&self, at: u64) -> Result<[u8; BLOCK as usize], ArchiveError> {
        let mut block = [0; BLOCK as usize];
        self.read(&mut block, at)?;
        Ok(block)
    }

    fn zeros(&self, from: u64, to: u64) -> Result<(), ArchiveError> {
        let mut bytes = vec![0; usize::try_from(to - from).unwrap_or(0)];
        self.read(&mut bytes, from)?;
        match bytes.iter().position(|byte| *byte != 0) {
            Some(index) => Err(self.structure(from + index as u64)),
            None => Ok(()),
        }
    }

    fn digest(&self, from: u64, to: u64) -> Result<String, ArchiveError> {
        let mut digest = Sha256::new();
        let mut window = Window { file: self.file, at: from, end: to };
        let mut buffer = vec![0; 256 * 1024];
        loop {
            match window.read(&mut buffer).map_err(|error| self.unreadable(error))? {
                0 => return Ok(hex(&digest.finalize())),
                read => digest.update(buffer.get(..read).unwrap_or_default()),
            }
        }
    }

    fn read(&self, buffer: &mut [u8], at: u64) -> Result<(), ArchiveError> {
        self.file.read_exact_at(buffer, at).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof if at == 0 => {
                ArchiveError::NotABackup(self.path.to_owned())
            }
            io::ErrorKind::UnexpectedEof => self.truncated(),
            _ => self.unreadable(error),
        })
    }

    fn truncated(&self) -> ArchiveError {
        ArchiveError::Truncated { path: self.path.to_owned(), bytes: self.bytes }
    }

    fn structure(&self, at: u64) -> ArchiveError {
        ArchiveError::Structure { path: self.path.to_owned(), at }
    }

    fn unreadable(&self, error: io::Error) -> ArchiveError {
        ArchiveError::Read { path: self.path.to_owned(), error }
    }
}

fn contents(file: &File, place: &Place) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(place.bytes).map_err(|_| io::ErrorKind::OutOfMemory)?];
    file.read_exact_at(&mut bytes, place.offset)?;
    Ok(bytes)
}

/// A stretch of a file, read without moving the file's own position.
struct Window<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(buffer.get_mut(..most).unwrap_or_default(), self.at)?;
        if read == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Facts, TrailPart, Writer};
    use super::*;
    use crate::store::Table;

    const LINES: &[u8] = b"one\ntwo\nthree\n";

    fn written() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        let value = Some(vec![7; 100]);
        let one = Copied { table: Table::Key, key: "a".to_owned(), revision: 1, value };
        writer.store(&[one]).unwrap();
        writer.trail("trail-00000000000000000001.jsonl", 8, LINES).unwrap();
        let trail = TrailPart { id: "0".repeat(16), head: format!("2:{}", "0".repeat(64)) };
        let created_at = jiff::Timestamp::UNIX_EPOCH;
        let facts = Facts { appliance: "0".repeat(32), created_at, generations: vec![1], trail };
        writer.manifest(facts).unwrap().finish(&[9; 64]).unwrap()
    }

    fn open(bytes: &[u8]) -> Result<(Archive, Vec<(String, Damage)>), ArchiveError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("backup");
        std::fs::write(&path, bytes).unwrap();
        Archive::open(&path)
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        let (archive, damages) = open(&written()).unwrap();
        assert!(damages.is_empty());
        let part = archive.store_parts().next().unwrap();
        assert_eq!(archive.addresses(part).unwrap().unwrap()[0].key, "a");
        let (name, mut file) = archive.trail_files().next().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!((name, text.as_str()), ("trail-00000000000000000001.jsonl", "one\ntwo\n"));
        assert_eq!(archive.signature, [9; 64]);
        assert!(archive.message().starts_with(b"strongroom backup v1\n"));
    }

    #[test]
    fn no_byte_can_change_unseen_and_no_end_be_cut_off() {
        let whole = written();
        let (good, _) = open(&whole).unwrap();
        for at in 0..whole.len() {
            let mut bent = whole.clone();
            bent[at] ^= 1;
            let seen = match open(&bent) {
                Err(_) => true,
                // What the signature is held against.
                Ok((found, damages)) => {
                    !damages.is_empty()
                        || found.manifest_text != good.manifest_text
                        || found.signature != good.signature
                }
            };
            assert!(seen, "byte {at}");
        }
        for cut in (0..whole.len()).step_by(7).chain([whole.len() - 1]) {
            assert!(open(&whole[..cut]).is_err(), "{cut}");
        }
        assert!(open(&[&whole[..], b"x"].concat()).is_err(), "something follows");
    }

    #[test]
    fn names_that_would_lead_elsewhere_and_texts_that_would_drive_a_terminal_are_refused() {
        let (good, _) = open(&written()).unwrap();
        let spoilt = |spoil: &dyn Fn(&mut Manifest)| {
            let mut manifest = good.manifest.clone();
            spoil(&mut manifest);
            manifest.is_well_formed()
        };
        assert!(spoilt(&|_| ()));
        for bad in ["../x", "store/../../x", "store/00001", "trail/trail-1.jsonl", "trail/a/b", "a"]
        {
            assert!(!spoilt(&|manifest| manifest.parts[0].name = bad.to_owned()), "{bad}");
        }
        for bad in ["", "0.1\u{1b}[2J", "1\n", "\u{202e}"] {
            assert!(!spoilt(&|manifest| manifest.program = bad.to_owned()), "{bad:?}");
            assert!(!spoilt(&|manifest| manifest.appliance = bad.to_owned()), "{bad:?}");
            assert!(!spoilt(&|manifest| manifest.trail.id = bad.to_owned()), "{bad:?}");
            assert!(!spoilt(&|manifest| manifest.trail.head = bad.to_owned()), "{bad:?}");
            assert!(!spoilt(&|manifest| manifest.parts[0].sha256 = bad.to_owned()), "{bad:?}");
        }
    }
}
