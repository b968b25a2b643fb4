//! What must hold for any configuration: read or refused, and what is in force can be shown and read.

use super::config::Config;

/// A configuration file.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(config) = toml::from_str::<Config>(text) else { return };
    let fault = config.fault();
    let shown = toml::to_string(&config).expect("what was read can be shown");
    let again: Config = toml::from_str(&shown).expect("what is shown can be read");
    assert_eq!(toml::to_string(&again).expect("as before"), shown);
    assert_eq!(again.fault(), fault);
}
