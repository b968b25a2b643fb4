//! Stacks in locked memory. Work with opened keys runs on one of them: a cryptographic library leaves
//! whole primes in its frames, and those must lie where the arena lies.
//!
//! Only the stack pointer is switched, for the duration of the work, by `psm`. A thread whose whole stack
//! lay in secret memory would not start: glibc keeps a futex at its top that the kernel cannot pin there.
#![allow(unsafe_code)] // switches the stack pointer, looks at frames that nobody uses any more

use super::arena::{self, ArenaError, ArenaKind};
use super::heap::wipe;
use super::mapping::{self, Mapping};
use super::stack::clear_registers;
use std::cell::Cell;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Size of a stack in bytes. What reaches deepest takes less than half of it, in an unoptimised build
/// too (a test holds it to that); what reaches further ends the process at the guard pages.
pub const STACK_SIZE: usize = 64 * 1024;

/// Address space below and above a stack that nobody may touch, in bytes: more than any frame has, since
/// C code touches its frames in any order.
const GUARD: usize = 256 * 1024;

/// How much is looked at and wiped at once, in bytes.
const STEP: usize = 4096;

/// Proof that the caller runs on a stack in locked memory. Functions that copy key material into their
/// frames ask for it; it cannot go to another thread or outlive the work.
pub struct OnLockedStack(PhantomData<*mut ()>);

struct Stack(Mapping);

// SAFETY: a mapping that lasts as long as the process; a stack has one owner at a time.
unsafe impl Send for Stack {}

/// A thread's own stack: it keeps the one that it used first, so that frames stay near its processor.
#[derive(Default)]
enum Own {
    #[default]
    None,
    Idle(Stack),
    /// The thread runs on it at this moment.
    Busy,
}

struct Place(Cell<Own>);

impl Drop for Place {
    fn drop(&mut self) {
        if let Own::Idle(stack) = self.0.take() {
            spare().push(stack);
        }
    }
}

thread_local! {
    static OWN: Place = const { Place(Cell::new(Own::None)) };
}

/// Stacks that no thread has at the moment. None is ever unmapped.
static SPARE: Mutex<Vec<Stack>> = Mutex::new(Vec::new());

static MAPPED: AtomicUsize = AtomicUsize::new(0);

static DEEPEST: AtomicUsize = AtomicUsize::new(0);

