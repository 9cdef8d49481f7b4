//! What resources come to, without a group to give them to: for `fuzz/` and the tests.

use corten_oci::runtime_spec::LinuxResources;

use super::{devices, limits};
use crate::error::RuntimeError;

/// Goes through both generations of controllers and both forms of the device filter.
pub(crate) fn rehearse(resources: &LinuxResources) -> Result<(), RuntimeError> {
    let filter = devices::Filter::new(resources.devices().as_deref().unwrap_or_default())?;
    filter.program()?;
    filter.lines();
    limits::check(resources)?;
    limits::legacy_writes(resources)?;
    limits::unified_writes(resources, &|_| None).map(drop)
}

/// An annotation that asks for a property of a unit, without a unit.
pub(crate) fn unit_property(name: &str, value: &str) -> Result<(), RuntimeError> {
    let (key, value) = (format!("org.systemd.property.{name}"), value.to_owned());
    super::systemd::annotated(std::iter::once((&key, &value))).map(drop)
}
