//! The token is lost: what was wrapped to the recovery key opens with its private half, which openssl
//! made and no daemon has seen, and service comes back under a new token.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::acts::{base64, decrypt, encrypt, events, expect_plaintext, put_secret, reveal, step};
use crate::appliance::Appliance;
use crate::raw_store::{APPLIANCE, Raw, address};
use crate::rotation::{import_keys, wait_for_rotation};
use crate::token::TestToken;

/// A pair of openssl's: the files of the private and of the public half.
pub fn pair(directory: &Path, name: &str, bits: u32) -> (PathBuf, PathBuf) {
    let file = |suffix: &str| directory.join(format!("{name}.{suffix}"));
    let (private, public) = (file("key"), file("pem"));
    let openssl = |arguments: &[&str], files: [&Path; 2]| {
        let mut command = Command::new("openssl");
        command.args(arguments).arg("-out").arg(files[0]);
        if files[1] != files[0] {
            command.arg("-in").arg(files[1]);
        }
        assert!(command.output().expect("openssl is installed").status.success());
    };
    let size = format!("rsa_keygen_bits:{bits}");
    openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", &size], [&private, &private]);
    openssl(&["pkey", "-pubout"], [&public, &private]);
    (private, public)
}

pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The real command, without a daemon.
pub fn offline(appliance: &Appliance, token: &TestToken, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_strongroom"))
        .args(arguments)
        .envs([token.environment()])
        .current_dir(appliance.path(""))
        .output()
        .expect("it starts")
}

fn copy_store(appliance: &Appliance, name: &str) -> PathBuf {
    let copy = appliance.path(name);
    let copied = Command::new("cp").arg("-a").args([&appliance.path("store"), &copy]).status();
    assert!(copied.expect("cp").success());
    copy
}

fn without_the_token(appliance: &Appliance) -> String {
    let status = appliance.get("/v1/status").expect_status(200).json();
    status["without_the_token"].as_str().expect("a sentence").to_owned()
}

fn counted(appliance: &Appliance) -> [u64; 4] {
    let view = appliance.get("/v1/recovery?counts=true").expect_status(200).json();
    let number = |name: &str| view["counted"][name].as_u64().expect("a number");
    [
        number("key_versions"),
        number("key_versions_recoverable"),
        number("store_keys"),
        number("store_keys_recoverable"),
    ]
}

/// Has custody wrap to this recovery key, from its next start on.
pub fn trust(appliance: &mut Appliance, public: &Path) {
    appliance.change_config(|config| {
        let custody = config["custody"].as_table_mut().expect("a table");
        custody.insert("recovery_key".to_owned(), public.display().to_string().into());
    });
}

/// An appliance with keys, store keys and secrets from before and after its recovery key was set, and a
/// master that was rotated since. Returns also the file of the private half.
fn recoverable() -> (Appliance, PathBuf, String) {
    let mut appliance = Appliance::prepared(|config| {
        let records = toml::toml! { seals_per_store_key = 5 };
        config.insert("records".to_owned(), records.into());
    });
    let (private, public) = pair(&appliance.path(""), "recovery", 4096);
    let (_, other) = pair(&appliance.path(""), "other", 4096);
    let (_, small) = pair(&appliance.path(""), "small", 2048);
    trust(&mut appliance, &public);
    appliance.start();
    appliance.post("/v1/init", &json!({})).expect_status(201);
    let ciphertext = import_keys(&appliance, 4);
    put_secret(&appliance, "before", "k0", "an old secret").expect_status(201);
    assert!(without_the_token(&appliance).contains("no recovery key is set"));
    let set = |file: &Path| {
        let body = json!({ "public_key": std::fs::read_to_string(file).expect("readable") });
        appliance.put("/v1/recovery", &body)
    };
    let too_small = set(&small);
    too_small.expect_problem(400, "invalid");
    assert!(too_small.text().contains("openssl genpkey -algorithm RSA"), "{}", too_small.text());
    set(&private).expect_problem(400, "invalid");
    set(&other).expect_problem(409, "recovery-key");
    let said = appliance.cli(&["recovery", "set", public.to_str().expect("text")]);
    assert!(said.status.success() && text(&said).contains("every key can be"), "{said:?}");
    assert!(without_the_token(&appliance).contains("every key can be recovered"));
    appliance.create_key("made");
    step(&appliance, "made", "rotate", json!({})).expect_status(200);
    for number in 0..8 {
        put_secret(&appliance, &format!("s{number}"), "made", "a secret").expect_status(201);
    }
    appliance.post("/v1/master/rotate", &json!({ "force": true })).expect_status(200);
    wait_for_rotation(&appliance);
    let [versions, recoverable, store_keys, recoverable_store_keys] = counted(&appliance);
    assert_eq!((versions, recoverable), (6, 6));
    assert!(store_keys > 3 && store_keys == recoverable_store_keys, "{store_keys}");
    (appliance, private, ciphertext)
}

