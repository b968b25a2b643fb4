//! A daemon whose syncs do nothing and say that they worked: to see that the tests would notice.
#![allow(unsafe_code)] // prctl(2) between fork and exec

use std::io;

/// From here on fsync, fdatasync, sync_file_range and syncfs of this process and of what it starts return
/// 0 at once. A filter of system calls, so that no way to call them goes round it.
pub fn without_syncs() -> io::Result<()> {
    let calls = [libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_sync_file_range, libc::SYS_syncfs];
    let step = |code: u32, k: u32, hit: u8, miss: u8| libc::sock_filter {
        code: code as u16,
        jt: hit,
        jf: miss,
        k,
    };
    let (load, jump, give) = (
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    );
    // The number of the call is the first word of `seccomp_data`.
    let mut filter = [
        step(load, 0, 0, 0),
        step(jump, calls[0] as u32, 4, 0),
        step(jump, calls[1] as u32, 3, 0),
        step(jump, calls[2] as u32, 2, 0),
        step(jump, calls[3] as u32, 1, 0),
        step(give, libc::SECCOMP_RET_ALLOW, 0, 0),
        step(give, libc::SECCOMP_RET_ERRNO, 0, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: both calls only read `program`, which lives until they are over; nothing is allocated.
    let set = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                std::ptr::from_ref(&program),
            ) == 0
    };
    if set { Ok(()) } else { Err(io::Error::last_os_error()) }
}
