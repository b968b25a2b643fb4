//! What the token remembers of the audit log, in a private data object: compared with custody's state at each
//! unlock, and written after it.
//!
//! The state's file can be edited by whoever has its directory; the object only by whoever is logged in. So the
//! state is believed only where it says the very same as the token, or is the one step ahead that a crash
//! between the two writes leaves: a checkpoint with the next number, which the token's key has signed. An order
//! of root's stands until it is signed over. In any other case the token is believed.
//!
//! ```text
//! "strongroom checkpoint 2\n" ‖ trail ‖ "\n" ‖ number:covers:hash ‖ "\n" ‖ highest number ‖ "\n"
//!     ‖ "locked" or "open" ‖ "\n"
//! ```
//!
//! Form 1 ended after the mark.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

use super::{Fault, History, Known, Mark, Remembered, Replaced, checkpoint};
use crate::custody::checkpoint::Checkpoint;
use crate::token::{Token, TokenError};

/// What is known of the token's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TokenMemory {
    NotSeen,
    Empty,
    Holds(Held),
    /// It holds this, and did not take what is newer.
    Behind(Held, String),
    /// It keeps nothing.
    Fails(String),
}

/// What the token holds: the audit log, the place in its chain, the highest number, and a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub trail: String,
    pub mark: Mark,
    highest: u64,
    locked: bool,
}

impl History {
    /// Compares what the token remembers with the state. Returns whether the token remembers a lock.
    pub fn compare_with(&self, token: &dyn Token) -> Result<bool, Fault> {
        let found = match token.remembered() {
            Ok(found) => found,
            Err(error @ TokenError::Unsupported(_)) => {
                self.believe(token, None)?;
                *self.token_memory() = TokenMemory::Fails(error.to_string());
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        };
        let held = found.iter().filter_map(|bytes| Held::read(bytes));
        let held = held.max_by_key(|held| (held.highest, held.locked));
        self.believe(token, held.as_ref())?;
        let locked = held.as_ref().is_some_and(|held| held.locked);
        *self.token_memory() = held.map_or(TokenMemory::Empty, TokenMemory::Holds);
        Ok(locked)
    }

    /// Brings the state to what both of them, or the token alone, prove.
    fn believe(&self, token: &dyn Token, held: Option<&Held>) -> Result<(), Fault> {
        let now = self.kept.get();
        let signed = now.newest.as_ref().and_then(|known| known.signed.as_ref());
        let signed = signed.is_some_and(|signed| now.is_of(signed) && is_signed(token, signed));
        let mut next = now.clone();
        match held {
            Some(held) if now.ordered => next.follow_order(held),
            Some(held) if now.agrees_with(held) => {}
            Some(held) if signed && now.is_one_ahead_of(held) => {}
            Some(held) => next = held.as_state(&now),
            // The token says nothing, so only what cannot be is not believed.
            None if now.is_possible() => {}
            None => next = Remembered::default(),
        }
        let is_as_it_was = (&next.newest, next.highest) == (&now.newest, now.highest);
        if !is_as_it_was && !next.ordered {
            self.was_behind.store(true, Ordering::Relaxed);
            self.tell_of_state(held);
        }
        if let Some(known) = next.newest.as_mut().filter(|_| held.is_some() && !signed) {
            // A checkpoint that the token's key has not signed is none.
            known.signed = None;
        }
        if next == now {
            return Ok(());
        }
        self.kept.change(|memory| {
            *memory = next;
            Ok(())
        })
    }

    fn tell_of_state(&self, held: Option<&Held>) {
        let path = self.kept.path();
        let token = held.map(|held| held.mark.to_string());
        if self.kept.was_there() {
            tracing::error!(
                token, path = %path.display(),
                "custody's state is not what the token remembers: it was put back or changed; the token is \
                 believed"
            );
        } else {
            tracing::warn!(
                token, path = %path.display(),
                "custody has no state, and the token remembers a checkpoint: the token is believed"
            );
        }
    }

    /// Has the token remember what the state does. No further checkpoint is signed before it does, where it keeps
    /// anything: one step is all that the two may differ by.
    pub(in crate::custody) fn remember_in(&self, token: &dyn Token) {
        if self.forgets {
            return;
        }
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.token_memory().clone();
        let Some(wanted) = self.to_hold(&known) else { return };
        let before = match &known {
            TokenMemory::Holds(held) if *held == wanted => return,
            TokenMemory::Holds(held) | TokenMemory::Behind(held, _) => Some(held.clone()),
            _ => None,
        };
        let now = match token.remember(Some(&wanted.bytes())) {
            Ok(()) => TokenMemory::Holds(wanted),
            Err(error) => {
                let why = error.to_string();
                if !matches!(known, TokenMemory::Fails(_) | TokenMemory::Behind(..)) {
                    tracing::warn!(why, "the token does not remember the newest checkpoint");
                }
                match before {
                    Some(before) => TokenMemory::Behind(before, why),
                    None => TokenMemory::Fails(why),
                }
            }
        };
        *self.token_memory() = now;
    }

    /// What the token should hold; nothing before the first checkpoint.
    fn to_hold(&self, known: &TokenMemory) -> Option<Held> {
        let memory = self.kept.get();
        let locked = self.locked.load(Ordering::SeqCst);
        // What root has ordered replaces what the token holds with the next checkpoint.
        if let (true, TokenMemory::Holds(held) | TokenMemory::Behind(held, _)) =
            (memory.ordered, known)
        {
            return Some(Held { locked, ..held.clone() });
        }
        let Known { trail, mark, .. } = memory.newest?;
        Some(Held { trail, mark, highest: memory.highest, locked })
    }

    /// Has the token remember a lock that begins.
    pub fn remember_lock(&self, token: &dyn Token) {
        self.locked.store(true, Ordering::SeqCst);
        self.remember_in(token);
    }

    /// Nothing is signed while the token is a step behind.
    pub(super) fn token_must_know(&self, token: &dyn Token) -> Result<(), Fault> {
        if matches!(*self.token_memory(), TokenMemory::Behind(..)) {
            self.remember_in(token);
        }
        match &*self.token_memory() {
            TokenMemory::Behind(_, why) => {
                Err(Fault::State(format!("the token does not take the newest checkpoint: {why}")))
            }
            _ => Ok(()),
        }
    }
}

impl Remembered {
    fn agrees_with(&self, held: &Held) -> bool {
        let is_there = |known: &Known| known.is_at(&held.trail, held.mark);
        self.newest.as_ref().is_some_and(is_there) && self.highest == held.highest
    }

