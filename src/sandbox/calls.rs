//! seccomp: the system calls that may still be made.
//!
//! A list of what is refused, not of what is allowed: a PKCS#11 module may do what it likes with
//! memory, threads, files and devices, and nobody could keep the list of that for modules unknown here.
//! (The units add such a list, systemd's `@system-service`.) What is refused: to execute, to debug or
//! reach into other processes, to change users, privileges, namespaces, mounts, clocks or the kernel;
//! what leaves something where a process that is not connected can take it; to change the limits, priority
//! and processors of other processes; where it needs no other process of the machine, to connect to one, to
//! send to an address and to pass descriptors on; and the interfaces that do other calls' work unseen
//! (io_uring) or serve to attack the kernel. Calls that are newer than this list do not exist for the process.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq, Ne};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCondition, SeccompFilter, SeccompRule, apply_filter,
    sock_filter,
};

use super::{Needs, SandboxError, Sockets};

/// Refused with EPERM, whatever the arguments.
const REFUSED: &[c_long] = &[
    // another program
    libc::SYS_execve,
    libc::SYS_execveat,
    // other processes
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // users and privileges
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_personality,
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    // namespaces and mounts
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mknodat,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_quotactl,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    // the kernel and the machine
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_vhangup,
    // what does other calls' work, and what attacks on the kernel are made of
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
];

/// Those that one processor has and the other has not.
#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[c_long] = &[
    libc::SYS_mknod,
    libc::SYS_kexec_file_load,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
    libc::SYS__sysctl,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[c_long] = &[];

/// What another process of this machine could take, without a file: shared memory, message queues and
/// semaphores that have a name, and what is written beside a file.
const IPC: &[c_long] = &[
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_msgget,
    libc::SYS_msgsnd,
    libc::SYS_msgrcv,
    libc::SYS_msgctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_semctl,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
];

/// Who may open a file, and when it was changed.
const MODES: &[c_long] = &[
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    SYS_FCHMODAT2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_umask,
];
#[cfg(target_arch = "x86_64")]
const MODES_HERE: &[c_long] = &[
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
];
#[cfg(not(target_arch = "x86_64"))]
const MODES_HERE: &[c_long] = &[];

/// A further process by a call of its own.
#[cfg(target_arch = "x86_64")]
const FORKS: &[c_long] = &[libc::SYS_fork, libc::SYS_vfork];
#[cfg(not(target_arch = "x86_64"))]
const FORKS: &[c_long] = &[];

/// The same on every processor (Linux 6.6).
const SYS_FCHMODAT2: c_long = 452;

/// The newest call that this list was written for (mseal, Linux 6.10; the same on every processor).
const NEWEST: u32 = 462;

/// Enters it for this thread and those that it starts; `false` where the kernel has none.
pub fn enter(needs: &Needs) -> Result<bool, SandboxError> {
    // The question that seccomp(2) recommends: a null program is a bad address where there is seccomp.
    #[allow(unsafe_code)] // no safe wrapper asks it
    // SAFETY: a null pointer is what is asked with; nothing is written.
    let answer = unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, std::ptr::null::<u8>(), 0, 0)
    };
    let has_none =
        answer == -1 && std::io::Error::last_os_error().raw_os_error() != Some(libc::EFAULT);
    if has_none {
        return Ok(false);
    }
    let refused = |why: String| SandboxError::Refused { part: "seccomp", why };
    let by_list = list(needs).map_err(|error| refused(error.to_string()))?;
    for program in [by_list, unknown()] {
        apply_filter(&program).map_err(|error| refused(error.to_string()))?;
    }
    Ok(true)
}

/// The calls that do not exist for the process (ENOSYS): those newer than the list, those of the
/// x32 ABI, whose numbers are large, and clone3, whose arguments no filter sees; the C library then
/// takes clone. The processor's own ABI was checked by the other program.
fn unknown() -> BpfProgram {
    let code = |class: u32, rest: u32| u16::try_from(class | rest).unwrap_or(0);
    let load = code(libc::BPF_LD | libc::BPF_W, libc::BPF_ABS);
    let above = code(libc::BPF_JMP | libc::BPF_JGT, libc::BPF_K);
    let equals = code(libc::BPF_JMP | libc::BPF_JEQ, libc::BPF_K);
    let answer = code(libc::BPF_RET, libc::BPF_K);
    let line = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let clone3 = u32::try_from(libc::SYS_clone3).unwrap_or(0);
    vec![
        line(load, 0, 0, 0), // the number of the call
        line(above, 2, 0, NEWEST),
        line(equals, 1, 0, clone3),
        line(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
        line(answer, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs()),
    ]
}

/// The calls that are refused (EPERM), some of them for certain arguments alone.
fn list(needs: &Needs) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut refused = [REFUSED, REFUSED_HERE].concat();
    if !needs.ipc {
        refused.extend(IPC);
    }
    if !needs.modes {
        refused.extend(MODES);
        refused.extend(MODES_HERE);
    }
    if needs.alone {
        refused.extend(FORKS);
    }
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> =
        refused.into_iter().map(|call| (call, Vec::new())).collect();
    rules.insert(libc::SYS_socket, of_sockets(needs)?);
    if needs.sockets == Sockets::None {
        rules.insert(libc::SYS_connect, Vec::new());
        // Where their messages go, and which descriptors go with them, stands in memory, which no filter sees.
        rules.extend([libc::SYS_sendmsg, libc::SYS_sendmmsg].map(|call| (call, Vec::new())));
        if !needs.journal {
            rules.insert(libc::SYS_sendto, to_an_address()?);
        }
    }
    rules.retain(|call, rules| *call != libc::SYS_socket || !rules.is_empty());
    rules.insert(libc::SYS_clone, of_processes(needs.alone)?);
    rules.extend(of_others()?);
    rules.insert(libc::SYS_prctl, of_visibility()?);
    rules.insert(libc::SYS_ioctl, of_terminals()?);
    let program = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        std::env::consts::ARCH.try_into()?,
    )?;
    program.try_into()
}

