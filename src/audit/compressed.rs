//! Files of the audit log that somebody has compressed: they are not read, and named with what makes them
//! readable.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::segment::SegmentFile;

/// The oldest file of a trail that lies here compressed alone.
pub(super) fn first(directory: &Path) -> io::Result<Option<(SegmentFile, Compression)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let Some(by) = Compression::of_name(&path) else { continue };
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let digits = stem.and_then(|stem| stem.strip_prefix("trail-")?.strip_suffix(".jsonl"));
        let first = digits.filter(|d| d.len() == 20).and_then(|d| d.parse().ok());
        if let Some(first) = first.filter(|_| !path.with_extension("").exists()) {
            files.push((SegmentFile { first, path }, by));
        }
    }
    Ok(files.into_iter().min_by_key(|(file, _)| file.first))
}

/// How a file is compressed that somebody wants to have read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    Gzip,
    Xz,
    Zstd,
    Bzip2,
}

impl Compression {
    fn of_name(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "gz" => Some(Self::Gzip),
            "xz" => Some(Self::Xz),
            "zst" => Some(Self::Zstd),
            "bz2" => Some(Self::Bzip2),
            _ => None,
        }
    }

    /// By its first bytes: a line of a trail has none of these.
    pub(super) fn of_content(file: &File) -> Option<Self> {
        let mut magic = [0; 6];
        let length = file.read_at(&mut magic, 0).ok()?;
        match magic.get(..length)? {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', ..] => Some(Self::Xz),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            [b'B', b'Z', b'h', ..] => Some(Self::Bzip2),
            _ => None,
        }
    }

    /// The command that makes it readable.
    pub fn command(self) -> &'static str {
        match self {
            Self::Gzip => "gunzip",
            Self::Xz => "unxz",
            Self::Zstd => "unzstd",
            Self::Bzip2 => "bunzip2",
        }
    }
}
