//! What is done around CRIU, whoever calls it: what of a container it neither saves nor makes.

use std::fs;
use std::path::Path;

use corten_oci::runtime_spec::{Mount, Spec};

use super::external_descriptors;
use crate::cgroup::Cgroup;
use crate::cli::CliError;
use crate::hooks::{self, HookState};
use crate::mounts::is_bind;
use crate::root::{Node, RootFd, clean};

/// In the images' directory: targets of the standard streams (runc's name).
pub const DESCRIPTORS: &str = "descriptors.json";

/// Writes the targets of the process's standard streams beside the images.
pub(crate) fn remember_descriptors(images: &Path, pid: i32) -> Result<(), CliError> {
    let path = images.join(DESCRIPTORS);
    let text = serde_json::to_vec(&external_descriptors(pid))
        .map_err(|error| CliError::json(path.display(), error))?;
    fs::write(&path, text)
        .map_err(|error| CliError::io(format_args!("write {}", path.display()), error))
}

/// Those targets.
pub(crate) fn descriptors(images: &Path) -> Result<Vec<String>, CliError> {
    let path = images.join(DESCRIPTORS);
    let text = fs::read(&path)
        .map_err(|error| CliError::io(format_args!("read {}", path.display()), error))?;
    serde_json::from_slice(&text).map_err(|error| CliError::json(path.display(), error))
}

/// CRIU restores what was on a tmpfs, but not places on the root itself. `is_file`: whether a
/// bind mount, by its index, is of one.
pub(crate) fn make_places(
    spec: &Spec,
    root: &RootFd,
    is_file: &dyn Fn(usize, &Mount) -> bool,
) -> Result<(), CliError> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let place = |mount: &Mount| clean(&mount.destination().to_string_lossy());
    let restored: Vec<String> = mounts
        .iter()
        .filter(|mount| matches!(mount.typ().as_deref(), Some("tmpfs" | "cgroup" | "sysfs")))
        .map(|mount| format!("{}/", place(mount)))
        .collect();
    for (index, mount) in mounts.iter().enumerate() {
        let path = place(mount);
        if restored.iter().any(|above| path.starts_with(above)) {
            continue;
        }
        let node = if is_bind(mount) && is_file(index, mount) {
            Node::File
        } else {
            Node::Directory
        };
        root.ensure(&path, node).map_err(|errno| {
            CliError::io(format_args!("create in the root {}", &path), errno.into())
        })?;
    }
    Ok(())
}

/// Puts CRIU where what it restores is to be.
pub(crate) fn adopt(cgroup: &Cgroup, pid: i32) -> Result<(), CliError> {
    let unified = cgroup.unified_dir().map(Path::to_owned);
    let legacy = cgroup.legacy_views().map(|view| view.dir.to_owned());
    for dir in unified.into_iter().chain(legacy) {
        let file = dir.join("cgroup.procs");
        fs::write(&file, pid.to_string())
            .map_err(|error| CliError::io(format_args!("join {}", file.display()), error))?;
    }
    Ok(())
}

/// The hooks of a start that a restored container has, too.
pub(crate) fn run_hooks(spec: &Spec, about: &HookState, pid: i32) -> Result<(), CliError> {
    let Some(all) = spec.hooks() else {
        return Ok(());
    };
    let state = about.json("creating", Some(pid));
    for (kind, hooks) in [
        ("prestart", all.prestart()),
        ("createRuntime", all.create_runtime()),
    ] {
        hooks::run(hooks.as_deref().unwrap_or_default(), kind, &state)?;
    }
    Ok(())
}
