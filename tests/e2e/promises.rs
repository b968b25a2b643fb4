//! The promises, each with somebody who tries to break it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::acts::{
    base64, decrypt, encrypt, expect_plaintext, put_secret, reveal, trail_lines, trail_texts,
};
use crate::appliance::{Appliance, wait_until};
use crate::raw_store::{KEY_VERSION, Raw, SECRET};

/// `CKA_ID` of the first master as `pkcs11-tool` takes it.
fn master_id() -> String {
    "strongroom master/1".bytes().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_master_key_that_the_token_would_let_out_is_not_used() {
    let weak = ["--keygen", "--key-type", "AES:32", "--label", "strongroom master/1", "--id"];
    // Put there before the appliance was initialised.
    let appliance = Appliance::uninitialised();
    let id = master_id();
    let weak: Vec<&str> = weak.into_iter().chain([id.as_str(), "--extractable"]).collect();
    appliance.token().pkcs11_tool(&weak);
    for resume in [false, true] {
        let refused = appliance.post("/v1/init", &json!({ "resume": resume }));
        refused.expect_problem(503, "master-key");
    }
    let told = appliance.cli(&["init"]).stderr;
    let told = String::from_utf8_lossy(&told).into_owned();
    assert!(told.contains("an empty token, or remove that key"), "{told}");
    assert_eq!(appliance.get("/v1/status").json()["state"], "not-initialised");
    let create = json!({ "name": "k", "algorithm": "RSA-2048" });
    appliance.post("/v1/keys", &create).expect_problem(503, "not-initialised");
    assert!(appliance.log().contains("EXTRACTABLE"), "the log says why: {}", appliance.log());

    // Put in the place of the right one, and found at a start.
    let mut appliance = Appliance::new();
    appliance.create_key("k");
    let ciphertext = encrypt(&appliance, "k", "x");
    appliance.stop();
    let token = appliance.token();
    token.pkcs11_tool(&["--delete-object", "--type", "secrkey", "--id", &id]);
    token.pkcs11_tool(&weak);
    appliance.start();
    let status = appliance.get("/v1/status").json();
    assert_eq!(status["state"], "master-unfit");
    assert!(status["detail"].as_str().unwrap().contains("EXTRACTABLE"), "{status}");
    decrypt(&appliance, "k", &ciphertext, None).expect_problem(503, "master-key");
    appliance.get("/v1/health").expect_status(503);
}

#[test]
fn an_edited_store_is_noticed_named_and_not_served() {
    let mut appliance = Appliance::new();
    for key in ["k", "l"] {
        appliance.create_key(key);
    }
    for name in ["a", "b", "c"] {
        put_secret(&appliance, name, "k", name).expect_status(201);
    }
    appliance.stop();
    // Two secrets change places; one bit of the third; two private keys change places.
    let raw = Raw::open(&appliance);
    raw.swap((SECRET, "a"), (SECRET, "b"));
    raw.damage(SECRET, "c");
    raw.swap((KEY_VERSION, "k/0000000001"), (KEY_VERSION, "l/0000000001"));
    drop(raw);
    appliance.start();
    for name in ["a", "b", "c"] {
        let from = appliance.log().len();
        appliance.get(&format!("/v1/secrets/{name}")).expect_problem(500, "record-broken");
        reveal(&appliance, name).expect_problem(500, "record-broken");
        appliance.wait_for_log(from, &format!("secret/{name} was changed outside"));
    }
    for key in ["k", "l"] {
        let body = json!({ "plaintext": "eA==" });
        let refused = appliance.post(&format!("/v1/keys/{key}/encrypt"), &body);
        refused.expect_problem(500, "record-broken");
    }
    // What was not touched is served, and the appliance goes on.
    appliance.create_key("m");
    put_secret(&appliance, "d", "m", "d").expect_status(201);
    expect_plaintext(&reveal(&appliance, "d"), "d");
    let lines = trail_lines(&appliance.trail());
    let broken = lines.iter().filter(|line| line["code"] == "record-broken").count();
    assert_eq!(broken, 8, "each has its line");
}

#[test]
fn a_store_whose_file_was_damaged_is_not_taken_for_a_whole_one() {
    let mut appliance = Appliance::new();
    appliance.create_key("k");
    for number in 0..20 {
        put_secret(&appliance, &format!("s{number}"), "k", "x").expect_status(201);
    }
    appliance.stop();
    let file = appliance.path("store/db");
    let whole = std::fs::read(&file).unwrap();
    // Somewhere in every eighth of what is written.
    let written = whole.iter().rposition(|byte| *byte != 0).unwrap();
    let mut refusals = 0;
    for part in 1..8 {
        let mut damaged = whole.clone();
        damaged[written * part / 8] ^= 0x40;
        std::fs::write(&file, &damaged).unwrap();
        let from = appliance.log().len();
        appliance.spawn();
        let refused = appliance.settled();
        let log = appliance.log()[from..].to_owned();
        if refused {
            assert!(log.contains("[store]"), "it is named: {log}");
            refusals += 1;
        } else {
            // The damage hit nothing that counts, or a record that is not served.
            for number in 0..20 {
                let opened = reveal(&appliance, &format!("s{number}"));
                assert!(matches!(opened.status, 200 | 500 | 503), "{} is lost", opened.text());
            }
            appliance.kill();
        }
        std::fs::write(&file, &whole).unwrap();
    }
    assert!(refusals > 0, "no damage hit anything");
    appliance.start();
    expect_plaintext(&reveal(&appliance, "s19"), "x");
}

#[test]
fn an_older_copy_of_the_store_is_noticed() {
    let mut appliance = Appliance::new();
    appliance.create_key("k");
    let ciphertext = encrypt(&appliance, "k", "x");
    appliance.stop();
    let (path, kept) = (appliance.path("store"), appliance.path("kept"));
    copy_files(&path, &kept);
    appliance.start();
    appliance.post("/v1/keys/k/compromise", &json!({})).expect_status(200);
    appliance.stop();
    std::fs::remove_dir_all(&path).unwrap();
    copy_files(&kept, &path);
    appliance.spawn();
    assert!(!appliance.wait_for_end().success());
    assert!(appliance.log().contains("an older copy was put back"), "{}", appliance.log());

    // Accepted as it is, it goes on, and the trail says so.
    appliance.change_config(|config| {
        let audit = config["audit"].as_table_mut().expect("a table");
        audit.insert("on_break".to_owned(), "record".into());
    });
    appliance.start();
    expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "x");
    let lines = trail_lines(&appliance.trail());
    let told = lines.iter().find(|line| line["event"] == "break-recorded").expect("told");
    assert_eq!(told["code"], "store-behind");
}

