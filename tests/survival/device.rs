//! A disk that remembers: a block device under a loop device whose every write and flush is written down
//! in order, so that it can be had again as a power cut at any moment would have left it.
//!
//! Its bottom is a file system of one file over /dev/fuse (the kernel's `fuse.h`, spoken by hand: no
//! library, no module of the kernel beyond fuse and loop). Nothing of it is cached above: what the loop
//! device writes comes here at once, and what it flushes comes as FSYNC.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::dice::Dice;
use crate::mounts::{detach, mount};
use crate::object::Moment;

/// The disk, from its making to its end.
pub struct Disk {
    /// The file that it shows as.
    file: PathBuf,
    record: Arc<Mutex<Record>>,
    server: Option<JoinHandle<()>>,
}

/// What is in it and how that came.
struct Record {
    first: Vec<u8>,
    now: Vec<u8>,
    events: Vec<Event>,
}

enum Event {
    Write {
        at: usize,
        bytes: Vec<u8>,
    },
    /// Everything before it is safe.
    Flush,
}

/// What a disk without power has kept of that which came after its last flush.
#[derive(Debug, Clone, Copy)]
pub enum Kept {
    All,
    Nothing,
    /// Any sector or none, whatever came later.
    Some,
    /// Nothing, and nothing before its last flushes either: so many of them were none.
    Lied(usize),
}

const SECTOR: usize = 512;

impl Disk {
    /// A disk that holds `image`, as the file `disk` of a directory.
    pub fn new(directory: &Path, image: Vec<u8>) -> Self {
        let fuse = File::options().read(true).write(true).open("/dev/fuse");
        let fuse = fuse.expect("/dev/fuse: a kernel with fuse, and root, are needed");
        let file = directory.join("disk");
        File::create(&file).expect("a file to mount on");
        let options = format!("fd={},rootmode=100600,user_id=0,group_id=0", fuse.as_raw_fd());
        mount("strongroom-test", &file, "fuse", &options);
        let record = Record { first: image.clone(), now: image, events: Vec::new() };
        let record = Arc::new(Mutex::new(record));
        let of_server = Arc::clone(&record);
        let server = std::thread::spawn(move || serve(fuse, &of_server));
        Self { file, record, server: Some(server) }
    }

    pub fn file(&self) -> &Path {
        &self.file
    }

