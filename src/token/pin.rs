//! Reads the user PIN from a file or a systemd credential into the arena.
//!
//! A path may lead through symbolic links, as secrets of Kubernetes do: the file that was opened is checked.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::Read,
    num::NonZeroUsize,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::unistd::User;

use super::Settings;
use crate::secret::{ArenaError, IoBuffer, Pin};

/// The longest PIN taken, in bytes; tokens allow far less.
const MAX_LEN: usize = 255;

/// Room for the longest PIN, some line ends, and one byte to see that there is more.
const BUFFER: NonZeroUsize = NonZeroUsize::new(MAX_LEN + 9).expect("not zero");

/// The mode of a file that root gives to custody's group to read, and no more.
const GROUP_READS: u32 = 0o440;

/// Why there is no PIN.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The settings name no place.
    #[error("set token.pin_file or token.pin_credential")]
    Unset,
    /// A credential is asked for and the process was handed none.
    #[error(
        "token.pin_credential is set, but systemd handed this process no credentials: a unit does with LoadCredential=, and by hand the PIN's file is named with --pin-file"
    )]
    NoCredentials,
    /// A credential's name is one file name.
    #[error("token.pin_credential must be a plain file name")]
    CredentialName,
    /// It cannot be opened or read.
    #[error("the PIN file {} cannot be read: {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    /// A directory, a pipe, a device.
    #[error("the PIN file {} is not a regular file", path.display())]
    NotRegular { path: PathBuf },
    /// Others may read it.
    #[error(
        "the PIN file {} has mode {mode:04o}: chmod 0600 it; or 0440, where it belongs to root and a group of \
         custody's (it has group {group}; a secret of Kubernetes: defaultMode: 0400)",
        path.display()
    )]
    Mode { path: PathBuf, mode: u32, group: u32 },
    /// Somebody else may change it.
    #[error("the PIN file {} belongs to uid {owner}: chown it to root or to uid {own}", path.display())]
    Owner { path: PathBuf, owner: u32, own: u32 },
    /// Empty, or longer than any PIN.
    #[error("the PIN file {} holds no PIN of 1 to {MAX_LEN} bytes", path.display())]
    Length { path: PathBuf },
    /// Bytes that no PIN has, so it is not tried.
    #[error("the PIN file {} {found}: write the PIN alone into it, as plain text", path.display())]
    NoPin { path: PathBuf, found: &'static str },
    /// No locked memory.
    #[error(transparent)]
    Arena(#[from] ArenaError),
}

/// Reads the PIN that `settings` name.
///
/// `credentials` is the directory that systemd handed over (`$CREDENTIALS_DIRECTORY`), if any. Line ends at
/// the end are cut off; every other byte belongs to the PIN.
pub fn read_pin(settings: &Settings, credentials: Option<&Path>) -> Result<Pin, PinError> {
    // systemd lets the service's user read a credential through an ACL, whose mask shows as the
    // group's bits: 0440 is normal there, and no group has access by it.
    if let Some(name) = &settings.pin_credential {
        let directory = credentials.ok_or(PinError::NoCredentials)?;
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(PinError::CredentialName);
        }
        return read(&directory.join(name), 0o640, None);
    }
    read(settings.pin_file.as_deref().ok_or(PinError::Unset)?, 0o600, settings.custody_user)
}

/// The PIN in what was read or typed: line ends at its end are no part of it.
///
/// # Errors
/// What was found that no PIN has. It is said before the token counts a try, and never quotes a byte.
pub fn pin_in(bytes: &[u8]) -> Result<&[u8], &'static str> {
    let end = bytes.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n')).map_or(0, |at| at + 1);
    let pin = bytes.get(..end).unwrap_or_default();
    match pin {
        [0xef, 0xbb, 0xbf, ..] => Err("begins with a byte order mark (EF BB BF)"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Err("is UTF-16 text"),
        pin if pin.contains(&0) => Err("holds a zero byte"),
        pin if pin.iter().any(|byte| matches!(byte, b'\r' | b'\n')) => {
            Err("holds more than one line")
        }
        pin if pin.iter().any(u8::is_ascii_control) => Err("holds a control character"),
        pin if std::str::from_utf8(pin).is_err() => Err("is not UTF-8 text"),
        pin => Ok(pin),
    }
}

fn read(path: &Path, allowed: u32, custody_user: Option<u32>) -> Result<Pin, PinError> {
    let unreadable = |source| PinError::Unreadable { path: path.into(), source };
    let mut file = open_checked(path, allowed, custody_user)?;
    // By way of a locked buffer: the kernel refuses to read straight into the arena.
    let mut buffer = IoBuffer::new(BUFFER).map_err(|errno| unreadable(errno.into()))?;
    let len = fill(&mut file, &mut buffer).map_err(unreadable)?;
    let bytes = buffer.get(..len).unwrap_or_default();
    let pin = pin_in(bytes).map_err(|found| PinError::NoPin { path: path.into(), found })?;
    if pin.is_empty() || pin.len() > MAX_LEN {
        return Err(PinError::Length { path: path.into() });
    }
    Ok(Pin::copy_from(pin)?)
}

