//! `strongroom config check`: all that keeps a daemon with this configuration from its work, as far as it
//! can be seen without a daemon, and without the token. What `serve` refuses is found by the same code, under the
//! same restrictions: as the front's user, in its sandbox. The running front makes the same checks (`next_start`).

use std::borrow::Cow;
use std::fmt::Write;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, eaccess, geteuid};
use serde::{Deserialize, Serialize};

use super::backup::unfinished_restore;
use super::config::Config;
use super::offline::{as_front, in_child, must_be_own};
use super::{DaemonError, house, needs};
use crate::cli::Report;
use crate::custody;
use crate::custody::protocol::Verdict;
use crate::policy::{Policy, PolicyError};
use crate::sandbox::{self, User};
use crate::token;

/// How a recovery key is made that is accepted.
const MAKE_RECOVERY_KEY: &str = "make one where no network is: openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:4096 -aes256 \
     -out recovery.key; openssl pkey -in recovery.key -pubout -out recovery.pem; bring recovery.pem here";

/// A configuration that was looked at.
#[derive(Serialize)]
struct Checked<'a> {
    config: &'a Path,
    verdict: &'static str,
    /// How many policies there are, where they can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    policies: Option<usize>,
    findings: &'a [Finding],
}

/// Something wrong, or worth a look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Finding {
    level: Level,
    /// As it stands in the file: `[token] module`.
    setting: Cow<'static, str>,
    /// The file, directory or socket that it is about, where it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
    pub(super) what: String,
    pub(super) next: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Error,
    Warning,
}

/// What has been found so far.
struct Findings(Vec<Finding>);

/// Reads and checks a configuration with its policy and what it names.
pub fn check_config(path: &Path) -> Result<Report, DaemonError> {
    let config = Config::load(path)?.config;
    let custody =
        match config.custody.custody_user.as_deref().map(|user| custody::resolve(Some(user))) {
            Some(Ok(uid)) if User::current().uid == 0 => User::of_uid(uid),
            _ => User::current(),
        };
    let mut found = Findings(in_child(&custody, || of_custody(&config))?);
    let of_front = || (of_front(&config, false), needs::in_the_way(path, &config));
    let policies = match as_front(path, &config, of_front) {
        Ok(((of_front, policies), in_the_way)) => {
            found.0.extend(of_front);
            if let Some(what) = in_the_way {
                let next =
                    "put it into a directory of custody's own, such as /var/lib/strongroom-custody";
                let pin = config.token.pin_file.as_deref();
                found.warning("[token] pin_file", pin, what, next);
            }
            policies
        }
        Err(error) => {
            found.error("[sandbox]", None, error.to_string(), error.next());
            None
        }
    };
    found.about_relative_paths(&config);
    Ok(found.report(path, policies))
}

/// What is checked as custody's user.
fn of_custody(config: &Config) -> Vec<Finding> {
    let mut found = Findings(Vec::new());
    found.about_token(&config.token);
    found.about_recovery_key(config.custody.recovery_key.as_deref());
    found.0
}

/// What is checked under the front's restrictions, and how many policies there are. Where the sandbox is that of a
/// front that was started to read other places (`is_of_another`), what it hides says nothing.
pub(super) fn of_front(config: &Config, is_of_another: bool) -> (Vec<Finding>, Option<usize>) {
    let mut found = Findings(Vec::new());
    found.about_users(config);
    found.about_directory("[store] path", &config.store.path);
    found.about_directory("[audit] directory", &config.audit.directory);
    found.about_owners(config);
    if let Err(error) = unfinished_restore(&config.store.path, &config.audit.directory) {
        let error = DaemonError::from(error);
        found.error("[store] path", Some(&config.store.path), error.to_string(), error.next());
    }
    let policies = found.about_policy(config, is_of_another);
    (found.0, policies)
}

impl Finding {
    /// Whether a start is refused for it.
    pub(super) fn refuses(&self) -> bool {
        self.level == Level::Error
    }
}

impl Findings {
    fn error(
        &mut self,
        setting: &'static str,
        path: Option<&Path>,
        what: impl Into<String>,
        next: impl Into<String>,
    ) {
        self.add(Level::Error, setting, path, what.into(), next.into());
    }

    fn warning(
        &mut self,
        setting: &'static str,
        path: Option<&Path>,
        what: impl Into<String>,
        next: impl Into<String>,
    ) {
        self.add(Level::Warning, setting, path, what.into(), next.into());
    }

    fn add(
        &mut self,
        level: Level,
        setting: &'static str,
        path: Option<&Path>,
        what: String,
        next: String,
    ) {
        let path = path.map(Path::to_owned);
        let setting = Cow::Borrowed(setting);
        self.0.push(Finding { level, setting, path, what, next });
    }

