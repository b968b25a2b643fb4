//! What is secret in a private key, as needles for the scanner; and core files of processes to look in.

use std::process::Command;

use rsa::BigUint;
use rsa::pkcs8::DecodePrivateKey;
use rsa::traits::{PrivateKeyParts, PublicKeyParts};

use crate::scan::{self, Needles};

/// Everything that is secret in a PKCS#8 DER, by name, in both byte orders.
pub fn needles(der: &[u8]) -> Needles {
    let mut needles = Needles::default();
    add_needles(&mut needles, "", der);
    needles
}

/// The same of one more key, whose parts go by names of their own.
pub fn add_needles(needles: &mut Needles, whose: &str, der: &[u8]) {
    let key = rsa::RsaPrivateKey::from_pkcs8_der(der).expect("an RSA key");
    let (p, q) = (&key.primes()[0], &key.primes()[1]);
    let mut add = |name: &str, part: &[u8]| needles.add(&format!("{whose}{name}"), part);
    let d: &BigUint = key.d();
    add("p", &p.to_bytes_be());
    add("q", &q.to_bytes_be());
    add("d", &d.to_bytes_be());
    add("dp", &(d % (p - 1_u8)).to_bytes_be());
    add("dq", &(d % (q - 1_u8)).to_bytes_be());
    add("qinv", &q.modpow(&(p - 2_u8), p).to_bytes_be());
    // What stands before d in PKCS#8 is public: the algorithm, n and e.
    let modulus = key.n().to_bytes_be();
    let at = der.windows(modulus.len()).position(|window| window == modulus).expect("n");
    add("pkcs8", &der[at + modulus.len() + 5..]);
    // And as text, from a boundary of three bytes on.
    let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
    let text = &text.as_bytes()[(at + modulus.len() + 7) / 3 * 4..];
    needles.add_exactly(&format!("{whose}base64"), text);
}

/// Writes a core file of a process with gdb's `gcore` and looks through it: the needles found.
pub fn core_file(pid: u32, needles: &Needles) -> Vec<String> {
    let directory = tempfile::tempdir().expect("a directory");
    let prefix = directory.path().join("core");
    let run = Command::new("gcore").arg("-o").arg(&prefix).arg(pid.to_string()).output();
    let run = run.expect("gcore runs; apt-get install gdb");
    let path = directory.path().join(format!("core.{pid}"));
    let written = path.metadata().map(|data| data.len()).unwrap_or(0);
    assert!(written > 100_000, "{}", String::from_utf8_lossy(&run.stderr));
    scan::scan_file(&path, needles).expect("a core file")
}
