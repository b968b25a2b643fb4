//! The configuration file: one strict TOML struct of what each module asks for, and nothing below
//! knows that there is a file.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{logging, overlaps};
use crate::sandbox::{Untrusted, trusted};
use crate::secret::arena;
use crate::{audit, custody, http, policy, records, sandbox, service, store, token};

/// All settings; every one has a default. `config/strongroom.toml` explains each.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub listen: http::ListenSettings,
    pub limits: http::Limits,
    pub token: token::Settings,
    pub custody: custody::Settings,
    pub sandbox: sandbox::Settings,
    pub store: store::sled_store::Settings,
    pub records: records::Settings,
    pub audit: audit::Settings,
    pub policy: policy::Settings,
    pub keys: service::Settings,
    pub secrets: service::SecretSettings,
    pub log: logging::Settings,
}

/// A configuration that was read, and the SHA-256 of its text, for the trail.
pub struct Loaded {
    pub config: Config,
    pub digest: [u8; 32],
}

/// Why a file is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the configuration {} cannot be read: {error}", path.display())]
    Unreadable { path: PathBuf, error: std::io::Error },
    #[error("the configuration decides what is done, so nobody else may be able to change it: {0}")]
    Untrusted(Untrusted),
    #[error("the configuration {} is not sound:\n{error}", path.display())]
    Malformed { path: PathBuf, error: Box<toml::de::Error> },
    #[error("the configuration {}: {what}", path.display())]
    Unfit { path: PathBuf, what: String },
}

