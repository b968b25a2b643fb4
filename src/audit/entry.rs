//! What is told to the trail: intents, outcomes, refusals and events, all of typed fields.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::Write;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use uuid::Uuid;

use crate::identity::Caller;
use crate::key::{Algorithm, Labels, Mgf1Hash, Name, Owner};
use crate::policy::{Action, Resource};

use super::line::{Hash, Head, Line};

/// Somebody is about to do something: who, what, on what.
#[derive(Debug, Clone)]
pub struct Intent {
    pub(super) subject: Subject,
    pub details: Details,
    /// It closes something: its line may use the room in reserve.
    pub(super) restricts: bool,
}

impl Intent {
    pub fn new(request: Uuid, caller: &Caller, action: Action, resource: &Resource) -> Self {
        Self {
            subject: Subject::new(request, caller, action, resource),
            details: Details::default(),
            restricts: action.restricts(),
        }
    }

    /// Adds what is known before the deed.
    pub fn with(mut self, details: Details) -> Self {
        self.details = details;
        self
    }
}

/// Who, what and on what, as both lines of a deed say it.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    pub request: Uuid,
    pub caller: String,
    pub peer: Option<(u32, u32, i32)>,
    pub action: Cow<'static, str>,
    pub resource: String,
}

impl Subject {
    /// Who and what a line is about, read back after a crash.
    pub fn of_line(line: &Line<'_>) -> Self {
        let text = |text: Option<&str>| text.unwrap_or("unknown").to_owned();
        Self {
            request: line.request.and_then(|text| text.parse().ok()).unwrap_or_default(),
            caller: text(line.caller),
            peer: line.uid.zip(line.gid).zip(line.pid).map(|((uid, gid), pid)| (uid, gid, pid)),
            action: text(line.action).into(),
            resource: text(line.resource),
        }
    }

    fn new(request: Uuid, caller: &Caller, action: Action, resource: &Resource) -> Self {
        let peer = match caller {
            Caller::Unix(peer) => Some((peer.uid, peer.gid, peer.pid)),
            Caller::System(_) => None,
        };
        let action = action.as_str().into();
        Self { request, caller: caller.name(), peer, action, resource: resource.path() }
    }
}

/// Facts about a deed; what does not apply is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    /// The key that a secret is encrypted for.
    pub key: Option<Name>,
    /// The version of the key.
    pub version: Option<u32>,
    /// The master key's generation.
    pub generation: Option<u32>,
    pub algorithm: Option<Algorithm>,
    /// The revision of the record in the store.
    pub revision: Option<u64>,
    pub input_bytes: Option<u64>,
    pub output_bytes: Option<u64>,
    /// How many items a batch had, and how many of them failed.
    pub items: Option<u32>,
    pub failed_items: Option<u32>,
    /// The versions of the key that the items of a batch named, or were worked on with.
    pub versions: Option<Box<Versions>>,
    /// Who owns it from now on.
    pub owner: Option<Box<Owner>>,
    /// Whether a version was used that only a recovery may use; `None` where not.
    pub recovery: Option<bool>,
    /// Whether an opened key served while the token was away; `None` where not.
    pub without_token: Option<bool>,
    /// Why, as the caller said it.
    pub reason: Option<Code>,
    /// Further permissions that were asked for and granted on the way, on this resource or the key of a secret.
    pub also: Option<Box<Words>>,
    /// The further permission that was refused.
    pub lacks: Option<Action>,
    /// Whether the token's PIN was given; `None` where not.
    pub with_pin: Option<bool>,
    /// Whether a secret is opened before it is stored; `None` where not.
    pub verify: Option<bool>,
    /// Days of a waiting period, as the caller said them.
    pub days: Option<u16>,
    /// When a destruction that waits falls due.
    pub destroy_at: Option<Box<Words>>,
    /// For how many seconds of an outage of the token a key may serve from here on.
    pub outage_seconds: Option<u32>,
    /// What a key is tagged with.
    pub labels: Option<Box<Words>>,
    /// The hash inside MGF1.
    pub mgf1_hash: Option<Mgf1Hash>,
    /// SHA-256 of a public key that it is about.
    pub digest: Option<[u8; 32]>,
    /// How many changes of records the store is known to hold after the deed.
    pub changes: Option<u64>,
    /// The revision of the record of the pass over all keys that it began.
    pub pass: Option<u64>,
}

/// Several facts in one text of plain printable ASCII without quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words(String);

impl Words {
    /// The longest text of labels; of a longer one its SHA-256 stands there.
    const LONGEST: usize = 240;

    /// Each permission once, in the order of their names: `key:decrypt,key:encrypt`. `None` where there are none.
    pub fn of_actions(actions: impl IntoIterator<Item = Action>) -> Option<Box<Self>> {
        let each: BTreeSet<&str> = actions.into_iter().map(Action::as_str).collect();
        let texts: Vec<&str> = each.into_iter().collect();
        (!texts.is_empty()).then(|| Box::new(Self(texts.join(","))))
    }

