//! What the token remembers of the audit log, in a private data object: compared with custody's state at each
//! unlock, and written after it.

use std::sync::atomic::Ordering;

use super::{Fault, History, Known, Remembered, Replaced, checkpoint};
use crate::token::{Token, TokenError};

/// What is known of the token's memory: the audit log and the place in its chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TokenMemory {
    NotSeen,
    Empty,
    Holds(Replaced),
    Fails(String),
}

impl History {
    /// Holds what the token remembers against the state. The state that is behind was put back, or lost:
    /// the token is believed.
    pub fn compare_with(&self, token: &dyn Token) -> Result<(), Fault> {
        let found = match token.remembered() {
            Ok(found) => found,
            Err(error @ TokenError::Unsupported(_)) => {
                *self.token_memory() = TokenMemory::Fails(error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let newest = found.iter().filter_map(|bytes| of_token(bytes));
        let Some(held) = newest.max_by_key(|known| known.mark.number) else {
            *self.token_memory() = TokenMemory::Empty;
            return Ok(());
        };
        if held.mark.number > self.kept.get().highest {
            self.kept.change(|memory| {
                let highest = held.mark.number;
                if memory.ordered {
                    let mark = held.mark;
                    memory.replaced = Some(Replaced { trail: held.trail.clone(), mark });
                    memory.highest = highest;
                } else {
                    // Every checkpoint is signed over a head that the store has sealed, as a rule.
                    let (newest, stored) = (Some(held.clone()), held.mark.covers);
                    *memory = Remembered { newest, highest, stored, ..Remembered::default() };
                    self.was_behind.store(true, Ordering::Relaxed);
                }
                Ok::<_, Fault>(())
            })?;
            self.tell_of_state(&held);
        }
        *self.token_memory() = TokenMemory::Holds(Replaced { trail: held.trail, mark: held.mark });
        Ok(())
    }

    fn tell_of_state(&self, held: &Known) {
        if !self.was_behind.load(Ordering::Relaxed) {
            return;
        }
        let path = self.kept.path();
        if self.kept.was_there() {
            tracing::error!(
                token = %held.mark, path = %path.display(),
                "custody's state is older than the token remembers: it was put back; the token is believed"
            );
        } else {
            tracing::warn!(
                token = %held.mark, path = %path.display(),
                "custody has no state, and the token remembers a checkpoint: the token is believed"
            );
        }
    }

    /// Has the token remember what the state does. The state counts: a token that cannot is said by `doctor`.
    pub(super) fn remember_in(&self, token: &dyn Token) {
        let Some(known) = self.kept.get().newest else { return };
        let place = Replaced { trail: known.trail.clone(), mark: known.mark };
        if *self.token_memory() == TokenMemory::Holds(place.clone()) {
            return;
        }
        let memory = match token.remember(Some(&for_token(&known))) {
            Ok(()) => TokenMemory::Holds(place),
            Err(error) => TokenMemory::Fails(error.to_string()),
        };
        if let TokenMemory::Fails(why) = &memory
            && !matches!(*self.token_memory(), TokenMemory::Fails(_))
        {
            tracing::warn!(why, "the token does not remember the newest checkpoint");
        }
        *self.token_memory() = memory;
    }
}

/// What the token's data object holds.
fn for_token(known: &Known) -> Vec<u8> {
    format!("strongroom checkpoint 1\n{}\n{}\n", known.trail, known.mark).into_bytes()
}

fn of_token(bytes: &[u8]) -> Option<Known> {
    let text = std::str::from_utf8(bytes).ok()?;
    let text = text.strip_prefix("strongroom checkpoint 1\n")?.strip_suffix('\n')?;
    let (trail, mark) = text.split_once('\n')?;
    let known = Known { trail: trail.to_owned(), mark: mark.parse().ok()?, signed: None };
    checkpoint::is_trail(trail).then_some(known)
}
