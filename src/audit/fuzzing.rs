//! What must hold for any bytes in the trail's place: a line has one form, a changed trail is never
//! called good, and what a crash leaves behind the last whole line costs no line before it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::check::Checker;
use super::line::{Hash, Head, Kind, Line};
use super::verify::{Expectations, VerifyKey, verify_files, verify_lines};
use super::{
    AuditError, BoxFuture, HeadKeeper, Report, Settings, SignError, Signature, Signer, ToSign,
    Trail,
};
use crate::custody::protocol::{Begun, Newest, Noted};
use crate::custody::{Mark, checkpoint};

/// One line, and what stands in it.
pub fn line(data: &[u8]) {
    let mut scratch = Vec::new();
    let _ = Line::read(data);
    if let Some(line) = Line::parse(data, &mut scratch) {
        let mut written = Vec::new();
        line.encode(&mut written);
        assert_eq!(written.strip_suffix(b"\n"), Some(data), "a line has one form");
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(head) = text.parse::<Head>() {
        assert_eq!(head.to_string().parse(), Ok(head));
    }
    if let Ok(hash) = text.parse::<Hash>() {
        assert_eq!(hash.to_string(), text);
    }
    let _ = VerifyKey::from_pem(text);
}

/// A sound trail, the key that signs it, and its head.
struct Sample {
    lines: Vec<Vec<u8>>,
    key: VerifyKey,
    head: Head,
}

const TRAIL: &str = "0123456789abcdef";
const TIME: &str = "2026-01-02T03:04:05.000006Z";

static SAMPLE: LazyLock<Sample> = LazyLock::new(|| {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
    let key = VerifyKey::from_point(pair.public_key().as_ref()).expect("a point");
    let mut lines = Vec::new();
    let mut head = Head { seq: 0, hash: Hash::genesis(TRAIL) };
    let mut before = Mark { number: 0, covers: 0, head: head.hash.0 };
    for deed in 0..8 {
        let (action, resource) = (Some("key:decrypt"), Some("key/payments"));
        let deed_line = Line { action, resource, caller: Some("unix:1000"), ..Line::default() };
        append(&mut lines, &mut head, Line { kind: Kind::Intent, ..deed_line });
        let (kind, of, result) = (Kind::Outcome, Some(head.seq), Some("done"));
        append(&mut lines, &mut head, Line { kind, of, result, revision: Some(deed), ..deed_line });
        if deed == 3 || deed == 6 {
            let number = before.number + 1;
            let mark = Mark { number, covers: head.seq, head: head.hash.0 };
            let message = checkpoint::message(TRAIL, &mark, &before, TIME);
            let previous = before.to_string();
            before = mark;
            let signature = pair.sign(&SystemRandom::new(), &message).expect("signs");
            let (hex, signature) = (head.hash.hex(), STANDARD.encode(signature));
            let line = Line {
                kind: Kind::Checkpoint,
                covers: Some(head.seq),
                head: Some(hex.as_str()),
                at: Some(TIME),
                number: Some(number),
                previous: Some(&previous),
                signer: Some(1),
                signature: Some(&signature),
                ..Line::default()
            };
            append(&mut lines, &mut head, line);
        }
    }
    Sample { lines, key, head }
});

fn append(lines: &mut Vec<Vec<u8>>, head: &mut Head, line: Line<'_>) {
    let prev = head.hash.hex();
    let seq = head.seq + 1;
    let line = Line { seq, time: TIME, prev: prev.as_str(), trail: TRAIL, ..line };
    let mut bytes = Vec::new();
    line.encode(&mut bytes);
    bytes.pop();
    *head = Head { seq, hash: Hash::of_line(&bytes) };
    lines.push(bytes);
}

/// A sound trail, changed: every three bytes are one change, the rest behind a zero is put in.
pub fn changed_trail(data: &[u8]) {
    let sample = &*SAMPLE;
    let mut parts = data.splitn(2, |&byte| byte == 0);
    let (changes, insert) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let mut lines = sample.lines.clone();
    for change in changes.chunks_exact(3).take(16) {
        if let &[what, here, there] = change {
            change_lines(&mut lines, what, here.into(), there.into(), insert);
        }
    }
    let is_as_it_was = lines == sample.lines;
    let against_head = report_on(&lines, vec![sample.head]);
    assert_eq!(against_head.is_sound(), is_as_it_was, "{against_head}");
    // By the signatures alone: what is called proved is as it was written.
    let by_signatures = report_on(&lines, Vec::new());
    if by_signatures.is_sound() {
        let proven = usize::try_from(by_signatures.proven).expect("a few lines");
        assert_eq!(lines.get(..proven), sample.lines.get(..proven), "{by_signatures}");
    }
}

fn change_lines(lines: &mut Vec<Vec<u8>>, what: u8, here: usize, there: usize, insert: &[u8]) {
    if lines.is_empty() {
        return;
    }
    let (at, other) = (here % lines.len(), there % lines.len());
    match what % 8 {
        0 => lines.swap(at, other),
        1 => drop(lines.remove(at)),
        2 => lines.insert(other, lines[at].clone()),
        3 => {
            let line = &mut lines[at];
            let place = there % line.len().max(1);
            if let Some(byte) = line.get_mut(place) {
                *byte ^= 1 << (there % 7);
            }
        }
        4 => lines.truncate(at),
        5 => lines
            .splice(at..at, insert.split(|&byte| byte == b'\n').map(<[u8]>::to_vec))
            .for_each(drop),
        6 => chain_anew(lines, at),
        _ => {
            let from: Vec<u8> = lines[other].clone();
            let cut = from.len() / 2;
            lines[at].splice(.., from.get(..cut).unwrap_or_default().iter().chain(insert).copied());
        }
    }
}

/// Makes every line from `from` on name the one before it, as somebody with all rights would.
fn chain_anew(lines: &mut [Vec<u8>], from: usize) {
    let mut before = match from.checked_sub(1).and_then(|at| lines.get(at)) {
        Some(line) => Hash::of_line(line),
        None => Hash::genesis(TRAIL),
    };
    for line in lines.iter_mut().skip(from) {
        let prev = before.hex();
        if let Some(read) = Line::read(line) {
            let mut written = Vec::new();
            Line { prev: prev.as_str(), ..read }.encode(&mut written);
            written.pop();
            *line = written;
        }
        before = Hash::of_line(line);
    }
}

fn report_on(lines: &[Vec<u8>], known: Vec<Head>) -> Report {
    let expectations = Expectations { known, ..Expectations::default() };
    let keys = [SAMPLE.key.clone()];
    let mut checker = Checker::new(&keys, &expectations);
    checker.begin_file("trail");
    let mut text = lines.join(&b'\n');
    text.push(b'\n');
    verify_lines(&mut text.as_slice(), &mut checker, &mut |_| {}).expect("memory can be read");
    checker.finish()
}

/// What lies behind some whole lines after a crash: the trail opens and goes on, and not one of these
/// lines is lost; or it says that it is damaged and leaves the file as it is.
pub fn torn_tail(data: &[u8]) {
    let Some((&whole, tail)) = data.split_first() else { return };
    let sample = &*SAMPLE;
    let lines = &sample.lines[..usize::from(whole) % (sample.lines.len() + 1)];
    let directory = Scratch::new();
    let path = directory.0.join("trail-00000000000000000001.jsonl");
    let mut text: Vec<u8> =
        lines.iter().flat_map(|line| [line.as_slice(), b"\n"].concat()).collect();
    let before = text.len();
    text.extend_from_slice(tail);
    std::fs::write(&path, &text).expect("written");
    let settings = Settings {
        directory: directory.0.clone(),
        linger_ms: 1,
        deadline_ms: 60_000,
        ..Settings::default()
    };
    let opened = Trail::open(&settings, None, Arc::new(Nobody), Arc::new(Nobody));
    let trail = match opened {
        Err(AuditError::Damaged { .. }) => {
            assert_eq!(std::fs::read(&path).expect("readable"), text, "it is left as it is");
            return;
        }
        opened => opened.expect("nothing else is wrong with it"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime").block_on(trail.stop()).expect("a line can be written");
    let head = trail.head();
    drop(trail);
    if !lines.is_empty() {
        let after = std::fs::read(&path).expect("readable");
        assert_eq!(after.get(..before), text.get(..before), "a whole line was lost");
    }
    let expectations = Expectations { known: vec![head], ..Expectations::default() };
    let files: Vec<PathBuf> = super::segment::list(&directory.0)
        .expect("a directory")
        .into_iter()
        .map(|file| file.path)
        .collect();
    let report =
        verify_files(&files, std::slice::from_ref(&sample.key), &expectations).expect("readable");
    assert!(report.is_sound(), "{report}");
}

/// A directory in memory where there is one; it goes with this value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        use std::os::unix::fs::DirBuilderExt;
        let mut random = [0; 8];
        getrandom::fill(&mut random).expect("random bytes");
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let path = parent.join(format!("strongroom-torn-{:016x}", u64::from_ne_bytes(random)));
        std::fs::DirBuilder::new().mode(0o700).create(&path).expect("a directory");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Neither signs nor keeps.
struct Nobody;

impl Signer for Nobody {
    fn sign(&self, _wanted: ToSign) -> BoxFuture<Result<Signature, SignError>> {
        Box::pin(std::future::ready(Err(SignError::NotReady)))
    }

    fn newest(&self) -> BoxFuture<Result<Newest, SignError>> {
        Box::pin(std::future::ready(Err(SignError::NotReady)))
    }

    fn begin(
        &self,
        _trail: String,
        _newest: Mark,
        _holds: (bool, Option<Noted>),
    ) -> BoxFuture<Result<Begun, SignError>> {
        Box::pin(std::future::ready(Err(SignError::NotReady)))
    }

    fn note(&self, _trail: String, _head: Head, _closes: bool) -> BoxFuture<Result<(), SignError>> {
        Box::pin(std::future::ready(Err(SignError::NotReady)))
    }
}

impl HeadKeeper for Nobody {
    fn keep(&self, _trail: &str, _head: Head, _signed: bool) -> BoxFuture<bool> {
        Box::pin(std::future::ready(false))
    }
}
