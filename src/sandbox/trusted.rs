//! Files that decide what a process does: configuration, policies, the token's module. Nobody but root and
//! the process's own user may be able to change one of them, or to put another one in its place.
//!
//! A path is followed as the kernel follows it, link by link, and every directory on the way is held against
//! the same rule. A directory in which everybody may write counts where it is sticky (as `/tmp` is): nobody
//! can move away there what belongs to root or to this user.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User as Entry, geteuid};

use super::User;

/// Why a file or directory is not to be trusted, with the command that mends it.
#[derive(Debug, thiserror::Error)]
pub enum Untrusted {
    #[error("{}: {error}", path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error(
        "{} belongs to uid {owner} (mode {mode:04o}), who could change it; it must belong to root or to uid \
         {own}: chown root {}", path.display(), path.display()
    )]
    Owner { path: PathBuf, owner: u32, mode: u32, own: u32 },
    #[error(
        "{} has mode {mode:04o} (owner uid {owner}, group {group}), so that others than its owner could \
         change it: chmod go-w {}", path.display(), path.display()
    )]
    Mode { path: PathBuf, owner: u32, group: u32, mode: u32 },
    #[error("{} is not a regular file", .0.display())]
    NotRegular(PathBuf),
    #[error("{} is no directory", .0.display())]
    NoDirectory(PathBuf),
    #[error("{} leads through too many links", .0.display())]
    Links(PathBuf),
}