    /// How many events there have been.
    pub fn clock(&self) -> impl Fn() -> Moment + Send + Sync + 'static {
        let record = Arc::clone(&self.record);
        move || lock(&record).events.len() as Moment
    }

    /// What lies on it after a power cut at the moment `cut`.
    pub fn after_cut(&self, cut: Moment, kept: Kept, dice: &mut Dice) -> Vec<u8> {
        let record = lock(&self.record);
        let events = &record.events[..cut as usize];
        let undone = if let Kept::Lied(flushes) = kept { flushes } else { 0 };
        let flushes = events.iter().enumerate().rev();
        let mut flushes = flushes.filter(|(_, event)| matches!(event, Event::Flush));
        let safe = flushes.nth(undone).map_or(0, |(last, _)| last + 1);
        let mut image = record.first.clone();
        for (index, event) in events.iter().enumerate() {
            let Event::Write { at, bytes } = event else { continue };
            for (number, sector) in bytes.chunks(SECTOR).enumerate() {
                let stays = match kept {
                    _ if index < safe => true,
                    Kept::All => true,
                    Kept::Nothing | Kept::Lied(_) => false,
                    Kept::Some => dice.once_in(2),
                };
                if stays {
                    let at = at + number * SECTOR;
                    image[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        image
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        detach(&self.file);
        // The server ends when the last user is gone: the kernel says so.
        if let Some(server) = self.server.take().filter(|_| !std::thread::panicking()) {
            let _ = server.join();
        }
    }
}

fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `fuse_in_header`, `fuse_out_header` and `fuse_write_in`, in bytes.
const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;
const WRITE_IN: usize = 40;
/// The longest write that is taken at once.
const MAX_WRITE: u32 = 1024 * 1024;

/// Answers the kernel until the file system is unmounted.
fn serve(mut fuse: File, record: &Mutex<Record>) {
    let mut request = vec![0; IN_HEADER + WRITE_IN + MAX_WRITE as usize + 4096];
    while let Ok(length) = fuse.read(&mut request) {
        let (head, body) = request[..length].split_at(IN_HEADER);
        let (opcode, unique) = (u32_at(head, 4), u64_at(head, 8));
        let answer = match opcode {
            INIT => Ok(init()),
            GETATTR | SETATTR => Ok(attributes(lock(record).now.len() as u64)),
            OPEN => Ok([0_u64.to_ne_bytes(), u64::from(DIRECT_IO).to_ne_bytes()].concat()),
            READ => Ok(read(&lock(record), body)),
            WRITE => Ok(write(&mut lock(record), body)),
            FSYNC => {
                lock(record).events.push(Event::Flush);
                Ok(Vec::new())
            }
            FLUSH | RELEASE => Ok(Vec::new()),
            STATFS => Ok(vec![0; 80]),
            FORGET | INTERRUPT | BATCH_FORGET => continue,
            DESTROY => return,
            _ => Err(libc::ENOSYS),
        };
        if fuse.write_all(&reply(unique, answer)).is_err() {
            return;
        }
    }
}

const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const STATFS: u32 = 17;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const DESTROY: u32 = 38;
const BATCH_FORGET: u32 = 42;

/// `FOPEN_DIRECT_IO`: reads and writes come here, past the page cache.
const DIRECT_IO: u32 = 1;
/// `FUSE_MAX_PAGES`.
const MAX_PAGES: u32 = 1 << 22;

fn reply(unique: u64, answer: Result<Vec<u8>, i32>) -> Vec<u8> {
    let (error, body) = match answer {
        Ok(body) => (0, body),
        Err(error) => (-error, Vec::new()),
    };
    let length = (OUT_HEADER + body.len()) as u32;
    let mut bytes = Vec::with_capacity(length as usize);
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&error.to_ne_bytes());
    bytes.extend_from_slice(&unique.to_ne_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

/// `fuse_init_out` of protocol 7.31.
fn init() -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [7, 31, 0, MAX_PAGES] {
        bytes.extend_from_slice(&u32::to_ne_bytes(word));
    }
    bytes.extend_from_slice(&[0; 4]); // most requests in the background: the kernel's own
    bytes.extend_from_slice(&MAX_WRITE.to_ne_bytes());
    bytes.extend_from_slice(&1_u32.to_ne_bytes()); // time granularity
    let pages = (MAX_WRITE / 4096) as u16;
    bytes.extend_from_slice(&pages.to_ne_bytes());
    bytes.resize(64, 0);
    bytes
}

/// `fuse_attr_out` of a regular file of `size` bytes.
fn attributes(size: u64) -> Vec<u8> {
    let mut bytes = vec![0; 16];
    for word in [1, size, size / 512, 0, 0, 0] {
        bytes.extend_from_slice(&u64::to_ne_bytes(word));
    }
    for word in [0, 0, 0, 0o100_600, 1, 0, 0, 0, 4096, 0] {
        bytes.extend_from_slice(&u32::to_ne_bytes(word));
    }
    bytes
}

/// `fuse_read_in`: a handle, an offset, a size.
fn read(record: &Record, body: &[u8]) -> Vec<u8> {
    let size = record.now.len();
    let from = (u64_at(body, 8) as usize).min(size);
    let to = (from + u32_at(body, 16) as usize).min(size);
    record.now[from..to].to_vec()
}

fn write(record: &mut Record, body: &[u8]) -> Vec<u8> {
    let (at, size) = (u64_at(body, 8) as usize, u32_at(body, 16) as usize);
    let bytes = body[WRITE_IN..WRITE_IN + size].to_vec();
    record.now[at..at + size].copy_from_slice(&bytes);
    record.events.push(Event::Write { at, bytes });
    u64::from(size as u32).to_ne_bytes().to_vec()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight"))
}
