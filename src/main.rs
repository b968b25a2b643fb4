//! The binary: reads the command line and hands over.

use std::process::ExitCode;

use strongroom::cli::{self, Failure, House, Work};

fn main() -> ExitCode {
    let (global, work) = cli::parse().work();
    match work {
        Work::Errand(errand) => cli::run(&global, errand),
        Work::House(House::Doctor(doctor)) if doctor.config.is_none() => cli::doctor(&global),
        Work::House(_) => cli::finish(
            &global,
            Err(Failure::failed("this build has no daemon", "use a full build")),
        ),
    }
}
