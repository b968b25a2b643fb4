//! Landlock: the files that may still be opened. Everything else is refused, whatever its permissions
//! say; so are TCP ports, abstract Unix sockets, signals and debuggers across the border.

use std::path::{Path, PathBuf};

use enumflags2::BitFlags;
use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, Scope,
};

use super::{Needs, SandboxError, Sockets};

/// The version of the interface that is used where the kernel has it (Linux 6.15).
const USED: ABI = ABI::V7;

/// The first version with everything that is used of it (Linux 6.12).
pub const NEWEST: u8 = 6;

/// What every process of ours needs: the C library's own files, randomness, its own account of itself.
const READ: [&str; 25] = [
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/local/lib",
    "/lib",
    "/lib64",
    "/usr/share/zoneinfo",
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/group",
    "/dev/null",
    "/dev/zero",
    "/dev/random",
    "/dev/urandom",
    "/proc/self",
    "/proc/sys",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/loadavg",
    "/sys/devices/system",
    "/sys/fs/cgroup",
];

const WRITE: [&str; 1] = ["/dev/null"];

/// Enters it; which version of the interface is in force, 0 where the kernel has none.
pub fn enter(needs: &Needs) -> Result<u8, SandboxError> {
    let refused = |error: &dyn std::fmt::Display| SandboxError::Refused {
        part: "Landlock",
        why: error.to_string(),
    };
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(USED))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(USED)))
        .map_err(|error| refused(&error))?;
    if needs.sockets != Sockets::Network {
        ruleset =
            ruleset.handle_access(AccessNet::from_all(USED)).map_err(|error| refused(&error))?;
    }
    let mut created = ruleset.create().map_err(|error| refused(&error))?;
    for (path, access) in rules(needs) {
        created = grant(created, &path, access).map_err(|error| refused(&error))?;
    }
    let status = created.restrict_self().map_err(|error| refused(&error))?;
    Ok(match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => effective_abi.min(USED) as u8,
        LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => 0,
    })
}

/// Every path with what may be done at it and beneath it.
fn rules(needs: &Needs) -> Vec<(PathBuf, BitFlags<AccessFs>)> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    // What is made is no device, and nothing that is written is executed.
    let write =
        AccessFs::from_all(USED) & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock);
    let place = AccessFs::MakeSock | AccessFs::RemoveFile;
    let never: Vec<PathBuf> =
        needs.never.iter().filter_map(|path| path.canonicalize().ok()).collect();
    let mut rules = Vec::new();
    let mut add = |path: &Path, access| {
        // Links are followed here as they will be when the path is opened. The working directory may lie
        // where this user cannot follow a path to.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        rules.extend(around(&path, &never).into_iter().map(|path| (path, access)));
    };
    READ.iter().for_each(|path| add(path.as_ref(), read));
    needs.read.iter().for_each(|path| add(path, read));
    WRITE.iter().for_each(|path| add(path.as_ref(), write));
    needs.write.iter().for_each(|path| add(path, write));
    for path in &needs.socket_in {
        // Puts nothing that can be read, so the paths that are never granted may lie here.
        rules.extend(path.canonicalize().map(|path| (path, place)));
    }
    rules
}

/// The path itself, or, where something that must not be granted lies beneath it, its entries without
/// that. What is put there later is not granted then.
fn around(path: &Path, never: &[PathBuf]) -> Vec<PathBuf> {
    if never.iter().any(|never| path.starts_with(never)) {
        return Vec::new();
    }
    if !never.iter().any(|never| never.starts_with(path)) {
        return vec![path.to_owned()];
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    // An entry that is a link leads elsewhere, and is granted or not where it leads to.
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_symlink()))
        .flat_map(|entry| around(&entry.path(), never))
        .collect()
}

fn grant(
    ruleset: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, landlock::RulesetError> {
    // What went away meanwhile, or cannot even be named, needs no rule.
    let Ok(descriptor) = PathFd::new(path) else { return Ok(ruleset) };
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(USED) };
    if access.is_empty() {
        return Ok(ruleset);
    }
    ruleset.add_rule(PathBeneath::new(descriptor, access))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_not_be_granted_is_left_out_with_its_siblings_kept() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().canonicalize().unwrap().join(name);
        for name in ["a", "b", "b/inner"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        std::fs::write(at("b/inner/pin"), "").unwrap();
        std::fs::write(at("b/kept"), "").unwrap();
        std::os::unix::fs::symlink(at("b/inner/pin"), at("link")).unwrap();
        let mut granted = around(&at(""), &[at("b/inner/pin")]);
        granted.sort();
        assert_eq!(granted, [at("a"), at("b/kept")]);
        assert_eq!(around(&at("a"), &[at("b")]), [at("a")]);
        assert_eq!(around(&at("b/inner"), &[at("b")]), Vec::<PathBuf>::new());
    }
}
