//! The process that is looked at: this test program, started again with a job in its environment.
//!
//! The child brings its key in and out by reading and writing a file straight from the arena, so that
//! every copy that is found elsewhere was made by what is tested.

use nix::sys::resource::{Resource, setrlimit};
use rsa::pkcs8::DecodePublicKey;
use rsa::rand_core::OsRng;
use rsa::{Oaep, RsaPublicKey};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use strongroom::custody::rsa::{DecryptError, KeyError, PrivateKey};
use strongroom::key::{Algorithm, Mgf1Hash};
use strongroom::secret::arena::KindChoice;
use strongroom::secret::{self, ArenaError, SecretBytes, Settings, Use};

/// What a child does with its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Reads a PKCS#8 DER and decrypts with it on several threads.
    Load,
    /// Makes a key, writes it out, and decrypts with it.
    Generate,
    /// Imports a PEM, writes it out, and decrypts with it.
    ImportPem,
    /// Reads, uses and makes keys of every size on several threads until it is told to stop.
    Work,
    /// Keeps the DER and its base64 on the heap on purpose.
    Leak,
    /// Fills the arena up.
    Fill,
    /// Starts as an ordinary user, with too low a limit and then with the usual one.
    Unprivileged,
}

const JOBS: [Job; 7] =
    [Job::Load, Job::Generate, Job::ImportPem, Job::Work, Job::Leak, Job::Fill, Job::Unprivileged];
const JOB: &str = "STRONGROOM_TEST_MEMORY_JOB";
const KIND: &str = "STRONGROOM_TEST_MEMORY_KIND";
const FILE: &str = "STRONGROOM_TEST_MEMORY_FILE";

/// A running child, from outside.
pub struct Child {
    process: std::process::Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    directory: tempfile::TempDir,
}

impl Child {
    /// Starts a child and waits until it holds its key; `kind` is `None` for a process that holds
    /// no keys by its own account, whose aws-lc works on the ordinary heap.
    pub fn start(job: Job, kind: Option<KindChoice>) -> Self {
        Self::masked(job, kind, "~0x0:~0x0")
    }

    /// The same with a processor whose instructions are hidden from the library by a mask
    /// (`OPENSSL_ia32cap`; other libraries heed another variable).
    pub fn masked(job: Job, kind: Option<KindChoice>, mask: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("key");
        match job {
            Job::Generate | Job::Unprivileged => {}
            Job::Work => write_keys(&file),
            Job::ImportPem => write_key(&file, |der| {
                let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
                format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n").into()
            }),
            Job::Load | Job::Leak | Job::Fill => write_key(&file, <[u8]>::to_vec),
        }
        let mut process = Command::new(std::env::current_exe().expect("this program"))
            .args(["child::entry", "--exact", "--nocapture", "--test-threads=1"])
            .env(JOB, format!("{job:?}"))
            .env(KIND, kind.map_or_else(String::new, |kind| format!("{kind:?}")))
            .env(FILE, &file)
            .env("OPENSSL_ia32cap", mask)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        let orders = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().expect("piped"));
        let mut child = Self { process, orders, answers, directory };
        child.wait_for("loaded");
        child
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The PKCS#8 DER of the child's key.
    pub fn key(&self) -> Vec<u8> {
        std::fs::read(self.directory.path().join("key.der"))
            .or_else(|_| std::fs::read(self.directory.path().join("key")))
            .expect("the key file")
    }

    /// The keys of [`Job::Work`] in PKCS#8: those that it uses, and those that it made so far.
    pub fn keys(&self) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let read = |suffix: &str| {
            let files = std::fs::read_dir(self.directory.path()).expect("a directory");
            let files = files.map(|file| file.expect("an entry").path());
            let wanted = files.filter(|file| file.extension().is_some_and(|own| own == suffix));
            wanted.map(|file| std::fs::read(file).expect("a key")).collect()
        };
        (read("used"), read("made"))
    }

    /// Tells the child to drop its key and waits until it did.
    pub fn drop_key(&mut self) {
        let orders = self.orders.as_mut().expect("still there");
        orders.write_all(b"drop\n").expect("the child listens");
        self.wait_for("dropped");
    }

    /// Lets the child go and checks that it was content.
    pub fn end(mut self) {
        self.orders = None;
        let mut rest = String::new();
        self.answers.read_to_string(&mut rest).expect("the child's last words");
        let status = self.process.wait().expect("it ends");
        assert!(status.success(), "{status}: {rest}");
    }

    fn wait_for(&mut self, word: &str) {
        let mut said = String::new();
        while !said.lines().any(|line| line == word) {
            let read = self.answers.read_line(&mut said).expect("the child speaks");
            assert!(read > 0, "the child ended before it said {word}: {said}");
        }
    }
}

