//! Reading the trail back from its files, beside the writer and without asking it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;

use super::line::{Hash, Head, Line};
use super::segment::{self, SegmentFile, of_io};
use super::{AuditError, Kind, Trail};
use crate::sandbox::{Open, open_plain};

/// A file of the trail, as far as it belongs to a copy.
#[derive(Debug)]
pub struct TrailFile {
    /// Its name in the directory.
    pub name: String,
    pub file: File,
    /// What of it belongs to the copy, from its start.
    pub bytes: u64,
}

impl Trail {
    /// The files that hold the lines up to `head`, which is durable; the last one ends with it. Blocks
    /// on the disk.
    pub fn files_up_to(
        &self,
        head: Head,
    ) -> Result<impl Iterator<Item = Result<TrailFile, AuditError>> + use<>, AuditError> {
        let files = segment::list(&self.settings.directory)
            .map_err(|error| of_io("listing the files", &error))?;
        let older = files.into_iter().take_while(move |file| file.first <= head.seq);
        Ok(older.map(move |file| {
            copied_of(&file, head).map_err(|error| of_io("reading a file", &error))
        }))
    }
}

/// What of a file belongs to a copy up to `head`.
fn copied_of(segment: &SegmentFile, head: Head) -> io::Result<TrailFile> {
    let mut reader = open_at(segment, head.seq)?;
    let mut bytes = reader.stream_position()?;
    let mut line = Vec::new();
    // Half a line at the end of an older file is what a crash has left.
    while next_line(&mut reader, &mut line)? {
        if number(&line).is_some_and(|seq| seq > head.seq) {
            break;
        }
        bytes += line.len() as u64 + 1;
    }
    Ok(TrailFile { name: segment.name(), file: open_plain(&segment.path, Open::Read)?, bytes })
}

/// Which trail lies in a directory that nobody writes now, and its newest line; `None` where there is
/// none that can be read.
pub fn last_head(directory: &Path) -> io::Result<Option<(String, Head)>> {
    for file in segment::list(directory)?.iter().rev() {
        if let Some(line) = last_line(file)?
            && let Some(Line { seq, trail, .. }) = Line::read(&line)
        {
            let head = Head { seq, hash: Hash::of_line(&line) };
            return Ok(Some((trail.to_owned(), head)));
        }
    }
    Ok(None)
}

/// Which lines to show; what is `None` does not matter.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub kind: Option<Kind>,
    pub action: Option<String>,
    pub caller: Option<String>,
    pub resource: Option<String>,
    pub request: Option<String>,
    /// Written at this time or later …
    pub since: Option<Timestamp>,
    /// … and at this time or earlier.
    pub until: Option<Timestamp>,
}

