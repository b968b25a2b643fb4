//! How many wrong PINs may still be tried, counted where no front can write.
//!
//! A PIN that somebody gives is counted before the token is asked, so that an end of the process takes no
//! try back; a right one takes all of them back. A right login with the configured PIN does not: it costs
//! nothing to whoever may unlock. A token's own count of wrong PINs that custody knows nothing of counts as
//! one. Between two tries lies a time that doubles.
//!
//! A count that is not there although custody has worked before (the token has its mark, or another part of the
//! state is there) was lost or taken away: no PIN that somebody gives is tried then before root allows more.
//!
//! The configured PIN is not tried twice as it was refused: a file not before it is changed, a credential,
//! which looks new at every start, only as often as a given PIN.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::protocol::Fault;
use super::state::{Kept, Section, StateError};
use crate::token::pkcs11::BeforeLogin;

/// What is remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tries {
    given: Count,
    credential: Count,
    /// The PIN file that was refused last, as it was then.
    refused_file: Option<PinFile>,
    /// The count was lost, and begins with as many as were allowed then.
    #[serde(default)]
    lost: bool,
    /// There was no count, and the token was not asked yet whether there should be one.
    #[serde(default)]
    is_new: bool,
}

/// Wrong tries since the last right one, and when the newest was, in seconds of Unix time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Count {
    wrong: u32,
    last: i64,
}

impl Section for Tries {
    const NAME: &'static str = "pin-tries";
}

/// A file as it is on disk: what is written to it makes it another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinFile {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl PinFile {
    /// Nothing where it cannot be seen.
    pub fn of(path: &Path) -> Option<Self> {
        let found = std::fs::metadata(path).ok()?;
        let changed = (found.ctime(), found.ctime_nsec());
        Some(Self { device: found.dev(), inode: found.ino(), size: found.size(), changed })
    }
}

/// The count, and what root's configuration allows.
pub struct PinBudget {
    tries: Kept<Tries>,
    most: u32,
    /// The count lasts no longer than this process: the token's own stands for it.
    is_brief: bool,
}

/// Why no PIN is tried, in words.
#[derive(Debug, thiserror::Error)]
pub enum Withheld {
    #[error("{0}")]
    Rule(String),
    #[error("no PIN is tried while wrong tries cannot be counted: {0}")]
    Uncounted(#[from] StateError),
}

impl From<Withheld> for Fault {
    fn from(why: Withheld) -> Self {
        match why {
            Withheld::Rule(why) => Fault::PinRefused(why),
            Withheld::Uncounted(_) => Fault::State(why.to_string()),
        }
    }
}

/// Why an offline command tries none.
const LOW_COUNT: &str = "the token says that a PIN was wrong since the last right one, and a command without a \
                         daemon does not count the wrong ones. Log in by hand with the right PIN first: \
                         pkcs11-tool --login --test";

/// Whether a command without a daemon may try a PIN: its wrong ones are counted by nothing but the token.
///
/// # Errors
/// The token says that one was wrong since the last right one.
pub fn may_try_offline(count_low: bool) -> Result<(), String> {
    if count_low { Err(LOW_COUNT.to_owned()) } else { Ok(()) }
}

/// Seconds after the first wrong PIN, and at most; each further one doubles them.
const FIRST_PAUSE: i64 = 5;
const LONGEST_PAUSE: i64 = 3600;

impl Count {
    /// Whether there may be another try after `wrong` ones.
    fn allows(self, wrong: u32, most: u32, now: i64) -> Result<(), String> {
        if wrong >= most {
            return Err(format!(
                "no further PIN is tried: {wrong} wrong since the last right one, and [custody] \
                 max_wrong_pins = {most}. Root sets it higher and restarts custody; or unlock with the \
                 configured PIN, once it is right"
            ));
        }
        let next = self.next(now);
        if now < next {
            return Err(format!(
                "the last PIN was wrong; the next is tried from {} on, and {} more may be wrong \
                 ([custody] max_wrong_pins)",
                at(next),
                most - wrong
            ));
        }
        Ok(())
    }

    /// When there may be another one. A clock that was set back begins the time anew.
    fn next(self, now: i64) -> i64 {
        let Some(doublings) = self.wrong.checked_sub(1) else { return now };
        let pause = FIRST_PAUSE.saturating_mul(1 << doublings.min(16)).min(LONGEST_PAUSE);
        self.last.min(now) + pause
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
}

impl Tries {
    /// A count that is gone is taken for one that was used up.
    fn lose(&mut self, most: u32) {
        tracing::error!(
            "the count of wrong PINs is gone, and custody has worked with this token before: no PIN that is given \
             is tried before root raises [custody] max_wrong_pins, or moves its own copy of the state back"
        );
        *self = Self { given: Count { wrong: most, last: 0 }, lost: true, ..Self::default() };
    }

    fn withheld(&self, why: String) -> Withheld {
        Withheld::Rule(match self.lost {
            true => format!("{why}. The count of wrong PINs was lost, so all count as used up"),
            false => why,
        })
    }
}

impl PinBudget {
    /// `most` wrong ones may be tried since the last right one.
    pub fn new(tries: Kept<Tries>, most: u32) -> Self {
        Self { tries, most, is_brief: false }
    }

