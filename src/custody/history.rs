//! What custody remembers of the audit log: the newest checkpoint that it signed. It signs only what follows
//! that one, and says which one it is, so that an audit log that was rolled back, cut or rewritten is
//! noticed, whoever wrote the files.
//!
//! It is kept in custody's own state, and again in the token, where the token keeps data objects: a copy of
//! the whole machine's disks that was put back is noticed by the token. The token's copy is written after
//! the state's, so it is never ahead of it, unless the state was put back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::checkpoint::{self, Checkpoint, Mark};
use super::protocol::{Answer, Check, Fault, Known, Newest, Replaced, Reply, Verdict};
use super::state::{Kept, Section, State, StateError};
use crate::token::{Token, TokenError};

/// The name of the order by which root has custody take an audit log as it is: `accept.json`.
pub const ACCEPT: &str = "accept";

/// The section of the state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Remembered {
    /// The newest checkpoint that was signed, or that an operator said to be the newest.
    pub newest: Option<Known>,
    /// The highest number that was ever signed: none is used twice.
    pub highest: u64,
    /// The audit log was closed with the newest one: nothing may stand behind it.
    pub closed: bool,
    /// Root's order was that the newest is the newest, until the next checkpoint is signed: what the token
    /// remembers is replaced by it, too.
    pub ordered: bool,
    /// What an operator replaced, until the next checkpoint is signed.
    pub replaced: Option<Replaced>,
}

impl Section for Remembered {
    const NAME: &'static str = "checkpoints";
}

/// An order to take the audit log as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accept {
    pub trail: String,
    /// The newest checkpoint that it holds.
    pub newest: Mark,
    /// When it was given, and the uid of who gave it.
    pub at: String,
    pub by: u32,
}

/// A checkpoint that is to be signed, as the front has it.
pub struct ToSign<'a> {
    pub trail: &'a str,
    pub covers: u64,
    pub head: [u8; 32],
    /// The newest one that the audit log holds.
    pub before: Mark,
    /// Nothing is to be written after it.
    pub closes: bool,
}

/// What is remembered, where, and how it is used.
pub struct History {
    state: State,
    kept: Kept<Remembered>,
    /// What the token holds, once it was open.
    token: Mutex<TokenMemory>,
    /// `[audit] on_break = "record"`: a history that does not fit is accepted, once in a process.
    accepts: AtomicBool,
    /// The token remembered more than the state did.
    was_behind: AtomicBool,
}

/// What is known of the token's memory: the audit log and the place in its chain.
#[derive(Debug, Clone, PartialEq, Eq)]
enum TokenMemory {
    NotSeen,
    Empty,
    Holds(Replaced),
    Fails(String),
}

impl From<StateError> for Fault {
    fn from(error: StateError) -> Self {
        Fault::State(error.to_string())
    }
}

/// The highest number of a checkpoint that custody takes anybody's word for: no audit log has so many, and custody's
/// own numbers go on from it for longer than there are machines. Only what custody itself has signed is higher.
pub const LAST_BELIEVED: u64 = 1 << 48;
const TOO_HIGH: &str = "no audit log has so many checkpoints";

impl History {
    /// # Errors
    /// [`StateError`] where what was remembered cannot be read.
    pub fn open(state: State, accepts: bool) -> Result<Self, StateError> {
        let kept = state.load()?;
        Ok(Self {
            state,
            kept,
            token: Mutex::new(TokenMemory::NotSeen),
            accepts: AtomicBool::new(accepts),
            was_behind: AtomicBool::new(false),
        })
    }

    /// What is remembered now.
    pub fn newest(&self) -> Reply {
        let Remembered { newest, closed, .. } = self.kept.get();
        Reply::Newest(Newest {
            known: newest,
            closed,
            with_token: *self.token_memory() != TokenMemory::NotSeen,
            state_lost: self.was_behind.load(Ordering::Relaxed),
        })
    }

