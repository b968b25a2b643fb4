//! Knows what a key is and may do: names, algorithms, versions, SP 800-57 states, public forms.

mod algorithm;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod jwk;
mod labels;
mod name;
mod owner;
pub mod pem;
mod public;
mod state;
mod usage;
mod version;
mod versions;

pub use algorithm::{Algorithm, Mgf1Hash};
pub use jwk::{Jwk, JwkError};
pub use labels::{Labels, LabelsError};
pub use name::{Name, NameError};
pub use owner::{Owner, OwnerError};
pub use public::{EncryptError, PublicKey, PublicKeyError};
pub use state::{State, Transition, TransitionError, WaitingPeriod, WaitingPeriodError};
pub use usage::{ForRecovery, MayProcess, MayProtect, Pick, UseError};
pub use version::{Origin, VersionMeta};
pub use versions::{KeyMeta, MalformedKey, RotateError};
