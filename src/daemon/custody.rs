//! The custody process: configuration, logs, socket, signals; then `custody` serves.

use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;

use nix::sys::signal::{SigSet, Signal};
use sd_notify::NotifyState;

use super::config::Config;
use super::footprint::Footprint;
use super::logging::{self, Target};
use super::notify::{Manager, Notifier};
use super::offline::must_be_own;
use super::start::passed_descriptors;
use super::{DaemonError, process_state, threads};
use crate::audit::OnBreak;
use crate::cli::Custody;
use crate::custody::{self as boundary, Probe, Ready, Surroundings, softhsm_configuration};
use crate::{sandbox, token};

/// Runs custody until it is told to end; it ends from within, so it only returns with an error.
pub fn custody(arguments: &Custody) -> Result<(), DaemonError> {
    let keep: Vec<_> = arguments.listen_fd.into_iter().chain(passed_descriptors()).collect();
    let inherited = process_state::reset(&keep)?;
    threads::check()?;
    let Config { token: settings, mut custody, sandbox, log, audit, .. } =
        Config::load(&arguments.config)?.config;
    token::refuse_loose_module(&settings.module)?;
    let named = |variable| std::env::var_os(variable).map(PathBuf::from);
    let mut around = Surroundings {
        credentials: named("CREDENTIALS_DIRECTORY"),
        state: named("STATE_DIRECTORY"),
        softhsm: softhsm_configuration(),
        accepts_history: audit.on_break == OnBreak::Record,
        journal: false,
    };
    // While there is one thread, and no PIN and no key that it could inherit.
    let probe = Probe::split_off(&settings, &sandbox, || {
        boundary::needs(&custody.sandbox, &settings, &around)
    })?;
    let logs = logging::start(&log)?;
    around.journal = logs.target() == Target::Journal;
    let manager = Manager::connect();
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    // Every thread that starts later inherits this; one of them waits for the signals.
    signals
        .thread_block()
        .map_err(|errno| DaemonError::Io { during: "blocking signals", cause: errno.into() })?;
    if let Some(path) = &arguments.listen {
        custody.socket.clone_from(path);
    }
    let passed = match arguments.listen_fd {
        Some(number) => Some(take_descriptor(number)),
        None => passed_socket(),
    };
    if let (None, Some(directory)) = (&passed, custody.socket.parent()) {
        must_be_own(directory)?;
    }
    let footprint = Footprint::of_this_program();
    let front = arguments.front_pid;
    let ready = Ready::start(custody, settings, &sandbox, &around, (passed, front), probe)?;
    logs.write();
    inherited.report();
    let shut_in = sandbox::entered().map(tracing::field::display);
    tracing::debug!(arena = %ready.arena(), sandbox = shut_in, "custody is ready");
    let notifier = Notifier::start(manager);
    notifier.send(NotifyState::Ready);
    let stop = move || {
        let _ = signals.wait();
    };
    let at_the_first_beat = std::sync::Once::new();
    let beat = move || {
        at_the_first_beat.call_once(|| footprint.let_go());
        notifier.send(NotifyState::Watchdog);
    };
    ready.serve(stop, beat, logging::flush)?;
    Ok(())
}

/// The listening socket that systemd handed in, if it did.
fn passed_socket() -> Option<OwnedFd> {
    sd_notify::listen_fds().ok()?.next().map(take_descriptor)
}

#[allow(unsafe_code)] // a number becomes an owner
fn take_descriptor(number: i32) -> OwnedFd {
    // SAFETY: the supervisor, or whoever typed --listen-fd, handed the descriptor to this process, and
    // nothing else in it uses that number.
    unsafe { OwnedFd::from_raw_fd(number) }
}
