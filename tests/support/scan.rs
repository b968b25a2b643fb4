//! Looks for secrets in the whole memory of another process, and in files such as core dumps.
//!
//! A secret counts as found when 24 bytes in a row of it lie anywhere, at any alignment: each secret
//! is cut into overlapping pieces of 16 bytes, 8 bytes apart, and every piece is looked for.

use aho_corasick::AhoCorasick;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const PIECE: usize = 16;
const STRIDE: usize = 8;
const CHUNK: usize = 1 << 18;

/// What is looked for, under names that say nothing of it.
#[derive(Default)]
pub struct Needles {
    names: Vec<String>,
    /// Each piece, and whose it is.
    pieces: Vec<(Vec<u8>, usize)>,
}

impl Needles {
    /// Adds a secret of at least 24 bytes in this byte order and in the opposite one.
    pub fn add(&mut self, name: &str, secret: &[u8]) {
        let reversed: Vec<u8> = secret.iter().rev().copied().collect();
        self.add_exactly(name, secret);
        self.add_exactly(&format!("{name} reversed"), &reversed);
    }

    /// Adds a secret of at least 24 bytes as it is.
    pub fn add_exactly(&mut self, name: &str, secret: &[u8]) {
        assert!(secret.len() >= PIECE + STRIDE, "{name} is too short to be told from chance");
        let whose = self.names.len();
        self.names.push(name.to_owned());
        let pieces = secret.windows(PIECE).step_by(STRIDE);
        self.pieces.extend(pieces.map(|piece| (piece.to_vec(), whose)));
    }

    /// Ready to look for them; making it takes longer than looking once.
    pub fn searcher(&self) -> Searcher<'_> {
        let automaton = AhoCorasick::new(self.pieces.iter().map(|(piece, _)| piece));
        Searcher { needles: self, automaton: automaton.expect("a few hundred pieces fit") }
    }
}

/// Needles that are looked for more than once.
pub struct Searcher<'a> {
    needles: &'a Needles,
    automaton: AhoCorasick,
}

impl Searcher<'_> {
    /// Calls `found` with offset and name for each piece in `bytes`.
    fn search(&self, bytes: &[u8], mut found: impl FnMut(usize, &str)) {
        // Most of a core file is memory that was never touched.
        if bytes == &[0; CHUNK][..bytes.len()] {
            return;
        }
        for hit in self.automaton.find_overlapping_iter(bytes) {
            let (_, whose) = self.needles.pieces[hit.pattern().as_usize()];
            found(hit.start(), &self.needles.names[whose]);
        }
    }
}

/// A run of a process's address space, as `/proc/PID/smaps` tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    pub permissions: String,
    /// `[heap]`, `[stack]`, a path, or nothing.
    pub name: String,
    /// Two-letter flags: `lo` is locked, `dd` left out of dumps, `dc` not handed to a child.
    pub flags: Vec<String>,
}

impl Mapping {
    /// Whether it is locked memory that no dump holds and no child gets: the arena and its stacks.
    pub fn is_arena(&self) -> bool {
        self.is_locked() && self.has("dc")
    }

    /// Whether it is locked memory that no dump holds: the arena, and what packets pass through.
    pub fn is_locked(&self) -> bool {
        self.has("lo") && self.has("dd")
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|own| own == flag)
    }
}

/// A piece of a secret, where none should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    pub mapping: Mapping,
    pub address: u64,
    pub needle: String,
}

/// What a scan saw.
#[derive(Debug, Default)]
pub struct Scan {
    pub hits: Vec<Hit>,
    pub bytes_read: u64,
    /// Mappings that the kernel showed to nobody, although their permissions allow reading.
    pub unreadable: Vec<Mapping>,
}

impl Scan {
    pub fn hits_outside_the_arena(&self) -> Vec<&Hit> {
        self.hits.iter().filter(|hit| !hit.mapping.is_arena()).collect()
    }

