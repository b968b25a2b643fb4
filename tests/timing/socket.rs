//! Over the socket: the real daemon, with the front, the trail and the process boundary between.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine};
use rsa::pkcs8::DecodePublicKey;
use serde_json::json;

use crate::appliance::{Appliance, PATIENCE};
use crate::kinds::{KINDS, ciphertexts};
use crate::welch::Dice;
use crate::{Effort, burn, judge};

/// A directory in memory: what the disk takes for the trail is not what is measured here.
fn quick_directory() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("strongroom-").tempdir_in(parent).expect("a directory")
}

fn with_key(trail: &std::path::Path) -> (Appliance, rsa::RsaPublicKey) {
    let appliance = Appliance::configured(|config| {
        config["audit"]["directory"] = trail.join("trail").display().to_string().into();
        config["log"]["level"] = "info".into();
    });
    appliance.post("/v1/init", &json!({})).expect_status(201);
    let public = rsa::RsaPublicKey::from_public_key_pem(&appliance.create_key("k"));
    (appliance, public.expect("an SPKI"))
}

/// A decryption as it goes over the wire.
fn request(ciphertext: &[u8], connection: &str) -> Vec<u8> {
    let body = json!({ "ciphertext": BASE64_STANDARD.encode(ciphertext) }).to_string();
    let head = format!(
        "POST /v1/keys/k/decrypt HTTP/1.1\r\nhost: strongroom\r\nconnection: {connection}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head, body].concat().into_bytes()
}

#[test]
fn all_failures_have_the_same_bytes() {
    let directory = quick_directory();
    let (appliance, public) = with_key(directory.path());
    let mut kinds: Vec<(String, Vec<u8>)> = KINDS
        .iter()
        .flat_map(|(kind, name)| {
            ciphertexts(*kind, &public, 2).into_iter().map(|c| ((*name).to_owned(), c))
        })
        .collect();
    // Lengths that this key has not; the last is longer than any key's.
    for length in [0, 1, 255, 257, 512, 513, 4096] {
        kinds.push((format!("{length} bytes"), vec![7; length]));
    }
    let mut replies: BTreeMap<(u16, Vec<String>, String), Vec<String>> = BTreeMap::new();
    for (name, ciphertext) in &kinds {
        let reply = appliance.raw(&request(ciphertext, "close"));
        let text = String::from_utf8(reply).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        let (line, headers) = head.split_once("\r\n").expect("a status");
        let mut body: serde_json::Value = serde_json::from_str(body).expect("JSON");
        let id = body["request_id"].take();
        assert_eq!(id.as_str().map(str::len), Some(36), "{name}");
        let own = |line: &&str| !line.starts_with("x-request-id: ") && !line.starts_with("date: ");
        let headers = headers.split("\r\n").filter(own).map(str::to_owned).collect();
        let status = line.split(' ').nth(1).expect("a number").parse().expect("a number");
        replies.entry((status, headers, body.to_string())).or_default().push(name.clone());
    }
    assert_eq!(replies.len(), 1, "{replies:#?}");
    let ((status, _, body), _) = replies.first_key_value().expect("one");
    assert!(*status == 422 && body.contains("\"decryption-failed\""), "{status} {body}");

    // As items of one request, too, and in the trail.
    let items: Vec<_> = kinds
        .iter()
        .map(|(_, ciphertext)| json!({ "ciphertext": BASE64_STANDARD.encode(ciphertext) }))
        .collect();
    let reply = appliance.post("/v1/keys/k/decrypt", &json!({ "items": items })).json();
    let items = reply["items"].as_array().expect("items");
    assert!(items.windows(2).all(|pair| pair[0] == pair[1]), "{reply}");
}

#[test]
fn over_the_socket_all_failures_take_the_same_time() {
    let effort = Effort::of_this_run();
    let (leak, pool) = if effort.strict {
        (Duration::from_micros(20), 128)
    } else {
        (Duration::from_micros(1500), 8)
    };
    let directory = quick_directory();
    let (appliance, public) = with_key(directory.path());
    let requests = |kind| -> Vec<Vec<u8>> {
        let all = ciphertexts(kind, &public, pool);
        all.iter().map(|ciphertext| request(ciphertext, "keep-alive")).collect()
    };
    let mut pools: Vec<_> = KINDS.iter().map(|(kind, _)| requests(*kind)).collect();
    let mut names: Vec<_> = KINDS.iter().map(|(_, name)| *name).collect();
    pools.push(requests(KINDS[1].0));
    names.push("PLANTED");
    let (planted, mut dice) = (names.len() - 1, Dice::new());
    let mut stream = UnixStream::connect(appliance.socket()).expect("connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut sent = pools[0][0].clone();
    judge("socket", &names, leak, |kind| {
        sent.copy_from_slice(&pools[kind][dice.below(pool)]);
        let begun = Instant::now();
        stream.write_all(&sent).expect("written");
        let status = answer(&mut stream);
        if kind == planted {
            burn(leak);
        }
        let elapsed = begun.elapsed();
        assert_eq!(status, *b"422");
        elapsed.as_nanos() as f64
    });
}

/// Reads a whole answer; its status.
fn answer(stream: &mut UnixStream) -> [u8; 3] {
    let (mut bytes, mut filled) = ([0; 4096], 0);
    loop {
        let read = stream.read(&mut bytes[filled..]).expect("an answer");
        assert!(read > 0, "the daemon hung up");
        filled += read;
        let text = std::str::from_utf8(&bytes[..filled]).expect("text");
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.expect("a length").parse().expect("a number");
        if body.len() >= length {
            return bytes[9..12].try_into().expect("a status");
        }
    }
}
