//! The attacker: code that runs inside a process of Strongroom and tries to get out of it.
//!
//! A library of its own, built by the test that uses it. Custody loads it as its PKCS#11 module (it hands
//! on to SoftHSM); the front has it preloaded, where it wakes whenever a connection is taken. Each time
//! it looks for a plan in `$ATTACK_DIR`: one attempt per line. What became of them is its report.

use std::ffi::{CString, c_char, c_int, c_long, c_ulong, c_void};
use std::fs::Permissions;
use std::io::{Error, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn syscall(number: c_long, ...) -> c_long;
    fn fork() -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, flags: c_int) -> c_int;
    fn _exit(code: c_int) -> !;
}

const RTLD_NOW: c_int = 2;
const RTLD_NEXT: *mut c_void = -1_isize as *mut c_void;
const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// What a PKCS#11 module is asked for first.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut c_void) -> c_ulong {
    attack();
    type GetList = unsafe extern "C" fn(*mut *mut c_void) -> c_ulong;
    let path = CString::new(SOFTHSM).unwrap();
    // SAFETY: the module's entry has this signature (PKCS#11 §5.4), and its list outlives the process.
    unsafe {
        let library = dlopen(path.as_ptr(), RTLD_NOW);
        let entry = dlsym(library, c"C_GetFunctionList".as_ptr());
        std::mem::transmute::<*mut c_void, GetList>(entry)(list)
    }
}

/// Stands before the C library's where this is preloaded.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn accept4(
    socket: c_int,
    address: *mut c_void,
    length: *mut c_void,
    flags: c_int,
) -> c_int {
    let command = std::fs::read("/proc/self/cmdline").unwrap_or_default();
    if command.split(|byte| *byte == 0).any(|word| word == b"serve") {
        attack();
    }
    type Accept = unsafe extern "C" fn(c_int, *mut c_void, *mut c_void, c_int) -> c_int;
    // SAFETY: the next one of this name is the C library's own.
    unsafe {
        let next = dlsym(RTLD_NEXT, c"accept4".as_ptr());
        std::mem::transmute::<*mut c_void, Accept>(next)(socket, address, length, flags)
    }
}

/// Carries the plan out, if there is one, and reports: `attempt<TAB>done` or `attempt<TAB>refused N`.
fn attack() {
    let Some(directory) = std::env::var_os("ATTACK_DIR").map(PathBuf::from) else { return };
    let Ok(plan) = std::fs::read_to_string(directory.join("plan")) else { return };
    if std::fs::remove_file(directory.join("plan")).is_err() {
        return; // another thread is at it
    }
    let mut report = String::new();
    for line in plan.lines() {
        let (verb, argument) = line.split_once(' ').unwrap_or((line, ""));
        let end = match attempt(verb, argument) {
            Ok(()) => "done".to_owned(),
            Err(error) => format!("refused {}", error.raw_os_error().unwrap_or(0)),
        };
        report.push_str(&format!("{line}\t{end}\n"));
    }
    std::fs::write(directory.join("unfinished"), report).expect("a report");
    std::fs::rename(directory.join("unfinished"), directory.join("report")).expect("a report");
}

