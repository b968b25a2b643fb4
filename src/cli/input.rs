//! Secrets on their way in: from stdin or a file, byte for byte, into locked memory.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroizing;

use super::problem::Failure;
use super::terminal;
use crate::secret::{self, ArenaError, SecretBytes, Settings, Use};

/// The longest input in bytes. RSA-4096 holds a plaintext of 446, its PKCS#8 takes about 3 KiB.
const MAX: usize = 16 << 10;

/// Any alphabet is turned into this one first; padding may be there or not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Where something is read from.
#[derive(Clone)]
pub enum Source {
    Stdin,
    File(PathBuf),
}

impl Source {
    /// `-` is stdin; everything else is a path.
    pub fn of(text: &str) -> Result<Self, std::convert::Infallible> {
        Ok(if text == "-" { Source::Stdin } else { Source::File(text.into()) })
    }

    /// Opens it, for whoever reads into memory of their own.
    /// Nothing of it is kept in a buffer on the way.
    pub fn open(&self) -> std::io::Result<File> {
        use std::os::fd::AsFd;
        match self {
            Source::Stdin => Ok(std::io::stdin().as_fd().try_clone_to_owned()?.into()),
            Source::File(path) => File::open(path),
        }
    }

    /// Reads a secret exactly as it is. On a terminal it is asked for with `prompt`, unseen, and ends
    /// with its line; without a prompt a terminal is refused.
    pub fn secret(&self, prompt: Option<&str>) -> Result<SecretBytes, Failure> {
        match self {
            Source::Stdin if std::io::stdin().is_terminal() && prompt.is_some() => {
                terminal::ask_unseen(prompt.unwrap_or_default())
            }
            _ => locked(&self.bytes()?),
        }
    }

    /// Reads something that need not lie in locked memory: a ciphertext, a public key.
    pub fn bytes(&self) -> Result<Zeroizing<Vec<u8>>, Failure> {
        match self {
            Source::Stdin if std::io::stdin().is_terminal() => Err(Failure::wrong_use(
                "this cannot be typed on a terminal",
                "name a file (--in FILE) or redirect stdin",
            )),
            Source::Stdin => read(&mut std::io::stdin().lock(), "stdin"),
            Source::File(path) => read(&mut open(path)?, &path.display().to_string()),
        }
    }
}

fn open(path: &Path) -> Result<File, Failure> {
    File::open(path).map_err(|error| {
        Failure::failed(
            format!("{} cannot be opened: {error}", path.display()),
            "check the path and who may read it",
        )
    })
}

/// Reads all of `source`, at most [`MAX`] bytes.
fn read(source: &mut impl Read, name: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut buffer = Zeroizing::new(vec![0u8; MAX + 1]);
    let mut filled = 0;
    while let Some(space) = buffer.get_mut(filled..).filter(|space| !space.is_empty()) {
        match source.read(space) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                let what = format!("{name} cannot be read: {error}");
                return Err(Failure::failed(what, "check what it is and who may read it"));
            }
        }
    }
    if filled > MAX {
        return Err(Failure::failed(
            format!("{name} is longer than {MAX} bytes"),
            "a key of 4096 bits holds 446 bytes: keep a data key here and encrypt the rest with it",
        ));
    }
    buffer.truncate(filled);
    Ok(buffer)
}

/// Copies `bytes` into locked memory; the arena is started by the first secret that needs it.
pub fn locked(bytes: &[u8]) -> Result<SecretBytes, Failure> {
    start_arena()?;
    Ok(SecretBytes::copy_from(bytes)?)
}

/// The smallest arena there is: a command holds one value at a time.
fn start_arena() -> Result<(), ArenaError> {
    let settings = Settings::default();
    secret::start(&settings, Use::Front).map(|_| ())
}

/// Base64 of a secret, in memory that is wiped.
pub fn base64(bytes: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(bytes))
}

/// Decodes base64 of a secret into locked memory.
pub fn unbase64(text: &str) -> Result<SecretBytes, Failure> {
    start_arena()?;
    let mut secret = SecretBytes::zeroed(base64::decoded_len_estimate(text.len()))?;
    let length = BASE64.decode_slice(text, secret.expose_mut()).map_err(|_| {
        Failure::failed("the daemon's answer is not base64", "check that both are of one version")
    })?;
    secret.truncate(length);
    Ok(secret)
}

/// A ciphertext given raw or as base64 of any alphabet, with or without line breaks: text that is nothing
/// but base64 is taken as such, and random bytes of such a length never look like that.
pub fn ciphertext(given: &[u8]) -> Vec<u8> {
    let text: Vec<u8> = given
        .iter()
        .filter(|byte| !byte.is_ascii_whitespace())
        .map(|byte| match byte {
            b'-' => b'+',
            b'_' => b'/',
            &other => other,
        })
        .collect();
    BASE64.decode(text).unwrap_or_else(|_| given.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_kept() {
        for input in [&b"token\n"[..], b"\n", b"", b"a\r\n\n", b"\0\xff"] {
            let secret = read(&mut &input[..], "test").ok().unwrap();
            assert_eq!(&secret[..], input);
        }
    }

    #[test]
    fn a_flood_is_refused() {
        let most = vec![7u8; MAX];
        assert_eq!(&read(&mut &most[..], "test").ok().unwrap()[..], most);
        let flood = vec![7u8; MAX + 1];
        assert_eq!(read(&mut &flood[..], "test").err().unwrap().code(), 1);
    }

    #[test]
    fn what_is_opened_lies_in_the_arena_exactly() {
        for bytes in [&b""[..], b"a", b"\n\n", &[0xff; 446]] {
            assert_eq!(unbase64(&base64(bytes)).ok().unwrap().expose(), bytes);
        }
        assert!(secret::usage().size_bytes >= Settings::MIN_SIZE);
        assert!(unbase64("%%%%").is_err());
    }

    #[test]
    fn ciphertexts_come_raw_or_in_any_base64() {
        let raw: Vec<u8> = (0..=255).collect();
        let standard = base64::engine::general_purpose::STANDARD.encode(&raw);
        let url = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&raw);
        let wrapped: String = standard
            .as_bytes()
            .chunks(64)
            .map(|line| format!("{}\r\n", String::from_utf8_lossy(line)))
            .collect();
        for given in [raw.as_slice(), standard.as_bytes(), url.as_bytes(), wrapped.as_bytes()] {
            assert_eq!(ciphertext(given), raw);
        }
    }
}