/// Copies the files of a directory into a new one of mode 0700.
fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o700)).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        if entry.path().is_dir() {
            copy_files(&entry.path(), &to.join(entry.file_name()));
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn nothing_on_disk_and_in_the_log_shows_what_is_protected() {
    let mut appliance = Appliance::new();
    let plaintext = "canary-of-a-plaintext-4711";
    let der = imported_key(appliance.path("").as_path());
    let body = json!({ "private_key": base64(&der) });
    appliance.post("/v1/keys/imported/import", &body).expect_status(201);
    put_secret(&appliance, "s", "imported", plaintext).expect_status(201);
    expect_plaintext(&reveal(&appliance, "s"), plaintext);
    let ciphertext = encrypt(&appliance, "imported", plaintext);
    expect_plaintext(&decrypt(&appliance, "imported", &ciphertext, None), plaintext);
    appliance.stop();
    // A piece of the private exponent's bytes lies in the middle of the PKCS#8 form.
    let piece = &der[der.len() / 2..der.len() / 2 + 16];
    let hex: String = piece.iter().map(|byte| format!("{byte:02x}")).collect();
    let pieces: [(&str, Vec<u8>); 5] = [
        ("the plaintext", plaintext.into()),
        ("the plaintext in base64", base64(plaintext)[..32].into()),
        ("the key", piece.to_vec()),
        ("the key in hex", hex.into()),
        ("the key in base64", base64(&der)[600..640].into()),
    ];
    let mut searched = 0;
    for place in ["store", "trail", "log"] {
        for file in files_under(&appliance.path(place)) {
            let bytes = std::fs::read(&file).unwrap();
            searched += bytes.len();
            for (what, piece) in &pieces {
                assert!(!holds(&bytes, piece), "{what} lies in {}", file.display());
            }
        }
    }
    assert!(searched > 10_000, "{searched} bytes were searched");
    assert!(holds(&der, &pieces[2].1), "the search finds what is there");
}

fn holds(bytes: &[u8], piece: &[u8]) -> bool {
    bytes.windows(piece.len()).any(|window| window == piece)
}

fn files_under(path: &Path) -> Vec<std::path::PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = std::fs::read_dir(path).unwrap().flatten();
    entries.flat_map(|entry| files_under(&entry.path())).collect()
}