#[test]
fn a_lost_token_is_survived_with_the_recovery_key_alone() {
    let (mut appliance, private, ciphertext) = recoverable();
    let of_made = encrypt(&appliance, "made", "made here");
    let exported = |appliance: &Appliance, name: &str| {
        let (trail, key) = (appliance.path("trail.jsonl"), appliance.path(name));
        let _ = std::fs::remove_file(&trail);
        let (to, public) = (trail.display().to_string(), key.display().to_string());
        let all = ["audit", "export", "--to", &to, "--public-key", &public];
        let done = appliance.cli(&all);
        assert!(done.status.success(), "{}", text(&done));
        (trail, key)
    };
    let (_, old_key) = exported(&appliance, "old.pem");
    appliance.stop();

    // The drill, on a copy, without the token: an empty one stands in its place.
    let new_token = TestToken::new();
    let copy = copy_store(&appliance, "copy");
    let (copy, private) = (copy.to_str().expect("text"), private.to_str().expect("text"));
    let drill = |key: &str| {
        let arguments = ["recovery", "drill", "--store", copy, "--private-key", key];
        offline(&appliance, &new_token, &arguments)
    };
    let proved = drill(private);
    assert!(proved.status.success(), "{}", text(&proved));
    let said = text(&proved);
    assert!(said.contains("6 versions of 5 keys, 9 secrets can be recovered"), "{said}");
    let progress = String::from_utf8_lossy(&proved.stderr).into_owned();
    assert_eq!(progress.lines().last(), Some("100 %  5 of 5 keys"), "{progress}");
    let arguments =
        ["recovery", "drill", "--store", copy, "--private-key", private, "--output", "json"];
    let programs = offline(&appliance, &new_token, &arguments);
    let told: serde_json::Value = serde_json::from_slice(&programs.stdout).expect("JSON");
    assert_eq!((&told["verdict"], &told["versions"]), (&"recoverable".into(), &6.into()), "{told}");
    let other = drill("other.key");
    assert!(!other.status.success() && text(&other).contains("another recovery key"));
    assert!(!drill("recovery.pem").status.success(), "a public key opens nothing");
    assert!(!drill("missing.key").status.success());

    // With the token that opens the store nothing is to be recovered, and nothing is done.
    let config = appliance.config_file().display().to_string();
    let in_use = ["recovery", "reseal", "--config", &config, "--private-key", private, "--yes"];
    let refused = offline(&appliance, appliance.token(), &in_use);
    let said = text(&refused);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    for words in
        ["the token opens this store", "next: ", "strongroom master rotate", "--same-token"]
    {
        assert!(said.contains(words), "{words}: {said}");
    }
    let unasked = [&in_use[..6], &["--same-token"]].concat();
    let refused = offline(&appliance, appliance.token(), &unasked);
    assert_eq!(refused.status.code(), Some(2), "wrong use, as at every other command that asks");
    let refused = text(&refused);
    for words in
        ["This makes master generation 3", "the 5 keys of", "needs a confirmation", "--yes"]
    {
        assert!(refused.contains(words), "{words}: {refused}");
    }

    // Nor with another appliance's token, which is left as it is.
    let stranger = Appliance::new();
    let mut other = appliance.config();
    other["token"] = stranger.config()["token"].clone();
    std::fs::write(appliance.path("other.toml"), other.to_string()).expect("written");
    let others =
        ["recovery", "reseal", "--config", "other.toml", "--private-key", private, "--yes"];
    let refused = text(&offline(&appliance, stranger.token(), &others));
    for words in ["generation 1", "another appliance's", "next: name an empty token"] {
        assert!(refused.contains(words), "{words}: {refused}");
    }

    // The way back: the token is gone for good.
    std::fs::remove_dir_all(appliance.token().tokens()).expect("removed");
    appliance.change_config(|config| {
        let token = config["token"].as_table_mut().expect("a table");
        token.insert("label".to_owned(), new_token.label().into());
        token.insert("pin_file".to_owned(), new_token.pin_file().display().to_string().into());
    });
    let reseal = ["recovery", "reseal", "--config", &config, "--private-key", private, "--yes"];
    let resealed = offline(&appliance, &new_token, &reseal);
    assert!(resealed.status.success(), "{}", text(&resealed));
    assert!(text(&resealed).contains("Keep the trail's old public key"), "{}", text(&resealed));
    let (name, conf) = new_token.environment();
    appliance.set_environment(name, conf.to_str().expect("text"));
    appliance.start();
    assert_eq!(appliance.get("/v1/status").json()["generation"], 3);
    for key in ["k0", "k1", "k2", "k3"] {
        expect_plaintext(&decrypt(&appliance, key, &ciphertext, None), "kept");
    }
    expect_plaintext(&decrypt(&appliance, "made", &of_made, None), "made here");
    let opened = reveal(&appliance, "before").expect_status(200).json();
    assert_eq!(opened["plaintext"], base64("an old secret"));
    appliance.create_key("after");
    let [versions, recoverable, store_keys, recoverable_store_keys] = counted(&appliance);
    assert_eq!((versions, store_keys), (recoverable, recoverable_store_keys));
    appliance.post("/v1/master/rotate", &json!({ "force": true })).expect_status(200);
    wait_for_rotation(&appliance);
    appliance.restart();
    expect_plaintext(&decrypt(&appliance, "k2", &ciphertext, None), "kept");
    // The trail went on: one key signed what came before, another what came after.
    let (trail, new_key) = exported(&appliance, "new.pem");
    let (trail, old_key, new_key) =
        (trail.display().to_string(), old_key.display().to_string(), new_key.display().to_string());
    let verify = |keys: &[&str]| {
        let mut arguments = vec!["audit", "verify", trail.as_str(), "--in-use"];
        for key in keys {
            arguments.extend(["--public-key", *key]);
        }
        appliance.cli(&arguments)
    };
    let verified = verify(&[&old_key, &new_key]);
    assert!(verified.status.success(), "{}", text(&verified));
    let verified = verify(&[&new_key]);
    let said = text(&verified);
    assert!(!verified.status.success() && said.matches("not good").count() == 1, "{said}");
    assert!(said.contains("give the public key of every generation"), "{said}");
}

