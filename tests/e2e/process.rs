//! The two processes as others see them: shut against dumps and debuggers, at home under an ordinary
//! user with the usual limits, and not to be started without their allocator.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::json;

use crate::appliance::{Appliance, User, wait_until};
use crate::scan;

/// A user that owns nothing and is in no group.
const STRANGER: u32 = 64_999;

const MIB: u64 = 1 << 20;

fn processes(appliance: &Appliance) -> [u32; 2] {
    [appliance.front_pid(), appliance.custody_pid()]
}

fn of(pid: u32, file: &str) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/{file}")).expect("root reads it")
}

fn output(mut command: Command, install: &str) -> Output {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut output = command.stdin(Stdio::null()).output();
    // Another test's child may still have the file open that was just written, until it executes.
    for _ in 0..50 {
        match &output {
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                std::thread::sleep(std::time::Duration::from_millis(20));
                output = command.output();
            }
            _ => break,
        }
    }
    output.unwrap_or_else(|error| panic!("{name}: {error}; {install}"))
}

#[track_caller]
fn expect_shut(pid: u32) {
    let limits = of(pid, "limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size"));
    let words: Vec<_> = core.unwrap_or_default().split_whitespace().collect();
    assert_eq!(words[4..6], ["0", "0"], "soft and hard limit of core files: {limits}");
    // What belongs to a process that can be dumped belongs to its user; else it is root's.
    for file in ["mem", "environ", "maps"] {
        let meta = std::fs::metadata(format!("/proc/{pid}/{file}")).expect("it runs");
        assert_eq!((meta.uid(), meta.gid()), (0, 0), "{file} of {pid}");
    }
}

#[test]
fn both_processes_work_under_an_ordinary_user_and_are_shut_to_that_user() {
    let mut appliance = Appliance::of_user(User { uid: STRANGER, lockable_bytes: 8 * MIB });
    appliance.start();
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance.create_key("payments");
    let body = json!({ "key": "payments", "plaintext": "c2VjcmV0" });
    appliance.put("/v1/secrets/token", &body).expect_status(201);
    let revealed = appliance.post("/v1/secrets/token/reveal", &json!({}));
    assert_eq!(revealed.expect_status(200).json()["plaintext"], "c2VjcmV0");

    for pid in processes(&appliance) {
        let user = format!("Uid:\t{STRANGER}\t{STRANGER}\t{STRANGER}\t{STRANGER}");
        assert!(of(pid, "status").contains(&user), "{}", of(pid, "status"));
        let limits = of(pid, "limits");
        let locked = limits.lines().find(|line| line.starts_with("Max locked memory"));
        assert_eq!(locked.map(|line| line.matches("8388608").count()), Some(2), "{limits}");
        assert!(scan::mappings(pid).expect("root").iter().any(scan::Mapping::is_arena));
        expect_shut(pid);
    }
    others_of_the_user_stay_out(&appliance);
}

/// What an ordinary process of a user lets that user do, these two do not.
fn others_of_the_user_stay_out(appliance: &Appliance) {
    let mut sleeper = Command::new("sleep").arg("600").uid(STRANGER).spawn().expect("sleep");
    let open = sleeper.id();
    wait_until("the other program", || of(open, "comm") == "sleep\n");
    for (pid, may) in [(open, true)].into_iter().chain(processes(appliance).map(|pid| (pid, false)))
    {
        let mut read = Command::new("cat");
        read.arg(format!("/proc/{pid}/environ")).uid(STRANGER);
        assert_eq!(output(read, "").status.success(), may, "reading the environment of {pid}");
    }
    for pid in processes(appliance) {
        let mut attach = Command::new("gdb");
        attach.args(["-nx", "-batch", "-p", &pid.to_string(), "-ex", "info threads"]);
        attach.uid(STRANGER).env("HOME", "/nonexistent");
        let tried = output(attach, "apt-get install gdb");
        let errors = String::from_utf8_lossy(&tried.stderr);
        assert!(errors.contains("ptrace: Operation not permitted"), "{pid}: {errors}");
        assert!(of(pid, "status").contains("TracerPid:\t0\n"));
    }
    sleeper.kill().expect("killed");
    sleeper.wait().expect("waits");
}

#[test]
fn both_processes_are_shut_when_root_runs_them() {
    let appliance = Appliance::uninitialised();
    for pid in processes(&appliance) {
        expect_shut(pid);
    }
}

