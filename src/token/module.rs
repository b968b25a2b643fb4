//! Looks at a PKCS#11 library without running any of it.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::sandbox::{Untrusted, trusted};

/// What every PKCS#11 library gives out (PKCS#11 v3.0 §5.4).
const ENTRY: &[u8] = b"C_GetFunctionList";

/// The part of an ELF header that says for which machine the file is: its identification, type and
/// machine (elf(5)).
const HEADER: usize = 20;
const MAGIC: &[u8] = b"\x7fELF";
/// A shared object, in the byte order of the machine.
const ET_DYN: u16 = 3;

/// Why a file cannot be a token's library.
#[derive(Debug, thiserror::Error)]
pub enum ModuleFault {
    #[error("{}: {error}", path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error(
        "the module runs with the token and its PIN, so nobody else may be able to change it: {0}"
    )]
    Untrusted(Untrusted),
    #[error("{} is not a file", .0.display())]
    NotAFile(PathBuf),
    #[error("{} is no library: no shared object", .0.display())]
    NoLibrary(PathBuf),
    #[error("{} is a library for another kind of machine than this", .0.display())]
    OtherMachine(PathBuf),
    #[error("{} is a library, but none of PKCS#11: it has no C_GetFunctionList", .0.display())]
    NotPkcs11(PathBuf),
}

/// Whether nobody else can change the module, or put another in its place. A bare name is looked for by the
/// loader, in the system's own directories.
pub fn check_module(path: &Path) -> Result<(), ModuleFault> {
    if path.components().count() < 2 {
        return Ok(());
    }
    trusted::check_file(path).map_err(|error| match error {
        Untrusted::Unreadable { error, .. } => {
            ModuleFault::Unreadable { path: path.to_owned(), error }
        }
        Untrusted::NotRegular(path) => ModuleFault::NotAFile(path),
        error => ModuleFault::Untrusted(error),
    })
}

/// The same where only what is there can be refused: one that is not may come (back) later.
pub fn refuse_loose_module(path: &Path) -> Result<(), ModuleFault> {
    match check_module(path) {
        Err(fault @ ModuleFault::Untrusted(_)) => Err(fault),
        _ => Ok(()),
    }
}

/// Looks whether a file can be a PKCS#11 library of this machine. Whether it works shows when it is used.
pub fn look_at_module(path: &Path) -> Result<(), ModuleFault> {
    let unreadable = |error| ModuleFault::Unreadable { path: path.to_owned(), error };
    check_module(path)?;
    let library = std::fs::read(path).map_err(unreadable)?;
    let Some(header) = library.first_chunk::<HEADER>().filter(|header| header.starts_with(MAGIC))
    else {
        return Err(ModuleFault::NoLibrary(path.to_owned()));
    };
    let [.., low, high, _, _] = *header;
    if let Ok(ours) = header_of_this_program()
        && !(same(header, &ours, 4..6) && same(header, &ours, 18..20))
    {
        return Err(ModuleFault::OtherMachine(path.to_owned()));
    }
    if u16::from_ne_bytes([low, high]) != ET_DYN {
        return Err(ModuleFault::NoLibrary(path.to_owned()));
    }
    match library.windows(ENTRY.len()).any(|window| window == ENTRY) {
        true => Ok(()),
        false => Err(ModuleFault::NotPkcs11(path.to_owned())),
    }
}

fn header_of_this_program() -> io::Result<[u8; HEADER]> {
    let mut header = [0; HEADER];
    std::fs::File::open("/proc/self/exe")?.read_exact(&mut header)?;
    Ok(header)
}

/// Whether these bytes are the same: class and byte order, or the machine.
fn same(one: &[u8; HEADER], other: &[u8; HEADER], range: std::ops::Range<usize>) -> bool {
    one.get(range.clone()) == other.get(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_library_of_pkcs11_and_this_machine_passes() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("module.so");
        let mut header = header_of_this_program().unwrap();
        header[16..18].copy_from_slice(&ET_DYN.to_ne_bytes());
        let mut foreign = header;
        foreign[18] ^= 1;
        let mut object = header;
        object[16] ^= 2;
        let fault = |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            look_at_module(&file).err().map(|fault| fault.to_string()).unwrap_or_default()
        };
        assert_eq!(fault(&[&header[..], b"...", ENTRY].concat()), "");
        assert!(fault(&header).contains("C_GetFunctionList"));
        assert!(fault(&foreign).contains("another kind of machine"));
        assert!(fault(&object).contains("no shared object"));
        assert!(fault(b"#!/bin/sh\n# C_GetFunctionList").contains("no shared object"));
        assert!(look_at_module(directory.path()).unwrap_err().to_string().contains("not a file"));
        assert!(look_at_module(&directory.path().join("none")).is_err());
    }
}