    /// Its library, which one, and its PIN.
    fn about_token(&mut self, settings: &token::Settings) {
        let module = settings.module.as_path();
        // The loader looks for a bare name where it is used to.
        if module.components().count() > 1
            && let Err(fault) = token::look_at_module(module)
        {
            let next = match &fault {
                token::ModuleFault::Untrusted(_) => super::advice::TRUST,
                _ => {
                    "install the token's PKCS#11 library, or name it there; SoftHSM's is \
                     /usr/lib/softhsm/libsofthsm2.so"
                }
            };
            self.error("[token] module", Some(module), fault.to_string(), next);
        }
        if settings.label.is_none() && settings.serial.is_none() {
            let what = "neither [token] label nor [token] serial says which token it is";
            let next = format!(
                "set one of them; `pkcs11-tool --module {} --list-slots` shows them",
                module.display()
            );
            self.error("[token] label", None, what, next);
        }
        match &settings.pin_file {
            None if settings.pin_credential.is_none() => {
                let what =
                    "neither [token] pin_file nor [token] pin_credential says where the PIN is";
                let next = "set one of them, or bring it after every start: strongroom unlock --pin-file -";
                self.warning("[token] pin_file", None, what, next);
            }
            Some(pin) if settings.pin_credential.is_none() => {
                if let Err(error) = std::fs::metadata(pin)
                    && error.kind() == ErrorKind::NotFound
                {
                    let what = format!("the PIN file {} is not there", pin.display());
                    let next = "write the PIN into it: mode 0600, owned by custody's user or root";
                    self.error("[token] pin_file", Some(pin), what, next);
                }
            }
            _ => {}
        }
    }

