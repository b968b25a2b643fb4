//! A real token of a test's own, in a private directory that goes with it.
//!
//! A module reads its environment when it is loaded and is initialised once per process. So a test
//! that loads one runs its body in a process of its own: [`TestToken::in_own_process`]. A test that
//! drives the built binary needs no such thing and hands [`TestToken::environment`] on.
#![allow(dead_code)] // every test binary uses its own part of this

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use strongroom::token::Settings;
use tempfile::TempDir;

/// The user PIN of every test token; no secret.
pub const PIN: &str = "471147";
/// The security officer's PIN of every test token.
pub const SO_PIN: &str = "08150815";

const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";
/// Says to a test that it is the child, and where its token lies.
const CHILD: &str = "STRONGROOM_TEST_TOKEN";
/// Another build of kryoptic than `scripts/kryoptic` makes.
const KRYOPTIC: &str = "STRONGROOM_TEST_KRYOPTIC";

/// Which module stands behind a test token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    SoftHsm,
    Kryoptic,
}

/// A token of a test's own, with a user PIN and no keys.
pub struct TestToken {
    kind: Kind,
    directory: PathBuf,
    label: String,
    // Removes the directory; the child borrows the parent's.
    _owned: Option<TempDir>,
}

impl TestToken {
    /// A new SoftHSM token.
    pub fn new() -> Self {
        Self::of(Kind::SoftHsm)
    }

    /// A new token of either module. Panics, saying what to install, where the module is missing.
    pub fn of(kind: Kind) -> Self {
        let owned =
            tempfile::Builder::new().prefix("strongroom-token-").tempdir().expect("a directory");
        let token = Self {
            kind,
            directory: owned.path().to_owned(),
            label: "strongroom-test".to_owned(),
            _owned: Some(owned),
        };
        assert!(
            token.module().exists(),
            "{} is missing: {}",
            token.module().display(),
            kind.remedy()
        );
        fs::create_dir(token.directory.join("tokens")).expect("a token directory");
        fs::write(token.conf(), token.conf_text()).expect("a configuration");
        write_private(&token.pin_file(), &format!("{PIN}\n"));
        token.initialise(&token.label);
        token
    }

    /// Runs the rest of a test in a process of its own, with a new token's environment set.
    ///
    /// `test` is the test's full name. In the parent, which waits for the child and fails when it
    /// fails, this returns `None`; in the child, the token.
    ///
    /// ```ignore
    /// let Some(token) = TestToken::in_own_process("my_test", Kind::SoftHsm) else { return };
    /// ```
    pub fn in_own_process(test: &str, kind: Kind) -> Option<Self> {
        if let Some(directory) = std::env::var_os(CHILD) {
            let label = "strongroom-test".to_owned();
            return Some(Self { kind, directory: directory.into(), label, _owned: None });
        }
        let token = Self::of(kind);
        let child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .envs([token.environment()])
            .env(CHILD, &token.directory)
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let output = wait(child, Duration::from_secs(120));
        print!("{output}");
        assert!(output.contains("test result: ok. 1 passed"), "{test} failed, or is not its name");
        None
    }

    /// The variable that makes the module find this token, to be set before the module is loaded.
    pub fn environment(&self) -> (&'static str, PathBuf) {
        let name = match self.kind {
            Kind::SoftHsm => "SOFTHSM2_CONF",
            Kind::Kryoptic => "KRYOPTIC_CONF",
        };
        (name, self.conf())
    }

    /// What the configuration's `[token]` part says of this token.
    pub fn settings(&self) -> Settings {
        Settings {
            module: self.module(),
            label: Some(self.label.clone()),
            pin_file: Some(self.pin_file()),
            ..Settings::default()
        }
    }

    /// The PKCS#11 library.
    pub fn module(&self) -> PathBuf {
        match (self.kind, std::env::var_os(KRYOPTIC)) {
            (Kind::SoftHsm, _) => SOFTHSM.into(),
            (Kind::Kryoptic, Some(path)) => path.into(),
            (Kind::Kryoptic, None) => {
                Path::new(env!("CARGO_MANIFEST_DIR")).join("target/kryoptic/libkryoptic_pkcs11.so")
            }
        }
    }

