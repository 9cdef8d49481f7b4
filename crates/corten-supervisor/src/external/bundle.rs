//! A bundle (runtime-spec, "Filesystem Bundle") for another runtime: the document as a file, in which
//! what we have as descriptors has paths. The paths lead somewhere only in the mount namespace that the
//! runtime is started in: the host sees empty directories, and nothing can be left mounted.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use corten_oci::runtime_spec::{
    Capabilities, LinuxCapabilities, LinuxNamespaceType, Mount, Process, Spec,
};
use corten_runtime::NetNs;
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::thread::{CapabilitySet, capabilities};

/// What the document says it is: some versions of crun take no later one (Debian 12's). What that one
/// does not have (mappings of mounts) is therefore done here.
const VERSION: &str = "1.0.2";

/// What is to be attached where.
pub(super) struct Bundle {
    mounts: Vec<(OwnedFd, PathBuf)>,
}

/// Writes it. `network` must stay open until the container is made.
pub(super) fn write(
    directory: &Path,
    spec: &Spec,
    rootfs: OwnedFd,
    opened: BTreeMap<usize, OwnedFd>,
    network: &mut NetNs,
    cgroup: &str,
) -> io::Result<Bundle> {
    let mut spec = spec.clone();
    spec.set_version(VERSION.to_owned());
    if let Some(process) = spec.process_mut() {
        leave_out(process)?;
    }
    let place = directory.join("rootfs");
    std::fs::create_dir(&place)?;
    let mut root = spec.root().clone().unwrap_or_default();
    root.set_path(place.clone());
    spec.set_root(Some(root));
    let mut mounts = vec![(rootfs, place)];
    let mut listed = spec.mounts().clone().unwrap_or_default();
    for (index, source) in opened {
        let Some(mount) = listed.get_mut(index) else {
            continue;
        };
        let place = directory.join(format!("mount{index}"));
        let kind = rustix::fs::fstat(&source)?.st_mode;
        if FileType::from_raw_mode(kind) == FileType::Directory {
            std::fs::create_dir(&place)?;
        } else {
            drop(File::create(&place)?);
        }
        mounts.push((prepared(mount, source)?, place.clone()));
        mount.set_source(Some(place));
    }
    spec.set_mounts(Some(listed));
    let mut linux = spec.linux().clone().unwrap_or_default();
    linux.set_cgroups_path(Some(PathBuf::from(format!("/{cgroup}"))));
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    match network {
        NetNs::Host => namespaces.retain(|n| n.typ() != LinuxNamespaceType::Network),
        NetNs::Join(fd) => {
            let path = format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
            for namespace in &mut namespaces {
                if namespace.typ() == LinuxNamespaceType::Network {
                    namespace.set_path(Some(PathBuf::from(&path)));
                }
            }
        }
        NetNs::New | NetNs::Spec => {}
    }
    linux.set_namespaces(Some(namespaces));
    spec.set_linux(Some(linux));
    let text = serde_json::to_vec(&spec)?;
    drop(write_closed(&directory.join("config.json"), &text)?);
    Ok(Bundle { mounts })
}

/// Writes a file that nobody else reads: a document has the container's variables.
pub(super) fn write_closed(path: &Path, text: &[u8]) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600);
    let mut file = options.open(path)?;
    file.write_all(text)?;
    Ok(file)
}

/// What is mounted, with what not every runtime would do: they skip words that they do not know.
fn prepared(mount: &mut Mount, source: OwnedFd) -> io::Result<OwnedFd> {
    let mut options = mount.options().clone().unwrap_or_default();
    let has = |options: &[String], wanted: &str| options.iter().any(|option| option == wanted);
    let copied = copy(source, has(&options, "rbind"))?;
    let whole = has(&options, "ridmap");
    if let (true, Some(uids), Some(gids)) = (
        whole || has(&options, "idmap"),
        mount.uid_mappings(),
        mount.gid_mappings(),
    ) {
        corten_runtime::map_owners(copied.as_fd(), whole, uids, gids).map_err(io::Error::other)?;
        options.retain(|option| !matches!(option.as_str(), "idmap" | "ridmap"));
        mount.set_uid_mappings(None);
        mount.set_gid_mappings(None);
    }
    if let Some(at) = options.iter().position(|option| option == "rro") {
        corten_runtime::make_read_only(copied.as_fd()).map_err(io::Error::other)?;
        options.insert(at, "ro".to_owned());
    }
    mount.set_options(Some(options));
    Ok(copied)
}

