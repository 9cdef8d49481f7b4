//! Words of strangers in messages: what a terminal would take for orders is written out.

use std::fmt::{self, Display, Write as _};

/// Shows control characters escaped.
#[derive(Debug)]
pub struct Printable<T>(pub T);

impl<T: Display> Display for Printable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

struct Escaping<'a, 'f>(&'a mut fmt::Formatter<'f>);

impl fmt::Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive(char::is_control) {
            match part.char_indices().next_back() {
                Some((at, last)) if last.is_control() => {
                    write!(self.0, "{}{}", &part[..at], last.escape_default())?;
                }
                _ => self.0.write_str(part)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controls_are_escaped_and_nothing_else() {
        for (text, expected) in [
            ("", ""),
            ("plain \u{e9} \u{fffd}", "plain \u{e9} \u{fffd}"),
            ("\u{7f}ELF\u{2}\u{1}", "\\u{7f}ELF\\u{2}\\u{1}"),
            ("a\u{1b}[31mb\n\0", "a\\u{1b}[31mb\\n\\u{0}"),
            ("\u{9b}1m", "\\u{9b}1m"),
        ] {
            assert_eq!(Printable(text).to_string(), expected, "{text:?}");
        }
    }
}
