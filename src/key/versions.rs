//! A key: one name, an algorithm that never changes, and its versions.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Algorithm, Labels, Mgf1Hash, Name, Origin, Owner, State, Transition, TransitionError,
    VersionMeta,
};

/// Everything about a key but the key itself. At least one version; their numbers rise, their kids
/// differ. Stored as JSON: new members are optional, so older records stay readable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored")]
pub struct KeyMeta {
    name: Name,
    algorithm: Algorithm,
    mgf1_hash: Mgf1Hash,
    labels: Labels,
    created_at: Timestamp,
    versions: Vec<VersionMeta>,
    #[serde(skip_serializing_if = "is_zero")]
    serve_without_token_seconds: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<Owner>,
}

fn is_zero(seconds: &u32) -> bool {
    *seconds == 0
}

/// The key takes no new version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RotateError {
    #[error("the key is suspended; resume it first, or deactivate or compromise it")]
    Suspended,
    #[error("the key is to be destroyed at {at}; restore it first")]
    Scheduled { at: Timestamp },
    #[error("the key is destroyed; make a new one under another name")]
    Destroyed,
    #[error("the key has {} versions, the most there can be", KeyMeta::MAX_VERSIONS)]
    TooMany,
    #[error("version {version} has this very key")]
    SameKey { version: u32 },
}

/// What was stored is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key's versions are numbered upwards from 1 and no two have the same kid")]
pub struct MalformedKey;

impl KeyMeta {
    /// The most versions of one key: its own record names the revision of each, beside the longest labels.
    pub const MAX_VERSIONS: usize = 1000;

    /// The most seconds of an outage that a key may serve: a week.
    pub const LONGEST_WITHOUT_TOKEN: u32 = 7 * 24 * 3600;

    /// A new key whose version 1 is active; `kid` is the thumbprint of its public key.
    pub fn new(
        name: Name,
        algorithm: Algorithm,
        mgf1_hash: Mgf1Hash,
        labels: Labels,
        kid: String,
        now: Timestamp,
    ) -> Self {
        let versions = vec![VersionMeta::active(1, kid, now)];
        let serve_without_token_seconds = 0;
        Self {
            name,
            algorithm,
            mgf1_hash,
            labels,
            created_at: now,
            versions,
            serve_without_token_seconds,
            owner: None,
        }
    }

    /// Who made it, or whom it was transferred to; none where it was made before there were owners.
    pub fn owner(&self) -> Option<&Owner> {
        self.owner.as_ref()
    }

    /// Gives it another owner.
    pub fn transfer(&mut self, owner: Option<Owner>) {
        self.owner = owner;
    }

    /// For how many seconds of an outage of the token its opened form may go on serving; 0 is not at all.
    pub fn serve_without_token_seconds(&self) -> u32 {
        self.serve_without_token_seconds
    }

    /// Changes that, up to [`KeyMeta::LONGEST_WITHOUT_TOKEN`].
    pub fn serve_without_token(&mut self, seconds: u32) {
        self.serve_without_token_seconds = seconds.min(Self::LONGEST_WITHOUT_TOKEN);
    }

    /// Notes where the private key of its newest version comes from.
    pub fn comes_from(&mut self, origin: Origin) {
        if let Some(newest) = self.versions.last_mut() {
            newest.origin = Some(origin);
        }
    }

    pub fn name(&self) -> &Name {
        &self.name
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub fn mgf1_hash(&self) -> Mgf1Hash {
        self.mgf1_hash
    }

    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    pub fn created_at(&self) -> Timestamp {
        self.created_at
    }

    /// All versions, oldest first.
    pub fn versions(&self) -> &[VersionMeta] {
        &self.versions
    }

    /// The version that protects: the newest that is active and does not wait for its destruction.
    pub fn current(&self) -> Option<&VersionMeta> {
        self.versions.iter().rev().find(|version| version.is_usable())
    }

    pub fn version(&self, version: u32) -> Option<&VersionMeta> {
        self.versions.iter().find(|candidate| candidate.version == version)
    }

    pub fn by_kid(&self, kid: &str) -> Option<&VersionMeta> {
        self.versions.iter().find(|version| version.kid == kid)
    }

    /// The state of the key as a whole, for people: active while a version protects, else the state
    /// of its newest version that stays (or, when all that is left waits for its destruction, of the
    /// newest that waits), destroyed when all are.
    pub fn state(&self) -> State {
        if self.current().is_some() {
            return State::Active;
        }
        let stays = |v: &&VersionMeta| v.state() != State::Destroyed && v.destroy_at().is_none();
        let newest_that_stays = self.versions.iter().rev().find(stays);
        newest_that_stays.or(self.newest_undestroyed()).map_or(State::Destroyed, VersionMeta::state)
    }

    /// When the last of the key falls due, if a destruction of every version waits.
    pub fn destroy_at(&self) -> Option<Timestamp> {
        let mut last = None;
        for version in self.versions.iter().filter(|v| v.state() != State::Destroyed) {
            last = last.max(Some(version.destroy_at()?));
        }
        last
    }

    /// The versions whose destruction is due at `now`.
    pub fn due(&self, now: Timestamp) -> Vec<u32> {
        let due = |version: &&VersionMeta| version.destroy_at().is_some_and(|at| at <= now);
        self.versions.iter().filter(due).map(|version| version.version).collect()
    }

    /// The time at which the next destruction falls due.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.versions.iter().filter_map(VersionMeta::destroy_at).min()
    }

