//! Log drivers and their options.

use bollard_stubs::models::HostConfigLogConfig;

use super::bad;
use crate::error::EngineError;

/// Where a container's output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LogDriver {
    /// Docker's json-file format, rotated.
    JsonFile {
        /// Bytes after which a file is rotated; `None`: never.
        max_size: Option<u64>,
        /// How many files are kept, the current one included.
        max_files: u32,
    },
    /// Nowhere.
    None,
}

/// Reads a log configuration; absent is json-file without rotation.
pub(crate) fn driver(config: Option<&HostConfigLogConfig>) -> Result<LogDriver, EngineError> {
    let driver = config.and_then(|c| c.typ.as_deref()).unwrap_or("");
    let options = config.and_then(|c| c.config.clone()).unwrap_or_default();
    match driver {
        "" | "default" | "json-file" => {}
        "none" => {
            return match options.keys().next() {
                None => Ok(LogDriver::None),
                Some(key) => Err(bad(format!("unknown log opt '{key}' for none log driver"))),
            };
        }
        other => {
            return Err(bad(format!(
                "logger: no log driver named '{other}' is registered"
            )));
        }
    }
    let (mut max_size, mut max_files) = (None, 1);
    for (key, value) in &options {
        match key.as_str() {
            "max-size" if value == "-1" => {}
            "max-size" => {
                let size = size(value).filter(|s| *s > 0);
                let size =
                    size.ok_or_else(|| bad(format!("invalid value for max-size: {value}")))?;
                max_size = Some(size);
            }
            "max-file" => {
                max_files = value
                    .parse()
                    .ok()
                    .filter(|n| *n >= 1)
                    .ok_or_else(|| bad("max-file cannot be less than 1"))?;
            }
            // The default; anything else would be compressed rotated files.
            "compress" if value == "false" => {}
            // Delivery is always direct.
            "mode" if value == "blocking" => {}
            _ => {
                return Err(bad(format!(
                    "unknown log opt '{key}' for json-file log driver"
                )));
            }
        }
    }
    if max_files > 1 && max_size.is_none() {
        return Err(bad("max-file cannot be set without max-size"));
    }
    Ok(LogDriver::JsonFile {
        max_size,
        max_files,
    })
}

/// Reads a size in binary units as Docker does: `10m`, `1g`, `512kb`, `1024`.
pub(crate) fn size(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(lower.len());
    let number: f64 = lower[..digits].parse().ok()?;
    let factor = match lower[digits..].trim() {
        "" | "b" => 1.0,
        "k" | "kb" | "kib" => 1024.0,
        "m" | "mb" | "mib" => 1024.0 * 1024.0,
        "g" | "gb" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "t" | "tb" | "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    // Bounded by what a file can be; fractions of a byte are dropped as Docker does.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Some((number * factor) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(driver: &str, options: &[(&str, &str)]) -> HostConfigLogConfig {
        HostConfigLogConfig {
            typ: Some(driver.to_owned()),
            config: Some(
                options
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                    .collect(),
            ),
        }
    }

    #[test]
    fn drivers_and_options() {
        let json = |max_size, max_files| LogDriver::JsonFile {
            max_size,
            max_files,
        };
        for (config, expected) in [
            (config("json-file", &[]), Some(json(None, 1))),
            (
                config("", &[("max-size", "10m"), ("max-file", "3")]),
                Some(json(Some(10 << 20), 3)),
            ),
            (config("none", &[]), Some(LogDriver::None)),
            (config("none", &[("max-size", "1m")]), None),
            (config("syslog", &[]), None),
            (config("json-file", &[("max-file", "3")]), None),
            (config("json-file", &[("max-size", "x")]), None),
            (config("json-file", &[("labels", "a")]), None),
        ] {
            assert_eq!(driver(Some(&config)).ok(), expected, "{config:?}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(size("1.5k"), Some(1536));
        assert_eq!(size("2GB"), Some(2 << 30));
        assert_eq!(size("12"), Some(12));
        assert_eq!(size("m"), None);
        assert_eq!(size("1x"), None);
    }
}
