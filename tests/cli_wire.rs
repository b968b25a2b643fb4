//! The real binary against a scripted peer on a real socket: what goes over the wire, and what comes out.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// What a command asked.
#[derive(Clone)]
struct Asked {
    line: String,
    headers: String,
    body: Vec<u8>,
}

impl Asked {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// A peer that answers each `METHOD path` with what is scripted for it, and remembers the questions.
struct Peer {
    _dir: tempfile::TempDir,
    socket: PathBuf,
    asked: Arc<Mutex<Vec<Asked>>>,
}

type Script = BTreeMap<&'static str, (u16, String)>;

impl Peer {
    fn new(script: &[(&'static str, u16, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let script: Script = script
            .iter()
            .map(|(line, status, body)| (*line, (*status, body.to_string())))
            .collect();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &script, &log);
            }
        });
        Self { _dir: dir, socket, asked }
    }

    fn run(&self, arguments: &[&str], stdin: &[u8]) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_strongroom"))
            .env("STRONGROOM_SOCKET", &self.socket)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that does not read its stdin closes it first.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        child.wait_with_output().unwrap()
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    fn last(&self) -> Asked {
        self.asked().pop().unwrap()
    }
}

fn answer(stream: UnixStream, script: &Script, log: &Mutex<Vec<Asked>>) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap() == 0 {
        return;
    }
    let line = line.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
    let mut headers = String::new();
    while !headers.ends_with("\r\n\r\n") && headers != "\r\n" {
        assert!(reader.read_line(&mut headers).unwrap() > 0);
    }
    let length = headers
        .lines()
        .find_map(|header| header.strip_prefix("content-length: "))
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let (status, answer) =
        script.get(line.as_str()).cloned().unwrap_or((500, format!("no script for {line}")));
    log.lock().unwrap().push(Asked { line, headers, body });
    let kind = if status < 400 { "application/json" } else { "application/problem+json" };
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\nx-request-id: rq-1\r\ncontent-length: {}\r\n\r\n",
        answer.len()
    );
    reader.get_mut().write_all(format!("{head}{answer}").as_bytes()).unwrap();
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn assert_done(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn values_come_and_go_byte_for_byte() {
    for value in [&b"sk_live\n"[..], b"no newline", b"", b"\n\n", b"\0\x1b[2J\xff\r\n"] {
        let plaintext = STANDARD.encode(value);
        let reply = json!({"plaintext": plaintext, "version": 1, "kid": "k"}).to_string();
        let peer = Peer::new(&[
            ("POST /v1/secrets/stripe/reveal", 200, &reply),
            ("PUT /v1/secrets/stripe", 201, "{}"),
        ]);
        let output = peer.run(&["secret", "reveal", "stripe"], b"");
        assert_done(&output);
        assert_eq!(output.stdout, value);
        assert!(output.stderr.is_empty());

        let output = peer.run(&["secret", "reveal", "stripe", "--output", "json"], b"");
        assert_eq!(text(&output.stdout), format!("{reply}\n"));

        let put = ["secret", "put", "stripe", "--key", "payments", "--by-daemon", "--allow-empty"];
        assert_done(&peer.run(&put, value));
        assert_eq!(peer.last().json(), json!({"key": "payments", "plaintext": plaintext}));
    }
}

#[test]
fn a_value_is_encrypted_before_it_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let (private, jwk, kid) = key_pair(dir.path());
    let script: [(&'static str, u16, &str); 2] = [
        ("GET /v1/keys/payments/public?format=jwk", 200, &jwk),
        ("PUT /v1/secrets/stripe", 201, r#"{"name":"stripe","revision":4}"#),
    ];
    let peer = Peer::new(&script);
    let put = ["secret", "put", "stripe", "--key", "payments", "--if-match", "3"];
    let output = peer.run(&put, b"canary value\n");
    assert_done(&output);
    assert!(text(&output.stderr).contains("encrypted here with key payments"));
    assert!(text(&output.stdout).contains("revision  4"));

    let asked = peer.last();
    assert!(asked.headers.contains("if-match: \"3\"\r\n"), "{}", asked.headers);
    let body = asked.json();
    assert_eq!(
        (&body["key"], &body["kid"], &body["verify"]),
        (&json!("payments"), &json!(kid), &json!(true))
    );
    let ciphertext = STANDARD.decode(body["ciphertext"].as_str().unwrap()).unwrap();
    assert_eq!(openssl_decrypt(&private, &ciphertext), b"canary value\n");
    for asked in peer.asked() {
        assert!(!text(&asked.body).contains(&STANDARD.encode("canary value\n")));
    }
}

#[test]
fn nothing_at_all_replaces_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let (_, jwk, _) = key_pair(dir.path());
    let peer = Peer::new(&[
        ("GET /v1/keys/payments/public?format=jwk", 200, &jwk),
        ("PUT /v1/secrets/stripe", 201, "{}"),
    ]);
    let put = ["secret", "put", "stripe", "--key", "payments"];
    for put in [
        &put[..],
        &[&put[..], &["--by-daemon"]].concat(),
        &[&put[..], &["--in", "/dev/null"]].concat(),
    ] {
        let output = peer.run(put, b"");
        assert_eq!(output.status.code(), Some(2), "{put:?}");
        assert!(text(&output.stderr).contains("--allow-empty"), "{}", text(&output.stderr));
        assert!(peer.asked().iter().all(|asked| !asked.line.starts_with("PUT")), "{put:?}");
    }
    assert_done(&peer.run(&[&put[..], &["--allow-empty"]].concat(), b""));
    assert!(peer.last().line.starts_with("PUT"));
}

#[test]
fn the_trail_is_asked_only_for_what_can_be_in_it() {
    let peer = Peer::new(&[(
        "GET /v1/audit?after=0&limit=500&action=key:decrypt&caller=unix:1000&resource=key/k",
        200,
        r#"{"lines":[]}"#,
    )]);
    let good = ["--action", "key:decrypt", "--caller", "unix:1000", "--resource", "key/k"];
    assert_done(&peer.run(&[&["audit", "show"][..], &good].concat(), b""));
    let before = peer.asked().len();
    let wrong = [
        ("--action", "decrypt"),
        ("--action", "key:open"),
        ("--caller", "1000"),
        ("--caller", "unix:"),
        ("--caller", "unix:alice"),
        ("--caller", ":1000"),
        ("--resource", "payments"),
        ("--resource", "keys/payments"),
    ];
    for (option, value) in wrong {
        for command in ["show", "tail"] {
            let output = peer.run(&["audit", command, option, value], b"");
            assert_eq!(output.status.code(), Some(2), "{command} {option} {value}");
        }
    }
    assert_eq!(peer.asked().len(), before);
}

#[test]
fn encrypting_offline_makes_what_openssl_opens() {
    let dir = tempfile::tempdir().unwrap();
    let (private, jwk, _) = key_pair(dir.path());
    std::fs::write(dir.path().join("key.jwk"), jwk).unwrap();
    for form in ["key.jwk", "spki.pem", "pkcs1.pem"] {
        let file = dir.path().join(form);
        let peer = Peer::new(&[]);
        let arguments = ["encrypt", "--public-key", file.to_str().unwrap()];
        let output = peer.run(&arguments, b"a token\n");
        assert_done(&output);
        let ciphertext = STANDARD.decode(text(&output.stdout).trim_end()).unwrap();
        assert_eq!(openssl_decrypt(&private, &ciphertext), b"a token\n", "{form}");

        let raw = peer.run(&[&arguments[..], &["--raw"]].concat(), b"a token\n");
        assert_eq!(openssl_decrypt(&private, &raw.stdout), b"a token\n", "{form}");
        assert!(peer.asked().is_empty(), "offline means offline");

        let long = peer.run(&arguments, &[b'x'; 191]);
        assert_eq!(long.status.code(), Some(1));
        assert!(text(&long.stderr).contains("190"), "{}", text(&long.stderr));
    }
}

#[test]
fn ciphertexts_are_taken_raw_and_in_base64() {
    let reply = json!({"plaintext": STANDARD.encode("x")}).to_string();
    let peer = Peer::new(&[("POST /v1/keys/k/decrypt", 200, &reply)]);
    let ciphertext: Vec<u8> = (0..=255).collect();
    let encoded = format!("{}\n", STANDARD.encode(&ciphertext));
    for given in [ciphertext.as_slice(), encoded.as_bytes()] {
        let output =
            peer.run(&["key", "decrypt", "k", "--version", "2", "--oaep-label", "l"], given);
        assert_done(&output);
        assert_eq!(output.stdout, b"x");
        let expected =
            json!({"ciphertext": STANDARD.encode(&ciphertext), "version": 2, "label": "bA=="});
        assert_eq!(peer.last().json(), expected);
    }
}

#[test]
fn private_keys_go_as_pem_text_or_base64_of_der() {
    let peer = Peer::new(&[("POST /v1/keys/k/import", 201, "{}")]);
    let pem = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    assert_done(&peer.run(&["key", "import", "k", "--label", "team=a"], pem));
    assert_eq!(peer.last().json(), json!({"private_key": text(pem), "labels": {"team": "a"}}));
    assert_done(&peer.run(&["key", "import", "k"], b"\x30\x82\x00"));
    assert_eq!(peer.last().json(), json!({"private_key": STANDARD.encode(b"\x30\x82\x00")}));
}

#[test]
fn a_pin_goes_without_its_line_end() {
    let peer = Peer::new(&[("POST /v1/unlock", 200, "{}")]);
    for (given, sent) in
        [(&b"1234\n"[..], "1234"), (b"1234", "1234"), (b"12\r\n", "12"), (b"12\n\n", "12")]
    {
        assert_done(&peer.run(&["unlock", "--pin-file", "-"], given));
        assert_eq!(peer.last().json(), json!({"pin": STANDARD.encode(sent)}));
    }
    assert_done(&peer.run(&["unlock"], b""));
    assert_eq!(peer.last().json(), json!({}));
    assert_eq!(peer.run(&["unlock", "--pin-file", "-"], b"\n").status.code(), Some(2));
}

#[test]
fn changes_of_state_say_what_they_are_about() {
    let peer = Peer::new(&[
        ("DELETE /v1/keys/k", 200, "{}"),
        ("POST /v1/keys/k/suspend", 200, "{}"),
        ("DELETE /v1/secrets/s", 204, ""),
    ]);
    let destroy =
        ["key", "destroy", "k", "--version", "1", "--after", "2w", "--reason", "superseded"];
    assert_eq!(peer.run(&destroy, b"yes\n").status.code(), Some(2), "nobody confirmed it");
    assert!(peer.asked().is_empty());
    assert_done(&peer.run(&[&destroy[..], &["--yes"]].concat(), b""));
    let expected = json!({"version": 1, "reason": "superseded", "waiting_period_days": 14});
    assert_eq!(peer.last().json(), expected);
    assert_done(&peer.run(&["key", "suspend", "k"], b""));
    assert_eq!(peer.last().json(), json!({}));
    let asked = peer.asked().len();
    for unconfirmed in [
        &["secret", "delete", "s"][..],
        &["key", "compromise", "k"],
        &["key", "deactivate", "k", "--version", "1"],
        &["master", "retire", "1"],
        &["recovery", "forget"],
    ] {
        let output = peer.run(unconfirmed, b"yes\n");
        assert_eq!(output.status.code(), Some(2), "{unconfirmed:?}");
        assert!(text(&output.stderr).contains("--yes"), "{unconfirmed:?}");
    }
    assert_eq!(peer.asked().len(), asked, "nothing was asked of the daemon");
    assert_done(&peer.run(&["secret", "delete", "s", "--yes"], b""));
    assert_eq!(peer.last().line, "DELETE /v1/secrets/s");
}

#[test]
fn a_secret_is_replaced_only_once_somebody_agreed() {
    let exists = r#"{"type":"about:blank","title":"Precondition Failed","status":412,
        "detail":"the secret exists","code":"precondition-failed","request_id":"rq-2"}"#;
    let put = ["secret", "put", "s", "--key", "k", "--by-daemon"];
    let peer = Peer::new(&[("PUT /v1/secrets/s", 412, exists)]);
    let output = peer.run(&put, b"value");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--yes"), "{}", text(&output.stderr));
    assert_eq!(peer.asked().len(), 1);
    assert!(peer.last().headers.contains("if-none-match: *\r\n"), "{}", peer.last().headers);
    let peer = Peer::new(&[("PUT /v1/secrets/s", 200, "{}")]);
    assert_done(&peer.run(&[&put[..], &["--yes"]].concat(), b"value"));
    assert!(!peer.last().headers.contains("if-none-match"), "{}", peer.last().headers);
}