    /// Adds a version that is active from now on and answers its number. The versions before it stay
    /// as they are: active ones still process.
    pub fn rotate(&mut self, kid: String, now: Timestamp) -> Result<u32, RotateError> {
        self.may_rotate()?;
        if let Some(VersionMeta { version, .. }) = self.by_kid(&kid) {
            return Err(RotateError::SameKey { version: *version });
        }
        let version = self.newest().version + 1;
        self.versions.push(VersionMeta::active(version, kid, now));
        self.comes_from(Origin::Generated);
        Ok(version)
    }

    /// Whether [`KeyMeta::rotate`] would take a new version: to ask before one is made.
    pub fn may_rotate(&self) -> Result<(), RotateError> {
        if let Some(at) = self.destroy_at() {
            return Err(RotateError::Scheduled { at });
        }
        match self.state() {
            State::Destroyed => Err(RotateError::Destroyed),
            State::Suspended => Err(RotateError::Suspended),
            _ if self.versions.len() >= Self::MAX_VERSIONS => Err(RotateError::TooMany),
            _ => Ok(()),
        }
    }

    /// Takes a step with one version, or with `None` with every version that can take it, and answers
    /// the numbers of those that did: never none. An error leaves the key as it was.
    pub fn apply(
        &mut self,
        version: Option<u32>,
        transition: Transition,
        now: Timestamp,
    ) -> Result<Vec<u32>, TransitionError> {
        let mut changed = Vec::new();
        let mut refused = None;
        for old in self.versions.iter_mut().rev() {
            if version.is_some_and(|wanted| wanted != old.version) {
                continue;
            }
            match old.after(transition, now) {
                Ok(new) => {
                    *old = new;
                    changed.push(old.version);
                }
                Err(error) => refused = more_telling(refused, error),
            }
        }
        changed.reverse();
        match (changed.is_empty(), refused, version) {
            (false, _, _) => Ok(changed),
            (true, Some(error), _) => Err(error),
            (true, None, wanted) => Err(TransitionError::NoVersion {
                version: wanted.unwrap_or(0),
                newest: self.newest().version,
            }),
        }
    }

    /// The version with the highest number.
    pub(super) fn newest(&self) -> &VersionMeta {
        self.versions.last().expect("a key is made with a version, and none is ever taken out")
    }

    pub(super) fn newest_undestroyed(&self) -> Option<&VersionMeta> {
        self.versions.iter().rev().find(|version| version.state() != State::Destroyed)
    }
}

/// Of the refusals of several versions, newest first, the first one that is not about a destroyed one.
fn more_telling(known: Option<TransitionError>, new: TransitionError) -> Option<TransitionError> {
    match known {
        None | Some(TransitionError::Destroyed { .. }) => Some(new),
        known => known,
    }
}

/// The stored form, before its versions are checked.
#[derive(Deserialize)]
struct Stored {
    name: Name,
    algorithm: Algorithm,
    #[serde(default)]
    mgf1_hash: Mgf1Hash,
    #[serde(default)]
    labels: Labels,
    created_at: Timestamp,
    versions: Vec<VersionMeta>,
    #[serde(default)]
    serve_without_token_seconds: u32,
    #[serde(default)]
    owner: Option<Owner>,
}

impl TryFrom<Stored> for KeyMeta {
    type Error = MalformedKey;

    fn try_from(stored: Stored) -> Result<Self, MalformedKey> {
        let Stored {
            name,
            algorithm,
            mgf1_hash,
            labels,
            created_at,
            versions,
            serve_without_token_seconds,
            owner,
        } = stored;
        let mut kids: Vec<&str> = versions.iter().map(VersionMeta::kid).collect();
        kids.sort_unstable();
        let numbered = (1u32..).zip(&versions).all(|(number, version)| version.version == number);
        let distinct = kids.windows(2).all(|pair| pair[0] != pair[1]);
        if versions.is_empty() || !numbered || !distinct {
            return Err(MalformedKey);
        }
        Ok(Self {
            name,
            algorithm,
            mgf1_hash,
            labels,
            created_at,
            versions,
            serve_without_token_seconds,
            owner,
        })
    }
}

#[cfg(test)]
#[path = "versions_tests.rs"]
mod tests;
