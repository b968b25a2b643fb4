//! What is done with the private half of the recovery key, without a daemon: the drill, and the way under
//! a new token. Keys are in the clear in the locked arena alone, as in custody.

use std::io::Read;
use std::num::NonZeroUsize;
use std::sync::Arc;

use serde::Serialize;

use super::accept::Prepared;
use super::config::Config;
use super::offline::{Users, become_custody, in_child, pin_of_custody, pin_of_root};
use super::offline_store::open_apart;
use super::unit::take_over_environment;
use super::{DaemonError, io};
use crate::audit::{self, OnBreak};
use crate::cli::{
    Drill, OfflineRecovery, Progress, RecoverySource, Refusal, Report, Reseal, dry_run_text,
};
use crate::custody::{self, Mark};
use crate::records::{Offline, OfflineError, Planned, Resealed};
use crate::sandbox::{self, Needs};
use crate::secret::{self, IoBuffer, SecretBytes, Use, arena};
use crate::store::sled_store::Settings;
use crate::store::{Store, Table};
use crate::token::Token;
use crate::token::pkcs11::Pkcs11Token;

/// The longest text of a private key, in bytes: RSA-4096 has about 3 300 as PEM.
const LONGEST: NonZeroUsize = NonZeroUsize::new(16 * 1024).expect("not zero");

/// Where the PIN of the new token may come from.
const NAME_PIN: &str =
    "put the new token's PIN where [token] pin_file says, or name it with --pin-file";

/// Does it.
pub fn recover(work: &OfflineRecovery) -> Result<Report, DaemonError> {
    match work {
        OfflineRecovery::Drill(drill) => {
            let settings = Settings { path: drill.store.clone(), ..Settings::default() };
            let sandbox = sandbox::Settings::default();
            let (store, process) = open_apart(&settings, &sandbox)?;
            let drilled = drill_store(store, drill, &sandbox);
            process.wait();
            drilled
        }
        OfflineRecovery::Reseal(reseal) => {
            take_over_environment(&reseal.config);
            let mut config = Config::load(&reseal.config)?.config;
            config.use_pin_file(reseal.pin_file.as_deref());
            let users = Users::of(&config)?;
            let trail = in_child(&users.front, || {
                audit::newest_checkpoint(&config.audit.directory).ok().flatten()
            })?;
            // Another token signs from here on, which custody is told of at the end.
            let trail = trail.filter(|_| !reseal.dry.dry_run);
            let order = trail.map(|of| (of, Prepared::at(&config.custody.state_directory, &users)));
            let (store, process) = open_apart(&config.store, &config.sandbox)?;
            let resealed = reseal_all(&config, &users, reseal, (store, order));
            process.wait();
            resealed
        }
    }
}

fn drill_store(
    store: Arc<dyn Store>,
    drill: &Drill,
    sandbox: &sandbox::Settings,
) -> Result<Report, DaemonError> {
    shut_in(&arena::Settings::default())?;
    let private = read_private(&drill.private_key)?;
    sandbox::enter(sandbox, &Needs::default())?;
    drill_all(&Offline::open(store, private.expose())?)
}

/// Puts the store under the token that the configuration names. This process becomes custody's user for
/// that; the store is another's, in a process of its own.
fn reseal_all(
    config: &Config,
    users: &Users,
    reseal: &Reseal,
    (store, order): (Arc<dyn Store>, Option<Order>),
) -> Result<Report, DaemonError> {
    shut_in(&config.custody.arena)?;
    let pin = pin_of_root(config)?;
    let private = read_private(&reseal.private_key)?;
    become_custody(config, &users.custody)?;
    let pin = pin_of_custody(&config.token, pin)
        .map_err(|error| DaemonError::Said { what: error.to_string(), next: NAME_PIN })?;
    let mut offline = Offline::open(store, private.expose())?;
    // Nothing counts the wrong PINs of this command but the token.
    let opened = Pkcs11Token::open_if(&config.token, &pin, |before| {
        custody::may_try_offline(before.count_low)
    });
    let token = opened.map_err(OfflineError::from)?.token;
    let planned = offline.plan(&token, reseal.same_token)?;
    let all = offline.count(Table::Key)?;
    let what = intended(config, &offline, &token, (planned, all))?;
    if reseal.dry.dry_run {
        let changes = [what];
        let text = dry_run_text(&changes);
        let document = serde_json::json!({ "dry_run": true, "would_change": changes });
        return Ok(Report::new(text, &document, true));
    }
    let unconfirmed = |Refusal { what, next, is_wrong_use }| match is_wrong_use {
        true => DaemonError::WrongUse { what, next },
        false => DaemonError::Said { what, next },
    };
    reseal.agree(&what).map_err(unconfirmed)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(io("starting the runtime"))?;
    let mut progress = Progress::new(true);
    let show = |done| progress.show(done, all);
    let adopt = config.audit.on_break == OnBreak::Record;
    let resealed = offline.reseal(&token, jiff::Timestamp::now(), adopt, show);
    let resealed = runtime.block_on(resealed)?;
    progress.finish();
    if let Some(((trail, newest), order)) = order {
        let store = !resealed.reach_opens;
        order.give((&trail, newest), store, "the store lies under the new token")?;
    }
    Ok(told(&resealed))
}

/// The audit log that custody is to take as it is, with its newest checkpoint, and how it is told.
type Order = ((String, Mark), Prepared);

