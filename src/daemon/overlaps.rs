//! Places of the configuration that must not be one: two sockets of one path, store and trail within each
//! other.

use std::path::{Path, PathBuf};

use super::config::Config;

/// The first two that are, as the paths lead on this machine now.
pub fn overlap(config: &Config) -> Option<String> {
    let (listen, custody) = (&config.listen.socket, &config.custody.socket);
    if real(listen) == real(custody) {
        return Some(format!(
            "[listen] socket and [custody] socket are one path, {}: custody would not be reached; name two",
            listen.display()
        ));
    }
    let (store, trail) = (&config.store.path, &config.audit.directory);
    let (real_store, real_trail) = (real(store), real(trail));
    (real_store.starts_with(&real_trail) || real_trail.starts_with(&real_store)).then(|| {
        format!(
            "[store] path = {} and [audit] directory = {} are one directory, or one lies in the other; \
             name two that lie beside each other",
            store.display(),
            trail.display()
        )
    })
}

/// Where a path leads: what is there of it by its links, the rest as it is written.
fn real(path: &Path) -> PathBuf {
    let Ok(path) = std::path::absolute(path) else { return path.to_owned() };
    let there = path.ancestors().find_map(|above| Some((above, above.canonicalize().ok()?)));
    let Some((above, real)) = there else { return path };
    match path.strip_prefix(above) {
        Ok(rest) if !rest.as_os_str().is_empty() => real.join(rest),
        _ => real,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_compared_where_they_lead() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        std::fs::create_dir(at("real")).unwrap();
        std::os::unix::fs::symlink(at("real"), at("link")).unwrap();
        let named = |section: &str, a: &str, other: &str, b: &str| {
            let (name, other_name) = match section {
                "listen" => ("socket", "socket"),
                _ => ("path", "directory"),
            };
            let text =
                format!("[{section}]\n{name} = '{}'\n[{other}]\n{other_name} = '{}'", at(a), at(b));
            overlap(&toml::from_str::<Config>(&text).unwrap())
        };
        let sockets = |a: &str, b: &str| named("listen", a, "custody", b);
        let directories = |a: &str, b: &str| named("store", a, "audit", b);
        assert!(sockets("a.sock", "a.sock").unwrap().contains("[custody] socket"));
        assert!(sockets("real/a.sock", "link/./a.sock").is_some());
        assert_eq!(sockets("real/a.sock", "a.sock"), None);
        for (store, trail) in
            [("s", "s"), ("s", "s/trail"), ("t/s", "t"), ("real", "link"), ("link/s", "real")]
        {
            assert!(directories(store, trail).unwrap().contains("[audit] directory"));
        }
        assert_eq!(directories("s", "st"), None);
        assert_eq!(directories("real/s", "link/t"), None);
        assert_eq!(overlap(&Config::default()), None);
    }
}
