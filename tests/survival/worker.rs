//! One caller of the load: changes keys and secrets of its own, uses them, and writes down what it was
//! told.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};

use crate::appliance::Reply;
use crate::dice::Dice;
use crate::object::{Fate, Moment, Object, State, Step};
use crate::wire::Wire;

/// What every worker can use.
pub struct Shared {
    /// A ciphertext for the key `base`, and its plaintext in base64.
    pub ciphertext: String,
    pub plaintext: String,
    /// Private keys to import: PKCS#8 DER in base64.
    pub imports: Vec<String>,
    /// Whether anybody was refused.
    pub refused: AtomicBool,
    /// The moment it is.
    pub now: Box<dyn Fn() -> Moment + Send + Sync>,
}

/// A reply that left: by its number, and when it was there.
#[derive(Debug, Clone)]
pub struct Left {
    pub request: String,
    pub at: Moment,
    /// It acknowledged a change, whose outcome has its line, too.
    pub change: bool,
}

pub struct Worker {
    number: usize,
    dice: Dice,
    shared: Arc<Shared>,
    pub keys: BTreeMap<String, Object>,
    pub secrets: BTreeMap<String, Object>,
    pub left: Vec<Left>,
    /// The codes of refusals.
    pub refusals: BTreeSet<String>,
    made: u64,
}

/// Keys of one worker that are there at the same time, and names of its secrets.
const KEYS: usize = 5;
const SECRETS: u64 = 8;

impl Worker {
    pub fn new(number: usize, dice: Dice, shared: Arc<Shared>) -> Self {
        let (keys, secrets) = Default::default();
        let (left, refusals) = Default::default();
        Self { number, dice, shared, keys, secrets, left, refusals, made: 0 }
    }

    pub fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Works until it is to stop, or there is nobody to connect to.
    pub fn run(mut self, socket: &Path, stop: &AtomicBool) -> Self {
        let mut wire = Wire::to(socket);
        while !stop.load(Ordering::Relaxed) {
            // Whoever kills the daemon says so only afterwards; until then the connection may be lost.
            if self.act(&mut wire).is_none()
                && std::os::unix::net::UnixStream::connect(socket).is_err()
            {
                break;
            }
        }
        self
    }

    /// One request. `None` where its answer was lost.
    fn act(&mut self, wire: &mut Wire) -> Option<()> {
        match self.dice.below(100) {
            0..35 => self.decrypt(wire),
            35..45 => self.reveal(wire),
            45..72 => self.put(wire),
            72..80 => self.delete(wire),
            80..86 => self.import(wire),
            86..88 => self.create(wire),
            88..92 => self.step(wire, "rotate"),
            92..96 => self.step(wire, "destroy"),
            _ => self.step(wire, "restore"),
        }
    }

    fn decrypt(&mut self, wire: &mut Wire) -> Option<()> {
        let body = json!({ "ciphertext": self.shared.ciphertext });
        let reply = wire.ask("POST", "/v1/keys/base/decrypt", &body).ok()?;
        if self.note(&reply, false) {
            assert_eq!(reply.json()["plaintext"], self.shared.plaintext);
        }
        Some(())
    }

    fn reveal(&mut self, wire: &mut Wire) -> Option<()> {
        let Some((name, State::Secret { value })) = self.secret() else { return Some(()) };
        let path = format!("/v1/secrets/{name}/reveal");
        let reply = wire.ask("POST", &path, &json!({})).ok()?;
        if self.note(&reply, false) {
            assert_eq!(reply.json()["plaintext"], BASE64_STANDARD.encode(value), "{name}");
        }
        Some(())
    }

    fn put(&mut self, wire: &mut Wire) -> Option<()> {
        let Some((name, _)) = self.secret() else { return Some(()) };
        let value = format!("{name}={}", self.dice.next());
        let body = json!({ "key": "base", "plaintext": BASE64_STANDARD.encode(&value) });
        let path = format!("/v1/secrets/{name}");
        self.change(wire, ("PUT", &path, &body), &name, State::Secret { value })
    }

    fn delete(&mut self, wire: &mut Wire) -> Option<()> {
        let Some((name, State::Secret { .. })) = self.secret() else { return Some(()) };
        let path = format!("/v1/secrets/{name}");
        self.change(wire, ("DELETE", &path, &Value::Null), &name, State::Absent)
    }

