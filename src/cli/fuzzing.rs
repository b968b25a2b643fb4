//! What must hold for any input of a command: ciphertexts in whatever form, the daemon's base64.

use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE, Engine};

use super::input;

/// A ciphertext as a file or a pipe brings it: each base64 form of some bytes gives these bytes.
pub fn ciphertext(data: &[u8]) {
    let _ = input::ciphertext(data);
    let _ = std::str::from_utf8(data).map(input::unbase64);
    let (standard, url) = (BASE64_STANDARD_NO_PAD.encode(data), BASE64_URL_SAFE.encode(data));
    for form in [standard.clone(), url, standard.replace('A', "\r\n A")] {
        assert_eq!(input::ciphertext(form.as_bytes()), data, "{form}");
    }
    if data.len() < 1024 {
        let opened = input::unbase64(&input::base64(data)).ok().expect("its own form");
        assert_eq!(opened.expose(), data);
    }
}
