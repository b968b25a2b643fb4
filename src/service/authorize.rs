//! Authorize: what policy is asked, and what it is told of the key or secret that a request is about.

use std::sync::Arc;

use super::error::Error;
use super::gate::{Appliance, Request, needed_also};
use super::view::Page;
use crate::identity::Caller;
use crate::key::{KeyMeta, Labels, Name, Owner};
use crate::policy::{Action, Also, Facts, On, Permit, Resource, When};
use crate::records::{At, KeyRecord, SecretRecord};

impl Appliance {
    /// Asks policy for all that a request needs of its resource; yields the permit for its action.
    pub(super) async fn permit_all<R: Request>(
        &self,
        caller: &Caller,
        resource: &Resource,
        to_be: Option<(Option<&Owner>, &Labels)>,
    ) -> Result<Permit, Error> {
        let permit = match to_be {
            Some((owner, labels)) => {
                let own = owner_of(caller);
                let owner = owner.or(own.as_ref());
                let facts = Facts::Known { owner, labels: Some(labels) };
                self.policy().permit(caller, R::ACTION, resource, facts).map_err(Error::Denied)?
            }
            None => self.permit(caller, R::ACTION, resource).await?,
        };
        // What is needed on the key of a secret is asked once that is known, and so is what depends on more.
        let always = |also: &&Also| also.on == On::Same && also.when == When::Always;
        for also in R::ACTION.also().iter().filter(always) {
            drop(self.permit(caller, also.action, resource).await?);
            needed_also(also.action);
        }
        Ok(permit)
    }

    /// Asks policy. Where the answer rests on owner or labels the record is looked up; where it does not,
    /// or no owner and labels would make it a yes, none is.
    async fn permit(
        &self,
        caller: &Caller,
        action: Action,
        resource: &Resource,
    ) -> Result<Permit, Error> {
        let policy = self.policy();
        if policy.reads_facts(resource) {
            policy.may_permit(caller, action, resource).map_err(Error::Denied)?;
        }
        let without = policy.permit(caller, action, resource, Facts::Unknown);
        match (without, resource) {
            (Ok(permit), _) => Ok(permit),
            (Err(_), Resource::Key(name)) if policy.reads_facts(resource) => {
                let found = self.records.key(name).await?;
                let facts = found.as_ref().map_or(Facts::Absent, |key| facts_of_key(&key.meta));
                policy.permit(caller, action, resource, facts).map_err(Error::Denied)
            }
            (Err(_), Resource::Secret(name)) if policy.reads_facts(resource) => {
                let found = self.records.secret_owner(name).await?;
                let facts = match &found {
                    Some(owner) => Facts::Known { owner: owner.as_ref(), labels: None },
                    None => Facts::Absent,
                };
                policy.permit(caller, action, resource, facts).map_err(Error::Denied)
            }
            (Err(denied), _) => Err(Error::Denied(denied)),
        }
    }

    /// A second question on the way of a permitted act: may its caller do this, too?
    pub(super) async fn permit_also(
        &self,
        permit: &Permit,
        action: Action,
        resource: &Resource,
    ) -> Result<Permit, Error> {
        self.policy().must_be_declared(permit, action).map_err(Error::Denied)?;
        let granted = self.permit(permit.caller(), action, resource).await?;
        needed_also(action);
        Ok(granted)
    }

    /// Holds a permit against the record that it is used on, and against the policy in force: between policy's
    /// answer and this, what was absent may have been made, what was the caller's may have become another's, and
    /// the caller may have lost a role.
    pub(super) fn must_cover(&self, permit: &Permit, facts: Facts<'_>) -> Result<(), Error> {
        let policy = self.policy();
        if permit.is_of(&policy) && !permit.rests_on_facts() {
            return Ok(());
        }
        let again = policy.permit(permit.caller(), permit.action(), permit.resource(), facts);
        again.map(drop).map_err(Error::Denied)
    }

    /// The same for a permit that is held over a wait or a long piece of work, for a key that was judged as
    /// `judged` is: asks only where policy or key have changed since.
    pub(super) fn must_still_cover(
        &self,
        permit: &Permit,
        judged: &KeyRecord,
        now: &KeyRecord,
    ) -> Result<(), Error> {
        if now.revision == judged.revision && permit.is_of(&self.policy()) {
            return Ok(());
        }
        self.must_cover(permit, facts_of_key(&now.meta))
    }

    /// The key that a permit is for.
    pub(super) async fn permitted_key(&self, permit: &Permit) -> Result<Arc<KeyRecord>, Error> {
        let Resource::Key(name) = permit.resource() else { return Err(self.absent("key")) };
        let key = self.key(name).await?;
        self.must_cover(permit, facts_of_key(&key.meta))?;
        Ok(key)
    }

    /// The secret that a permit is for, if there is one.
    pub(super) async fn permitted_secret(
        &self,
        permit: &Permit,
    ) -> Result<Option<At<SecretRecord>>, Error> {
        let Resource::Secret(name) = permit.resource() else { return Err(self.absent("secret")) };
        let found = self.records.secret(name).await?;
        if let Some(At { record, .. }) = &found {
            self.must_cover(permit, facts_of_secret(record))?;
        }
        Ok(found)
    }

    /// Of what a census names, what may be shown to the caller, and no more of it than a page has.
    pub(super) fn may_be_named(&self, permit: &Permit, named: &[String]) -> Vec<String> {
        let may = |what: &&String| {
            let Some(key) = what.strip_prefix("key/") else { return true };
            let name = key.split(' ').next().unwrap_or_default();
            let Ok(name) = Name::parse(name) else { return false };
            self.may_see(permit, Action::KeyShow, &Resource::Key(name), Facts::Unknown)
        };
        named.iter().filter(may).take(Page::MOST).cloned().collect()
    }

    /// Whether one entry of a permitted list may be shown to the caller. Nothing is told of those that
    /// may not, neither to the caller nor to the trail.
    pub(super) fn may_see(
        &self,
        permit: &Permit,
        action: Action,
        resource: &Resource,
        facts: Facts<'_>,
    ) -> bool {
        self.policy().permit(permit.caller(), action, resource, facts).is_ok()
    }
}

pub(super) fn facts_of_key(meta: &KeyMeta) -> Facts<'_> {
    Facts::Known { owner: meta.owner(), labels: Some(meta.labels()) }
}

pub(super) fn facts_of_secret(record: &SecretRecord) -> Facts<'_> {
    Facts::Known { owner: record.owner.as_ref(), labels: None }
}

/// The owner of what this caller makes; none for a user that the kernel cannot name, for which others
/// would pass.
pub(super) fn owner_of(caller: &Caller) -> Option<Owner> {
    match caller {
        Caller::Unix(peer) => Owner::of_uid(peer.uid).ok(),
        Caller::System(_) => None,
    }
}
