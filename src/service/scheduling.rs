//! The order in which custody gets its work: fair between principals, by what the work costs.
//!
//! Custody answers in the order in which it is asked, and knows no principals. So the front asks for no more
//! at a time than keeps the processors busy, and lets the rest wait here, each principal in a queue of its
//! own. Of those that wait, the principal that has had least goes next (stride scheduling: what it has had is
//! counted in costs). A batch is many pieces of work, each of which waits for itself.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::error::Error;
use super::gate::Appliance;
use crate::identity::Caller;
use crate::key::Algorithm;

/// What a piece of work costs, in private operations of RSA-2048.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost(u32);

impl Cost {
    /// Of a private operation: it grows with the third power of the key's size.
    pub fn of_decryption(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Rsa2048 => 1,
            Algorithm::Rsa3072 => 3,
            Algorithm::Rsa4096 => 8,
        })
    }

    /// Of a key that is generated: it grows with the fourth.
    pub fn of_generation(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Rsa2048 => 200,
            Algorithm::Rsa3072 => 1000,
            Algorithm::Rsa4096 => 3200,
        })
    }

    /// Of a key that is imported: it is checked, and no primes are looked for.
    pub const OF_IMPORT: Self = Self(10);
}

/// Which work of one kind goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rank {
    /// Before all of the other rank, but for one of it after each [`IN_A_ROW`].
    First,
    Other,
}

/// How much of [`Rank::First`] goes before one of the other, where both wait.
const IN_A_ROW: u32 = 4;

/// How much may be under way at a time.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Pieces of work that always may, whatever they cost.
    pub pieces: u32,
    /// Cost of all that is under way, beyond those.
    pub cost: u32,
    /// The same for one principal while there are others.
    pub cost_of_one: u32,
}

impl Bounds {
    /// For work that all threads of custody do: enough for each of so many processors.
    pub fn for_processors(processors: usize) -> Self {
        let processors = u32::try_from(processors).unwrap_or(1).max(1);
        Self {
            pieces: processors,
            cost: processors.saturating_mul(8),
            cost_of_one: processors.saturating_mul(2),
        }
    }

    /// For work that custody has one thread for.
    pub const ONE_BY_ONE: Self = Self { pieces: 1, cost: 0, cost_of_one: 0 };
}

/// Nothing came of waiting: others were served for longer than a request waits.
#[derive(Debug, PartialEq, Eq)]
pub struct TooMuchToDo;

/// Hands out the right to ask custody for something.
pub struct Scheduler {
    bounds: Bounds,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    lanes: HashMap<u32, Lane>,
    pieces: u32,
    cost: u32,
    waiting: usize,
    /// How much the principal that was served last had had before.
    clock: u64,
    /// How many of [`Rank::First`] were served since one of the other rank was.
    in_a_row: u32,
    tidied: Option<Instant>,
}

/// One principal's.
#[derive(Default)]
struct Lane {
    pieces: u32,
    cost: u32,
    had: u64,
    queues: [VecDeque<Waiting>; 2],
    last: Option<Instant>,
}

struct Waiting {
    cost: u32,
    ready: oneshot::Sender<()>,
}

/// A piece of work under way, until this is dropped.
#[must_use = "the work is under way for as long as this lives"]
pub struct Slot {
    held: Option<(Arc<Scheduler>, u32, u32)>,
}

/// For how long a principal that has nothing to do still counts as one that is there.
const THERE: Duration = Duration::from_secs(1);

impl Scheduler {
    pub fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self { bounds, state: Mutex::default() })
    }

    /// Waits for this principal's turn to have work of this cost done, for up to `patience`; not at all once
    /// `waived`, when nothing is done anyway. The appliance's own work waits for nobody.
    pub async fn slot(
        self: &Arc<Self>,
        caller: &Caller,
        (cost, rank): (Cost, Rank),
        patience: Duration,
        waived: impl Future<Output = ()>,
    ) -> Result<Slot, TooMuchToDo> {
        let Caller::Unix(peer) = caller else { return Ok(Slot { held: None }) };
        let (uid, Cost(cost)) = (peer.uid, cost);
        let ready = match self.state().enter(&self.bounds, uid, cost, rank) {
            Ok(()) => return Ok(self.held(uid, cost)),
            Err(ready) => ready,
        };
        // Given up while it is being handed over, it goes back by this.
        let mut ready = Handover { scheduler: self, ready, uid, cost };
        tokio::select! {
            biased;
            Ok(()) = &mut ready.ready => Ok(self.held(uid, cost)),
            () = waived => Ok(Slot { held: None }),
            () = tokio::time::sleep(patience) => Err(TooMuchToDo),
        }
    }

    fn held(self: &Arc<Self>, uid: u32, cost: u32) -> Slot {
        Slot { held: Some((Arc::clone(self), uid, cost)) }
    }

    fn give_back(&self, uid: u32, cost: u32) {
        self.state().leave(&self.bounds, uid, cost);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some((scheduler, uid, cost)) = self.held.take() {
            scheduler.give_back(uid, cost);
        }
    }
}

/// One that waits: what it was handed and did not take is given back.
struct Handover<'a> {
    scheduler: &'a Scheduler,
    ready: oneshot::Receiver<()>,
    uid: u32,
    cost: u32,
}

impl Drop for Handover<'_> {
    fn drop(&mut self) {
        self.ready.close();
        if self.ready.try_recv().is_ok() {
            self.scheduler.give_back(self.uid, self.cost);
        }
    }
}