/// Leaves out capabilities that this process cannot give: other runtimes fail at them.
pub(super) fn leave_out(process: &mut Process) -> io::Result<()> {
    let given = capabilities(None)?.permitted;
    let less = process.capabilities().as_ref();
    let less = less.map(|sets| ours(sets, given));
    process.set_capabilities(less);
    Ok(())
}

fn ours(sets: &LinuxCapabilities, given: CapabilitySet) -> LinuxCapabilities {
    let left = |set: &Option<Capabilities>| {
        let can = |name: &str| CapabilitySet::from_name(name).is_none_or(|c| given.contains(c));
        let set = set.as_ref()?.iter().filter(|c| can(&c.to_string()));
        Some(set.copied().collect::<Capabilities>())
    };
    let mut less = LinuxCapabilities::default();
    less.set_bounding(left(sets.bounding()))
        .set_effective(left(sets.effective()))
        .set_permitted(left(sets.permitted()))
        .set_inheritable(left(sets.inheritable()))
        .set_ambient(left(sets.ambient()));
    less
}

/// A mount of its own.
fn copy(source: OwnedFd, whole: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, whole);
    match open_tree(source.as_fd(), "", flags) {
        // Already one (kernels before 6.15 do not copy it).
        Err(Errno::INVAL) => Ok(source),
        copied => Ok(copied?),
    }
}

impl Bundle {
    /// Lets a command begin with everything attached.
    pub(super) fn attach_in(self, command: &mut Command) {
        crate::sys::with_mounts(command, self.mounts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn what_a_runtime_may_not_know_is_done_before() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let prepare = |options: &str, more: &str| {
            let mut mount: Mount = serde_json::from_str(&format!(
                "{{\"destination\":\"/x\",\"options\":[{options}]{more}}}"
            ))
            .unwrap();
            let source = File::open(dir.path()).unwrap();
            let tree = prepared(&mut mount, source.into()).unwrap();
            (tree, mount)
        };
        let inside = |tree: &OwnedFd, name: &str, flags| {
            let flags = flags | rustix::fs::OFlags::CLOEXEC;
            rustix::fs::openat(tree, name, flags, rustix::fs::Mode::RWXU)
        };
        let create = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
        let (tree, mount) = prepare("\"rbind\",\"rro\",\"rprivate\"", "");
        assert_eq!(
            mount.options().as_deref().unwrap(),
            ["rbind", "ro", "rro", "rprivate"]
        );
        assert_eq!(inside(&tree, "new", create).unwrap_err(), Errno::ROFS);
        let (tree, mount) = prepare("\"bind\"", "");
        assert_eq!(mount.options().as_deref().unwrap(), ["bind"]);
        inside(&tree, "new", create).unwrap();
        let map = "[{\"containerID\":0,\"hostID\":70000,\"size\":10}]";
        let maps = format!(",\"uidMappings\":{map},\"gidMappings\":{map}");
        let (tree, mount) = prepare("\"bind\",\"idmap\"", &maps);
        assert_eq!(mount.options().as_deref().unwrap(), ["bind"]);
        assert!(mount.uid_mappings().is_none() && mount.gid_mappings().is_none());
        let file = inside(&tree, "file", rustix::fs::OFlags::PATH).unwrap();
        assert_eq!(File::from(file).metadata().unwrap().uid(), 70_000);
    }

    #[test]
    fn what_cannot_be_given_is_left_out() {
        let sets: LinuxCapabilities = serde_json::from_value(serde_json::json!({
            "bounding": ["CAP_CHOWN", "CAP_SYS_RESOURCE"], "effective": ["CAP_CHOWN"]}))
        .unwrap();
        let less = ours(&sets, CapabilitySet::CHOWN | CapabilitySet::KILL);
        assert_eq!(less.bounding(), sets.effective());
        assert_eq!(less.effective(), sets.effective());
    }
}
