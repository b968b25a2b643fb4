//! Requests that wait for a pool of threads: a queue for each connection, and one request of each in turn, so that
//! what one connection has waiting is no other one's delay. What waits for a connection ends with it.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The queues.
pub struct FairQueue<T> {
    /// Of those that have something waiting, in the order in which they are served.
    waiting: Mutex<VecDeque<(usize, VecDeque<T>)>>,
    filled: Condvar,
    /// How many may wait of one connection.
    most: usize,
}

impl<T> FairQueue<T> {
    pub fn new(most: usize) -> Self {
        Self { waiting: Mutex::default(), filled: Condvar::new(), most }
    }

    /// Has a request of a connection wait.
    ///
    /// # Errors
    /// The request, where too many of the connection wait.
    pub fn push(&self, connection: usize, request: T) -> Result<(), T> {
        let mut waiting = self.waiting();
        match waiting.iter_mut().find(|(known, _)| *known == connection) {
            Some((_, queue)) if queue.len() >= self.most => return Err(request),
            Some((_, queue)) => queue.push_back(request),
            None => waiting.push_back((connection, VecDeque::from([request]))),
        }
        drop(waiting);
        self.filled.notify_one();
        Ok(())
    }

    /// The next request; waits for one.
    pub fn pop(&self) -> T {
        let mut waiting = self.waiting();
        loop {
            if let Some((connection, mut queue)) = waiting.pop_front()
                && let Some(request) = queue.pop_front()
            {
                if !queue.is_empty() {
                    waiting.push_back((connection, queue));
                }
                return request;
            }
            waiting = self.filled.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Drops what waits of a connection.
    pub fn drop_of(&self, connection: usize) {
        let mut waiting = self.waiting();
        let at = waiting.iter().position(|(known, _)| *known == connection);
        let dropped = at.and_then(|at| waiting.remove(at));
        drop(waiting);
        drop(dropped);
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<(usize, VecDeque<T>)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn connections_are_served_in_turn() {
        let queue = FairQueue::new(3);
        for request in [10, 11, 12] {
            queue.push(1, request).unwrap();
        }
        assert_eq!(queue.push(1, 13), Err(13), "too many of one");
        queue.push(2, 20).unwrap();
        queue.push(2, 21).unwrap();
        queue.push(3, 30).unwrap();
        let served: Vec<i32> = (0..4).map(|_| queue.pop()).collect();
        assert_eq!(served, [10, 20, 30, 11]);
        queue.push(4, 40).unwrap();
        assert_eq!([queue.pop(), queue.pop(), queue.pop()], [21, 12, 40]);
    }

    #[test]
    fn what_waits_ends_with_its_connection() {
        let queue = Arc::new(FairQueue::new(3));
        queue.push(1, 10).unwrap();
        queue.push(1, 11).unwrap();
        queue.push(2, 20).unwrap();
        queue.drop_of(1);
        queue.drop_of(7);
        assert_eq!(queue.pop(), 20);
        let other = Arc::clone(&queue);
        let waits = std::thread::spawn(move || other.pop());
        queue.push(1, 12).unwrap();
        assert_eq!(waits.join().unwrap(), 12);
    }
}