type Rules = Result<Vec<SeccompRule>, seccompiler::BackendError>;

/// Makes a rule of conditions that must all hold.
fn rule(
    conditions: &[(u8, seccompiler::SeccompCmpOp, u64)],
) -> Result<SeccompRule, seccompiler::BackendError> {
    let conditions = conditions.iter().map(|(argument, operator, value)| {
        SeccompCondition::new(*argument, Dword, operator.clone(), *value)
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

fn of_sockets(needs: &Needs) -> Rules {
    let (unix, netlink) = (libc::AF_UNIX as u64, libc::AF_NETLINK as u64);
    match needs.sockets {
        Sockets::None => {
            // The kind shares its argument with flags.
            let kind = |kind: i32| rule(&[(0, Eq, unix), (1, MaskedEq(0xf), kind as u64)]);
            let mut rules = vec![rule(&[(0, Ne, unix)])?, kind(libc::SOCK_SEQPACKET)?];
            if !needs.listens {
                rules.push(kind(libc::SOCK_STREAM)?);
            }
            Ok(rules)
        }
        Sockets::Local => Ok(vec![rule(&[(0, Ne, unix), (0, Ne, netlink)])?]),
        Sockets::Network => Ok(Vec::new()),
    }
}

/// Over a connection, yes; elsewhere, no.
fn to_an_address() -> Rules {
    let named = SeccompCondition::new(4, Qword, Ne, 0)?;
    Ok(vec![SeccompRule::new(vec![named])?])
}

/// New threads, yes; new namespaces, no; new processes, where it is not to stay alone.
fn of_processes(alone: bool) -> Rules {
    let flags = [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ];
    let flags = flags.iter().map(|flag| *flag as u64);
    let mut rules: Vec<_> =
        flags.map(|flag| rule(&[(0, MaskedEq(flag), flag)])).collect::<Result<_, _>>()?;
    if alone {
        rules.push(rule(&[(0, MaskedEq(libc::CLONE_THREAD as u64), 0)])?);
    }
    Ok(rules)
}

/// Its own limits, priority and processors, yes; those of other processes of its user, no.
fn of_others() -> Result<Vec<(c_long, Vec<SeccompRule>)>, seccompiler::BackendError> {
    let mut rules = Vec::new();
    for call in [
        libc::SYS_prlimit64,
        libc::SYS_sched_setaffinity,
        libc::SYS_sched_setattr,
        libc::SYS_sched_setparam,
        libc::SYS_sched_setscheduler,
    ] {
        rules.push((call, vec![rule(&[(0, Ne, 0)])?]));
    }
    // Of a process, of a group of processes, or of all of its user.
    for (call, process) in
        [(libc::SYS_setpriority, libc::PRIO_PROCESS as u64), (libc::SYS_ioprio_set, 1)]
    {
        rules.push((call, vec![rule(&[(0, Ne, process)])?, rule(&[(1, Ne, 0)])?]));
    }
    Ok(rules)
}

/// A process that was shut to debuggers and core files stays so.
fn of_visibility() -> Rules {
    let dumpable = (0, Eq, libc::PR_SET_DUMPABLE as u64);
    let tracer = SeccompCondition::new(0, Dword, Eq, libc::PR_SET_PTRACER as u64)?;
    let nobody = SeccompCondition::new(1, Qword, Ne, 0)?;
    Ok(vec![rule(&[dumpable, (1, Ne, 0)])?, SeccompRule::new(vec![tracer, nobody])?])
}

/// Nothing is typed into the terminal that it was started from.
fn of_terminals() -> Rules {
    Ok(vec![rule(&[(1, Eq, libc::TIOCSTI)])?, rule(&[(1, Eq, libc::TIOCLINUX)])?])
}
