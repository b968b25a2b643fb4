//! What custody signs, and nothing else: checkpoints of a trail, in their one form.
//!
//! ```text
//! "strongroom trail checkpoint v1\n" ‖ trail ‖ "\n" ‖ covers ‖ "\n" ‖ head ‖ "\n" ‖ at ‖ "\n"
//! ```

/// What every message begins with that custody signs.
pub const CHECKPOINT_TAG: &[u8] = b"strongroom trail checkpoint v1\n";

/// Whether a message is a checkpoint: a trail of 16 hex digits, a line number, a hash of 64 hex digits
/// and a time, each ending its line, and nothing else.
pub fn is_checkpoint(message: &[u8]) -> bool {
    let text = message.strip_prefix(CHECKPOINT_TAG).and_then(|rest| std::str::from_utf8(rest).ok());
    let Some(lines) = text.and_then(|text| text.strip_suffix('\n')) else { return false };
    let mut lines = lines.split('\n');
    let mut next = || lines.next().unwrap_or_default();
    let (trail, covers, head, at) = (next(), next(), next(), next());
    let hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let number = covers.parse::<u64>().is_ok_and(|number| number.to_string() == covers);
    let time = |text: &str| text.len() <= 40 && text.parse::<jiff::Timestamp>().is_ok();
    hex(trail, 16) && number && hex(head, 64) && time(at) && lines.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

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
