//! Environment variables and labels, from flags and from files.

use std::collections::HashMap;
use std::path::Path;

use super::{OptError, Result};

/// For flag tables: a variable must have a name.
pub(crate) fn check(text: &str) -> std::result::Result<(), String> {
    if text.is_empty() || text.starts_with('=') {
        return Err(format!("invalid environment variable: {text}"));
    }
    Ok(())
}

/// The environment of `--env-file` files and `-e` values, in this order. A name without `=`
/// takes its value from our own environment; where there is none, a file's entry is dropped
/// and a flag's is passed on as it is (it removes the variable).
///
/// # Errors
/// A file cannot be read or has a malformed line.
pub fn environment(
    files: &[&str],
    values: &[&str],
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<Vec<String>> {
    let mut out = Vec::new();
    for file in files {
        for (name, value) in read(file)? {
            if let Some(value) = value.or_else(|| lookup(&name)) {
                out.push(format!("{name}={value}"));
            }
        }
    }
    for value in values {
        out.push(match lookup(value) {
            Some(found) if !value.contains('=') => format!("{value}={found}"),
            _ => (*value).to_owned(),
        });
    }
    Ok(out)
}

/// Labels of `--label-file` files and `--label` values; later ones win.
///
/// # Errors
/// A file cannot be read or has a malformed line; a label without a name.
pub fn labels(files: &[&str], values: &[&str]) -> Result<HashMap<String, String>> {
    let mut out = HashMap::new();
    for file in files {
        for (name, value) in read(file)? {
            // A name alone would stand for a variable here, and labels have none: as Docker.
            if let Some(value) = value {
                out.insert(name, value);
            }
        }
    }
    for value in values {
        let (name, value) = value.split_once('=').unwrap_or((value, ""));
        out.insert(name.to_owned(), value.to_owned());
    }
    Ok(out)
}

/// For flag tables: a label must have a name.
pub(crate) fn check_label(text: &str) -> std::result::Result<(), String> {
    let name = text.split('=').next().unwrap_or_default().trim();
    if name.is_empty() {
        return Err(format!("invalid label '{text}': empty name"));
    }
    Ok(())
}

/// `key=value` pairs as a map; a key alone has an empty value.
#[must_use]
pub fn map(values: &[&str]) -> HashMap<String, String> {
    values
        .iter()
        .map(|text| text.split_once('=').unwrap_or((text, "")))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn read(path: &str) -> Result<Vec<(String, Option<String>)>> {
    let text = std::fs::read(Path::new(path))
        .map_err(|error| OptError::new(format!("open {path}: {}", crate::error::reason(&error))))?;
    parse_file(path, &text)
}

fn parse_file(path: &str, bytes: &[u8]) -> Result<Vec<(String, Option<String>)>> {
    let invalid = |what: String| OptError::new(format!("invalid env file ({path}): {what}"));
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut out = Vec::new();
    for (number, line) in bytes.split(|b| *b == b'\n').enumerate() {
        let line = std::str::from_utf8(line).map_err(|_| {
            invalid(format!(
                "invalid utf8 bytes at line {}: {line:?}",
                number + 1
            ))
        })?;
        let line = line.strip_suffix('\r').unwrap_or(line).trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (line, None),
        };
        if name.contains(char::is_whitespace) {
            return Err(invalid(format!("variable '{name}' contains whitespaces")));
        }
        if name.is_empty() {
            return Err(invalid(format!("no variable name on line '{line}'")));
        }
        out.push((name.to_owned(), value));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(name: &str) -> Option<String> {
        (name == "HOME").then(|| "/root".to_owned())
    }

    #[test]
    fn flags_take_values_from_our_environment() {
        let env = environment(&[], &["A=b=c", "HOME", "NOPE", "E="], ours).unwrap();
        assert_eq!(env, ["A=b=c", "HOME=/root", "NOPE", "E="]);
        assert_eq!(check("=x").unwrap_err(), "invalid environment variable: =x");
    }

    #[test]
    fn files() {
        let text = "\u{feff}# comment\n\nA=1 # not a comment\r\n  B = \nHOME\nNOPE\nC=\"q\"";
        assert_eq!(
            parse_file("f", text.as_bytes()).unwrap_err().0,
            "invalid env file (f): variable 'B ' contains whitespaces"
        );
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        std::fs::write(&file, text.replace("B = ", "B=")).unwrap();
        let env = environment(&[file.to_str().unwrap()], &["Z=1"], ours).unwrap();
        assert_eq!(
            env,
            ["A=1 # not a comment", "B=", "HOME=/root", "C=\"q\"", "Z=1"]
        );
        let missing = environment(&["/nope"], &[], ours).unwrap_err();
        assert_eq!(missing.0, "open /nope: no such file or directory");
        assert_eq!(
            parse_file("f", b"=x").unwrap_err().0,
            "invalid env file (f): no variable name on line '=x'"
        );
    }

    #[test]
    fn labels_later_wins() {
        let labels = labels(&[], &["a=1", "b", "a=2=3"]).unwrap();
        assert_eq!((labels["a"].as_str(), labels["b"].as_str()), ("2=3", ""));
        assert!(check_label("=x").is_err());
    }
}
