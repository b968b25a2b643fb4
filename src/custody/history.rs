//! What custody remembers of the audit log: the newest checkpoint that it signed. It signs only what follows
//! that one, and says which one it is, so that an audit log that was rolled back, cut or rewritten is
//! noticed, whoever wrote the files.
//!
//! It is kept in custody's own state, and again in the token, where the token keeps data objects: a copy of
//! the whole machine's disks that was put back is noticed by the token, and so is a state that was edited. The
//! token's copy is written after the state's, and before the next checkpoint is signed.
//!
//! While nothing can be signed (custody is locked, the token is away) the newest line is noted in the state.

mod in_token;
mod noted;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::checkpoint::{self, Checkpoint, Mark};
use super::protocol::{
    Answer, Begun, Check, Fault, Known, Newest, Noted, Replaced, Reply, SignerFacts, Verdict,
};
use super::state::{Kept, Section, State, StateError};
use crate::token::Token;

use in_token::TokenMemory;

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
    /// The newest line up to which a checkpoint was signed whose head the store had sealed before; 0 where
    /// there was none. A store whose sealed record does not reach it was put back.
    pub stored: u64,
    /// SHA-256 of the order that was followed last, in hex digits: one that could not be removed is not
    /// followed again.
    pub followed: String,
    /// The newest line that was told behind the newest checkpoint, while nothing could be signed.
    pub noted: Option<Noted>,
    /// The key that signs, as the token proved it last.
    pub signer: Option<SignerFacts>,
    /// Nothing was signed yet since custody made the signing key.
    pub is_new: bool,
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
    /// Whether the store is taken as it is, too, however far it reaches.
    pub store: bool,
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
    /// The store has the head in its sealed record.
    pub stored: bool,
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
    /// Custody is being locked, so the token is to remember that.
    locked: AtomicBool,
    /// Held while the token's memory is written.
    writing: Mutex<()>,
    /// For an offline command: the token's memory is compared and not written.
    forgets: bool,
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
            locked: AtomicBool::new(false),
            writing: Mutex::default(),
            forgets: false,
        })
    }

    /// Where what is remembered ends with the process, as an offline command's does: nothing is written to the
    /// token.
    pub fn brief(self, forgets: bool) -> Self {
        Self { forgets, ..self }
    }

    pub fn forgets(&self) -> bool {
        self.forgets
    }

    /// What is remembered now.
    pub fn newest(&self) -> Reply {
        let Remembered { newest, closed, noted, signer, .. } = self.kept.get();
        Reply::Newest(Box::new(Newest {
            known: newest,
            closed,
            noted,
            signer,
            with_token: *self.token_memory() != TokenMemory::NotSeen,
            state_lost: self.was_behind.load(Ordering::Relaxed),
        }))
    }

    /// The front opens an audit log whose newest checkpoint is `newest`. One that does not fit is only taken
    /// where root says so: by an order beside the state, or in custody's configuration.
    ///
    /// And if the front lies? Custody then signs nothing, for what it is given later does not follow; a front
    /// that names the newest one although its files are others is found out by `audit verify`.
    pub fn begin(
        &self,
        trail: &str,
        newest: Mark,
        behind_end: bool,
        holds: Option<Noted>,
    ) -> Answer {
        if newest.number > self.most_believed() {
            return Err(Fault::Protocol(TOO_HIGH.to_owned()));
        }
        let now = self.kept.get();
        let order = self.order(&now)?.filter(|(order, _)| order.is_for(trail, newest));
        let is_known = now.newest.as_ref().is_none_or(|it| it.trail == trail && it.mark == newest);
        let has_noted = |memory: &Remembered| memory.noted.is_none() || memory.noted == holds;
        if is_known && has_noted(&now) && order.is_none() && !now.closed {
            return Ok(begun(&now));
        }
        let reply = self.kept.change(|memory| {
            let ordered = order.is_some();
            let fits = memory.newest.as_ref().is_none_or(|it| it.is_at(trail, newest));
            if !(fits && has_noted(memory) && !(behind_end && memory.closed)) {
                if !ordered && !self.accepts.swap(false, Ordering::Relaxed) {
                    return Err(not_newest(memory));
                }
                memory.take_for_newest(trail, newest);
                memory.ordered = true;
                tracing::error!(%newest, replaced = ?memory.replaced, "an operator has the audit log taken as it is");
            } else if memory.stored > 0 && order.as_ref().is_some_and(|(order, _)| order.store) {
                // What root has accepted is the store.
                memory.take_for_newest(trail, newest);
                tracing::error!(%newest, "an operator has the store taken as it is");
            }
            memory.closed = false;
            if let Some((_, digest)) = &order {
                memory.ordered = true;
                memory.followed.clone_from(digest);
            }
            if memory.ordered && memory.newest.is_none() {
                memory.newest = Some(Known { trail: trail.to_owned(), mark: newest, signed: None });
            }
            Ok(begun(memory))
        })?;
        if order.is_some() {
            self.remove_order();
        }
        Ok(reply)
    }

    /// Root's order and its digest, unless it was followed already.
    fn order(&self, now: &Remembered) -> Result<Option<(Accept, String)>, Fault> {
        let Some(bytes) = self.state.read_order(ACCEPT)? else { return Ok(None) };
        let digest = checkpoint::hex(&Sha256::digest(&bytes));
        let order = serde_json::from_slice::<Accept>(&bytes).ok();
        Ok(order.filter(|_| digest != now.followed).map(|order| (order, digest)))
    }

    /// An order that was followed, or that later checkpoints have overtaken, counts no more.
    fn remove_order(&self) {
        if let Err(error) = self.state.remove_order(ACCEPT) {
            tracing::warn!(%error, "an order of root's could not be removed; it is not followed again");
        }
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
    /// the next start holds service. Where it says that the store has the head sealed and it has not, the next
    /// start holds service, too; where it says the opposite, an older store is not noticed by its record.
    pub fn sign(&self, token: &dyn Token, generation: u32, wanted: &ToSign<'_>) -> Answer {
        if !checkpoint::is_trail(wanted.trail) {
            return Err(Fault::Protocol("an audit log has 16 hex digits".to_owned()));
        }
        if wanted.before.number > self.most_believed() {
            return Err(Fault::Protocol(TOO_HIGH.to_owned()));
        }
        self.token_must_know(token)?;
        let (checkpoint, adopted) = self.kept.change(|memory| {
            if let Some(again) = memory.again(wanted) {
                return Ok((again, false));
            }
            // After an orderly end nothing follows before the start was compared with it.
            if memory.closed {
                return Err(not_newest(memory));
            }
            let adopted = match &memory.newest {
                None => wanted.before.covers > 0 || !memory.is_new,
                Some(known) if known.trail == wanted.trail && known.mark == wanted.before => false,
                Some(_) => return Err(not_newest(memory)),
            };
            if wanted.covers <= wanted.before.covers {
                let why = "a checkpoint covers more than the one before it";
                return Err(Fault::Protocol(why.to_owned()));
            }
            if memory.noted.as_ref().is_some_and(|noted| !noted.is_within(wanted)) {
                return Err(not_newest(memory));
            }
            let highest = memory.highest.max(wanted.before.number);
            let number = highest.checked_add(1).ok_or_else(|| Fault::State(TOO_HIGH.to_owned()))?;
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
                stored: if wanted.stored { wanted.covers } else { memory.stored },
                followed: std::mem::take(&mut memory.followed),
                noted: None,
                signer: memory.signer.take(),
                is_new: false,
            };
            Ok((signed, adopted))
        })?;
        self.remember_in(token);
        // What root said of the time before is over.
        if self.state.read_order(ACCEPT).is_ok_and(|order| order.is_some_and(|it| !it.is_empty())) {
            self.remove_order();
        }
        Ok(Reply::Checkpoint { checkpoint, adopted })
    }

    /// A new signing key was made: what others signed is of no account.
    pub fn start_again(&self, token: &dyn Token) -> Result<(), Fault> {
        self.kept.change(|memory| {
            *memory = Remembered { is_new: true, ..Remembered::default() };
            Ok::<_, Fault>(())
        })?;
        match token.remember(None) {
            Ok(()) => *self.token_memory() = TokenMemory::Empty,
            Err(error) => *self.token_memory() = TokenMemory::Fails(error.to_string()),
        }
        Ok(())
    }

    /// The checks of `doctor`.
    pub fn checks(&self) -> Vec<Check> {
        let memory = self.kept.get();
        let newest = match &memory.newest {
            Some(known) => format!("checkpoint {}, line {}", known.mark.number, known.mark.covers),
            None => "no checkpoint yet".to_owned(),
        };
        let mut checks = vec![check("custody's memory", Verdict::Ok, newest, "")];
        if let Some(why) = self.state.trouble() {
            let remedy =
                "room on the file system of [custody] state_directory, and its permissions";
            checks.push(check("custody's state", Verdict::Fail, why, remedy));
        }
        if self.was_behind.load(Ordering::Relaxed) {
            let found =
                "it was changed, or older than the token remembers: lost, or put back".to_owned();
            let remedy = "the disk of [custody] state_directory; see the journal of custody";
            checks.push(check("custody's state", Verdict::Warn, found, remedy));
        }
        let (verdict, found, remedy) = match &*self.token_memory() {
            TokenMemory::NotSeen => return checks,
            TokenMemory::Empty => (Verdict::Ok, "nothing yet".to_owned(), ""),
            TokenMemory::Holds(known) => {
                (Verdict::Ok, format!("checkpoint {}", known.mark.number), "")
            }
            TokenMemory::Behind(known, why) => (
                Verdict::Fail,
                format!(
                    "it holds checkpoint {} and takes no newer one ({why}); nothing is signed until it does",
                    known.mark.number
                ),
                "room in the token for a data object, and write access of the user",
            ),
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

impl Accept {
    fn is_for(&self, trail: &str, newest: Mark) -> bool {
        self.trail == trail && self.newest == newest
    }
}

impl Known {
    fn is_at(&self, trail: &str, mark: Mark) -> bool {
        self.trail == trail && self.mark == mark
    }
}

impl Remembered {
    /// This is the newest from here on, with whatever store is there, in the place of what was remembered.
    fn take_for_newest(&mut self, trail: &str, newest: Mark) {
        let noted = self.noted.take();
        self.replaced = self.newest.as_ref().map(|known| {
            let noted = noted.map(|Noted { covers, head }| Mark { covers, head, ..known.mark });
            Replaced { trail: known.trail.clone(), mark: noted.unwrap_or(known.mark) }
        });
        self.newest = Some(Known { trail: trail.to_owned(), mark: newest, signed: None });
        self.stored = 0;
    }

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

fn begun(memory: &Remembered) -> Reply {
    let Remembered { replaced, ordered, stored, .. } = memory.clone();
    Reply::Begun(Begun { replaced, ordered, stored })
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

fn check(name: &str, verdict: Verdict, found: String, remedy: &str) -> Check {
    Check { name: name.to_owned(), verdict, found, remedy: remedy.to_owned() }
}
