//! GVariant's text format (GLib, "GVariant Text Format"), as far as properties of units need
//! it and runc and crun accept it: booleans, numbers, strings, arrays of strings.

use super::wire::Value;

/// What a text says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Literal {
    Value(Value),
    /// A number with a point, as written: no property has one, but a number of seconds may.
    Fraction(String),
}

/// Reads a whole text. The error quotes it.
pub(super) fn parse(text: &str) -> Result<Literal, String> {
    let mut reader = Reader { rest: text.trim() };
    let literal = reader.literal()?;
    if reader.rest.is_empty() {
        Ok(literal)
    } else {
        Err(format!("{text:?} goes on after its end: {:?}", reader.rest))
    }
}

/// The types of numbers: their names, and their signatures after `@`.
#[derive(Debug, Clone, Copy)]
enum Number {
    I32,
    U32,
    I64,
    U64,
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn literal(&mut self) -> Result<Literal, String> {
        match self.rest.chars().next() {
            Some('\'' | '"') => Ok(Literal::Value(Value::Str(self.string()?))),
            Some('[') => Ok(Literal::Value(Value::Strs(self.strings()?))),
            _ => self.typed(),
        }
    }

    /// A word, and what follows a word that is a type.
    fn typed(&mut self) -> Result<Literal, String> {
        let word = self.word();
        let number = match word {
            "true" => return Ok(Literal::Value(Value::Bool(true))),
            "false" => return Ok(Literal::Value(Value::Bool(false))),
            "boolean" | "@b" => return self.only(|literal| matches!(literal, Value::Bool(_))),
            "string" | "@s" => return self.only(|literal| matches!(literal, Value::Str(_))),
            // The only way to write an empty array, whose type nothing tells.
            "@as" => {
                self.skip_space();
                return Ok(Literal::Value(Value::Strs(self.array(true)?)));
            }
            "int32" | "@i" => Number::I32,
            "uint32" | "@u" => Number::U32,
            "int64" | "@x" => Number::I64,
            "uint64" | "@t" => Number::U64,
            word => return number(word, Number::I32),
        };
        self.skip_space();
        let digits = self.word();
        match self::number(digits, number)? {
            Literal::Fraction(text) => Err(format!("{text:?} is not a whole number")),
            value => Ok(value),
        }
    }

    /// What follows the name of its type.
    fn only(&mut self, of_type: fn(&Value) -> bool) -> Result<Literal, String> {
        self.skip_space();
        let text = self.rest;
        match self.rest.chars().next() {
            Some('\'' | '"' | 't' | 'f') => {}
            _ => return Err(format!("{text:?} is not of the type before it")),
        }
        match self.literal()? {
            Literal::Value(value) if of_type(&value) => Ok(Literal::Value(value)),
            _ => Err(format!("{text:?} is not of the type before it")),
        }
    }

    /// Up to a space or what ends an element.
    fn word(&mut self) -> &'a str {
        let ends = |c: char| c.is_whitespace() || matches!(c, ',' | ']' | '[' | '\'' | '"');
        let end = self.rest.find(ends).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn strings(&mut self) -> Result<Vec<String>, String> {
        self.array(false)
    }

    fn array(&mut self, may_be_empty: bool) -> Result<Vec<String>, String> {
        let whole = self.rest;
        let invalid = || format!("{whole:?} is not an array of strings");
        self.rest = self.rest.strip_prefix('[').ok_or_else(invalid)?;
        let mut strings = Vec::new();
        loop {
            self.skip_space();
            if let Some(rest) = self.rest.strip_prefix(']') {
                self.rest = rest;
                return if strings.is_empty() && !may_be_empty {
                    Err("an empty array is written @as []".to_owned())
                } else {
                    Ok(strings)
                };
            }
            if !strings.is_empty() {
                self.rest = self.rest.strip_prefix(',').ok_or_else(invalid)?;
                self.skip_space();
            }
            if !self.rest.starts_with(['\'', '"']) {
                return Err(invalid());
            }
            strings.push(self.string()?);
        }
    }

    /// In single or double quotes, with the escapes of the format.
    fn string(&mut self) -> Result<String, String> {
        let whole = self.rest;
        let invalid = |what: &str| format!("{whole:?}: {what}");
        let mut chars = self.rest.chars();
        let quote = chars.next();
        let mut text = String::new();
        loop {
            let c = match chars.next() {
                None => return Err(invalid("the string does not end")),
                Some('\0') => return Err(invalid("a string cannot hold NUL")),
                c if c == quote => break,
                Some('\\') => {
                    match chars.next() {
                        None => return Err(invalid("the string does not end")),
                        Some('a') => '\x07',
                        Some('b') => '\x08',
                        Some('f') => '\x0c',
                        Some('n') => '\n',
                        Some('r') => '\r',
                        Some('t') => '\t',
                        Some('v') => '\x0b',
                        // The line goes on.
                        Some('\n') => continue,
                        Some(kind @ ('u' | 'U')) => {
                            let digits = if kind == 'u' { 4 } else { 8 };
                            let digits: String = chars.by_ref().take(digits).collect();
                            u32::from_str_radix(&digits, 16)
                                .ok()
                                .filter(|code| *code != 0 && !digits.starts_with('+'))
                                .and_then(char::from_u32)
                                .ok_or_else(|| invalid("no such character"))?
                        }
                        Some(c) => c,
                    }
                }
                Some(c) => c,
            };
            text.push(c);
        }
        self.rest = chars.as_str();
        Ok(text)
    }
}

