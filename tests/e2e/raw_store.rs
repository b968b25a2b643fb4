//! The store of an appliance that does not run, below the rules that its own code keeps.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::appliance::Appliance;

/// First bytes of addresses.
pub const APPLIANCE: u8 = 1;
pub const KEY: u8 = 2;
pub const KEY_VERSION: u8 = 3;
pub const SECRET: u8 = 4;

/// The database as sled has it.
pub struct Raw {
    _db: sled::Db,
    tree: sled::Tree,
}

/// Everything that lies in a store, by address.
pub type Picture = BTreeMap<Vec<u8>, Vec<u8>>;

impl Raw {
    pub fn open(appliance: &Appliance) -> Self {
        // A child that another test has just forked keeps the lock until it runs its own program.
        let mut opened = sled::open(appliance.path("store"));
        for _ in 0..40 {
            if opened.is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
            opened = sled::open(appliance.path("store"));
        }
        let db = opened.expect("a store");
        let tree = db.open_tree("records").expect("its tree");
        Self { _db: db, tree }
    }

    /// What lies at an address: the revision, 8 bytes, and the sealed value.
    pub fn bytes(&self, table: u8, key: &str) -> Vec<u8> {
        self.tree.get(address(table, key)).expect("readable").expect("there").to_vec()
    }

    pub fn put(&self, table: u8, key: &str, bytes: Vec<u8>) {
        self.tree.insert(address(table, key), bytes).expect("writable");
        self.tree.flush().expect("writable");
    }

    /// Puts what a picture has at an address.
    pub fn put_at(&self, address: &[u8], bytes: &[u8]) {
        self.tree.insert(address, bytes).expect("writable");
        self.tree.flush().expect("writable");
    }

    pub fn remove(&self, table: u8, key: &str) {
        assert!(self.tree.remove(address(table, key)).expect("writable").is_some(), "{key}");
        self.tree.flush().expect("writable");
    }

    /// Takes away the records of master keys, as in a store from before there was a second one.
    pub fn remove_masters(&self) {
        for place in self.tree.scan_prefix(address(APPLIANCE, "master/")).keys() {
            self.tree.remove(place.expect("readable")).expect("writable");
        }
        self.tree.flush().expect("writable");
    }

    /// Takes away the mark of a deleted address: as if nothing had ever been there.
    pub fn remove_mark(&self, table: u8, key: &str) {
        let mark = [&[0], address(table, key).as_slice()].concat();
        assert!(self.tree.remove(mark).expect("writable").is_some(), "{key}");
        self.tree.flush().expect("writable");
    }

    /// Changes one bit of the byte `at`.
    pub fn flip(&self, table: u8, key: &str, at: usize) {
        let mut bytes = self.bytes(table, key);
        bytes[at] ^= 1;
        self.put(table, key, bytes);
    }

    /// Changes one bit of a sealed value.
    pub fn damage(&self, table: u8, key: &str) {
        self.flip(table, key, self.bytes(table, key).len() / 2);
    }

    /// Has two records change places.
    pub fn swap(&self, one: (u8, &str), other: (u8, &str)) {
        let (first, second) = (self.bytes(one.0, one.1), self.bytes(other.0, other.1));
        self.put(one.0, one.1, second);
        self.put(other.0, other.1, first);
    }

    /// Puts a record back as it is in an older picture.
    pub fn put_back(&self, picture: &Picture, table: u8, key: &str) {
        self.put(table, key, picture[&address(table, key)].clone());
    }

    pub fn picture(&self) -> Picture {
        let entries = self.tree.iter().map(|entry| entry.expect("readable"));
        entries.map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
    }

    /// Makes everything as it is in a picture, but for the newest records of how far the store reaches and of its
    /// state: with older ones nothing at all would be served, as `attacks::patched_state` shows.
    pub fn restore(&self, picture: &Picture) {
        let newest = ["reach", "state"].map(|key| address(APPLIANCE, key));
        let newest = newest.map(|at| (self.tree.get(&at).expect("readable"), at));
        self.tree.clear().expect("writable");
        for (key, value) in picture {
            self.tree.insert(key.as_slice(), value.as_slice()).expect("writable");
        }
        for (value, at) in newest {
            match value {
                Some(value) => _ = self.tree.insert(at, value).expect("writable"),
                None => _ = self.tree.remove(at).expect("writable"),
            }
        }
        self.tree.flush().expect("writable");
    }
}

pub fn address(table: u8, key: &str) -> Vec<u8> {
    [&[table], key.as_bytes()].concat()
}
