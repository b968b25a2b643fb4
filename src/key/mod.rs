//! Knows what a key is and may do: names, algorithms, versions, SP 800-57 states, public forms.

mod algorithm;
mod name;

pub use algorithm::{Algorithm, Mgf1Hash};
pub use name::{Name, NameError};
