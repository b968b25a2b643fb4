//! A few of something, handed out first come first served, with a deadline.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// At most `size` items, opened when they are first needed.
pub(super) struct Pool<T> {
    size: usize,
    wait: Duration,
    state: Mutex<State<T>>,
    turn: Condvar,
}

struct State<T> {
    idle: Vec<T>,
    /// Items that exist, idle or on loan.
    open: usize,
    /// Who waits, in order of arrival.
    queue: VecDeque<u64>,
    tickets: u64,
}

/// No item became free in time.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TimedOut;

impl<T> Pool<T> {
    pub(super) fn new(size: usize, wait: Duration) -> Self {
        let state = State { idle: Vec::new(), open: 0, queue: VecDeque::new(), tickets: 0 };
        Self { size: size.max(1), wait, state: Mutex::new(state), turn: Condvar::new() }
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    pub(super) fn wait(&self) -> Duration {
        self.wait
    }

    /// Waits for its turn: a loan of an idle item, or an empty one with the right to open one.
    pub(super) fn lend(&self) -> Result<Loan<'_, T>, TimedOut> {
        let deadline = Instant::now() + self.wait;
        let mut state = self.lock();
        let ticket = state.tickets;
        state.tickets += 1;
        state.queue.push_back(ticket);
        loop {
            let free = !state.idle.is_empty() || state.open < self.size;
            if free && state.queue.front() == Some(&ticket) {
                state.queue.pop_front();
                let item = state.idle.pop();
                state.open += usize::from(item.is_none());
                self.wake_next(&state);
                return Ok(Loan { of: self, item, keep: false });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.queue.retain(|waiting| *waiting != ticket);
                self.wake_next(&state);
                return Err(TimedOut);
            }
            state = self.turn.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// All who wait look whether it is their turn; they are few.
    fn wake_next(&self, state: &State<T>) {
        if !state.queue.is_empty() {
            self.turn.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An item on loan. It goes back when the loan ends only if [`Loan::keep`] was said.
pub(super) struct Loan<'a, T> {
    of: &'a Pool<T>,
    item: Option<T>,
    keep: bool,
}

impl<T> Loan<'_, T> {
    /// The item; `open` makes it where the loan is empty.
    pub(super) fn item<E>(&mut self, open: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        match self.item {
            Some(ref item) => Ok(item),
            None => Ok(self.item.insert(open()?)),
        }
    }

    /// The item is as good as before.
    pub(super) fn keep(&mut self) {
        self.keep = true;
    }
}

impl<T> Drop for Loan<'_, T> {
    fn drop(&mut self) {
        // What is not kept goes first, so that there is room for another when the next one looks.
        let item = self.item.take().filter(|_| self.keep);
        let mut state = self.of.lock();
        match item {
            Some(item) => state.idle.push(item),
            None => state.open -= 1,
        }
        self.of.wake_next(&state);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{
            atomic::{AtomicUsize, Ordering::SeqCst},
            mpsc,
        },
        thread,
    };

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// Lends, and says which number the item has.
    fn number<'a>(loan: &'a mut Loan<'_, usize>, opened: &AtomicUsize) -> &'a usize {
        let Ok(item) = loan.item(|| Ok::<_, Infallible>(opened.fetch_add(1, SeqCst)));
        item
    }

    #[test]
    fn a_kept_item_is_lent_again_and_another_is_not() {
        let (pool, opened) = (Pool::new(1, LONG), AtomicUsize::new(0));
        let mut loan = pool.lend().expect("lent");
        assert_eq!(*number(&mut loan, &opened), 0);
        loan.keep();
        drop(loan);
        let mut loan = pool.lend().expect("lent");
        assert_eq!(*number(&mut loan, &opened), 0);
        drop(loan);
        assert_eq!(*number(&mut pool.lend().expect("lent"), &opened), 1);
    }

    #[test]
    fn an_item_whose_user_panicked_is_not_lent_again() {
        let (pool, opened) = (Pool::new(1, LONG), AtomicUsize::new(0));
        let panicked = thread::scope(|scope| {
            let work = || {
                let mut loan = pool.lend().expect("lent");
                number(&mut loan, &opened);
                panic!("on purpose");
            };
            scope.spawn(work).join().is_err()
        });
        assert!(panicked);
        assert_eq!(*number(&mut pool.lend().expect("lent"), &opened), 1);
    }

    #[test]
    fn an_item_that_cannot_be_opened_leaves_room() {
        let pool: Pool<usize> = Pool::new(1, Duration::ZERO);
        for _ in 0..3 {
            let mut loan = pool.lend().expect("lent");
            assert_eq!(loan.item(|| Err("no session")), Err("no session"));
        }
    }

    #[test]
    fn who_waits_too_long_is_turned_away_and_blocks_nobody() {
        let (pool, opened) = (Pool::new(2, Duration::from_millis(1)), AtomicUsize::new(0));
        let mut first = pool.lend().expect("lent");
        number(&mut first, &opened);
        first.keep();
        let second = pool.lend().expect("lent");
        assert!(matches!(pool.lend(), Err(TimedOut)));
        drop(first);
        assert_eq!(*number(&mut pool.lend().expect("lent"), &opened), 0);
        drop(second);
    }

    #[test]
    fn the_order_of_arrival_is_the_order_of_service() {
        let pool: Pool<usize> = Pool::new(1, LONG);
        let held = pool.lend().expect("lent");
        let (sender, served) = mpsc::channel();
        thread::scope(|scope| {
            for arrival in 0..8 {
                let (pool, sender) = (&pool, sender.clone());
                scope.spawn(move || {
                    let _loan = pool.lend().expect("lent");
                    sender.send(arrival).expect("sent");
                });
                while pool.lock().queue.len() <= arrival {
                    thread::yield_now();
                }
            }
            drop(held);
        });
        drop(sender);
        assert_eq!(served.iter().collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
    }

    #[test]
    fn never_more_than_its_size_are_open() {
        let (pool, now, most) = (Pool::new(3, LONG), AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for thread in 0..12 {
                let (pool, now, most) = (&pool, &now, &most);
                scope.spawn(move || {
                    for round in 0..100 {
                        let mut loan = pool.lend().expect("lent");
                        most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                        let Ok(_) = loan.item(|| Ok::<_, Infallible>(thread));
                        if round % 3 != 0 {
                            loan.keep();
                        }
                        now.fetch_sub(1, SeqCst);
                    }
                });
            }
        });
        assert!(most.load(SeqCst) <= 3);
    }
}
