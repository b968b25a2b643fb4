//! Has custody take an audit log for the newest that is not, or destroy a master key without its wait: by an order
//! of root's beside its state, which the front cannot write.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde::Serialize;

use super::DaemonError;
use super::config::Config;
use super::offline::Users;
use crate::cli::{AcceptDestruction, AcceptRollback, Report};
use crate::custody::history::{ACCEPT, Accept, LAST_BELIEVED};
use crate::custody::state::{StateError, leave_order, prepare_order};
use crate::custody::{Destroy, Mark};

/// What was ordered, for programs.
#[derive(Serialize)]
struct Ordered<'a> {
    trail: &'a str,
    newest: Mark,
}

/// `strongroom accept-rollback`.
pub fn accept_rollback(arguments: &AcceptRollback) -> Result<Report, DaemonError> {
    let config = Config::load(&arguments.config)?.config;
    let (trail, newest) = &arguments.newest;
    if newest.number > LAST_BELIEVED {
        return Err(DaemonError::Said {
            what: format!("no audit log has {} checkpoints: nothing was ordered", newest.number),
            next: "what `strongroom status` writes is not to be trusted here: look at the front's machine, and \
                   take the newest checkpoint from the files of the audit log (`strongroom audit verify`)",
        });
    }
    order(&config.custody.state_directory, trail, *newest).map_err(|error| DaemonError::Said {
        what: error.to_string(),
        next: "run it as root, with the configuration that custody runs with",
    })?;
    let text = format!(
        "custody takes audit log {trail} with checkpoint {} over line {} for the newest\n\
         next: `strongroom status`; a daemon that runs goes on by itself\n",
        newest.number, newest.covers
    );
    Ok(Report::new(text, &Ordered { trail, newest: *newest }, true))
}

/// `strongroom accept-destruction`.
pub fn accept_destruction(arguments: &AcceptDestruction) -> Result<Report, DaemonError> {
    let config = Config::load(&arguments.config)?.config;
    let (generation, by) = (arguments.generation, nix::unistd::getuid().as_raw());
    let order = Destroy { generation, at: jiff::Timestamp::now(), by };
    let text = serde_json::to_vec(&order).unwrap_or_default();
    leave_order(&config.custody.state_directory, &Destroy::name(generation), &text).map_err(
        |error| DaemonError::Said {
            what: error.to_string(),
            next: "run it as root, with the configuration that custody runs with",
        },
    )?;
    let text = format!(
        "custody may destroy master key {generation}, once, within a day\n\
         next: `strongroom master retire {generation} --pin-file -`, as an operator\n"
    );
    Ok(Report::new(text, &order, true))
}

/// Leaves the order.
fn order(state: &Path, trail: &str, newest: Mark) -> Result<(), StateError> {
    leave_order(state, ACCEPT, &text(trail, newest, true))
}

fn text(trail: &str, newest: Mark, store: bool) -> Vec<u8> {
    let (at, by) = (format!("{:.0}", jiff::Timestamp::now()), nix::unistd::getuid().as_raw());
    let order = Accept { trail: trail.to_owned(), newest, store, at, by };
    serde_json::to_vec(&order).unwrap_or_default()
}

/// An order whose file was opened by root, for a restore or a reseal that goes on as another user. The restored
/// trail is older than custody or its token remember, where they knew another one; that of a reseal was signed
/// by another token; and that is what is wanted.
pub struct Prepared(Result<File, StateError>);

impl Prepared {
    /// Opens it for custody's user.
    pub fn at(state: &Path, users: &Users) -> Self {
        Self(prepare_order(state, ACCEPT, (users.custody.uid, users.custody.gid)))
    }

    /// Says which checkpoint is the newest, and whether the store is taken as it is; `done` is what was done.
    pub fn give(
        self,
        (trail, newest): (&str, Mark),
        store: bool,
        done: &str,
    ) -> Result<(), DaemonError> {
        let given = self.0.map_err(|error| error.to_string()).and_then(|mut file| {
            let written =
                file.write_all(&text(trail, newest, store)).and_then(|()| file.sync_all());
            written.map_err(|error| error.to_string())
        });
        given.map_err(|error| DaemonError::Said {
            what: format!("{done}, and custody could not be told of it: {error}"),
            next: "start the daemon; `strongroom status` writes out `strongroom accept-rollback`",
        })
    }
}
