//! Before a line is written: the trail is held against the newest checkpoint that custody remembers.
//!
//! It fits where its own newest checkpoint is that one, or the one before it: then a crash has kept it from
//! being written, custody gives it again, and this trail's own lines must hash to what it says. That it was
//! asked for only once its lines were durable makes this enough after any crash.
//!
//! Where it does not fit, an older copy was put back, or lines were written anew, and nothing is written.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

use super::entry::EventNote;
use super::line::{Hash, Head};
use super::read::hash_of;
use super::segment::of_io;
use super::tend::SignError;
use super::verify::VerifyKey;
use super::{AuditError, Event, OnBreak, Trail};
use crate::custody::protocol::{Known, Newest, Noted};
use crate::custody::{Checkpoint, Mark};

/// The key that signs now, for a trail of which custody remembers nothing.
pub type SigningKey = (u32, VerifyKey);

/// A trail that fits what custody remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fits {
    /// The token's memory was compared, too.
    pub with_token: bool,
    /// The line that the store's sealed record must reach; 0 where it need not be there.
    pub stored: u64,
    /// Root's order was that store and audit log count as they are.
    pub ordered: bool,
}

impl Trail {
    /// Compares the trail with what custody remembers, and lets lines be written where it fits. May be called
    /// again at any time.
    ///
    /// # Errors
    /// [`AuditError::NotSigned`]: with [`SignError::NotNewest`] where it does not fit, which is what a
    /// person is told; else custody could not be asked.
    pub async fn begin_history(&self, key: Option<SigningKey>) -> Result<Fits, AuditError> {
        let mut newest = self.newest.lock().await;
        let known = self.signer.newest().await?;
        let missing = self.missing(&known, *newest)?;
        let ours = missing.as_ref().map_or(*newest, |checkpoint| checkpoint.mark);
        let held = self.held(&known)?;
        let behind = match held {
            Some(noted) => self.behind_note(noted),
            None => self.behind(ours),
        };
        let holds = (known.closed && behind.is_some(), held);
        let begun = self.signer.begin(self.id.clone(), ours, holds).await;
        let begun = begun.map_err(|error| self.explain(error, &known, ours, holds))?;
        if !begun.ordered {
            self.must_fit(&known, ours, key)?;
        }
        self.shared.hold(false);
        if let Some(checkpoint) = missing {
            self.write_checkpoint(&mut newest, checkpoint, None).await?;
        }
        if let Some(replaced) = &begun.replaced {
            self.tell_of_replaced(replaced.mark).await?;
        }
        if !self.begun.swap(true, Ordering::Relaxed)
            && let Some((line, count)) = behind
        {
            self.event(EventNote::lines_adopted(line, count)).await?;
        }
        if known.state_lost && !self.told_of_state.swap(true, Ordering::Relaxed) {
            self.event(EventNote::new(Event::CustodyStateLost)).await?;
        }
        Ok(Fits { with_token: known.with_token, stored: begun.stored, ordered: begun.ordered })
    }

    /// One event says that an operator took this trail, or its store, in the place of what custody remembered,
    /// however often custody says so until the next checkpoint is signed.
    async fn tell_of_replaced(&self, mark: Mark) -> Result<(), AuditError> {
        let place = (mark.covers, Hash(mark.head));
        if self.end.accepted.contains(&place) || self.told_of_replaced().as_ref() == Some(&place) {
            return Ok(());
        }
        let note = EventNote::of(Event::RollbackAccepted, mark.head).about_line(mark.covers);
        self.event(note).await?;
        *self.told_of_replaced() = Some(place);
        Ok(())
    }

    fn told_of_replaced(&self) -> MutexGuard<'_, Option<(u64, Hash)>> {
        self.told_of_replaced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `line` of this trail is the one with this hash.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn has_line(&self, line: u64, hash: Hash) -> Result<bool, AuditError> {
        let head = self.head();
        if head.seq == line {
            return Ok(head.hash == hash);
        }
        let found = hash_of(&self.settings.directory, line);
        Ok(found.map_err(|error| of_io("reading a line", &error))? == Some(hash))
    }

    /// Whether the settings have a break recorded, and gone on from.
    pub fn accepts_breaks(&self) -> bool {
        self.settings.on_break == OnBreak::Record
    }

    /// Has no line written until it is said again that the trail fits.
    pub fn hold(&self) {
        self.shared.hold(true);
    }

    /// Has lines written without that: where nothing was kept yet.
    pub fn release(&self) {
        self.shared.hold(false);
    }

    /// How an operator names this trail with its newest checkpoint: `trail:number:covers:hash`.
    pub async fn accept_argument(&self) -> String {
        let newest = *self.newest.lock().await;
        let known = self.signer.newest().await.ok();
        let missing = known.and_then(|known| self.missing(&known, newest).ok().flatten());
        let mark = missing.map_or(newest, |checkpoint| checkpoint.mark);
        format!("{}:{mark}", self.id)
    }

