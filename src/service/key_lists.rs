//! Lists of keys: a page at a time, and the set of public keys.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::authorize::facts_of_key;
use super::error::Error;
use super::gate::{Appliance, Request, Trace, Traced};
use super::keys::public_key;
use super::page::{Entry, Filled, Filling};
use super::view::{KeyView, Page};
use crate::key::{Jwk, Name};
use crate::policy::{Action, Facts, Permit, Resource};
use crate::records::KeyRecord;

/// List the keys, a page at a time: of each page those that the caller may be shown.
pub struct ListKeys(pub Page);

/// Current public keys that the caller may have, as a JWK set (RFC 7517 §5): all of them, or a page.
pub struct Jwks(pub JwksQuery);

/// Which keys of the set.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct JwksQuery {
    /// At most this many, 1 to 1000: the set is a page then. Without it, a set of more than 1000 is refused, and
    /// so is one that lies among more than 10 000 keys.
    pub limit: Option<usize>,
    /// What the page before gave as `next`.
    pub after: Option<String>,
    /// Only keys whose names begin so.
    pub prefix: Option<String>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct KeyPage {
    /// May be fewer than were asked for, also where there is a next page: of keys with many versions, and
    /// where a very long stretch may not be shown.
    pub keys: Vec<KeyView>,
    /// Keys of this page whose records were damaged or changed outside Strongroom; absent where none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>, required = false)]
    pub broken: Vec<Name>,
    /// What to give as `after` for the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct JwksView {
    pub keys: Vec<Jwk>,
    /// What to give as `after` for the next page; absent on the last, and where no page was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl Request for ListKeys {
    const ACTION: Action = Action::KeyList;
    const TRACE: Trace = Trace::Beside;
    type Reply = KeyPage;

    fn resource(&self) -> Resource {
        Resource::Appliance
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<KeyPage, Error> {
        let show = |key: &KeyRecord| (key.meta.versions().len(), KeyView::of(key));
        let walk = Walk { list: "keys", action: Action::KeyShow, page: &self.0 };
        let filled =
            appliance.walk_keys(&permit, walk, MOST_VERSIONS, |key| Some(show(key))).await?;
        Ok(KeyPage { keys: filled.entries, broken: filled.broken, next: filled.next })
    }
}

/// The most versions of a page of keys, unless its first key alone has more.
const MOST_VERSIONS: usize = 10_000;

/// Which list of keys is walked: its name, what its entries need the permission for, and the page.
struct Walk<'a> {
    list: &'static str,
    action: Action,
    page: &'a Page,
}

impl Request for Jwks {
    const ACTION: Action = Action::KeyPublic;
    const TRACE: Trace = Trace::Beside;
    type Reply = JwksView;

    fn resource(&self) -> Resource {
        Resource::Appliance
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<JwksView, Error> {
        let Jwks(JwksQuery { limit, after, prefix }) = self;
        let is_page = limit.is_some() || after.is_some();
        let page = Page { limit: limit.or((!is_page).then_some(Page::MOST)), after, prefix };
        let show = |key: &KeyRecord| {
            let current = key.meta.current()?;
            match public_key(key, current.version()) {
                Ok(public) => {
                    Some((1, public.jwk(key.meta.mgf1_hash()).of_origin(current.origin())))
                }
                Err(error) => {
                    tracing::error!(%error, "the key set goes on without it");
                    None
                }
            }
        };
        let mut keys = Vec::new();
        let mut page = page;
        for _ in 0..MOST_PAGES {
            let walk = Walk { list: "jwks", action: Action::KeyPublic, page: &page };
            let filled = appliance.walk_keys(&permit, walk, Page::MOST, show).await?;
            keys.extend(filled.entries);
            match filled.next {
                next if is_page => return Ok(JwksView { keys, next }),
                None => return Ok(JwksView { keys, next: None }),
                // Never a part that looks like the whole.
                Some(_) if keys.len() >= Page::MOST => return Err(too_many()),
                next => page.after = next,
            }
        }
        Err(too_many())
    }
}

/// The most pages that a set is made of, of 2000 keys that are read: more are read by nobody at once, however
/// few of them may be shown.
const MOST_PAGES: usize = 5;

fn too_many() -> Error {
    let rule = format!(
        "the set has more than {} keys, or there are too many others: ask for a page of it with `limit`, for those of one `prefix`, or for \
         one key at /v1/keys/{{key}}/public",
        Page::MOST
    );
    Error::Invalid { member: "limit", rule }
}

impl Traced for KeyPage {}
impl Traced for JwksView {}

impl Appliance {
    /// A page of those keys that the caller may see, as `show` makes it of each; what that gives nothing
    /// for is passed over. The first number is what it weighs, `most` what they may together.
    async fn walk_keys<T>(
        &self,
        permit: &Permit,
        walk: Walk<'_>,
        most: usize,
        show: impl Fn(&KeyRecord) -> Option<(usize, T)>,
    ) -> Result<Filled<T>, Error> {
        let Walk { list, action, page } = walk;
        let mut filling = Filling::begin(self, permit, list, page, most)?;
        while let Some((after, count)) = filling.wants() {
            let listed = self.records.list_keys(page.prefix(), after, count).await?;
            let read = listed.found.len() + listed.broken.len();
            let may_see = |name: &Name, facts: Facts<'_>| {
                self.may_see(permit, action, &Resource::Key(name.clone()), facts)
            };
            let whole = listed.found.iter().filter_map(|key| {
                let name = key.meta.name();
                // What may not be shown costs no more than the question.
                if !may_see(name, facts_of_key(&key.meta)) {
                    return None;
                }
                let (weight, shown) = show(key)?;
                Some((name.clone(), weight, Entry::Whole(shown)))
            });
            let broken = listed.broken.iter().filter(|name| may_see(name, Facts::Unknown));
            let broken = broken.map(|name| (name.clone(), 1, Entry::Broken));
            let shown = whole.chain(broken).collect();
            filling.take(shown, read, listed.next);
        }
        filling.filled()
    }
}
