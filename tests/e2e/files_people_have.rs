//! Files as people really have them: PIN files, public and private keys.

use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use rsa::pkcs8::DecodePrivateKey;
use rsa::traits::{PrivateKeyParts, PublicKeyParts};
use serde_json::{Value, json};

use crate::acts::{one_try_was_wrong, pin_tries};
use crate::appliance::Appliance;
use crate::checks::{b64, seen, unb64};
use crate::token::{PIN, write_private};

/// Runs a command of the system on `input`; its stdout.
fn run(command: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", command[0]));
    let _ = child.stdin.take().expect("piped").write_all(input);
    let output = child.wait_with_output().expect("waits");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {said}");
    output.stdout
}

/// Runs a command line of an error's advice on a file, in a directory of its own.
fn advised(command: &str, file: &Path) {
    let command = command.replace("FILE", &file.display().to_string());
    let mut shell = Command::new("sh");
    shell.args(["-c", &command]).current_dir(file.parent().expect("a directory"));
    let output = shell.output().expect("it starts");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// `strongroom doctor --config`.
fn doctor(appliance: &Appliance, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
    command.args(["doctor", "--config"]).arg(appliance.config_file()).args(arguments);
    let output = command.envs([appliance.token().environment()]).output().expect("it starts");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_line_end_is_no_part_of_a_pin_and_what_no_pin_has_costs_no_try() {
    let mut appliance = Appliance::new();
    appliance.stop();
    let file = appliance.token().pin_file();
    for end in ["\r\n", "\n\n", "\r\n\r\n", ""] {
        write_private(&file, &format!("{PIN}{end}"));
        let (code, text) = doctor(&appliance, &["--login"]);
        assert!(code == Some(0) && text.contains("template as required"), "{end:?}: {text}");
    }
    write_private(&file, &format!("{PIN}\r\n"));
    appliance.start();
    appliance.wait_for_state("ready");
    appliance.stop();
    let before = pin_tries(&appliance);
    for (content, named) in [
        (format!("\u{feff}{PIN}\n"), "byte order mark"),
        (format!("{PIN}\nstrongroom\n"), "more than one line"),
        (format!("{PIN}\0"), "zero byte"),
        (format!("{PIN}\u{7}"), "control character"),
    ] {
        write_private(&file, &content);
        let (code, text) = doctor(&appliance, &["--login"]);
        assert!(code == Some(1) && text.contains(named) && !text.contains(PIN), "{named}: {text}");
    }
    assert_eq!(pin_tries(&appliance), before, "the token was asked");
    assert!(!one_try_was_wrong(&appliance));
    // The same for a PIN that is typed or sent.
    write_private(&file, PIN);
    appliance.start();
    appliance.wait_for_state("ready");
    appliance.post("/v1/lock", &json!({})).expect_status(200);
    let refused = appliance.post("/v1/unlock", &json!({"pin": b64(format!("{PIN}\nx"))}));
    refused.expect_problem(400, "invalid");
    let typed = appliance.cli_with(&["unlock", "--pin-file", "-"], b"\xef\xbb\xbf1234");
    let said = String::from_utf8_lossy(&typed.stderr).into_owned();
    assert!(!typed.status.success() && said.contains("byte order mark"), "{said}");
    assert!(!one_try_was_wrong(&appliance));
    let with_end = json!({"pin": b64(format!("{PIN}\r\n"))});
    appliance.post("/v1/unlock", &with_end).expect_status(200);
}

#[test]
fn a_secret_of_kubernetes_is_a_pin_file_and_its_mode_is_named_where_it_is_wrong() {
    let mut appliance = Appliance::new();
    appliance.stop();
    let secret = appliance.path("secret");
    let version = secret.join("..2026_11_30");
    std::fs::create_dir_all(&version).expect("made");
    std::fs::write(version.join("pin"), format!("{PIN}\n")).expect("written");
    symlink("..2026_11_30", secret.join("..data")).expect("linked");
    symlink("..data/pin", secret.join("pin")).expect("linked");
    appliance.change_config(|config| {
        let token = config["token"].as_table_mut().expect("a table");
        token.insert("pin_file".into(), secret.join("pin").display().to_string().into());
    });
    let set_mode = |mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(version.join("pin"), mode).expect("chmod");
    };
    set_mode(0o644);
    let (code, text) = doctor(&appliance, &[]);
    let real = version.join("pin").display().to_string();
    assert!(code == Some(1) && text.contains("mode 0644") && text.contains(&real), "{text}");
    // Root's, of a group of this process.
    set_mode(0o440);
    let (code, text) = doctor(&appliance, &["--login"]);
    assert!(code == Some(0) && text.contains("template as required"), "{text}");
    assert!(text.contains("whoever is in the group"), "{text}");
    appliance.start();
    appliance.wait_for_state("ready");
}

/// A key pair: its private half as PEM and as DER.
fn rsa() -> (String, Vec<u8>) {
    let pem = run(&["openssl", "genrsa", "2048"], b"");
    let der = run(&["openssl", "pkcs8", "-topk8", "-nocrypt", "-outform", "DER"], &pem);
    (String::from_utf8(pem).expect("PEM"), der)
}

fn import(appliance: &Appliance, name: &str, key: &str) -> crate::appliance::Reply {
    appliance.post(&format!("/v1/keys/{name}/import"), &json!({ "private_key": key }))
}

/// PEM of the same block in other forms.
fn forms(pem: &str) -> Vec<(&'static str, String)> {
    let lines: Vec<&str> = pem.lines().collect();
    let (first, last) = (lines[0], lines[lines.len() - 1]);
    let body = lines[1..lines.len() - 1].concat();
    let wide: Vec<&str> =
        body.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).expect("text")).collect();
    vec![
        ("columns-76", format!("{first}\n{}\n{last}\n", wide.join("\n"))),
        ("one-line", format!("{first}{body}{last}")),
        ("spaces", lines.join(" ")),
        ("literal", lines.join("\\n")),
        ("quoted", format!("\"{}\\n\"", lines.join("\\n"))),
        ("bom", format!("\u{feff}{pem}")),
        ("crlf", pem.replace('\n', "\r\n")),
        ("text-before", format!("Bag Attributes\n    friendlyName: x\n{pem}")),
    ]
}

