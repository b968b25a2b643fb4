//! Fills an appliance through its socket: the same private key under many names, the same ciphertext in
//! many secrets.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::json;

use crate::appliance::Appliance;

/// Callers at the same time: enough that many changes share one sync.
const CALLERS: usize = 48;

/// The name of the thing with this number; they are listed in the order of their numbers.
pub fn name(kind: &str, number: usize) -> String {
    format!("{kind}{number:07}")
}

/// Imports one private key under `many` names.
pub fn keys(appliance: &Appliance, many: usize) {
    let generated = Command::new("openssl").args(["genrsa", "2048"]).output();
    let pem = String::from_utf8(generated.expect("openssl is installed").stdout).expect("PEM");
    let body = json!({ "private_key": pem }).to_string();
    fill(appliance, "keys", many, |number| {
        request("POST", &format!("/v1/keys/{}/import", name("k", number)), &body)
    });
}

/// Stores one ciphertext as `many` secrets.
pub fn secrets(appliance: &Appliance, many: usize) {
    let plaintext = json!({ "plaintext": "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=" });
    let encrypted = appliance.post("/v1/keys/bench/encrypt", &plaintext);
    let ciphertext = encrypted.expect_status(200).json()["ciphertext"].clone();
    let body = json!({ "key": "bench", "ciphertext": ciphertext }).to_string();
    fill(appliance, "secrets", many, |number| {
        request("PUT", &format!("/v1/secrets/{}", name("s", number)), &body)
    });
}

fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: strongroom\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Sends `many` requests, each of which has to be answered by a 201.
fn fill(appliance: &Appliance, what: &str, many: usize, request: impl Fn(usize) -> Vec<u8> + Sync) {
    let started = Instant::now();
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= many {
                return;
            }
            let mut stream = UnixStream::connect(appliance.socket()).expect("connects");
            stream.write_all(&request(number)).expect("sent");
            let mut reply = Vec::new();
            stream.read_to_end(&mut reply).expect("received");
            let text = String::from_utf8_lossy(&reply);
            assert!(text.starts_with("HTTP/1.1 201 "), "{what} {number}: {text}");
            if number % 20_000 == 19_999 {
                let seconds = started.elapsed().as_secs_f64();
                println!("{} {what} stored, {:.0}/s", number + 1, number as f64 / seconds);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(work);
        }
    });
}