    /// Whether lines wait.
    pub fn is_held(&self) -> bool {
        self.shared.is_held()
    }

    /// The checkpoint that custody has signed and this trail has not, where it is the very next one and its
    /// lines are these.
    pub(super) fn missing(
        &self,
        known: &Newest,
        ours: Mark,
    ) -> Result<Option<Checkpoint>, AuditError> {
        let next = known.known.as_ref().and_then(|known| known.signed.as_ref());
        let Some(next) = next.filter(|next| next.trail == self.id && next.before == ours) else {
            return Ok(None);
        };
        let Mark { covers, head, .. } = next.mark;
        let durable = self.head();
        if covers > durable.seq {
            return Ok(None);
        }
        let found = match durable.seq == covers {
            true => Some(durable.hash),
            false => hash_of(&self.settings.directory, covers)
                .map_err(|error| of_io("reading the line of a checkpoint", &error))?,
        };
        Ok((found == Some(Hash(head))).then(|| next.clone()))
    }

    /// A trail of which custody remembers nothing is believed as far as its newest checkpoint is signed.
    fn must_fit(
        &self,
        known: &Newest,
        ours: Mark,
        key: Option<SigningKey>,
    ) -> Result<(), AuditError> {
        let Some((generation, key)) = key.filter(|_| known.known.is_none()) else { return Ok(()) };
        if self.end.newest != ours || self.end.is_signed_by(generation, &key) {
            return Ok(());
        }
        let why = format!(
            "custody remembers no checkpoint, and the newest one, over line {}, is not signed by the token's \
             key: it was forged, or signed by a token before this one",
            ours.covers
        );
        Err(SignError::NotNewest(why).into())
    }

    /// The line that custody has noted, where this trail has it.
    fn held(&self, known: &Newest) -> Result<Option<Noted>, AuditError> {
        let Some(noted) = known.noted else { return Ok(None) };
        let is_ours = known.known.as_ref().is_some_and(|known| known.trail == self.id);
        let has = is_ours && self.has_line(noted.covers, Hash(noted.head))?;
        Ok(has.then_some(noted))
    }

    /// What stood behind a noted line when the trail was opened.
    fn behind_note(&self, noted: Noted) -> Option<(u64, u64)> {
        let count = self.end.head.seq.saturating_sub(noted.covers);
        let is_new = count > 0 && !self.begun.load(Ordering::Relaxed);
        is_new.then(|| (noted.covers + 1, count))
    }

    /// What stood behind a checkpoint when the trail was opened: the first line, and how many.
    fn behind(&self, newest: Mark) -> Option<(u64, u64)> {
        let end = &self.end;
        if self.begun.load(Ordering::Relaxed) {
            None
        } else if newest == end.newest {
            end.behind
        } else {
            // The one that was missing: all lines after it are behind it.
            let count = end.head.seq.saturating_sub(newest.covers);
            (count > 0).then(|| (newest.covers + 1, count))
        }
    }

    /// Says what does not fit, in the words of somebody who has both at hand.
    fn explain(
        &self,
        error: SignError,
        known: &Newest,
        ours: Mark,
        (behind_end, held): (bool, Option<Noted>),
    ) -> AuditError {
        let (SignError::NotNewest(_), Some(Known { trail, mark, .. })) = (&error, &known.known)
        else {
            return error.into();
        };
        let last = self.head().seq;
        let why = if *trail != self.id {
            format!("custody remembers audit log {trail}, and this is {}", self.id)
        } else if let (true, Some(noted), None) = (*mark == ours, known.noted, held) {
            format!(
                "custody noted line {} while nothing could be signed, and it does not have that line (its last \
                 is {last}): an older copy was put back, or its end was cut off",
                noted.covers
            )
        } else if *mark == ours && behind_end {
            let line = held.map_or(mark.covers, |noted| noted.covers);
            format!("it was closed with line {line}, and lines stand behind it")
        } else if mark.number > ours.number {
            format!(
                "custody has signed checkpoint {} over line {}, and it ends with checkpoint {} over line {} \
                 (its last line is {last}): an older copy was put back, or its end was cut off",
                mark.number, mark.covers, ours.number, ours.covers
            )
        } else {
            format!(
                "its newest checkpoint is number {} over line {}, and custody signed number {} over line {} \
                 last: it was written anew, or custody's state was put back",
                ours.number, ours.covers, mark.number, mark.covers
            )
        };
        SignError::NotNewest(why).into()
    }
}

/// The line that a checkpoint covers.
pub(super) fn head_of(mark: &Mark) -> Head {
    Head { seq: mark.covers, hash: Hash(mark.head) }
}
