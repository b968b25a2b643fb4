//! Verification from the files and the public key alone: no daemon, no token, no store.
//!
//! What it can know: the chain names every change that leaves later lines as they were. Whoever can
//! write the files can also write every line after a change anew; that shows at the next checkpoint,
//! which only the token could have signed, and for lines after the last checkpoint only against a head
//! that was kept elsewhere (the store, the journal, a piece of paper). A tail that was cut off cleanly,
//! and an older copy put back, show against such a head and in no other way.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

use super::check::Checker;
use super::compressed::{self, Compression};
use super::line::{Head, Line};
use super::report::Report;
use super::segment;
use crate::key::pem;
use crate::sandbox::{Open, open_plain};

/// A public key that checkpoints are verified with.
#[derive(Debug, Clone)]
pub struct VerifyKey(UnparsedPublicKey<Vec<u8>>);

/// Not a public key for checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a P-256 public key in SPKI form (RFC 5480), as `audit public-key` gives it")]
pub struct PublicKeyError;

/// DER of a SubjectPublicKeyInfo for id-ecPublicKey on prime256v1, up to the uncompressed point.
const SPKI_P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

impl VerifyKey {
    /// From a PEM text with one `PUBLIC KEY`.
    pub fn from_pem(text: &str) -> Result<Self, PublicKeyError> {
        let block = pem::block(text.as_bytes()).map_err(|_| PublicKeyError)?;
        let der = block.decode().ok_or(PublicKeyError)?;
        let point = der.strip_prefix(&SPKI_P256).filter(|_| block.label == b"PUBLIC KEY");
        Self::from_point(point.ok_or(PublicKeyError)?)
    }

    /// From the uncompressed point, 65 bytes (SEC 1 §2.3.3).
    pub fn from_point(point: &[u8]) -> Result<Self, PublicKeyError> {
        if point.len() != 65 || point.first() != Some(&4) {
            return Err(PublicKeyError);
        }
        Ok(Self(UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point.to_vec())))
    }

    /// The PEM form of a point, for export. `None` where it is not an uncompressed P-256 point.
    pub fn pem_of_point(point: &[u8]) -> Option<String> {
        Self::from_point(point).ok()?;
        let der = [SPKI_P256.as_slice(), point].concat();
        der::pem::encode_string("PUBLIC KEY", der::pem::LineEnding::LF, &der).ok()
    }

    /// Whether this key has made the signature (r ‖ s) over the message.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.0.verify(message, signature).is_ok()
    }
}

/// What is known from elsewhere.
#[derive(Debug, Clone)]
pub struct Expectations {
    /// Heads that were kept: each must be in the trail.
    pub known: Vec<Head>,
    /// The trail is being written just now: a half line at the end is no finding, nor is an intent without
    /// an outcome that was written at most five minutes before the last line.
    pub in_use: bool,
    /// It need not begin at line 1: older files were put away, or only a part was exported.
    pub partial: bool,
    /// Lines at the end that neither a signature nor a known head may vouch for. Without any that does,
    /// even one is too many.
    pub most_unproven: u64,
}

impl Expectations {
    /// What an ordinary end has: a daemon that stopped in order leaves one line behind its last signature.
    pub const MOST_UNPROVEN: u64 = 1000;
}

impl Default for Expectations {
    fn default() -> Self {
        let most_unproven = Self::MOST_UNPROVEN;
        Self { known: Vec::new(), in_use: false, partial: false, most_unproven }
    }
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("there are no files of a trail in {}", .0.display())]
    NoFiles(PathBuf),
    #[error("{} is compressed: decompress it with `{} {}`, then verify again", .path.display(), .by.command(), .path.display())]
    Compressed { path: PathBuf, by: Compression },
    #[error("{} cannot be read: {error}", .path.display())]
    Read { path: PathBuf, error: io::Error },
}

/// Verifies the trail in a directory. A checkpoint is good if any of `keys` made it.
pub fn verify(
    directory: &Path,
    keys: &[VerifyKey],
    expectations: &Expectations,
) -> Result<Report, VerifyError> {
    verify_seen(directory, keys, expectations, &mut |_| {})
}