    /// The front opens an audit log whose newest checkpoint is `newest`. One that does not fit is only taken
    /// where root says so: by an order beside the state, or in custody's configuration.
    ///
    /// And if the front lies? Custody then signs nothing, for what it is given later does not follow; a front
    /// that names the newest one although its files are others is found out by `audit verify`.
    pub fn begin(&self, trail: &str, newest: Mark, behind_end: bool) -> Answer {
        if newest.number > self.most_believed() {
            return Err(Fault::Protocol(TOO_HIGH.to_owned()));
        }
        let order = self.state.take_order(ACCEPT)?;
        let order = order.and_then(|bytes| serde_json::from_slice::<Accept>(&bytes).ok());
        let ordered = order.is_some_and(|order| order.trail == trail && order.newest == newest);
        let now = self.kept.get();
        let is_known = now.newest.as_ref().is_none_or(|it| it.trail == trail && it.mark == newest);
        if is_known && !ordered && !now.closed {
            return Ok(Reply::Begun { replaced: now.replaced });
        }
        self.kept.change(|memory| {
            let fits = match &memory.newest {
                None => true,
                Some(known) => known.trail == trail && known.mark == newest,
            };
            if !(fits && !(behind_end && memory.closed)) {
                if !ordered && !self.accepts.swap(false, Ordering::Relaxed) {
                    return Err(not_newest(memory));
                }
                memory.replaced = memory.newest.as_ref().map(|known| Replaced {
                    trail: known.trail.clone(),
                    mark: known.mark,
                });
                memory.newest =
                    Some(Known { trail: trail.to_owned(), mark: newest, signed: None });
                tracing::error!(%newest, replaced = ?memory.replaced, "an operator has the audit log taken as it is");
            }
            memory.closed = false;
            memory.ordered |= ordered;
            if memory.ordered && memory.newest.is_none() {
                memory.newest = Some(Known { trail: trail.to_owned(), mark: newest, signed: None });
            }
            Ok(Reply::Begun { replaced: memory.replaced.clone() })
        })
    }

    /// The highest number that a checkpoint may have that is gone on from.
    fn most_believed(&self) -> u64 {
        self.kept.get().highest.max(LAST_BELIEVED)
    }

    /// Signs the next checkpoint of the chain, and remembers it before anybody sees it. Asked for the newest
    /// one again, it gives that one again: an answer may have been lost.
    ///
    /// And if the front lies? It cannot have signed what does not follow, no number twice, and no other time.
    /// It can have a head signed that its lines do not have: then they do not fit what custody remembers, and
    /// the next start holds service.
    pub fn sign(&self, token: &dyn Token, generation: u32, wanted: &ToSign<'_>) -> Answer {
        if !checkpoint::is_trail(wanted.trail) {
            return Err(Fault::Protocol("an audit log has 16 hex digits".to_owned()));
        }
        if wanted.before.number > self.most_believed() {
            return Err(Fault::Protocol(TOO_HIGH.to_owned()));
        }
        let (checkpoint, adopted) = self.kept.change(|memory| {
            if let Some(again) = memory.again(wanted) {
                return Ok((again, false));
            }
            // After an orderly end nothing follows before the start was compared with it.
            if memory.closed {
                return Err(not_newest(memory));
            }
            let adopted = match &memory.newest {
                None => wanted.before.covers > 0,
                Some(known) if known.trail == wanted.trail && known.mark == wanted.before => false,
                Some(_) => return Err(not_newest(memory)),
            };
            if wanted.covers <= wanted.before.covers {
                let why = "a checkpoint covers more than the one before it";
                return Err(Fault::Protocol(why.to_owned()));
            }
            let highest = memory.highest.max(wanted.before.number);
            let number = highest.checked_add(1).ok_or_else(|| not_newest(memory))?;
            let mark = Mark { number, covers: wanted.covers, head: wanted.head };
            let signed = signed(token, generation, wanted, mark)?;
            let known =
                Known { trail: wanted.trail.to_owned(), mark, signed: Some(signed.clone()) };
            *memory = Remembered {
                newest: Some(known),
                highest: number,
                closed: wanted.closes,
                ordered: false,
                replaced: None,
            };
            Ok((signed, adopted))
        })?;
        self.remember_in(token);
        Ok(Reply::Checkpoint { checkpoint, adopted })
    }