#[test]
fn keys_in_pem_of_every_form_are_taken_everywhere() {
    let appliance = Appliance::new();
    let (private, _) = rsa();
    let public = run(&["openssl", "pkey", "-pubout"], private.as_bytes());
    let public = String::from_utf8(public).expect("PEM");
    for (name, form) in forms(&private) {
        import(&appliance, name, &form).expect_status(201);
        let file = appliance.path(&format!("{name}.private"));
        write_private(&file, &form);
        let file = file.display().to_string();
        let by_cli = format!("cli-{name}");
        let said = appliance.cli(&["key", "import", &by_cli, "--in", &file]);
        assert!(said.status.success(), "{name}: {}", String::from_utf8_lossy(&said.stderr));
    }
    for (name, form) in forms(&public) {
        let file = appliance.path(&format!("{name}.public"));
        std::fs::write(&file, &form).expect("written");
        let file = file.display().to_string();
        let arguments = ["encrypt", "--public-key", &file, "--in", "-"];
        let made = appliance.cli_with(&arguments, b"token");
        assert!(made.status.success(), "{name}: {}", String::from_utf8_lossy(&made.stderr));
        let made = String::from_utf8(made.stdout).expect("base64");
        let opened = appliance.post("/v1/keys/bom/decrypt", &json!({ "ciphertext": made.trim() }));
        assert_eq!(unb64(&opened.expect_status(200).json()["plaintext"]), b"token", "{name}");
    }
    let recovery = run(&["openssl", "genrsa", "4096"], b"");
    let recovery = run(&["openssl", "pkey", "-pubout"], &recovery);
    for (name, form) in forms(&String::from_utf8(recovery).expect("PEM")) {
        let reply = appliance.put("/v1/recovery", &json!({ "public_key": form }));
        // It is read, and held against custody's, which is configured with none.
        reply.expect_problem(409, "recovery-key");
        assert!(reply.json()["detail"].to_string().contains("names none"), "{name}");
    }
}