    /// `env=live,team=shop`, in the order of their names; bytes of values that are not plain are percent-encoded
    /// (RFC 3986 §2.1). `None` where there are none.
    pub fn of_labels(labels: &Labels) -> Option<Box<Self>> {
        let mut text = String::new();
        for (name, value) in labels.iter() {
            let comma = if text.is_empty() { "" } else { "," };
            // Writing to a text does not fail.
            let _ = write!(text, "{comma}{name}={}", utf8_percent_encode(value, PLAIN));
        }
        if text.len() > Self::LONGEST {
            text = format!("sha256:{}", Hash::of_line(text.as_bytes()).hex().as_str());
        }
        (!text.is_empty()).then(|| Box::new(Self(text)))
    }

    /// A time, RFC 3339 in UTC.
    pub fn of_time(at: jiff::Timestamp) -> Box<Self> {
        Box::new(Self(format!("{at:.0}")))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What stands in a value of a label as it is.
const PLAIN: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b':').remove(b'/').remove(b'@');

/// Versions of a key, each once, ascending, as a text: `1,3`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versions(String);

impl Versions {
    /// `None` where there are none.
    pub fn of(versions: impl IntoIterator<Item = u32>) -> Option<Box<Self>> {
        let each: BTreeSet<u32> = versions.into_iter().collect();
        let texts: Vec<String> = each.iter().map(u32::to_string).collect();
        (!texts.is_empty()).then(|| Box::new(Self(texts.join(","))))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A stable word for why something was not done, as the API's errors carry it: `decryption-failed`.
/// It is a literal of the program, never a text from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub &'static str);

/// What became of a deed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Done,
    /// It was tried and did not work.
    Failed(Code),
    /// It was allowed and then could not be begun.
    Refused(Code),
    /// Nobody knows how it ended: the process died, the work was given up, or the store failed in it.
    Interrupted(Code),
}

/// The end of a deed.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub verdict: Verdict,
    pub details: Details,
}

impl Outcome {
    pub fn done() -> Self {
        Self { verdict: Verdict::Done, details: Details::default() }
    }

    pub fn failed(code: Code) -> Self {
        Self { verdict: Verdict::Failed(code), details: Details::default() }
    }

    pub fn interrupted(code: Code) -> Self {
        Self { verdict: Verdict::Interrupted(code), details: Details::default() }
    }

    pub fn refused(code: Code) -> Self {
        Self { verdict: Verdict::Refused(code), details: Details::default() }
    }

    /// Adds what is known after the deed.
    pub fn with(mut self, details: Details) -> Self {
        self.details = details;
        self
    }
}

/// Something that happened to the appliance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Start,
    Stop,
    Initialised,
    Locked,
    Unlocked,
    ConfigLoaded,
    ConfigRefused,
    PolicyLoaded,
    PolicyRefused,
    TokenLost,
    TokenBack,
    /// Another generation of the master key is in use from here on.
    MasterInUse,
    /// Keys were rewrapped under it.
    Rewrapped,
    RotationDone,
    /// Every key is wrapped to the recovery key as it was set, or to none.
    RecoveryWrapped,
    /// A new file of the trail begins with this line.
    Segment,
    /// Bytes at the end that no answer ever rested on were cut off after a crash.
    TailCut,
    /// The trail did not hold what was known of it, and the operator let it go on.
    BreakRecorded,
    /// The store does not hold what a line of the trail tells: it was edited. What it is about is not served.
    StoreEdited,
    /// So many requests of one caller were refused without a line of their own.
    RefusalsLeftOut,
    /// The clock is further on than time that has passed; destructions are held back.
    ClockAhead,
    ClockBehind,
    /// It is right again, or an operator says so.
    ClockAgrees,
    /// Store and trail were put back from a backup, which ends with the line named.
    Restored,
    /// The trail that a restored one was put in the place of went on to the line named.
    LeftBehind,
    /// A key's record does not open, and an operator said that it may be lost with the master key of the
    /// generation, which is destroyed next.
    KeyLeft,
    /// The master key of the generation is gone from the token: of its destruction, which was begun, the end had
    /// no line.
    MasterDestroyed,
    /// Lines behind the newest signature were taken as they stand: a crash left them without one.
    LinesAdopted,
    /// Custody remembered no checkpoint, and took the one of this line for the newest.
    CheckpointAdopted,
    /// Custody's own state was older than the token remembers: it was lost, or put back.
    CustodyStateLost,
    /// An operator accepted this trail, which did not end as custody remembers: with the line named.
    RollbackAccepted,
    /// The store was put under another token with its recovery key, whose fingerprint is the digest: from
    /// here on another key signs. So many keys, and so much that could not be recovered.
    Resealed,
}