impl Drop for Child {
    /// A test that failed half-way leaves no child behind.
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Makes a key in this process and writes it where a child finds it.
fn write_key(path: &Path, form: impl FnOnce(&[u8]) -> Vec<u8>) {
    secret::start(&Settings::default(), Use::Custody).expect("an arena");
    let key = PrivateKey::generate(Algorithm::Rsa2048).expect("a key");
    let der = key.to_pkcs8().expect("encodes");
    std::fs::write(path, form(der.expose())).expect("written");
}

/// One key of each size.
fn write_keys(path: &Path) {
    secret::start(&Settings::default(), Use::Custody).expect("an arena");
    for algorithm in Algorithm::ALL {
        let key = PrivateKey::generate(algorithm).expect("a key");
        let path = path.with_extension(format!("{}.used", algorithm.bits()));
        std::fs::write(path, key.to_pkcs8().expect("encodes").expose()).expect("written");
    }
}

/// What the frame of the thread of this number holds while it works: to be seen from outside.
pub fn mark(number: u8) -> [u8; 32] {
    Sha256::digest([number]).into()
}

/// The threads of [`Job::Work`].
pub const THREADS: u8 = 4;

/// The child's side: nothing to do unless this process was started as one.
#[test]
fn entry() {
    let Ok(name) = std::env::var(JOB) else { return };
    let job = JOBS.into_iter().find(|job| format!("{job:?}") == name).expect("a job");
    let file = PathBuf::from(std::env::var_os(FILE).expect("a file"));
    match job {
        Job::Fill => fill(&file),
        Job::Unprivileged => unprivileged(),
        Job::Leak => {
            let der = std::fs::read(&file).expect("the key file");
            let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &der);
            wait_between(|| drop((der, text)));
        }
        Job::Load | Job::Generate | Job::ImportPem => {
            start_as_told();
            let key = obtain(job, &file);
            exercise(&key);
            wait_between(|| drop(key));
        }
        Job::Work => {
            start_as_told();
            work(&file);
        }
    }
}

/// Two threads decrypt, one reads and writes, one makes keys. Says when all have begun.
fn work(file: &Path) {
    let files = Algorithm::ALL.map(|algorithm| {
        let file = file.with_extension(format!("{}.used", algorithm.bits()));
        (algorithm, read(&file))
    });
    let keys = files.each_ref().map(|(algorithm, der)| {
        let key = PrivateKey::from_pkcs8(der.expose()).expect("a good key");
        let public = key.public().expect("encodes");
        let public = RsaPublicKey::from_public_key_der(&public).expect("SPKI");
        let sealed = public.encrypt(&mut OsRng, Oaep::new::<Sha256>(), b"a token").expect("fits");
        (*algorithm, key, sealed)
    });
    let (enough, begun) = (AtomicBool::new(false), Barrier::new(usize::from(THREADS) + 1));
    let until_enough = |number: u8, turn: &dyn Fn(usize)| {
        let mark = std::hint::black_box(mark(number));
        begun.wait();
        for round in 0.. {
            if enough.load(Ordering::Relaxed) {
                break;
            }
            turn(round);
        }
        std::hint::black_box(&mark);
    };
    let decrypt = |_: usize| {
        for (_, key, sealed) in &keys {
            let opened = key.decrypt_oaep(Mgf1Hash::Sha256, sealed, b"").expect("opens");
            assert_eq!(opened.expose(), b"a token");
        }
    };
    let read_and_write = |_: usize| {
        for (_, der) in &files {
            let key = PrivateKey::import(der.expose()).expect("a good key");
            assert_eq!(key.to_pkcs8().expect("encodes").expose(), der.expose());
        }
    };
    let make = |round: usize| {
        let (algorithm, ..) = keys[round % keys.len()];
        let key = PrivateKey::generate(algorithm).expect("a key");
        let der = key.to_pkcs8().expect("encodes");
        let path = file.with_extension("part");
        let mut part = File::create(&path).expect("a file");
        part.write_all(der.expose()).expect("written");
        std::fs::rename(path, file.with_extension(format!("{round}.made"))).expect("renamed");
    };
    std::thread::scope(|scope| {
        scope.spawn(|| until_enough(0, &decrypt));
        scope.spawn(|| until_enough(1, &decrypt));
        scope.spawn(|| until_enough(2, &read_and_write));
        scope.spawn(|| until_enough(3, &make));
        begun.wait();
        wait_between(|| ());
        enough.store(true, Ordering::Relaxed);
    });
}

fn start_as_told() {
    let (kind, purpose) = match std::env::var(KIND).expect("a kind").as_str() {
        "Mlock" => (KindChoice::Mlock, Use::Custody),
        "MemfdSecret" => (KindChoice::MemfdSecret, Use::Custody),
        "Auto" => (KindChoice::Auto, Use::Custody),
        _ => (KindChoice::Auto, Use::Front),
    };
    secret::start(&Settings { kind, ..Settings::default() }, purpose).expect("an arena");
    assert_eq!(secret::hook_self_test().is_ok(), purpose == Use::Custody);
}

fn obtain(job: Job, file: &Path) -> PrivateKey {
    let key = match job {
        Job::Generate => PrivateKey::generate(Algorithm::Rsa2048).expect("a key"),
        Job::ImportPem => PrivateKey::import(read(file).expose()).expect("a good PEM"),
        _ => return PrivateKey::from_pkcs8(read(file).expose()).expect("a good key"),
    };
    let mut out = File::create(file.with_extension("der")).expect("a file");
    out.write_all(key.to_pkcs8().expect("encodes").expose()).expect("written");
    key
}

