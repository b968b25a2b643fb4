//! End to end: the real binary, its real socket, a real SoftHSM token of each test's own.

#[path = "../support/ahead.rs"]
mod ahead;
#[path = "../support/appliance.rs"]
#[allow(dead_code)] // each test binary uses another part of it
mod appliance;
#[path = "../support/intruder.rs"]
mod intruder;
#[path = "../support/key_parts.rs"]
mod key_parts;
#[path = "../support/lesser.rs"]
mod lesser;
#[path = "../support/scan.rs"]
mod scan;
#[path = "../support/shim.rs"]
mod shim;
#[path = "../support/token.rs"]
mod token;

#[path = "../attacks/mod.rs"]
mod attacks;

mod acts;
mod apart;
mod appliance_routes;
mod audit_parts;
mod backup;
mod bad_input;
mod brown_out;
mod callers;
mod checks;
mod clients;
mod config_check;
mod crash_loop;
mod custody_verbs;
mod daemon;
mod damaged_logs;
mod doctor_offline;
mod documents;
mod dry_runs;
mod edited_appliance;
mod edited_store;
mod explained;
mod files_people_have;
mod fixtures;
mod hostile;
mod http_clients;
mod imports;
mod inherited;
mod init;
mod json_errors;
mod key_states;
mod keys;
mod limits;
mod lock;
mod main_job;
mod memory;
mod misplaced;
mod module_faults;
mod neighbours;
mod next_start;
mod older_records;
mod outages;
mod passed_over;
mod passes;
mod preconditions;
mod process;
mod programs;
mod promises;
mod raw_store;
mod recovery;
mod reseal;
mod restored;
mod rolled_back;
mod rotation;
mod sandbox;
mod sealing;
mod secrets;
mod socket_place;
mod told;
mod trail_files;
mod unread_log;
mod who_may;
mod wycheproof;
