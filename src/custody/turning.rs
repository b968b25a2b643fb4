//! What is wanted of custody and what is known of it change together, so that nothing that began before a
//! lock undoes it: not an unlock that ends late, not another home, not the link that custody comes back on.

use std::sync::{MutexGuard, PoisonError};

use super::client::{Client, Shared, Wanted};
use super::link_state::LinkState;
use super::protocol::Home;

/// How often custody was locked, as it stood when something began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Locks(u64);

impl Client {
    /// To be taken before an unlock begins: a lock that comes after it counts.
    pub fn locks(&self) -> Locks {
        Locks(*self.shared.turning())
    }

    /// Has custody come back with what the appliance has become, unless it is to be locked.
    pub fn keep_home(&self, home: &Home) {
        let _turning = self.shared.turning();
        self.shared.wanted.send_if_modified(|wanted| match wanted {
            Wanted::Locked => false,
            Wanted::Unlocked(known) => {
                *known = Some(home.clone());
                true
            }
        });
    }
}

impl Shared {
    /// Held while what is wanted and what is known change.
    pub(super) fn turning(&self) -> MutexGuard<'_, u64> {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn turn_to_locked(&self) {
        let mut locks = self.turning();
        *locks += 1;
        self.wanted.send_replace(Wanted::Locked);
        self.turn_to(LinkState::Locked);
    }

    /// Custody remembers a lock that was not known here: only an operator opens it. An unlock that was faster
    /// than this answer counts.
    pub fn found_locked(&self) {
        let _turning = self.turning();
        if matches!(*self.state.borrow(), LinkState::Unlocked { .. } | LinkState::BrownOut { .. }) {
            return;
        }
        tracing::error!(
            "custody remembers that an operator locked it, and the store does not: it was changed, or the \
             record of the lock was never written. It stays locked until `strongroom unlock`"
        );
        self.wanted.send_replace(Wanted::Locked);
        self.turn_to(LinkState::Locked);
    }

    /// An operator unlocked custody; `state` where it was not open before. Returns whether that holds: it
    /// does not where somebody locked since.
    pub fn turn_to_unlocked(
        &self,
        since: Locks,
        home: Option<Home>,
        state: Option<LinkState>,
    ) -> bool {
        let locks = self.turning();
        let holds = *locks == since.0;
        if holds {
            self.wanted.send_replace(Wanted::Unlocked(home));
            if let Some(state) = state {
                self.turn_to(state);
            }
        }
        holds
    }

    /// What the link found; returns whether it counts, which it does not where it is to be locked.
    pub fn turn_unless_locked(&self, state: LinkState) -> bool {
        let _turning = self.turning();
        let counts = *self.wanted.borrow() != Wanted::Locked;
        if counts {
            self.turn_to(state);
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::client::{CustodyError, LinkSettings};
    use super::super::protocol::{Fault, StoreKey};
    use super::*;

    fn home(generation: u32) -> Home {
        Home {
            appliance: "0".repeat(32),
            generation,
            store_key: StoreKey { id: 1, first: 0, wrapped: Vec::new() },
            signer_point: Vec::new(),
            signer_generation: 1,
        }
    }

    /// A client that no custody answers.
    fn alone() -> Client {
        let settings = LinkSettings {
            socket: "/nowhere/custody".into(),
            dialer: crate::custody::Dialer::Itself,
            deadline: Duration::from_millis(50),
            custody_uid: 0,
            max_outage_grace_seconds: 0,
        };
        Client::start(settings, Wanted::Unlocked(Some(home(1))))
    }

    #[tokio::test]
    async fn another_home_does_not_undo_a_lock() {
        let client = alone();
        client.keep_home(&home(2));
        assert_eq!(*client.shared.wanted.borrow(), Wanted::Unlocked(Some(home(2))));
        client.lock().await.expect("nobody has to be told");
        client.keep_home(&home(3));
        let used = client.use_home(home(3)).await;
        assert!(matches!(used, Err(CustodyError::Fault(Fault::Locked))), "{used:?}");
        assert_eq!(*client.shared.wanted.borrow(), Wanted::Locked);
    }

    #[tokio::test]
    async fn what_began_before_a_lock_does_not_undo_it() {
        let client = alone();
        let (shared, since) = (&client.shared, client.locks());
        client.lock().await.expect("nobody has to be told");
        let refused = || LinkState::PinRefused(String::new());
        assert!(!shared.turn_to_unlocked(since, None, Some(refused())));
        assert!(!shared.turn_unless_locked(refused()));
        assert_eq!(client.state(), LinkState::Locked);
        assert_eq!(*shared.wanted.borrow(), Wanted::Locked);
        assert!(shared.turn_to_unlocked(client.locks(), None, Some(refused())));
        assert_eq!(*shared.wanted.borrow(), Wanted::Unlocked(None));
    }
}
