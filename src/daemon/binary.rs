//! Whether the binary is shut to the daemon's user. The kernel opens a process to tracers of the same user when it
//! executes a program, unless the user may not read that: without this, another process of the user could hold
//! it before it has shut itself.

use std::path::Path;
use std::sync::OnceLock;

use nix::unistd::{AccessFlags, access, geteuid};

use crate::custody::protocol::{Check, Verdict};

/// The program of this process.
const OWN: &str = "/proc/self/exe";

/// What is wrong with the binary, in words; nothing for root, who may read everything and trace everybody.
fn readable() -> Option<String> {
    if geteuid().is_root() || access(OWN, AccessFlags::R_OK).is_err() {
        return None;
    }
    let path = std::env::current_exe().unwrap_or_else(|_| Path::new(OWN).to_owned());
    Some(format!(
        "{} may be read by uid {}: another process of that user can trace this one in the moment in which it starts",
        path.display(),
        geteuid()
    ))
}

/// What was found at the start.
static FOUND: OnceLock<Option<String>> = OnceLock::new();

/// Looks before the sandbox is entered, and warns.
pub fn look() {
    if let Some(found) = FOUND.get_or_init(readable) {
        tracing::warn!("{found}; {REMEDY}");
    }
}

/// The check of `doctor`.
pub fn check() -> Check {
    let name = "binary".to_owned();
    match FOUND.get_or_init(readable) {
        None => {
            let found = "shut to the daemon's user from its start on".to_owned();
            Check { name, verdict: Verdict::Ok, found, remedy: String::new() }
        }
        Some(found) => {
            let remedy = REMEDY.to_owned();
            Check { name, verdict: Verdict::Warn, found: found.clone(), remedy }
        }
    }
}

/// What mends it.
const REMEDY: &str = "chown root:root and chmod 711 the binary, as the package does";