/// PKCS#8 DER of a fresh key of `openssl`.
pub fn imported_key(directory: &Path) -> Vec<u8> {
    let file = directory.join("imported.der");
    let made = Command::new("openssl")
        .args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
        .args(["-outform", "DER", "-out"])
        .arg(&file)
        .stderr(Stdio::null())
        .status()
        .expect("openssl is installed");
    assert!(made.success());
    let der = std::fs::read(&file).unwrap();
    std::fs::remove_file(file).unwrap();
    der
}

/// A small file system of its own; it goes with this value.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn at(path: &'a Path, size: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "only root can mount; run the tests as root");
        std::fs::create_dir(path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size},mode=0700"), "tmpfs"]).arg(path);
        assert!(mount.status().expect("mount").success(), "a tmpfs cannot be mounted here");
        Self(path)
    }

    /// Takes all the room there is.
    fn fill(&self) {
        let mut filler = std::fs::File::create(self.0.join("filler")).unwrap();
        while std::io::Write::write_all(&mut filler, &[1; 512]).is_ok() {}
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[test]
fn a_store_that_fails_is_named_and_comes_back_without_being_asked() {
    let mount = tempfile::tempdir().unwrap();
    let path = mount.path().join("store");
    let disk = SmallDisk::at(&path, "4m");
    let appliance = Appliance::configured(|config| {
        let store = config["store"].as_table_mut().unwrap();
        store.insert("path".to_owned(), path.display().to_string().into());
        store.insert("reserve_bytes".to_owned(), 0.into());
    });
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance.create_key("k");
    put_secret(&appliance, "s", "k", "y").expect_status(201);
    disk.fill();
    let value = "z".repeat(150);
    // Writes may still fit into the pages that are taken already.
    wait_until("the store's failure", || {
        put_secret(&appliance, "t", "k", &value);
        appliance.get("/v1/status").json()["state"] == "store-unavailable"
    });
    wait_until("health to say so", || {
        put_secret(&appliance, "t", "k", &value);
        appliance.get("/v1/health").status == 503
    });
    disk.make_room();
    wait_until("it to come back by itself", || appliance.get("/v1/health").status == 200);
    expect_plaintext(&reveal(&appliance, "s"), "y");
}

#[test]
fn without_room_for_its_line_nothing_is_done_and_with_room_it_goes_on() {
    let mount = tempfile::tempdir().unwrap();
    let path = mount.path().join("trail");
    let disk = SmallDisk::at(&path, "256k");
    let mut appliance = Appliance::configured(|config| {
        config["audit"]["directory"] = path.display().to_string().into();
        // The disk is smaller than what is held in reserve otherwise.
        config["audit"].as_table_mut().expect("a table").insert("reserve_bytes".into(), 0.into());
    });
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance.create_key("k");
    let ciphertext = encrypt(&appliance, "k", "the plaintext");
    expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "the plaintext");
    put_secret(&appliance, "s", "k", "y").expect_status(201);
    disk.fill();
    // Lines may still fit into the page that is taken already.
    wait_until("the refusal", || decrypt(&appliance, "k", &ciphertext, None).status == 503);
    let refused = decrypt(&appliance, "k", &ciphertext, None);
    refused.expect_problem(503, "trail-unavailable");
    assert!(!refused.text().contains(&base64("the plaintext")), "nothing leaves");
    reveal(&appliance, "s").expect_problem(503, "trail-unavailable");
    put_secret(&appliance, "t", "k", "z").expect_problem(503, "trail-unavailable");
    let deleted = appliance.request("DELETE", "/v1/secrets/s", "", b"");
    deleted.expect_problem(503, "trail-unavailable");
    let suspended = appliance.post("/v1/keys/k/suspend", &json!({}));
    suspended.expect_problem(503, "trail-unavailable");
    let status = appliance.get("/v1/status").expect_status(200).json();
    assert_eq!(status["state"], "trail-unavailable");
    assert_eq!(status["trail"]["writable"], false);
    appliance.get("/v1/health").expect_status(503);
    appliance.get("/metrics").expect_status(200);

    disk.make_room();
    wait_until("it to come back by itself", || appliance.get("/v1/health").status == 200);
    expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "the plaintext");
    expect_plaintext(&reveal(&appliance, "s"), "y");
    appliance.get("/v1/secrets/t").expect_problem(404, "not-found");
    assert_eq!(appliance.get("/v1/keys/k").json()["state"], "active", "nothing was changed");
    let key = appliance.path("key.pem");
    std::fs::write(&key, &appliance.get("/v1/audit/public-key").body).unwrap();
    appliance.stop();
    let mut verify = Command::new(env!("CARGO_BIN_EXE_strongroom"));
    verify.args(["audit", "verify", "--dir"]).arg(&path).arg("--public-key").arg(key);
    let output = verify.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn who_has_no_role_learns_only_whether_it_is_ready() {
    if !nix::unistd::geteuid().is_root() {
        panic!("only root can become somebody else; run the tests as root");
    }
    let appliance = Appliance::new();
    appliance.create_key("k");
    let ciphertext = encrypt(&appliance, "k", "x");
    put_secret(&appliance, "s", "k", "y").expect_status(201);
    let mode = |mode| std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(appliance.path(""), mode(0o755)).unwrap();
    let decrypt = json!({ "ciphertext": ciphertext }).to_string();
    let (status, body) = as_nobody(&appliance, "GET", "/v1/health", "");
    assert_eq!((status, body), (200, json!({ "ready": true })));
    let refused = [
        ("GET", "/v1/status", ""),
        ("GET", "/v1/doctor", ""),
        ("GET", "/metrics", ""),
        ("GET", "/v1/keys", ""),
        ("GET", "/v1/keys/k", ""),
        ("GET", "/v1/keys/k/public", ""),
        ("GET", "/v1/jwks.json", ""),
        ("POST", "/v1/keys/k/decrypt", decrypt.as_str()),
        ("POST", "/v1/keys/k/rotate", "{}"),
        ("POST", "/v1/secrets/s/reveal", "{}"),
        ("GET", "/v1/secrets/none", ""),
        ("GET", "/v1/audit", ""),
        ("GET", "/v1/audit/public-key", ""),
        ("POST", "/v1/lock", "{}"),
        ("POST", "/v1/init", "{}"),
    ];
    for (method, path, body) in refused {
        let (status, document) = as_nobody(&appliance, method, path, body);
        assert_eq!((status, &document["code"]), (403, &json!("denied")), "{method} {path}");
    }
    let lines = trail_lines(&appliance.trail());
    let of_nobody = lines.iter().filter(|line| line["uid"] == 65534);
    assert!(of_nobody.clone().all(|line| line["result"] == "refused"));
    assert_eq!(of_nobody.count(), refused.len(), "each refusal has its line");

    // Who may not connect learns not even that.
    std::fs::set_permissions(appliance.socket(), mode(0o660)).unwrap();
    assert_eq!(as_nobody(&appliance, "GET", "/v1/health", "").0, 0);
}