/// What a reseal is about to do, for whoever is to agree.
fn intended(
    config: &Config,
    offline: &Offline,
    token: &dyn Token,
    (planned, keys): (Planned, u64),
) -> Result<String, DaemonError> {
    let info = token.info().map_err(OfflineError::from)?;
    let (appliance, store) = (&offline.home().appliance, config.store.path.display());
    let lost = match offline.lost().len() {
        0 => String::new(),
        count => format!(" {count} store keys cannot be recovered, nor what they sealed."),
    };
    let Planned { generation, anew } = planned;
    let earlier = match anew {
        true => {
            " An earlier reseal began with another token, or this one was initialised since: what it had done \
             is done anew."
        }
        false => "",
    };
    Ok(format!(
        "This makes master generation {generation} and a new signing key in the token {:?} (serial {}) and \
         puts the {keys} keys of appliance {appliance}, at {store}, under it.{lost}{earlier} The old token does not open \
         this store any more after that: have a copy of the store.",
        info.label, info.serial
    ))
}

/// What came of a reseal, for programs.
#[derive(Serialize)]
struct ResealTold<'a> {
    generation: u32,
    verdict: &'static str,
    /// What could not be recovered, and why.
    lost: &'a [String],
    /// Versions of keys that an earlier reseal had put under another token, and that were done anew.
    done_anew: u64,
    /// Settings that were lost, and what was done about them.
    renewed: &'a [String],
}

/// What came of a reseal.
fn told(resealed: &Resealed) -> Report {
    let Resealed { generation, left, anew, renewed, .. } = resealed;
    let mut text = String::new();
    if *anew > 0 {
        text +=
            &format!("done anew: {anew} versions that an earlier reseal put under another token\n");
    }
    for line in renewed {
        text += &format!("LOST: {line}\n");
    }
    for line in left {
        text += &format!("NOT recovered: {line}\n");
    }
    text += &match left.len() {
        0 => format!("every key lies under master generation {generation} of the new token"),
        count => format!(
            "all else lies under master generation {generation} of the new token; {count} could not be \
             recovered and stay as they are: without the old token nobody can use them"
        ),
    };
    text += ", which signs the trail from now on\nKeep the trail's old public key: `strongroom audit verify` \
             needs both, the old one for what came before, the new one for what comes\nnext: start the \
             daemon, `strongroom doctor`, fetch the trail's new public key (strongroom audit \
             public-key), and make a backup\n";
    let verdict = if left.is_empty() { "recovered" } else { "not-all-recovered" };
    let (generation, done_anew) = (*generation, *anew);
    let told = ResealTold { generation, verdict, lost: left, done_anew, renewed };
    Report::new(text, &told, left.is_empty())
}

/// As custody does before there is anything to hide.
fn shut_in(settings: &arena::Settings) -> Result<(), DaemonError> {
    secret::start(settings, Use::Custody)?;
    secret::hook_self_test()?;
    Ok(secret::harden_process()?)
}

/// Reads the private key by way of a locked buffer: the kernel does not read into the arena itself.
fn read_private(source: &RecoverySource) -> Result<SecretBytes, DaemonError> {
    let failed = io("reading the private key");
    let mut file = source.open().map_err(&failed)?;
    let mut buffer = IoBuffer::new(LONGEST).map_err(|errno| failed(std::io::Error::from(errno)))?;
    let mut filled = 0;
    loop {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    let taken = SecretBytes::copy_from(&buffer[..filled]);
    buffer.wipe(filled);
    Ok(taken?)
}

/// What a drill found, for programs.
#[derive(Serialize)]
struct DrillTold<'a> {
    appliance: &'a str,
    verdict: &'static str,
    store_keys: usize,
    keys: u64,
    versions: u64,
    secrets: u64,
    /// What could not be recovered, and why.
    lost: Vec<&'a String>,
}

/// Proves every key and every record; names each that cannot be recovered.
fn drill_all(offline: &Offline) -> Result<Report, DaemonError> {
    let (mut keys, mut versions, mut secrets, mut bad) = (0_u64, 0, 0_u64, Vec::new());
    let (all, mut progress) = (offline.count(Table::Key)?, Progress::new(true));
    every(offline, Table::Key, |name| {
        match offline.prove_key(name) {
            Ok(proved) => versions += proved,
            Err(error) => bad.push(format!("key/{name}: {error}")),
        }
        keys += 1;
        progress.show(keys, all);
    })?;
    every(offline, Table::Secret, |name| match offline.prove_secret(name) {
        Ok(()) => secrets += 1,
        Err(error) => bad.push(format!("secret/{name}: {error}")),
    })?;
    progress.finish();
    let (store_keys, appliance) = (offline.store_keys(), &offline.home().appliance);
    let lost: Vec<&String> = offline.lost().iter().chain(&bad).collect();
    let mut text = format!(
        "appliance {appliance}: {store_keys} store keys, {versions} versions of {keys} keys, {secrets} \
         secrets can be recovered without the token\n"
    );
    for line in &lost {
        text += &format!("CANNOT be recovered: {line}\n");
    }
    let well = lost.is_empty();
    let verdict = if well { "recoverable" } else { "not-all-recoverable" };
    let told = DrillTold { appliance, verdict, store_keys, keys, versions, secrets, lost };
    Ok(Report::new(text, &told, well))
}

fn every(offline: &Offline, table: Table, mut work: impl FnMut(&str)) -> Result<(), DaemonError> {
    let mut after: Option<String> = None;
    loop {
        let names = offline.names(table, after.as_deref())?;
        for name in &names {
            work(name);
        }
        match names.last() {
            Some(last) => after = Some(last.clone()),
            None => return Ok(()),
        }
    }
}
