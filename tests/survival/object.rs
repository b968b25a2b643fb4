//! What a witness knows of one key or secret: every state that it was brought to, and when.

use serde_json::Value;

use crate::appliance::Reply;

/// How a key or a secret is, as far as a caller can see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Absent,
    Secret { value: String },
    Key { versions: usize, fate: Fate },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Stays,
    /// For its destruction, with every version.
    Waits,
    Destroyed,
}

/// A point in the order of events; what it counts is the business of whoever runs the load.
pub type Moment = u64;

/// A change that was asked for.
#[derive(Debug, Clone)]
pub struct Step {
    pub sent: Moment,
    /// When the caller learned that it is done; never where the answer was lost or was not that.
    pub acknowledged: Option<Moment>,
    pub after: State,
}

/// All that was asked of one object.
#[derive(Debug, Clone)]
pub struct Object {
    history: Vec<Step>,
}

impl Object {
    /// Not there yet.
    pub fn absent() -> Self {
        Self::known(State::Absent)
    }

    /// Seen to be so.
    pub fn known(state: State) -> Self {
        Self { history: vec![Step { sent: 0, acknowledged: Some(0), after: state }] }
    }

    pub fn push(&mut self, step: Step) {
        self.history.push(step);
    }

    /// How it is, unless an answer is open.
    pub fn settled(&self) -> Option<&State> {
        let last = self.history.last().expect("it has a first state");
        last.acknowledged.is_some().then_some(&last.after)
    }

    /// How it may be in what survived of the moment `cut`: as the last change left it that was
    /// acknowledged by then, or as any left it that was asked for after that one and by then.
    pub fn allowed(&self, cut: Moment) -> Vec<&State> {
        let by_then = |step: &Step| step.acknowledged.is_some_and(|at| at <= cut);
        let first = self.history.iter().rposition(by_then).unwrap_or(0);
        let open = self.history.iter().skip(first).enumerate();
        open.filter(|(index, step)| *index == 0 || step.sent <= cut)
            .map(|(_, step)| &step.after)
            .collect()
    }
}

impl State {
    /// The state that a reply about a key shows; a panic where it is half of one and half of another.
    pub fn of_key(name: &str, reply: &Reply) -> Self {
        if reply.status == 404 {
            return State::Absent;
        }
        let view = reply.expect_status(200).json();
        let versions = view["versions"].as_array().expect("versions").clone();
        let fates: Vec<Fate> = versions.iter().map(fate).collect();
        assert!(fates.windows(2).all(|two| two[0] == two[1]), "{name} is half-done: {view}");
        State::Key { versions: versions.len(), fate: fates[0] }
    }
}

fn fate(version: &Value) -> Fate {
    match (version["state"].as_str(), version.get("destroy_at")) {
        (Some("destroyed"), _) => Fate::Destroyed,
        (Some("active"), Some(_)) => Fate::Waits,
        (Some("active"), None) => Fate::Stays,
        _ => panic!("a state that nobody brought it to: {version}"),
    }
}
