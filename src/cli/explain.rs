//! `policy explain` by the daemon: the decision as it would make it now.

use serde_json::{Map, Value, json};

use super::problem::Failure;
use super::{Explain, Session};
use crate::policy::Explanation;

/// Asks the daemon; a no makes the exit code 1.
pub(super) fn explain(session: &Session, asked: &Explain) -> Result<(), Failure> {
    let mut body = json!({
        "user": asked.user, "action": asked.action, "resource": asked.resource.path(),
    });
    if let Some(key) = &asked.key {
        body["key"] = json!(key);
    }
    if let Some(owner) = &asked.owner {
        body["owner"] = json!(super::owner::owner(owner).map_err(|why| {
            Failure::wrong_use(format!("--owner: {why}"), "name a user, or an id like unix:1000")
        })?);
    }
    if !asked.labels.is_empty() {
        let labels = asked.labels.iter().cloned().map(|(name, value)| (name, value.into()));
        body["labels"] = Value::Object(labels.collect::<Map<_, _>>());
    }
    let reply = session.client.post("/v1/policy/explain", &body)?;
    let value = reply.value()?;
    let permitted = value.get("permitted") == Some(&Value::Bool(true));
    session.out.reply(&reply, |value| {
        let explanation = serde_json::from_value::<Explanation>(value.clone());
        explanation.map_or_else(|_| super::output::facts(value), |all| all.to_string())
    })?;
    if permitted { Ok(()) } else { Err(Failure::Told) }
}
