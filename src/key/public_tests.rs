//! Public keys against the RFC's vector, openssl and bad input.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use super::*;

/// A key pair that openssl made: its PEM forms, and the second opinion that opens what we encrypt.
struct Pair {
    directory: tempfile::TempDir,
    spki_pem: String,
    pkcs1_pem: String,
}

static PAIR: LazyLock<Pair> = LazyLock::new(|| pair(2048, 65_537));

fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "openssl {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

fn pair(bits: usize, exponent: u32) -> Pair {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("private.pem");
    let file = file.to_str().unwrap();
    let bits = format!("rsa_keygen_bits:{bits}");
    let exponent = format!("rsa_keygen_pubexp:{exponent}");
    let options =
        ["genpkey", "-algorithm", "RSA", "-pkeyopt", &bits, "-pkeyopt", &exponent, "-out", file];
    openssl(&options, b"");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let spki_pem = text(openssl(&["rsa", "-in", file, "-pubout"], b""));
    let pkcs1_pem = text(openssl(&["rsa", "-in", file, "-RSAPublicKey_out"], b""));
    Pair { directory, spki_pem, pkcs1_pem }
}

impl Pair {
    fn open(&self, ciphertext: &[u8], mgf1: &str, label: &[u8]) -> Vec<u8> {
        let file = self.directory.path().join("private.pem");
        let label: String = label.iter().map(|byte| format!("{byte:02x}")).collect();
        let (mgf1, label) = (format!("rsa_mgf1_md:{mgf1}"), format!("rsa_oaep_label:{label}"));
        let mut arguments = vec!["pkeyutl", "-decrypt", "-inkey", file.to_str().unwrap()];
        arguments.extend(["-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256"]);
        arguments.extend(["-pkeyopt", &mgf1, "-pkeyopt", &label]);
        openssl(&arguments, ciphertext)
    }
}

fn key() -> PublicKey {
    PublicKey::from_pem(&PAIR.spki_pem).unwrap()
}

/// RFC 7638 §3.1.
const RFC7638_N: &str = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";