    /// The needles that were found, each once.
    pub fn needles_found(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.hits.iter().map(|hit| hit.needle.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// Reads every readable mapping of a process: heaps, stacks, data, arena. Needs to be root, or the
/// user of a dumpable process.
pub fn scan(pid: u32, needles: &Needles) -> io::Result<Scan> {
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let searcher = needles.searcher();
    let mut result = Scan::default();
    for mapping in mappings(pid)? {
        // The kernel's own pages hold nothing of the process and cannot be read this way.
        if !mapping.permissions.starts_with('r') || mapping.name.starts_with("[vvar") {
            continue;
        }
        let before = result.bytes_read;
        scan_mapping(&memory, &mapping, &searcher, &mut result);
        if result.bytes_read == before {
            result.unreadable.push(mapping);
        }
    }
    Ok(result)
}

fn scan_mapping(memory: &File, mapping: &Mapping, searcher: &Searcher<'_>, result: &mut Scan) {
    let mut buffer = vec![0; CHUNK];
    let mut at = mapping.start;
    while at < mapping.end {
        let want = CHUNK.min(usize::try_from(mapping.end - at).unwrap_or(CHUNK));
        let Ok(read) = memory.read_at(&mut buffer[..want], at) else {
            at += 4096; // a hole, or a page that nobody may read
            continue;
        };
        searcher.search(&buffer[..read], |offset, needle| {
            let address = at + offset as u64;
            let (mapping, needle) = (mapping.clone(), needle.to_owned());
            result.hits.push(Hit { mapping, address, needle });
        });
        result.bytes_read += read as u64;
        at = next_start(at, read, mapping.end);
    }
}

/// Where to go on after `read` bytes, so that a piece across the seam is seen.
fn next_start(at: u64, read: usize, end: u64) -> u64 {
    let next = at + read as u64;
    if next < end && read >= PIECE { next - (PIECE as u64 - 1) } else { next.max(at + 1) }
}

/// The content of ordinary memory at one moment: all pages that are there of what a process can write to
/// and that is not locked, by address.
pub struct Snapshot(Vec<(u64, Vec<u8>)>);

impl Snapshot {
    /// Quick enough to be taken many times a second. Pages that come or go meanwhile are left out.
    pub fn of(pid: u32) -> io::Result<Self> {
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        let pages = File::open(format!("/proc/{pid}/pagemap"))?;
        let mut all = Vec::new();
        for mapping in mappings(pid)? {
            if !mapping.permissions.starts_with("rw") || mapping.is_locked() {
                continue;
            }
            for (from, len) in resident(&pages, &mapping)? {
                let mut bytes = vec![0; len];
                if memory.read_exact_at(&mut bytes, from).is_ok() {
                    all.push((from, bytes));
                }
            }
        }
        Ok(Self(all))
    }

    pub fn len(&self) -> usize {
        self.0.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    /// Name and address of every piece of a needle.
    pub fn search(&self, searcher: &Searcher<'_>) -> Vec<(String, u64)> {
        let mut found = Vec::new();
        for (from, bytes) in &self.0 {
            for (number, page) in bytes.chunks(CHUNK).enumerate() {
                let from = from + (number * CHUNK) as u64;
                searcher.search(page, |offset, needle| {
                    found.push((needle.to_owned(), from + offset as u64));
                });
            }
        }
        found
    }
}

/// The runs of pages of a mapping that are in memory or swapped out (`/proc/PID/pagemap`, bits 63 and 62).
fn resident(pages: &File, mapping: &Mapping) -> io::Result<Vec<(u64, usize)>> {
    const PAGE: u64 = 4096;
    let count = usize::try_from((mapping.end - mapping.start) / PAGE).unwrap_or(0);
    let mut entries = vec![0; count * 8];
    pages.read_exact_at(&mut entries, mapping.start / PAGE * 8)?;
    let mut runs: Vec<(u64, usize)> = Vec::new();
    for (number, entry) in entries.chunks_exact(8).enumerate() {
        if entry[7] & 0xc0 == 0 {
            continue;
        }
        let at = mapping.start + number as u64 * PAGE;
        match runs.last_mut() {
            Some((from, len)) if *from + *len as u64 == at => *len += PAGE as usize,
            _ => runs.push((at, PAGE as usize)),
        }
    }
    Ok(runs)
}

/// The names of the needles of which pieces lie in a file, each once.
pub fn scan_file(path: &Path, needles: &Needles) -> io::Result<Vec<String>> {
    let file = File::open(path)?;
    let (end, searcher) = (file.metadata()?.len(), needles.searcher());
    let mut names = Vec::new();
    let (mut buffer, mut at) = (vec![0; CHUNK], 0);
    while at < end {
        let read = file.read_at(&mut buffer, at)?;
        searcher.search(&buffer[..read], |_, name| {
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        });
        at = next_start(at, read, end);
    }
    Ok(names)
}

/// The mappings of a process with their flags.
pub fn mappings(pid: u32) -> io::Result<Vec<Mapping>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if let Some(last) = mappings.last_mut() {
                last.flags = flags.split_whitespace().map(str::to_owned).collect();
            }
        } else if let Some(mapping) = header(line) {
            mappings.push(mapping);
        }
    }
    Ok(mappings)
}

/// `start-end permissions offset device inode name`
fn header(line: &str) -> Option<Mapping> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    Some(Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        permissions: fields.next()?.to_owned(),
        name: fields.skip(3).collect::<Vec<_>>().join(" "),
        flags: Vec::new(),
    })
}
