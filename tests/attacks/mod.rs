//! Attacks on the promises of `docs/security.md`: one file for each finding, run as the user whom the
//! attacker would be.

mod odd_ciphertexts;
