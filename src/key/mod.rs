//! Knows what a key is and may do: names, algorithms, versions, SP 800-57 states, public forms.

mod algorithm;
mod labels;
mod name;
mod state;
mod usage;
mod versions;

pub use algorithm::{Algorithm, Mgf1Hash};
pub use labels::{Labels, LabelsError};
pub use name::{Name, NameError};
pub use state::{
    State, Transition, TransitionError, VersionMeta, WaitingPeriod, WaitingPeriodError,
};
pub use usage::{ForRecovery, MayProcess, MayProtect, Pick, UseError};
pub use versions::{KeyMeta, MalformedKey, RotateError};
