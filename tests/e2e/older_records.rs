//! Somebody puts single records back from an older copy of the store, or damages them: what that
//! reaches, and what goes on beside it.

use serde_json::json;

use crate::acts::{base64, decrypt, encrypt, expect_plaintext, step};
use crate::appliance::Appliance;

/// The store of an appliance that does not run, below the rules that its own code keeps.
struct Raw {
    _db: sled::Db,
    tree: sled::Tree,
}

/// First bytes of addresses.
const KEY: u8 = 2;
const KEY_VERSION: u8 = 3;

impl Raw {
    fn open(appliance: &Appliance) -> Self {
        let db = sled::open(appliance.path("store")).expect("a store");
        let tree = db.open_tree("records").expect("its tree");
        Self { _db: db, tree }
    }

    /// What lies at an address: the revision and the sealed value.
    fn bytes(&self, table: u8, key: &str) -> Vec<u8> {
        self.tree.get(address(table, key)).expect("readable").expect("there").to_vec()
    }

    fn put(&self, table: u8, key: &str, bytes: Vec<u8>) {
        self.tree.insert(address(table, key), bytes).expect("writable");
        self.tree.flush().expect("writable");
    }
}

fn address(table: u8, key: &str) -> Vec<u8> {
    [&[table], key.as_bytes()].concat()
}

#[test]
fn one_record_of_a_key_from_an_older_copy_is_not_served() {
    let mut appliance = Appliance::new();
    for key in ["k", "l", "m"] {
        appliance.create_key(key);
    }
    let of_k = encrypt(&appliance, "k", "x");
    let of_m = encrypt(&appliance, "m", "of m");
    appliance.stop();
    let raw = Raw::open(&appliance);
    let older_version = raw.bytes(KEY_VERSION, "k/0000000001");
    let older_key = raw.bytes(KEY, "l");
    drop(raw);
    appliance.start();
    for key in ["k", "l"] {
        step(&appliance, key, "compromise", json!({})).expect_status(200);
    }
    appliance.stop();
    let raw = Raw::open(&appliance);
    raw.put(KEY_VERSION, "k/0000000001", older_version);
    raw.put(KEY, "l", older_key);
    drop(raw);
    appliance.start();
    for key in ["k", "l"] {
        let from = appliance.log().len();
        appliance.get(&format!("/v1/keys/{key}")).expect_problem(500, "record-broken");
        let body = json!({ "plaintext": base64("x") });
        let refused = appliance.post(&format!("/v1/keys/{key}/encrypt"), &body);
        refused.expect_problem(500, "record-broken");
        appliance.wait_for_log(from, &format!("key-version/{key}/0000000001 was changed outside"));
    }
    decrypt(&appliance, "k", &of_k, None).expect_problem(500, "record-broken");
    expect_plaintext(&decrypt(&appliance, "m", &of_m, None), "of m");
}
