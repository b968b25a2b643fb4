//! A whole Strongroom of a test's own: its token, its directories, the real binary, its real socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::token::TestToken;

#[path = "reply.rs"]
mod reply;

pub use reply::Reply;

/// How long anything may take that has to happen; a test fails after it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A running appliance. Its processes end with it.
pub struct Appliance {
    token: TestToken,
    directory: tempfile::TempDir,
    front: Option<Child>,
    environment: Vec<(String, String)>,
    user: Option<User>,
    /// Where configuration, policy and binary lie, where that is not the appliance's own directory.
    roots: Option<PathBuf>,
    before_exec: Option<fn() -> std::io::Result<()>>,
}

/// The user whose the daemon is, where it is not the test's own.
#[derive(Debug, Clone, Copy)]
pub struct User {
    pub uid: u32,
    /// RLIMIT_MEMLOCK, soft and hard.
    pub lockable_bytes: u64,
}

impl Appliance {
    /// One that is initialised, with this user in every role.
    pub fn new() -> Self {
        let appliance = Self::uninitialised();
        appliance.post("/v1/init", &json!({})).expect_status(201);
        appliance
    }

    /// One that was only started.
    pub fn uninitialised() -> Self {
        Self::configured(|_| {})
    }

    /// One that was only started, with a configuration that `change` has changed.
    pub fn configured(change: impl FnOnce(&mut toml::Table)) -> Self {
        let mut appliance = Self::prepared(change);
        appliance.start();
        appliance
    }

    /// One that was not started yet.
    pub fn prepared(change: impl FnOnce(&mut toml::Table)) -> Self {
        let directory =
            tempfile::Builder::new().prefix("strongroom-").tempdir().expect("a directory");
        let (token, environment) = (TestToken::new(), Vec::new());
        let appliance = Self {
            token,
            directory,
            front: None,
            environment,
            user: None,
            roots: None,
            before_exec: None,
        };
        let mut config = appliance.default_config();
        change(&mut config);
        appliance.write_config(&config);
        appliance
    }

    /// One that belongs to another user, with its token and a copy of the binary; not started yet.
    pub fn of_user(user: User) -> Self {
        let mut appliance = Self::prepared(|_| {});
        let (binary, policy) = (appliance.path("strongroom"), appliance.path("policy"));
        copy_program(&binary);
        let mut config = appliance.config();
        let shipped = config["policy"]["directory"].as_str().expect("a path").to_owned();
        tool("cp", &["-r".as_ref(), shipped.as_ref(), policy.as_os_str()]);
        config["policy"]["directory"] = policy.display().to_string().into();
        appliance.write_config(&config);
        let owner = format!("{0}:{0}", user.uid);
        let token = appliance.token.tokens();
        let places = [appliance.directory.path(), token.parent().expect("its directory")];
        tool("chown", &["-R".as_ref(), owner.as_ref(), places[0].as_ref(), places[1].as_ref()]);
        appliance.user = Some(user);
        appliance
    }

    fn default_config(&self) -> toml::Table {
        let at = |name: &str| self.path(name).display().to_string();
        let uid = nix::unistd::getuid().as_raw();
        let policy = concat!(env!("CARGO_MANIFEST_DIR"), "/config/policy");
        let text = format!(
            r#"
            [listen]
            socket = "{socket}"
            mode = "0666"
            [token]
            module = "{module}"
            label = "{label}"
            pin_file = "{pin}"
            [custody]
            socket = "{custody}"
            master_destroy_wait_days = 0
            state_directory = "{state}"
            [store]
            path = "{store}"
            [audit]
            directory = "{trail}"
            [policy]
            directory = "{policy}"
            [policy.roles.operator]
            users = [{uid}]
            [policy.roles.service]
            users = [{uid}]
            [policy.roles.auditor]
            users = [{uid}]
            [log]
            target = "stderr"
            level = "debug"
            "#,
            socket = at("s.sock"),
            module = self.token.module().display(),
            label = self.token.label(),
            pin = self.token.pin_file().display(),
            custody = at("custody.sock"),
            state = self.token.state_directory().display(),
            store = at("store"),
            trail = at("trail"),
        );
        text.parse().expect("TOML")
    }

    /// The configuration as it is on disk.
    pub fn config(&self) -> toml::Table {
        std::fs::read_to_string(self.config_file()).expect("readable").parse().expect("TOML")
    }