fn rfc_jwk(extra: &str) -> String {
    format!(r#"{{"kty":"RSA","e":"AQAB","n":"{RFC7638_N}"{extra}}}"#)
}

#[test]
fn the_thumbprint_is_that_of_rfc_7638() {
    let key = PublicKey::from_jwk(&rfc_jwk(r#","kid":"2011-04-29""#)).unwrap();
    assert_eq!(key.kid(), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
}

#[test]
fn every_form_leads_back_to_the_same_key() {
    let key = key();
    assert_eq!(key.spki_pem(), PAIR.spki_pem);
    assert_eq!(key.pkcs1_pem(), PAIR.pkcs1_pem);
    let jwk = serde_json::to_string(&key.jwk(Mgf1Hash::Sha256)).unwrap();
    let body: String = PAIR.spki_pem.lines().filter(|line| !line.starts_with('-')).collect();
    let lines: Vec<&str> =
        body.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap()).collect();
    let wrapped = |end: &str| {
        let body = lines.join(end);
        format!("-----BEGIN PUBLIC KEY-----{end}{body}{end}-----END PUBLIC KEY-----")
    };
    let forms: Vec<Vec<u8>> = vec![
        wrapped("\n").into(),
        wrapped("").into(),
        wrapped("\\n").into(),
        format!("\u{feff}{}", PAIR.spki_pem).into(),
        format!("\u{feff}{jwk}").into(),
        PAIR.spki_pem.clone().into(),
        PAIR.pkcs1_pem.clone().into(),
        key.spki_der(),
        jwk.into(),
        PAIR.spki_pem.replace('\n', "\r\n").into(),
    ];
    for form in forms {
        assert_eq!(PublicKey::from_any(&form).unwrap(), key, "{}", String::from_utf8_lossy(&form));
    }
    assert_eq!(key.algorithm(), Algorithm::Rsa2048);
    assert_eq!(PublicKey::from_parts(&key.modulus(), &key.exponent()).unwrap(), key);
}

#[test]
fn a_jwk_names_an_algorithm_only_where_there_is_a_name() {
    let json = serde_json::to_value(key().jwk(Mgf1Hash::Sha256)).unwrap();
    assert_eq!((&json["use"], &json["alg"]), (&"enc".into(), &"RSA-OAEP-256".into()));
    assert_eq!(json["kid"], key().kid());
    let json = serde_json::to_value(key().jwk(Mgf1Hash::Sha1)).unwrap();
    assert_eq!(json.get("alg"), None);
}

#[test]
fn openssl_opens_what_was_encrypted_with_any_label() {
    let longest = vec![7u8; 190];
    for (mgf1_hash, mgf1) in [(Mgf1Hash::Sha256, "sha256"), (Mgf1Hash::Sha1, "sha1")] {
        for label in [&b""[..], b"label", b"\x00\xff\xfe not text"] {
            for plaintext in [&b""[..], b"token", &longest] {
                let ciphertext = key().encrypt(mgf1_hash, plaintext, label).unwrap();
                assert_eq!(ciphertext.len(), 256);
                assert_eq!(PAIR.open(&ciphertext, mgf1, label), plaintext, "{mgf1} {label:?}");
            }
        }
    }
}

#[test]
fn two_encryptions_of_one_text_differ() {
    let encrypt = || key().encrypt(Mgf1Hash::Sha256, b"token", b"").unwrap();
    assert_ne!(encrypt(), encrypt());
}

#[test]
fn a_plaintext_that_is_too_long_is_told_the_limit() {
    let error = key().encrypt(Mgf1Hash::Sha256, &[0; 191], b"").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the plaintext has 191 bytes; RSA-2048 with OAEP and SHA-256 holds at most 190"
    );
}

#[test]
fn weak_and_odd_sized_keys_are_refused() {
    let of = |bits, exponent| PublicKey::from_pem(&pair(bits, exponent).spki_pem);
    assert_eq!(of(1024, 65_537), Err(PublicKeyError::Size(1024)));
    assert_eq!(of(2056, 65_537), Err(PublicKeyError::Size(2056)));
    assert_eq!(of(2048, 3), Err(PublicKeyError::Exponent));
    let mut n = key().modulus();
    for exponent in [&[1u8, 0, 0][..], &[], &[2, 0, 0, 0, 1], &[255; 40]] {
        assert_eq!(PublicKey::from_parts(&n, exponent), Err(PublicKeyError::Exponent));
    }
    *n.last_mut().unwrap() &= 0xfe;
    assert_eq!(PublicKey::from_parts(&n, &[1, 0, 1]), Err(PublicKeyError::EvenModulus));
    assert_eq!(PublicKey::from_parts(&[], &[1, 0, 1]), Err(PublicKeyError::Size(0)));
}

#[test]
fn things_that_are_no_public_keys_are_told_what_they_are() {
    let private = std::fs::read(PAIR.directory.path().join("private.pem")).unwrap();
    assert_eq!(PublicKey::from_any(&private), Err(PublicKeyError::Private));
    let certificate = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert_eq!(PublicKey::from_any(certificate), Err(PublicKeyError::Certificate));
    assert_eq!(PublicKey::from_any(b"hello"), Err(PublicKeyError::UnknownForm));
    assert_eq!(PublicKey::from_any(b""), Err(PublicKeyError::UnknownForm));
    let mut der = key().spki_der();
    der.push(0);
    assert!(matches!(PublicKey::from_any(&der), Err(PublicKeyError::Malformed(_))));
    let two = format!("{0}{0}", PAIR.spki_pem);
    assert_eq!(PublicKey::from_any(two.as_bytes()), Err(PublicKeyError::SeveralBlocks));
    let more = format!("{}more", PAIR.spki_pem);
    assert_eq!(PublicKey::from_any(more.as_bytes()), Err(PublicKeyError::TrailingData));
    let wide: Vec<u8> = PAIR.spki_pem.encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(PublicKey::from_any(&wide), Err(PublicKeyError::Utf16));
    assert_eq!(PublicKey::from_any(b"ssh-rsa AAAA x"), Err(PublicKeyError::OpenSsh));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ec.pem");
    let file = file.to_str().unwrap();
    let curve = ["-pkeyopt", "ec_paramgen_curve:P-256", "-out", file];
    openssl(&[&["genpkey", "-algorithm", "EC"], &curve[..]].concat(), b"");
    let ec = openssl(&["pkey", "-in", file, "-pubout"], b"");
    assert!(matches!(PublicKey::from_any(&ec), Err(PublicKeyError::Malformed(_))));
}

#[test]
fn jwks_that_mean_something_else_are_refused() {
    let good = [
        "",
        r#","use":"enc","alg":"RSA-OAEP-256","kid":"x""#,
        r#","key_ops":["encrypt"],"ext":true"#,
        r#","key_ops":["wrapKey"],"unknown":{"a":[1]}"#,
    ];
    for extra in good {
        assert!(PublicKey::from_any(rfc_jwk(extra).as_bytes()).is_ok(), "{extra}");
    }
    let bad = [
        (r#","d":"AQAB""#, JwkError::Private),
        (r#","use":"sig""#, JwkError::Use),
        (r#","alg":"RS256""#, JwkError::Algorithm),
        (r#","alg":"RSA-OAEP""#, JwkError::Algorithm),
        (r#","key_ops":["verify"]"#, JwkError::Operations),
    ];
    for (extra, error) in bad {
        assert_eq!(PublicKey::from_jwk(&rfc_jwk(extra)), Err(error.into()), "{extra}");
    }
    let malformed = [
        rfc_jwk(r#","e":"AQAB""#),
        rfc_jwk("").replace("AQAB", "AAEAAQ"),
        rfc_jwk("").replace("AQAB", "AQAB=="),
        rfc_jwk("").replace("AQAB", ""),
        rfc_jwk("").replace("\"RSA\"", "\"EC\""),
        rfc_jwk("").replace(r#""e""#, r#""f""#),
        rfc_jwk(" trailing"),
    ];
    for json in malformed {
        assert!(PublicKey::from_jwk(&json).is_err(), "{json}");
    }
}
