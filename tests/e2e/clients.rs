//! What other people's programs encrypt with our public keys is opened, byte for byte: OpenSSL, Python's
//! `cryptography`, WebCrypto in Chromium. Our public forms are given to them as they are.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};

use crate::appliance::Appliance;

/// Bytes that no text form would let through unchanged, of every length that RSA-2048 can hold at its
/// ends: none, one, the most.
fn plaintexts() -> [Vec<u8>; 4] {
    let all: Vec<u8> = (0..=255).rev().collect();
    [vec![], vec![0], b"sk_live_4711\r\n\0\xff".to_vec(), all[..190].to_vec()]
}

#[track_caller]
fn expect_opens(appliance: &Appliance, key: &str, ciphertext: &[u8], label: &[u8], to: &[u8]) {
    let body = json!({
        "ciphertext": BASE64_STANDARD.encode(ciphertext),
        "label": BASE64_STANDARD.encode(label),
    });
    let reply = appliance.post(&format!("/v1/keys/{key}/decrypt"), &body);
    let plaintext = reply.expect_status(200).json()["plaintext"].as_str().map(str::to_owned);
    let plaintext = BASE64_STANDARD.decode(plaintext.expect("a plaintext")).expect("base64");
    assert_eq!(plaintext, to);
}

/// A key of this algorithm, with MGF1 over this hash.
fn create(appliance: &Appliance, name: &str, algorithm: &str, mgf1_hash: &str) {
    let body = json!({ "name": name, "algorithm": algorithm, "mgf1_hash": mgf1_hash });
    appliance.post("/v1/keys", &body).expect_status(201);
}

fn public(appliance: &Appliance, name: &str, format: &str) -> String {
    let reply = appliance.get(&format!("/v1/keys/{name}/public?format={format}"));
    reply.expect_status(200).text()
}

/// Runs a program with something on its standard input; it has to succeed.
fn run(mut command: Command, install: &str, stdin: &[u8]) -> Vec<u8> {
    let name = command.get_program().to_string_lossy().into_owned();
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|error| panic!("{name}: {error}; {install}"));
    let _ = child.stdin.take().expect("piped").write_all(stdin); // one that ends early says why
    let output = child.wait_with_output().expect("waits");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} failed (is it whole? {install}): {errors}");
    output.stdout
}

fn openssl(arguments: &[&str], stdin: &[u8]) -> Vec<u8> {
    let mut command = Command::new("openssl");
    command.args(arguments);
    run(command, "apt-get install openssl", stdin)
}

/// `openssl pkeyutl -encrypt` with OAEP over SHA-256.
fn openssl_encrypt(pem: &Path, mgf1: &str, label: &[u8], plaintext: &[u8]) -> Vec<u8> {
    let pem = pem.display().to_string();
    let label: String = label.iter().map(|byte| format!("{byte:02x}")).collect();
    let (mgf1, label) = (format!("rsa_mgf1_md:{mgf1}"), format!("rsa_oaep_label:{label}"));
    let mut arguments = vec!["pkeyutl", "-encrypt", "-pubin", "-inkey", &pem];
    arguments.extend(["-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256"]);
    arguments.extend(["-pkeyopt", &mgf1]);
    if !label.ends_with(':') {
        arguments.extend(["-pkeyopt", &label]);
    }
    openssl(&arguments, plaintext)
}