    /// At the start: makes the count where there is none. No part of the state is written before it, so where
    /// there is another (`has_past`) it was lost.
    pub fn begin(self, has_past: bool) -> Self {
        if !self.tries.was_there() && !self.is_brief {
            self.keep(|tries| match has_past {
                true => tries.lose(self.most),
                false => tries.is_new = true,
            });
        }
        self
    }

    /// Where what is counted is forgotten at the end of the process, as an offline command's is: after a wrong
    /// PIN that the token tells of, none is tried before one was right elsewhere.
    pub fn brief(self, is_brief: bool) -> Self {
        Self { is_brief, ..self }
    }

    /// Counts a given PIN that is about to be tried; `count_low`: the token says that one was wrong since
    /// the last login.
    ///
    /// # Errors
    /// It must not be tried.
    pub fn spend(&self, before: BeforeLogin, now: i64) -> Result<(), Withheld> {
        let BeforeLogin { count_low, was_used } = before;
        may_try_offline(count_low && self.is_brief).map_err(Withheld::Rule)?;
        self.note_loss(was_used)?;
        self.tries.change(|tries| {
            let known = tries.given.wrong.max(tries.credential.wrong);
            let is_known = known > 0 || tries.refused_file.is_some();
            let wrong = tries.given.wrong + u32::from(count_low && !is_known);
            tries.given.allows(wrong, self.most, now).map_err(|why| tries.withheld(why))?;
            tries.given = Count { wrong: wrong + 1, last: now };
            Ok(())
        })
    }

    /// A count that began with this state is a lost one where custody has worked with the token before.
    fn note_loss(&self, was_used: bool) -> Result<(), StateError> {
        if !self.tries.get().is_new {
            return Ok(());
        }
        self.tries.change(|tries| {
            tries.is_new = false;
            if was_used {
                tries.lose(self.most);
            }
            Ok(())
        })
    }

    /// What may still be tried, in words, after a wrong one.
    pub fn left(&self, now: i64) -> String {
        let given = self.tries.get().given;
        match given.allows(given.wrong, self.most, i64::MAX) {
            Ok(()) => format!("the next is tried from {} on", at(given.next(now))),
            Err(why) => why,
        }
    }

    /// The given PIN that was counted was not tried after all.
    pub fn take_back(&self) {
        self.keep(|tries| tries.given.wrong = tries.given.wrong.saturating_sub(1));
    }

    /// The given PIN was right.
    pub fn given_was_right(&self) {
        self.keep(|tries| *tries = Tries::default());
    }

    /// Whether the configured PIN may be tried; `file` is the one it stands in, if it stands in one.
    ///
    /// # Errors
    /// It was refused, and is the same.
    pub fn may_try_configured(
        &self,
        file: Option<PinFile>,
        before: BeforeLogin,
        now: i64,
    ) -> Result<(), Withheld> {
        may_try_offline(before.count_low && self.is_brief).map_err(Withheld::Rule)?;
        self.note_loss(before.was_used)?;
        // A refusal that cannot be remembered would be forgotten, and the PIN be tried at each start.
        let tries = self.tries.change(|tries| Ok::<_, StateError>(tries.clone()))?;
        match file {
            Some(file) if tries.refused_file == Some(file) => Err(Withheld::Rule(
                "the PIN file is still as it was when its PIN was refused, so it was not tried again".to_owned(),
            )),
            Some(_) => Ok(()),
            None => {
                let count = tries.credential;
                count.allows(count.wrong, self.most, now).map_err(Withheld::Rule)
            }
        }
    }

    /// The configured PIN was refused.
    pub fn configured_was_refused(&self, file: Option<PinFile>, now: i64) {
        self.keep(|tries| match file {
            Some(file) => tries.refused_file = Some(file),
            None => tries.credential = Count { wrong: tries.credential.wrong + 1, last: now },
        });
    }

    /// The configured PIN was right. What was given stays counted.
    pub fn configured_was_right(&self) {
        let tries = self.tries.get();
        if tries.refused_file.is_some() || tries.credential != Count::default() {
            self.keep(|tries| (tries.credential, tries.refused_file) = (Count::default(), None));
        }
    }

