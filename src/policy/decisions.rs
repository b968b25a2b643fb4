//! Remembers decisions. One is a pure function of its question and the loaded policy, so it holds for as
//! long as the policy does; the memory dies with it. Its size is fixed: a question has one slot, and the
//! last one to fall there stays.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

use super::facts::Mode;
use super::gate::Refusal;
use super::roles::RoleSet;
use super::{Action, Resource};
use crate::key::{Labels, Owner};

/// Everything that a decision depends on, besides the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Question<'a> {
    pub uid: u32,
    pub gid: u32,
    pub roles: RoleSet,
    pub action: Action,
    pub resource: &'a Resource,
    pub mode: Mode,
    /// `None` where there is none, or no policy looks at it.
    pub owner: Option<&'a Owner>,
    pub labels: Option<&'a Labels>,
}

/// Yes, or why not.
pub(super) type Verdict = Result<(), Arc<Refusal>>;

/// A direct-mapped table of [`Decisions::SLOTS`] answers.
pub(super) struct Decisions {
    hasher: RandomState,
    slots: Box<[Mutex<Option<Remembered>>]>,
}

struct Remembered {
    uid: u32,
    gid: u32,
    roles: RoleSet,
    action: Action,
    resource: Resource,
    mode: Mode,
    owner: Option<Owner>,
    labels: Option<Labels>,
    verdict: Verdict,
}

impl Decisions {
    const SLOTS: usize = 4096;

    pub(super) fn new() -> Self {
        let slots = std::iter::repeat_with(|| Mutex::new(None)).take(Self::SLOTS).collect();
        Self { hasher: RandomState::new(), slots }
    }

    /// The remembered answer to `question`, else that of `judge`, which is remembered from now on.
    pub(super) fn answer(
        &self,
        question: Question<'_>,
        judge: impl FnOnce() -> Verdict,
    ) -> Verdict {
        let slot = &self.slots[self.hasher.hash_one(question) as usize % Self::SLOTS];
        // A remembered answer is written whole or not at all, so a panic elsewhere leaves nothing bent.
        if let Some(known) = &*slot.lock().unwrap_or_else(PoisonError::into_inner)
            && known.answers(question)
        {
            return known.verdict.clone();
        }
        let verdict = judge();
        let remembered = Remembered::of(question, verdict.clone());
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(remembered);
        verdict
    }
}

impl Remembered {
    fn of(question: Question<'_>, verdict: Verdict) -> Self {
        let Question { uid, gid, roles, action, resource, mode, owner, labels } = question;
        let (resource, owner, labels) = (resource.clone(), owner.cloned(), labels.cloned());
        Self { uid, gid, roles, action, resource, mode, owner, labels, verdict }
    }

    fn answers(&self, question: Question<'_>) -> bool {
        let Self { uid, gid, roles, action, ref resource, mode, ref owner, ref labels, .. } = *self;
        let (owner, labels) = (owner.as_ref(), labels.as_ref());
        question == Question { uid, gid, roles, action, resource, mode, owner, labels }
    }
}