    /// The module's configuration file.
    pub fn conf(&self) -> PathBuf {
        self.directory.join("token.conf")
    }

    /// A file of mode 0600 with the user PIN.
    pub fn pin_file(&self) -> PathBuf {
        self.directory.join("pin")
    }

    /// Where custody keeps what it remembers.
    pub fn state_directory(&self) -> PathBuf {
        self.directory.join("custody-state")
    }

    /// Where the module keeps its tokens.
    pub fn tokens(&self) -> PathBuf {
        self.directory.join("tokens")
    }

    /// The token's label.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Makes one more token beside this one (SoftHSM only), with the same PINs.
    pub fn initialise_another(&self, label: &str) {
        assert_eq!(self.kind, Kind::SoftHsm, "kryoptic has one slot here");
        self.initialise(label);
    }

    /// `pkcs11-tool` on this token, logged in as the user; panics unless it succeeds.
    pub fn pkcs11_tool(&self, arguments: &[&str]) -> String {
        self.pkcs11_tool_on(self.label(), arguments)
    }

    /// The same on a token beside this one.
    pub fn pkcs11_tool_on(&self, label: &str, arguments: &[&str]) -> String {
        let mut all = vec!["--login", "--pin", PIN, "--token-label", label];
        all.extend(arguments);
        self.pkcs11_tool_bare(&all)
    }

    /// `pkcs11-tool` without a login; panics unless it succeeds.
    pub fn pkcs11_tool_bare(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("pkcs11-tool");
        command.arg("--module").arg(self.module()).args(arguments);
        self.tool(command, "apt-get install opensc")
    }

    fn initialise(&self, label: &str) {
        match self.kind {
            Kind::SoftHsm => {
                let mut command = Command::new("softhsm2-util");
                command.args(["--init-token", "--free", "--label", label]);
                command.args(["--so-pin", SO_PIN, "--pin", PIN]);
                self.tool(command, "apt-get install softhsm2");
            }
            Kind::Kryoptic => {
                self.pkcs11_tool_bare(&["--init-token", "--label", label, "--so-pin", SO_PIN]);
                let officer = ["--login", "--login-type", "so", "--so-pin", SO_PIN];
                self.pkcs11_tool_bare(&[&officer[..], &["--init-pin", "--pin", PIN]].concat());
            }
        }
    }

    fn tool(&self, mut command: Command, remedy: &str) -> String {
        let name = command.get_program().to_owned();
        let output = command
            .envs([self.environment()])
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("{name:?}: {error}: {remedy}"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name:?} failed: {text}");
        text
    }

    fn conf_text(&self) -> String {
        let tokens = self.tokens();
        let tokens = tokens.display();
        match self.kind {
            Kind::SoftHsm => format!(
                "directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n"
            ),
            Kind::Kryoptic => format!(
                "[[slots]]\nslot = 1\ndbtype = \"sqlite\"\ndbargs = \"{tokens}/token.sql\"\n"
            ),
        }
    }
}

impl Kind {
    fn remedy(self) -> &'static str {
        match self {
            Self::SoftHsm => "apt-get install softhsm2",
            Self::Kryoptic => "run scripts/kryoptic",
        }
    }
}

/// Writes a file that only its owner can read.
pub fn write_private(path: &Path, content: &str) {
    fs::write(path, content).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("chmod");
}

/// The child's standard output; kills it when it is not done in time.
fn wait(mut child: Child, limit: Duration) -> String {
    let mut stdout = child.stdout.take().expect("a pipe");
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut stdout, &mut text).expect("read");
        String::from_utf8_lossy(&text).into_owned()
    });
    let deadline = Instant::now() + limit;
    while child.try_wait().expect("waited").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("killed");
            child.wait().expect("reaped");
            panic!("the test's process was not done after {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    reader.join().expect("read")
}
