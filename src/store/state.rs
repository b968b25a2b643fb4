//! What the store has, in one record: a keyed digest over every address, its revision and whether a value is there.
//! It is written with each commit, so that whoever edits the store, puts back a single record or takes one away
//! cannot make it right again without the key.
//!
//! ```text
//! element  = HMAC-SHA-256(key, 1 ‖ table(1) ‖ length of address(2) ‖ address ‖ revision(8) ‖ there(1) ‖ value)
//! sum(n)   = the elements of the counted addresses of part n, added as 256-bit numbers; not kept on disk
//! tag(n)   = the first 16 bytes of HMAC-SHA-256(key, 2 ‖ n(1) ‖ sum(n))
//! record   = 1 ‖ store key(4) ‖ tag(0) ‖ … ‖ tag(63) ‖ HMAC-SHA-256(key, 3 ‖ revision(8) ‖ all before)
//! ```
//!
//! Numbers are big endian. `value` is the SHA-256 of the value of what lies open, which is what the appliance is and
//! its wrapped store keys, and empty elsewhere: a sealed value is bound to its address and revision. A store is 64 parts, so
//! that what differs is narrowed down: part 0 is the appliance's own table, but for four records that have parts 1 to
//! 4, and a name is in the part that its hash says. A set has each element once, and no sum is seen or believed without its MAC: see MSet-Add-Hash in Clarke et
//! al., "Incremental Multiset Hash Functions" (ASIACRYPT 2003).

use aws_lc_rs::{constant_time, hmac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::batch::Planned;
use super::{Copied, StoreError, Table};
use crate::secret::StateKey;

/// Where the record lies, in the appliance's own table.
pub(super) const STATE: &str = "state";

/// Addresses of the appliance's own table that are not counted: they are written before the key is known, and what
/// they say is checked elsewhere.
const UNCOUNTED: [&str; 6] = [STATE, "head", "locked", "seals", "clock", "changes"];

const PARTS: usize = 64;
const TAG: usize = 16;

/// Some of the parts of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Parts(u64);

impl Parts {
    /// Every part.
    pub const ALL: Parts = Parts(u64::MAX);

    /// Whether an address is in one of them.
    pub fn have(self, table: Table, key: &str) -> bool {
        self.0 >> part_of(table, key) & 1 == 1
    }

    /// Whether the appliance's own table is among them.
    pub fn have_appliance(self) -> bool {
        self.0 & 1 == 1
    }

    fn add(&mut self, part: usize) {
        self.0 |= 1 << part;
    }

    fn remove(&mut self, part: usize) {
        self.0 &= !(1 << part);
    }
}

/// What a check of the store against its record found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StateCheck {
    /// There is no record yet.
    Absent,
    Fits,
    /// These parts are not what was last written; all of them where the record itself is not.
    Differs(Parts),
}

impl StateCheck {
    /// Whether records can be changed then: those of parts that do not differ.
    pub(super) fn goes_on(self) -> bool {
        match self {
            StateCheck::Absent => false,
            StateCheck::Fits => true,
            StateCheck::Differs(parts) => !parts.have_appliance(),
        }
    }
}

/// Records of the appliance's own that have a part each: where one differs, nothing else has to be held.
const ALONE: [&str; 4] = ["recovery", "rotation", "restored", "resealed"];

/// The part that an address is in. What belongs to one name is in one part.
fn part_of(table: Table, key: &str) -> usize {
    if table == Table::Appliance {
        return ALONE.iter().position(|alone| *alone == key).map_or(0, |at| at + 1);
    }
    let name = key.split('/').next().unwrap_or(key);
    let kind = if table == Table::Secret { b's' } else { b'k' };
    let hash = Sha256::new().chain_update([kind]).chain_update(name).finalize();
    let first = 1 + ALONE.len();
    first + usize::from(hash[0]) % (PARTS - first)
}

