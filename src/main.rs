//! The binary: reads the command line and hands over.

use std::process::ExitCode;

use strongroom::cli::{self, Backup, Config, Global, House, Policy, Work};
use strongroom::daemon;
use strongroom::secret::{self, WipingHeap};

/// Buffers of the libraries that speak HTTP and JSON hold secrets for a moment, too.
#[global_allocator]
static HEAP: WipingHeap = WipingHeap;

fn main() -> ExitCode {
    // Before anything else: what is split off later is shut, too, and no process of the same user has it from here
    // on. Between execve(2) and this the kernel keeps it shut where the user may not read the binary.
    if let Err(error) = secret::harden_process() {
        eprintln!("error: {error}; run it where a process may set its own limits");
        return ExitCode::FAILURE;
    }
    let (global, work) = cli::parse().work();
    match work {
        Work::Recovery(work) => daemon::told(&global, daemon::recover(&work)),
        Work::Errand(errand) => cli::run(&global, errand),
        Work::House(House::Doctor(doctor)) if doctor.pkcs11_return_values => {
            daemon::told(&global, Ok(daemon::return_values()))
        }
        Work::House(House::Doctor(doctor)) if doctor.config.is_none() => cli::doctor(&global),
        Work::House(House::Policy(Policy::Explain(asked))) if asked.config.is_none() => {
            cli::explain(&global, &asked)
        }
        Work::House(House::Backup(Backup::Create(create))) => {
            match cli::create_backup(&global, &create) {
                Ok(made) => daemon::verify_created(&global, &create, made),
                Err(ended) => ended,
            }
        }
        Work::House(house) => keep(&global, house),
    }
}

/// What the floor of the daemon does itself.
fn keep(global: &Global, house: House) -> ExitCode {
    let report = match house {
        House::Serve(serve) => return daemon::ended(global, daemon::serve(&serve)),
        House::Custody(custody) => return daemon::ended(global, daemon::custody(&custody)),
        House::Doctor(doctor) => daemon::doctor(&doctor),
        House::Reload(reload) => daemon::reload_daemon(&reload),
        House::AcceptRollback(accept) => daemon::accept_rollback(&accept),
        House::AcceptDestruction(accept) => daemon::accept_destruction(&accept),
        House::Backup(Backup::Create(create)) => daemon::verify_backup(&create.verification()),
        House::Backup(Backup::Verify(verify)) => daemon::verify_backup(&verify),
        House::Backup(Backup::Restore(restore)) => daemon::restore_backup(&restore),
        House::Policy(Policy::Check(from)) => daemon::check_policy(&from),
        House::Policy(Policy::Explain(asked)) => daemon::explain(&asked),
        House::Config(Config::Check { config }) => daemon::check_config(&config),
        House::Config(Config::Show { config }) => daemon::show_config(config.as_deref()),
    };
    daemon::told(global, report)
}
