//! What a key may be used for now, as values that only the check can make.
//!
//! | state of the version | protect | process |
//! | --- | --- | --- |
//! | active, the newest | yes | yes |
//! | active, older | no | yes |
//! | deactivated, compromised | no | with [`ForRecovery`] |
//! | pre-active, suspended, destroyed | no | no |
//! | any, with a destruction that waits | no | no |

use jiff::Timestamp;

use super::versions::KeyMeta;
use super::{Name, State, VersionMeta};

/// This version of this key may protect: encrypt something new. Made by [`KeyMeta::to_protect`] alone.
#[derive(Debug)]
#[must_use = "a proof that nobody uses allows nothing"]
pub struct MayProtect {
    key: Name,
    version: u32,
    kid: String,
}

/// This version of this key may process: open what was protected. Made by [`KeyMeta::to_process`] alone.
#[derive(Debug)]
#[must_use = "a proof that nobody uses allows nothing"]
pub struct MayProcess {
    key: Name,
    version: u32,
    kid: String,
    for_recovery: bool,
}

/// Policy allows versions of this key to be used for recovery.
#[derive(Debug)]
#[must_use = "an allowance that nobody uses allows nothing"]
pub struct ForRecovery(Name);

impl ForRecovery {
    /// For the policy gate alone, once it has said yes to recovering `key`.
    pub(crate) fn granted_by_policy(key: Name) -> Self {
        Self(key)
    }
}

/// Which version of a key a caller means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick<'a> {
    /// The one that protects now.
    Current,
    Version(u32),
    /// The version with this RFC 7638 thumbprint.
    Kid(&'a str),
}

/// The version cannot be used this way now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UseError {
    #[error("the key has no version {version}; its newest is {newest}")]
    NoVersion { version: u32, newest: u32 },
    #[error("no version of the key has this kid")]
    NoKid,
    #[error("no version of the key is active (version {newest} is {state}); {}", remedy(*.state))]
    NoCurrent { newest: u32, state: State },
    #[error("version {version} is {state}; {}", remedy(*.state))]
    NotUsable { version: u32, state: State },
    #[error("version {version} is {state}; using it needs the permission to recover")]
    NeedsRecovery { version: u32, state: State },
    #[error("version {version} is to be destroyed at {at}; restore it to use it")]
    Scheduled { version: u32, at: Timestamp },
}

fn remedy(state: State) -> &'static str {
    match state {
        State::PreActive => "activate it first",
        State::Suspended => "resume it first",
        State::Active | State::Deactivated | State::Compromised => {
            "rotate the key or name a version"
        }
        State::Destroyed => "it cannot be used again",
    }
}

impl MayProtect {
    pub fn key(&self) -> &Name {
        &self.key
    }

    pub fn version(&self) -> u32 {
        self.version
    }

    pub fn kid(&self) -> &str {
        &self.kid
    }
}

impl MayProcess {
    pub fn key(&self) -> &Name {
        &self.key
    }

    pub fn version(&self) -> u32 {
        self.version
    }

    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// Whether this is a recovery with a version that is deactivated or compromised.
    pub fn for_recovery(&self) -> bool {
        self.for_recovery
    }
}

impl KeyMeta {
    /// May this key protect something new? If so, by its current version.
    pub fn to_protect(&self) -> Result<MayProtect, UseError> {
        let current = self.current_or_why()?;
        let VersionMeta { version, kid, .. } = current;
        Ok(MayProtect { key: self.name().clone(), version: *version, kid: kid.clone() })
    }

    /// May the version that `pick` means open something? Ask without `recovery` first;
    /// [`UseError::NeedsRecovery`] says that policy has to be asked for it.
    pub fn to_process(
        &self,
        pick: Pick<'_>,
        recovery: Option<ForRecovery>,
    ) -> Result<MayProcess, UseError> {
        let picked = self.pick(pick)?;
        let VersionMeta { version, kid, .. } = picked;
        let (version, state) = (*version, picked.state());
        if let (Some(at), true) = (picked.destroy_at(), state != State::Destroyed) {
            return Err(UseError::Scheduled { version, at });
        }
        let for_recovery = match state {
            State::Active => false,
            State::Deactivated | State::Compromised => {
                let granted = recovery.is_some_and(|ForRecovery(key)| key == *self.name());
                if !granted {
                    return Err(UseError::NeedsRecovery { version, state });
                }
                true
            }
            State::PreActive | State::Suspended | State::Destroyed => {
                return Err(UseError::NotUsable { version, state });
            }
        };
        Ok(MayProcess { key: self.name().clone(), version, kid: kid.clone(), for_recovery })
    }

