//! The outside witness: sets callers to work, and holds what they were told against what survived.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};

use crate::appliance::{Appliance, Reply, wait_until};
use crate::dice::Dice;
use crate::object::{Fate, Moment, Object, State};
use crate::worker::{Left, Shared, Worker};

/// Callers at the same time.
const CALLERS: usize = 4;

pub struct Witness {
    workers: Vec<Worker>,
}

/// Callers at work.
pub struct Load {
    shared: Option<Arc<Shared>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Worker>>,
}

/// What a check found, all of it as it has to be.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    pub changes: usize,
    pub results: usize,
    pub objects: usize,
    pub open: usize,
    pub rotations: usize,
}

impl Witness {
    /// One for an appliance that is initialised and has nothing else yet. `now` tells moments.
    pub fn of(
        appliance: &Appliance,
        dice: &mut Dice,
        now: impl Fn() -> Moment + Send + Sync + 'static,
    ) -> Self {
        appliance.create_key("base");
        let plaintext = BASE64_STANDARD.encode("what is decrypted again and again");
        let body = json!({ "plaintext": plaintext });
        let reply = appliance.post("/v1/keys/base/encrypt", &body).expect_status(200).json();
        let ciphertext = reply["ciphertext"].as_str().expect("a text").to_owned();
        let imports = (0..3).map(|_| BASE64_STANDARD.encode(fresh_key())).collect();
        let refused = AtomicBool::new(false);
        let shared = Shared { ciphertext, plaintext, imports, refused, now: Box::new(now) };
        let shared = Arc::new(shared);
        let worker = |number| Worker::new(number, dice.fork(number as u64), Arc::clone(&shared));
        Self { workers: (0..CALLERS).map(worker).collect() }
    }

    /// Sets the callers to work.
    pub fn set_to_work(self, socket: &Path) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let start = |worker: Worker| {
            let (stop, socket) = (Arc::clone(&stop), socket.to_owned());
            std::thread::spawn(move || worker.run(&socket, &stop))
        };
        let shared = self.workers.first().map(Worker::shared);
        Load { shared, threads: self.workers.into_iter().map(start).collect(), stop }
    }

    /// Holds what was told by the moment `cut` against an appliance that serves what survived of it.
    pub fn check(&self, appliance: &Appliance, cut: Moment) -> Counts {
        let mut counts = Counts::default();
        for worker in &self.workers {
            for (name, object) in worker.keys.iter().chain(&worker.secrets) {
                let (found, allowed) = (observe(appliance, worker, name), object.allowed(cut));
                let fits = allowed.iter().any(|state| **state == found);
                assert!(fits, "{name} is {found:?}, and was told to be {allowed:?}");
                counts.objects += 1;
                counts.open += usize::from(allowed.len() > 1);
            }
        }
        self.check_trail(appliance, cut, &mut counts);
        verify(appliance);
        counts
    }

    /// Every result that left by `cut` has its line, and every change that was acknowledged its outcome.
    fn check_trail(&self, appliance: &Appliance, cut: Moment, counts: &mut Counts) {
        let (mut seen, mut done) = (BTreeSet::new(), BTreeSet::new());
        for line in lines(&appliance.trail()) {
            let Some(request) = line["request"].as_str() else { continue };
            seen.insert(request.to_owned());
            if line["kind"] == "outcome" && line["result"] == "done" {
                done.insert(request.to_owned());
            }
        }
        for left in self.workers.iter().flat_map(|worker| &worker.left) {
            if left.at > cut {
                continue;
            }
            let lines = if left.change { &done } else { &seen };
            assert!(lines.contains(&left.request), "{left:?} has no line in the trail");
            counts.results += 1;
            counts.changes += usize::from(left.change);
        }
    }

    /// Takes what is there now for what it goes on from.
    pub fn settle(&mut self, appliance: &Appliance) {
        for worker in &mut self.workers {
            let names: Vec<String> =
                worker.keys.keys().chain(worker.secrets.keys()).cloned().collect();
            for name in names {
                let object = Object::known(observe(appliance, worker, &name));
                match worker.keys.get_mut(&name) {
                    Some(key) => *key = object,
                    None => drop(worker.secrets.insert(name, object)),
                }
            }
            worker.left.clear();
        }
    }

    /// Says that the result of this request left.
    pub fn claim(&mut self, request: uuid::Uuid) {
        let left = Left { request: request.to_string(), at: 0, change: false };
        self.workers[0].left.push(left);
    }

    /// Every key that stays opens what is encrypted for it.
    pub fn open_keys(&self, appliance: &Appliance) {
        for (name, object) in self.workers.iter().flat_map(|worker| &worker.keys) {
            if !matches!(object.settled(), Some(State::Key { fate: Fate::Stays, .. })) {
                continue;
            }
            let at = |verb: &str| format!("/v1/keys/{name}/{verb}");
            let made = served(|| appliance.post(&at("encrypt"), &json!({ "plaintext": "eA==" })));
            let ciphertext = made.expect_status(200).json()["ciphertext"].clone();
            let opened =
                served(|| appliance.post(&at("decrypt"), &json!({ "ciphertext": ciphertext })));
            assert_eq!(opened.expect_status(200).json()["plaintext"], "eA==", "{name}");
        }
    }

    /// The codes that callers were refused with.
    pub fn refusals(&self) -> BTreeSet<String> {
        self.workers.iter().flat_map(|worker| worker.refusals.clone()).collect()
    }

    /// The keys that wait for their destruction.
    pub fn waiting(&self) -> Vec<String> {
        let waits = |object: &Object| {
            matches!(object.settled(), Some(State::Key { fate: Fate::Waits, .. }))
        };
        let keys = self.workers.iter().flat_map(|worker| &worker.keys);
        keys.filter(|(_, object)| waits(object)).map(|(name, _)| name.clone()).collect()
    }
}

