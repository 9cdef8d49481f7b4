//! The functions a template may call: Go's built-in ones and Docker's.

use std::cmp::Ordering;

use serde_json::Value;

use super::exec::{display, truth};
use super::printf;

type Result = std::result::Result<Value, String>;

const NAMES: &[&str] = &[
    "and", "or", "not", "len", "index", "slice", "print", "printf", "println", "html", "js",
    "urlquery", "eq", "ne", "lt", "le", "gt", "ge", "json", "split", "join", "title", "lower",
    "upper", "pad", "truncate",
];

pub(super) fn exists(name: &str) -> bool {
    NAMES.contains(&name)
}

/// Docker's functions do nothing to a column's header.
pub(super) fn passes_headers_through(name: &str) -> bool {
    matches!(
        name,
        "json" | "split" | "join" | "title" | "lower" | "upper" | "pad" | "truncate"
    )
}

pub(super) fn call(name: &str, args: &[Value]) -> Result {
    match name {
        "not" => Ok(Value::Bool(!truth(arg(args, 0)?))),
        "len" => len(arg(args, 0)?),
        "index" => index(args),
        "slice" => slice(args),
        "print" => Ok(Value::String(print(args))),
        "println" => {
            let words: Vec<String> = args.iter().map(display).collect();
            Ok(Value::String(format!("{}\n", words.join(" "))))
        }
        "printf" => printf::format(text(args, 0)?, &args[1..]).map(Value::String),
        "html" => Ok(Value::String(html(&print(args)))),
        "js" => Ok(Value::String(js(&print(args)))),
        "urlquery" => Ok(Value::String(
            url::form_urlencoded::byte_serialize(print(args).as_bytes()).collect(),
        )),
        "eq" => {
            let first = arg(args, 0)?;
            arg(args, 1)?;
            Ok(Value::Bool(
                args[1..].iter().any(|other| equal(first, other)),
            ))
        }
        "ne" => Ok(Value::Bool(!equal(arg(args, 0)?, arg(args, 1)?))),
        "lt" => compare(args).map(|o| Value::Bool(o == Ordering::Less)),
        "le" => compare(args).map(|o| Value::Bool(o != Ordering::Greater)),
        "gt" => compare(args).map(|o| Value::Bool(o == Ordering::Greater)),
        "ge" => compare(args).map(|o| Value::Bool(o != Ordering::Less)),
        "json" => Ok(Value::String(arg(args, 0)?.to_string())),
        "split" => {
            let (source, separator) = (text(args, 0)?, text(args, 1)?);
            Ok(source.split(separator).map(Value::from).collect())
        }
        "join" => {
            let items = arg(args, 0)?.as_array().ok_or("expected a list")?;
            let words: Vec<String> = items.iter().map(display).collect();
            Ok(Value::String(words.join(text(args, 1)?)))
        }
        "title" => {
            let mut chars = text(args, 0)?.chars();
            Ok(Value::String(chars.next().map_or_else(String::new, |c| {
                c.to_uppercase().chain(chars).collect()
            })))
        }
        "lower" => Ok(Value::String(text(args, 0)?.to_lowercase())),
        "upper" => Ok(Value::String(text(args, 0)?.to_uppercase())),
        "pad" => {
            let source = text(args, 0)?;
            if source.is_empty() {
                return Ok(Value::String(String::new()));
            }
            Ok(Value::String(format!(
                "{}{source}{}",
                " ".repeat(number(args, 1)?.min(4096)),
                " ".repeat(number(args, 2)?.min(4096))
            )))
        }
        "truncate" => Ok(Value::String(
            text(args, 0)?.chars().take(number(args, 1)?).collect(),
        )),
        _ => Err("not defined".into()),
    }
}

fn arg(args: &[Value], n: usize) -> std::result::Result<&Value, String> {
    args.get(n).ok_or_else(|| {
        format!(
            "wrong number of args: want at least {}, got {}",
            n + 1,
            args.len()
        )
    })
}

fn text(args: &[Value], n: usize) -> std::result::Result<&str, String> {
    match arg(args, n)? {
        Value::String(text) => Ok(text),
        Value::Null => Ok(""),
        other => Err(format!(
            "wrong type for value; expected string; got {}",
            display(other)
        )),
    }
}

fn number(args: &[Value], n: usize) -> std::result::Result<usize, String> {
    arg(args, n)?
        .as_u64()
        .and_then(|n| usize::try_from(n).ok())
        .ok_or_else(|| "expected a number".into())
}

fn len(value: &Value) -> Result {
    match value {
        Value::String(s) => Ok(Value::from(s.len())),
        Value::Array(a) => Ok(Value::from(a.len())),
        Value::Object(o) => Ok(Value::from(o.len())),
        Value::Null => Ok(Value::from(0)),
        other => Err(format!("len of {}", display(other))),
    }
}

fn index(args: &[Value]) -> Result {
    let mut value = arg(args, 0)?.clone();
    for key in &args[1..] {
        value = match &value {
            Value::Object(map) => map.get(&display(key)).cloned().unwrap_or(Value::Null),
            Value::Array(items) => {
                let n = key
                    .as_u64()
                    .ok_or("cannot index slice/array with that type")?;
                usize::try_from(n)
                    .ok()
                    .and_then(|n| items.get(n).cloned())
                    .ok_or_else(|| format!("reflect: slice index out of range: {n}"))?
            }
            Value::String(s) => {
                let n = key
                    .as_u64()
                    .and_then(|n| usize::try_from(n).ok())
                    .ok_or("bad index")?;
                s.as_bytes()
                    .get(n)
                    .map(|b| Value::from(*b))
                    .ok_or("index out of range")?
            }
            Value::Null => return Err("index of untyped nil".into()),
            other => return Err(format!("can't index item of type {}", display(other))),
        };
    }
    Ok(value)
}

fn slice(args: &[Value]) -> Result {
    let value = arg(args, 0)?;
    let length = match value {
        Value::String(s) => s.len(),
        Value::Array(a) => a.len(),
        other => return Err(format!("can't slice item of type {}", display(other))),
    };
    let from = if args.len() > 1 { number(args, 1)? } else { 0 };
    let to = if args.len() > 2 {
        number(args, 2)?
    } else {
        length
    };
    if from > to || to > length {
        return Err(format!("index out of range: {to}"));
    }
    match value {
        Value::String(s) => s
            .get(from..to)
            .map(Value::from)
            .ok_or_else(|| "not a character boundary".into()),
        Value::Array(a) => Ok(Value::from(a[from..to].to_vec())),
        _ => Ok(Value::Null),
    }
}

/// Go's `fmt.Sprint`: spaces between operands when neither is a string.
fn print(args: &[Value]) -> String {
    let mut out = String::new();
    for (n, value) in args.iter().enumerate() {
        if n > 0 && !value.is_string() && !args[n - 1].is_string() {
            out.push(' ');
        }
        out.push_str(&display(value));
    }
    out
}

fn equal(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

fn compare(args: &[Value]) -> std::result::Result<Ordering, String> {
    let (a, b) = (arg(args, 0)?, arg(args, 1)?);
    match (a, b) {
        (Value::String(a), Value::String(b)) => Ok(a.cmp(b)),
        _ => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => a.partial_cmp(&b).ok_or_else(|| "incomparable".into()),
            _ => Err("incompatible types for comparison".into()),
        },
    }
}

fn html(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&#34;")
        .replace('\'', "&#39;")
}

fn js(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\'' => out.push_str("\\'"),
            '"' => out.push_str("\\\""),
            '<' | '>' | '&' | '=' => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}