    /// A change that only makes later tries possible, or that comes after the try.
    fn keep(&self, change: impl FnOnce(&mut Tries)) {
        let kept: Result<(), StateError> = self.tries.change(|tries| {
            change(tries);
            Ok(())
        });
        if let Err(error) = kept {
            tracing::error!(%error, "the tries of PINs could not be kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::State;
    use super::*;

    const LOW_NOT: BeforeLogin = BeforeLogin { count_low: false, was_used: false };
    const LOW: BeforeLogin = BeforeLogin { count_low: true, was_used: false };

    fn budget(path: &Path, most: u32) -> PinBudget {
        PinBudget::new(State::open(path).unwrap().load().unwrap(), most)
    }

    #[test]
    fn two_wrong_ones_with_a_pause_and_no_more_whoever_starts_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let first = budget(&path, 2);
        first.spend(LOW_NOT, 1000).unwrap();
        let early = first.spend(LOW_NOT, 1004).unwrap_err().to_string();
        assert!(early.contains("1970-01-01T00:16:45Z"), "{early}");
        drop(first);
        let second = budget(&path, 2);
        second.configured_was_right();
        second.spend(LOW_NOT, 1004).unwrap_err();
        second.spend(LOW_NOT, 1005).unwrap();
        drop(second);
        let third = budget(&path, 2);
        let over = third.spend(LOW_NOT, 1_000_000).unwrap_err().to_string();
        assert!(over.contains("max_wrong_pins = 2"), "{over}");
        drop(third);
        let raised = budget(&path, 3);
        raised.spend(LOW_NOT, 1014).unwrap_err();
        raised.spend(LOW_NOT, 1015).unwrap();
        raised.given_was_right();
        raised.spend(LOW_NOT, 1015).unwrap();
    }

    #[test]
    fn a_wrong_pin_that_custody_does_not_know_of_counts_as_one() {
        let directory = tempfile::tempdir().unwrap();
        let budget = budget(&directory.path().join("state"), 2);
        budget.spend(LOW, 1000).unwrap();
        budget.spend(LOW, 2000).unwrap_err();
        budget.take_back();
        budget.spend(LOW, 3000).unwrap();
        budget.spend(LOW_NOT, 9000).unwrap_err();
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_shut_out_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let budget = budget(&directory.path().join("state"), 2);
        budget.spend(LOW_NOT, 1_000_000).unwrap();
        budget.spend(LOW_NOT, 1000).unwrap_err();
        budget.spend(LOW_NOT, 1_000_005).unwrap();
    }

    #[test]
    fn a_refused_file_is_tried_once_it_is_another_and_a_credential_seldom() {
        let directory = tempfile::tempdir().unwrap();
        let pin = directory.path().join("pin");
        std::fs::write(&pin, "1").unwrap();
        let budget = budget(&directory.path().join("state"), 2);
        let file = PinFile::of(&pin);
        budget.may_try_configured(file, LOW_NOT, 1000).unwrap();
        budget.configured_was_refused(file, 1000);
        budget.may_try_configured(file, LOW_NOT, 999_999).unwrap_err();
        std::fs::write(&pin, "22").unwrap();
        budget.may_try_configured(PinFile::of(&pin), LOW_NOT, 1000).unwrap();
        budget.configured_was_right();
        budget.may_try_configured(file, LOW_NOT, 1000).unwrap();
        for wrong in [1000, 2000] {
            budget.may_try_configured(None, LOW_NOT, wrong).unwrap();
            budget.configured_was_refused(None, wrong);
            budget.may_try_configured(None, LOW_NOT, wrong + 1).unwrap_err();
        }
        budget.may_try_configured(None, LOW_NOT, 999_999).unwrap_err();
        budget.given_was_right();
        budget.may_try_configured(None, LOW_NOT, 999_999).unwrap();
    }

    #[test]
    fn what_is_forgotten_at_the_end_heeds_the_count_of_the_token() {
        let directory = tempfile::tempdir().unwrap();
        let budget = budget(&directory.path().join("state"), 2);
        budget.may_try_configured(None, LOW, 1000).unwrap();
        let brief = budget.brief(true);
        assert!(matches!(brief.may_try_configured(None, LOW, 1000), Err(Withheld::Rule(_))));
        assert!(matches!(brief.spend(LOW, 1000), Err(Withheld::Rule(_))));
        brief.may_try_configured(None, LOW_NOT, 1000).unwrap();
        brief.spend(LOW_NOT, 1000).unwrap();
    }

    #[test]
    fn a_count_that_is_gone_was_used_up_until_root_allows_more() {
        let used = BeforeLogin { count_low: false, was_used: true };
        for (has_past, before) in [(false, used), (true, LOW_NOT)] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("state");
            // A start at which the token is not seen settles nothing.
            drop(budget(&path, 2).begin(has_past));
            let first = budget(&path, 2).begin(false);
            first.may_try_configured(None, before, 1000).unwrap();
            first.configured_was_right();
            let why = first.spend(before, 1000).unwrap_err().to_string();
            assert!(why.contains("was lost") && why.contains("max_wrong_pins = 2"), "{why}");
            drop(first);
            let second = budget(&path, 2).begin(false);
            second.configured_was_right();
            assert!(second.spend(before, 999_999).is_err(), "an end of custody gives none back");
            drop(second);
            let raised = budget(&path, 3).begin(true);
            raised.spend(before, 1000).unwrap();
            raised.given_was_right();
            raised.spend(before, 1000).unwrap();
            // A command without a daemon begins with none each time.
            let other = tempfile::tempdir().unwrap();
            let brief = budget(&other.path().join("state"), 2).brief(true).begin(has_past);
            brief.spend(before, 1000).unwrap();
        }
    }
}
