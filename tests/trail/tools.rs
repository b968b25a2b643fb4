//! A trail in a directory of its own, with a signing key that the test holds.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use strongroom::audit::{
    AuditError, Details, Expectations, FindingKind, Hash, Head, HeadKeeper, Intent, Outcome,
    Report, Settings, SignError, Signature, Signer, ToSign, Trail, VerifyKey, verify,
};
use strongroom::custody::protocol::{Begun, Known, Newest, Noted};
use strongroom::custody::{Checkpoint, Mark, checkpoint};
use strongroom::identity::{Caller, UnixPeer};
use strongroom::key::Name;
use strongroom::policy::{Action, Resource};

/// How the signer is.
#[derive(Clone, Copy)]
pub enum Sign {
    Works,
    NotReady,
    /// It signs, and the answer does not arrive.
    Loses,
}

/// The newest checkpoint that was signed.
pub type Memory = Arc<Mutex<Option<Checkpoint>>>;

/// What the keeper was handed.
pub type Kept = Arc<Mutex<Vec<(Head, bool)>>>;

pub struct Bench {
    pub directory: tempfile::TempDir,
    pub key: Arc<EcdsaKeyPair>,
    pub sign: Arc<Mutex<Sign>>,
    pub memory: Memory,
    pub kept: Kept,
    /// The head of the trail made by `with_trail`.
    pub head: Head,
}

impl Bench {
    pub fn new() -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        Self {
            directory: tempfile::tempdir().unwrap(),
            key: Arc::new(key),
            sign: Arc::new(Mutex::new(Sign::Works)),
            memory: Memory::default(),
            kept: Kept::default(),
            head: Head { seq: 0, hash: Hash::genesis("") },
        }
    }

    /// With `deeds` deeds, a checkpoint in their middle, one after them, and one deed after that.
    pub async fn with_trail(deeds: u64) -> Self {
        let mut bench = Self::new();
        let trail = bench.open(None).unwrap();
        for index in 0..deeds {
            deed(&trail, index).await;
            if index == deeds / 2 {
                trail.checkpoint().await.unwrap();
            }
        }
        trail.checkpoint().await.unwrap();
        deed(&trail, deeds).await;
        bench.head = trail.head();
        drop(trail);
        bench
    }

    pub fn settings(&self) -> Settings {
        let directory = self.directory.path().join("trail");
        Settings { directory, linger_ms: 1, ..Settings::default() }
    }

    pub fn open(&self, known: Option<Head>) -> Result<Trail, AuditError> {
        self.open_with(&self.settings(), known)
    }

    pub fn open_with(&self, settings: &Settings, known: Option<Head>) -> Result<Trail, AuditError> {
        let keeper = TestKeeper(Arc::clone(&self.kept));
        Trail::open(settings, known, Arc::new(self.signer()), Arc::new(keeper))
    }

    /// One that waits for what custody remembers.
    pub fn open_held(&self) -> Trail {
        let keeper = TestKeeper(Arc::clone(&self.kept));
        let signer = Arc::new(self.signer());
        Trail::open_held(&self.settings(), None, signer, Arc::new(keeper)).unwrap()
    }

    fn signer(&self) -> TestSigner {
        let (key, sign) = (Arc::clone(&self.key), Arc::clone(&self.sign));
        TestSigner { key, sign, memory: Arc::clone(&self.memory) }
    }

    pub fn verify(&self, known: &[Head]) -> Report {
        self.verify_with(&Expectations { known: known.to_vec(), ..Expectations::default() })
    }

    pub fn verify_with(&self, expectations: &Expectations) -> Report {
        let pem = VerifyKey::pem_of_point(self.key.public_key().as_ref()).unwrap();
        let key = VerifyKey::from_pem(&pem).unwrap();
        verify(&self.settings().directory, &[key], expectations).unwrap()
    }
}

struct TestSigner {
    key: Arc<EcdsaKeyPair>,
    sign: Arc<Mutex<Sign>>,
    memory: Memory,
}

type BoxFuture<T> = std::pin::Pin<Box<dyn Future<Output = T> + Send>>;

/// Signs as custody does.
pub fn signed(key: &EcdsaKeyPair, trail: &str, mark: Mark, before: Mark) -> Checkpoint {
    let at = "2026-01-02T03:04:05.000006Z".to_owned();
    let message = checkpoint::message(trail, &mark, &before, &at);
    let signature = checkpoint::hex(key.sign(&SystemRandom::new(), &message).unwrap().as_ref());
    Checkpoint { trail: trail.to_owned(), mark, before, at, generation: 1, signature }
}