#[test]
fn what_openssl_encrypts_is_opened() {
    let appliance = Appliance::new();
    let keys = [
        ("small", "RSA-2048", "SHA-256"),
        ("middle", "RSA-3072", "SHA-256"),
        ("large", "RSA-4096", "SHA-256"),
        ("old", "RSA-2048", "SHA-1"),
    ];
    for (name, algorithm, mgf1_hash) in keys {
        create(&appliance, name, algorithm, mgf1_hash);
        for format in ["spki-pem", "pkcs1-pem"] {
            let pem = appliance.path(&format!("{name}.{format}"));
            std::fs::write(&pem, public(&appliance, name, format)).expect("written");
            let mgf1 = mgf1_hash.to_lowercase().replace('-', "");
            for (label, plaintext) in [(&b""[..], &b"\0token\xff"[..]), (b"a label\0\x01", b"x")] {
                let ciphertext = openssl_encrypt(&pem, &mgf1, label, plaintext);
                expect_opens(&appliance, name, &ciphertext, label, plaintext);
            }
        }
    }
    let pem = appliance.path("small.spki-pem");
    for plaintext in plaintexts() {
        let ciphertext = openssl_encrypt(&pem, "sha256", b"", &plaintext);
        expect_opens(&appliance, "small", &ciphertext, b"", &plaintext);
    }
    // What a client does that leaves OpenSSL's default for MGF1 as it is: the hash of OAEP.
    let pem = pem.display().to_string();
    let options = ["-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256"];
    let command = [&["pkeyutl", "-encrypt", "-pubin", "-inkey", &pem][..], &options].concat();
    expect_opens(&appliance, "small", &openssl(&command, b"default"), b"", b"default");
}

#[test]
fn the_wrong_hash_or_label_opens_nothing() {
    let appliance = Appliance::new();
    create(&appliance, "new", "RSA-2048", "SHA-256");
    create(&appliance, "old", "RSA-2048", "SHA-1");
    for (name, other) in [("new", "sha1"), ("old", "sha256")] {
        let pem = appliance.path(name);
        std::fs::write(&pem, public(&appliance, name, "spki-pem")).expect("written");
        let mgf1 = if other == "sha1" { "sha256" } else { "sha1" };
        for (mgf1, label) in [(other, &b""[..]), (mgf1, b"a label")] {
            let ciphertext = openssl_encrypt(&pem, mgf1, label, b"token");
            let body = json!({ "ciphertext": BASE64_STANDARD.encode(ciphertext) });
            let reply = appliance.post(&format!("/v1/keys/{name}/decrypt"), &body);
            reply.expect_problem(422, "decryption-failed");
        }
    }
}

/// Reads a job as JSON, loads the key in each form, and encrypts every plaintext with each.
const PYTHON: &str = r#"
import base64, json, sys
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

job = json.load(sys.stdin)
number = lambda text: int.from_bytes(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), "big")
keys = [serialization.load_pem_public_key(pem.encode()) for pem in job["pems"]]
keys.append(rsa.RSAPublicNumbers(number(job["jwk"]["e"]), number(job["jwk"]["n"])).public_key())
mgf1 = {"RSA-OAEP-256": hashes.SHA256()}.get(job["jwk"].get("alg"), hashes.SHA1())
out = []
for key in keys:
    for label in [None, b"a label\0"]:
        pad = padding.OAEP(mgf=padding.MGF1(mgf1), algorithm=hashes.SHA256(), label=label)
        for plaintext in job["plaintexts"]:
            ciphertext = key.encrypt(base64.b64decode(plaintext), pad)
            out.append([base64.b64encode(ciphertext).decode(), plaintext, bool(label)])
print(json.dumps(out))
"#;

#[test]
fn what_python_encrypts_is_opened() {
    let appliance = Appliance::new();
    for (name, mgf1_hash) in [("new", "SHA-256"), ("old", "SHA-1")] {
        create(&appliance, name, "RSA-2048", mgf1_hash);
        let jwk: Value = serde_json::from_str(&public(&appliance, name, "jwk")).expect("JSON");
        let pems = ["spki-pem", "pkcs1-pem"].map(|format| public(&appliance, name, format));
        let texts = plaintexts().map(|plaintext| BASE64_STANDARD.encode(plaintext));
        let job = json!({ "jwk": jwk, "pems": pems, "plaintexts": texts }).to_string();
        let mut python = Command::new("/usr/bin/python3");
        python.args(["-c", PYTHON]);
        let install = "apt-get install python3-cryptography";
        let answer: Value = serde_json::from_slice(&run(python, install, job.as_bytes()))
            .expect("the script's own JSON");
        let answer = answer.as_array().expect("a list");
        assert_eq!(answer.len(), 3 * 2 * 4, "keys, labels, plaintexts");
        for one in answer {
            let bytes = |at: usize| BASE64_STANDARD.decode(one[at].as_str().unwrap()).unwrap();
            let label = if one[2] == true { &b"a label\0"[..] } else { b"" };
            expect_opens(&appliance, name, &bytes(0), label, &bytes(1));
        }
    }
}