#[test]
fn the_trails_public_key_is_taken_in_every_form() {
    let mut appliance = Appliance::new();
    let key = appliance.get("/v1/audit/public-key").expect_status(200).text();
    appliance.stop();
    let trail = appliance.trail().display().to_string();
    for (name, form) in forms(&key) {
        let file = appliance.path("audit.pem");
        std::fs::write(&file, &form).expect("written");
        let file = file.display().to_string();
        let verified = appliance.cli(&["audit", "verify", "--dir", &trail, "--public-key", &file]);
        assert!(verified.status.success(), "{name}: {}", String::from_utf8_lossy(&verified.stderr));
    }
}

#[test]
fn the_command_that_a_refused_private_key_is_told_converts_it() {
    let appliance = Appliance::new();
    let (pem, der) = rsa();
    let directory = appliance.path("converted");
    std::fs::create_dir(&directory).expect("made");
    let at = |name: &str| directory.join(name);
    let text = |name: &str| at(name).display().to_string();
    write_private(&at("plain.pem"), &pem);
    write_private(&at("openssh"), &pem);
    run(&["ssh-keygen", "-q", "-p", "-N", "", "-f", &text("openssh")], b"");
    let subject = ["-x509", "-new", "-subj", "/CN=x", "-days", "2", "-out", &text("cert.pem")];
    run(&[&["openssl", "req", "-key", &text("plain.pem")], &subject[..]].concat(), b"");
    let mut export = vec!["openssl", "pkcs12", "-export", "-passout", "pass:x"];
    let (key, certificate, archive) = (text("plain.pem"), text("cert.pem"), text("key.p12"));
    export.extend(["-inkey", &key, "-in", &certificate, "-out", &archive]);
    run(&export, b"");
    let bits = ["-pkeyopt", "rsa_keygen_bits:2048"];
    let pss = run(&[&["openssl", "genpkey", "-algorithm", "RSA-PSS"], &bits[..]].concat(), b"");
    let narrow = ["-pkeyopt", "rsa_pss_keygen_md:sha256", "-pkeyopt", "rsa_pss_keygen_saltlen:32"];
    let arguments = [&["openssl", "genpkey", "-algorithm", "RSA-PSS"], &bits[..], &narrow].concat();
    let narrow_pss = run(&arguments, b"");
    let encrypted = run(&["openssl", "pkcs8", "-topk8", "-passout", "pass:x"], pem.as_bytes());
    let together = [pem.as_bytes(), &std::fs::read(at("cert.pem")).expect("there")].concat();
    for (name, made, found, result) in [
        ("openssh", std::fs::read(at("openssh")).expect("there"), "OpenSSH", "openssh"),
        ("key.p12", std::fs::read(at("key.p12")).expect("there"), "PKCS#12", "key.pem"),
        ("pss", pss, "RSA-PSS", "key.der"),
        ("narrow", narrow_pss, "RSA-PSS", "key.der"),
        ("encrypted", encrypted, "encrypted", "key.pem"),
        ("together", together, "more than one", "key.pem"),
    ] {
        std::fs::write(at(name), &made).expect("written");
        std::fs::set_permissions(at(name), PermissionsExt::from_mode(0o600)).expect("chmod");
        let kept = at(name).display().to_string();
        let refused = appliance.cli(&["key", "import", "converted", "--in", &kept]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(found), "{name}: {said}");
        let command = said.split('`').nth(1).unwrap_or_else(|| panic!("no command: {said}"));
        // What a person types in answer to a question: the password.
        let command = match name {
            "key.p12" => command.replace("pkcs12", "pkcs12 -passin pass:x"),
            "encrypted" => command.replace("pkey", "pkey -passin pass:x"),
            _ => command.to_owned(),
        };
        advised(&command, &at(name));
        let result = at(result).display().to_string();
        let key = format!("from-{}", name.replace('.', "-"));
        let taken = appliance.cli(&["key", "import", &key, "--in", &result]);
        assert!(taken.status.success(), "{name}: {}", String::from_utf8_lossy(&taken.stderr));
        appliance.delete(&format!("/v1/keys/{key}"), &json!({})).expect_status(200);
    }
    let before = seen(&appliance);
    // What no command converts says so.
    let primes = ["-pkeyopt", "rsa_keygen_primes:3"];
    let arguments = [&["openssl", "genpkey", "-algorithm", "RSA"], &bits[..], &primes].concat();
    let multi_prime = run(&arguments, b"");
    let certificate = std::fs::read(at("cert.pem")).expect("there");
    let certificate_der = run(&["openssl", "x509", "-outform", "DER"], &certificate);
    let public_der = run(&["openssl", "pkey", "-pubout", "-outform", "DER"], &der);
    for (made, found) in [
        (multi_prime, "multi-prime"),
        (certificate, "a certificate"),
        (certificate_der, "a certificate"),
        (public_der, "a public key"),
        (pem.encode_utf16().flat_map(u16::to_le_bytes).collect(), "UTF-16"),
    ] {
        let reply = import(&appliance, "x", &b64(&made));
        let detail = reply.expect_problem(422, "bad-key").json()["detail"].to_string();
        assert!(detail.contains(found), "{found}: {detail}");
    }
    assert_eq!(seen(&appliance), before);
}