impl Signer for TestSigner {
    fn sign(&self, wanted: ToSign) -> BoxFuture<Result<Signature, SignError>> {
        let (key, sign) = (Arc::clone(&self.key), *self.sign.lock().unwrap());
        let memory = Arc::clone(&self.memory);
        Box::pin(async move {
            tokio::task::yield_now().await;
            let mut memory = memory.lock().unwrap();
            if memory.as_ref().is_some_and(|known| known.mark != wanted.before) {
                return Err(SignError::NotNewest("another one".to_owned()));
            }
            let ToSign { trail, head, before, .. } = wanted;
            let mark = Mark { number: before.number + 1, covers: head.seq, head: head.hash.0 };
            let checkpoint = signed(&key, &trail, mark, before);
            if !matches!(sign, Sign::NotReady) {
                *memory = Some(checkpoint.clone());
            }
            match sign {
                Sign::NotReady => Err(SignError::NotReady),
                Sign::Loses => Err(SignError::Unavailable),
                Sign::Works => Ok(Signature { checkpoint, adopted: false }),
            }
        })
    }

    fn newest(&self) -> BoxFuture<Result<Newest, SignError>> {
        let known = self.memory.lock().unwrap().clone().map(|checkpoint| Known {
            trail: checkpoint.trail.clone(),
            mark: checkpoint.mark,
            signed: Some(checkpoint),
        });
        let newest = Newest {
            known,
            closed: false,
            noted: None,
            signer: None,
            with_token: true,
            state_lost: false,
        };
        Box::pin(std::future::ready(Ok(newest)))
    }

    fn begin(
        &self,
        _trail: String,
        newest: Mark,
        _holds: (bool, Option<Noted>),
    ) -> BoxFuture<Result<Begun, SignError>> {
        let known = self.memory.lock().unwrap().as_ref().map(|checkpoint| checkpoint.mark);
        let fits = known.is_none_or(|known| known == newest);
        let fitting = Begun { replaced: None, ordered: false, stored: 0 };
        let begun = if fits { Ok(fitting) } else { Err(SignError::NotNewest("no".to_owned())) };
        Box::pin(std::future::ready(begun))
    }

    fn note(&self, _trail: String, _head: Head, _closes: bool) -> BoxFuture<Result<(), SignError>> {
        Box::pin(std::future::ready(Err(SignError::NotReady)))
    }
}

struct TestKeeper(Kept);

impl HeadKeeper for TestKeeper {
    fn keep(&self, _trail: &str, head: Head, signed: bool) -> BoxFuture<bool> {
        self.0.lock().unwrap().push((head, signed));
        Box::pin(std::future::ready(true))
    }
}

/// Somebody wants to decrypt.
pub fn intent(number: u64) -> Intent {
    let peer = UnixPeer { uid: 1000, gid: 1000, pid: 4242, groups: vec![] };
    let resource = Resource::Key(Name::parse("payments").unwrap());
    let request = uuid::Uuid::from_u128(u128::from(number));
    Intent::new(request, &Caller::Unix(peer), Action::KeyDecrypt, &resource).with(Details {
        version: Some(3),
        input_bytes: Some(256),
        ..Details::default()
    })
}

/// A whole deed: both lines are durable when it returns.
pub async fn deed(trail: &Trail, number: u64) {
    let entry = trail.begin(intent(number)).durable().await.unwrap();
    let outcome = Outcome::done().with(Details { output_bytes: Some(32), ..Details::default() });
    trail.close(entry, outcome).durable().await.unwrap();
}

/// The files of the trail, in order.
pub fn segments(bench: &Bench) -> Vec<PathBuf> {
    let entries = fs::read_dir(bench.settings().directory).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    paths.sort();
    paths
}

/// All lines of the trail.
pub fn lines(bench: &Bench) -> Vec<String> {
    let texts = segments(bench).into_iter().map(|path| fs::read_to_string(path).unwrap());
    texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// Replaces the whole trail by one file with these lines.
pub fn write_lines(bench: &Bench, lines: &[String]) {
    let settings = bench.settings();
    fs::create_dir_all(&settings.directory).unwrap();
    segments(bench).into_iter().for_each(|path| fs::remove_file(path).unwrap());
    let mut text = lines.join("\n");
    text.push('\n');
    fs::write(settings.directory.join("trail-00000000000000000001.jsonl"), text).unwrap();
}

/// Does what an attacker with all rights would: makes every line from index `from` on name the one
/// before it again.
pub fn chain_anew(lines: &mut [String], from: usize) {
    for index in from..lines.len() {
        let hash = Hash::of_line(lines[index - 1].as_bytes()).to_string();
        let at = lines[index].find("\"prev\":\"").unwrap() + 8;
        lines[index].replace_range(at..at + 64, &hash);
    }
}

/// What was found, but for [`FindingKind::Unproven`]: many trails here are too short to be signed, and
/// `proof.rs` has tests of its own for what nothing vouches for.
pub fn kinds(report: &Report) -> Vec<(u64, FindingKind)> {
    let others = report.findings.iter().filter(|finding| finding.kind != FindingKind::Unproven);
    others.map(|finding| (finding.line, finding.kind.clone())).collect()
}