/// Opens it and checks the very file that was opened, wherever links led to.
fn open_checked(path: &Path, allowed: u32, custody_user: Option<u32>) -> Result<File, PinError> {
    let unreadable = |source| PinError::Unreadable { path: path.into(), source };
    // O_NONBLOCK: a pipe in the file's place must not hang the start.
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(unreadable)?;
    let meta = file.metadata().map_err(unreadable)?;
    judge(path, &meta, allowed, custody_user)?;
    Ok(file)
}

/// Whether the PIN file that is there now can be read by a process that starts now, as far as owner and mode say:
/// this one may not open a file that was put there since it started.
pub fn check_pin_file(path: &Path) -> Result<(), PinError> {
    let unreadable = |source| PinError::Unreadable { path: path.into(), source };
    judge(path, &path.metadata().map_err(unreadable)?, 0o600, None)
}

/// Whether owner and mode of the file are those of a PIN's.
fn judge(
    path: &Path,
    meta: &Metadata,
    allowed: u32,
    custody_user: Option<u32>,
) -> Result<(), PinError> {
    // What is wrong is said of the file itself, not of a link to it.
    let path = || path.canonicalize().unwrap_or_else(|_| path.into());
    if !meta.is_file() {
        return Err(PinError::NotRegular { path: path() });
    }
    let own = nix::unistd::geteuid().as_raw();
    // Root's own tools read what custody reads.
    let custody_user = custody_user.filter(|_| own == 0);
    let (owner, group) = (meta.uid(), meta.gid());
    if owner != 0 && owner != own && Some(owner) != custody_user {
        return Err(PinError::Owner { path: path(), owner, own });
    }
    let mode = meta.mode() & 0o7777;
    let given_to_group = owner == 0 && mode & !GROUP_READS == 0 && is_own(group, custody_user);
    if mode & !allowed != 0 && !given_to_group {
        return Err(PinError::Mode { path: path(), mode, group });
    }
    Ok(())
}

/// Whether it is a group of this process, or of custody's user.
fn is_own(group: u32, custody_user: Option<u32>) -> bool {
    let group = nix::unistd::Gid::from_raw(group);
    let of_custody = custody_user.and_then(|uid| User::from_uid(uid.into()).ok().flatten());
    nix::unistd::getegid() == group
        || nix::unistd::getgroups().is_ok_and(|groups| groups.contains(&group))
        || of_custody.is_some_and(|user| user.gid == group)
}