/// Whether a part has one address, so that a put there makes it right.
fn is_alone(part: usize) -> bool {
    (1..=ALONE.len()).contains(&part)
}

/// Whether an address is part of the digest. A wrap for the recovery key is not: it opens nothing without the private
/// half, and whoever put one back has had it.
pub(super) fn is_counted(table: Table, key: &str) -> bool {
    let is_open = UNCOUNTED.contains(&key) || key.starts_with("recovery-store-key/");
    table != Table::Appliance || !is_open
}

/// Whether a record lies open, so that its address says nothing of its value.
fn is_plain(table: Table, key: &str) -> bool {
    let is_one = |prefix| key.starts_with(prefix);
    table == Table::Appliance && (key == "home" || is_one("store-key/") || is_one("master/"))
}

/// Whether the record of the state lies at an address: it is part of no copy.
pub(super) fn is_state(table: Table, key: &str) -> bool {
    table == Table::Appliance && key == STATE
}

/// Which store key the record's key comes from; `None` for what is no record.
pub fn store_key_of_state(value: &[u8]) -> Option<u32> {
    Record::read(value).map(|record| record.store_key)
}

/// A 256-bit number that wraps around, the lowest 64 bits first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Sum([u64; 4]);

impl Sum {
    fn of(bytes: &[u8; 32]) -> Self {
        let mut limbs = [0; 4];
        for (limb, bytes) in limbs.iter_mut().zip(bytes.rchunks_exact(8)) {
            *limb = bytes.iter().fold(0, |limb, byte| limb << 8 | u64::from(*byte));
        }
        Self(limbs)
    }

    fn bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (limb, bytes) in self.0.iter().zip(bytes.rchunks_exact_mut(8)) {
            bytes.copy_from_slice(&limb.to_be_bytes());
        }
        bytes
    }

    fn add(&mut self, other: Self) {
        let mut carry = false;
        for (limb, other) in self.0.iter_mut().zip(other.0) {
            let (sum, first) = limb.overflowing_add(other);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            (*limb, carry) = (sum, first || second);
        }
    }

    fn subtract(&mut self, other: Self) {
        let mut borrow = false;
        for (limb, other) in self.0.iter_mut().zip(other.0) {
            let (rest, first) = limb.overflowing_sub(other);
            let (rest, second) = rest.overflowing_sub(u64::from(borrow));
            (*limb, borrow) = (rest, first || second);
        }
    }
}

struct Record<'a> {
    store_key: u32,
    tags: &'a [u8],
    /// What the MAC is over, and the MAC.
    body: &'a [u8],
    mac: &'a [u8],
}

impl<'a> Record<'a> {
    const VERSION: u8 = 1;
    const BODY: usize = 1 + 4 + PARTS * TAG;

    fn read(value: &'a [u8]) -> Option<Self> {
        let (body, mac) = value.split_at_checked(Self::BODY)?;
        let (store_key, tags) = body.get(1..)?.split_first_chunk::<4>()?;
        let store_key = u32::from_be_bytes(*store_key);
        let is_one = body.first() == Some(&Self::VERSION) && mac.len() == 32;
        is_one.then_some(Self { store_key, tags, body, mac })
    }
}

/// The key and the newest sums, while the store is open and was checked.
pub(super) struct Tally {
    key: StateKey,
    store_key: u32,
    sums: [Sum; PARTS],
    tags: [u8; PARTS * TAG],
    /// Parts that were found to differ: their tags stay what was recorded.
    differ: Parts,
}

/// What a commit makes of the sums.
pub(super) struct Step(Vec<(usize, Sum)>);

impl Tally {
    pub fn new(key: StateKey, store_key: u32) -> Self {
        let (sums, tags) = ([Sum::default(); PARTS], [0; PARTS * TAG]);
        Self { key, store_key, sums, tags, differ: Parts::default() }
    }

