//! Text as Go quotes it: what dumps, tables and errors of Docker's programs have.

use std::fmt::Write as _;

/// Go's `strconv.Quote`, as `%q` prints it.
#[must_use]
pub fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0b' => out.push_str("\\v"),
            '\x0c' => out.push_str("\\f"),
            c if c.is_ascii_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            // Go calls no white space printable but the blank, and no control character.
            c if c != ' ' && (c.is_whitespace() || c.is_control()) => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_as_go_quotes_them() {
        for (text, quoted) in [
            ("", r#""""#),
            ("/bin/sh -c a && b", r#""/bin/sh -c a && b""#),
            ("set -e\necho \"é\"\n", r#""set -e\necho \"é\"\n""#),
            ("a\\b\t\r\u{7}\u{1}\u{7f}", r#""a\\b\t\r\a\x01\x7f""#),
            ("\u{85}\u{a0}\u{2028}", r#""\u0085\u00a0\u2028""#),
        ] {
            assert_eq!(quote(text), quoted);
        }
    }
}
