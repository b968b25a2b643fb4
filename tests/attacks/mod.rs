//! Attacks on the promises of `docs/security.md`: one file for each finding, run as the user whom the
//! attacker would be.

mod key_on_the_stack;
mod odd_ciphertexts;
