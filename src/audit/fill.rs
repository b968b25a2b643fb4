//! How what is told becomes a line: each member of the line that applies, and the texts it borrows.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::entry::{Details, Event, EventNote, Intent, Outcome, Subject, Verdict};
use super::line::{Hash, Hex, Kind, Line, plain};
use crate::custody::Checkpoint;
use crate::key::{Algorithm, Mgf1Hash, Name};
use crate::policy::Action;

type RequestText = [u8; uuid::fmt::Hyphenated::LENGTH];

/// Texts that a line borrows while it is encoded.
pub(super) struct Texts {
    request: RequestText,
    hex: Option<Hex>,
    base64: String,
    previous: String,
}

impl Texts {
    pub fn new() -> Self {
        Self {
            request: [0; uuid::fmt::Hyphenated::LENGTH],
            hex: None,
            base64: String::new(),
            previous: String::new(),
        }
    }

    /// The texts of a checkpoint: hex of the head, base64 of the signature, and the one before it.
    pub fn checkpoint(&mut self, checkpoint: &Checkpoint) -> (&str, &str, &str) {
        self.base64 = STANDARD.encode(checkpoint.signature_bytes().unwrap_or([0; 64]));
        self.previous = checkpoint.before.to_string();
        let head = Hash(checkpoint.mark.head).hex();
        (self.hex.insert(head).as_str(), &self.base64, &self.previous)
    }
}

impl Subject {
    fn fill<'a>(&'a self, line: Line<'a>, request: &'a mut RequestText) -> Line<'a> {
        Line {
            request: Some(self.request.as_hyphenated().encode_lower(request)),
            caller: Some(plain(&self.caller)),
            uid: self.peer.map(|(uid, _, _)| uid),
            gid: self.peer.map(|(_, gid, _)| gid),
            pid: self.peer.map(|(_, _, pid)| pid),
            action: Some(plain(&self.action)),
            resource: Some(plain(&self.resource)),
            ..line
        }
    }
}

impl Details {
    fn fill<'a>(&'a self, line: Line<'a>, hex: &'a mut Option<Hex>) -> Line<'a> {
        *hex = self.digest.map(|digest| Hash(digest).hex());
        Line {
            digest: hex.as_ref().map(Hex::as_str),
            key: self.key.as_ref().map(Name::as_str),
            version: self.version,
            generation: self.generation,
            algorithm: self.algorithm.map(Algorithm::as_str),
            revision: self.revision,
            input_bytes: self.input_bytes,
            output_bytes: self.output_bytes,
            items: self.items,
            failed_items: self.failed_items,
            versions: self.versions.as_ref().map(|versions| versions.as_str()),
            owner: self.owner.as_ref().map(|owner| plain(owner.as_str())),
            recovery: self.recovery,
            without_token: self.without_token,
            reason: self.reason.map(|reason| plain(reason.0)),
            also: self.also.as_ref().map(|also| plain(also.as_str())),
            lacks: self.lacks.map(Action::as_str),
            with_pin: self.with_pin,
            verify: self.verify,
            days: self.days,
            destroy_at: self.destroy_at.as_ref().map(|at| plain(at.as_str())),
            outage_seconds: self.outage_seconds,
            labels: self.labels.as_ref().map(|labels| plain(labels.as_str())),
            mgf1_hash: self.mgf1_hash.map(Mgf1Hash::as_str),
            changes: self.changes,
            pass: self.pass,
            ..line
        }
    }
}

impl Intent {
    pub(super) fn fill<'a>(&'a self, line: Line<'a>, texts: &'a mut Texts) -> Line<'a> {
        let line = Line { kind: Kind::Intent, ..line };
        let Texts { request, hex, .. } = texts;
        self.details.fill(self.subject.fill(line, request), hex)
    }
}

impl Outcome {
    pub(super) fn fill<'a>(
        &'a self,
        of: Option<u64>,
        subject: &'a Subject,
        line: Line<'a>,
        texts: &'a mut Texts,
    ) -> Line<'a> {
        let (result, code) = match self.verdict {
            Verdict::Done => ("done", None),
            Verdict::Failed(code) => ("failed", Some(code)),
            Verdict::Refused(code) => ("refused", Some(code)),
            Verdict::Interrupted(code) => ("interrupted", Some(code)),
        };
        let line = Line {
            kind: Kind::Outcome,
            of,
            result: Some(result),
            code: code.map(|code| plain(code.0)),
            ..line
        };
        let Texts { request, hex, .. } = texts;
        self.details.fill(subject.fill(line, request), hex)
    }
}

impl EventNote {
    pub(super) fn fill<'a>(&'a self, line: Line<'a>, texts: &'a mut Texts) -> Line<'a> {
        texts.hex = self.digest.map(|digest| Hash(digest).hex());
        Line {
            kind: Kind::Event,
            caller: self.refused.as_ref().map(|(caller, _)| plain(caller)),
            count: self.refused.as_ref().map(|(_, count)| *count).or(self.count),
            event: Some(self.event.as_str()),
            key: self.key.as_ref().map(Name::as_str),
            program: (self.event == Event::Start).then_some(env!("CARGO_PKG_VERSION")),
            digest: texts.hex.as_ref().map(Hex::as_str),
            generation: self.generation,
            items: self.items,
            failed_items: self.failed_items,
            open_from: self.open_from,
            changes: self.changes,
            line: self.line,
            bytes: self.bytes,
            at: self.at.as_deref().map(plain),
            store_key: self.store_key,
            code: self.code.map(|code| plain(code.0)),
            ..line
        }
    }
}
