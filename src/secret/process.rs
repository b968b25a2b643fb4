//! Shuts the process against other eyes: no core file, no debugger of the same user.

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The process could not be shut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HardenError {
    #[error("{step} failed: {errno}")]
    Kernel { step: &'static str, errno: Errno },
    #[error("{0} did not take effect")]
    NoEffect(&'static str),
}

/// Makes the process undumpable (which also keeps tracers of the same user away, and
/// `/proc/PID/mem`) and sets the size of core files to zero, for good; reads both back.
///
/// The kernel makes a process dumpable again when it changes its user or executes a program, so this
/// comes after privileges are dropped.
pub fn harden_process() -> Result<(), HardenError> {
    let failed = |step| move |errno| HardenError::Kernel { step, errno };
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(failed("setrlimit(RLIMIT_CORE)"))?;
    prctl::set_dumpable(false).map_err(failed("prctl(PR_SET_DUMPABLE)"))?;
    if getrlimit(Resource::RLIMIT_CORE).map_err(failed("getrlimit(RLIMIT_CORE)"))? != (0, 0) {
        return Err(HardenError::NoEffect("RLIMIT_CORE = 0"));
    }
    if prctl::get_dumpable().map_err(failed("prctl(PR_GET_DUMPABLE)"))? {
        return Err(HardenError::NoEffect("PR_SET_DUMPABLE = 0"));
    }
    Ok(())
}