/// The same, and hands on each line that was read, whether it holds or not.
pub fn verify_seen(
    directory: &Path,
    keys: &[VerifyKey],
    expectations: &Expectations,
    seen: &mut dyn FnMut(&[u8]),
) -> Result<Report, VerifyError> {
    let unlisted = |error| VerifyError::Read { path: directory.to_owned(), error };
    let files = segment::list(directory).map_err(unlisted)?;
    if let Some((file, by)) = compressed::first(directory).map_err(unlisted)? {
        let is_put_away = files.first().is_some_and(|oldest| file.first < oldest.first);
        if !(expectations.partial && is_put_away) {
            return Err(VerifyError::Compressed { path: file.path, by });
        }
    }
    if files.is_empty() {
        return Err(VerifyError::NoFiles(directory.to_owned()));
    }
    let files = files.into_iter().map(|file| {
        let opened = open_plain(&file.path, Open::Read);
        opened.map(|opened| (file.path.clone(), opened)).map_err(|error| (file.path, error))
    });
    verify_each(files, keys, expectations, seen)
}

/// Verifies files in the order given, as one trail: files of a trail's directory or an export.
pub fn verify_files(
    paths: &[PathBuf],
    keys: &[VerifyKey],
    expectations: &Expectations,
) -> Result<Report, VerifyError> {
    let files = paths.iter().map(|path| {
        let opened = File::open(path);
        opened.map(|opened| (path.clone(), opened)).map_err(|error| (path.clone(), error))
    });
    verify_each(files, keys, expectations, &mut |_| {})
}

/// The same of files that are open; hands on each line that was read.
pub fn verify_opened(
    files: Vec<(PathBuf, File)>,
    keys: &[VerifyKey],
    expectations: &Expectations,
    seen: &mut dyn FnMut(&[u8]),
) -> Result<Report, VerifyError> {
    verify_each(files.into_iter().map(Ok), keys, expectations, seen)
}

fn verify_each(
    files: impl Iterator<Item = Result<(PathBuf, File), (PathBuf, io::Error)>>,
    keys: &[VerifyKey],
    expectations: &Expectations,
    seen: &mut dyn FnMut(&[u8]),
) -> Result<Report, VerifyError> {
    let started = Instant::now();
    let mut checker = Checker::new(keys, expectations);
    let unreadable = |(path, error)| VerifyError::Read { path, error };
    for file in files {
        let (path, file) = file.map_err(unreadable)?;
        if let Some(by) = Compression::of_content(&file) {
            return Err(VerifyError::Compressed { path, by });
        }
        checker.is_of(trail_of(&file));
        verify_file(&path, file, &mut checker, seen).map_err(|error| unreadable((path, error)))?;
    }
    let mut report = checker.finish();
    report.milliseconds = started.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
    Ok(report)
}

/// A line that is longer than this was not written by Strongroom.
const MAX_LINE: u64 = 64 * 1024;

fn verify_file(
    path: &Path,
    file: File,
    checker: &mut Checker<'_>,
    seen: &mut dyn FnMut(&[u8]),
) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    checker.begin_file(&name);
    verify_lines(&mut BufReader::with_capacity(256 * 1024, file), checker, seen)
}

/// Holds all lines of a file against each other.
pub(super) fn verify_lines(
    reader: &mut impl BufRead,
    checker: &mut Checker<'_>,
    seen: &mut dyn FnMut(&[u8]),
) -> io::Result<()> {
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut bytes)?;
        match bytes.pop() {
            None => return Ok(()),
            Some(b'\n') => {
                seen(&bytes);
                checker.line(&bytes);
            }
            // The rest of it is no row of its own.
            Some(last) if bytes.len() as u64 + 1 == MAX_LINE => {
                bytes.push(last);
                skip_line(reader)?;
                checker.line(&bytes);
            }
            Some(_) => checker.torn(),
        }
    }
}

/// Passes over what is left of a line, however long it is.
fn skip_line(reader: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = reader.fill_buf()?;
        let end = buffer.iter().position(|&byte| byte == b'\n');
        let (length, is_end) = (buffer.len(), end.is_some() || buffer.is_empty());
        reader.consume(end.map_or(length, |end| end + 1));
        if is_end {
            return Ok(());
        }
    }
}

/// Which trail the lines at the beginning of a file are of: most of the first few, so that a single changed one
/// does not decide. `None` where there are too few of them to tell.
fn trail_of(file: &File) -> Option<String> {
    const LINES: usize = 5;
    let mut bytes = vec![0; MAX_LINE as usize];
    let length = file.read_at(&mut bytes, 0).ok()?;
    let whole = bytes.get(..length)?.split(|&byte| byte == b'\n');
    let trails: Vec<&str> =
        whole.take(LINES).filter_map(Line::read).map(|line| line.trail).collect();
    let votes = |trail: &&str| trails.iter().filter(|other| *other == trail).count();
    let most = *trails.iter().max_by_key(|trail| votes(trail))?;
    (votes(&most) * 2 > trails.len() && trails.len() > 2).then(|| most.to_owned())
}