fn attempt(verb: &str, argument: &str) -> Result<(), Error> {
    let pid = || argument.parse::<c_long>().map_err(|_| Error::from(ErrorKind::InvalidInput));
    match verb {
        "read" => std::fs::File::open(argument)?.read(&mut [0; 16]).map(drop),
        "open" => std::fs::File::open(argument).map(drop),
        "list" => std::fs::read_dir(argument).map(drop),
        "write" => std::fs::OpenOptions::new().append(true).create(true).open(argument).map(drop),
        "remove" => std::fs::remove_file(argument),
        "rename" => std::fs::rename(argument, format!("{argument}.moved")),
        "make" => std::fs::create_dir(argument),
        "tcp" => std::net::TcpStream::connect(argument).map(drop),
        "tcp-listen" => std::net::TcpListener::bind(argument).map(drop),
        "udp" => std::net::UdpSocket::bind("127.0.0.1:0")?.send_to(b"key", argument).map(drop),
        "connect" => std::os::unix::net::UnixStream::connect(argument).map(drop),
        "connect-packets" => reach(argument, SOCK_SEQPACKET, CONNECT),
        "connect-datagrams" => reach(argument, SOCK_DGRAM, CONNECT),
        "connect-abstract" => reach(&format!("\0{argument}"), SOCK_STREAM, CONNECT),
        "datagram" => reach(argument, SOCK_DGRAM, SENDTO),
        "message" => reach(argument, SOCK_DGRAM, SENDMSG),
        "netlink" => raw(SOCKET, &[AF_NETLINK, SOCK_RAW, 0]),
        "family" => raw(SOCKET, &[pid()?, SOCK_RAW, 0]),
        "execute" => std::process::Command::new(argument).status().map(drop),
        "execute-here" => in_child(|| raw(EXECVE, &[argument_pointer(argument), 0, 0])),
        "trace" => raw(PTRACE, &[PTRACE_SEIZE, pid()?, 0, 0]),
        "peek" => peek(pid()?),
        "take-descriptor" => take_descriptor(pid()?),
        "signal" => raw(KILL, &[pid()?, 0]),
        "dumpable" => raw(PRCTL, &[PR_SET_DUMPABLE, 1]),
        "namespace" => raw(UNSHARE, &[CLONE_NEWUSER]),
        "call" => raw(pid()?, &[0; 6]),
        "shared-memory" => shared_memory(),
        "queue" => queue(),
        "semaphore" => semaphore(),
        "posix-queue" => posix_queue(argument),
        "world-readable" => std::fs::set_permissions(argument, Permissions::from_mode(0o644)),
        "world-readable-at" => {
            raw(FCHMODAT, &[AT_FDCWD, argument_pointer(argument), 0o644])
        }
        "give-away" => std::os::unix::fs::chown(argument, Some(65534), None),
        "attribute" => attribute(argument),
        "date" => date(argument),
        "open-umask" => open_umask(argument),
        "fork" => in_child(|| Ok(())),
        "pass-descriptor" => pass_descriptor(),
        "suid-program" => suid_program(argument),
        "limit" => raw(PRLIMIT, &[pid()?, RLIMIT_FSIZE, [u64::MAX; 2].as_ptr() as c_long, 0]),
        "priority" => raw(SETPRIORITY, &[0, pid()?, 0]),
        "priority-of-user" => raw(SETPRIORITY, &[2, pid()?, 0]),
        "processors" => {
            raw(SCHED_SETAFFINITY, &[pid()?, 128, [u64::MAX; 16].as_ptr() as c_long])
        }
        "schedule" => raw(SCHED_SETSCHEDULER, &[pid()?, 0, [0_i32].as_ptr() as c_long]),
        _ => Err(ErrorKind::Unsupported.into()),
    }
}

