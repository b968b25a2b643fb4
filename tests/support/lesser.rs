//! An appliance of a lesser user, which root looks after: the files that an attacker of that user would have
//! root touch, and whether it did.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde_json::json;

use crate::appliance::{Appliance, User as Daemon};
use crate::callers::{User, open_to_all};

pub struct Lesser {
    pub appliance: Appliance,
    /// Who owns it; the attacker.
    pub user: User,
    roots: tempfile::TempDir,
}

/// Nobody else of this machine.
const UID: u32 = 47_311;

const CONTENT: &str = "root's own\n";

/// An appliance of a user that is not root, initialised; its configuration, policy and binary are root's, as
/// they are where a package brings them.
pub fn lesser() -> Lesser {
    assert!(nix::unistd::geteuid().is_root(), "run these tests as root");
    let mut appliance = Appliance::of_user(Daemon { uid: UID, lockable_bytes: 8 << 20 });
    let config = tempfile::tempdir().expect("a directory");
    let roots = config;
    open_to_all(&appliance);
    std::fs::set_permissions(roots.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("changed");
    appliance.use_config_in(roots.path());
    std::fs::write(roots.path().join("passwd"), CONTENT).expect("written");
    std::fs::create_dir(roots.path().join("empty")).expect("made");
    appliance.start();
    appliance.post("/v1/init", &json!({})).expect_status(201);
    Lesser { appliance, user: User::new(UID), roots }
}

impl Lesser {
    pub fn uid(&self) -> u32 {
        UID
    }

    /// A file that root alone may write, with that content.
    pub fn roots_file(&self, _what: &str) -> PathBuf {
        self.roots.path().join("passwd")
    }

    /// An empty directory of root's.
    pub fn roots_directory(&self) -> PathBuf {
        self.roots.path().join("empty")
    }

    /// What is root's is as it was.
    #[track_caller]
    pub fn expect_untouched(&self) {
        let found = std::fs::read_to_string(self.roots_file("")).expect("it is there");
        assert_eq!(found, CONTENT, "root's file was changed");
        let owner = self.roots_file("").symlink_metadata().expect("it is there");
        assert_eq!((owner.uid(), owner.nlink()), (0, 1), "root's file was given away");
        let left: Vec<_> = std::fs::read_dir(self.roots_directory()).expect("readable").collect();
        assert!(left.is_empty(), "something was made in root's directory: {left:?}");
    }

    /// Everything in these directories of the appliance belongs to the user, and nothing of it to root.
    #[track_caller]
    pub fn expect_all_theirs(&self, names: &[&str]) {
        for name in names {
            let mut waiting = vec![self.appliance.path(name)];
            while let Some(path) = waiting.pop() {
                let found = path.symlink_metadata().expect("it is there");
                assert_eq!(found.uid(), UID, "{} is not theirs", path.display());
                if found.is_dir() {
                    let inside = std::fs::read_dir(&path).expect("readable").flatten();
                    waiting.extend(inside.map(|entry| entry.path()));
                }
            }
        }
    }
}
