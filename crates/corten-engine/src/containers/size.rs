//! `--storage-opt size=…`: a bound on what a container writes, by a project quota.

use std::collections::HashMap;

use bollard_stubs::models::HostConfig;

use super::row::Container;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::{bad, logs};
use crate::volumes::quota;

type Result<T> = std::result::Result<T, EngineError>;

/// Refuses, in Docker's words, an option that is not known, and a size that could not be enforced.
pub(super) fn check(engine: &Engine, host: &HostConfig) -> Result<()> {
    let mut names = host.storage_opt.iter().flat_map(HashMap::keys);
    // Said first, as Docker does, whatever the size is.
    if names.any(|name| is_size(name)) && !quota::is_possible(&engine.layout().containers()) {
        return Err(bad(
            "--storage-opt is supported only for overlay over xfs with 'pquota' mount option",
        ));
    }
    read(host.storage_opt.as_ref()).map(drop)
}

fn is_size(name: &str) -> bool {
    name.eq_ignore_ascii_case("size")
}

/// The bound in bytes, if there is one.
fn read(options: Option<&HashMap<String, String>>) -> Result<Option<u64>> {
    let mut size = None;
    for (key, value) in options.into_iter().flatten() {
        if !is_size(key) {
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
}
