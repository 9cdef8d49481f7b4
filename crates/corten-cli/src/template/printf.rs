//! `printf` with Go's verbs, as far as JSON values have something to say to them.

use serde_json::Value;

use super::exec::display;

/// Widest field, in characters.
const MAX_WIDTH: usize = 4096;

#[derive(Default)]
struct Spec {
    left: bool,
    plus: bool,
    zero: bool,
    sharp: bool,
    width: usize,
    precision: Option<usize>,
}

pub(super) fn format(format: &str, args: &[Value]) -> Result<String, String> {
    let mut out = String::new();
    let mut args = args.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut spec = Spec::default();
        while let Some(flag) = chars.next_if(|c| matches!(c, '-' | '+' | '0' | '#' | ' ')) {
            match flag {
                '-' => spec.left = true,
                '+' => spec.plus = true,
                '0' => spec.zero = true,
                '#' => spec.sharp = true,
                _ => {}
            }
        }
        spec.width = digits(&mut chars);
        if chars.next_if_eq(&'.').is_some() {
            spec.precision = Some(digits(&mut chars));
        }
        match chars.next() {
            None => out.push_str("%!(NOVERB)"),
            Some('%') => out.push('%'),
            Some(verb) => match args.next() {
                None => out.push_str(&format!("%!{verb}(MISSING)")),
                Some(value) => out.push_str(&spec.apply(verb, value)),
            },
        }
    }
    let extra: Vec<String> = args.map(display).collect();
    if !extra.is_empty() {
        out.push_str(&format!("%!(EXTRA {})", extra.join(", ")));
    }
    Ok(out)
}

/// A width or a precision, as far as one makes sense.
fn digits(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> usize {
    let mut n = 0_usize;
    while let Some(d) = chars.next_if(char::is_ascii_digit) {
        n = (n * 10 + d.to_digit(10).map_or(0, |d| d as usize)).min(MAX_WIDTH);
    }
    n
}

impl Spec {
    fn apply(&self, verb: char, value: &Value) -> String {
        let wrong = || format!("%!{verb}({})", display(value));
        let text = match verb {
            'v' if self.sharp => value.to_string(),
            'v' => display(value),
            's' => self.cut(display(value)),
            'q' => format!("{:?}", display(value)),
            't' if value.is_boolean() => display(value),
            'd' => match value.as_i64() {
                Some(n) if self.plus && n >= 0 => format!("+{n}"),
                Some(n) => n.to_string(),
                None => return wrong(),
            },
            'x' | 'X' | 'o' | 'b' | 'c' => match (verb, value) {
                ('x', Value::String(s)) => s.bytes().map(|b| format!("{b:02x}")).collect(),
                ('X', Value::String(s)) => s.bytes().map(|b| format!("{b:02X}")).collect(),
                (_, Value::Number(n)) => match (verb, n.as_u64()) {
                    ('x', Some(n)) => format!("{n:x}"),
                    ('X', Some(n)) => format!("{n:X}"),
                    ('o', Some(n)) => format!("{n:o}"),
                    ('b', Some(n)) => format!("{n:b}"),
                    ('c', Some(n)) => u32::try_from(n)
                        .ok()
                        .and_then(char::from_u32)
                        .map_or_else(wrong, String::from),
                    _ => return wrong(),
                },
                _ => return wrong(),
            },
            'f' | 'F' => match value.as_f64() {
                Some(n) => format!("{n:.*}", self.precision.unwrap_or(6)),
                None => return wrong(),
            },
            'e' | 'g' => match value.as_f64() {
                Some(n) => n.to_string(),
                None => return wrong(),
            },
            _ => return wrong(),
        };
        self.pad(text, matches!(verb, 'd' | 'x' | 'X' | 'f' | 'F'))
    }

    fn cut(&self, text: String) -> String {
        match self.precision {
            Some(n) => text.chars().take(n).collect(),
            None => text,
        }
    }

    fn pad(&self, text: String, numeric: bool) -> String {
        let missing = self.width.saturating_sub(text.chars().count());
        if missing == 0 {
            text
        } else if self.left {
            format!("{text}{}", " ".repeat(missing))
        } else if self.zero && numeric {
            match text.strip_prefix('-') {
                Some(digits) => format!("-{}{digits}", "0".repeat(missing)),
                None => format!("{}{text}", "0".repeat(missing)),
            }
        } else {
            format!("{}{text}", " ".repeat(missing))
        }
    }
}
