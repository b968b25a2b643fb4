//! The checks that only this process can make: module, slot, PIN, master key, canary, locked memory.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};

use super::custodian::OpenToken;
use super::protocol::{Check, Verdict};
use super::state::check_directory;
use super::{masters, rsa};
use crate::sandbox;
use crate::secret::{self, ArenaKind, Pin};
use crate::token::pkcs11::{self, Seen};
use crate::token::{self, PinError, Token, check_pin_file, read_pin};

/// Makes all of them in custody itself. `token` is the open one, or why it is not open.
pub fn examine(
    settings: &token::Settings,
    credentials: Option<&Path>,
    state: &Path,
    arena: &crate::secret::ArenaReport,
    token: Result<OpenToken<'_>, &str>,
) -> Vec<Check> {
    let mut checks = vec![module(settings), pin(settings, credentials), state_directory(state)];
    match token {
        Ok((token, generation)) => checks.extend(open_token(token, generation)),
        Err(why) => checks.push(fail("token", why.to_owned(), "[token], or `strongroom unlock`")),
    }
    checks.push(locked_memory(arena));
    checks.push(ok("RSA code path", rsa::code_path()));
    checks.extend(sandbox::entered().map(|entered| sandboxed("sandbox of custody", entered)));
    checks.push(core_limit());
    checks
}

/// In a process that is not custody, which logs in only where that is asked for, and never where a wrong PIN
/// was tried before. A PIN that is `given` was read by root, who alone may. The limit of core files is that of whoever typed it and says nothing of the daemon,
/// which sets its own to zero.
pub fn examine_locked(
    settings: &token::Settings,
    credentials: Option<&Path>,
    arena: &crate::secret::ArenaReport,
    login: bool,
    given: Option<&Pin>,
) -> Vec<Check> {
    let mut checks = vec![module(settings)];
    checks.push(match given.is_none().then(|| read_pin(settings, credentials)) {
        None => ok("pin", "readable by root alone".to_owned()),
        Some(Err(PinError::NoCredentials)) => warn(
            "pin",
            "not examined: it is a credential, and systemd hands it to custody's unit alone"
                .to_owned(),
            "--pin-file FILE, to examine the file it is made of",
        ),
        _ => pin(settings, credentials),
    });
    checks.extend(match pkcs11::look(settings) {
        Err(error) => vec![fail("token", error.to_string(), "[token] label or serial")],
        Ok(Seen { place, wrong_pin: Some(why) }) => {
            let found = format!("{place}: {why}; no PIN is tried from here");
            let remedy = "log in by hand with the right PIN: pkcs11-tool --login --test";
            vec![if login { fail("token", found, remedy) } else { warn("token", found, remedy) }]
        }
        Ok(_) if login => logged_in(settings, credentials, given),
        Ok(Seen { place, .. }) => vec![
            ok("token", place.to_string()),
            warn("master key", "not examined: needs the PIN (--login)".to_owned(), ""),
        ],
    });
    checks.push(locked_memory(arena));
    checks.push(ok("RSA code path", rsa::code_path()));
    checks
}

/// With one try of the PIN.
fn logged_in(
    settings: &token::Settings,
    credentials: Option<&Path>,
    given: Option<&Pin>,
) -> Vec<Check> {
    let own;
    let pin = match (given, read_pin(settings, credentials)) {
        (Some(pin), _) => pin,
        (None, Ok(pin)) => {
            own = pin;
            &own
        }
        (None, Err(error)) => {
            let found = format!("not examined: {error}");
            return vec![fail("token", found, "[token] pin_file, or --pin-file FILE")];
        }
    };
    match pkcs11::Pkcs11Token::open(settings, pin) {
        // Nothing says here which generation is in use: the newest is.
        Ok(token) => {
            let newest = masters::newest(&token).ok().flatten();
            open_token(&token, newest)
        }
        Err(error) => vec![fail("token", error.to_string(), "[token], or the PIN")],
    }
}

fn module(settings: &token::Settings) -> Check {
    let path = settings.module.display().to_string();
    match token::check_module(&settings.module) {
        Ok(()) => ok("module", path),
        Err(fault) => fail("module", fault.to_string(), "[token] module"),
    }
}

