//! The binary: reads the command line and hands over.

use std::process::ExitCode;

use strongroom::cli::{self, Backup, Config, House, Policy, Work};
use strongroom::daemon;
use strongroom::secret::WipingHeap;
use strongroom::token::ckr;

/// Buffers of the libraries that speak HTTP and JSON hold secrets for a moment, too.
#[global_allocator]
static HEAP: WipingHeap = WipingHeap;

fn main() -> ExitCode {
    let (global, work) = cli::parse().work();
    match work {
        Work::Recovery(work) => daemon::told(daemon::recover(&work)),
        Work::Errand(errand) => cli::run(&global, errand),
        Work::House(House::Doctor(doctor)) if doctor.pkcs11_return_values => {
            daemon::told(Ok((ckr::in_words(), true)))
        }
        Work::House(House::Doctor(doctor)) if doctor.config.is_none() => cli::doctor(&global),
        Work::House(House::Backup(Backup::Create(create))) => {
            let created = cli::create_backup(&global, &create);
            if created == ExitCode::SUCCESS { daemon::verify_created(&create) } else { created }
        }
        Work::House(house) => keep(house),
    }
}

/// What the floor of the daemon does itself.
fn keep(house: House) -> ExitCode {
    let sound = |result: Result<String, _>| daemon::told(result.map(|text| (text, true)));
    let ended = |result: Result<(), _>| daemon::told(result.map(|()| (String::new(), true)));
    match house {
        House::Serve(serve) => ended(daemon::serve(&serve)),
        House::Custody(custody) => ended(daemon::custody(&custody)),
        House::Doctor(doctor) => {
            let path = doctor.config.unwrap_or_default();
            daemon::told(daemon::doctor(&path))
        }
        House::Backup(Backup::Create(create)) => daemon::verify_created(&create),
        House::Backup(Backup::Verify(verify)) => daemon::told(daemon::verify_backup(&verify)),
        House::Backup(Backup::Restore(restore)) => daemon::told(daemon::restore_backup(&restore)),
        House::Policy(Policy::Check(from)) => sound(daemon::check_policy(&from)),
        House::Policy(Policy::Explain(asked)) => daemon::told(daemon::explain(&asked)),
        House::Config(Config::Check { config }) => sound(daemon::check_config(&config)),
        House::Config(Config::Show { config }) => sound(daemon::show_config(config.as_deref())),
    }
}