fn spare() -> MutexGuard<'static, Vec<Stack>> {
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the stacks of this process are made of; its text is for `doctor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StackReport {
    pub kind: ArenaKind,
    pub count: usize,
    /// How far down the deepest work so far has reached, in bytes, rounded up to whole pages.
    pub deepest_bytes: usize,
}

impl std::fmt::Display for StackReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (size, deepest) = (STACK_SIZE / 1024, self.deepest_bytes / 1024);
        write!(
            f,
            "{} stacks of {size} KiB of {} memory; at most {deepest} KiB were used",
            self.count, self.kind
        )
    }
}

/// What there is of stacks; `None` before the arena's start.
pub fn stacks() -> Option<StackReport> {
    Some(StackReport {
        kind: arena::running().ok()?.kind(),
        count: MAPPED.load(Ordering::Relaxed),
        deepest_bytes: DEEPEST.load(Ordering::Relaxed),
    })
}

/// Makes sure that `count` threads at once find a stack each, so that a process without room for them
/// does not start.
///
/// # Errors
/// The arena was not started, or the kernel refuses more locked memory.
pub fn reserve_stacks(count: usize) -> Result<(), ArenaError> {
    while MAPPED.load(Ordering::Relaxed) < count {
        let stack = Stack::map()?;
        spare().push(stack);
    }
    Ok(())
}

/// Does `work` on this thread's stack in locked memory, then wipes what was used of it, and the vector
/// registers. Where the thread is on it already, `work` goes on there, and the outermost wipes.
///
/// What `work` captures and returns passes the ordinary stack: secrets among it must be handles, as
/// `SecretBytes` are. A panic comes out after the wipe.
///
/// # Errors
/// The thread has no stack yet, none is spare, and the kernel gives no more.
pub fn on_locked_stack<T>(work: impl FnOnce(&OnLockedStack) -> T) -> Result<T, ArenaError> {
    let own = OWN.try_with(|own| own.0.replace(Own::Busy)).unwrap_or_default();
    let stack = match own {
        Own::Busy => return Ok(work(&OnLockedStack(PhantomData))),
        Own::Idle(stack) => stack,
        Own::None => Stack::take().inspect_err(|_| leave(Own::None))?,
    };
    let result = stack.run(work);
    leave(Own::Idle(stack));
    Ok(result.unwrap_or_else(|panic| resume_unwind(panic)))
}

/// The thread is no longer on its stack. A thread that is ending keeps none.
fn leave(own: Own) {
    let mut own = Some(own);
    let kept = OWN.try_with(|place| place.0.set(own.take().unwrap_or_default()));
    if let (Err(_), Some(Own::Idle(stack))) = (kept, own) {
        spare().push(stack);
    }
}

impl Stack {
    fn take() -> Result<Self, ArenaError> {
        let one = spare().pop();
        one.map_or_else(Self::map, Ok)
    }

    fn map() -> Result<Self, ArenaError> {
        let kind = arena::running()?.kind();
        let mapping = mapping::map_between(STACK_SIZE, kind, GUARD)?;
        // SAFETY: the whole of a fresh mapping. Every page is brought in now and not during an operation.
        unsafe { wipe(mapping.start, mapping.size) };
        MAPPED.fetch_add(1, Ordering::Relaxed);
        Ok(Self(mapping))
    }

    fn run<T>(&self, work: impl FnOnce(&OnLockedStack) -> T) -> std::thread::Result<T> {
        let work = AssertUnwindSafe(move || work(&OnLockedStack(PhantomData)));
        // SAFETY: the mapping is page-aligned, writable, lies between guard pages, is this thread's alone
        // and lasts; nothing unwinds out of the closure.
        let result = unsafe {
            psm::on_stack(self.0.start.as_ptr(), self.0.size, move || catch_unwind(work))
        };
        self.wipe();
        clear_registers();
        result
    }

    /// Overwrites what was used: all from the lowest page on that is not zero.
    fn wipe(&self) {
        const ZEROS: [u8; STEP] = [0; STEP];
        // SAFETY: initialised memory of this stack, on which nothing runs now.
        let all = unsafe { std::slice::from_raw_parts(self.0.start.as_ptr(), self.0.size) };
        let untouched = all.chunks(STEP).take_while(|page| **page == ZEROS[..page.len()]).count();
        let used = self.0.size - (untouched * STEP).min(self.0.size);
        // SAFETY: the upper part of the mapping, which is writable.
        unsafe { wipe(self.0.start.add(self.0.size - used), used) };
        DEEPEST.fetch_max(used, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::arena::{Settings, Use};
    use super::*;

    fn arena() {
        arena::start(&Settings::default(), Use::Custody).expect("an arena");
    }

    /// The address of something in the caller's frame or a little below.
    #[inline(never)]
    fn here() -> usize {
        let marker = std::hint::black_box(0_u8);
        std::ptr::from_ref(std::hint::black_box(&marker)).addr()
    }

    fn own_stack() -> std::ops::Range<usize> {
        let own = OWN.with(|own| own.0.take());
        let Own::Idle(stack) = own else { panic!("the thread has none") };
        let from = stack.0.start.as_ptr().addr();
        let range = from..from + stack.0.size;
        leave(Own::Idle(stack));
        range
    }

    fn content() -> Vec<u8> {
        let range = own_stack();
        let start = std::ptr::with_exposed_provenance::<u8>(range.start);
        // SAFETY: the thread's own stack, which is mapped for good and on which nothing runs.
        unsafe { std::slice::from_raw_parts(start, range.len()) }.to_vec()
    }

    #[test]
    fn work_runs_on_a_stack_of_its_own_and_comes_back() {
        arena();
        let outside = here();
        let (inside, nested) = on_locked_stack(|_| (here(), on_locked_stack(|_| here()))).unwrap();
        assert!(own_stack().contains(&inside) && own_stack().contains(&nested.unwrap()));
        assert!(!own_stack().contains(&outside) && !own_stack().contains(&here()));
    }

    #[test]
    fn what_was_used_is_wiped_down_to_the_lowest_page() {
        arena();
        /// Leaves marks, with a hole between them that is wider than what is looked at in one step.
        #[inline(never)]
        fn deep() -> usize {
            let room = std::hint::black_box([0_u8; 3 * STEP]);
            let mark = std::hint::black_box([0xa5_u8; 64]);
            std::hint::black_box((&room, &mark)).1.as_ptr().addr()
        }
        let mark = on_locked_stack(|_| deep()).unwrap();
        assert!(own_stack().contains(&mark));
        assert!(content().iter().all(|&byte| byte == 0), "something was left");
        assert!(stacks().unwrap().deepest_bytes > 3 * STEP);
    }

    #[test]
    fn a_panic_comes_out_after_the_wipe() {
        arena();
        let result = std::panic::catch_unwind(|| {
            on_locked_stack(|_| -> () { std::panic::resume_unwind(Box::new("no")) })
        });
        let said = result.expect_err("it panicked");
        assert_eq!(said.downcast_ref(), Some(&"no"));
        assert!(content().iter().all(|&byte| byte == 0));
        assert_eq!(on_locked_stack(|_| 7), Ok(7));
    }

    #[test]
    fn nobody_may_touch_what_lies_around_a_stack() {
        arena();
        on_locked_stack(|_| ()).unwrap();
        let stack = own_stack();
        let maps = std::fs::read_to_string("/proc/self/maps").expect("the kernel shows our maps");
        let permissions = |address: usize| {
            let of = |line: &str| {
                let (range, rest) = line.split_once(' ')?;
                let (from, to) = range.split_once('-')?;
                let from = usize::from_str_radix(from, 16).ok()?;
                let to = usize::from_str_radix(to, 16).ok()?;
                (from..to).contains(&address).then(|| rest[..3].to_owned())
            };
            maps.lines().find_map(of).unwrap_or_default()
        };
        assert_eq!([permissions(stack.start), permissions(stack.end - 1)], ["rw-", "rw-"]);
        for outside in [stack.start - GUARD, stack.start - 1, stack.end, stack.end + GUARD - 1] {
            assert_eq!(permissions(outside), "---", "{outside:x} of {stack:x?}");
        }
    }

    #[test]
    fn threads_have_a_stack_each_and_leave_it_behind() {
        arena();
        reserve_stacks(3).unwrap();
        assert!(stacks().unwrap().count >= 3);
        let barrier = std::sync::Barrier::new(3);
        let used = || {
            on_locked_stack(|_| barrier.wait()).unwrap();
            own_stack().start
        };
        let starts = std::thread::scope(|scope| {
            let threads = [(); 3].map(|()| scope.spawn(used));
            threads.map(|thread| thread.join().expect("it worked"))
        });
        assert!(starts[0] != starts[1] && starts[1] != starts[2] && starts[0] != starts[2]);
    }
}
