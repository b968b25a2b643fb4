//! Walks a list for one caller: what may not be shown leaves no trace in a page, neither in its cursor nor,
//! but for the bound below, in its length.

use super::cursor::Place;
use super::error::Error;
use super::gate::Appliance;
use super::view::Page;
use crate::key::Name;
use crate::policy::Permit;

/// The most entries that are read for one page. One that reaches it may be short, and has a next one.
const MOST_READ: usize = 2000;

/// The fewest that are read at a time.
const FEWEST: usize = 64;

/// A page that is being filled: up to its limit and one more, which tells whether there is a next one.
pub(super) struct Filling<'a, T> {
    appliance: &'a Appliance,
    place: Place<'a>,
    limit: usize,
    /// What the entries of a page may weigh together.
    most: usize,
    weight: usize,
    read: usize,
    after: Option<Name>,
    entries: Vec<(Name, T)>,
    end: End,
}

#[derive(PartialEq, Eq)]
enum End {
    /// Not yet.
    No,
    /// There is more for the caller.
    Full,
    /// Nobody has looked at the rest.
    Bound,
    /// The list is over.
    Over,
}

/// An entry of a page: something to show, or the name of what does not open.
pub(super) enum Entry<T> {
    Whole(T),
    Broken,
}

/// The entries of a page, and the cursor of the next one.
pub(super) struct Filled<T> {
    pub entries: Vec<T>,
    pub broken: Vec<Name>,
    pub next: Option<String>,
}

impl<'a, T> Filling<'a, Entry<T>> {
    /// Begins where the page asked for begins. `most` bounds the sum of what entries weigh.
    pub fn begin(
        appliance: &'a Appliance,
        permit: &'a Permit,
        list: &'static str,
        page: &'a Page,
        most: usize,
    ) -> Result<Self, Error> {
        let place = Place { list, caller: permit.caller(), prefix: page.prefix() };
        let after = page.after.as_deref().map(|cursor| appliance.cursors.open(place, cursor));
        let (limit, after) = (page.limit()?, after.transpose()?);
        let (entries, end) = (Vec::new(), End::No);
        Ok(Self { appliance, place, limit, most, weight: 0, read: 0, after, entries, end })
    }

    /// From where to read on, and how many entries; nothing once the page is full or the list is over.
    pub fn wants(&self) -> Option<(Option<&Name>, usize)> {
        let wanted = (self.limit + 1 - self.entries.len()).max(FEWEST);
        let wanted = wanted.min(MOST_READ - self.read);
        (self.end == End::No).then_some((self.after.as_ref(), wanted))
    }

    /// Takes what was read: the entries that may be shown, with what they weigh, how many were read, and
    /// the last name of them if there are more.
    pub fn take(
        &mut self,
        mut shown: Vec<(Name, usize, Entry<T>)>,
        read: usize,
        last: Option<Name>,
    ) {
        shown.sort_by(|(one, ..), (other, ..)| one.cmp(other));
        for (name, weight, entry) in shown {
            self.weight += weight;
            let heavy = self.weight > self.most && !self.entries.is_empty();
            if self.entries.len() == self.limit || heavy {
                self.end = End::Full;
                return;
            }
            self.entries.push((name, entry));
        }
        self.read += read;
        match last {
            None => self.end = End::Over,
            Some(_) if self.read >= MOST_READ => {
                (self.after, self.end) = (last, End::Bound);
            }
            last => self.after = last,
        }
    }

    pub fn filled(self) -> Result<Filled<T>, Error> {
        let last = match self.end {
            End::Full => self.entries.last().map(|(name, _)| name),
            End::Bound => self.after.as_ref(),
            End::No | End::Over => None,
        };
        let seal = |name| self.appliance.cursors.seal(self.place, name);
        let next = last.map(seal).transpose()?;
        let (mut entries, mut broken) = (Vec::new(), Vec::new());
        for (name, entry) in self.entries {
            match entry {
                Entry::Whole(entry) => entries.push(entry),
                Entry::Broken => broken.push(name),
            }
        }
        Ok(Filled { entries, broken, next })
    }
}