/// How long a private operation, and a key that is to be made, wait for those of others.
const LONGEST_OPERATION: Duration = Duration::from_secs(2);
const LONGEST_GENERATION: Duration = Duration::from_secs(60);

impl Appliance {
    /// Waits until custody may do one more private operation for this principal. While custody or its token
    /// is away nothing is done, and all are told so at the same time.
    pub(super) async fn operation_slot(
        &self,
        caller: &Caller,
        algorithm: Algorithm,
    ) -> Result<Slot, Error> {
        let work = (Cost::of_decryption(algorithm), Rank::Other);
        let away = self.custody_is_away();
        let slot = self.operations.slot(caller, work, LONGEST_OPERATION, away).await;
        slot.map_err(|TooMuchToDo| Error::Busy)
    }

    /// Waits until custody may make or check one more key for this principal.
    pub(super) async fn generation_slot(
        &self,
        caller: &Caller,
        work: (Cost, Rank),
    ) -> Result<Slot, Error> {
        let away = self.custody_is_away();
        let slot = self.generations.slot(caller, work, LONGEST_GENERATION, away).await;
        slot.map_err(|TooMuchToDo| Error::Busy)
    }
}

impl State {
    /// Begins at once, or gets in line.
    fn enter(
        &mut self,
        bounds: &Bounds,
        uid: u32,
        cost: u32,
        rank: Rank,
    ) -> Result<(), oneshot::Receiver<()>> {
        let now = Instant::now();
        self.tidy(now);
        let clock = self.clock;
        let lane = self.lanes.entry(uid).or_default();
        if lane.is_idle() {
            // Nobody saves up for later.
            lane.had = lane.had.max(clock);
        }
        lane.last = Some(now);
        if self.waiting == 0 && self.fits(bounds, uid, cost) {
            self.begin(uid, cost);
            return Ok(());
        }
        let (ready, waiter) = oneshot::channel();
        if let Some(lane) = self.lanes.get_mut(&uid) {
            lane.queues[rank as usize].push_back(Waiting { cost, ready });
            self.waiting += 1;
        }
        self.serve(bounds);
        Err(waiter)
    }

    fn leave(&mut self, bounds: &Bounds, uid: u32, cost: u32) {
        self.pieces = self.pieces.saturating_sub(1);
        self.cost = self.cost.saturating_sub(cost);
        if let Some(lane) = self.lanes.get_mut(&uid) {
            lane.pieces = lane.pieces.saturating_sub(1);
            lane.cost = lane.cost.saturating_sub(cost);
            lane.last = Some(Instant::now());
        }
        self.serve(bounds);
    }

    /// Begins whatever fits, in the order of who has had least.
    fn serve(&mut self, bounds: &Bounds) {
        while self.waiting > 0 {
            let Some((uid, rank)) = self.next(bounds) else { return };
            let Some(lane) = self.lanes.get_mut(&uid) else { return };
            let Some(Waiting { cost, ready }) = lane.queues[rank as usize].pop_front() else {
                return;
            };
            self.waiting -= 1;
            // Who has given up is passed over.
            if ready.send(()).is_ok() {
                self.in_a_row = if rank == Rank::First { self.in_a_row + 1 } else { 0 };
                self.begin(uid, cost);
            }
        }
    }

    fn next(&self, bounds: &Bounds) -> Option<(u32, Rank)> {
        let of = |rank: Rank| {
            let waiting = self.lanes.iter().filter_map(move |(&uid, lane)| {
                let head = lane.queues[rank as usize].front()?;
                (head.ready.is_closed() || self.fits(bounds, uid, head.cost))
                    .then_some((lane.had, uid))
            });
            waiting.min().map(|(_, uid)| (uid, rank))
        };
        let order = match self.in_a_row {
            many if many >= IN_A_ROW => [Rank::Other, Rank::First],
            _ => [Rank::First, Rank::Other],
        };
        order.into_iter().find_map(of)
    }

    fn fits(&self, bounds: &Bounds, uid: u32, cost: u32) -> bool {
        let all = self.pieces < bounds.pieces || self.cost.saturating_add(cost) <= bounds.cost;
        let own = self.lanes.get(&uid).is_none_or(|lane| {
            self.lanes.len() == 1
                || lane.pieces < bounds.pieces
                || lane.cost.saturating_add(cost) <= bounds.cost_of_one
        });
        all && own
    }

    fn begin(&mut self, uid: u32, cost: u32) {
        self.pieces += 1;
        self.cost = self.cost.saturating_add(cost);
        if let Some(lane) = self.lanes.get_mut(&uid) {
            lane.pieces += 1;
            lane.cost = lane.cost.saturating_add(cost);
            self.clock = self.clock.max(lane.had);
            lane.had = lane.had.saturating_add(u64::from(cost));
        }
    }

    /// Forgets principals that have been away for a while.
    fn tidy(&mut self, now: Instant) {
        let is_old = |at: Option<Instant>| at.is_none_or(|at| now.duration_since(at) > THERE);
        if self.lanes.len() > 1 && is_old(self.tidied) {
            self.lanes.retain(|_, lane| !lane.is_idle() || !is_old(lane.last));
            self.tidied = Some(now);
        }
    }
}

impl Lane {
    fn is_idle(&self) -> bool {
        self.pieces == 0 && self.queues.iter().all(VecDeque::is_empty)
    }
}