fn fill(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::secret::{self, Use};

    fn arena() {
        secret::start(&secret::Settings::default(), Use::Custody).expect("an arena");
    }

    fn pin_of(content: &[u8], mode: u32) -> Result<Vec<u8>, PinError> {
        arena();
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("pin");
        fs::write(&path, content).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        let settings = Settings { pin_file: Some(path), ..Settings::default() };
        read_pin(&settings, None).map(|pin| pin.expose().to_vec())
    }

    #[test]
    fn line_ends_are_cut_and_nothing_else() {
        assert_eq!(pin_of(b"123456", 0o600).expect("read"), b"123456");
        assert_eq!(pin_of(b"123456\n", 0o400).expect("read"), b"123456");
        assert_eq!(pin_of(b"123456\r\n", 0o400).expect("read"), b"123456");
        assert_eq!(pin_of(b" 1 \n\r\n", 0o600).expect("read"), b" 1 ");
        let most = [&[b'7'; 255][..], b"\r\n\r\n"].concat();
        assert_eq!(pin_of(&most, 0o600).expect("read").len(), 255);
        assert_eq!(pin_of(&[b'7'; 255], 0o600).expect("read").len(), 255);
    }

    #[test]
    fn lengths_that_are_no_pin_are_refused() {
        for content in [&b""[..], b"\n", b"\r\n", &[b'7'; 256], &[b'7'; 10_000]] {
            assert!(matches!(pin_of(content, 0o600), Err(PinError::Length { .. })));
        }
    }

    #[test]
    fn what_no_pin_has_is_named_and_never_quoted() {
        for (content, named) in [
            (&b"\xef\xbb\xbf123456"[..], "byte order mark"),
            (b"\xff\xfe1\x002\x00", "UTF-16"),
            (b"12\x0034", "zero byte"),
            (b"123456\nlabel", "more than one line"),
            (b"123456\r\n\r\nx\r\n", "more than one line"),
            (b"\x1b[2J123456", "control character"),
            (b"caf\xe9", "not UTF-8"),
        ] {
            let error = pin_of(content, 0o600).expect_err("no PIN");
            assert!(matches!(error, PinError::NoPin { .. }), "{error}");
            assert!(error.to_string().contains(named), "{error}");
            assert!(!error.to_string().contains("123456"), "{error}");
        }
        assert_eq!(pin_of("Ärger 1".as_bytes(), 0o600).expect("read"), "Ärger 1".as_bytes());
    }

    #[test]
    fn modes_that_let_others_in_are_refused() {
        for mode in [0o640, 0o604, 0o610, 0o660, 0o644, 0o700, 0o4600] {
            assert!(
                matches!(pin_of(b"123456", mode), Err(PinError::Mode { mode: seen, .. }) if seen == mode)
            );
        }
    }

    #[test]
    fn links_are_followed_and_what_is_no_file_is_refused() {
        arena();
        let directory = tempfile::tempdir().expect("a directory");
        let settings = |name: &str| Settings {
            pin_file: Some(directory.path().join(name)),
            ..Settings::default()
        };
        fs::write(directory.path().join("pin"), "123456").expect("written");
        std::os::unix::fs::symlink("pin", directory.path().join("link")).expect("linked");
        let set_mode = |mode| {
            let path = directory.path().join("pin");
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
        };
        set_mode(0o600);
        assert_eq!(read_pin(&settings("link"), None).expect("read").expose(), b"123456");
        set_mode(0o644);
        let error = read_pin(&settings("link"), None).err().expect("refused");
        let real = directory.path().join("pin").canonicalize().expect("there");
        assert!(matches!(&error, PinError::Mode { path, .. } if *path == real), "{error}");
        std::os::unix::fs::symlink("nowhere", directory.path().join("dangling")).expect("linked");
        assert!(matches!(read_pin(&settings("dangling"), None), Err(PinError::Unreadable { .. })));
        assert!(matches!(read_pin(&settings("missing"), None), Err(PinError::Unreadable { .. })));
        assert!(matches!(read_pin(&settings(""), None), Err(PinError::NotRegular { .. })));
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).expect("a pipe");
        assert!(matches!(read_pin(&settings("pipe"), None), Err(PinError::NotRegular { .. })));
    }

    #[test]
    fn a_file_of_somebody_else_is_refused() {
        if !nix::unistd::geteuid().is_root() {
            return; // only root can give a file away
        }
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("pin");
        fs::write(&path, "123456").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        std::os::unix::fs::chown(&path, Some(65534), None).expect("chown");
        let settings = Settings { pin_file: Some(path), ..Settings::default() };
        assert!(matches!(read_pin(&settings, None), Err(PinError::Owner { owner: 65534, .. })));
    }

    #[test]
    fn roots_file_for_custodys_group_and_roots_tools_read_custodys() {
        if !nix::unistd::geteuid().is_root() {
            return; // only root can give a file away
        }
        arena();
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("pin");
        fs::write(&path, "123456\n").expect("written");
        let mut settings = Settings { pin_file: Some(path.clone()), ..Settings::default() };
        let give = |owner, group, mode| {
            std::os::unix::fs::chown(&path, Some(owner), Some(group)).expect("chown");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        };
        give(0, 0, 0o440);
        assert!(read_pin(&settings, None).is_ok(), "0 is a group of this process");
        give(0, 65534, 0o440);
        assert!(matches!(read_pin(&settings, None), Err(PinError::Mode { group: 65534, .. })));
        settings.custody_user = Some(65534);
        assert!(read_pin(&settings, None).is_ok(), "the group of nobody, who is custody here");
        for mode in [0o460, 0o444, 0o640, 0o450] {
            give(0, 65534, mode);
            assert!(matches!(read_pin(&settings, None), Err(PinError::Mode { .. })), "{mode:o}");
        }
        give(65534, 65534, 0o600);
        assert!(read_pin(&settings, None).is_ok());
        give(65533, 65534, 0o600);
        assert!(matches!(read_pin(&settings, None), Err(PinError::Owner { owner: 65533, .. })));
    }

    #[test]
    fn a_credential_goes_before_the_file_and_must_be_a_name() {
        arena();
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("token-pin");
        fs::write(&path, "from systemd\n").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o440)).expect("chmod");
        let mut settings = Settings {
            pin_credential: Some("token-pin".into()),
            pin_file: Some("/nowhere".into()),
            ..Settings::default()
        };
        let pin = read_pin(&settings, Some(directory.path())).expect("read");
        assert_eq!(pin.expose(), b"from systemd");
        assert!(matches!(read_pin(&settings, None), Err(PinError::NoCredentials)));
        for name in ["", "..", "../token-pin", "/etc/passwd"] {
            settings.pin_credential = Some(name.into());
            let result = read_pin(&settings, Some(directory.path()));
            assert!(matches!(result, Err(PinError::CredentialName)), "{name:?}");
        }
        assert!(matches!(read_pin(&Settings::default(), None), Err(PinError::Unset)));
    }
}