#[test]
fn what_cannot_be_recovered_is_named_and_nothing_is_made_without_its_wrap() {
    let (mut appliance, private, _) = recoverable();
    // A destroyed version keeps neither wrap.
    step(&appliance, "made", "compromise", json!({ "version": 1 })).expect_status(200);
    // Custody does not have the key any more that is set: no key is made that could not be recovered.
    appliance.change_config(|config| {
        config["custody"].as_table_mut().expect("a table").remove("recovery_key");
    });
    appliance.restart();
    let body = json!({ "name": "new", "algorithm": "RSA-2048" });
    appliance.post("/v1/keys", &body).expect_problem(409, "recovery-key");
    step(&appliance, "made", "rotate", json!({})).expect_problem(409, "recovery-key");
    appliance.get("/v1/keys/new").expect_problem(404, "not-found");
    reveal(&appliance, "s0").expect_status(200);
    appliance.stop();

    // One key's wrap is another key's: swapped, it opens nothing.
    let copy = copy_store(&appliance, "copy");
    let db = sled::open(&copy).expect("a store");
    let tree = db.open_tree("records").expect("its tree");
    let at = |key: &str| [&[3_u8], format!("{key}/0000000001").as_bytes()].concat();
    let (one, two) = (tree.get(at("k1")).unwrap().unwrap(), tree.get(at("k2")).unwrap().unwrap());
    tree.insert(at("k1"), two).expect("written");
    tree.insert(at("k2"), one).expect("written");
    tree.flush().expect("written");
    drop((tree, db));
    let (copy, private) = (copy.to_str().expect("text"), private.to_str().expect("text"));
    let arguments = ["recovery", "drill", "--store", copy, "--private-key", private];
    let drilled = offline(&appliance, appliance.token(), &arguments);
    let said = text(&drilled);
    assert!(!drilled.status.success(), "{said}");
    for key in ["key/k1", "key/k2"] {
        assert!(said.contains(&format!("CANNOT be recovered: {key}")), "{said}");
    }
    assert!(!said.contains("key/k3:"), "{said}");

    // Taken away, it is gone from every record, and keys are made again.
    appliance.start();
    let forgotten = appliance.cli(&["recovery", "forget", "--yes"]);
    assert!(forgotten.status.success(), "{}", text(&forgotten));
    assert!(without_the_token(&appliance).contains("no recovery key is set"));
    appliance.create_key("new");
    let told = events(&appliance.trail());
    assert_eq!(told.iter().filter(|event| *event == "recovery-wrapped").count(), 2);
    appliance.stop();
    let drilled = offline(
        &appliance,
        appliance.token(),
        &["recovery", "drill", "--store", "store", "--private-key", private],
    );
    assert!(text(&drilled).contains("store key 1 has no recovery wrap"), "{}", text(&drilled));
}

