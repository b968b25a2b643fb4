//! What each user may have at a time: connections, requests a second, requests under way.
//!
//! Places: where all are taken, somebody whose user holds fewer gets one of the user that holds most,
//! the one that has been silent for longest. Turns: a user that is alone may have many requests under
//! way; as soon as others ask too, so few that theirs go to the front of a short queue. What is over
//! waits for its own user's turn, and nobody else's. What only looks has turns of its own.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;

use super::bucket::Bucket;
use super::presence::Presence;
use super::serve::Limits;
use super::turn::{NoTurn, Turn, take};

/// All users and what they have.
pub struct Shares {
    limits: Arc<Limits>,
    started: Instant,
    room: Mutex<Room>,
    presence: Presence,
    /// How many turns a request takes while others ask too.
    weight: u32,
}

#[derive(Default)]
struct Room {
    users: HashMap<u32, User>,
    places: usize,
    next: u64,
    /// Users that rest are forgotten once there are so many.
    tidy_at: usize,
}

struct User {
    share: Arc<Share>,
    seats: BTreeMap<u64, Arc<Seat>>,
}

/// What all connections of one user have together.
struct Share {
    bucket: Bucket,
    turns: Arc<Semaphore>,
    glances: Arc<Semaphore>,
    /// Room for bodies, in KiB.
    bodies: Arc<Semaphore>,
    starts: Arc<Semaphore>,
}

/// One connection, as the others see it.
struct Seat {
    /// When it last asked or was answered, in nanoseconds.
    heard: AtomicU64,
    /// Answers that are under way: the one, and the end of its body.
    busy: AtomicU32,
    leaving: AtomicBool,
    task: OnceLock<AbortHandle>,
}

/// A connection's place; taken for as long as this lives.
pub struct Place {
    shares: Arc<Shares>,
    share: Arc<Share>,
    seat: Arc<Seat>,
    uid: u32,
    id: u64,
}

/// An answer whose body is still on its way.
pub struct GoesOn(Arc<Seat>);

impl Drop for GoesOn {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Looks of one user under way that do no work: at the state, at health.
const GLANCES: usize = 4;

/// Bodies of the greatest length that one user may have in memory.
const BODIES: usize = 32;

/// Bodies up to this many bytes are not counted: as many as there are connections are few enough.
const SMALL_BODY: usize = 16 * 1024;

/// Connections of one user whose first bytes are looked at in the same round of work.
const STARTS: usize = 4;

/// Requests of each user under way, for each processor, while several users ask.
const SHARED_TURNS: usize = 2;

impl Shares {
    pub fn new(limits: Arc<Limits>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let weight = limits.requests_at_once_per_uid / (SHARED_TURNS * processors);
        Self {
            limits,
            started: Instant::now(),
            room: Mutex::default(),
            presence: Presence::default(),
            weight: u32::try_from(weight).unwrap_or(u32::MAX).max(1),
        }
    }