impl Untrusted {
    /// What kept it from being looked at, where something did.
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Untrusted::Unreadable { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// As many links as the kernel follows (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// Opens a regular file that nobody else can change, to be read; judges the very file that was opened.
pub fn open(path: &Path) -> Result<File, Untrusted> {
    let real = follow(path)?;
    let unreadable = |error| Untrusted::Unreadable { path: path.to_owned(), error };
    // O_NONBLOCK: a pipe in the file's place must not hang this.
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(&real).map_err(unreadable)?;
    let found = file.metadata().map_err(unreadable)?;
    if !found.is_file() {
        return Err(Untrusted::NotRegular(path.to_owned()));
    }
    judge(&real, &found)?;
    Ok(file)
}

/// The whole text of such a file.
pub fn read_to_string(path: &Path) -> Result<String, Untrusted> {
    let mut text = String::new();
    let read = open(path)?.read_to_string(&mut text);
    read.map_err(|error| Untrusted::Unreadable { path: path.to_owned(), error })?;
    Ok(text)
}

/// The same for a file that is opened by somebody else, such as the loader of libraries.
pub fn check_file(path: &Path) -> Result<(), Untrusted> {
    let real = follow(path)?;
    let found = look(&real)?;
    if !found.is_file() {
        return Err(Untrusted::NotRegular(path.to_owned()));
    }
    judge(&real, &found)
}

/// A directory in which nobody else can put, replace or remove anything; its real path. One in which
/// everybody can, and which is sticky, is none.
pub fn check_directory(path: &Path) -> Result<PathBuf, Untrusted> {
    let real = follow(path)?;
    let found = look(&real)?;
    if !found.is_dir() {
        return Err(Untrusted::NoDirectory(path.to_owned()));
    }
    judge(&real, &found)?;
    Ok(real)
}

/// A directory in which what this process makes stays its own: also a sticky one.
pub fn check_place(path: &Path) -> Result<PathBuf, Untrusted> {
    let real = follow(path)?;
    let found = look(&real)?;
    if !found.is_dir() {
        return Err(Untrusted::NoDirectory(path.to_owned()));
    }
    judge_on_the_way(&real, &found)?;
    Ok(real)
}

/// Whose user works at this path: the first that owns anything on the way to it, links included, and is not
/// root; where all of it is root's, root. Of a process that is not root's, its own user.
///
/// # Errors
/// Where something of root's on the way can be changed by others: then it is anybody's.
pub fn user_of(path: &Path) -> Result<User, Untrusted> {
    if !geteuid().is_root() {
        return Ok(User::current());
    }
    let mut user = None;
    let mut visit = |at: &Path, found: &Metadata, step: Step| {
        if user.is_none() && found.uid() != 0 {
            user = Some(User::owner_of(found));
        }
        match (&user, step) {
            (Some(_), _) | (None, Step::Link) => Ok(()),
            (None, Step::Way | Step::Last) => judge_on_the_way(at, found),
        }
    };
    match walk(path, &mut visit) {
        Ok(_) => {}
        Err(Untrusted::Unreadable { error, .. }) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(user.unwrap_or_else(User::current))
}

/// Where a path leads, with everything on the way but the last judged.
fn follow(path: &Path) -> Result<PathBuf, Untrusted> {
    walk(path, &mut |at, found, step| match step {
        Step::Link => judge_owner(at, found),
        Step::Way => judge_on_the_way(at, found),
        Step::Last => Ok(()),
    })
}

/// What is met on the way to a file.
#[derive(Clone, Copy)]
enum Step {
    Link,
    Way,
    Last,
}

/// Follows a path as the kernel does, and shows everything that is met to `visit`.
fn walk(
    path: &Path,
    visit: &mut dyn FnMut(&Path, &Metadata, Step) -> Result<(), Untrusted>,
) -> Result<PathBuf, Untrusted> {
    let unreadable = |error| Untrusted::Unreadable { path: path.to_owned(), error };
    let whole = std::path::absolute(path).map_err(unreadable)?;
    let mut at = PathBuf::from("/");
    visit(&at, &look(&at)?, Step::Way)?;
    let mut rest: VecDeque<OsString> = names(&whole);
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        let found = next.symlink_metadata().map_err(unreadable)?;
        if found.is_symlink() {
            links += 1;
            if links > MOST_LINKS {
                return Err(Untrusted::Links(path.to_owned()));
            }
            visit(&next, &found, Step::Link)?;
            let target = next.read_link().map_err(unreadable)?;
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            for name in names(&target).into_iter().rev() {
                rest.push_front(name);
            }
            continue;
        }
        visit(&next, &found, if rest.is_empty() { Step::Last } else { Step::Way })?;
        at = next;
    }
    Ok(at)
}

fn names(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    names.collect()
}

fn look(path: &Path) -> Result<Metadata, Untrusted> {
    path.symlink_metadata().map_err(|error| Untrusted::Unreadable { path: path.to_owned(), error })
}

fn judge(path: &Path, found: &Metadata) -> Result<(), Untrusted> {
    judge_owner(path, found)?;
    match is_open_to_others(found) {
        true => Err(loose(path, found)),
        false => Ok(()),
    }
}

fn judge_on_the_way(path: &Path, found: &Metadata) -> Result<(), Untrusted> {
    judge_owner(path, found)?;
    let is_sticky = found.mode() & 0o1000 != 0;
    match is_open_to_others(found) && !is_sticky {
        true => Err(loose(path, found)),
        false => Ok(()),
    }
}

fn judge_owner(path: &Path, found: &Metadata) -> Result<(), Untrusted> {
    let (owner, own) = (found.uid(), geteuid().as_raw());
    match owner == 0 || owner == own {
        true => Ok(()),
        false => {
            let (path, mode) = (path.to_owned(), found.mode() & 0o7777);
            Err(Untrusted::Owner { path, owner, mode, own })
        }
    }
}

/// Root's own group has nobody in it who is not root, nor has a user's private group anybody else.
fn is_open_to_others(found: &Metadata) -> bool {
    let by_group = found.mode() & 0o020 != 0 && found.gid() != 0;
    found.mode() & 0o002 != 0 || by_group && !is_private_group(found)
}

/// Whether the group is the owner's own: its primary one, of its name, with no other member, and no other
/// user's primary one. Where every user has such a group, users' files are writable by it as a rule. Users of a
/// directory service are seen only where the group names them.
fn is_private_group(found: &Metadata) -> bool {
    let owner = Entry::from_uid(Uid::from_raw(found.uid())).ok().flatten();
    let group = Group::from_gid(Gid::from_raw(found.gid())).ok().flatten();
    owner.zip(group).is_some_and(|(owner, group)| {
        owner.gid == group.gid
            && owner.name == group.name
            && group.mem.iter().all(|member| *member == owner.name)
            // What cannot be read says nothing good.
            && std::fs::read_to_string("/etc/passwd")
                .is_ok_and(|users| !is_primary_of_others(&users, found.gid(), found.uid()))
    })
}

/// Whether a line of passwd(5) names this group as the primary one of another user than `owner`.
fn is_primary_of_others(users: &str, group: u32, owner: u32) -> bool {
    users.lines().any(|line| {
        let mut fields = line.split(':').skip(2).map(|field| field.parse::<u32>().ok());
        let (uid, gid) = (fields.next().flatten(), fields.next().flatten());
        gid == Some(group) && uid != Some(owner)
    })
}

fn loose(path: &Path, found: &Metadata) -> Untrusted {
    let (owner, group, mode) = (found.uid(), found.gid(), found.mode() & 0o7777);
    Untrusted::Mode { path: path.to_owned(), owner, group, mode }
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let inner = directory.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let file = inner.join("file");
        std::fs::write(&file, "text").unwrap();
        for path in [&inner, &file] {
            set_permissions(path, Permissions::from_mode(0o700)).unwrap();
        }
        (directory, inner, file)
    }

    fn mode(path: &Path, mode: u32) {
        set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_group_that_is_another_user_s_primary_one_is_not_private() {
        let users = "root:x:0:0::/root:/bin/sh\nshop:x:1000:1000::/:/bin/sh\n";
        assert!(!is_primary_of_others(users, 1000, 1000));
        let other = format!("{users}guest:x:1001:1000::/:/bin/sh\n");
        assert!(is_primary_of_others(&other, 1000, 1000));
        assert!(
            is_primary_of_others("guest:x:?:1000::/:/bin/sh", 1000, 1000),
            "no number is nobody"
        );
        assert!(!is_primary_of_others("a line that is none\n:::\n", 1000, 1000));
    }

    #[test]
    fn modes_of_the_file_and_of_every_directory_on_the_way_count() {
        let (directory, inner, file) = place();
        assert_eq!(read_to_string(&file).unwrap(), "text");
        mode(&file, 0o602);
        let said = open(&file).unwrap_err().to_string();
        assert!(said.contains("mode 0602") && said.contains("chmod go-w"), "{said}");
        // A group of others: no user's private one has this number.
        if geteuid().is_root() {
            std::os::unix::fs::chown(&file, None, Some(65_533)).unwrap();
            mode(&file, 0o664);
            assert!(matches!(open(&file), Err(Untrusted::Mode { group: 65_533, .. })));
            std::os::unix::fs::chown(&file, None, Some(0)).unwrap();
            assert!(open(&file).is_ok());
        }
        mode(&file, 0o644);
        for (bits, trusted) in [(0o777, false), (0o1777, true), (0o702, false), (0o755, true)] {
            mode(&inner, bits);
            assert_eq!(check_file(&file).is_ok(), trusted, "{bits:o}");
        }
        mode(&inner, 0o1777);
        assert!(check_directory(&inner).is_err() && check_place(&inner).is_ok());
        mode(&inner, 0o700);
        mode(directory.path(), 0o757);
        assert!(matches!(open(&file), Err(Untrusted::Mode { .. })));
        mode(directory.path(), 0o700);
    }

    #[test]
    fn links_are_followed_and_judged_where_they_lie_and_where_they_lead() {
        let (directory, inner, file) = place();
        let loose = directory.path().join("loose");
        std::fs::create_dir(&loose).unwrap();
        for (name, target) in [("to-file", "../inner/file"), ("to-inner", "../inner")] {
            symlink(target, loose.join(name)).unwrap();
        }
        let ways = [loose.join("to-file"), loose.join("to-inner/file")];
        assert!(ways.iter().all(|way| check_file(way).is_ok()));
        mode(&loose, 0o777);
        assert!(ways.iter().all(|way| check_file(way).is_err()), "anybody could turn the link");
        let first = directory.path().join("first");
        symlink(&ways[0], &first).unwrap();
        assert!(check_file(&first).is_err(), "also where it is the second on the way");
        mode(&loose, 0o755);
        assert!(check_file(&first).is_ok());
        mode(&inner, 0o777);
        assert!(check_file(&first).is_err());
        mode(&inner, 0o700);
        let round = directory.path().join("round");
        symlink("round", &round).unwrap();
        assert!(matches!(check_file(&round), Err(Untrusted::Links(_))));
        let pipe = inner.join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(open(&pipe), Err(Untrusted::NotRegular(_))));
        assert!(open(&file).is_ok());
    }

    #[test]
    fn root_works_as_the_first_on_the_way_who_is_not_root() {
        if !geteuid().is_root() {
            return;
        }
        let (directory, inner, file) = place();
        let uid = |path: &Path| user_of(path).unwrap().uid;
        let none = inner.join("none/at/all");
        assert_eq!([uid(&inner), uid(&file), uid(&none)], [0, 0, 0]);
        std::os::unix::fs::chown(&inner, Some(65_533), Some(65_532)).unwrap();
        assert_eq!([uid(&inner), uid(&file), uid(&none)], [65_533; 3]);
        assert_eq!(user_of(&inner).unwrap().gid, 65_532);
        // A link of theirs that leads to root's.
        let planted = inner.join("planted");
        symlink(directory.path(), &planted).unwrap();
        std::os::unix::fs::lchown(&planted, Some(65_531), None).unwrap();
        assert_eq!(uid(&planted), 65_533);
        mode(directory.path(), 0o1777);
        let beside = directory.path().join("beside");
        symlink("/root", &beside).unwrap();
        std::os::unix::fs::lchown(&beside, Some(65_531), None).unwrap();
        assert_eq!(uid(&beside), 65_531);
        mode(directory.path(), 0o777);
        assert!(matches!(user_of(&directory.path().join("none")), Err(Untrusted::Mode { .. })));
    }

    #[test]
    fn a_file_of_somebody_else_is_refused() {
        if !geteuid().is_root() {
            return;
        }
        let (_directory, inner, file) = place();
        std::os::unix::fs::chown(&file, Some(65_534), None).unwrap();
        let said = open(&file).unwrap_err().to_string();
        assert!(said.contains("belongs to uid 65534") && said.contains("chown root"), "{said}");
        std::os::unix::fs::chown(&file, Some(0), None).unwrap();
        std::os::unix::fs::chown(&inner, Some(65_534), None).unwrap();
        assert!(matches!(open(&file), Err(Untrusted::Owner { .. })));
    }
}