    /// Adds up from nothing what a whole store has, page by page.
    pub fn scan<E>(
        &mut self,
        mut page: impl FnMut() -> Result<Option<Vec<Copied>>, E>,
    ) -> Result<(), E> {
        let keyed = self.keyed();
        self.sums = [Sum::default(); PARTS];
        while let Some(page) = page()? {
            for one in page.iter().filter(|one| is_counted(one.table, &one.key)) {
                let element =
                    element(&keyed, one.table, &one.key, one.revision, one.value.as_deref());
                self.sums[part_of(one.table, &one.key)].add(element);
            }
        }
        (0..PARTS).for_each(|part| self.set_tag(&keyed, part));
        Ok(())
    }

    /// Compares the sums with what a record says; where parts differ, they do from here on.
    pub fn compare(&mut self, recorded: Option<(u64, &[u8])>) -> StateCheck {
        self.differ = Parts::default();
        let Some((revision, value)) = recorded else { return StateCheck::Absent };
        let Some(recorded) = self.tags_of(revision, value) else {
            return StateCheck::Differs(Parts::ALL);
        };
        for (part, tag) in recorded.chunks_exact(TAG).enumerate() {
            let own = &mut self.tags[part * TAG..(part + 1) * TAG];
            if constant_time::verify_slices_are_equal(own, tag).is_err() {
                self.differ.add(part);
                own.copy_from_slice(tag);
            }
        }
        match self.differ == Parts::default() {
            true => StateCheck::Fits,
            false => StateCheck::Differs(self.differ),
        }
    }

    fn tags_of<'a>(&self, revision: u64, value: &'a [u8]) -> Option<&'a [u8]> {
        let record = Record::read(value).filter(|record| record.store_key == self.store_key)?;
        let message = message(revision, record.body);
        hmac::verify(&self.keyed(), &message, record.mac).ok()?;
        Some(record.tags)
    }

    /// The parts that differ since they were compared.
    pub fn differing(&self) -> Parts {
        self.differ
    }

    /// What is there counts from here on.
    pub fn adopt(&mut self) {
        self.differ = Parts::default();
        let keyed = self.keyed();
        (0..PARTS).for_each(|part| self.set_tag(&keyed, part));
    }

    /// What these changes make of the sums; `before` is all that is kept of an address until then. `None` where
    /// nothing that is counted changes.
    pub fn step(
        &self,
        planned: &[Planned],
        before: impl Fn(Table, &str) -> Result<Vec<Copied>, StoreError>,
    ) -> Result<Option<Step>, StoreError> {
        let mut step = Step(Vec::new());
        let mut keyed = None;
        for one in planned.iter().filter(|one| is_counted(one.table, &one.key)) {
            let keyed = keyed.get_or_insert_with(|| self.keyed());
            let part = part_of(one.table, &one.key);
            let at = step.0.iter().position(|(known, _)| *known == part).unwrap_or_else(|| {
                step.0.push((part, self.sums[part]));
                step.0.len() - 1
            });
            let sum = &mut step.0[at].1;
            for it in before(one.table, &one.key)? {
                sum.subtract(element(keyed, it.table, &it.key, it.revision, it.value.as_deref()));
            }
            sum.add(element(keyed, one.table, &one.key, one.revision, one.value.as_deref()));
        }
        Ok((!step.0.is_empty()).then_some(step))
    }

    /// Goes on with the sums of a commit that was written.
    pub fn take(&mut self, step: &Step) {
        let keyed = self.keyed();
        for (part, sum) in &step.0 {
            self.sums[*part] = *sum;
            if is_alone(*part) {
                self.differ.remove(*part);
            }
            if self.differ.0 >> part & 1 == 0 {
                self.set_tag(&keyed, *part);
            }
        }
    }

    /// The record after a step, or as it is, for this revision of its address.
    pub fn record(&self, revision: u64, step: Option<&Step>) -> Vec<u8> {
        let keyed = self.keyed();
        let mut body = vec![Record::VERSION];
        body.extend_from_slice(&self.store_key.to_be_bytes());
        body.extend_from_slice(&self.tags);
        for (part, sum) in step.into_iter().flat_map(|step| &step.0) {
            if self.differ.0 >> part & 1 == 0 || is_alone(*part) {
                body[5 + part * TAG..][..TAG].copy_from_slice(&tag(&keyed, *part, *sum));
            }
        }
        let mac = hmac::sign(&keyed, &message(revision, &body));
        body.extend_from_slice(mac.as_ref());
        body
    }

    fn set_tag(&mut self, keyed: &hmac::Key, part: usize) {
        let tag = tag(keyed, part, self.sums[part]);
        self.tags[part * TAG..(part + 1) * TAG].copy_from_slice(&tag);
    }

    fn keyed(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, self.key.expose())
    }
}