// Numbers of x86-64, and those that all processors share.
#[cfg(target_arch = "x86_64")]
mod numbers {
    use std::ffi::c_long;
    pub const SOCKET: c_long = 41;
    pub const CONNECT: c_long = 42;
    pub const SENDTO: c_long = 44;
    pub const SENDMSG: c_long = 46;
    pub const EXECVE: c_long = 59;
    pub const KILL: c_long = 62;
    pub const PTRACE: c_long = 101;
    pub const PRCTL: c_long = 157;
    pub const UNSHARE: c_long = 272;
    pub const PROCESS_VM_READV: c_long = 310;
    pub const SHMGET: c_long = 29;
    pub const SHMAT: c_long = 30;
    pub const SHMCTL: c_long = 31;
    pub const SEMGET: c_long = 64;
    pub const SEMCTL: c_long = 66;
    pub const MSGGET: c_long = 68;
    pub const MSGCTL: c_long = 71;
    pub const UMASK: c_long = 95;
    pub const SETXATTR: c_long = 188;
    pub const MQ_OPEN: c_long = 240;
    pub const MQ_UNLINK: c_long = 241;
    pub const FCHMODAT: c_long = 268;
    pub const UTIMENSAT: c_long = 280;
    pub const SOCKETPAIR: c_long = 53;
    pub const PRLIMIT: c_long = 302;
    pub const SETPRIORITY: c_long = 141;
    pub const SCHED_SETSCHEDULER: c_long = 144;
    pub const SCHED_SETAFFINITY: c_long = 203;
}
#[cfg(target_arch = "aarch64")]
mod numbers {
    use std::ffi::c_long;
    pub const SOCKET: c_long = 198;
    pub const CONNECT: c_long = 203;
    pub const SENDTO: c_long = 206;
    pub const SENDMSG: c_long = 211;
    pub const EXECVE: c_long = 221;
    pub const KILL: c_long = 129;
    pub const PTRACE: c_long = 117;
    pub const PRCTL: c_long = 167;
    pub const UNSHARE: c_long = 97;
    pub const PROCESS_VM_READV: c_long = 270;
    pub const SHMGET: c_long = 194;
    pub const SHMAT: c_long = 196;
    pub const SHMCTL: c_long = 195;
    pub const SEMGET: c_long = 190;
    pub const SEMCTL: c_long = 191;
    pub const MSGGET: c_long = 186;
    pub const MSGCTL: c_long = 187;
    pub const UMASK: c_long = 166;
    pub const SETXATTR: c_long = 5;
    pub const MQ_OPEN: c_long = 180;
    pub const MQ_UNLINK: c_long = 181;
    pub const FCHMODAT: c_long = 53;
    pub const UTIMENSAT: c_long = 88;
    pub const SOCKETPAIR: c_long = 199;
    pub const PRLIMIT: c_long = 261;
    pub const SETPRIORITY: c_long = 140;
    pub const SCHED_SETSCHEDULER: c_long = 119;
    pub const SCHED_SETAFFINITY: c_long = 122;
}
use numbers::*;
const AF_UNIX: c_long = 1;
const AF_NETLINK: c_long = 16;
const SOCK_STREAM: c_long = 1;
const SOCK_DGRAM: c_long = 2;
const SOCK_RAW: c_long = 3;
const SOCK_SEQPACKET: c_long = 5;
const PIDFD_OPEN: c_long = 434;
const PIDFD_GETFD: c_long = 438;
const PTRACE_SEIZE: c_long = 0x4206;
const PR_SET_DUMPABLE: c_long = 4;
const CLONE_NEWUSER: c_long = 0x1000_0000;
const AT_FDCWD: c_long = -100;
const IPC_CREAT: c_long = 0o1000;
const IPC_RMID: c_long = 0;
const RLIMIT_FSIZE: c_long = 1;
const O_CREAT_RDWR: c_long = 0o102;

/// Sends something to a Unix socket, or connects to it: by the bare calls, as code that was put here would.
fn reach(path: &str, kind: c_long, call: c_long) -> Result<(), Error> {
    let socket = raw_value(SOCKET, &[AF_UNIX, kind, 0])?;
    let mut address = [0_u8; 110];
    address[..2].copy_from_slice(&(AF_UNIX as u16).to_ne_bytes());
    address[2..2 + path.len()].copy_from_slice(path.as_bytes());
    let (at, length) = (address.as_ptr() as c_long, 2 + path.len() as c_long);
    let text = b"key";
    let part = [text.as_ptr() as c_long, 3];
    // struct msghdr: name, its length, parts, their number, control, its length, flags.
    let message = [at, length, part.as_ptr() as c_long, 1, 0, 0, 0];
    match call {
        CONNECT => raw(CONNECT, &[socket, at, length]),
        SENDTO => raw(SENDTO, &[socket, text.as_ptr() as c_long, 3, 0, at, length]),
        _ => raw(SENDMSG, &[socket, message.as_ptr() as c_long, 0]),
    }
}

/// Sends a descriptor over a connection that is there.
fn pass_descriptor() -> Result<(), Error> {
    let mut pair = [0_i32; 2];
    raw(SOCKETPAIR, &[AF_UNIX, SOCK_STREAM, 0, pair.as_mut_ptr() as c_long])?;
    let text = b"x";
    let part = [text.as_ptr() as c_long, 1];
    // struct cmsghdr: its length, SOL_SOCKET, SCM_RIGHTS; then the descriptor.
    let (rights, descriptor) = (1_u64 << 32 | 1, pair[0] as u64);
    let control = [20_u64, rights, descriptor];
    let (parts, control) = (part.as_ptr() as c_long, control.as_ptr() as c_long);
    let message = [0, 0, parts, 1, control, 24, 0];
    raw(SENDMSG, &[c_long::from(pair[1]), message.as_ptr() as c_long, 0])
}

/// A program that whoever starts it runs as this user.
fn suid_program(path: &str) -> Result<(), Error> {
    std::fs::write(path, "#!/bin/sh\nid\n")?;
    std::fs::set_permissions(path, Permissions::from_mode(0o6755))
}

/// A system call with up to six arguments.
fn raw(number: c_long, arguments: &[c_long]) -> Result<(), Error> {
    raw_value(number, arguments).map(drop)
}

