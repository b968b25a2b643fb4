//! Preconditions of a request (RFC 9110 §13): which revision the resource must have, or that there is none.

use super::error::Error;

/// The conditions in a request's `if-match` and `if-none-match`; none by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preconditions {
    pub if_match: Option<Tags>,
    pub if_none_match: Option<Tags>,
}

/// The entity tags of one condition: each is a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tags {
    /// `*`: any revision.
    Any,
    Of(Vec<u64>),
}

impl Tags {
    /// Whether the revision that the resource has, if it exists, is among them.
    pub fn include(&self, current: Option<u64>) -> bool {
        match (self, current) {
            (_, None) => false,
            (Tags::Any, Some(_)) => true,
            (Tags::Of(revisions), Some(current)) => revisions.contains(&current),
        }
    }
}

impl Preconditions {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Checks them against the revision that the resource has; `None` where it does not exist.
    ///
    /// # Errors
    /// [`Error::Changed`] or [`Error::NothingToMatch`] for `if-match`, [`Error::Present`] for
    /// `if-none-match`.
    pub fn check(&self, current: Option<u64>) -> Result<(), Error> {
        if let Some(wanted) = &self.if_match
            && !wanted.include(current)
        {
            return Err(current.map_or(Error::NothingToMatch, |current| Error::Changed { current }));
        }
        match (&self.if_none_match, current) {
            (Some(unwanted), Some(current)) if unwanted.include(Some(current)) => {
                Err(Error::Present { current })
            }
            _ => Ok(()),
        }
    }

    /// What to say of a change that lost against another one: where a condition does not hold any more,
    /// that is the reason.
    pub fn of_conflict(&self, error: Error, current: Option<u64>) -> Error {
        match error {
            Error::Conflict => self.check(current).err().unwrap_or(Error::Conflict),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_hold_or_name_what_is_there() {
        let of = |revisions: &[u64]| Some(Tags::Of(revisions.to_vec()));
        let matches = |if_match| Preconditions { if_match, ..Preconditions::default() };
        let differs = |if_none_match| Preconditions { if_none_match, ..Preconditions::default() };
        for (fit, current) in [
            (Preconditions::default(), None),
            (Preconditions::default(), Some(3)),
            (matches(Some(Tags::Any)), Some(3)),
            (matches(of(&[2, 3])), Some(3)),
            (differs(Some(Tags::Any)), None),
            (differs(of(&[2, 4])), Some(3)),
            (differs(of(&[2])), None),
        ] {
            assert!(fit.check(current).is_ok(), "{fit:?} {current:?}");
        }
        assert!(matches!(matches(of(&[2])).check(Some(3)), Err(Error::Changed { current: 3 })));
        assert!(matches!(matches(Some(Tags::Any)).check(None), Err(Error::NothingToMatch)));
        for unfit in [differs(Some(Tags::Any)), differs(of(&[1, 3]))] {
            assert!(matches!(unfit.check(Some(3)), Err(Error::Present { current: 3 })));
        }
        let both = Preconditions { if_match: of(&[3]), if_none_match: of(&[3]) };
        assert!(matches!(both.check(Some(3)), Err(Error::Present { .. })));
        let lost = differs(Some(Tags::Any)).of_conflict(Error::Conflict, Some(1));
        assert!(matches!(lost, Error::Present { current: 1 }));
        let other = Preconditions::default().of_conflict(Error::Conflict, Some(1));
        assert!(matches!(other, Error::Conflict));
    }
}
