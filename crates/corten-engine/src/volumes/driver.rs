//! Where a volume's data comes from: drivers. There is one, [`local`](super::local).
//!
//! A driver checks the options of a new volume and mounts on the volume's directory what they
//! name. When it does so, and for how long, is [`hold`](super::hold)'s business.

use std::collections::HashMap;
use std::fmt::Debug;
use std::path::Path;

use bollard_stubs::models::VolumeScopeEnum;

use super::local::Local;
use crate::error::EngineError;

type Result<T> = std::result::Result<T, EngineError>;

/// Options of a volume, as the user gave them.
pub(crate) type Options = HashMap<String, String>;

/// What makes the data of volumes available in a directory.
pub(crate) trait Driver: Debug + Send + Sync {
    /// Its name.
    fn name(&self) -> &'static str;

    /// Where its volumes are known.
    fn scope(&self) -> VolumeScopeEnum;

    /// Refuses options that a volume below `volumes` cannot have.
    ///
    /// # Errors
    /// In Docker's words, without the volume's name.
    fn check(&self, volumes: &Path, options: &Options) -> Result<()>;

    /// Whether these options have something mounted while the volume is in use.
    fn is_mounted(&self, options: &Options) -> bool;

    /// The options with addresses in the place of names of hosts, which the kernel does not know. May take
    /// as long as a name server does.
    ///
    /// # Errors
    /// A name has no address, or it cannot be known.
    fn look_up(&self, options: &Options) -> Result<Options>;

    /// Mounts what [`Driver::look_up`] has given on `data`, a directory that nothing is mounted on.
    ///
    /// # Errors
    /// What the kernel says.
    fn mount(&self, data: &Path, options: &Options) -> Result<()>;

    /// Unmounts what [`Driver::mount`] has mounted.
    ///
    /// # Errors
    /// What the kernel says.
    fn unmount(&self, data: &Path) -> Result<()>;

    /// Whether files cannot be moved into a volume from beside it, though nothing is mounted.
    fn is_apart(&self, options: &Options) -> bool;

    /// Makes so what else the options ask for, of a volume that is about to be used.
    ///
    /// # Errors
    /// What the kernel says.
    fn prepare(&self, data: &Path, options: &Options) -> Result<()>;
}

/// The driver of volumes that name none.
pub(crate) const DEFAULT: &str = "local";

const DRIVERS: [&dyn Driver; 1] = [&Local];

/// The names of all drivers.
pub(crate) fn names() -> Vec<String> {
    DRIVERS.iter().map(|d| d.name().to_owned()).collect()
}

/// The driver of that name; none is the default one.
///
/// # Errors
/// There is no such driver.
pub(crate) fn named(name: &str) -> Result<&'static dyn Driver> {
    let wanted = if name.is_empty() { DEFAULT } else { name };
    DRIVERS
        .into_iter()
        .find(|driver| driver.name() == wanted)
        .ok_or_else(|| {
            EngineError::NotFound(format!(
                "error looking up volume plugin {wanted}: plugin \"{wanted}\" not found"
            ))
        })
}

/// An error with the volume's name before it, as Docker has it.
pub(crate) fn about(name: &str, error: EngineError) -> EngineError {
    let told = |text: String| format!("create {name}: {text}");
    match error {
        EngineError::NotFound(text) => EngineError::NotFound(told(text)),
        EngineError::BadParameter(text) => EngineError::BadParameter(told(text)),
        EngineError::Conflict(text) => EngineError::Conflict(told(text)),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_are_found_by_name() {
        assert_eq!(named("").unwrap().name(), "local");
        assert_eq!(named("local").unwrap().name(), "local");
        let told = about("data", named("absent").unwrap_err()).to_string();
        assert_eq!(
            told,
            "create data: error looking up volume plugin absent: plugin \"absent\" not found"
        );
    }
}
