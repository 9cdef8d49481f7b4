//! What `fuzz/` needs of this crate and nobody else does: every reader of what a bundle
//! says, without carrying any of it out. The module's tests throw mutated documents at the
//! same functions, in every run of the tests.

#[cfg(test)]
mod tests;

use std::path::Path;

use corten_oci::runtime_spec::{LinuxResources, LinuxSeccomp, Spec};

use crate::error::RuntimeError;
use crate::process::ProcessPlan;
use crate::{cgroup, create, document, mounts, validate};

/// Compiles a profile; says how many instructions it takes.
///
/// # Errors
/// A profile that cannot be compiled.
pub fn seccomp(profile: &LinuxSeccomp) -> Result<usize, RuntimeError> {
    Ok(crate::seccomp::compile(profile)?.program.len())
}

/// Reads what a systemd instance might send.
pub fn dbus_message(bytes: &[u8]) {
    crate::cgroup::fuzz_dbus_message(bytes);
}

/// Reads an annotation that asks for a property of the container's unit.
///
/// # Errors
/// What is wrong with it.
pub fn unit_property(name: &str, value: &str) -> Result<(), String> {
    cgroup::unit_property(name, value).map_err(|error| error.to_string())
}

/// Reads a `config.json` and prepares a container from it, its root in `rootfs`.
///
/// # Errors
/// Whatever is wrong with it, as the user would read it.
pub fn config(text: &[u8], rootfs: &Path) -> Result<(), String> {
    let spec = document::spec(text).map_err(|error| error.to_string())?;
    create::rehearse(&spec, rootfs).map_err(|error| error.to_string())
}

/// Reads a `process.json` and prepares an exec in a container of the default configuration.
///
/// # Errors
/// Whatever is wrong with it.
pub fn process(text: &[u8]) -> Result<(), String> {
    let process = document::process(text).map_err(|error| error.to_string())?;
    let spec = crate::defaults::spec(Vec::new());
    ProcessPlan::new(&process, &spec)
        .map(drop)
        .map_err(|error| error.to_string())
}

/// Device rules as both generations of control groups want them, and all limits.
///
/// # Errors
/// A limit that v2 cannot express.
pub fn resources(resources: &LinuxResources) -> Result<(), RuntimeError> {
    cgroup::rehearse(resources)
}

/// Mount options.
///
/// # Errors
/// Options that are unknown or contradict each other.
pub fn mount_options(options: &[String]) -> Result<(), RuntimeError> {
    mounts::check_options(options)
}

/// What `linux.cgroupsPath` comes to, relative to the hierarchies' roots.
///
/// # Errors
/// A path that is refused.
pub fn cgroup_path(given: &str) -> Result<String, RuntimeError> {
    let spec = crate::CgroupSpec::from_config(Some(given), "id", false)?;
    Ok(crate::Cgroup::open(&spec.path)?.path().to_owned())
}

/// The files below `/proc` that a configuration's sysctls would be written to.
///
/// # Errors
/// A configuration that is refused, for its sysctls or anything else.
pub fn sysctls(spec: &Spec) -> Result<Vec<String>, RuntimeError> {
    validate::check(spec, &crate::NetNs::Spec)?;
    let files = create::sysctls(spec).into_iter();
    Ok(files.map(|(file, _)| file).collect())
}
