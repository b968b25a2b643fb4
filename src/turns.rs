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

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
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

/// A thread's place among them. It stays with its thread.
pub struct Seat<'a> {
    all: &'a [AtomicUsize],
    own: &'a AtomicUsize,
    /// Where the thread may run, as found when it took its seat; nothing where somebody has said so.
    wherever: Option<CpuSet>,
}

/// A thread that is busy, until this is dropped.
pub struct Busy<'a>(&'a AtomicUsize);

/// In place of a processor's number.
const IDLE: usize = usize::MAX;

impl Apart {
    pub fn new(threads: usize) -> Self {
        Self((0..threads).map(|_| AtomicUsize::new(IDLE)).collect())
    }

    /// The seat of the calling thread, which has this number. It keeps apart only where there is a processor
    /// for each thread, and where nobody has told it by name where to run (`taskset`).
    pub fn seat(&self, thread: usize) -> Option<Seat<'_>> {
        let own = self.0.get(thread)?;
        let enough =
            std::thread::available_parallelism().is_ok_and(|many| many.get() >= self.0.len());
        let wherever = if enough { wherever() } else { None };
        Some(Seat { all: &self.0, own, wherever })
    }
}

impl<'a> Seat<'a> {
    /// The thread has something to do. Where another is busy on its processor, it goes to one where none is.
    pub fn start(&self) -> Option<Busy<'a>> {
        let wherever = self.wherever.as_ref()?;
        let here = sched_getcpu().ok()?;
        let others = || self.all.iter().filter(|at| !std::ptr::eq(*at, self.own));
        let mut places = others().map(|at| at.load(Ordering::Relaxed));
        let here = if places.any(|place| place == here) {
            move_off(others().map(|at| at.load(Ordering::Relaxed)), wherever);
            sched_getcpu().ok()?
        } else {
            here
        };
        self.own.store(here, Ordering::Relaxed);
        Some(Busy(self.own))
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.store(IDLE, Ordering::Relaxed);
    }
}

const THIS: Pid = Pid::from_raw(0);

/// Every processor there could be. As a thread's wish it leaves it to its cpuset where it may run, also where
/// that grows later.
fn anywhere() -> CpuSet {
    let mut set = CpuSet::new();
    for processor in 0..CpuSet::count() {
        let _ = set.set(processor);
    }
    set
}

/// Where the calling thread may run; `None` where it was told so by name, which stays as it is.
fn wherever() -> Option<CpuSet> {
    let found = sched_getaffinity(THIS).ok()?;
    sched_setaffinity(THIS, &anywhere()).ok()?;
    let most = sched_getaffinity(THIS).ok()?;
    if most == found {
        return Some(found);
    }
    let _ = sched_setaffinity(THIS, &found);
    None
}

/// Moves the calling thread off these processors. Nothing where it may no longer run `wherever` it might:
/// somebody has told it where since.
fn move_off(taken: impl Iterator<Item = usize>, wherever: &CpuSet) {
    if sched_getaffinity(THIS).as_ref() != Ok(wherever) {
        return;
    }
    let mut free = *wherever;
    for processor in taken.filter(|processor| *processor != IDLE) {
        // Beyond the set's end there is nothing to take out.
        let _ = free.unset(processor);
    }
    // Refused where none is left. Who tells it where to run just now is heard.
    if sched_setaffinity(THIS, &free).is_ok() && sched_getaffinity(THIS).as_ref() == Ok(&free) {
        let _ = sched_setaffinity(THIS, &anywhere());
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

    /// What the kernel says of where the calling thread may run.
    fn allowed() -> CpuSet {
        sched_getaffinity(THIS).expect("the kernel says")
    }

    /// How often, of twenty times, a busy thread stayed where another is.
    fn stays(apart: &Apart, seat: &Seat<'_>) -> usize {
        let meet = |_: &usize| {
            let here = sched_getcpu().expect("the kernel says");
            apart.0[1].store(here, Ordering::Relaxed);
            let busy = seat.start();
            let now = apart.0[0].load(Ordering::Relaxed);
            drop(busy);
            assert_eq!(apart.0[0].load(Ordering::Relaxed), IDLE);
            now == here || now == IDLE
        };
        (0..20).filter(meet).count()
    }

    #[test]
    fn a_busy_thread_goes_where_no_other_is_and_does_as_it_is_told() {
        if std::thread::available_parallelism().expect("some").get() < 2 {
            return;
        }
        let before = allowed();
        let apart = Apart::new(2);
        let seat = apart.seat(0).expect("there is a place");
        assert!(stays(&apart, &seat) < 10);
        assert_eq!(allowed(), before);
        // Somebody tells it where to run: now, or before it took its seat.
        let mut told = CpuSet::new();
        told.set(sched_getcpu().expect("the kernel says")).expect("it is in the set");
        sched_setaffinity(THIS, &told).expect("told");
        assert_eq!(stays(&apart, &seat), 20);
        assert_eq!(stays(&apart, &apart.seat(0).expect("there is a place")), 20);
        assert_eq!(allowed(), told);
        assert!(apart.seat(2).is_none(), "only two are known");
    }

    #[test]
    fn a_length_that_the_kernel_changes_is_no_proof() {
        std::thread::spawn(|| assert!(Turns::of(Duration::from_nanos(1)).is_none()))
            .join()
            .expect("it ends");
    }
}