#[test]
fn a_refusal_is_told_with_its_next_step() {
    let problem = r#"{"type":"about:blank","title":"Forbidden","status":403,
        "detail":"the policy does not allow key:decrypt","code":"forbidden","request_id":"rq-9"}"#;
    let peer = Peer::new(&[("POST /v1/keys/k/decrypt", 403, problem)]);
    let output = peer.run(&["key", "decrypt", "k"], b"AAAA");
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let said = text(&output.stderr);
    for part in ["does not allow key:decrypt", "\n  next: ", "request rq-9 (forbidden)"] {
        assert!(said.contains(part), "{said}");
    }
    let output = peer.run(&["key", "decrypt", "k", "--output", "json"], b"AAAA");
    let document: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(document["request_id"], "rq-9");
}

#[test]
fn lists_are_read_to_their_end() {
    let peer = Peer::new(&[
        ("GET /v1/keys?limit=200", 200, r#"{"keys":[{"name":"a","state":"active"}],"next":"a"}"#),
        ("GET /v1/keys?limit=200&after=a", 200, r#"{"keys":[{"name":"bb","state":"suspended"}]}"#),
    ]);
    let listed = text(&peer.run(&["key", "list"], b"").stdout);
    let names: Vec<&str> = listed.lines().filter_map(|l| l.split_whitespace().next()).collect();
    assert_eq!(names, ["NAME", "a", "bb"]);
    let output = peer.run(&["key", "list", "--output", "json"], b"");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["keys"].as_array().unwrap().len(), 2);
}

#[test]
fn a_doctor_that_finds_something_ends_with_one() {
    let report = r#"{"checks":[{"name":"token","result":"ok"},
        {"name":"clock","result":"fail","detail":"not set","setting":"NTP= in timesyncd.conf"}]}"#;
    let peer = Peer::new(&[("GET /v1/doctor", 200, report)]);
    let output = peer.run(&["doctor"], b"");
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stdout);
    let expected =
        "ok    token\nFAIL  clock\n      found: not set\n      do:    NTP= in timesyncd.conf\n";
    assert_eq!(said, expected);
}