/// A file's bytes, from the kernel straight into the arena.
fn read(path: &Path) -> SecretBytes {
    let mut file = File::open(path).expect("the key file");
    let len = file.metadata().expect("its size").len();
    let mut bytes = SecretBytes::zeroed(usize::try_from(len).expect("short")).expect("room");
    file.read_exact(bytes.expose_mut()).expect("all of it");
    bytes
}

/// Uses every part of the key, here and on other threads, some of which end.
fn exercise(key: &PrivateKey) {
    let public = RsaPublicKey::from_public_key_der(&key.public().expect("encodes")).expect("SPKI");
    let sealed = public.encrypt(&mut OsRng, Oaep::new::<Sha256>(), b"a token").expect("fits");
    decrypt_often(key, &sealed);
    std::thread::scope(|scope| {
        let threads = [(); 3].map(|()| scope.spawn(|| decrypt_often(key, &sealed)));
        for thread in threads {
            thread.join().expect("it worked"); // also waits until the library's own state is gone
        }
    });
}

fn decrypt_often(key: &PrivateKey, sealed: &[u8]) {
    for _ in 0..10 {
        let opened = key.decrypt_oaep(Mgf1Hash::Sha256, sealed, b"").expect("opens");
        assert_eq!(opened.expose(), b"a token");
        let bad = key.decrypt_oaep(Mgf1Hash::Sha256, &[1; 256], b"").err();
        assert_eq!(bad, Some(DecryptError::Failed));
    }
}

/// Says that the key is loaded, waits to be looked at, lets it go, and waits again.
fn wait_between(drop_key: impl FnOnce()) {
    let mut orders = String::new();
    println!("\nloaded");
    std::io::stdin().read_line(&mut orders).expect("an order");
    drop_key();
    if orders == "drop\n" {
        println!("\ndropped");
        std::io::stdin().read_line(&mut orders).expect("the end");
    }
}

fn fill(file: &Path) {
    let settings = Settings { size_bytes: Settings::MIN_SIZE, ..Settings::default() };
    secret::start(&settings, Use::Custody).expect("an arena");
    let der = read(file);
    let key = PrivateKey::from_pkcs8(der.expose()).expect("a good key");
    exercise(&key); // by now the library has all its own state
    let before = secret::usage().used_bytes;

    let mut more = Vec::new();
    let refused = loop {
        match PrivateKey::from_pkcs8(der.expose()) {
            Ok(key) => more.push(key),
            Err(error) => break error,
        }
    };
    assert_eq!(refused, KeyError::Arena(ArenaError::Full));
    assert!(more.len() > 8, "{} keys in {} bytes", more.len(), settings.size_bytes);
    let rest: Vec<_> = std::iter::from_fn(|| SecretBytes::zeroed(8).ok()).collect();
    let full = key.decrypt_oaep(Mgf1Hash::Sha256, &[1; 256], b"").err();
    assert_eq!(full, Some(DecryptError::Arena(ArenaError::Full)));
    assert_eq!(key.to_pkcs8().err(), Some(KeyError::Arena(ArenaError::Full)));

    drop((more, rest));
    assert_eq!(secret::usage().used_bytes, before, "everything came back");
    let other = PrivateKey::from_pkcs8(der.expose()).expect("room again");
    exercise(&other);
    let taken = secret::usage().used_bytes - before;
    let (least, most) = (other.arena_bytes(1), other.arena_bytes(4));
    assert!((least..=most).contains(&taken), "{taken} of {least} to {most}");
    drop(other);
    assert_eq!(secret::usage().used_bytes, before, "a dropped key leaves nothing behind");
    wait_between(|| drop(key));
}

fn unprivileged() {
    const MIB: u64 = 1 << 20;
    setrlimit(Resource::RLIMIT_MEMLOCK, MIB, 8 * MIB).expect("root sets limits");
    let nobody = nix::unistd::Uid::from_raw(65534);
    nix::unistd::setresuid(nobody, nobody, nobody).expect("root becomes nobody");
    for kind in [KindChoice::MemfdSecret, KindChoice::Mlock, KindChoice::Auto] {
        let refused = secret::start(&Settings { kind, ..Settings::default() }, Use::Custody);
        let text = refused.expect_err("4 MiB under a limit of 1 MiB").to_string();
        assert!(text.contains("RLIMIT_MEMLOCK is 1048576 bytes"), "{text}");
        assert!(text.contains("LimitMEMLOCK="), "{text}");
    }
    setrlimit(Resource::RLIMIT_MEMLOCK, 8 * MIB, 8 * MIB).expect("up to the hard limit");
    secret::start(&Settings::default(), Use::Custody).expect("4 MiB under a limit of 8 MiB");
    secret::hook_self_test().expect("hooked");
    secret::harden_process().expect("shut");
    wait_between(|| ());
}
