//! What custody signs, and nothing else: checkpoints of a trail and manifests of backups, in their one
//! form.
//!
//! ```text
//! "strongroom trail checkpoint v1\n" ‖ trail ‖ "\n" ‖ covers ‖ "\n" ‖ head ‖ "\n" ‖ at ‖ "\n"
//! "strongroom backup v1\n" ‖ SHA-256 of the manifest ‖ "\n"
//! ```

/// What every message begins with that custody signs: for a backup …
pub const BACKUP_TAG: &[u8] = b"strongroom backup v1\n";

/// … and for a checkpoint.
pub const CHECKPOINT_TAG: &[u8] = b"strongroom trail checkpoint v1\n";

/// Whether a message is a checkpoint: a trail of 16 hex digits, a line number, a hash of 64 hex digits
/// and a time, each ending its line, and nothing else.
pub fn is_checkpoint(message: &[u8]) -> bool {
    let text = message.strip_prefix(CHECKPOINT_TAG).and_then(|rest| std::str::from_utf8(rest).ok());
    let Some(lines) = text.and_then(|text| text.strip_suffix('\n')) else { return false };
    let mut lines = lines.split('\n');
    let mut next = || lines.next().unwrap_or_default();
    let (trail, covers, head, at) = (next(), next(), next(), next());
    let number = covers.parse::<u64>().is_ok_and(|number| number.to_string() == covers);
    let time = |text: &str| text.len() <= 40 && text.parse::<jiff::Timestamp>().is_ok();
    hex(trail, 16) && number && hex(head, 64) && time(at) && lines.next().is_none()
}

/// Whether a message names a backup: a hash of 64 hex digits that ends its line, and nothing else.
pub fn is_backup(message: &[u8]) -> bool {
    let text = message.strip_prefix(BACKUP_TAG).and_then(|rest| std::str::from_utf8(rest).ok());
    text.and_then(|text| text.strip_suffix('\n')).is_some_and(|digest| hex(digest, 64))
}

fn hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_has_one_form() {
        let good = format!("{}\n", "a".repeat(64));
        let tagged = |text: &str| [BACKUP_TAG, text.as_bytes()].concat();
        assert!(is_backup(&tagged(&good)) && !is_checkpoint(&tagged(&good)));
        assert!(!is_backup(good.as_bytes()));
        for bad in ["\n", good.trim_end(), &good.to_uppercase(), &good[1..], &good.repeat(2)] {
            assert!(!is_backup(&tagged(bad)), "{bad:?}");
        }
    }

    #[test]
    fn a_checkpoint_has_one_form() {
        let hash = "a".repeat(64);
        let good = format!("0123456789abcdef\n12\n{hash}\n2026-01-02T03:04:05.000006Z\n");
        let tagged = |text: &str| [CHECKPOINT_TAG, text.as_bytes()].concat();
        assert!(is_checkpoint(&tagged(&good)));
        assert!(!is_checkpoint(good.as_bytes()));
        for bad in [
            String::new(),
            "\n".to_owned(),
            good.replace("12\n", "012\n"),
            good.replace("12\n", "+12\n"),
            good.replace("12\n", "\n"),
            good.replace("0123456789abcdef", "0123456789ABCDEF"),
            good.replace("abcdef\n", "abcde\n"),
            good.replace(&hash, &"a".repeat(63)),
            good.replace("2026", "when"),
            good.trim_end().to_owned(),
            format!("{good}\n"),
            format!("{good}more\n"),
        ] {
            assert!(!is_checkpoint(&tagged(&bad)), "{bad:?}");
        }
    }
}