#[test]
fn exported_lines_keep_their_bytes() {
    let lines =
        [r#"{"seq":1,"time":"2026-01-01T00:00:00Z","b":1,"a":1.50}"#, r#"{"seq":2,"x":"é\u00e9"}"#];
    let first = format!(r#"{{"lines":[{}],"next":1}}"#, lines[0]);
    // The peer calls every exchange rq-1: this one is still under way.
    let own = r#"{"seq":3,"kind":"intent","request":"rq-1"}"#;
    let second = format!(r#"{{"lines":[{},{own}]}}"#, lines[1]);
    let peer = Peer::new(&[
        ("GET /v1/audit?after=0&limit=500", 200, &first),
        ("GET /v1/audit?after=1&limit=500", 200, &second),
        ("GET /v1/audit/public-key", 200, "-----BEGIN PUBLIC KEY-----\n"),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("trail.pem");
    let export = [
        "audit",
        "export",
        "--to",
        dir.path().to_str().unwrap(),
        "--public-key",
        key.to_str().unwrap(),
    ];
    assert_done(&peer.run(&export, b""));
    let written = std::fs::read_to_string(dir.path().join("trail.jsonl")).unwrap();
    assert_eq!(written, format!("{}\n{}\n", lines[0], lines[1]));
    assert_eq!(std::fs::read_to_string(&key).unwrap(), "-----BEGIN PUBLIC KEY-----\n");
    let again = peer.run(&export, b"");
    assert_eq!(again.status.code(), Some(1), "nothing is overwritten");

    let shown = peer.run(&["audit", "show", "--all", "--output", "json"], b"");
    assert_eq!(text(&shown.stdout), format!("{written}{own}\n"));
}

/// A key pair of openssl's making: the path of the private key, the JWK, its thumbprint; the public key
/// lies beside it as `spki.pem` and `pkcs1.pem`.
fn key_pair(dir: &std::path::Path) -> (PathBuf, String, String) {
    let private = dir.join("private.pem");
    openssl(&["genrsa", "-out", private.to_str().unwrap(), "2048"], b"");
    let private_text = private.to_str().unwrap();
    let spki = openssl(&["rsa", "-in", private_text, "-pubout"], b"");
    let pkcs1 = openssl(&["rsa", "-in", private_text, "-RSAPublicKey_out"], b"");
    std::fs::write(dir.join("spki.pem"), &spki).unwrap();
    std::fs::write(dir.join("pkcs1.pem"), &pkcs1).unwrap();
    let modulus = text(&openssl(&["rsa", "-in", private_text, "-noout", "-modulus"], b""));
    let hex = modulus.trim_end().trim_start_matches("Modulus=").as_bytes();
    let modulus: Vec<u8> = hex
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    let url = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let n = url.encode(modulus);
    let canonical = format!(r#"{{"e":"AQAB","kty":"RSA","n":"{n}"}}"#);
    let kid = url.encode(openssl(&["dgst", "-sha256", "-binary"], canonical.as_bytes()));
    let jwk =
        json!({"kty": "RSA", "use": "enc", "alg": "RSA-OAEP-256", "kid": kid, "n": n, "e": "AQAB"});
    (private, jwk.to_string(), kid)
}

fn openssl_decrypt(private: &std::path::Path, ciphertext: &[u8]) -> Vec<u8> {
    let options = ["rsa_padding_mode:oaep", "rsa_oaep_md:sha256", "rsa_mgf1_md:sha256"];
    let mut arguments = vec!["pkeyutl", "-decrypt", "-inkey", private.to_str().unwrap()];
    for option in options {
        arguments.extend(["-pkeyopt", option]);
    }
    openssl(&arguments, ciphertext)
}

fn openssl(arguments: &[&str], stdin: &[u8]) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}: {}", text(&output.stderr));
    output.stdout
}

/// What a shell is offered for the last of these words.
fn offered(peer: &Peer, shell: &str, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_strongroom"))
        .env("STRONGROOM_SOCKET", &peer.socket)
        .env("STRONGROOM_COMPLETE", shell)
        .env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string())
        .env("_CLAP_IFS", "\n")
        .arg("--")
        .args(words)
        .output()
        .unwrap()
}

#[test]
fn names_of_keys_and_secrets_are_completed_and_nothing_is_said_where_nobody_answers() {
    let keys =
        r#"{"keys":[{"name":"payments"},{"name":"pay\u001b[2J"},{"name":"other"}],"next":"x"}"#;
    let more = r#"{"keys":[{"name":"payroll"}]}"#;
    let secrets = r#"{"secrets":[{"name":"stripe"},{"name":"mail"}]}"#;
    let peer = Peer::new(&[
        ("GET /v1/keys?limit=200", 200, keys),
        ("GET /v1/keys?limit=200&after=x", 200, more),
        ("GET /v1/secrets?limit=200", 200, secrets),
    ]);
    let words = |output: &Output| -> Vec<String> {
        let text = text(&output.stdout);
        text.lines().map(|line| line.split(['\t', ':']).next().unwrap().to_owned()).collect()
    };
    for shell in ["bash", "zsh", "fish"] {
        let key = |words_: &[&str]| words(&offered(&peer, shell, words_));
        assert_eq!(key(&["strongroom", "key", "show", "pay"]), ["payments", "payroll"], "{shell}");
        assert_eq!(key(&["strongroom", "key", "destroy", "oth"]), ["other"], "{shell}");
        assert_eq!(key(&["strongroom", "secret", "reveal", "st"]), ["stripe"], "{shell}");
        let under = ["strongroom", "secret", "put", "new", "--key", "payr"];
        assert_eq!(key(&under), ["payroll"], "{shell}");
    }
    let gone = Peer::new(&[]);
    std::fs::remove_file(&gone.socket).unwrap();
    let output = offered(&gone, "bash", &["strongroom", "key", "show", "pay"]);
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{}", text(&output.stderr));
    let refusing = Peer::new(&[("GET /v1/keys?limit=200", 403, r#"{"title":"No"}"#)]);
    let output = offered(&refusing, "bash", &["strongroom", "key", "show", "pay"]);
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{}", text(&output.stderr));
}

/// The script of `completions bash`, in a real bash.
#[test]
fn bash_completes_a_name_with_the_shipped_script() {
    let peer = Peer::new(&[("GET /v1/keys?limit=200", 200, r#"{"keys":[{"name":"payments"}]}"#)]);
    let program = PathBuf::from(env!("CARGO_BIN_EXE_strongroom"));
    let path =
        format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let script = "source <(strongroom completions bash)
        COMP_WORDS=(strongroom key show pa) COMP_CWORD=3 COMP_TYPE=9
        _clap_complete_strongroom strongroom pa show
        printf '%s\n' \"${COMPREPLY[@]}\"";
    let output = Command::new("bash")
        .args(["-c", script])
        .env("PATH", path)
        .env("STRONGROOM_SOCKET", &peer.socket)
        .output()
        .unwrap();
    assert_eq!(text(&output.stdout).trim(), "payments", "{}", text(&output.stderr));
}

#[test]
fn colours_are_for_terminals_and_for_who_asks_for_them() {
    let report = r#"{"checks":[{"name":"clock","result":"fail","detail":"a\u001b[2Jb"}]}"#;
    let peer = Peer::new(&[("GET /v1/doctor", 200, report)]);
    let said = |arguments: &[&str]| text(&peer.run(&[&["doctor"], arguments].concat(), b"").stdout);
    assert!(!said(&[]).contains('\u{1b}'), "stdout is no terminal");
    assert!(!said(&["--color", "never"]).contains('\u{1b}'));
    let coloured = said(&["--color", "always"]);
    assert!(coloured.starts_with("\u{1b}[31mFAIL \u{1b}[0m"), "{coloured}");
    assert!(!coloured.contains("\u{1b}[2J"), "what the daemon says drives nothing: {coloured}");
    let json = said(&["--color", "always", "--output", "json"]);
    assert!(!json.contains('\u{1b}'), "{json}");
}
