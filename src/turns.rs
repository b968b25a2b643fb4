//! Threads share the processors: who is waited for comes soon, who computes steps aside between two jobs.
//!
//! A thread says how long its turns are to be (the slice of the kernel's fair scheduler, Linux 6.12; from
//! 0.1 to 100 ms): one with short turns comes before those with longer ones when it wakes up. It gets no
//! more time by that, only sooner. Older kernels take the number and forget it, so it is read back.
//!
//! Threads that compute also keep apart. The kernel wakes a thread where it ran last and moves it only now
//! and then: two that once met on a processor stay there for tens of milliseconds, beside an idle one.
#![allow(unsafe_code)] // two system calls that no crate wraps

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sched::{sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

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

/// Which processors several threads are busy on.
pub struct Apart(Box<[AtomicUsize]>);

/// A thread that is busy, until this is dropped.
pub struct Busy<'a>(&'a AtomicUsize);

/// In place of a processor's number.
const IDLE: usize = usize::MAX;

impl Apart {
    pub fn new(threads: usize) -> Self {
        Self((0..threads).map(|_| AtomicUsize::new(IDLE)).collect())
    }

    /// The calling thread, of this number, has something to do. Where another is busy on its processor it
    /// goes to one where none is, of those that it may run on; where there is none, it stays.
    pub fn start(&self, thread: usize) -> Option<Busy<'_>> {
        let own = self.0.get(thread)?;
        let here = sched_getcpu().ok()?;
        let others = || self.0.iter().filter(|at| !std::ptr::eq(*at, own));
        let here = if others().any(|at| at.load(Ordering::Relaxed) == here) {
            move_off(others().map(|at| at.load(Ordering::Relaxed)));
            sched_getcpu().ok()?
        } else {
            here
        };
        own.store(here, Ordering::Relaxed);
        Some(Busy(own))
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.store(IDLE, Ordering::Relaxed);
    }
}

/// Moves the calling thread off these processors, and lets it run wherever it might before.
fn move_off(taken: impl Iterator<Item = usize>) {
    let this = Pid::from_raw(0);
    let Ok(all) = sched_getaffinity(this) else { return };
    let mut free = all;
    for processor in taken.filter(|processor| *processor != IDLE) {
        // Beyond the set's end there is nothing to take out.
        let _ = free.unset(processor);
    }
    // Refused where none is left.
    if sched_setaffinity(this, &free).is_ok() {
        let _ = sched_setaffinity(this, &all);
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
    fn a_busy_thread_goes_where_no_other_is_and_may_come_back() {
        let all = sched_getaffinity(Pid::from_raw(0)).expect("the kernel says");
        let apart = Apart::new(2);
        let meet = |free: bool| {
            let here = sched_getcpu().expect("the kernel says");
            apart.0[1].store(here, Ordering::Relaxed);
            let busy = apart.start(0).expect("there is a place");
            let now = apart.0[0].load(Ordering::Relaxed);
            drop(busy);
            assert_eq!(apart.0[0].load(Ordering::Relaxed), IDLE);
            free && now == here
        };
        let many = std::thread::available_parallelism().expect("some").get() > 1;
        assert!((0..20).all(|_| !meet(many)));
        assert_eq!(sched_getaffinity(Pid::from_raw(0)).expect("the kernel says"), all);
        assert!(apart.start(2).is_none(), "only two are known");
    }

    #[test]
    fn a_length_that_the_kernel_changes_is_no_proof() {
        std::thread::spawn(|| assert!(Turns::of(Duration::from_nanos(1)).is_none()))
            .join()
            .expect("it ends");
    }
}
