//! Attacks on the promises of `docs/security.md`: one file for each finding, run as the user whom the
//! attacker would be.

mod backup_as_reader;
mod batch_versions;
mod destroyed_masters;
mod hidden_names;
mod key_on_the_stack;
mod loose_files;
mod lying_front;
mod neighbours_secrets;
mod odd_ciphertexts;
mod pin_guessing;
mod planted_links;
mod restore_plan;
mod silent_front;
mod terminal_escapes;
mod unbounded_replies;
mod undercut_waiting;