/// Status and document of a request that `nobody` makes; 0 where it may not connect.
fn as_nobody(appliance: &Appliance, method: &str, path: &str, body: &str) -> (u16, Value) {
    const SCRIPT: &str = "\
import http.client, json, os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
connection = http.client.HTTPConnection('strongroom')
connection.sock = socket.socket(socket.AF_UNIX)
try:
    connection.sock.connect(sys.argv[1])
except PermissionError:
    print(json.dumps([0, None])); sys.exit()
headers = {'content-type': 'application/json'} if sys.argv[4] else {}
connection.request(sys.argv[2], sys.argv[3], sys.argv[4] or None, headers)
reply = connection.getresponse()
print(json.dumps([reply.status, json.loads(reply.read())]))";
    let mut python = Command::new("python3");
    python.args(["-c", SCRIPT]).arg(appliance.socket()).args([method, path, body]);
    let output = python.output().expect("python3 is installed");
    let text = String::from_utf8_lossy(&output.stdout);
    let (status, document): (u16, Value) = serde_json::from_str(&text)
        .unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    (status, document)
}

#[test]
fn failures_to_decrypt_cannot_be_told_apart() {
    let appliance = Appliance::new();
    for key in ["k", "l"] {
        appliance.create_key(key);
    }
    let body = json!({ "name": "small", "algorithm": "RSA-2048", "mgf1_hash": "SHA-1" });
    appliance.post("/v1/keys", &body).expect_status(201);
    let good = encrypt(&appliance, "k", "x");
    let mut flipped =
        base64::prelude::Engine::decode(&base64::prelude::BASE64_STANDARD, &good).unwrap();
    flipped[100] ^= 1;
    let kinds = [
        ("one bit changed", base64(&flipped)),
        ("for another key", encrypt(&appliance, "l", "x")),
        ("with another MGF1", encrypt(&appliance, "small", "x")),
        ("zeros", base64([0; 256])),
        ("above the modulus", base64([255; 256])),
        ("empty", String::new()),
        ("one byte", base64([1])),
        ("too short", base64(&flipped[1..])),
        ("too long", base64([&flipped[..], &[0]].concat())),
        ("of a larger key", base64([7; 512])),
        ("raw padding of PKCS#1 v1.5", base64([2; 256])),
    ];
    let shape = |ciphertext: &str, label: Option<&str>| {
        let mut body = json!({ "ciphertext": ciphertext });
        if let Some(label) = label {
            body["label"] = base64(label).into();
        }
        let reply = appliance.post("/v1/keys/k/decrypt", &body);
        reply.expect_problem(422, "decryption-failed");
        let id = reply.header("x-request-id").expect("an id");
        let names = |line: &&str| !line.starts_with("date:");
        let head: Vec<String> =
            reply.head.lines().filter(names).map(|line| line.replace(&id, "ID")).collect();
        (head, reply.text().replace(&id, "ID"))
    };
    let one = shape(&kinds[0].1, None);
    for (what, ciphertext) in &kinds {
        assert_eq!(shape(ciphertext, None), one, "{what}");
    }
    assert_eq!(shape(&good, Some("a label that it was not made with")), one);
    // The same within a batch, and for a secret that somebody stored so.
    let items: Vec<Value> =
        kinds.iter().map(|(_, ciphertext)| json!({ "ciphertext": ciphertext })).collect();
    let reply = appliance.post("/v1/keys/k/decrypt", &json!({ "items": items }));
    let items = reply.expect_status(200).json()["items"].as_array().unwrap().clone();
    assert!(items.iter().all(|item| *item == items[0]), "{items:?}");
    assert_eq!(items[0]["error"]["code"], "decryption-failed");
    let body = json!({ "key": "k", "ciphertext": kinds[0].1 });
    appliance.put("/v1/secrets/bad", &body).expect_status(201);
    let revealed = reveal(&appliance, "bad");
    let id = revealed.header("x-request-id").unwrap();
    assert_eq!(revealed.expect_problem(422, "decryption-failed").text().replace(&id, "ID"), one.1);
    let text = trail_texts(&appliance.trail()).concat();
    assert!(!text.contains("padding") && !text.contains("label"));
}
