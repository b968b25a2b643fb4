//! Clients that run ahead of everything else, as if they were on another machine: how long an answer takes is
//! to be told, and not how long its reader then waits for a processor.

/// Does `work` on a thread with real-time priority, where that may be had.
pub fn ahead<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let priority = libc::sched_param { sched_priority: 1 };
            // SAFETY: the structure is whole, and 0 names the calling thread.
            unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
