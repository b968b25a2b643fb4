//! Before a line is written: the trail is held against the newest checkpoint that custody remembers.
//!
//! It fits where its own newest checkpoint is that one, or the one before it: then a crash has kept it from
//! being written, custody gives it again, and this trail's own lines must hash to what it says. That it was
//! asked for only once its lines were durable makes this enough after any crash.
//!
//! Where it does not fit, an older copy was put back, or lines were written anew, and nothing is written.

use std::sync::atomic::Ordering;

use super::entry::EventNote;
use super::line::{Hash, Head};
use super::read::hash_of;
use super::segment::of_io;
use super::tend::SignError;
use super::verify::VerifyKey;
use super::{AuditError, Event, Trail};
use crate::custody::protocol::{Known, Newest};
use crate::custody::{Checkpoint, Mark};

/// The key that signs now, for a trail of which custody remembers nothing.
pub type SigningKey = (u32, VerifyKey);

impl Trail {
    /// Holds the trail against what custody remembers, and lets lines be written where it fits. Returns
    /// whether the token's memory was held against it, too. May be said again at any time.
    ///
    /// # Errors
    /// [`AuditError::NotSigned`]: with [`SignError::NotNewest`] where it does not fit, which is what a
    /// person is told; else custody could not be asked.
    pub async fn begin_history(&self, key: Option<SigningKey>) -> Result<bool, AuditError> {
        let mut newest = self.newest.lock().await;
        let known = self.signer.newest().await?;
        let missing = self.missing(&known, *newest)?;
        let ours = missing.as_ref().map_or(*newest, |checkpoint| checkpoint.mark);
        self.must_fit(&known, ours, key)?;
        let behind = self.behind(ours);
        let behind_end = known.closed && behind.is_some();
        let replaced = self.signer.begin(self.id.clone(), ours, behind_end).await;
        let replaced = replaced.map_err(|error| self.explain(error, &known, ours, behind_end))?;
        self.shared.hold(false);
        if let Some(checkpoint) = missing {
            self.write_checkpoint(&mut newest, checkpoint, None).await?;
        }
        if let Some(replaced) = replaced {
            let Mark { covers, head, .. } = replaced.mark;
            let note = EventNote::of(Event::RollbackAccepted, head).about_line(covers);
            self.event(note).await?;
        }
        if !self.begun.swap(true, Ordering::Relaxed)
            && let Some((line, count)) = behind
        {
            self.event(EventNote::lines_adopted(line, count)).await?;
        }
        if known.state_lost && !self.told_of_state.swap(true, Ordering::Relaxed) {
            self.event(EventNote::new(Event::CustodyStateLost)).await?;
        }
        Ok(known.with_token)
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
            "the newest checkpoint, over line {}, is not signed by the token's key: it was forged",
            ours.covers
        );
        Err(SignError::NotNewest(why).into())
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
        behind_end: bool,
    ) -> AuditError {
        let (SignError::NotNewest(_), Some(Known { trail, mark, .. })) = (&error, &known.known)
        else {
            return error.into();
        };
        let last = self.head().seq;
        let why = if *trail != self.id {
            format!("custody remembers audit log {trail}, and this is {}", self.id)
        } else if *mark == ours && behind_end {
            format!("it was closed with line {}, and lines stand behind it", mark.covers)
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
