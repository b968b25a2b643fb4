//! The lines that were read last: their hashes, and where they stand.

use super::line::{Hash, Head};

/// Where a line stands: index of the file, row.
pub(super) type Spot = (usize, u64);

/// How many are remembered.
pub(super) const REMEMBERED: usize = 64 * 1024;

pub(super) struct Recent(Vec<(Head, Spot)>);

impl Recent {
    pub fn new() -> Self {
        Self(vec![(Head { seq: 0, hash: Hash([0; 32]) }, (0, 0)); REMEMBERED])
    }

    pub fn put(&mut self, head: Head, spot: Spot) {
        if let Some(slot) = self.0.get_mut(head.seq as usize % REMEMBERED) {
            *slot = (head, spot);
        }
    }

    pub fn hash(&self, seq: u64) -> Option<Hash> {
        self.slot(seq).map(|(head, _)| head.hash)
    }

    pub fn spot(&self, seq: u64) -> Option<Spot> {
        self.slot(seq).map(|(_, spot)| *spot)
    }

    fn slot(&self, seq: u64) -> Option<&(Head, Spot)> {
        self.0.get(seq as usize % REMEMBERED).filter(|(head, _)| head.seq == seq && seq > 0)
    }
}