impl Load {
    /// Whether any of the callers was refused.
    pub fn is_refused(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.refused.load(Ordering::Relaxed))
    }

    /// The callers end what they are at, and are done.
    pub fn end(self) -> Witness {
        self.stop.store(true, Ordering::Relaxed);
        let ended = |thread: JoinHandle<Worker>| match thread.join() {
            Ok(worker) => worker,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        Witness { workers: self.threads.into_iter().map(ended).collect() }
    }
}

fn observe(appliance: &Appliance, worker: &Worker, name: &str) -> State {
    if worker.keys.contains_key(name) {
        let reply = served(|| appliance.get(&format!("/v1/keys/{name}")));
        return State::of_key(name, &reply);
    }
    let path = format!("/v1/secrets/{name}/reveal");
    let reply = served(|| appliance.post(&path, &json!({})));
    if reply.status == 404 {
        return State::Absent;
    }
    let value = reply.expect_status(200).json()["plaintext"].clone();
    let value = BASE64_STANDARD.decode(value.as_str().expect("a text")).expect("base64");
    State::Secret { value: String::from_utf8(value).expect("as it was written") }
}

/// Asks again while custody is on its way back.
fn served(ask: impl Fn() -> Reply) -> Reply {
    let mut reply = ask();
    wait_until("an answer", || {
        if reply.status == 503 {
            reply = ask();
        }
        reply.status != 503
    });
    reply
}

/// All whole lines of a trail.
pub fn lines(directory: &Path) -> Vec<Value> {
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .expect("a trail")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
        .collect();
    files.sort();
    let read = |file| std::fs::read_to_string(file).expect("readable");
    let text: String = files.iter().map(read).collect();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// `strongroom audit verify` finds the trail sound, up to the head that the daemon names.
#[track_caller]
pub fn verify(appliance: &Appliance) {
    let key = appliance.path("trail.pem");
    let pem: Reply = appliance.get("/v1/audit/public-key");
    std::fs::write(&key, &pem.expect_status(200).body).expect("written");
    let status = appliance.get("/v1/status").expect_status(200).json();
    let head = status["trail"]["head"].as_str().expect("a head").to_owned();
    let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
    command.args(["audit", "verify", "--in-use", "--head", &head, "--dir"]);
    let output = command.arg(appliance.trail()).arg("--public-key").arg(&key).output();
    let output = output.expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

/// PKCS#8 DER of a fresh RSA-2048 key of `openssl`.
fn fresh_key() -> Vec<u8> {
    let output = Command::new("openssl")
        .args([
            "genpkey",
            "-algorithm",
            "RSA",
            "-pkeyopt",
            "rsa_keygen_bits:2048",
            "-outform",
            "DER",
        ])
        .output()
        .expect("openssl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.changes += other.changes;
        self.results += other.results;
        self.objects += other.objects;
        self.open += other.open;
        self.rotations += other.rotations;
    }
}
