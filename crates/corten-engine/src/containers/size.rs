//! `--storage-opt size=…`: a bound on what a container writes, by a project quota.

use std::collections::HashMap;

use bollard_stubs::models::HostConfig;

use super::row::Container;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::{bad, logs};
use crate::volumes::quota;

type Result<T> = std::result::Result<T, EngineError>;

/// Refuses, in Docker's words, every option where none could be enforced, else one that is not known.
pub(super) fn check(engine: &Engine, host: &HostConfig) -> Result<()> {
    let options = host.storage_opt.as_ref();
    allow(options, || {
        quota::is_possible(&engine.layout().containers())
    })
}

fn allow(options: Option<&HashMap<String, String>>, possible: impl FnOnce() -> bool) -> Result<()> {
    if options.is_some_and(|options| !options.is_empty()) && !possible() {
        return Err(bad(
            "--storage-opt is supported only for overlay over xfs with 'pquota' mount option",
        ));
    }
    read(options).map(drop)
}

/// The bound in bytes, if there is one.
fn read(options: Option<&HashMap<String, String>>) -> Result<Option<u64>> {
    let mut size = None;
    for (key, value) in options.into_iter().flatten() {
        if !key.eq_ignore_ascii_case("size") {
            return Err(bad(format!("Unknown option {key}")));
        }
        let bytes = logs::size(value);
        size = bytes
            .ok_or_else(|| bad(format!("invalid size: '{value}'")))?
            .into();
    }
    Ok(size.filter(|size| *size > 0))
}

/// Whether a container's size is bounded.
pub(crate) fn is_bounded(container: &Container) -> bool {
    matches!(read(container.host.storage_opt.as_ref()), Ok(Some(_)))
}

/// Bounds what a container writes, whose directories are there. Without the option nothing is done.
pub(crate) fn apply(engine: &Engine, container: &Container) -> Result<()> {
    let Some(size) = read(container.host.storage_opt.as_ref())? else {
        return Ok(());
    };
    let directory = engine.layout().container(&container.id);
    let both = [&*directory.join("upper"), &*directory.join("work")];
    quota::bound(&both, "upper", size).map_err(|source| EngineError::Io {
        action: "bound the size of",
        path: directory,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let read = |key: &str, value: &str| {
            read(Some(&HashMap::from([(key.to_owned(), value.to_owned())])))
                .map_err(|error| error.to_string())
        };
        assert_eq!(read("size", "2g").unwrap(), Some(2 << 30));
        assert_eq!(read("SIZE", "0").unwrap(), None);
        assert_eq!(read("sise", "1").unwrap_err(), "Unknown option sise");
        assert_eq!(read("size", "much").unwrap_err(), "invalid size: 'much'");
        assert_eq!(super::read(None).unwrap(), None);
    }

    #[test]
    fn where_nothing_can_be_enforced_every_option_is_refused_unread() {
        let told = |key: &str, value: &str, possible: bool| {
            let options = HashMap::from([(key.to_owned(), value.to_owned())]);
            let allowed = allow(Some(&options), || possible);
            allowed.map_or_else(|error| error.to_string(), |()| String::new())
        };
        for (key, value, otherwise) in [
            ("size", "1x", "invalid size: '1x'"),
            ("foo", "1", "Unknown option foo"),
            ("size", "0", ""),
            ("size", "1m", ""),
        ] {
            assert!(told(key, value, false).contains("supported only for overlay"));
            assert_eq!(told(key, value, true), otherwise);
        }
        for none in [None, Some(&HashMap::new())] {
            allow(none, || panic!("no quotas are asked for")).unwrap();
        }
    }
}