/// Some lines, as they stand in the trail.
#[derive(Debug, Serialize)]
pub struct Page {
    pub lines: Vec<Box<RawValue>>,
    /// Ask again after this line: there is more to look at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// A page looks at no more lines than this, however few of them fit the filter.
const LOOK_AT: u64 = 50_000;

impl Trail {
    /// Up to `limit` lines after line `after` that fit `filter`, of those that are durable by now. A
    /// page may hold fewer and still have a `next`. Blocks on the disk.
    pub fn read(&self, filter: &Filter, after: u64, limit: usize) -> Result<Page, AuditError> {
        let last = self.head().seq;
        read(&self.settings.directory, filter, after, limit, last)
            .map_err(|error| of_io("reading", &error))
    }
}

fn read(
    directory: &Path,
    filter: &Filter,
    after: u64,
    limit: usize,
    last: u64,
) -> io::Result<Page> {
    let mut page = Page { lines: Vec::new(), next: None };
    let start = after.saturating_add(1);
    let mut looked = 0;
    let mut bytes = Vec::new();
    let files = segment::list(directory)?;
    let skipped = files.iter().rposition(|file| file.first <= start).unwrap_or(0);
    for file in files.iter().skip(skipped).filter(|file| file.first <= last) {
        let mut reader = open_at(file, start)?;
        while next_line(&mut reader, &mut bytes)? {
            let Some(line) = Line::read(&bytes).filter(|line| line.seq >= start) else { continue };
            if line.seq > last {
                return Ok(page);
            }
            looked += 1;
            if filter.takes(&line) {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                page.lines.push(RawValue::from_string(text)?);
            }
            if (page.lines.len() >= limit || looked >= LOOK_AT) && line.seq < last {
                page.next = Some(line.seq);
                return Ok(page);
            }
        }
    }
    Ok(page)
}

impl Filter {
    /// Whether a line fits.
    pub fn takes(&self, line: &Line<'_>) -> bool {
        let fits = |wanted: &Option<String>, is: Option<&str>| match wanted {
            Some(wanted) => is == Some(wanted),
            None => true,
        };
        self.kind.is_none_or(|kind| kind == line.kind)
            && fits(&self.action, line.action)
            && fits(&self.caller, line.caller)
            && fits(&self.resource, line.resource)
            && fits(&self.request, line.request)
            && self.is_in_time(line.time)
    }
}

impl Filter {
    fn is_in_time(&self, time: &str) -> bool {
        if self.since.is_none() && self.until.is_none() {
            return true;
        }
        let Ok(time) = time.parse::<Timestamp>() else { return false };
        self.since.is_none_or(|since| since <= time) && self.until.is_none_or(|until| time <= until)
    }
}

/// The hash of line `seq`, if the trail holds it.
pub(super) fn hash_of(directory: &Path, seq: u64) -> io::Result<Option<Hash>> {
    let files = segment::list(directory)?;
    let Some(file) = files.iter().rfind(|file| file.first <= seq) else { return Ok(None) };
    let mut reader = open_at(file, seq)?;
    let mut bytes = Vec::new();
    while next_line(&mut reader, &mut bytes)? {
        match number(&bytes) {
            Some(found) if found == seq => return Ok(Some(Hash::of_line(&bytes))),
            Some(found) if found > seq => return Ok(None),
            _ => {}
        }
    }
    Ok(None)
}

/// The last whole line of a file, without its newline.
pub(super) fn last_line(file: &SegmentFile) -> io::Result<Option<Vec<u8>>> {
    let mut reader = open_at(file, u64::MAX)?;
    let (mut bytes, mut last) = (Vec::new(), None);
    while next_line(&mut reader, &mut bytes)? {
        last = Some(bytes.clone());
    }
    Ok(last)
}

/// Reads a whole line into `bytes`, without its newline. `false` at the end, and where the last line
/// has no newline (yet).
pub(super) fn next_line(reader: &mut impl BufRead, bytes: &mut Vec<u8>) -> io::Result<bool> {
    bytes.clear();
    reader.read_until(b'\n', bytes)?;
    Ok(bytes.pop() == Some(b'\n'))
}

/// Opens a file at the start of a line not far before line `seq`, found by halving.
fn open_at(segment: &SegmentFile, seq: u64) -> io::Result<BufReader<File>> {
    const NEAR: u64 = 64 * 1024;
    let mut file = open_plain(&segment.path, Open::Read)?;
    let (mut low, mut high) = (0, file.metadata()?.len());
    while high - low > NEAR {
        let middle = low + (high - low) / 2;
        match line_after(&mut file, middle)? {
            Some((start, found)) if found <= seq && start < high => low = start,
            _ => high = middle,
        }
    }
    file.seek(SeekFrom::Start(low))?;
    Ok(BufReader::with_capacity(256 * 1024, file))
}

/// The first line that starts after `offset`, within reach: where it starts, and its number.
fn line_after(file: &mut File, offset: u64) -> io::Result<Option<(u64, u64)>> {
    let mut window = Vec::with_capacity(8192);
    file.seek(SeekFrom::Start(offset))?;
    file.take(8192).read_to_end(&mut window)?;
    let Some(newline) = window.iter().position(|&byte| byte == b'\n') else { return Ok(None) };
    let line = window.get(newline + 1..).unwrap_or_default();
    Ok(number(line).map(|seq| (offset + newline as u64 + 1, seq)))
}

/// The number of a line, read off its beginning alone.
fn number(line: &[u8]) -> Option<u64> {
    let rest = line.strip_prefix(b"{\"seq\":")?;
    let digits = rest.split(|&byte| byte == b',').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}