    pub fn write_config(&self, config: &toml::Table) {
        std::fs::write(self.config_file(), config.to_string()).expect("written");
    }

    pub fn config_file(&self) -> PathBuf {
        match &self.roots {
            Some(roots) => roots.join("strongroom.toml"),
            None => self.path("strongroom.toml"),
        }
    }

    /// Has configuration, policy and binary lie in a directory of this user's, as a package puts them there,
    /// however lesser the user of the daemon is.
    pub fn use_config_in(&mut self, roots: &Path) {
        let mut config = self.config();
        let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/config/policy");
        let policy = roots.join("policy");
        tool("cp", &["-r".as_ref(), shipped.as_ref(), policy.as_os_str()]);
        config["policy"]["directory"] = policy.display().to_string().into();
        copy_program(&roots.join("strongroom"));
        self.roots = Some(roots.to_owned());
        self.write_config(&config);
    }

    /// The real binary, where the daemon's user may run it.
    pub fn program(&self) -> PathBuf {
        match &self.roots {
            Some(roots) => roots.join("strongroom"),
            None => env!("CARGO_BIN_EXE_strongroom").into(),
        }
    }

    /// A path in the appliance's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("s.sock")
    }

    pub fn trail(&self) -> PathBuf {
        self.config()["audit"]["directory"].as_str().expect("a path").into()
    }

    pub fn token(&self) -> &TestToken {
        &self.token
    }

    /// Starts the daemon and waits until it answers and custody has settled.
    pub fn start(&mut self) {
        self.spawn();
        let until = Instant::now() + PATIENCE;
        loop {
            let front = self.front.as_mut().expect("just started");
            if let Some(status) = front.try_wait().expect("waits") {
                panic!("the daemon ended with {status}:\n{}", self.log());
            }
            let settled = UnixStream::connect(self.socket()).is_ok()
                && self.get("/v1/status").json()["state"] != "token-unavailable";
            if settled {
                return;
            }
            assert!(Instant::now() < until, "the daemon does not answer:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts the daemon and waits for nothing.
    pub fn spawn(&mut self) {
        assert!(self.front.is_none(), "it runs already");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("log"));
        let (name, conf) = self.token.environment();
        let mut command = match self.user {
            None => Command::new(env!("CARGO_BIN_EXE_strongroom")),
            Some(user) if self.roots.is_some() => user.command(&self.program()),
            Some(user) => user.command(&self.path("strongroom")),
        };
        if let Some(before) = self.before_exec {
            // SAFETY: whoever set it answers for its being fit for the time between fork and exec.
            unsafe { command.pre_exec(before) };
        }
        let child = command
            .args(["serve", "--config"])
            .arg(self.config_file())
            .env(name, conf)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("a log"))
            .spawn();
        self.front = Some(child.expect("the daemon starts"));
    }

    /// Sets a variable for daemons that are started from now on.
    pub fn set_environment(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// The variables that daemons are started with.
    pub fn environment(&self) -> impl Iterator<Item = (&str, &str)> {
        self.environment.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Has daemons that are started from now on do this before they become one: system calls alone.
    pub fn before_exec(&mut self, before: fn() -> std::io::Result<()>) {
        self.before_exec = Some(before);
    }

    /// Moves the clock of daemons that are started from now on by `+2d` and the like (libfaketime); what
    /// measures time that passes is left.
    pub fn move_clock(&mut self, by: &str) {
        self.fake_clock();
        self.set_environment("FAKETIME", by);
    }

    /// Has daemons that are started from now on follow [`Appliance::set_clock`] while they run.
    pub fn follow_clock(&mut self) {
        self.fake_clock();
        self.set_clock("+0");
        let file = self.path("clock").display().to_string();
        self.set_environment("FAKETIME_TIMESTAMP_FILE", &file);
        self.set_environment("FAKETIME_NO_CACHE", "1");
    }

    /// Moves the clock of running daemons.
    pub fn set_clock(&self, by: &str) {
        std::fs::write(self.path("clock.new"), format!("{by}\n")).expect("written");
        std::fs::rename(self.path("clock.new"), self.path("clock")).expect("renamed");
    }

    fn fake_clock(&mut self) {
        let library = ["x86_64", "aarch64"]
            .map(|machine| format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketime.so.1"))
            .into_iter()
            .find(|path| Path::new(path).exists());
        let library = library.expect("libfaketime is missing: apt-get install libfaketime");
        self.set_environment("LD_PRELOAD", &library);
        self.set_environment("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }

    /// Changes the configuration on disk; a running daemon is told by SIGHUP or a restart.
    pub fn change_config(&self, change: impl FnOnce(&mut toml::Table)) {
        let mut config = self.config();
        change(&mut config);
        self.write_config(&config);
    }

    /// Waits for the end of a daemon that ends by itself.
    pub fn wait_for_end(&mut self) -> std::process::ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            let front = self.front.as_mut().expect("it runs");
            if let Some(status) = front.try_wait().expect("waits") {
                self.front = None;
                return status;
            }
            assert!(Instant::now() < until, "the daemon does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until a spawned daemon either serves (`false`) or has ended with a failure (`true`).
    pub fn settled(&mut self) -> bool {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let front = self.front.as_mut().expect("it was spawned");
            if let Some(status) = front.try_wait().expect("waits") {
                assert!(!status.success(), "it ended well, unasked");
                self.front = None;
                return true;
            }
            if UnixStream::connect(self.socket()).is_ok()
                && self.get("/v1/status").json()["state"] != "token-unavailable"
            {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the daemon neither serves nor ends:\n{}", self.log());
    }

    /// Everything that both processes have logged. Lines are written a moment after what they are about.
    pub fn log(&self) -> String {
        let read = || std::fs::read_to_string(self.path("log")).unwrap_or_default();
        let mut log = read();
        for _ in 0..50 {
            std::thread::sleep(Duration::from_millis(20));
            let now = read();
            if now.len() == log.len() {
                break;
            }
            log = now;
        }
        log
    }

    pub fn front_pid(&self) -> u32 {
        self.front.as_ref().expect("it runs").id()
    }

    /// The process that the front has had started: its supervisor's child.
    pub fn custody_pid(&self) -> u32 {
        let front = self.front_pid();
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Some(custody) = child_of(front).and_then(child_of) {
                return custody;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the front has no child:\n{}", self.log());
    }

    /// The process beside custody that looks whether the token is there.
    pub fn probe_pid(&self) -> Option<u32> {
        child_of(self.custody_pid())
    }

    /// SIGTERM, and its end; panics where that is no success. Returns how long it took.
    pub fn stop(&mut self) -> Duration {
        let started = Instant::now();
        self.signal(nix::sys::signal::Signal::SIGTERM);
        let status = self.front.take().expect("it runs").wait().expect("waits");
        assert!(status.success(), "it ended with {status}:\n{}", self.log());
        started.elapsed()
    }

    /// kill -9 of the front; custody goes with it.
    pub fn kill(&mut self) {
        let mut front = self.front.take().expect("it runs");
        front.kill().expect("killed");
        front.wait().expect("waits");
    }

    pub fn restart(&mut self) {
        self.stop();
        self.start();
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.front_pid() as i32);
        nix::sys::signal::kill(pid, signal).expect("signalled");
    }

    /// Waits until the log has this text behind its first `from` bytes.
    pub fn wait_for_log(&self, from: usize, text: &str) {
        wait_until(&format!("\"{text}\" in the log"), || {
            self.log().get(from..).is_some_and(|log| log.contains(text))
        });
    }

    /// Waits until the status names this state.
    pub fn wait_for_state(&self, state: &str) {
        wait_until(&format!("the state {state}"), || {
            UnixStream::connect(self.socket()).is_ok()
                && self.get("/v1/status").json()["state"] == state
        });
    }

    pub fn get(&self, path: &str) -> Reply {
        self.request("GET", path, "", b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.request("POST", path, JSON, body.to_string().as_bytes())
    }

    pub fn put(&self, path: &str, body: &Value) -> Reply {
        self.request("PUT", path, JSON, body.to_string().as_bytes())
    }

    pub fn delete(&self, path: &str, body: &Value) -> Reply {
        self.request("DELETE", path, JSON, body.to_string().as_bytes())
    }

    /// One request on a connection of its own. `headers` are whole lines.
    pub fn request(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Reply {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: strongroom\r\nconnection: close\r\n\
             content-length: {}\r\n{headers}\r\n",
            body.len()
        );
        Reply::parse(&self.raw(&[head.as_bytes(), body].concat()))
    }

    /// Writes bytes to a new connection and reads to its end.
    pub fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = UnixStream::connect(self.socket()).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        // A server that refuses early may close before all was written; its answer counts.
        let _ = stream.write_all(bytes);
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        reply
    }

    /// The real command against this daemon.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        self.cli_with(arguments, b"")
    }

    /// The same with something on stdin.
    pub fn cli_with(&self, arguments: &[&str], stdin: &[u8]) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_strongroom"))
            .args(arguments)
            .env("STRONGROOM_SOCKET", self.socket())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        // A command that reads nothing may have ended by now.
        let _ = child.stdin.take().expect("piped").write_all(stdin);
        child.wait_with_output().expect("waits")
    }

    /// Creates a key and returns its public half as SPKI PEM.
    pub fn create_key(&self, name: &str) -> String {
        let body = json!({ "name": name, "algorithm": "RSA-2048" });
        self.post("/v1/keys", &body).expect_status(201);
        let public = self.get(&format!("/v1/keys/{name}/public?format=spki-pem"));
        public.expect_status(200).text()
    }
}

impl Appliance {
    /// Creates a key that all services decrypt with, as policy is shipped; returns its public half.
    pub fn create_shared_key(&self, name: &str) -> String {
        let labels = json!({ "shared": "services" });
        let body = json!({ "name": name, "algorithm": "RSA-2048", "labels": labels });
        self.post("/v1/keys", &body).expect_status(201);
        let public = self.get(&format!("/v1/keys/{name}/public?format=spki-pem"));
        public.expect_status(200).text()
    }
}

/// The first child of any thread of a process.
fn child_of(process: u32) -> Option<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).ok()?;
    tasks.flatten().find_map(|task| {
        let children = std::fs::read_to_string(task.path().join("children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    })
}

impl User {
    /// A program that runs as this user.
    fn command(self, program: &Path) -> Command {
        use nix::sys::resource::{Resource, setrlimit};
        let mut command = Command::new(program);
        command.uid(self.uid).gid(self.uid);
        let limit =
            move || setrlimit(Resource::RLIMIT_MEMLOCK, self.lockable_bytes, self.lockable_bytes);
        // SAFETY: one system call between fork and exec, which allocates nothing.
        unsafe { command.pre_exec(move || limit().map_err(Into::into)) };
        command
    }
}

/// Runs a program of the system, which has to succeed.
fn tool(name: &str, arguments: &[&std::ffi::OsStr]) {
    let status = Command::new(name).args(arguments).status();
    assert!(status.expect("it starts").success(), "{name} {arguments:?} failed");
}

/// The header line of a JSON body.
pub const JSON: &str = "content-type: application/json\r\n";

impl Drop for Appliance {
    fn drop(&mut self) {
        if let Some(mut front) = self.front.take() {
            let _ = front.kill();
            let _ = front.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("the daemon's last lines:");
            for line in tail.into_iter().rev() {
                eprintln!("  {line}");
            }
        }
    }
}

/// Copies the program by another process: a child that is forked meanwhile would keep the copy open for writing.
fn copy_program(to: &Path) {
    let status = Command::new("cp").arg(env!("CARGO_BIN_EXE_strongroom")).arg(to).status();
    assert!(status.expect("cp runs").success());
}

/// Polls until `is` is true; panics after [`PATIENCE`].
#[track_caller]
pub fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < until, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Encrypts with `openssl pkeyutl`: RSAES-OAEP, SHA-256, MGF1-SHA-256.
pub fn openssl_encrypt(public_pem: &str, plaintext: &[u8], directory: &Path) -> Vec<u8> {
    let file = directory.join("public.pem");
    std::fs::write(&file, public_pem).expect("written");
    let mut child = Command::new("openssl")
        .args(["pkeyutl", "-encrypt", "-pubin", "-inkey"])
        .arg(&file)
        .args(["-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256"])
        .args(["-pkeyopt", "rsa_mgf1_md:sha256"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("openssl is installed");
    child.stdin.take().expect("piped").write_all(plaintext).expect("written");
    let output = child.wait_with_output().expect("waits");
    assert!(output.status.success(), "openssl failed");
    output.stdout
}
