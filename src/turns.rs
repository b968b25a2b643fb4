//! Threads share the processors: who is waited for comes soon, who computes steps aside between two jobs.
//!
//! A thread says how long its turns are to be (the slice of the kernel's fair scheduler, Linux 6.12; from
//! 0.1 to 100 ms): one with short turns comes before those with longer ones when it wakes up. It gets no
//! more time by that, only sooner. Older kernels take the number and forget it, so it is read back.
#![allow(unsafe_code)] // two system calls that no crate wraps

use std::time::Duration;

/// The proof that the kernel gives the calling thread turns of the length it asked for.
#[derive(Debug)]
pub struct Turns(());

impl Turns {
    /// Sets the length of this thread's turns, and of the threads it starts. `None` where the kernel cannot,
    /// or the thread is scheduled by other rules (real time, idle).
    pub fn of(length: Duration) -> Option<Self> {
        let wanted = u64::try_from(length.as_nanos()).ok()?;
        let mut attributes = read().filter(|found| {
            found.sched_policy == libc::SCHED_OTHER as u32
                || found.sched_policy == libc::SCHED_BATCH as u32
        })?;
        attributes.sched_runtime = wanted;
        // SAFETY: the structure is whole, carries its size, and 0 names the calling thread.
        let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
        (set == 0 && read()?.sched_runtime == wanted).then_some(Self(()))
    }

    /// Lets others go first that want to run here. It costs the rest of the turn, which is why only a thread
    /// with short ones may do so: another gives away milliseconds to everything else on the machine.
    pub fn give_way(&self) {
        std::thread::yield_now();
    }
}

/// How the calling thread is scheduled.
fn read() -> Option<libc::sched_attr> {
    let mut attributes = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel writes at most `size` bytes, all of which are ours; 0 names the calling thread.
    let got = unsafe {
        libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, attributes.size, 0)
    };
    (got == 0).then_some(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_set_for_this_thread_alone_and_its_weight_stays() {
        std::thread::spawn(|| {
            let before = read().expect("the kernel says");
            let turns = Turns::of(Duration::from_micros(300));
            let after = read().expect("the kernel says");
            assert_eq!(turns.is_some(), after.sched_runtime == 300_000);
            assert_eq!(before.sched_nice, after.sched_nice);
            assert_eq!(before.sched_policy, after.sched_policy);
        })
        .join()
        .expect("it ends");
        assert_ne!(read().expect("the kernel says").sched_runtime, 300_000);
    }

    #[test]
    fn a_length_that_the_kernel_changes_is_no_proof() {
        std::thread::spawn(|| assert!(Turns::of(Duration::from_nanos(1)).is_none()))
            .join()
            .expect("it ends");
    }
}