impl Event {
    /// The word in the trail: `policy-loaded`.
    pub fn as_str(self) -> &'static str {
        match self {
            Event::Start => "start",
            Event::Stop => "stop",
            Event::Initialised => "initialised",
            Event::Locked => "locked",
            Event::Unlocked => "unlocked",
            Event::ConfigLoaded => "config-loaded",
            Event::ConfigRefused => "config-refused",
            Event::PolicyLoaded => "policy-loaded",
            Event::PolicyRefused => "policy-refused",
            Event::TokenLost => "token-lost",
            Event::TokenBack => "token-back",
            Event::MasterInUse => "master-in-use",
            Event::Rewrapped => "rewrapped",
            Event::RotationDone => "rotation-done",
            Event::RecoveryWrapped => "recovery-wrapped",
            Event::Segment => "segment",
            Event::TailCut => "tail-cut",
            Event::BreakRecorded => "break-recorded",
            Event::StoreEdited => "store-edited",
            Event::RefusalsLeftOut => "refusals-left-out",
            Event::ClockAhead => "clock-ahead",
            Event::ClockBehind => "clock-behind",
            Event::ClockAgrees => "clock-agrees",
            Event::Restored => "restored",
            Event::LeftBehind => "left-behind",
            Event::KeyLeft => "key-left",
            Event::MasterDestroyed => "master-destroyed",
            Event::LinesAdopted => "lines-adopted",
            Event::CheckpointAdopted => "checkpoint-adopted",
            Event::CustodyStateLost => "custody-state-lost",
            Event::RollbackAccepted => "rollback-accepted",
            Event::Resealed => "resealed",
        }
    }
}

/// An event and what goes with it.
#[derive(Debug, Clone)]
pub struct EventNote {
    pub(super) event: Event,
    pub(super) key: Option<Name>,
    /// SHA-256 of what was loaded.
    pub digest: Option<[u8; 32]>,
    pub code: Option<Code>,
    pub generation: Option<u32>,
    /// How many it was done to, and how many it could not be done to.
    pub items: Option<u32>,
    pub failed_items: Option<u32>,
    pub(super) line: Option<u64>,
    pub(super) bytes: Option<u64>,
    pub(super) open_from: Option<u64>,
    pub(super) changes: Option<u64>,
    /// Whose refusals, and how many.
    pub(super) refused: Option<(String, u64)>,
    pub(super) count: Option<u64>,
    pub(super) at: Option<String>,
    pub(super) store_key: Option<u32>,
}

impl EventNote {
    pub fn new(event: Event) -> Self {
        Self {
            event,
            key: None,
            digest: None,
            code: None,
            generation: None,
            items: None,
            failed_items: None,
            line: None,
            bytes: None,
            open_from: None,
            changes: None,
            refused: None,
            count: None,
            at: None,
            store_key: None,
        }
    }

    /// `count` refusals of `caller` have no line of their own.
    pub fn refusals_left_out(caller: &Caller, count: u64) -> Self {
        Self { refused: Some((caller.name(), count)), ..Self::new(Event::RefusalsLeftOut) }
    }

    /// Store and trail were put back from the backup whose manifest has this SHA-256: it ends with line
    /// `head` and shows the moment `at`. What older store keys than `store_key` sealed counts no more.
    pub fn restored(
        head: Head,
        digest: [u8; 32],
        at: jiff::Timestamp,
        store_key: Option<u32>,
    ) -> Self {
        let (line, at) = (Some(head.seq), Some(format!("{at:.6}")));
        Self { line, at, store_key, ..Self::of(Event::Restored, digest) }
    }

    /// The trail that is no longer in its place ended with this line.
    pub fn left_behind(head: Head) -> Self {
        Self { line: Some(head.seq), ..Self::of(Event::LeftBehind, head.hash.0) }
    }

    /// `count` lines from `line` on stand behind the newest signature and are taken as they are.
    pub fn lines_adopted(line: u64, count: u64) -> Self {
        Self { line: Some(line), count: Some(count), ..Self::new(Event::LinesAdopted) }
    }

    /// Something was loaded whose SHA-256 is `digest`.
    pub fn of(event: Event, digest: [u8; 32]) -> Self {
        Self { digest: Some(digest), ..Self::new(event) }
    }

    /// Something that concerns a generation of the master key.
    pub fn about(event: Event, generation: u32) -> Self {
        Self { generation: Some(generation), ..Self::new(event) }
    }

    /// Adds how many it was done to, and how many it could not be done to.
    pub fn counting(self, items: u32, failed_items: u32) -> Self {
        Self { items: Some(items), failed_items: Some(failed_items), ..self }
    }

    /// Adds the key that it is about.
    pub fn with_key(self, key: Name) -> Self {
        Self { key: Some(key), ..self }
    }

    /// Adds a SHA-256: of what it was done with.
    pub fn with_digest(self, digest: [u8; 32]) -> Self {
        Self { digest: Some(digest), ..self }
    }

    pub fn because(event: Event, code: Code) -> Self {
        Self { code: Some(code), ..Self::new(event) }
    }

    /// The same, about what a certain line tells.
    pub fn about_line(self, line: u64) -> Self {
        Self { line: Some(line), ..self }
    }
}