fn raw_value(number: c_long, arguments: &[c_long]) -> Result<c_long, Error> {
    let at = |index: usize| arguments.get(index).copied().unwrap_or(0);
    // SAFETY: every pointer among them is null or points to what outlives the call.
    let value = unsafe { syscall(number, at(0), at(1), at(2), at(3), at(4), at(5)) };
    if value < 0 { Err(Error::last_os_error()) } else { Ok(value) }
}

fn argument_pointer(argument: &str) -> c_long {
    CString::new(argument).unwrap().into_raw() as c_long
}

/// In a child: what succeeds does not come back. The error comes through a pipe, for the front takes note of
/// every child that ends, this one too.
fn in_child(attempt: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
    let (mut outcome, mut ours) = std::io::pipe()?;
    // SAFETY: the child makes system calls alone.
    let child = unsafe { fork() };
    if child < 0 {
        return Err(Error::last_os_error());
    }
    if child == 0 {
        let code = attempt().err().and_then(|error| error.raw_os_error()).unwrap_or(0);
        let _ = ours.write_all(&code.to_ne_bytes());
        // SAFETY: it does not return.
        unsafe { _exit(0) }
    }
    drop(ours);
    let mut code = Vec::new();
    outcome.read_to_end(&mut code)?;
    let mut status = 0;
    // SAFETY: the status outlives the call.
    unsafe { waitpid(child, &mut status, 0) };
    match code.try_into().map_or(0, i32::from_ne_bytes) {
        0 => Ok(()),
        code => Err(Error::from_raw_os_error(code)),
    }
}

/// Reads the first word of the other's program: every process has its program mapped.
fn peek(pid: c_long) -> Result<(), Error> {
    let mut word = 0_u64;
    let local = [&raw mut word as u64, 8];
    // Where the other's program lies is not known here: our own place for it serves as a guess, and a
    // bad address is an answer, too: the other was looked into.
    let remote = [peek as *const () as u64, 8];
    let (local, remote) = (local.as_ptr() as c_long, remote.as_ptr() as c_long);
    match raw(PROCESS_VM_READV, &[pid, local, 1, remote, 1, 0]) {
        Err(error) if error.raw_os_error() == Some(14) => Ok(()),
        other => other,
    }
}

fn take_descriptor(pid: c_long) -> Result<(), Error> {
    let descriptor = raw_value(PIDFD_OPEN, &[pid, 0])?;
    raw(PIDFD_GETFD, &[descriptor, 0, 0])
}

/// A piece of memory that any process of this machine may attach; it goes again.
fn shared_memory() -> Result<(), Error> {
    let id = raw_value(SHMGET, &[0, 4096, IPC_CREAT | 0o666])?;
    let attached = raw(SHMAT, &[id, 0, 0]);
    raw(SHMCTL, &[id, IPC_RMID, 0])?;
    attached
}

fn queue() -> Result<(), Error> {
    let id = raw_value(MSGGET, &[0, IPC_CREAT | 0o666])?;
    raw(MSGCTL, &[id, IPC_RMID, 0])
}

fn semaphore() -> Result<(), Error> {
    let id = raw_value(SEMGET, &[0, 1, IPC_CREAT | 0o666])?;
    raw(SEMCTL, &[id, 0, IPC_RMID, 0])
}

fn posix_queue(name: &str) -> Result<(), Error> {
    let name = argument_pointer(name);
    raw(MQ_OPEN, &[name, O_CREAT_RDWR, 0o666, 0])?;
    raw(MQ_UNLINK, &[name])
}

/// What a file carries besides its content.
fn attribute(path: &str) -> Result<(), Error> {
    let (name, value) = (argument_pointer("user.key"), argument_pointer("key"));
    raw(SETXATTR, &[argument_pointer(path), name, value, 3, 0])
}

fn date(path: &str) -> Result<(), Error> {
    raw(UTIMENSAT, &[AT_FDCWD, argument_pointer(path), 0, 0])
}

/// Makes a file that everybody may read, whatever its maker was used to.
fn open_umask(path: &str) -> Result<(), Error> {
    // SAFETY: it takes a number; a call that is refused answers -1.
    if unsafe { syscall(UMASK, 0) } < 0 {
        return Err(Error::last_os_error());
    }
    std::fs::File::create(path)?;
    match std::fs::metadata(path)?.permissions().mode() & 0o044 {
        0 => Err(Error::from_raw_os_error(1)),
        _ => Ok(()),
    }
}
