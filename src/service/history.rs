//! Whether store and trail are those that custody remembers: a copy of both that was put back agrees with
//! itself, and only the newest checkpoint that custody signed tells. Until that is known, and where they are
//! not, nothing is done.

use std::time::Duration;

use super::error::Error;
use super::gate::Appliance;
use super::state::History;
use crate::audit::{
    AuditError, Code, Event, EventNote, Fits, Head, SignError, SigningKey, VerifyKey,
};
use crate::custody::{CustodyError, LinkState, Outage, Reason};
use crate::records::{ReachRecord, RecordError};
use crate::store::StateCheck;

/// Until custody is asked again.
const PAUSE: Duration = Duration::from_millis(300);

impl Appliance {
    /// Asks custody at the start, whenever its token was opened, and until an answer counts.
    pub async fn keep_history(&self) {
        let mut states = self.custody.watch();
        let mut history = self.standing.history.subscribe();
        loop {
            states.borrow_and_update();
            let is_settled = self.check_history().await;
            let again = async {
                if is_settled {
                    // An init may find it out, too.
                    let is_held = |history: &History| matches!(history, History::RolledBack(_));
                    let _ = history.wait_for(is_held).await;
                }
                tokio::time::sleep(PAUSE).await;
            };
            tokio::select! {
                changed = states.changed() => if changed.is_err() { return },
                () = again => {}
            }
        }
    }

    /// Has the trail held against custody's memory; whether there is nothing to ask until something changes.
    pub(super) async fn check_history(&self) -> bool {
        match self.trail.begin_history(self.signing_key()).await {
            Ok(fits) => {
                let with_token = match self.check_reach(fits).await {
                    Ok(checked) => checked && self.check_state(fits).await && fits.with_token,
                    Err(why) => {
                        self.trail.hold();
                        self.hold_service(why).await;
                        return false;
                    }
                };
                self.standing.history.send_modify(|known| {
                    if matches!(known, History::RolledBack(_)) {
                        tracing::warn!(
                            "store and trail were accepted by an operator; service goes on"
                        );
                    }
                    *known = match known {
                        _ if with_token => History::Fits,
                        History::Fits => History::Fits,
                        _ => History::Unknown,
                    };
                });
                with_token || !matches!(self.custody.state(), LinkState::Unlocked { .. })
            }
            Err(AuditError::NotSigned(SignError::NotNewest(_)))
                if self.records.home().is_none() && !self.is_rolled_back() =>
            {
                // Nothing was kept here yet; what custody remembers is of another appliance.
                self.records.reach_was_checked();
                self.trail.release();
                self.standing.history.send_replace(History::Fits);
                true
            }
            Err(AuditError::NotSigned(SignError::NotNewest(why))) => {
                self.trail.hold();
                self.hold_service(why).await;
                false
            }
            Err(AuditError::NotSigned(SignError::Unremembered(why))) => {
                self.standing.history.send_if_modified(|known| known.become_unreadable(&why));
                false
            }
            Err(error) => {
                tracing::debug!(%error, "custody has not said yet which checkpoint is the newest");
                false
            }
        }
    }

    fn is_rolled_back(&self) -> bool {
        matches!(*self.standing.history.borrow(), History::RolledBack(_))
    }

    /// Why even a refusal is not recorded: the audit log is another one than custody remembers, or that cannot be
    /// told.
    pub(super) fn held_back(&self) -> Option<Error> {
        match &*self.standing.history.borrow() {
            History::RolledBack(_) => Some(Error::RolledBack),
            History::Unreadable(why) if self.trail.is_held() => {
                Some(CustodyError::Away(unreadable(why.clone())).into())
            }
            _ => None,
        }
    }

    /// An appliance that is to take over keys of the token must have the audit log that they have signed.
    pub(super) async fn history_must_be_ours(&self) -> Result<(), Error> {
        match self.trail.begin_history(None).await {
            Err(AuditError::NotSigned(SignError::NotNewest(why))) => {
                self.hold_service(why).await;
                Err(Error::RolledBack)
            }
            Err(error) => Err(error.into()),
            Ok(_) => Ok(()),
        }
    }