    fn about_recovery_key(&mut self, path: Option<&Path>) {
        let Some(path) = path else { return };
        let setting = "[custody] recovery_key";
        match std::fs::File::open(path) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                let what = format!("{} cannot be read by this user: {error}", path.display());
                let next =
                    "run this as root or custody's user; custody's user must be able to read it";
                self.warning(setting, Some(path), what, next);
            }
            _ => {
                if let Err(why) = custody::recovery_key_of(path) {
                    self.error(setting, Some(path), why, MAKE_RECOVERY_KEY);
                }
            }
        }
    }

    /// The users that the two processes run as.
    fn about_users(&mut self, config: &Config) {
        let users = [
            ("[custody] front_user", config.custody.front_user.as_deref()),
            ("[custody] custody_user", config.custody.custody_user.as_deref()),
        ];
        for (setting, user) in users {
            if let Err(error) = custody::resolve(user) {
                let next = "make the user, or name another; without it, both run as one user";
                self.error(setting, None, error.to_string(), next);
            }
        }
    }

    /// One that the daemon makes by itself, or uses as it is.
    fn about_directory(&mut self, setting: &'static str, path: &Path) {
        let shown = path.display();
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        match (path.metadata(), parent.map(Path::metadata)) {
            (Ok(found), _) if found.is_dir() && found.uid() != geteuid().as_raw() => {
                let (owner, own) = (found.uid(), geteuid());
                let what =
                    format!("{shown} belongs to uid {owner}, and the daemon runs as uid {own}");
                let next = format!("give it to the daemon's user: chown -R USER: {shown}");
                self.error(setting, Some(path), what, next);
            }
            (Ok(_), _) => {
                let check = house::directory(setting, path, setting);
                if check.verdict == Verdict::Fail {
                    let next =
                        format!("name a directory that is its owner's alone: chmod 700 {shown}");
                    self.error(setting, Some(path), check.found, next);
                }
            }
            (Err(error), _) if error.kind() == ErrorKind::PermissionDenied => {
                let what = format!("{shown} cannot be looked at by this user: {error}");
                self.warning(setting, Some(path), what, "run this as root or the daemon's user");
            }
            (Err(_), Some(Err(error))) => {
                let parent = parent.unwrap_or(path).display();
                let what = format!("{shown} cannot be made: {parent}, where it is to lie: {error}");
                let next =
                    format!("mkdir -p {parent}, and give it to the user that the daemon runs as");
                self.error(setting, Some(path), what, next);
            }
            (Err(_), Some(Ok(parent))) if !parent.is_dir() => {
                let what = format!("{shown} cannot be made: what it is to lie in is no directory");
                self.error(setting, Some(path), what, "name a place in a directory");
            }
            (Err(_), _) => {
                let parent = parent.unwrap_or(Path::new("."));
                if let Err(errno) = eaccess(parent, AccessFlags::W_OK | AccessFlags::X_OK) {
                    let (parent, user) = (parent.display(), geteuid());
                    let what = format!("{shown} cannot be made in {parent} by uid {user}: {errno}");
                    let next =
                        format!("mkdir -m 700 {shown}, and give it to the daemon's user: chown");
                    self.error(setting, Some(path), what, next);
                }
            }
        }
    }

    /// Root does not work in directories of lesser users.
    fn about_owners(&mut self, config: &Config) {
        let socket = config.listen.socket.parent();
        for (setting, path) in [
            ("[store] path", Some(config.store.path.as_path())),
            ("[audit] directory", Some(&config.audit.directory)),
            ("[listen] socket", socket),
        ] {
            if let Some(path) = path
                && let Err(error) = must_be_own(path)
            {
                self.error(setting, Some(path), error.to_string(), error.next());
            }
        }
    }

    /// Policy files and roles; how many policies there are.
    fn about_policy(&mut self, config: &Config, is_of_another: bool) -> Option<usize> {
        let directory = Some(config.policy.directory.as_path());
        let policy = Policy::load(&config.policy);
        match &policy {
            Ok(policy) => {
                for warning in policy.warnings() {
                    let next = "look at it; `strongroom policy explain` says what it comes to";
                    self.warning("[policy] directory", directory, warning.to_string(), next);
                }
                if policy.count() == 0 {
                    let what = "there is no policy: nothing is permitted to anybody";
                    let next = "put *.cedar files into it; the package brings some";
                    self.warning("[policy] directory", directory, what, next);
                }
            }
            Err(error) if is_of_another && is_hidden(error) => {}
            Err(error) => {
                let what = error.to_string();
                let next = super::advice::of_policy(error);
                self.error("[policy]", directory, what, next);
            }
        }
        let roles = house::roles(config);
        if roles.verdict != Verdict::Ok {
            let next = "name users or groups under [policy.roles.operator] and the like";
            self.warning("[policy.roles]", None, roles.found, next);
        }
        policy.ok().map(|policy| policy.count())
    }

    /// They start at the working directory, which is another one under systemd than in a shell.
    fn about_relative_paths(&mut self, config: &Config) {
        let (custody, token) = (&config.custody, &config.token);
        let named = [
            ("[listen] socket", Some(&config.listen.socket)),
            ("[custody] socket", Some(&custody.socket)),
            ("[custody] recovery_key", custody.recovery_key.as_ref()),
            ("[token] module", Some(&token.module)),
            ("[token] pin_file", token.pin_file.as_ref()),
            ("[store] path", Some(&config.store.path)),
            ("[audit] directory", Some(&config.audit.directory)),
            ("[policy] directory", Some(&config.policy.directory)),
        ];
        let of_sandbox =
            |setting, paths| std::iter::repeat(setting).zip(Iterator::map(paths, Some));
        let sandbox = of_sandbox("[custody.sandbox] read", custody.sandbox.read.iter())
            .chain(of_sandbox("[custody.sandbox] write", custody.sandbox.write.iter()));
        for (setting, path) in named.into_iter().chain(sandbox) {
            let Some(path) = path.filter(|path| path.is_relative()) else { continue };
            let what = format!(
                "{} is relative: it starts at the working directory of each process, which is / under \
                 systemd",
                path.display()
            );
            let next = match std::path::absolute(path) {
                Ok(here) => format!("write it in full; from here it is {}", here.display()),
                Err(_) => "write it in full".to_owned(),
            };
            self.warning(setting, Some(path), what, next);
        }
    }

    fn report(mut self, path: &Path, policies: Option<usize>) -> Report {
        self.0.sort_by_key(|finding| finding.level == Level::Warning);
        let errors = self.0.iter().filter(|finding| finding.level == Level::Error).count();
        let shown = path.display();
        let mut text = match (errors, policies) {
            (0, Some(policies)) => format!("{shown}: sound, with {policies} policies\n"),
            (0, None) => format!("{shown}: sound\n"),
            (1, _) => format!("{shown}: NOT SOUND: 1 error\n"),
            (errors, _) => format!("{shown}: NOT SOUND: {errors} errors\n"),
        };
        for Finding { level, setting, what, next, .. } in &self.0 {
            let level = if *level == Level::Error { "error" } else { "warning" };
            let named = if what.contains(setting.as_ref()) {
                String::new()
            } else {
                format!("{setting}: ")
            };
            let what = what.replace('\n', "\n  ");
            // Writing to a string does not fail.
            let _ = writeln!(text, "{level}: {named}{what}\n  next: {next}");
        }
        let verdict = if errors == 0 { "sound" } else { "not-sound" };
        let checked = Checked { config: path, verdict, policies, findings: &self.0 };
        Report::new(text, &checked, errors == 0)
    }
}

/// Whether files of policy could not be read for this process's sandbox alone.
fn is_hidden(error: &PolicyError) -> bool {
    match error {
        PolicyError::Directory { path, error } | PolicyError::File { path, error } => {
            error.kind() == ErrorKind::PermissionDenied && sandbox::hides(path)
        }
        _ => false,
    }
}
