//! What custody's unit is started with, for tools that do its work without it: a module finds its token by
//! its environment.

use std::path::{Path, PathBuf};

/// Where units lie, the strongest first (systemd.unit(5)).
const PLACES: [&str; 4] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

const UNIT: &str = "strongroom-custody.service";

const SOFTHSM2_CONF: &str = "SOFTHSM2_CONF";

/// Takes over where SoftHSM finds its configuration from the unit that runs custody with this configuration,
/// unless this process was told. It must have one thread.
#[allow(unsafe_code)] // the environment is the process's
pub fn take_over_environment(config: &Path) {
    if std::env::var_os(SOFTHSM2_CONF).is_some() {
        return;
    }
    if let Some(value) = variable_of_unit(&PLACES.map(PathBuf::from), config, SOFTHSM2_CONF) {
        // SAFETY: there is one thread, so nobody reads the environment meanwhile.
        unsafe { std::env::set_var(SOFTHSM2_CONF, value) };
    }
}

/// What to do besides where a token was not found and the module was told nothing of its configuration.
pub fn hint() -> &'static str {
    match std::env::var_os(SOFTHSM2_CONF) {
        Some(_) => "",
        None => {
            "; with SoftHSM, set SOFTHSM2_CONF to the configuration that custody's unit names (systemctl show \
             strongroom-custody -p Environment)"
        }
    }
}

/// A variable that the unit sets, where it runs custody with this very configuration.
fn variable_of_unit(places: &[PathBuf], config: &Path, name: &str) -> Option<String> {
    let unit = places.iter().map(|place| place.join(UNIT)).find(|path| path.is_file())?;
    let mut text = std::fs::read_to_string(unit).ok()?;
    let mut more: Vec<PathBuf> = places.iter().flat_map(|place| drop_ins(place)).collect();
    more.sort_by_key(|path| path.file_name().map(ToOwned::to_owned));
    for path in more {
        text += "\n";
        text += &std::fs::read_to_string(path).unwrap_or_default();
    }
    let config = config.canonicalize().ok()?;
    let (mut value, mut is_ours) = (None, false);
    for line in text.lines().map(str::trim) {
        if let Some(command) = line.strip_prefix("ExecStart=") {
            let mut words = command.split_whitespace();
            let named = words.find(|word| *word == "--config").and_then(|_| words.next());
            is_ours = named
                .is_some_and(|named| Path::new(named).canonicalize().ok() == Some(config.clone()));
        }
        if let Some(assigned) = line.strip_prefix("Environment=") {
            let words = assigned.split_whitespace().map(|word| word.trim_matches('"'));
            let mut found = words.filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            value = found.next_back().map(str::to_owned).or(value);
        }
    }
    value.filter(|_| is_ours)
}

fn drop_ins(place: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(place.join(format!("{UNIT}.d"))).into_iter().flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "conf")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_units_environment_counts_where_it_runs_this_configuration() {
        let place = tempfile::tempdir().unwrap();
        let config = place.path().join("s.toml");
        fs::write(&config, "").unwrap();
        let unit = format!(
            "[Service]\nExecStart=/usr/bin/strongroom custody --config {}\nEnvironment=SOFTHSM2_CONF=/a.conf\n",
            config.display()
        );
        fs::write(place.path().join(UNIT), unit).unwrap();
        let places = [place.path().to_owned()];
        let found = |config: &Path| variable_of_unit(&places, config, SOFTHSM2_CONF);
        assert_eq!(found(&config).as_deref(), Some("/a.conf"));
        let other = place.path().join("other.toml");
        fs::write(&other, "").unwrap();
        assert_eq!(found(&other), None);
        let drop_in = place.path().join(format!("{UNIT}.d"));
        fs::create_dir(&drop_in).unwrap();
        fs::write(
            drop_in.join("local.conf"),
            "[Service]\nEnvironment=\"SOFTHSM2_CONF=/b.conf\" X=1\n",
        )
        .unwrap();
        assert_eq!(found(&config).as_deref(), Some("/b.conf"));
        assert_eq!(variable_of_unit(&[], &config, SOFTHSM2_CONF), None);
    }
}