    /// A new signing key was made: what others signed is of no account.
    pub fn start_again(&self, token: &dyn Token) -> Result<(), Fault> {
        self.kept.change(|memory| {
            *memory = Remembered::default();
            Ok::<_, Fault>(())
        })?;
        match token.remember(None) {
            Ok(()) => *self.token_memory() = TokenMemory::Empty,
            Err(error) => *self.token_memory() = TokenMemory::Fails(error.to_string()),
        }
        Ok(())
    }

    /// Holds what the token remembers against the state. The state that is behind was put back, or lost:
    /// the token is believed.
    pub fn compare_with(&self, token: &dyn Token) -> Result<(), Fault> {
        let found = match token.remembered() {
            Ok(found) => found,
            Err(error @ TokenError::Unsupported(_)) => {
                *self.token_memory() = TokenMemory::Fails(error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let newest = found.iter().filter_map(|bytes| of_token(bytes));
        let Some(held) = newest.max_by_key(|known| known.mark.number) else {
            *self.token_memory() = TokenMemory::Empty;
            return Ok(());
        };
        if held.mark.number > self.kept.get().highest {
            self.kept.change(|memory| {
                let highest = held.mark.number;
                if memory.ordered {
                    let mark = held.mark;
                    memory.replaced = Some(Replaced { trail: held.trail.clone(), mark });
                    memory.highest = highest;
                } else {
                    let newest = Some(held.clone());
                    *memory = Remembered { newest, highest, ..Remembered::default() };
                    self.was_behind.store(true, Ordering::Relaxed);
                }
                Ok::<_, Fault>(())
            })?;
            self.tell_of_state(&held);
        }
        *self.token_memory() = TokenMemory::Holds(Replaced { trail: held.trail, mark: held.mark });
        Ok(())
    }

    fn tell_of_state(&self, held: &Known) {
        if !self.was_behind.load(Ordering::Relaxed) {
            return;
        }
        let path = self.kept.path();
        if self.kept.was_there() {
            tracing::error!(
                token = %held.mark, path = %path.display(),
                "custody's state is older than the token remembers: it was put back; the token is believed"
            );
        } else {
            tracing::warn!(
                token = %held.mark, path = %path.display(),
                "custody has no state, and the token remembers a checkpoint: the token is believed"
            );
        }
    }

    /// Has the token remember what the state does. The state counts: a token that cannot is said by `doctor`.
    fn remember_in(&self, token: &dyn Token) {
        let Some(known) = self.kept.get().newest else { return };
        let place = Replaced { trail: known.trail.clone(), mark: known.mark };
        if *self.token_memory() == TokenMemory::Holds(place.clone()) {
            return;
        }
        let memory = match token.remember(Some(&for_token(&known))) {
            Ok(()) => TokenMemory::Holds(place),
            Err(error) => TokenMemory::Fails(error.to_string()),
        };
        if let TokenMemory::Fails(why) = &memory
            && !matches!(*self.token_memory(), TokenMemory::Fails(_))
        {
            tracing::warn!(why, "the token does not remember the newest checkpoint");
        }
        *self.token_memory() = memory;
    }

    /// The checks of `doctor`.
    pub fn checks(&self) -> Vec<Check> {
        let memory = self.kept.get();
        let newest = match &memory.newest {
            Some(known) => format!("checkpoint {}, line {}", known.mark.number, known.mark.covers),
            None => "no checkpoint yet".to_owned(),
        };
        let mut checks = vec![check("custody's memory", Verdict::Ok, newest, "")];
        if self.was_behind.load(Ordering::Relaxed) {
            let found = "it was older than the token remembers: lost, or put back".to_owned();
            let remedy = "the disk of [custody] state_directory; see the journal of custody";
            checks.push(check("custody's state", Verdict::Warn, found, remedy));
        }
        let (verdict, found, remedy) = match &*self.token_memory() {
            TokenMemory::NotSeen => return checks,
            TokenMemory::Empty => (Verdict::Ok, "nothing yet".to_owned(), ""),
            TokenMemory::Holds(known) => {
                (Verdict::Ok, format!("checkpoint {}", known.mark.number), "")
            }
            TokenMemory::Fails(why) => (
                Verdict::Warn,
                format!(
                    "it keeps no data object ({why}): a copy of all disks that is put back is not noticed"
                ),
                "keep [custody] state_directory where snapshots of the store do not reach",
            ),
        };
        checks.push(check("token's memory", verdict, found, remedy));
        checks
    }

    fn token_memory(&self) -> std::sync::MutexGuard<'_, TokenMemory> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remembered {
    /// The newest one, where it is the very one that is wanted.
    fn again(&self, wanted: &ToSign<'_>) -> Option<Checkpoint> {
        let signed = self.newest.as_ref()?.signed.as_ref()?;
        let is_same = signed.trail == wanted.trail
            && (signed.mark.covers, signed.mark.head) == (wanted.covers, wanted.head)
            && signed.before == wanted.before
            && self.closed == wanted.closes;
        is_same.then(|| signed.clone())
    }
}

fn signed(
    token: &dyn Token,
    generation: u32,
    wanted: &ToSign<'_>,
    mark: Mark,
) -> Result<Checkpoint, Fault> {
    let at = format!("{:.6}", jiff::Timestamp::now());
    let message = checkpoint::message(wanted.trail, &mark, &wanted.before, &at);
    let signature = token.sign(generation, &Sha256::digest(message).into())?;
    Ok(Checkpoint {
        trail: wanted.trail.to_owned(),
        mark,
        before: wanted.before,
        at,
        generation,
        signature: checkpoint::hex(&signature),
    })
}

fn not_newest(memory: &Remembered) -> Fault {
    Fault::NotNewest(match &memory.newest {
        Some(known) => format!(
            "the newest checkpoint that custody signed is number {} over line {}",
            known.mark.number, known.mark.covers
        ),
        None => "custody remembers no checkpoint".to_owned(),
    })
}

/// What the token's data object holds.
fn for_token(known: &Known) -> Vec<u8> {
    format!("strongroom checkpoint 1\n{}\n{}\n", known.trail, known.mark).into_bytes()
}

fn of_token(bytes: &[u8]) -> Option<Known> {
    let text = std::str::from_utf8(bytes).ok()?;
    let text = text.strip_prefix("strongroom checkpoint 1\n")?.strip_suffix('\n')?;
    let (trail, mark) = text.split_once('\n')?;
    let known = Known { trail: trail.to_owned(), mark: mark.parse().ok()?, signed: None };
    checkpoint::is_trail(trail).then_some(known)
}

fn check(name: &str, verdict: Verdict, found: String, remedy: &str) -> Check {
    Check { name: name.to_owned(), verdict, found, remedy: remedy.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::fault::{FaultToken, Mishap, Times, Verb};

    const TRAIL: &str = "0123456789abcdef";
    const START: Mark = Mark { number: 0, covers: 0, head: [0; 32] };

    struct Bench {
        place: tempfile::TempDir,
        token: FaultToken,
    }

    impl Bench {
        fn new() -> Self {
            let token = FaultToken::new();
            token.create_signer(1).unwrap();
            Self { place: tempfile::tempdir().unwrap(), token }
        }

        fn open(&self, accepts: bool) -> History {
            let state = State::open(&self.place.path().join("state")).unwrap();
            History::open(state, accepts).unwrap()
        }

        fn order(&self, newest: Mark) {
            let order = Accept { trail: TRAIL.to_owned(), newest, at: String::new(), by: 0 };
            let bytes = serde_json::to_vec(&order).unwrap();
            super::super::state::leave_order(&self.place.path().join("state"), ACCEPT, &bytes)
                .unwrap();
        }

        fn sign(&self, history: &History, covers: u64, before: Mark) -> Result<Checkpoint, Fault> {
            self.sign_as(history, covers, before, false)
        }

        fn sign_as(
            &self,
            history: &History,
            covers: u64,
            before: Mark,
            closes: bool,
        ) -> Result<Checkpoint, Fault> {
            let head = [covers as u8; 32];
            let wanted = ToSign { trail: TRAIL, covers, head, before, closes };
            match history.sign(&self.token, 1, &wanted)? {
                Reply::Checkpoint { checkpoint, .. } => Ok(checkpoint),
                _ => panic!("another reply"),
            }
        }
    }

    fn newest(history: &History) -> Newest {
        match history.newest() {
            Reply::Newest(newest) => newest,
            _ => panic!("another reply"),
        }
    }

    fn is_refused<T>(result: Result<T, Fault>) -> bool {
        matches!(result, Err(Fault::NotNewest(_)))
    }

    #[test]
    fn numbers_follow_each_other_over_a_restart_and_nothing_else_is_signed() {
        let bench = Bench::new();
        let history = bench.open(false);
        let first = bench.sign(&history, 10, START).unwrap();
        assert_eq!((first.mark.number, first.before), (1, START));
        assert_eq!(bench.sign(&history, 10, START).unwrap(), first, "an answer that was lost");
        for (covers, before) in [
            (11, START),
            (20, Mark { covers: 9, ..first.mark }),
            (20, Mark { number: 2, ..first.mark }),
            (20, Mark { head: [1; 32], ..first.mark }),
        ] {
            assert!(is_refused(bench.sign(&history, covers, before)), "{covers} {before}");
        }
        assert!(bench.sign(&history, 10, first.mark).is_err(), "it covers no more");
        drop(history);
        let history = bench.open(false);
        assert_eq!(newest(&history).known.unwrap().signed.unwrap(), first);
        assert_eq!(bench.sign(&history, 20, first.mark).unwrap().mark.number, 2);
        assert!(is_refused(bench.sign(&history, 30, first.mark)));
    }

    #[test]
    fn what_cannot_be_remembered_is_not_signed() {
        let bench = Bench::new();
        let history = bench.open(false);
        let first = bench.sign(&history, 10, START).unwrap();
        let blocked = bench.place.path().join("state/checkpoints.new");
        std::fs::create_dir(&blocked).unwrap();
        assert!(matches!(bench.sign(&history, 20, first.mark), Err(Fault::State(_))));
        std::fs::remove_dir(&blocked).unwrap();
        assert_eq!(newest(&history).known.unwrap().mark, first.mark);
        assert_eq!(bench.sign(&history, 20, first.mark).unwrap().mark.number, 2);
        bench.token.plan(Verb::Sign, Mishap::Unavailable, Times::Next(1));
        let second = newest(&history).known.unwrap().mark;
        assert!(bench.sign(&history, 30, second).is_err());
        assert_eq!(newest(&history).known.unwrap().mark, second);
    }

    #[test]
    fn only_root_s_order_or_the_configuration_takes_an_older_history_and_once() {
        let bench = Bench::new();
        let history = bench.open(false);
        let first = bench.sign(&history, 10, START).unwrap().mark;
        let second = bench.sign(&history, 20, first).unwrap().mark;
        assert!(is_refused(history.begin(TRAIL, first, false)));
        bench.order(second);
        assert!(is_refused(history.begin(TRAIL, first, false)), "another one was meant");
        bench.order(first);
        let begun = history.begin(TRAIL, first, false).unwrap();
        let replaced = |reply: &Reply| match reply {
            Reply::Begun { replaced } => replaced.as_ref().map(|replaced| replaced.mark),
            _ => panic!("another reply"),
        };
        assert_eq!(replaced(&begun), Some(second));
        let third = bench.sign(&history, 15, first).unwrap();
        assert_eq!(third.mark.number, 3, "no number is used twice");
        assert_eq!(replaced(&history.begin(TRAIL, third.mark, false).unwrap()), None);
        assert!(is_refused(history.begin(TRAIL, first, false)));
        drop(history);
        let history = bench.open(true);
        history.begin(TRAIL, first, false).unwrap();
        assert!(is_refused(history.begin(TRAIL, START, false)), "once in a process");
    }

    #[test]
    fn an_order_replaces_what_the_token_alone_remembers() {
        let bench = Bench::new();
        let history = bench.open(false);
        let first = bench.sign(&history, 10, START).unwrap().mark;
        let second = bench.sign(&history, 20, first).unwrap().mark;
        drop(history);
        std::fs::remove_file(bench.place.path().join("state/checkpoints.json")).unwrap();
        bench.order(first);
        let history = bench.open(false);
        history.begin(TRAIL, first, false).unwrap();
        history.compare_with(&bench.token).unwrap();
        let Reply::Begun { replaced } = history.begin(TRAIL, first, false).unwrap() else {
            panic!("another reply")
        };
        assert_eq!(replaced.map(|replaced| replaced.mark), Some(second));
        assert!(!newest(&history).state_lost);
        assert_eq!(bench.sign(&history, 15, first).unwrap().mark.number, 3);
    }

    #[test]
    fn nothing_stands_behind_an_orderly_end() {
        let bench = Bench::new();
        let history = bench.open(false);
        let last = bench.sign_as(&history, 10, START, true).unwrap().mark;
        assert!(newest(&history).closed);
        assert!(is_refused(history.begin(TRAIL, last, true)));
        history.begin(TRAIL, last, false).unwrap();
        assert!(!newest(&history).closed);
        history.begin(TRAIL, last, true).unwrap();
    }

    #[test]
    fn the_token_is_believed_where_the_state_is_older_or_gone() {
        let bench = Bench::new();
        let history = bench.open(false);
        let first = bench.sign(&history, 10, START).unwrap().mark;
        let file = bench.place.path().join("state/checkpoints.json");
        let older = std::fs::read(&file).unwrap();
        let second = bench.sign(&history, 20, first).unwrap().mark;
        drop(history);
        for put_back in [Some(older), None] {
            match put_back {
                Some(older) => std::fs::write(&file, older).unwrap(),
                None => std::fs::remove_file(&file).unwrap(),
            }
            let history = bench.open(false);
            history.compare_with(&bench.token).unwrap();
            let newest = newest(&history);
            assert!(newest.state_lost && newest.with_token);
            assert_eq!(newest.known.unwrap().mark, second);
            assert!(is_refused(bench.sign(&history, 15, first)));
        }
        let history = bench.open(false);
        history.compare_with(&bench.token).unwrap();
        assert!(!newest(&history).state_lost, "the state has it again");
        assert_eq!(bench.sign(&history, 30, second).unwrap().mark.number, 3);
    }

    #[test]
    fn a_new_signing_key_starts_again_and_an_old_log_is_believed_once() {
        let bench = Bench::new();
        let history = bench.open(false);
        let first = bench.sign(&history, 10, START).unwrap().mark;
        history.start_again(&bench.token).unwrap();
        assert_eq!(bench.token.remembered().unwrap(), Vec::<Vec<u8>>::new());
        let old = Mark { number: 0, covers: 700, head: [5; 32] };
        let wanted =
            ToSign { trail: TRAIL, covers: 710, head: [6; 32], before: old, closes: false };
        let signed = history.sign(&bench.token, 1, &wanted).unwrap();
        let Reply::Checkpoint { checkpoint, adopted } = signed else { panic!("another reply") };
        assert!(adopted && checkpoint.mark.number == 1 && checkpoint.before == old);
        assert!(is_refused(bench.sign(&history, 20, first)));
    }
}