    /// The version that `pick` means, in whatever state it is.
    pub fn pick(&self, pick: Pick<'_>) -> Result<&VersionMeta, UseError> {
        match pick {
            Pick::Current => self.current_or_why(),
            Pick::Version(version) => self
                .version(version)
                .ok_or(UseError::NoVersion { version, newest: self.newest().version() }),
            Pick::Kid(kid) => self.by_kid(kid).ok_or(UseError::NoKid),
        }
    }

    fn current_or_why(&self) -> Result<&VersionMeta, UseError> {
        self.current().ok_or_else(|| {
            let newest = self.newest_undestroyed().unwrap_or(self.newest());
            match newest.destroy_at() {
                Some(at) => UseError::Scheduled { version: newest.version(), at },
                None => UseError::NoCurrent { newest: newest.version(), state: newest.state() },
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Algorithm, Labels, Mgf1Hash, Transition, WaitingPeriod};
    use super::*;

    fn two_versions() -> KeyMeta {
        let name = Name::parse("pay").unwrap();
        let now = Timestamp::UNIX_EPOCH;
        let mut key = KeyMeta::new(
            name,
            Algorithm::Rsa2048,
            Mgf1Hash::Sha256,
            Labels::default(),
            "k1".to_owned(),
            now,
        );
        key.rotate("k2".to_owned(), now).unwrap();
        key
    }

    fn step(key: &mut KeyMeta, version: u32, transition: Transition) {
        key.apply(Some(version), transition, Timestamp::UNIX_EPOCH).unwrap();
    }

    #[test]
    fn the_newest_active_protects_and_all_active_process() {
        let key = two_versions();
        assert_eq!(key.to_protect().unwrap().kid(), "k2");
        let picks =
            [(Pick::Current, 2), (Pick::Version(1), 1), (Pick::Kid("k1"), 1), (Pick::Kid("k2"), 2)];
        for (pick, version) in picks {
            let proof = key.to_process(pick, None).unwrap();
            assert_eq!((proof.version(), proof.for_recovery()), (version, false), "{pick:?}");
        }
        assert_eq!(key.to_process(Pick::Kid("k3"), None).unwrap_err(), UseError::NoKid);
        let error = key.to_process(Pick::Version(3), None).unwrap_err();
        assert_eq!(error, UseError::NoVersion { version: 3, newest: 2 });
    }

    #[test]
    fn deactivated_and_compromised_open_only_for_recovery_of_this_key() {
        for transition in [Transition::Deactivate, Transition::Compromise] {
            let mut key = two_versions();
            step(&mut key, 1, transition);
            let error = key.to_process(Pick::Version(1), None).unwrap_err();
            assert!(matches!(error, UseError::NeedsRecovery { version: 1, .. }), "{error}");
            let other = ForRecovery::granted_by_policy(Name::parse("other").unwrap());
            assert!(key.to_process(Pick::Version(1), Some(other)).is_err());
            let this = ForRecovery::granted_by_policy(key.name().clone());
            assert!(key.to_process(Pick::Version(1), Some(this)).unwrap().for_recovery());
        }
    }

    #[test]
    fn suspended_and_waiting_versions_open_for_nobody() {
        let mut key = two_versions();
        step(&mut key, 1, Transition::Suspend);
        step(&mut key, 2, Transition::ScheduleDestruction(WaitingPeriod::default()));
        let recovery = || Some(ForRecovery::granted_by_policy(key.name().clone()));
        let suspended = key.to_process(Pick::Version(1), recovery()).unwrap_err();
        assert_eq!(suspended.to_string(), "version 1 is suspended; resume it first");
        let waiting = key.to_process(Pick::Version(2), recovery()).unwrap_err();
        assert!(matches!(waiting, UseError::Scheduled { version: 2, .. }));
        assert!(matches!(key.to_protect().unwrap_err(), UseError::Scheduled { version: 2, .. }));
    }

    #[test]
    fn a_key_without_an_active_version_says_why_it_does_not_protect() {
        let mut key = two_versions();
        key.apply(None, Transition::Compromise, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(
            key.to_protect().unwrap_err().to_string(),
            "no version of the key is active (version 2 is compromised); \
             rotate the key or name a version"
        );
    }
}