fn tag(keyed: &hmac::Key, part: usize, sum: Sum) -> [u8; TAG] {
    let part = u8::try_from(part).unwrap_or(u8::MAX);
    let full = hmac::sign(keyed, &[&[2, part][..], &sum.bytes()].concat());
    full.as_ref().first_chunk::<TAG>().copied().unwrap_or_default()
}

fn message(revision: u64, body: &[u8]) -> Vec<u8> {
    [&[3][..], &revision.to_be_bytes(), body].concat()
}

fn element(keyed: &hmac::Key, table: Table, key: &str, revision: u64, value: Option<&[u8]>) -> Sum {
    let mut context = hmac::Context::with_key(keyed);
    // A key is at most 255 bytes long.
    let length = u16::try_from(key.len()).unwrap_or(u16::MAX);
    context.update(&[1, table.tag()]);
    context.update(&length.to_be_bytes());
    context.update(key.as_bytes());
    context.update(&revision.to_be_bytes());
    context.update(&[u8::from(value.is_some())]);
    if let Some(value) = value.filter(|_| is_plain(table, key)) {
        context.update(&Sha256::digest(value));
    }
    context.sign().as_ref().try_into().map_or_else(|_| Sum::default(), Sum::of)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally() -> Tally {
        crate::secret::start(&Default::default(), crate::secret::Use::Front).unwrap();
        Tally::new(StateKey::copy_from(&[7; 32]).unwrap(), 3)
    }

    fn copied(key: &str, revision: u64, value: Option<&[u8]>) -> Copied {
        let value = value.map(<[u8]>::to_vec);
        Copied { table: Table::Key, key: key.to_owned(), revision, value }
    }

    fn of(all: &[Copied]) -> Tally {
        let mut tally = tally();
        let mut pages = vec![all.to_vec()];
        tally.scan(|| Ok::<_, StoreError>(pages.pop())).unwrap();
        tally
    }

    #[test]
    fn numbers_wrap_around_and_come_back() {
        let largest = Sum::of(&[0xff; 32]);
        let mut one = [0; 32];
        one[31] = 1;
        let mut sum = largest;
        sum.add(Sum::of(&one));
        assert_eq!(sum, Sum::default());
        sum.subtract(Sum::of(&one));
        assert_eq!((sum, sum.bytes()), (largest, [0xff; 32]));
        let carried = Sum([u64::MAX, u64::MAX, 0, 5]);
        let mut sum = carried;
        sum.add(Sum::of(&one));
        assert_eq!(sum, Sum([0, 0, 1, 5]));
        sum.subtract(Sum::of(&one));
        assert_eq!(sum, carried);
    }

    #[test]
    fn a_step_leads_where_a_scan_does() {
        let before = [copied("a", 3, Some(b"x")), copied("b", 2, None)];
        let planned = vec![
            Planned { table: Table::Key, key: "a".to_owned(), revision: 4, value: None },
            Planned { table: Table::Key, key: "c".to_owned(), revision: 1, value: Some(vec![1]) },
        ];
        let mut tally = of(&before);
        let find = |_, key: &str| Ok(before.iter().filter(|one| one.key == key).cloned().collect());
        let step = tally.step(&planned, find).unwrap().unwrap();
        let record = tally.record(9, Some(&step));
        tally.take(&step);
        assert_eq!(record, tally.record(9, None));
        let after = [copied("c", 1, Some(b"1")), copied("b", 2, None), copied("a", 4, None)];
        let mut scanned = of(&after);
        assert_eq!(scanned.compare(Some((9, &record))), StateCheck::Fits);
        assert_eq!(scanned.record(9, None), record);
        let open = Planned {
            table: Table::Appliance,
            key: "head".to_owned(),
            revision: 1,
            value: Some(vec![]),
        };
        assert!(tally.step(&[open], |_, _| Ok(Vec::new())).unwrap().is_none());
    }

    #[test]
    fn whatever_differs_is_narrowed_down_and_stays_so() {
        let all = [copied("a", 3, Some(b"x")), copied("b", 2, None)];
        let record = of(&all).record(5, None);
        let mut table = all.to_vec();
        table[0].table = Table::Secret;
        let others = [
            vec![all[1].clone()],
            vec![copied("a", 2, Some(b"x")), all[1].clone()],
            vec![copied("a", 3, None), all[1].clone()],
            table,
        ];
        assert_ne!(part_of(Table::Key, "a"), part_of(Table::Key, "b"));
        assert_eq!(part_of(Table::Key, "a"), part_of(Table::KeyVersion, "a/00001"));
        for other in others {
            let mut other = of(&other);
            let StateCheck::Differs(parts) = other.compare(Some((5, &record))) else {
                panic!("it fits")
            };
            assert!(parts.have(Table::Key, "a") && !parts.have(Table::Key, "b"));
            assert!(!parts.have_appliance());
            // A later commit elsewhere does not make it right.
            let planned =
                [Planned { table: Table::Key, key: "b".to_owned(), revision: 3, value: None }];
            let before = |_, _: &str| Ok(vec![copied("b", 2, None)]);
            let step = other.step(&planned, before).unwrap().unwrap();
            let later = other.record(6, Some(&step));
            let mut again = of(&[copied("a", 3, Some(b"x")), copied("b", 3, None)]);
            assert_eq!(again.compare(Some((6, &later))), StateCheck::Fits, "put right again");
            other.adopt();
            assert_ne!(other.record(6, None), later);
        }
        // What is sealed is bound to its revision; what may lie open is counted with its value.
        let open = |key: &str, value: &[u8]| Copied {
            table: Table::Appliance,
            ..copied(key, 1, Some(value))
        };
        let (one, other) = (of(&[open("home", b"x")]), of(&[open("home", b"y")]));
        assert_ne!(one.record(1, None), other.record(1, None));
        for key in UNCOUNTED {
            assert_eq!(of(&[open(key, b"x")]).record(1, None), of(&[]).record(1, None), "{key}");
        }
    }

    #[test]
    fn a_record_holds_for_its_revision_and_key_alone() {
        let mut tally = of(&[copied("a", 1, None)]);
        let record = tally.record(9, None);
        assert_eq!(tally.compare(Some((9, &record))), StateCheck::Fits);
        assert_eq!(store_key_of_state(&record), Some(3));
        assert_eq!(tally.compare(None), StateCheck::Absent);
        let broken = StateCheck::Differs(Parts::ALL);
        assert_eq!(tally.compare(Some((8, &record))), broken);
        for at in 0..record.len() {
            let mut changed = record.clone();
            changed[at] ^= 1;
            assert_eq!(tally.compare(Some((9, &changed))), broken, "{at}");
        }
        let mut other = Tally::new(StateKey::copy_from(&[8; 32]).unwrap(), 3);
        assert_eq!(other.compare(Some((9, &record))), broken);
        assert_eq!(tally.compare(Some((9, &record[..record.len() - 1]))), broken);
        assert_eq!(tally.compare(Some((9, &[]))), broken);
    }
}
