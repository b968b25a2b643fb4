//! An attacker inside each process, as root: what it tries to get out, and that it cannot.
//!
//! The attacker is `tests/support/attacker.rs`: in custody the PKCS#11 module, in the front a preloaded
//! library. Without the sandbox the same attempts succeed, or this would show nothing.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::json;

use crate::appliance::{Appliance, wait_until};

/// Builds the attacker, once.
fn attacker() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let library = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("libattacker-{}.so", std::process::id()));
        let built = Command::new("rustc")
            .args(["--edition", "2024", "--crate-type", "cdylib", "-o"])
            .arg(&library)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/attacker.rs"))
            .output()
            .expect("rustc starts");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        library
    })
}

/// What is tried, and what became of it: `done`, or the number of the error.
pub type Report = BTreeMap<String, String>;

/// An appliance with the attacker in one of its processes, and the directory of plan and report.
pub struct Scene {
    pub appliance: Appliance,
    directory: PathBuf,
    _listener: TcpListener,
    address: String,
}

impl Scene {
    pub fn new(mode: &str, in_custody: bool) -> Self {
        Self::changed(mode, in_custody, |_| {})
    }

    /// The same, with an appliance that `change` has changed before it starts.
    pub fn changed(mode: &str, in_custody: bool, change: impl FnOnce(&Appliance)) -> Self {
        let mut appliance = Appliance::prepared(|config| {
            let sandbox: toml::Table = format!("mode = \"{mode}\"").parse().expect("TOML");
            config.insert("sandbox".to_owned(), sandbox.into());
        });
        let directory = appliance.path(if in_custody { "attack" } else { "store" });
        if in_custody {
            std::fs::create_dir(&directory).expect("made");
            appliance.change_config(|config| {
                let module = attacker().display().to_string();
                config["token"]["module"] = module.into();
                let write = format!("sandbox.write = [\"{}\"]", directory.display());
                let write: toml::Table = write.parse().expect("TOML");
                config["custody"].as_table_mut().expect("a table").extend(write);
            });
        } else {
            appliance.set_environment("LD_PRELOAD", &attacker().display().to_string());
        }
        appliance.set_environment("ATTACK_DIR", &directory.display().to_string());
        change(&appliance);
        appliance.start();
        appliance.post("/v1/init", &json!({})).expect_status(201);
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("bound").to_string();
        Self { appliance, directory, _listener: listener, address }
    }

    /// Has the attacker wake, and returns its report.
    fn attack(&self, plan: &[String], wake: impl FnOnce(&Appliance)) -> Report {
        std::fs::write(self.directory.join("new"), plan.join("\n")).expect("written");
        std::fs::rename(self.directory.join("new"), self.directory.join("plan")).expect("moved");
        wake(&self.appliance);
        let report = self.directory.join("report");
        wait_until("the attacker's report", || report.exists());
        let text = std::fs::read_to_string(report).expect("readable");
        let lines = text.lines().filter_map(|line| line.split_once('\t'));
        lines.map(|(attempt, end)| (attempt.to_owned(), end.to_owned())).collect()
    }

    pub fn in_custody(&self, plan: &[String]) -> Report {
        self.attack(plan, |appliance| {
            appliance.post("/v1/lock", &json!({})).expect_status(200);
            appliance.post("/v1/unlock", &json!({})).expect_status(200);
        })
    }

    pub fn in_the_front(&self, plan: &[String]) -> Report {
        self.attack(plan, |appliance| {
            appliance.get("/v1/status").expect_status(200);
        })
    }

    pub fn at(&self, name: &str) -> String {
        self.appliance.path(name).display().to_string()
    }

    /// A file of the token with keys in it.
    pub fn token_object(&self) -> String {
        let tokens = self.appliance.token().tokens();
        let token = std::fs::read_dir(tokens).expect("readable").flatten().next();
        token.expect("a token").path().join("token.object").display().to_string()
    }

    /// What nobody's code may do, in either process, though root's may.
    fn ways_out(&self, victim: u32) -> Vec<String> {
        let address = &self.address;
        vec![
            format!("tcp {address}"),
            "tcp-listen 127.0.0.1:0".to_owned(),
            format!("udp {address}"),
            "execute /bin/true".to_owned(),
            "execute-here /bin/true".to_owned(),
            format!("peek {victim}"),
            format!("take-descriptor {victim}"),
            format!("open /proc/{victim}/mem"),
            format!("read /proc/{victim}/maps"),
            format!("list /proc/{victim}/fd"),
            format!("signal {victim}"),
            format!("write {}", self.at("elsewhere")),
            format!("make {}", self.at("directory")),
            "read /var/lib/dpkg/status".to_owned(),
            "list /home".to_owned(),
        ]
    }
}