    fn import(&mut self, wire: &mut Wire) -> Option<()> {
        let Some(name) = self.new_key() else { return self.step(wire, "destroy") };
        let which = self.dice.below(self.shared.imports.len() as u64) as usize;
        let body = json!({ "private_key": self.shared.imports[which] });
        let path = format!("/v1/keys/{name}/import");
        let after = State::Key { versions: 1, fate: Fate::Stays };
        self.change(wire, ("POST", &path, &body), &name, after)
    }

    fn create(&mut self, wire: &mut Wire) -> Option<()> {
        let Some(name) = self.new_key() else { return self.step(wire, "destroy") };
        let body = json!({ "name": name, "algorithm": "RSA-2048" });
        let after = State::Key { versions: 1, fate: Fate::Stays };
        self.change(wire, ("POST", "/v1/keys", &body), &name, after)
    }

    /// Rotates, destroys or restores a key that can take it.
    fn step(&mut self, wire: &mut Wire, verb: &str) -> Option<()> {
        let wanted = if verb == "restore" { Fate::Waits } else { Fate::Stays };
        let fits = |(name, object): (&String, &Object)| match object.settled() {
            Some(State::Key { versions, fate }) if *fate == wanted => {
                Some((name.clone(), *versions))
            }
            _ => None,
        };
        let fitting: Vec<_> = self.keys.iter().filter_map(fits).collect();
        if fitting.is_empty() {
            return Some(());
        }
        let (name, versions) = &fitting[self.dice.below(fitting.len() as u64) as usize];
        let path = format!("/v1/keys/{name}");
        let (method, path, body, after) = match verb {
            "rotate" => ("POST", format!("{path}/rotate"), json!({}), (versions + 1, Fate::Stays)),
            "restore" => ("POST", format!("{path}/restore"), json!({}), (*versions, Fate::Stays)),
            _ => ("DELETE", path, json!({}), (*versions, Fate::Waits)),
        };
        let after = State::Key { versions: after.0, fate: after.1 };
        self.change(wire, (method, &path, &body), name, after)
    }

    /// Asks for a change; what was answered, if anything, is written down with it.
    fn change(
        &mut self,
        wire: &mut Wire,
        (method, path, body): (&str, &str, &Value),
        name: &str,
        after: State,
    ) -> Option<()> {
        let sent = (self.shared.now)();
        let reply = wire.ask(method, path, body).ok();
        let done = reply.as_ref().is_some_and(|reply| self.note(reply, true));
        let acknowledged = done.then(|| (self.shared.now)());
        let known = self.keys.get_mut(name).or(self.secrets.get_mut(name));
        known.expect("it is known").push(Step { sent, acknowledged, after });
        reply.map(drop)
    }

    /// Writes down a reply that left with a result; `false` for one that says that there is none. No
    /// request is one that could be refused for what it asks.
    fn note(&mut self, reply: &Reply, change: bool) -> bool {
        assert!(reply.status < 300 || reply.status >= 500, "{}\n{}", reply.head, reply.text());
        if reply.status >= 500 {
            self.shared.refused.store(true, Ordering::Relaxed);
            self.refusals.insert(reply.json()["code"].as_str().expect("a code").to_owned());
            return false;
        }
        let request = reply.header("x-request-id").expect("every reply has a number");
        let at = (self.shared.now)();
        self.left.push(Left { request, at, change });
        true
    }

    /// One of the secrets whose state is known.
    fn secret(&mut self) -> Option<(String, State)> {
        let name = format!("w{}-s{}", self.number, self.dice.below(SECRETS));
        let object = self.secrets.entry(name.clone()).or_insert_with(Object::absent);
        Some((name, object.settled()?.clone()))
    }

    /// The name of a key to be made; `None` while there are enough.
    fn new_key(&mut self) -> Option<String> {
        let gone = |object: &&Object| {
            let settled = object.settled();
            matches!(settled, Some(State::Absent | State::Key { fate: Fate::Destroyed, .. }))
        };
        let there = self.keys.len() - self.keys.values().filter(gone).count();
        if there >= KEYS {
            return None;
        }
        self.made += 1;
        let name = format!("w{}-k{}", self.number, self.made);
        self.keys.insert(name.clone(), Object::absent());
        Some(name)
    }
}
