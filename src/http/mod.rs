//! Speaks HTTP: the routes of `/v1`, the Unix socket they are served on, problem documents.
//!
//! Limits come before parsing, parsing before judging; what is done is `service`'s. `problem` is the
//! only file that knows status codes of errors.

mod backup;
mod body;
mod bucket;
mod door;
mod framing;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod json_error;
mod linger;
mod listen;
mod meaning;
mod metrics;
mod openapi;
mod perform;
mod presence;
mod problem;
mod query;
mod reply;
mod routes;
mod serve;
mod shape;
mod share;
mod turn;
mod wire;

pub use listen::{ListenError, Listener, Making, Settings as ListenSettings, bind};
pub use serve::{Limits, Server};
