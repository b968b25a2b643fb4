//! Reads the user PIN from a file or a systemd credential into the arena.

use std::{
    fs::{File, OpenOptions},
    io::Read,
    num::NonZeroUsize,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::Settings;
use crate::secret::{ArenaError, IoBuffer, Pin};

/// The longest PIN taken, in bytes; tokens allow far less.
const MAX_LEN: usize = 255;

/// Room for the longest PIN, a newline, and one byte to see that there is more.
const BUFFER: NonZeroUsize = NonZeroUsize::new(MAX_LEN + 2).expect("not zero");

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
    /// It cannot be opened or read; symbolic links are not followed.
    #[error("the PIN file {} cannot be read: {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    /// A directory, a pipe, a device.
    #[error("the PIN file {} is not a regular file", path.display())]
    NotRegular { path: PathBuf },
    /// Others may read it.
    #[error("the PIN file {} has mode {mode:04o}: chmod 0600 it", path.display())]
    Mode { path: PathBuf, mode: u32 },
    /// Somebody else may change it.
    #[error("the PIN file {} belongs to uid {owner}: chown it to root or to uid {own}", path.display())]
    Owner { path: PathBuf, owner: u32, own: u32 },
    /// Empty, or longer than any PIN.
    #[error("the PIN file {} holds no PIN of 1 to {MAX_LEN} bytes", path.display())]
    Length { path: PathBuf },
    /// No locked memory.
    #[error(transparent)]
    Arena(#[from] ArenaError),
}

/// Reads the PIN that `settings` name.
///
/// `credentials` is the directory that systemd handed over (`$CREDENTIALS_DIRECTORY`), if any. One
/// newline at the end is cut off; every other byte belongs to the PIN.
pub fn read_pin(settings: &Settings, credentials: Option<&Path>) -> Result<Pin, PinError> {
    // systemd lets the service's user read a credential through an ACL, whose mask shows as the
    // group's bits: 0440 is normal there, and no group has access by it.
    if let Some(name) = &settings.pin_credential {
        let directory = credentials.ok_or(PinError::NoCredentials)?;
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(PinError::CredentialName);
        }
        return read(&directory.join(name), 0o640);
    }
    read(settings.pin_file.as_deref().ok_or(PinError::Unset)?, 0o600)
}

fn read(path: &Path, allowed: u32) -> Result<Pin, PinError> {
    let unreadable = |source| PinError::Unreadable { path: path.into(), source };
    let mut file = open_checked(path, allowed)?;
    // By way of a locked buffer: the kernel refuses to read straight into the arena.
    let mut buffer = IoBuffer::new(BUFFER).map_err(|errno| unreadable(errno.into()))?;
    let len = fill(&mut file, &mut buffer).map_err(unreadable)?;
    let bytes = buffer.get(..len).unwrap_or_default();
    let pin = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    if pin.is_empty() || pin.len() > MAX_LEN {
        return Err(PinError::Length { path: path.into() });
    }
    Ok(Pin::copy_from(pin)?)
}

/// Opens without following a link and judges the very file that was opened.
fn open_checked(path: &Path, allowed: u32) -> Result<File, PinError> {
    let unreadable = |source| PinError::Unreadable { path: path.into(), source };
    // O_NONBLOCK: a pipe in the file's place must not hang the start.
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(unreadable)?;
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err(PinError::NotRegular { path: path.into() });
    }
    let mode = meta.mode() & 0o7777;
    if mode & !allowed != 0 {
        return Err(PinError::Mode { path: path.into(), mode });
    }
    let own = nix::unistd::geteuid().as_raw();
    if meta.uid() != 0 && meta.uid() != own {
        return Err(PinError::Owner { path: path.into(), owner: meta.uid(), own });
    }
    Ok(file)
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
    fn one_newline_is_cut_and_nothing_else() {
        assert_eq!(pin_of(b"123456", 0o600).expect("read"), b"123456");
        assert_eq!(pin_of(b"123456\n", 0o400).expect("read"), b"123456");
        assert_eq!(pin_of(b" 1\n\n", 0o600).expect("read"), b" 1\n");
        assert_eq!(pin_of(&[b'7'; 255], 0o600).expect("read").len(), 255);
    }

    #[test]
    fn lengths_that_are_no_pin_are_refused() {
        for content in [&b""[..], b"\n", &[b'7'; 256], &[b'7'; 10_000]] {
            assert!(matches!(pin_of(content, 0o600), Err(PinError::Length { .. })));
        }
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
    fn links_directories_and_pipes_are_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let settings = |name: &str| Settings {
            pin_file: Some(directory.path().join(name)),
            ..Settings::default()
        };
        fs::write(directory.path().join("pin"), "123456").expect("written");
        std::os::unix::fs::symlink("pin", directory.path().join("link")).expect("linked");
        assert!(matches!(read_pin(&settings("link"), None), Err(PinError::Unreadable { .. })));
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
