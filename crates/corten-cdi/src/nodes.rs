//! Device nodes and the rules that let them be used, as a container's document has them.

use std::io;
use std::path::PathBuf;

use corten_oci::runtime_spec::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
};

/// A node.
///
/// # Errors
/// The document cannot have it.
pub fn node(
    path: PathBuf,
    kind: LinuxDeviceType,
    (major, minor): (i64, i64),
    mode: u32,
    (uid, gid): (u32, u32),
) -> io::Result<LinuxDevice> {
    LinuxDeviceBuilder::default()
        .path(path)
        .typ(kind)
        .major(major)
        .minor(minor)
        .file_mode(mode)
        .uid(uid)
        .gid(gid)
        .build()
        .map_err(io::Error::other)
}

/// A rule that lets devices be used; without a number, all of them.
///
/// # Errors
/// The document cannot have it.
pub fn rule(
    kind: LinuxDeviceType,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> io::Result<LinuxDeviceCgroup> {
    let mut built = LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .typ(kind)
        .access(access);
    if let Some(major) = major {
        built = built.major(major);
    }
    if let Some(minor) = minor {
        built = built.minor(minor);
    }
    built.build().map_err(io::Error::other)
}