/// What anybody on this machine could take up.
fn shared() -> Vec<String> {
    let queue = format!("posix-queue strongroom-attacker-{}", std::process::id());
    vec!["shared-memory".into(), "queue".into(), "semaphore".into(), queue]
}

/// How a file of a process's own is opened to others.
fn opened(file: &str) -> Vec<String> {
    ["world-readable", "world-readable-at", "give-away", "attribute", "date"]
        .map(|verb| format!("{verb} {file}"))
        .into()
}

/// What would harm the machine, or succeed once only, were it not refused.
fn harmful(victim: u32) -> Vec<String> {
    let mut all = vec![format!("trace {victim}"), "dumpable".to_owned(), "namespace".to_owned()];
    // mount, chroot, init_module, keyctl, perf_event_open, open_by_handle_at, setns, bpf,
    // userfaultfd, io_uring_setup, clone3; one that is not there yet; getpid by the x32 ABI.
    #[cfg(target_arch = "x86_64")]
    all.extend(
        [165, 161, 175, 250, 298, 304, 308, 321, 323, 425, 435, 600, 0x4000_0027]
            .map(|number: u32| format!("call {number}")),
    );
    all
}

/// Nothing of it was done, and each for want of a right (EPERM, EACCES) or of the call (ENOSYS).
#[track_caller]
pub fn expect_refused(report: &Report, attempts: &[String]) {
    for attempt in attempts {
        let end = report.get(attempt).unwrap_or_else(|| panic!("not tried: {attempt}"));
        assert!(
            ["refused 1", "refused 13", "refused 38"].contains(&end.as_str()),
            "{attempt}: {end}"
        );
    }
}

#[track_caller]
pub fn expect_done(report: &Report, attempts: &[String]) {
    for attempt in attempts {
        assert_eq!(report.get(attempt).map(String::as_str), Some("done"), "{attempt}");
    }
}

/// Every thread there is has entered it.
#[track_caller]
fn expect_every_thread_inside(process: u32) {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    for task in tasks.flatten() {
        let status = std::fs::read_to_string(task.path().join("status")).expect("readable");
        let is = |line: &str| status.lines().any(|found| found == line);
        assert!(is("NoNewPrivs:\t1") && is("Seccomp:\t2"), "{status}");
    }
}

#[test]
fn an_attacker_in_custody_takes_nothing_out() {
    let scene = Scene::new("require", true);
    let front = scene.appliance.front_pid();
    let mut refused = scene.ways_out(front);
    refused.extend(harmful(front));
    refused.extend(shared());
    refused.extend(opened(&scene.token_object()));
    refused.extend(opened(&scene.appliance.token().pin_file().display().to_string()));
    refused.extend([
        format!("open-umask {}", scene.appliance.token().tokens().join("open").display()),
        format!("read {}", scene.at("store/db")),
        format!("list {}", scene.at("trail")),
        format!("write {}", scene.at("trail/more")),
        format!("read {}", scene.appliance.config_file().display()),
        format!("write {}", scene.appliance.token().conf().display()),
        format!("write {}", attacker().display()),
        format!("connect {}", scene.at("s.sock")),
        "read /etc/shadow".to_owned(),
    ]);
    let tokens = scene.appliance.token().tokens();
    let allowed = [
        format!("read {}", scene.token_object()),
        format!("write {}", tokens.join("mark").display()),
        format!("remove {}", tokens.join("mark").display()),
        format!("read {}", scene.appliance.token().pin_file().display()),
        format!("read {}", attacker().display()),
    ];
    let report = scene.in_custody(&[&refused[..], &allowed[..]].concat());
    expect_refused(&report, &refused);
    expect_done(&report, &allowed);
    let mark = std::fs::metadata(scene.directory.join("report")).expect("there");
    assert_eq!(mark.permissions().mode() & 0o077, 0, "what custody makes is its user's alone");
    expect_every_thread_inside(scene.appliance.custody_pid());
    scene.appliance.create_key("it-works-on");
}

#[test]
fn an_attacker_in_the_front_reaches_no_key() {
    let scene = Scene::new("require", false);
    scene.appliance.create_key("payments");
    let (custody, front) = (scene.appliance.custody_pid(), scene.appliance.front_pid());
    let mut refused = scene.ways_out(custody);
    refused.extend(harmful(custody));
    refused.extend(shared());
    refused.extend(opened(&scene.at("store/db")));
    let token = scene.appliance.token();
    refused.extend([
        format!("read {}", token.pin_file().display()),
        format!("list {}", token.tokens().display()),
        format!("read {}", scene.token_object()),
        format!("write {}", token.tokens().join("mark").display()),
        format!("rename {}", scene.token_object()),
        format!("read {}", token.conf().display()),
        format!("write {}", scene.appliance.config_file().display()),
    ]);
    let allowed = [
        format!("read {}", scene.appliance.config_file().display()),
        format!("list {}", scene.at("trail")),
        format!("write {}", scene.at("store/mark")),
        format!("read /proc/{front}/status"),
    ];
    // It serves others, and goes to none of them.
    refused.push(format!("connect {}", scene.at("s.sock")));
    let report = scene.in_the_front(&[&refused[..], &allowed[..]].concat());
    expect_refused(&report, &refused);
    expect_done(&report, &allowed);
    expect_every_thread_inside(front);
    let answer = scene.appliance.get("/v1/keys/payments");
    answer.expect_status(200);
}