impl Config {
    /// Reads and checks a file. Relative paths in it start at the working directory.
    pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
        let text = trusted::read_to_string(path).map_err(|error| match error {
            Untrusted::Unreadable { error, .. } => {
                ConfigError::Unreadable { path: path.to_owned(), error }
            }
            error => ConfigError::Untrusted(error),
        })?;
        let mut config: Config = toml::from_str(&text).map_err(|error| ConfigError::Malformed {
            path: path.to_owned(),
            error: Box::new(error),
        })?;
        let user = config.custody.custody_user.as_deref();
        config.token.custody_user = user.and_then(|user| custody::resolve(Some(user)).ok());
        match config.fault() {
            Some(what) => Err(ConfigError::Unfit { path: path.to_owned(), what }),
            None => Ok(Loaded { config, digest: Sha256::digest(&text).into() }),
        }
    }

    /// Has the token's PIN read from another file, where one is given.
    pub fn use_pin_file(&mut self, path: Option<&Path>) {
        if let Some(path) = path {
            self.token.pin_file = Some(path.to_owned());
            self.token.pin_credential = None;
        }
    }

    /// What no single module can see.
    pub(super) fn fault(&self) -> Option<String> {
        let arena = self.custody.arena.size_bytes;
        if self.custody.cache.max_bytes > arena / 4 * 3 {
            return Some(format!(
                "[custody.cache] max_bytes = {} leaves no room to work in an arena of {arena} \
                 bytes; it may take three quarters of [custody.arena] size_bytes",
                self.custody.cache.max_bytes
            ));
        }
        let seals = self.records.seals_per_store_key;
        if !records::SEALS_PER_STORE_KEY.contains(&seals) {
            let (least, most) = records::SEALS_PER_STORE_KEY.into_inner();
            return Some(format!(
                "[records] seals_per_store_key = {seals} must be from {least} to {most}"
            ));
        }
        let listen = self.listen.fault().map(|fault| fault.to_string());
        let custody = || self.custody.fault().map(|fault| fault.to_string());
        let overlap = || overlaps::overlap(self);
        listen.or_else(custody).or_else(|| self.out_of_bounds()).or_else(overlap)
    }

    /// The first number that no daemon could work with.
    fn out_of_bounds(&self) -> Option<String> {
        let least_one = |value: usize| (value, 1, usize::MAX);
        let wait = |value: u64| (usize::try_from(value).unwrap_or(usize::MAX), 1, 3_600_000);
        let (custody, limits) = (&self.custody, &self.limits);
        let arena = arena::Settings::MIN_SIZE..=arena::Settings::MAX_SIZE;
        let bounds = [
            ("[limits] connections", least_one(limits.connections)),
            ("[limits] connections_per_uid", least_one(limits.connections_per_uid)),
            (
                "[limits] requests_per_second_per_uid",
                least_one(limits.requests_per_second_per_uid as usize),
            ),
            ("[limits] requests_burst_per_uid", least_one(limits.requests_burst_per_uid as usize)),
            // What tokio's semaphore holds.
            ("[limits] requests_at_once_per_uid", (limits.requests_at_once_per_uid, 1, 1 << 20)),
            ("[limits] body_bytes", least_one(limits.body_bytes)),
            ("[limits] json_depth", least_one(limits.json_depth)),
            ("[limits] header_timeout_ms", wait(limits.header_timeout_ms)),
            ("[limits] body_timeout_ms", wait(limits.body_timeout_ms)),
            ("[limits] answer_timeout_ms", wait(limits.answer_timeout_ms)),
            ("[custody] workers", (custody.workers, 0, 1024)),
            ("[custody] token_threads", (custody.token_threads, 1, 1024)),
            // At least a packet for each thread, at most what a machine has.
            ("[custody] waiting_bytes", (custody.waiting_bytes, 1 << 20, 1 << 30)),
            ("[custody] max_wrong_pins", (custody.max_wrong_pins as usize, 1, 1000)),
            ("[custody] deadline_ms", wait(custody.deadline_ms)),
            ("[custody] hang_seconds", wait(custody.hang_seconds)),
            (
                "[custody.arena] size_bytes",
                (custody.arena.size_bytes, *arena.start(), *arena.end()),
            ),
            ("[token] pool_size", (self.token.pool_size, 1, 1024)),
            ("[token] wait_ms", wait(self.token.wait_ms)),
            (
                "[keys] clock_doubt_hours",
                least_one(usize::try_from(self.keys.clock_doubt_hours).unwrap_or(usize::MAX)),
            ),
            ("[audit] deadline_ms", wait(self.audit.deadline_ms)),
            ("[audit] checkpoint_lines", wait(self.audit.checkpoint_lines)),
            ("[audit] checkpoint_seconds", wait(self.audit.checkpoint_seconds)),
        ];
        let wrong = bounds.iter().find(|(_, (value, least, most))| value < least || value > most);
        wrong.map(|(name, (value, least, most))| match *most {
            usize::MAX => format!("{name} = {value}: it must be at least {least}"),
            most => format!("{name} = {value}: it must lie between {least} and {most}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shipped file, as it is and with the settings that stand behind a `#` switched on.
    #[test]
    fn the_shipped_file_has_every_key_with_its_default() {
        let text = include_str!("../../config/strongroom.toml");
        let shipped: toml::Table = toml::from_str(text).unwrap();
        let mut defaults = toml::Table::try_from(Config::default()).unwrap();
        // Which groups have which role is an example in the file and nothing by default.
        let mut shipped_rest = shipped.clone();
        for table in [&mut shipped_rest, &mut defaults] {
            table["policy"].as_table_mut().unwrap().remove("roles");
        }
        assert_eq!(shipped_rest, defaults);
        let config: Config = toml::from_str(text).unwrap();
        assert_eq!(config.fault(), None);
        for optional in ["group", "label", "serial", "pin_credential", "pin_file", "front_user"] {
            assert!(text.contains(&format!("# {optional} = ")), "{optional}");
        }
    }

    #[test]
    fn what_is_unknown_or_unfit_is_refused() {
        for text in
            ["[listen]\nsockt = 1", "[nothing]", "listen = 3", "[keys]\ndestroy_wait_days = 0"]
        {
            assert!(toml::from_str::<Config>(text).is_err(), "{text}");
        }
        let greedy: Config = toml::from_str("[custody.cache]\nmax_bytes = 4194304").unwrap();
        assert!(greedy.fault().unwrap().contains("max_bytes"));
        for (text, name) in [
            ("[listen]\nmode = \"0999\"", "mode"),
            ("[custody]\nworkers = 999999", "workers"),
            ("[custody]\ndeadline_ms = 0", "deadline_ms"),
            ("[custody.arena]\nsize_bytes = 99999999999", "size_bytes"),
            ("[audit]\ncheckpoint_lines = 0", "checkpoint_lines"),
            (&format!("[listen]\nsocket = \"/{}\"", "s".repeat(107)), "[listen] socket"),
            (&format!("[custody]\nsocket = \"/{}\"", "s".repeat(107)), "[custody] socket"),
            ("[keys]\nclock_doubt_hours = 0", "clock_doubt_hours"),
        ] {
            let config: Config = toml::from_str(text).unwrap();
            assert!(config.fault().unwrap().contains(name), "{text}");
        }
        for (seals, is_fit) in
            [(0, false), (4, false), (5, true), (1 << 32, true), ((1_u64 << 32) + 1, false)]
        {
            let text = format!("[records]\nseals_per_store_key = {seals}");
            let fault = toml::from_str::<Config>(&text).unwrap().fault();
            assert_eq!(fault.is_none(), is_fit, "{seals}: {fault:?}");
        }
    }
}