#[test]
fn too_little_lockable_memory_is_told_with_what_mends_it() {
    let mut appliance = Appliance::of_user(User { uid: STRANGER, lockable_bytes: MIB / 2 });
    appliance.spawn();
    appliance.wait_for_log(0, "RLIMIT_MEMLOCK is 524288 bytes");
    appliance.wait_for_log(0, "LimitMEMLOCK=");
    assert!(!appliance.socket().exists(), "it serves nobody");
}

#[test]
fn custody_does_not_start_without_room_for_the_stacks_that_keys_are_used_on() {
    let mut appliance = Appliance::of_user(User { uid: STRANGER, lockable_bytes: 8 * MIB });
    appliance.change_config(|config| {
        // With the arena's 4 MiB, there is room for fewer stacks of 64 KiB than that.
        config["custody"].as_table_mut().expect("a table").insert("workers".to_owned(), 64.into());
    });
    appliance.spawn();
    appliance.wait_for_log(0, "the kernel refused 65536 bytes of");
    appliance.wait_for_log(0, "raise LimitMEMLOCK=");
    appliance.wait_for_state("token-unavailable");
}

const HOOKS: [&str; 4] = [
    "OPENSSL_memory_alloc",
    "OPENSSL_memory_free",
    "OPENSSL_memory_get_size",
    "OPENSSL_memory_realloc",
];

/// The address of a symbol that a binary defines itself, as a strong function.
fn defined(binary: &Path, symbol: &str) -> Option<u64> {
    let mut nm = Command::new("nm");
    nm.arg("--defined-only").arg(binary);
    let symbols = output(nm, "apt-get install binutils");
    let symbols = String::from_utf8_lossy(&symbols.stdout).into_owned();
    symbols.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (address, kind, name) = (fields.next()?, fields.next()?, fields.next()?);
        let found = name == symbol && matches!(kind, "T" | "t");
        found.then(|| u64::from_str_radix(address, 16).ok()).flatten()
    })
}

#[test]
fn the_binary_defines_the_allocator_that_aws_lc_asks_for() {
    let binary = Path::new(env!("CARGO_BIN_EXE_strongroom"));
    for symbol in HOOKS {
        assert!(defined(binary, symbol).is_some(), "{symbol} is not in {}", binary.display());
    }
    assert!(defined(binary, "OPENSSL_no_such_thing").is_none());
}

/// A binary whose allocator gives nothing, as one that was linked without it would have none: it must
/// notice before it touches PIN or token.
#[test]
fn custody_does_not_start_without_its_allocator() {
    let appliance = Appliance::uninitialised();
    let binary = Path::new(env!("CARGO_BIN_EXE_strongroom"));
    let address = defined(binary, HOOKS[0]).expect("it is there");
    let mut bytes = std::fs::read(binary).expect("readable");
    let at = file_offset(&bytes, address).expect("it lies in the file");
    let gives_null: &[u8] = if cfg!(target_arch = "x86_64") {
        &[0x31, 0xc0, 0xc3] // xor eax, eax; ret
    } else {
        &[0x00, 0x00, 0x80, 0xd2, 0xc0, 0x03, 0x5f, 0xd6] // mov x0, #0; ret
    };
    bytes[at..at + gives_null.len()].copy_from_slice(gives_null);
    let crippled = appliance.path("crippled");
    std::fs::write(&crippled, bytes).expect("written");
    std::fs::set_permissions(&crippled, std::fs::Permissions::from_mode(0o755)).expect("chmod");

    let mut custody = Command::new(&crippled);
    let socket = appliance.path("other.sock");
    custody.arg("custody").arg("--config").arg(appliance.config_file());
    custody.arg("--listen").arg(&socket).envs([appliance.token().environment()]);
    let ended = output(custody, "");
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success(), "it started: {errors}");
    assert!(errors.contains("aws-lc does not allocate from the locked arena"), "{errors}");
    assert!(!socket.exists(), "it is not to be reached");
}

/// Where in an ELF file (64 bits, little-endian) the byte lies that is loaded to an address.
fn file_offset(elf: &[u8], address: u64) -> Option<usize> {
    let word = |at: usize| {
        let bytes = elf.get(at..at + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    let (table, count) = (word(0x20)? as usize, u16::from_le_bytes([elf[0x38], elf[0x39]]));
    (0..usize::from(count)).find_map(|number| {
        let header = table + number * 56;
        let loaded = elf.get(header..header + 4)? == [1, 0, 0, 0];
        let (offset, start, size) = (word(header + 8)?, word(header + 16)?, word(header + 32)?);
        let here = loaded && (start..start + size).contains(&address);
        here.then_some((offset + address - start) as usize)
    })
}