#[test]
fn without_the_sandbox_the_same_attempts_succeed() {
    let scene = Scene::new("off", true);
    let mut ways_out = scene.ways_out(scene.appliance.front_pid());
    ways_out.extend(shared());
    ways_out.extend(opened(&scene.token_object()));
    ways_out.push(format!("open-umask {}", scene.at("attack/open")));
    expect_done(&scene.in_custody(&ways_out), &ways_out);
    let scene = Scene::new("off", false);
    let mut ways_out = scene.ways_out(scene.appliance.custody_pid());
    ways_out.push(format!("read {}", scene.appliance.token().pin_file().display()));
    ways_out.push(format!("read {}", scene.token_object()));
    ways_out.extend(shared());
    expect_done(&scene.in_the_front(&ways_out), &ways_out);
}

#[test]
fn doctor_and_status_say_what_is_in_force() {
    let appliance = Appliance::new();
    let status = appliance.get("/v1/status").expect_status(200).json();
    for process in ["front", "custody"] {
        let said = status["sandbox"][process].as_str().expect("text");
        assert!(said.contains("Landlock") && said.contains("seccomp"), "{status}");
    }
    let doctor = appliance.get("/v1/doctor").expect_status(200).json();
    let checks = doctor["checks"].as_array().expect("checks");
    for name in ["sandbox of custody", "sandbox of the front"] {
        let check = checks.iter().find(|check| check["name"] == name).expect(name);
        assert_eq!(check["result"], "ok", "{check}");
        let detail = check["detail"].as_str().expect("text");
        assert!(detail.contains("Landlock") && detail.contains("seccomp"), "{detail}");
    }
}

#[test]
fn a_replaced_pin_file_is_read_by_the_next_custody() {
    let appliance = Appliance::new();
    let pin = appliance.token().pin_file();
    let before = appliance.custody_pid();
    let new = pin.with_extension("new");
    std::fs::copy(&pin, &new).expect("copied");
    std::fs::rename(&new, &pin).expect("replaced");
    appliance.post("/v1/lock", &json!({})).expect_status(200);
    std::fs::copy(&pin, &new).expect("copied");
    std::fs::rename(&new, &pin).expect("replaced");
    // The one that came after the lock has not seen this file: it may have to be replaced first.
    wait_until("the appliance to be unlocked", || {
        matches!(appliance.post("/v1/unlock", &json!({})).status, 200 | 409)
    });
    appliance.wait_for_state("ready");
    assert_ne!(appliance.custody_pid(), before);
}

#[test]
fn a_configuration_that_was_replaced_is_read_at_a_reload() {
    let appliance = Appliance::new();
    let config = appliance.config_file();
    let new = appliance.path("new.toml");
    std::fs::copy(&config, &new).expect("copied");
    std::fs::rename(&new, &config).expect("replaced");
    let from = appliance.log().len();
    appliance.signal(nix::sys::signal::Signal::SIGHUP);
    appliance.wait_for_log(from, "loaded anew");
}

#[test]
fn a_pin_beside_the_configuration_is_warned_of() {
    let mut appliance = Appliance::prepared(|_| {});
    let check = |appliance: &Appliance| {
        let file = appliance.config_file().display().to_string();
        let checked = appliance.cli(&["config", "check", "--config", &file]);
        assert!(checked.status.success(), "{checked:?}");
        String::from_utf8(checked.stdout).expect("text")
    };
    assert!(!check(&appliance).contains("warning"), "{}", check(&appliance));
    let pin = appliance.path("pin");
    std::fs::copy(appliance.token().pin_file(), &pin).expect("copied");
    appliance.change_config(|config| {
        config["token"]["pin_file"] = pin.display().to_string().into();
    });
    let warning = format!("warning: [token] pin_file: {} lies beneath", pin.display());
    assert!(check(&appliance).contains(&warning), "{}", check(&appliance));
    appliance.start();
    let doctor = appliance.get("/v1/doctor").expect_status(200).json();
    let checks = doctor["checks"].as_array().expect("checks").iter();
    let found: Vec<_> = checks.filter(|check| check["name"] == "hidden files").collect();
    assert!(found.len() == 1 && found[0]["result"] == "warn", "{doctor}");
}