    /// Compares the sealed record of how far store and audit log reach with both, once: whether that is done.
    ///
    /// # Errors
    /// What does not fit, in words.
    async fn check_reach(&self, fits: Fits) -> Result<bool, String> {
        if self.records.reach_is_checked() {
            return Ok(true);
        }
        if fits.stored > 0 && self.records.home().is_some() {
            if !fits.with_token {
                return Ok(false);
            }
            let trouble = match self.reach_trouble(fits.stored).await {
                Ok(trouble) => trouble,
                Err(error) => {
                    tracing::debug!(%error, "how far the store reaches is not known yet");
                    return Ok(false);
                }
            };
            if let Some(why) = trouble {
                if !self.trail.accepts_breaks() {
                    return Err(why);
                }
                tracing::error!(why, "going on, as the settings say");
                self.tell(EventNote::because(Event::BreakRecorded, Code("store-behind"))).await;
            }
        }
        self.records.reach_was_checked();
        Ok(true)
    }

    /// Compares the store with its own record of its state, once: whether that is done. Where all of it is in doubt,
    /// nothing is served; where some is, that is not.
    async fn check_state(&self, fits: Fits) -> bool {
        if self.records.home().is_none() || self.records.state_is_checked() {
            return true;
        }
        if !fits.with_token {
            return false;
        }
        let accepted = self.trail.accepts_breaks() || fits.ordered;
        let (found, must_be_there) = match self.state_of_store(fits, accepted).await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, "whether the store is the one that was written is not known yet");
                return false;
            }
        };
        self.records.state_was_checked();
        let why = match found {
            StateCheck::Fits => return true,
            StateCheck::Absent if !must_be_there => return true,
            StateCheck::Absent => "the store's record of its state was taken away",
            StateCheck::Differs(_) => {
                "the records of the store do not add up to what the last change left: some were \
                 changed, put back or taken away outside Strongroom"
            }
        };
        match found {
            _ if accepted => {
                tracing::error!(why, "accepted; going on");
                let note = EventNote::because(Event::BreakRecorded, Code("records-behind"));
                self.tell(note).await;
            }
            StateCheck::Differs(parts) if !parts.have_appliance() => {
                tracing::error!(
                    why,
                    "what may be among them is not served. Put the right store at [store] path, or \
                     accept it as it is with [audit] on_break = \"record\""
                );
                self.tell(EventNote::because(Event::StoreEdited, Code("state-differs"))).await;
            }
            _ => self.hold_all_back("state-differs", None, why.to_owned()).await,
        }
        true
    }

    /// What a check found, and whether there must be a record. The first one of a store that never had one is made.
    async fn state_of_store(
        &self,
        fits: Fits,
        accepted: bool,
    ) -> Result<(StateCheck, bool), Error> {
        let reach = match self.records.reach().await {
            // It was accepted as it is, or the check would have ended with it.
            Err(RecordError::Broken(_)) => None,
            reach => reach?,
        };
        let must_be_there = fits.stored > 0 && reach.is_none_or(|reach| reach.state);
        let found = self.records.check_state(accepted).await?;
        if found == StateCheck::Absent && !must_be_there && !accepted {
            self.records.check_state(true).await?;
        }
        Ok((found, must_be_there))
    }

    /// What the sealed record says that does not fit, where it must reach line `stored`.
    async fn reach_trouble(&self, stored: u64) -> Result<Option<String>, Error> {
        let what =
            "the store's sealed record of the audit log's newest line and of the number of changes";
        let reach = match self.records.reach().await {
            Err(RecordError::Broken(_)) => {
                return Ok(Some(format!("{what} was changed outside Strongroom")));
            }
            found => found?,
        };
        let Some(ReachRecord { trail, line, head, changes, .. }) = reach else {
            return Ok(Some(format!("{what} was taken away")));
        };
        let found = self.records.changes();
        let hash = head.parse::<Head>().ok().filter(|head| head.seq == line).map(|head| head.hash);
        let has_line = match hash {
            Some(hash) if trail == self.trail.status().trail => self.trail.has_line(line, hash)?,
            _ => false,
        };
        Ok(if line < stored {
            let behind = format!(
                "reaches line {line}, and custody has signed a checkpoint over line {stored}"
            );
            Some(format!("{what} {behind}: the store, or this record, is an older copy"))
        } else if !has_line {
            Some(format!(
                "{what} names line {line}, which the audit log does not have: its end was cut off, or \
                 it was written again"
            ))
        } else if found < changes {
            Some(format!(
                "{what} tells of {changes} changes, and the store counts {found}: it was put back"
            ))
        } else {
            None
        })
    }

    async fn hold_service(&self, why: String) {
        let accept = self.trail.accept_argument().await;
        let why = format!(
            "{why}. Where this copy is to be used: strongroom accept-rollback --config {} {accept}",
            self.config_file
        );
        let held = History::RolledBack(why.clone());
        if self.standing.history.send_replace(held.clone()) != held {
            tracing::error!(
                why,
                "store and trail do not end as custody remembers; nothing is served"
            );
        }
    }

    fn signing_key(&self) -> Option<SigningKey> {
        let home = self.records.home()?;
        VerifyKey::from_point(&home.signer_point).ok().map(|key| (home.signer_generation, key))
    }

    /// Waits, for as long as a request waits for custody, until it is known that all is as custody
    /// remembers.
    pub(super) async fn history_must_fit(&self) -> Result<(), Error> {
        let mut history = self.standing.history.subscribe();
        let known = history.borrow().clone();
        match known {
            History::Fits => return Ok(()),
            History::RolledBack(_) => return Err(Error::RolledBack),
            History::Unreadable(why) => return Err(CustodyError::Away(unreadable(why)).into()),
            History::Unknown if self.records.home().is_none() && !self.trail.is_held() => {
                return Ok(());
            }
            History::Unknown => {}
        }
        // What an operator has to mend first has its own words.
        let mut states = self.custody.watch();
        let is_settled = |state: &LinkState| {
            let comes = matches!(
                state,
                LinkState::Unlocked { .. } | LinkState::BrownOut { .. } | LinkState::Down(_)
            );
            !comes
        };
        let settled = async { states.wait_for(|state| is_settled(state)).await.map(drop) };
        let known = history.wait_for(|history| *history != History::Unknown);
        let waited = tokio::time::timeout(self.custody.deadline(), async {
            tokio::select! {
                known = known => known.map(|known| known.clone()).ok(),
                _ = settled => None,
            }
        });
        match waited.await {
            Ok(Some(History::RolledBack(_))) => Err(Error::RolledBack),
            Ok(Some(History::Unreadable(why))) => Err(CustodyError::Away(unreadable(why)).into()),
            Ok(_) => Ok(()),
            Err(_) => Err(CustodyError::Away(not_asked()).into()),
        }
    }

    /// Why nothing is done, where that is for what custody remembers.
    pub(super) fn history_trouble(&self) -> Option<Result<Outage, String>> {
        match &*self.standing.history.borrow() {
            History::RolledBack(why) => Some(Err(why.clone())),
            History::Unreadable(why) => Some(Ok(unreadable(why.clone()))),
            _ if self.trail.is_held() => Some(Ok(not_asked())),
            History::Unknown if self.records.home().is_some() => Some(Ok(not_asked())),
            _ => None,
        }
    }
}

impl History {
    /// What is known already stays so: then it is the link that tells of custody's state.
    fn become_unreadable(&mut self, why: &str) -> bool {
        let is_news = match self {
            Self::Unknown => true,
            Self::Unreadable(known) => known != why,
            Self::Fits | Self::RolledBack(_) => false,
        };
        if is_news {
            tracing::error!(
                why,
                "custody cannot tell which checkpoint is the newest; nothing is served"
            );
            *self = Self::Unreadable(why.to_owned());
        }
        is_news
    }
}

fn unreadable(why: String) -> Outage {
    Outage::new(Reason::CustodyState, why)
}

fn not_asked() -> Outage {
    Outage::new(Reason::CustodyGone, "custody has not said yet which checkpoint is the newest")
}