    /// Whether a crash may have kept the newest checkpoint from the token; its signature is checked apart.
    fn is_one_ahead_of(&self, held: &Held) -> bool {
        let number = self.newest.as_ref().map(|known| known.mark.number);
        number == Some(self.highest) && held.highest.checked_add(1) == number
    }

    /// Whether this checkpoint is that of the newest place.
    fn is_of(&self, signed: &Checkpoint) -> bool {
        self.newest.as_ref().is_some_and(|known| known.is_at(&signed.trail, signed.mark))
    }

    /// Whether custody can have written these numbers.
    fn is_possible(&self) -> bool {
        let Some(known) = &self.newest else { return self.highest == 0 };
        let was_signed = known.signed.is_some();
        let fits =
            |number| if was_signed { number == self.highest } else { number <= self.highest };
        fits(known.mark.number) && self.highest < u64::MAX
    }

    /// Root's order stands; the token says which number was the highest, and what is replaced.
    fn follow_order(&mut self, held: &Held) {
        self.highest = held.highest;
        let is_another = |known: &Known| !known.is_at(&held.trail, held.mark);
        if self.newest.as_ref().is_none_or(is_another) {
            self.replaced = Some(Replaced { trail: held.trail.clone(), mark: held.mark });
        }
    }
}

impl Held {
    /// The state that this proves, in the place of another.
    fn as_state(&self, before: &Remembered) -> Remembered {
        let Self { trail, mark, highest, .. } = self.clone();
        let (newest, stored) = (Some(Known { trail, mark, signed: None }), mark.covers);
        // Every checkpoint is signed over a head that the store has sealed, as a rule.
        let signer = before.signer.clone();
        Remembered { newest, highest, stored, signer, ..Remembered::default() }
    }

    fn bytes(&self) -> Vec<u8> {
        let Self { trail, mark, highest, locked } = self;
        let lock = if *locked { "locked" } else { "open" };
        format!("strongroom checkpoint 2\n{trail}\n{mark}\n{highest}\n{lock}\n").into_bytes()
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
        let mut lines = text.split('\n');
        let form = lines.next()?;
        let (trail, mark) = (lines.next()?.to_owned(), lines.next()?.parse::<Mark>().ok()?);
        let (highest, locked) = match form {
            "strongroom checkpoint 1" => (mark.number, false),
            "strongroom checkpoint 2" => (lines.next()?.parse().ok()?, lines.next()? == "locked"),
            _ => return None,
        };
        let whole = lines.next().is_none() && checkpoint::is_trail(&trail);
        (whole && highest >= mark.number).then_some(Self { trail, mark, highest, locked })
    }
}

/// Whether the token's own key has signed a checkpoint.
fn is_signed(token: &dyn Token, signed: &Checkpoint) -> bool {
    let Ok(Some(signer)) = token.signer(signed.generation) else { return false };
    let message = checkpoint::message(&signed.trail, &signed.mark, &signed.before, &signed.at);
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, signer.public_point);
    signed.signature_bytes().is_some_and(|bytes| key.verify(&message, &bytes).is_ok())
}
