//! Judges: who may do what, decided by Cedar over the files of the policy directory.
//!
//! A question is a caller, an action, a resource and what is known of it ([`Facts`]). The caller's roles come from the
//! configuration ([`RoleBindings`]); what the policies can speak of stands in [`SCHEMA`]. Nothing matches =
//! no; `forbid` wins; a policy that fails counts as no.

mod action;
mod decisions;
mod explain;
mod facts;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod gate;
mod load;
mod permit;
mod roles;
mod wide;

pub use action::{Action, ActionError, Also, On, Resource, ResourceError, When};
pub use explain::{Asked, Deciding, Explanation, Further};
pub use facts::Facts;
pub use gate::{Policy, Refusal};
pub use load::{Finding, PolicyError, SCHEMA, Settings};
pub use permit::{Denied, Permit};
pub use roles::{Binding, NameOrId, RoleBindings, RoleError};