    /// A place for a connection of this user; `None` where there is none.
    pub fn admit(self: &Arc<Self>, uid: u32) -> Option<Place> {
        let now = self.now();
        let mut room = self.room();
        room.tidy(now, self.limits.requests_at_once_per_uid);
        let user = room.users.entry(uid).or_insert_with(|| User::new(&self.limits));
        let (own, share) = (user.seats.len(), Arc::clone(&user.share));
        if own >= self.limits.connections_per_uid
            || (room.places >= self.limits.connections && !room.free_for(own))
        {
            return None;
        }
        let seat = Arc::new(Seat::new(now));
        let id = room.next;
        room.next += 1;
        room.places += 1;
        if let Some(user) = room.users.get_mut(&uid) {
            user.seats.insert(id, Arc::clone(&seat));
        }
        drop(room);
        Some(Place { shares: Arc::clone(self), share, seat, uid, id })
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nanoseconds since the start.
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Room {
    /// Takes a place from the user that has most, if that leaves it more than one who has `own`.
    fn free_for(&mut self, own: usize) -> bool {
        let most = self.users.values_mut().max_by_key(|user| user.seats.len());
        let Some(user) = most.filter(|user| user.seats.len() > own + 1) else { return false };
        let quietest = user.seats.iter().min_by_key(|(_, seat)| seat.standing());
        let Some(id) = quietest.map(|(&id, _)| id) else { return false };
        if let Some(seat) = user.seats.remove(&id) {
            seat.give_up();
            self.places -= 1;
        }
        true
    }

    /// Forgets users that have nothing and whose limits have nothing to remember.
    fn tidy(&mut self, now: u64, turns: usize) {
        if self.users.len() < self.tidy_at.max(64) {
            return;
        }
        self.users.retain(|_, user| {
            let rests =
                user.share.bucket.is_full(now) && user.share.turns.available_permits() >= turns;
            !user.seats.is_empty() || !rests
        });
        self.tidy_at = self.users.len() * 2;
    }
}

impl User {
    fn new(limits: &Limits) -> Self {
        let bucket = Bucket::new(limits.requests_per_second_per_uid, limits.requests_burst_per_uid);
        let turns = Arc::new(Semaphore::new(limits.requests_at_once_per_uid));
        let bodies = kib(limits.body_bytes).saturating_mul(BODIES).min(Semaphore::MAX_PERMITS);
        let bodies = Arc::new(Semaphore::new(bodies));
        let [glances, starts] = [GLANCES, STARTS].map(|many| Arc::new(Semaphore::new(many)));
        Self {
            share: Arc::new(Share { bucket, turns, glances, bodies, starts }),
            seats: BTreeMap::new(),
        }
    }
}

impl Seat {
    fn new(now: u64) -> Self {
        Self {
            heard: AtomicU64::new(now),
            busy: AtomicU32::new(0),
            leaving: AtomicBool::new(false),
            task: OnceLock::new(),
        }
    }

    /// The least of all is the first to go: it waits for nothing and has been silent for longest.
    fn standing(&self) -> (bool, u64) {
        (self.busy.load(Ordering::Relaxed) > 0, self.heard.load(Ordering::Relaxed))
    }

    /// Ends the connection: at once where it waits for nothing, else with its answer.
    fn give_up(&self) {
        self.leaving.store(true, Ordering::Release);
        if self.busy.load(Ordering::Acquire) == 0
            && let Some(task) = self.task.get()
        {
            task.abort();
        }
    }
}

impl Place {
    /// Tells which task serves the connection, so that it can be ended for another's sake.
    pub fn served_by(&self, task: AbortHandle) {
        let _ = self.seat.task.set(task);
        if self.seat.leaving.load(Ordering::Acquire) {
            self.seat.give_up();
        }
    }

    /// Whether the connection has to end with the answer that goes out.
    pub fn is_leaving(&self) -> bool {
        self.seat.leaving.load(Ordering::Acquire)
    }

    /// A request has come: says for how long its user has had too many of them, if so.
    pub fn asks(&self) -> Result<(), Duration> {
        let now = self.shares.now();
        self.seat.busy.fetch_add(1, Ordering::AcqRel);
        self.seat.heard.store(now, Ordering::Relaxed);
        self.share.bucket.take(now)
    }

    /// Its answer is there.
    pub fn is_answered(&self) {
        self.seat.busy.fetch_sub(1, Ordering::AcqRel);
    }

    /// Its answer goes on beyond its headers, for as long as this lives.
    pub fn goes_on(&self) -> GoesOn {
        self.seat.busy.fetch_add(1, Ordering::AcqRel);
        GoesOn(Arc::clone(&self.seat))
    }

    /// Waits until a connection that has something to say may be looked at for the first time: with many
    /// of them at once, those of other users do not stand behind all.
    pub async fn start(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.share.starts).acquire_owned().await.ok()
    }

    /// Waits until its user may have one more request under way, or until `waived`: then those that are
    /// under way do no work, and this one need not wait for them.
    pub async fn turn(&self, waived: impl Future<Output = ()>) -> Result<Turn, NoTurn> {
        let alone = self.shares.presence.alone(self.uid, self.shares.now());
        let weight = if alone { 1 } else { self.shares.weight };
        take(&self.share.turns, weight, waived).await
    }

    /// Waits until its user may look once more, which no work of its own keeps it from.
    pub async fn glance(&self) -> Result<Turn, NoTurn> {
        take(&self.share.glances, 1, std::future::pending()).await
    }

    /// Waits until its user may have one more body of this length in memory.
    pub async fn room_for(&self, bytes: usize) -> Result<Turn, NoTurn> {
        if bytes <= SMALL_BODY {
            return Ok(Turn::FREE);
        }
        let weight = u32::try_from(kib(bytes)).unwrap_or(u32::MAX);
        take(&self.share.bodies, weight, std::future::pending()).await
    }
}

fn kib(bytes: usize) -> usize {
    bytes.div_ceil(1024)
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut room = self.shares.room();
        let user = room.users.get_mut(&self.uid);
        // A place that was given to somebody else is counted no more.
        if user.is_some_and(|user| user.seats.remove(&self.id).is_some()) {
            room.places -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(connections: usize, per_uid: usize) -> Arc<Shares> {
        let limits = Limits {
            connections,
            connections_per_uid: per_uid,
            requests_per_second_per_uid: 1,
            requests_burst_per_uid: 2,
            ..Limits::default()
        };
        Arc::new(Shares::new(Arc::new(limits)))
    }

    #[test]
    fn somebody_who_has_less_always_gets_in() {
        let shares = shares(10, 10);
        let greedy: Vec<Place> = (0..10).map(|_| shares.admit(1).unwrap()).collect();
        assert!(shares.admit(1).is_none());
        greedy[0].asks().unwrap();
        let other: Vec<Place> = (0..5).filter_map(|_| shares.admit(2)).collect();
        assert_eq!(other.len(), 5, "as many for both");
        assert!(shares.admit(2).is_none() && shares.admit(1).is_none());
        assert!(!greedy[0].is_leaving(), "it waits for an answer; others go first");
        assert_eq!(greedy.iter().filter(|place| place.is_leaving()).count(), 5);
        let third = shares.admit(3).unwrap();
        assert_eq!(shares.room().places, 10);
        drop((greedy, other, third));
        assert_eq!(shares.room().places, 0);
        assert!(shares.room().users.values().all(|user| user.seats.is_empty()));
    }

    #[test]
    fn an_answer_that_goes_on_is_busy_to_its_end() {
        let shares = shares(4, 4);
        let places: Vec<Place> = (0..4).map(|_| shares.admit(1).unwrap()).collect();
        places[0].asks().unwrap();
        let goes_on = places[0].goes_on();
        places[0].is_answered();
        let others: Vec<Place> = (0..2).filter_map(|_| shares.admit(2)).collect();
        assert!(others.len() == 2 && !places[0].is_leaving() && places[0].seat.standing().0);
        drop(goes_on);
        assert!(!places[0].seat.standing().0);
    }

    #[test]
    fn who_comes_back_has_what_was_left() {
        let shares = shares(4, 4);
        for round in 0..4 {
            let place = shares.admit(1).unwrap();
            assert_eq!(place.asks().is_ok(), round < 2, "{round}");
        }
        assert!(shares.admit(2).unwrap().asks().is_ok());
    }

    #[test]
    fn users_that_rest_are_forgotten() {
        let shares = shares(4, 4);
        for uid in 0..10_000 {
            drop(shares.admit(uid));
        }
        assert!(shares.room().users.len() < 200);
    }

    #[tokio::test]
    async fn turns_are_fewer_while_others_ask() {
        let shares = shares(400, 400);
        let never = std::future::pending;
        let (one, other) = (shares.admit(1).unwrap(), shares.admit(2).unwrap());
        let all = shares.limits.requests_at_once_per_uid;
        let mut held = Vec::new();
        for _ in 0..all {
            held.push(one.turn(never()).await.unwrap());
        }
        assert_eq!(one.share.turns.available_permits(), 0);
        drop(one.glance().await.unwrap());
        drop(one.turn(std::future::ready(())).await.unwrap());
        held.clear();
        held.push(other.turn(never()).await.unwrap());
        held.push(one.turn(never()).await.unwrap());
        assert_eq!(one.share.turns.available_permits(), all - shares.weight as usize);
    }

    /// Prints what a request pays; `cargo test --release --lib -- share:: --nocapture` is the figure.
    #[tokio::test]
    async fn a_request_pays_for_its_limits_once() {
        const MANY: u32 = 100_000;
        let limits = Limits { requests_per_second_per_uid: u32::MAX, ..Limits::default() };
        let shares = Arc::new(Shares::new(Arc::new(limits)));
        let place = shares.admit(1).unwrap();
        let begin = Instant::now();
        for _ in 0..MANY {
            let _ = place.asks();
            drop(place.turn(std::future::pending()).await.unwrap());
            place.is_answered();
        }
        println!("limits: {} ns a request", begin.elapsed().as_nanos() / u128::from(MANY));
        assert_eq!(place.share.turns.available_permits(), shares.limits.requests_at_once_per_uid);
    }
}
