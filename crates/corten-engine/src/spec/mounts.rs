//! The mounts of the document: Docker's defaults, the user's, the generated files.

use std::path::{Path, PathBuf};

use corten_oci::DiffId;
use corten_oci::runtime_spec::Mount;
use corten_runtime::defaults;

use super::Input;
use crate::parse::modes::{Modes, Sharing};
use crate::parse::mounts::{MountEntry, Source};
use crate::parse::remap;

/// What a bind mount is bound to; the caller opens it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BindSource {
    /// A path of the host, as the user gave it.
    Host(PathBuf),
    /// A volume's data, or a directory below it.
    Volume {
        name: String,
        subpath: Option<String>,
    },
    /// Files of an image, or what is at a path of them.
    Image {
        layers: Vec<DiffId>,
        subpath: Option<String>,
    },
    /// A file this engine generated.
    Generated(PathBuf),
    /// `/dev/shm` as the process sees it.
    SharedMemoryOf(i32),
    /// The message queues of the host, wherever it has them mounted.
    HostsQueues,
}

/// All mounts in the order they are to be made, and the bind sources by index.
pub(super) fn build(
    input: &Input<'_>,
    modes: &Modes,
    privileged: bool,
) -> (Vec<Mount>, Vec<(usize, BindSource)>) {
    let mut list: Vec<(Mount, Option<BindSource>)> = Vec::new();
    let user_has = |path: &str| input.mounts.iter().any(|m| m.destination == path);
    for mut mount in defaults::mounts() {
        let destination = mount.destination().to_string_lossy().into_owned();
        if user_has(&destination) {
            continue;
        }
        match destination.as_str() {
            "/dev/shm" => {
                if let Some(entry) = shared_memory(input, modes, mount) {
                    list.push(entry);
                }
                continue;
            }
            // It shows the IPC namespace of whoever mounts it, which root of another user namespace
            // may not for the host's.
            "/dev/mqueue" if input.users.is_some() && modes.ipc == Sharing::Host => {
                let queues = Path::new("/dev/mqueue");
                let options = &["rbind", "nosuid", "noexec", "nodev", "rw", "rprivate"];
                let mount = bind("/dev/mqueue", queues, options);
                list.push((mount, Some(BindSource::HostsQueues)));
                continue;
            }
            "/sys" | "/sys/fs/cgroup" if privileged => {
                replace_option(&mut mount, "ro", "rw");
            }
            _ => {}
        }
        list.push((mount, None));
    }
    list.extend(generated(input, &user_has));
    let mut wanted: Vec<&MountEntry> = input.mounts.iter().collect();
    // Parents before what is mounted inside them.
    wanted.sort_by_key(|m| (m.destination.matches('/').count(), m.destination.clone()));
    let user = (input.identity.uid, input.identity.gid);
    list.extend(wanted.into_iter().map(|entry| {
        let (mut mount, source) = user_mount(entry);
        if let Source::Bind {
            idmap: Some(map),
            recursive,
            ..
        } = &entry.source
        {
            let [mut uids, mut gids] = map.mappings(user);
            if let Some((users, _)) = &input.users {
                uids = remap::composed(&uids, &users.uids);
                gids = remap::composed(&gids, &users.gids);
            }
            mount.set_uid_mappings(Some(uids));
            mount.set_gid_mappings(Some(gids));
            // What is mounted below it would be the host's root's to write otherwise.
            let mut options = mount.options().clone().unwrap_or_default();
            options.push(if *recursive { "ridmap" } else { "idmap" }.to_owned());
            mount.set_options(Some(options));
        }
        (mount, source)
    }));

    let mut binds = Vec::new();
    let mounts = list
        .into_iter()
        .enumerate()
        .map(|(index, (mount, bind))| {
            binds.extend(bind.map(|b| (index, b)));
            mount
        })
        .collect();
    (mounts, binds)
}