/// A page that imports the key as JWK and as SPKI, encrypts, and writes what it got into its body.
const PAGE: &str = r#"<!doctype html><meta charset="utf-8"><title>job</title><body>waiting<script>
const job = JOB;
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const text = buffer => btoa(String.fromCharCode(...new Uint8Array(buffer)));
const algorithm = { name: "RSA-OAEP", hash: "SHA-256" };
(async () => {
  const keys = [
    await crypto.subtle.importKey("jwk", job.jwk, algorithm, true, ["encrypt"]),
    await crypto.subtle.importKey("spki", bytes(job.spki), algorithm, true, ["encrypt"]),
  ];
  const out = [];
  for (const key of keys) for (const label of ["", "YSBsYWJlbAA="]) for (const plain of job.plaintexts) {
    const how = { name: "RSA-OAEP", ...(label && { label: bytes(label) }) };
    out.push([text(await crypto.subtle.encrypt(how, key, bytes(plain))), plain, label]);
  }
  const again = await crypto.subtle.exportKey("jwk", keys[1]);
  return { out, again };
})().then(
  result => document.body.textContent = "|DONE|" + JSON.stringify(result) + "|END|",
  error => document.body.textContent = "FAILED " + error + " END");
</script>"#;

#[test]
fn what_a_browser_encrypts_is_opened() {
    let appliance = Appliance::new();
    create(&appliance, "web", "RSA-2048", "SHA-256");
    let jwk: Value = serde_json::from_str(&public(&appliance, "web", "jwk")).expect("JSON");
    let pem = public(&appliance, "web", "spki-pem");
    let spki: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let texts = plaintexts().map(|plaintext| BASE64_STANDARD.encode(plaintext));
    let job = json!({ "jwk": jwk, "spki": spki, "plaintexts": texts }).to_string();
    let page = appliance.path("job.html");
    std::fs::write(&page, PAGE.replace("JOB", &job)).expect("written");

    let shown = browse(&page, &appliance.path("chromium"));
    let (_, found) = shown.split_once("|DONE|").unwrap_or_else(|| panic!("no result: {shown}"));
    let result = found.split_once("|END|").expect("the end of it").0;
    let result: Value = serde_json::from_str(result).expect("the page's own JSON");
    assert_eq!(result["again"]["n"], jwk["n"], "both forms are of one key");
    assert_eq!(result["again"]["alg"], jwk["alg"]);
    let answer = result["out"].as_array().expect("a list");
    assert_eq!(answer.len(), 2 * 2 * 4, "keys, labels, plaintexts");
    for one in answer {
        let bytes = |at: usize| BASE64_STANDARD.decode(one[at].as_str().unwrap()).unwrap();
        expect_opens(&appliance, "web", &bytes(0), &bytes(2), &bytes(1));
    }
}

/// What a page has become once its scripts have run.
fn browse(page: &Path, profile: &Path) -> String {
    let mut chromium = Command::new("chromium");
    chromium.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
    chromium.args(["--disable-background-networking", "--disable-component-update"]);
    chromium.args(["--disable-sync", "--no-first-run", "--no-default-browser-check"]);
    chromium.args(["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=60000"]);
    chromium.arg(format!("--user-data-dir={}", profile.display()));
    chromium.arg("--dump-dom").arg(format!("file://{}", page.display()));
    chromium.env("HOME", profile).env_remove("DBUS_SESSION_BUS_ADDRESS");
    let shown = run(chromium, "apt-get install chromium", b"");
    String::from_utf8_lossy(&shown).into_owned()
}
