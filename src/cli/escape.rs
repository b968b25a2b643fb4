//! Makes text from files and peers harmless for a terminal: what would drive it, or reorder or hide what it
//! shows, is shown as an escape.

/// One line: also its line ends are shown.
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if drives(character) {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

/// Text of several lines, whose ends stay.
pub fn plain_lines(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(plain).collect();
    lines.join("\n")
}

/// A JSON document, which means the same afterwards: what drives a terminal can stand in its strings alone.
pub fn plain_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' => out.push(character),
            '\r' => out.push(' '),
            character if drives(character) => {
                let mut units = [0; 2];
                for unit in character.encode_utf16(&mut units) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            character => out.push(character),
        }
    }
    out
}

/// Whether a terminal does something else with it than to show it where it stands: control characters (C0,
/// DEL, C1), and the invisible ones that set the direction of text, or separate lines.
pub fn drives(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_drives_a_terminal_gets_through_in_any_form() {
        let hostile = "a\u{1b}[2J\u{9b}1m\u{7f}\r\u{202e}b\u{e0041}\n\tü€";
        for text in [plain(hostile), plain_lines(hostile), plain_json(hostile)] {
            let left: Vec<char> = text.chars().filter(|c| drives(*c)).collect();
            assert!(left.iter().all(|c| matches!(c, '\n' | '\t')), "{left:?}");
            assert!(text.contains("ü€"), "{text}");
        }
        assert_eq!(plain("a\nb"), "a\\nb");
        assert_eq!(plain_lines("a\n\u{1b}b\n"), "a\n\\u{1b}b\n");
        let document = serde_json::json!({ "x": hostile });
        let escaped = plain_json(&format!("{document:#}"));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), document);
    }
}