fn pin(settings: &token::Settings, credentials: Option<&Path>) -> Check {
    match read_pin(settings, credentials) {
        Ok(_) => match &settings.pin_credential {
            Some(name) => ok(
                "pin",
                format!(
                    "the credential \"{name}\"; who may read the file it is made of is not seen"
                ),
            ),
            None => ok("pin", who_reads(settings)),
        },
        Err(PinError::Unreadable { path, .. }) if sandbox::hides(&path) => {
            match check_pin_file(&path) {
                Ok(()) => {
                    let found =
                        "was replaced since custody started, which reads it when it starts again";
                    warn("pin", found.to_owned(), "`systemctl restart strongroom-custody`")
                }
                Err(error) => fail("pin", error.to_string(), "[token] pin_file"),
            }
        }
        Err(error) => fail("pin", error.to_string(), "[token] pin_file or pin_credential"),
    }
}

fn state_directory(path: &Path) -> Check {
    match check_directory(path) {
        Ok(()) => ok("state directory", format!("{}, custody's alone", path.display())),
        Err(error) => fail("state directory", error.to_string(), "[custody] state_directory"),
    }
}

/// Who may read the PIN file, which was found in order.
fn who_reads(settings: &token::Settings) -> String {
    let found = settings.pin_file.as_deref().and_then(|path| std::fs::metadata(path).ok());
    match found.filter(|found| found.mode() & 0o040 != 0) {
        Some(found) => format!("readable by custody and whoever is in the group {}", found.gid()),
        None => "readable by custody alone".to_owned(),
    }
}

fn open_token(token: &dyn Token, generation: Option<u32>) -> Vec<Check> {
    let mut checks = Vec::new();
    checks.push(match token.info() {
        Ok(info) => ok(
            "token",
            format!(
                "{} (serial {}, {} {})",
                info.label, info.serial, info.manufacturer, info.model
            ),
        ),
        Err(error) => fail("token", error.to_string(), "[token] label or serial"),
    });
    let Some(generation) = generation else {
        checks.push(warn("master key", "not initialised yet".to_owned(), "`strongroom init`"));
        return checks;
    };
    checks.push(match token.master(generation) {
        Ok(Some(_)) => ok("master key", format!("generation {generation}, template as required")),
        Ok(None) => fail(
            "master key",
            format!("generation {generation} is not in this token"),
            "[token] label or serial: is it the right token?",
        ),
        Err(error) => fail("master key", error.to_string(), "the token's own tools"),
    });
    let later = masters::later_than(token, generation).unwrap_or_default();
    if !later.is_empty() {
        let later: Vec<String> = later.iter().map(u32::to_string).collect();
        checks.push(warn(
            "later master keys",
            format!(
                "the token holds generations {} besides {generation}, which is in use",
                later.join(", ")
            ),
            "a rotation goes on, a restore has brought an older store, or another process than the front had \
             them made: look at the audit log before they are removed from the token",
        ));
    }
    checks.push(match token.canary(generation) {
        Ok(()) => ok("canary", "wrapped and unwrapped".to_owned()),
        Err(error) => fail("canary", error.to_string(), "the token; then restart custody"),
    });
    checks
}

fn locked_memory(arena: &crate::secret::ArenaReport) -> Check {
    let stacks = secret::stacks().filter(|stacks| stacks.count > 0);
    let found = match stacks {
        Some(stacks) => format!("{arena}; {stacks}"),
        None => arena.to_string(),
    };
    match arena.kind {
        ArenaKind::MemfdSecret => ok("locked memory", found),
        ArenaKind::Mlock => warn(
            "locked memory",
            format!("{found}; root can read all of it from outside"),
            "a kernel with memfd_secret (5.14 or newer), [custody.arena] kind",
        ),
    }
}

/// Whether everything is in force that shuts a process in.
pub fn sandboxed(name: &str, entered: &sandbox::Report) -> Check {
    match entered.remedy() {
        "" => ok(name, entered.to_string()),
        remedy => warn(name, entered.to_string(), remedy),
    }
}

fn core_limit() -> Check {
    match getrlimit(Resource::RLIMIT_CORE) {
        Ok((0, 0)) => ok("core dumps", "off".to_owned()),
        _ => fail("core dumps", "not off".to_owned(), "LimitCORE= of the unit"),
    }
}

fn ok(name: &str, found: String) -> Check {
    Check { name: name.to_owned(), verdict: Verdict::Ok, found, remedy: String::new() }
}

fn warn(name: &str, found: String, remedy: &str) -> Check {
    Check { name: name.to_owned(), verdict: Verdict::Warn, found, remedy: remedy.to_owned() }
}

fn fail(name: &str, found: String, remedy: &str) -> Check {
    Check { name: name.to_owned(), verdict: Verdict::Fail, found, remedy: remedy.to_owned() }
}
