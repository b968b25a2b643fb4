//! A trail in a directory of its own, with a signing key that the test holds.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use strongroom::audit::{
    AuditError, Details, Expectations, FindingKind, Hash, Head, HeadKeeper, Intent, Outcome,
    Report, Settings, SignError, Signature, Signer, Trail, VerifyKey, verify,
};
use strongroom::identity::{Caller, UnixPeer};
use strongroom::key::Name;
use strongroom::policy::{Action, Resource};

/// How the signer is.
#[derive(Clone, Copy)]
pub enum Sign {
    Works,
    NotReady,
}

/// What the keeper was handed.
pub type Kept = Arc<Mutex<Vec<(Head, bool)>>>;

pub struct Bench {
    pub directory: tempfile::TempDir,
    pub key: Arc<EcdsaKeyPair>,
    pub sign: Arc<Mutex<Sign>>,
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
        let signer = TestSigner { key: Arc::clone(&self.key), sign: Arc::clone(&self.sign) };
        let keeper = TestKeeper(Arc::clone(&self.kept));
        Trail::open(settings, known, Arc::new(signer), Arc::new(keeper))
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
}

type BoxFuture<T> = std::pin::Pin<Box<dyn Future<Output = T> + Send>>;

impl Signer for TestSigner {
    fn sign(&self, message: Vec<u8>) -> BoxFuture<Result<Signature, SignError>> {
        let (key, sign) = (Arc::clone(&self.key), *self.sign.lock().unwrap());
        Box::pin(async move {
            tokio::task::yield_now().await;
            match sign {
                Sign::NotReady => Err(SignError::NotReady),
                Sign::Works => {
                    let signature = key.sign(&SystemRandom::new(), &message).unwrap();
                    let bytes = signature.as_ref().try_into().unwrap();
                    Ok(Signature { generation: 1, bytes })
                }
            }
        })
    }
}

struct TestKeeper(Kept);

impl HeadKeeper for TestKeeper {
    fn keep(&self, head: Head, signed: bool) -> BoxFuture<()> {
        self.0.lock().unwrap().push((head, signed));
        Box::pin(std::future::ready(()))
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
