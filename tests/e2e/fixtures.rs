//! Appliances that earlier binaries have written (`scripts/fixture`): today's opens every one of them,
//! finds all that they held, and goes on with it.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::acts::{base64, put_secret, step};
use crate::appliance::Appliance;

/// What an older binary wrote, and what it said of it.
struct Fixture {
    appliance: Appliance,
    expected: Value,
}

fn fixtures() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let entries = std::fs::read_dir(directory).expect("fixtures");
    entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_dir()).collect()
}

impl Fixture {
    /// Unpacks one into places of this test's own; its clock stands at the time that it was written.
    fn unpack(from: &Path) -> Self {
        let text = std::fs::read(from.join("expected.json")).expect("readable");
        let expected: Value = serde_json::from_slice(&text).expect("JSON");
        let mut appliance = Appliance::prepared(|_| {});
        let tar = Command::new("tar")
            .arg("-xzf")
            .arg(from.join("appliance.tar.gz"))
            .arg("-C")
            .arg(appliance.path(""))
            .arg("--no-same-owner")
            .status();
        assert!(tar.expect("tar runs").success(), "{}", from.display());
        let tokens = appliance.token().tokens();
        std::fs::remove_dir_all(&tokens).expect("removed");
        let copy = Command::new("cp").arg("-r").arg(appliance.path("tokens")).arg(&tokens).status();
        assert!(copy.expect("cp runs").success());
        let written: jiff::Timestamp =
            expected["written_at"].as_str().expect("a time").parse().expect("a time");
        let since = jiff::Timestamp::now().duration_since(written).as_secs();
        appliance.move_clock(&format!("-{}s", since - 10));
        Self { appliance, expected }
    }

    fn list(&self, name: &str) -> &[Value] {
        self.expected[name].as_array().map_or(&[], Vec::as_slice)
    }

    /// The answer to a request has all that it had then, whatever else it has now.
    #[track_caller]
    fn expect_same(&self, path: &str, name: &str) {
        let now = self.appliance.get(path).expect_status(200).json();
        expect_within(&self.expected[name], &now, name);
    }

    /// What was made before there were owners opens for nobody, as policy is shipped, until an operator
    /// gives it one.
    fn expect_owners(&self) {
        for kind in ["keys", "secrets"] {
            let list = self.appliance.get(&format!("/v1/{kind}?limit=1000")).json();
            for entry in list[kind].as_array().expect("a list") {
                if entry["owner"].is_string() {
                    continue;
                }
                let at = format!("/v1/{kind}/{}", entry["name"].as_str().expect("a name"));
                let (verb, body) = match kind {
                    "keys" => ("decrypt", json!({ "ciphertext": base64([7; 256]) })),
                    _ => ("reveal", json!({})),
                };
                let refused = self.appliance.post(&format!("{at}/{verb}"), &body);
                refused.expect_problem(403, "denied");
                let body = json!({ "owner": "unix:0" });
                let given = self.appliance.post(&format!("{at}/transfer"), &body);
                assert_eq!(given.expect_status(200).json()["owner"], "unix:0", "{at}");
            }
        }
    }

    fn expect_opens(&self) {
        for sealed in self.list("ciphertexts") {
            let key = sealed["key"].as_str().expect("a name");
            let mut body = sealed.clone();
            for member in ["key", "plaintext"] {
                body.as_object_mut().expect("one").remove(member);
            }
            let reply = self.appliance.post(&format!("/v1/keys/{key}/decrypt"), &body);
            assert_eq!(reply.expect_status(200).json()["plaintext"], sealed["plaintext"], "{key}");
        }
        for secret in self.list("revealed") {
            let name = secret["name"].as_str().expect("a name");
            let reply = self.appliance.post(&format!("/v1/secrets/{name}/reveal"), &json!({}));
            assert_eq!(reply.expect_status(200).json()["plaintext"], secret["plaintext"], "{name}");
        }
    }

    fn expect_sound_trail(&self) {
        let (trail, key) = (self.appliance.trail(), self.appliance.path("trail.pem"));
        let verified = Command::new(env!("CARGO_BIN_EXE_strongroom"))
            .args(["audit", "verify", "--dir"])
            .arg(trail)
            .arg("--public-key")
            .arg(key)
            .args(["--head", self.expected["status"]["trail"]["head"].as_str().expect("a head")])
            .output()
            .expect("it starts");
        let said = String::from_utf8_lossy(&verified.stdout);
        assert!(verified.status.success(), "{said}{}", String::from_utf8_lossy(&verified.stderr));
    }
}

/// The state of a key all of which waits for its destruction.
const PENDING: &str = "destruction-pending";

/// Whatever stands in `was` stands in `is`; members may have been added.
#[track_caller]
fn expect_within(was: &Value, is: &Value, at: &str) {
    match (was, is) {
        (Value::Object(was), Value::Object(is)) => {
            for (name, value) in was {
                // Said of a key as a whole only since 0.1.0; its versions are as they were.
                if name == "state" && is.get("versions").is_some() && is["state"] == PENDING {
                    assert!(is["destroy_at"].is_string(), "{at}");
                    continue;
                }
                let now = is.get(name).unwrap_or(&Value::Null);
                expect_within(value, now, &format!("{at}.{name}"));
            }
        }
        (Value::Array(was), Value::Array(is)) => {
            assert_eq!(was.len(), is.len(), "{at}");
            for (index, (was, is)) in was.iter().zip(is).enumerate() {
                expect_within(was, is, &format!("{at}[{index}]"));
            }
        }
        _ => assert_eq!(was, is, "{at}"),
    }
}

#[test]
fn every_fixture_is_opened_whole_and_gone_on_with() {
    let all = fixtures();
    assert!(!all.is_empty());
    for from in all {
        let mut fixture = Fixture::unpack(&from);
        fixture.expect_sound_trail();
        fixture.appliance.start();
        let status = fixture.appliance.get("/v1/status").json();
        assert_eq!(status["appliance"], fixture.expected["status"]["appliance"]);
        fixture.expect_same("/v1/keys?limit=1000", "keys");
        fixture.expect_same("/v1/secrets?limit=1000", "secrets");
        fixture.expect_owners();
        fixture.expect_opens();
        for sealed in fixture.list("gone") {
            let body = json!({ "ciphertext": sealed["ciphertext"], "version": sealed["version"] });
            let path = format!("/v1/keys/{}/decrypt", sealed["key"].as_str().expect("a name"));
            fixture.appliance.post(&path, &body).expect_problem(409, "key-state");
        }
        let appliance = &fixture.appliance;
        step(appliance, "rotated", "rotate", json!({})).expect_status(200);
        step(appliance, "waiting", "restore", json!({})).expect_status(200);
        appliance.create_key("new");
        put_secret(appliance, "new", "rotated", "of version 4").expect_status(201);
        put_secret(appliance, "stripe", "plain", "sk_test_4711").expect_status(200);
        fixture.appliance.restart();
        fixture.expect_opens();
        let revealed = fixture.appliance.post("/v1/secrets/new/reveal", &json!({}));
        assert_eq!(revealed.expect_status(200).json()["plaintext"], base64("of version 4"));
        fixture.appliance.stop();
        fixture.expect_sound_trail();
    }
}
