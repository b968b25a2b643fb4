//! What custody still needs once it has started, for its sandbox: the module with its libraries, the PIN,
//! and the files that the module keeps the token in.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::sandbox::{Needs, Sockets};
use crate::token;

/// The `[custody.sandbox]` part of the configuration: what a module needs besides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Files and directories that the module reads, such as its own configuration.
    pub read: Vec<PathBuf>,
    /// Files and directories that the module writes, and devices that it speaks to.
    pub write: Vec<PathBuf>,
    /// What the module may connect to.
    pub sockets: Sockets,
}

/// What the process was handed by whoever started it.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// The directory of systemd's credentials.
    pub credentials: Option<PathBuf>,
    /// The directory that is custody's to write in.
    pub state: Option<PathBuf>,
    /// SoftHSM's configuration, where it is not at its usual place.
    pub softhsm: Option<PathBuf>,
    /// Whether an audit log that does not end as custody remembers is taken as it is, once.
    pub accepts_history: bool,
    /// Whether log lines go to the journal.
    pub journal: bool,
}

/// Where modules are used to have their configuration.
const MODULES_OWN: [&str; 5] =
    ["/etc/softhsm", "/etc/pkcs11", "/etc/opensc", "/etc/ssl/openssl.cnf", "/usr/share/p11-kit"];

/// SoftHSM's configuration, unless its environment or its user's home has another.
const SOFTHSM: &str = "/etc/softhsm/softhsm2.conf";

/// Where SoftHSM will look for its configuration, in its own order: its environment, the home of the process's
/// user; `None` for the system's.
pub fn softhsm_configuration() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("SOFTHSM2_CONF") {
        return Some(PathBuf::from(named));
    }
    let home = std::env::var_os("HOME").map(PathBuf::from).or_else(|| {
        nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.dir)
    });
    let own = home?.join(".config/softhsm2/softhsm2.conf");
    own.exists().then_some(own)
}

/// The longest configuration of SoftHSM's that is read, in bytes.
const LONGEST: u64 = 64 * 1024;

/// Puts it together.
pub fn needs(settings: &Settings, token: &token::Settings, around: &Surroundings) -> Needs {
    let mut read = settings.read.clone();
    read.extend(MODULES_OWN.map(PathBuf::from));
    // A module may load others that lie beside it.
    let module = token.module.canonicalize().unwrap_or_else(|_| token.module.clone());
    read.extend(module.parent().map(Path::to_owned));
    read.extend(around.credentials.clone());
    read.extend(token.pin_file.clone());
    let mut write = settings.write.clone();
    write.extend(around.state.clone());
    let softhsm = around.softhsm.clone().unwrap_or_else(|| PathBuf::from(SOFTHSM));
    write.extend(softhsm_tokens(&softhsm));
    read.push(softhsm);
    let sockets = settings.sockets;
    // Modules that speak to a daemon share memory and files with it.
    let with_others = sockets != Sockets::None;
    Needs {
        read,
        write,
        sockets,
        journal: around.journal,
        ipc: with_others,
        modes: with_others,
        alone: !with_others,
        ..Needs::default()
    }
}

/// What nobody else needs: the PIN, and where the token's files are.
pub fn private_files(
    settings: &super::Settings,
    token: &token::Settings,
    around: &Surroundings,
) -> Vec<PathBuf> {
    let mut files = needs(&settings.sandbox, token, around).write;
    files.extend(token.pin_file.clone());
    files.push(settings.state_directory.clone());
    files
}

/// The directory that SoftHSM keeps its tokens in.
fn softhsm_tokens(configuration: &Path) -> Option<PathBuf> {
    let mut text = String::new();
    // It may lie in a directory of custody's user, and root looks at it: nothing but a file is read.
    let file =
        File::options().read(true).custom_flags(libc::O_NONBLOCK).open(configuration).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    file.take(LONGEST).read_to_string(&mut text).ok()?;
    let value = text.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == "directories.tokendir").then(|| value.trim())
    });
    value.map(PathBuf::from)
}

/// A file as it was when the sandbox was entered. One that is put in its place later is another file,
/// which this process may not open: the next one may.
pub struct Granted {
    path: Option<PathBuf>,
    was: Option<(u64, u64)>,
}

impl Granted {
    /// To be asked before the sandbox is entered.
    pub fn pin(token: &token::Settings) -> Self {
        let path = token.pin_file.clone().filter(|_| token.pin_credential.is_none());
        Self { was: path.as_deref().and_then(identity), path }
    }

    /// Whether another file has taken its place.
    pub fn is_replaced(&self) -> bool {
        self.path.as_deref().and_then(identity) != self.was
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tokens_of_softhsm_are_found_by_its_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let conf = directory.path().join("softhsm2.conf");
        std::fs::write(&conf, "# a\nlog.level = ERROR\ndirectories.tokendir =  /var/lib/x/ \n")
            .unwrap();
        let around = Surroundings {
            softhsm: Some(conf.clone()),
            state: Some("/var/lib/state".into()),
            ..Surroundings::default()
        };
        let token = token::Settings { pin_file: Some("/p/pin".into()), ..Default::default() };
        let settings = Settings { write: vec!["/dev/hsm".into()], ..Settings::default() };
        let needs = needs(&settings, &token, &around);
        let expected = ["/dev/hsm", "/var/lib/state", "/var/lib/x/"];
        assert_eq!(needs.write, expected.map(PathBuf::from));
        assert!(!needs.ipc && !needs.modes && needs.alone);
        assert!(needs.read.contains(&conf) && needs.read.contains(&"/p/pin".into()));
    }

    #[test]
    fn a_file_that_was_replaced_is_another() {
        let directory = tempfile::tempdir().unwrap();
        let pin = directory.path().join("pin");
        let token = token::Settings { pin_file: Some(pin.clone()), ..Default::default() };
        let absent = Granted::pin(&token);
        assert!(!absent.is_replaced());
        std::fs::write(&pin, "1").unwrap();
        assert!(absent.is_replaced());
        let granted = Granted::pin(&token);
        std::fs::write(&pin, "2").unwrap();
        assert!(!granted.is_replaced(), "what is written anew in its place is the same file");
        std::fs::write(directory.path().join("new"), "3").unwrap();
        std::fs::rename(directory.path().join("new"), &pin).unwrap();
        assert!(granted.is_replaced());
    }
}
