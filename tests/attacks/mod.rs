//! Attacks on the promises of `docs/security.md`: one file for each finding, run as the user whom the
//! attacker would be.

mod backup_as_reader;
mod batch_versions;
mod dead_helpers;
mod destroyed_masters;
mod edited_memory;
mod endless_backup;
mod endless_rotations;
mod foreign_signer;
mod forged_history;
mod front_files;
mod full_log;
mod heavy_batches;
mod hidden_names;
mod hidden_refusals;
mod key_on_the_stack;
mod loose_files;
mod lying_front;
mod memory_at_rewrap;
#[path = "../survival/mounts.rs"]
#[allow(dead_code)] // these tests use a part of it
mod mounts;
mod neighbours_secrets;
mod numbers_run_out;
mod odd_ciphertexts;
mod patched_state;
mod pin_guessing;
mod planted_links;
mod put_back_records;
mod reaching_out;
mod restore_plan;
mod rolled_back_together;
mod same_lines;
mod silent_front;
mod stolen_connection;
mod taken_away;
mod terminal_escapes;
mod traced_processes;
mod unbounded_replies;
mod undercut_waiting;
mod undone_lock;
mod unnoted_destruction;
mod work_of_the_gone;
