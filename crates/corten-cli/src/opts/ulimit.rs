//! `--ulimit nofile=1024:2048`.

use bollard_stubs::models::ResourcesUlimits;

use super::{OptError, Result};

const NAMES: &[&str] = &[
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// Parses one value; a single number is both soft and hard limit, -1 is none.
///
/// # Errors
/// In Docker's words.
pub fn parse(text: &str) -> Result<ResourcesUlimits> {
    let invalid = || OptError::new(format!("invalid ulimit argument: {text}"));
    let (name, limits) = text.split_once('=').ok_or_else(invalid)?;
    if !NAMES.contains(&name) {
        return Err(OptError::new(format!("invalid ulimit type: {name}")));
    }
    let number = |value: &str| {
        value.parse::<i64>().map_err(|_| {
            OptError::new(format!(
                "strconv.ParseInt: parsing {value:?}: invalid syntax"
            ))
        })
    };
    let values: Vec<&str> = limits.split(':').collect();
    let (soft, hard) = match values.as_slice() {
        [both] => (number(both)?, number(both)?),
        [soft, hard] => (number(soft)?, number(hard)?),
        _ => {
            return Err(OptError::new(format!(
                "too many limit value arguments - {limits}, can only have up to two, `soft[:hard]`"
            )));
        }
    };
    if hard != -1 && (soft == -1 || soft > hard) {
        let reason = if soft == -1 {
            format!(
                "ulimit soft limit must be less than or equal to hard limit: soft: -1 (unlimited), hard: {hard}"
            )
        } else {
            format!("ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")
        };
        return Err(OptError::new(reason));
    }
    Ok(ResourcesUlimits {
        name: Some(name.into()),
        soft: Some(soft),
        hard: Some(hard),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        let show = |text: &str| match parse(text) {
            Ok(u) => format!(
                "{} {} {}",
                u.name.unwrap(),
                u.soft.unwrap(),
                u.hard.unwrap()
            ),
            Err(error) => error.0,
        };
        for (text, expected) in [
            ("nofile=1024", "nofile 1024 1024"),
            ("nofile=1:2", "nofile 1 2"),
            ("core=-1", "core -1 -1"),
            ("core=1:-1", "core 1 -1"),
            ("x", "invalid ulimit argument: x"),
            ("x=1", "invalid ulimit type: x"),
            (
                "nofile=2:1",
                "ulimit soft limit must be less than or equal to hard limit: 2 > 1",
            ),
            (
                "nofile=a",
                "strconv.ParseInt: parsing \"a\": invalid syntax",
            ),
        ] {
            assert_eq!(show(text), expected);
        }
    }
}
