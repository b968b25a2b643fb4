//! Open files: every connection takes one, and a front without any left could not write its trail.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::http::Limits;

/// Descriptors that the front needs besides one per connection: its own, and those of connections that were turned
/// away and are read from for a moment.
pub const OWN: u64 = 64 + 32;

/// Has this process use as many descriptors as its connections need, if it may. The sandbox does not let
/// it later.
pub fn raise(limits: &Limits) {
    let needed = limits.connections as u64 + OWN;
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(has, may)| match has < needed {
        true => setrlimit(Resource::RLIMIT_NOFILE, needed.min(may), may),
        false => Ok(()),
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}

/// The limits, with no more connections than there are descriptors for.
pub fn fit(limits: &Limits) -> Limits {
    let (has, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((u64::MAX, u64::MAX));
    let fitting = usize::try_from(has.saturating_sub(OWN)).unwrap_or(usize::MAX).max(1);
    if fitting < limits.connections {
        tracing::warn!(
            wanted = limits.connections,
            fitting,
            "[limits] connections is more than the open files that are allowed (LimitNOFILE= of \
             the unit); fewer are served"
        );
    }
    Limits { connections: limits.connections.min(fitting), ..limits.clone() }
}