/// Decimal, `0x…` or, with a leading zero, octal, as in C.
fn number(word: &str, number: Number) -> Result<Literal, String> {
    let invalid = || format!("{word:?} is not a value in GVariant's text format");
    let (negative, digits) = match word.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, word.strip_prefix('+').unwrap_or(word)),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(invalid());
    }
    let fraction = digits.split_once('.');
    if fraction.is_some_and(|(_, part)| part.bytes().all(|byte| byte.is_ascii_digit())) {
        return Ok(Literal::Fraction(word.to_owned()));
    }
    let parsed = if let Some(hex) = digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
        u64::from_str_radix(hex, 16)
    } else if let Some(octal) = digits.strip_prefix('0').filter(|rest| !rest.is_empty()) {
        u64::from_str_radix(octal, 8)
    } else {
        digits.parse()
    };
    let size = i128::from(parsed.map_err(|_| invalid())?);
    let value = if negative { -size } else { size };
    let too_large = |_| format!("{word:?} does not fit its type");
    Ok(Literal::Value(match number {
        Number::I32 => Value::I32(value.try_into().map_err(too_large)?),
        Number::U32 => Value::U32(value.try_into().map_err(too_large)?),
        Number::I64 => Value::I64(value.try_into().map_err(too_large)?),
        Number::U64 => Value::U64(value.try_into().map_err(too_large)?),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(text: &str) -> Value {
        match parse(text) {
            Ok(Literal::Value(value)) => value,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn values() {
        let string = |text: &str| Value::Str(text.to_owned());
        let strings = |all: &[&str]| Value::Strs(all.iter().map(|&s| s.to_owned()).collect());
        for (text, expected) in [
            ("true", Value::Bool(true)),
            (" false ", Value::Bool(false)),
            ("boolean true", Value::Bool(true)),
            ("@b false", Value::Bool(false)),
            ("5", Value::I32(5)),
            ("-5", Value::I32(-5)),
            ("+5", Value::I32(5)),
            ("0", Value::I32(0)),
            ("0x1F", Value::I32(31)),
            ("010", Value::I32(8)),
            ("int32 -2147483648", Value::I32(i32::MIN)),
            ("uint32 4294967295", Value::U32(u32::MAX)),
            ("int64 -9223372036854775808", Value::I64(i64::MIN)),
            ("uint64  18446744073709551615", Value::U64(u64::MAX)),
            ("@t 7", Value::U64(7)),
            ("'a b'", string("a b")),
            (r#""it's""#, string("it's")),
            (
                r"'it\'s \\ \t\u00e9\U0001f600'",
                string("it's \\ \té\u{1f600}"),
            ),
            ("string 'x'", string("x")),
            ("''", string("")),
            ("['a']", strings(&["a"])),
            ("[ 'a' , \"b,]\" ]", strings(&["a", "b,]"])),
            ("@as []", strings(&[])),
            ("@as ['x']", strings(&["x"])),
        ] {
            assert_eq!(value(text), expected, "{text}");
        }
        assert_eq!(parse("1.50"), Ok(Literal::Fraction("1.50".to_owned())));
    }

    #[test]
    fn refused() {
        for text in [
            "",
            " ",
            "yes",
            "True",
            "'open",
            "\"open'",
            "'a' 'b'",
            "'a'b",
            "[",
            "[]",
            "['a'",
            "['a',]",
            "['a' 'b']",
            "[,'a']",
            "[1]",
            "['a']]",
            "uint32 -1",
            "uint32 4294967296",
            "2147483648",
            "uint64",
            "uint64 'x'",
            "uint64 1.5",
            "uint64 18446744073709551616",
            "int16 1",
            "byte 1",
            "0x",
            "08",
            "1e5",
            "-",
            "--1",
            "1 2",
            "boolean 'x'",
            "string true",
            "string string 'x'",
            "@as 'x'",
            "@q 1",
            "<'x'>",
            "('a', 1)",
            "{'a': 1}",
            r"'\u12'",
            r"'\u0000'",
            "'a\0b'",
            r"'\uD800'",
            "nothing",
        ] {
            assert!(parse(text).is_err(), "{text:?}: {:?}", parse(text));
        }
    }

    proptest! {
        #[test]
        fn strings_come_back(text in "[^\0]*") {
            let quoted = format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
            prop_assert_eq!(value(&quoted), Value::Str(text));
        }

        #[test]
        fn nothing_panics(text in r#"[\[\]@'"\\utas0-9x. ,-]{0,24}"#) {
            parse(&text).ok();
        }
    }
}
