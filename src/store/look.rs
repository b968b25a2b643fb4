//! What readers see before it is durable: batches are applied in groups and made durable together, and
//! what was read between the two may leave only once its group has ended well.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::batch::Planned;
use super::{StoreError, Table};

/// Numbers the groups of batches, one after the other: the one begun last, and the one ended last.
pub(super) struct Groups {
    begun: AtomicU64,
    ended: AtomicU64,
    told: watch::Sender<Ended>,
    /// What was applied and is not known to be durable.
    open: Mutex<HashSet<(Table, String)>>,
}

#[derive(Default)]
struct Ended {
    last: u64,
    /// The last one that did not become durable, and why.
    failed: Option<(u64, StoreError)>,
}

/// Made before something is read, and asked before that leaves.
pub struct Look(Option<(Arc<Groups>, u64)>);

/// No group comes after it.
const CLOSED: u64 = u64::MAX;

impl Groups {
    pub fn new() -> Arc<Self> {
        let told = watch::Sender::new(Ended::default());
        let (begun, ended) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { begun, ended, told, open: Mutex::default() })
    }

    /// Before the first batch of a group is applied.
    pub fn begin(&self) {
        self.begun.fetch_add(1, Ordering::AcqRel);
    }

    /// Before a batch of the group is applied.
    pub fn touch(&self, planned: &[Planned]) {
        let touched = planned.iter().map(|planned| (planned.table, planned.key.clone()));
        self.open().extend(touched);
    }

    /// Whether what is seen at an address is durable.
    pub fn is_durable(&self, table: Table, key: &str) -> bool {
        let open = self.open();
        open.is_empty() || !open.contains(&(table, key.to_owned()))
    }

    /// The store was opened anew: what it shows now is durable.
    pub fn reopened(&self) {
        self.open().clear();
    }

    fn open(&self) -> MutexGuard<'_, HashSet<(Table, String)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The group that was begun last is durable, or it is open whether it is.
    pub fn end(&self, result: &Result<(), StoreError>) {
        if result.is_ok() {
            self.open().clear();
        }
        self.tell(self.begun.load(Ordering::Acquire), result);
    }

    /// However the committing thread ends that holds the result: nobody waits for it any more.
    pub fn ends_with_this(&self) -> impl Drop + '_ {
        Closing(self)
    }

    fn tell(&self, last: u64, result: &Result<(), StoreError>) {
        self.told.send_modify(|ended| {
            ended.last = last;
            if let Err(error) = result {
                ended.failed = Some((last, error.clone()));
            }
        });
        self.ended.store(last, Ordering::Release);
    }

    pub fn look(self: &Arc<Self>) -> Look {
        Look(Some((Arc::clone(self), self.ended.load(Ordering::Acquire))))
    }
}

struct Closing<'a>(&'a Groups);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.tell(CLOSED, &Err(StoreError::Closed));
    }
}

impl Look {
    /// Of a store in which nothing is seen before it is durable.
    pub fn at_once() -> Self {
        Self(None)
    }

    /// Waits until all that was read since is durable; at once where it was when it was read.
    ///
    /// # Errors
    /// Why it did not become so: what was read may be gone.
    pub async fn durable(self) -> Result<(), StoreError> {
        let Some((groups, before)) = self.0 else { return Ok(()) };
        let seen = groups.begun.load(Ordering::Acquire);
        if seen <= before {
            return Ok(());
        }
        let mut told = groups.told.subscribe();
        // The sender lives as long as `groups`.
        let ended =
            told.wait_for(|ended| ended.last >= seen).await.map_err(|_| StoreError::Closed)?;
        match &ended.failed {
            Some((group, error)) if *group > before => Err(error.clone()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn what_was_read_leaves_once_its_group_has_ended_well() {
        let groups = Groups::new();
        let mut context = Context::from_waker(Waker::noop());
        let mut poll = |look: Look| pin!(look.durable()).as_mut().poll(&mut context);
        assert_eq!(poll(groups.look()), Poll::Ready(Ok(())));
        let (before, unasked) = (groups.look(), groups.look());
        groups.begin();
        let within = groups.look();
        assert_eq!(poll(before), Poll::Pending);
        assert_eq!(poll(groups.look()), Poll::Pending);
        groups.end(&Ok(()));
        assert_eq!(poll(within), Poll::Ready(Ok(())));
        assert_eq!(poll(unasked), Poll::Ready(Ok(())));
        assert_eq!(poll(groups.look()), Poll::Ready(Ok(())));
        let before = groups.look();
        groups.begin();
        groups.end(&Err(StoreError::Full));
        let full = Poll::Ready(Err(StoreError::Full));
        assert_eq!(poll(before), full);
        assert_eq!(poll(groups.look()), Poll::Ready(Ok(())), "it came after the failure");
        let before = groups.look();
        groups.begin();
        drop(groups.ends_with_this());
        assert_eq!(poll(before), Poll::Ready(Err(StoreError::Closed)));
    }
}