/// The members of a private JWK.
fn jwk(der: &[u8]) -> Value {
    let key = rsa::RsaPrivateKey::from_pkcs8_der(der).expect("a key");
    let number = |number: &rsa::BigUint| BASE64_URL_SAFE_NO_PAD.encode(number.to_bytes_be());
    let (p, q) = (&key.primes()[0], &key.primes()[1]);
    let one = rsa::BigUint::from(1_u8);
    let inverse = key.crt_coefficient().expect("two primes");
    json!({
        "kty": "RSA", "n": number(key.n()), "e": number(key.e()), "d": number(key.d()),
        "p": number(p), "q": number(q), "dp": number(&(key.d() % (p - &one))),
        "dq": number(&(key.d() % (q - &one))), "qi": number(&inverse),
    })
}

#[test]
fn a_private_jwk_is_taken_and_one_that_is_not_whole_is_named() {
    let appliance = Appliance::new();
    let (pem, der) = rsa();
    let whole = jwk(&der);
    let with = |change: &dyn Fn(&mut Value)| {
        let mut other = whole.clone();
        change(&mut other);
        other.to_string()
    };
    import(&appliance, "pem", &pem).expect_status(201);
    import(&appliance, "jwk", &whole.to_string()).expect_status(201);
    let pretty = serde_json::to_string_pretty(&whole).expect("written");
    import(&appliance, "pretty", &format!("\u{feff}{pretty}\n")).expect_status(201);
    let more = with(&|jwk| {
        jwk["use"] = "enc".into();
        jwk["alg"] = "RSA-OAEP-256".into();
        jwk["kid"] = "2026".into();
    });
    let file = appliance.path("key.jwk");
    write_private(&file, &more);
    let said = appliance.cli(&["key", "import", "cli", "--in", &file.display().to_string()]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let kid = |name: &str| appliance.get(&format!("/v1/keys/{name}/public")).json()["kid"].clone();
    for name in ["jwk", "pretty", "cli"] {
        assert_eq!(kid(name), kid("pem"), "{name}");
    }
    let without =
        |member: &str| with(&|jwk| drop(jwk.as_object_mut().expect("an object").remove(member)));
    let set = |member: &str, value: &str| with(&|jwk| jwk[member] = value.into());
    for (key, found) in [
        (without("d"), "a public key"),
        (without("qi"), "lacks"),
        (without("n"), "lacks"),
        (set("kty", "EC"), "not an RSA"),
        (set("use", "sig"), "another use"),
        (set("alg", "RS256"), "another use"),
        (set("oth", "x"), "multi-prime"),
        (set("p", "AQ=="), "not a JWK"),
        (set("p", "AAEA"), "not a JWK"),
        (set("d", whole["p"].as_str().expect("text")), "belong together"),
        ("{}".to_owned(), "not a JWK"),
    ] {
        let reply = import(&appliance, "x", &key);
        let detail = reply.expect_problem(422, "bad-key").json()["detail"].to_string();
        assert!(detail.contains(found), "{found}: {detail}");
    }
}
