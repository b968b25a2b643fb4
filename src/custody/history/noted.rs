//! The newest line of the audit log, noted while nothing can be signed: custody is locked, or its token is away.
//! The next start must hold that line, so what was recorded meanwhile is not cut off unseen.
//!
//! The note lies in the state alone, for the token cannot be written then.

use super::{Answer, Fault, History, Noted, Reply, SignerFacts, ToSign, not_newest};

impl History {
    /// Notes the newest line of the audit log that is remembered; `closes`: it ends with it.
    ///
    /// And if the front lies? A line that the log does not have holds service at the next start, as a checkpoint
    /// over such a line does. Nothing goes back: a line before the noted one is refused.
    pub fn note(&self, trail: &str, noted: Noted, closes: bool) -> Answer {
        let now = self.kept.get();
        if (now.noted.as_ref(), now.closed) == (Some(&noted), closes) {
            return Ok(Reply::Done);
        }
        self.kept.change(|memory| {
            let known = memory.newest.as_ref().filter(|known| known.trail == trail);
            let Some(known) = known.filter(|_| !memory.closed) else {
                return Err(not_newest(memory));
            };
            let is_behind = match &memory.noted {
                Some(before) if before.covers == noted.covers => before.head != noted.head,
                Some(before) => before.covers > noted.covers,
                None => noted.covers <= known.mark.covers,
            };
            if is_behind {
                return Err(not_newest(memory));
            }
            memory.noted = Some(noted);
            memory.closed = closes;
            Ok(Reply::Done)
        })
    }

    /// The token has proved that it holds this signing key.
    ///
    /// # Errors
    /// [`Fault::State`] where it could not be kept.
    pub fn know_signer(&self, signer: &SignerFacts) -> Result<(), Fault> {
        if self.kept.get().signer.as_ref() == Some(signer) {
            return Ok(());
        }
        self.kept.change(|memory| {
            memory.signer = Some(signer.clone());
            Ok(())
        })
    }
}

impl Noted {
    /// Whether a checkpoint over this head may stand behind the note.
    pub(super) fn is_within(&self, wanted: &ToSign<'_>) -> bool {
        self.covers < wanted.covers || (self.covers, self.head) == (wanted.covers, wanted.head)
    }
}