#[test]
fn a_recovery_key_is_never_set_without_its_pass() {
    let mut appliance = Appliance::prepared(|_| {});
    let (_, public) = pair(&appliance.path(""), "recovery", 4096);
    trust(&mut appliance, &public);
    appliance.change_config(|config| {
        // The store is put back after each round, and its trail is not.
        let audit = config["audit"].as_table_mut().expect("a table");
        audit.insert("on_break".to_owned(), "record".into());
    });
    appliance.start();
    appliance.post("/v1/init", &json!({})).expect_status(201);
    import_keys(&appliance, 3);
    let body = json!({ "public_key": std::fs::read_to_string(&public).expect("readable") });
    let body = body.to_string();
    let request = format!(
        "PUT /v1/recovery HTTP/1.1\r\nhost: strongroom\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    appliance.stop();
    let unset = Raw::open(&appliance).picture();
    // kill -9 ever later, from before it is set to well after.
    for round in 0..10 {
        appliance.start();
        appliance.wait_for_state("ready");
        let mut caller = UnixStream::connect(appliance.socket()).expect("connects");
        caller.write_all(request.as_bytes()).expect("written");
        let until = Instant::now() + Duration::from_millis(3 * round);
        while Instant::now() < until {
            std::thread::yield_now();
        }
        appliance.kill();
        let raw = Raw::open(&appliance);
        let picture = raw.picture();
        let is_there = |key: &str| picture.contains_key(&address(APPLIANCE, key));
        assert_eq!(is_there("recovery"), is_there("rotation"), "round {round}");
        raw.restore(&unset);
    }
}