fn shared_memory(
    input: &Input<'_>,
    modes: &Modes,
    mut mount: Mount,
) -> Option<(Mount, Option<BindSource>)> {
    let bound = |source: BindSource| {
        let shown = Path::new("/dev/shm");
        Some((
            bind("/dev/shm", shown, &["rbind", "rw", "rprivate"]),
            Some(source),
        ))
    };
    match (&modes.ipc, input.ipc_of) {
        _ if modes.no_shm => None,
        (Sharing::Host, _) => bound(BindSource::Host(PathBuf::from("/dev/shm"))),
        (Sharing::Container(_), Some(pid)) => bound(BindSource::SharedMemoryOf(pid)),
        _ => {
            let size = input.host.shm_size.filter(|s| *s > 0);
            if let Some(size) = size {
                let options = mount.options().clone().unwrap_or_default();
                let mut options: Vec<String> = options
                    .into_iter()
                    .filter(|o| !o.starts_with("size="))
                    .collect();
                options.push(format!("size={size}"));
                mount.set_options(Some(options));
            }
            Some((mount, None))
        }
    }
}

fn generated(
    input: &Input<'_>,
    user_has: &dyn Fn(&str) -> bool,
) -> Vec<(Mount, Option<BindSource>)> {
    let access = if input.host.readonly_rootfs.unwrap_or(false) {
        &["bind", "ro", "rprivate"][..]
    } else {
        &["bind", "rw", "rprivate"]
    };
    // Executable wherever the engine's root is.
    let program = &["bind", "ro", "exec", "rprivate"][..];
    [
        ("/etc/resolv.conf", &input.files.resolv_conf, access),
        ("/etc/hostname", &input.files.hostname, access),
        ("/etc/hosts", &input.files.hosts, access),
        (corten_init::PATH, &input.files.init, program),
    ]
    .into_iter()
    .filter(|(path, ..)| !user_has(path))
    .filter_map(|(path, file, options)| file.as_ref().map(|f| (path, f, options)))
    .map(|(path, file, options)| {
        let mount = bind(path, file, options);
        (mount, Some(BindSource::Generated(file.clone())))
    })
    .collect()
}

/// A user's mount, and what it is bound to.
pub(crate) fn user_mount(entry: &MountEntry) -> (Mount, Option<BindSource>) {
    match &entry.source {
        Source::Bind {
            path,
            recursive,
            propagation,
            read_only_top,
            ..
        } => {
            // Read-only includes the mounts below, as Docker does where the kernel can
            // (mount_setattr, Linux 5.12), unless asked otherwise.
            let access = match (entry.read_only, *recursive && !read_only_top) {
                (true, true) => "rro",
                (true, false) => "ro",
                (false, _) => INHERITED,
            };
            let kind = if *recursive { "rbind" } else { "bind" };
            let mount = bind(
                &entry.destination,
                Path::new(path),
                &[kind, access, propagation],
            );
            (mount, Some(BindSource::Host(PathBuf::from(path))))
        }
        Source::Volume { name, subpath, .. } => {
            let access = if entry.read_only { "ro" } else { INHERITED };
            let mount = bind(
                &entry.destination,
                Path::new(name),
                &["rbind", access, "rprivate"],
            );
            let source = BindSource::Volume {
                name: name.clone(),
                subpath: subpath.clone(),
            };
            (mount, Some(source))
        }
        Source::Image {
            name,
            layers,
            subpath,
            ..
        } => {
            let mount = bind(
                &entry.destination,
                Path::new(name),
                &["rbind", "ro", "rprivate"],
            );
            let source = BindSource::Image {
                layers: layers.clone(),
                subpath: subpath.clone(),
            };
            (mount, Some(source))
        }
        Source::Tmpfs { options } => {
            let mut all: Vec<&str> = vec!["noexec", "nosuid", "nodev"];
            all.extend(options.iter().map(String::as_str));
            all.push(if entry.read_only { "ro" } else { "rw" });
            (
                defaults::mount(&entry.destination, "tmpfs", "tmpfs", &all),
                None,
            )
        }
    }
}

/// No option: what is mounted read-only on the host must not become writable in a container.
const INHERITED: &str = "";

fn bind(destination: &str, source: &Path, options: &[&str]) -> Mount {
    let options: Vec<&str> = options.iter().copied().filter(|o| !o.is_empty()).collect();
    defaults::mount(destination, "bind", &source.to_string_lossy(), &options)
}

fn replace_option(mount: &mut Mount, old: &str, new: &str) {
    let options = mount.options().clone().unwrap_or_default();
    let options = options
        .into_iter()
        .map(|o| if o == old { new.to_owned() } else { o })
        .collect();
    mount.set_options(Some(options));
}
