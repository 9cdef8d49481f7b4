//! What `RUN --mount` asks for, made ready for one step: descriptors of files to be bound,
//! held for as long as the step runs, and entries of its document.
//!
//! Nothing of the host is bound as it is. Contexts (`context_mounts` made layers of them), stages
//! and images are mounted from their layers, and what is written to them is thrown away; a secret is a file of a file system in memory that nobody else can see.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use corten_oci::DiffId;
use corten_oci::runtime_spec::{Mount, Spec};
use corten_runtime::defaults;
use corten_store::rooted::RootFd;
use corten_store::{Store, TmpDir, Upper, WorkDir};
use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, open_tree,
};

use crate::agent::Agent;
use crate::cache_mounts::Held;
use crate::cancel::Cancel;
use crate::error::{BuildError, reason};
use crate::keys::{self, KeyBuilder};
use crate::mount_points::Point;
use crate::ops::tree::{Selection, Tree};
use crate::ops::write::{self, Writer};
use crate::plan::{CopyFrom, MountFrom, Mounted, RunMount, RunOp};
use crate::request::Sandboxing;
use crate::run::RunInput;
use crate::solve::context_mounts;

/// Whose caches are to be taken.
pub(crate) struct CachesInput<'a> {
    pub(crate) store: &'a Store,
    pub(crate) sandboxing: &'a Sandboxing,
    pub(crate) op: &'a RunOp,
    /// As in [`RunInput`].
    pub(crate) sources: &'a [Option<Vec<DiffId>>],
    pub(crate) cancel: &'a Cancel,
}

/// Mounts that are ready.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    /// In the order they are to be made; with the descriptor of what is bound.
    pub(crate) mounts: Vec<(Mount, Option<OwnedFd>)>,
    /// `KEY=value`
    pub(crate) env: Vec<String>,
    // What must outlive the step; agents end before their directories are removed.
    agents: Vec<Agent>,
    dirs: Vec<TmpDir>,
    works: Vec<WorkDir>,
}

/// The caches of a step, by name; they are its own, or shared, until this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Caches(BTreeMap<String, Held>);

/// Makes the mounts of a step ready. An error that is only a text is the Dockerfile's, or of
/// whoever builds.
pub(crate) fn prepare(input: &RunInput<'_>) -> Result<Result<Ready, String>, BuildError> {
    let mut ready = Ready::default();
    let mut order: Vec<usize> = (0..input.op.mounts.len()).collect();
    // What is mounted on comes before what is mounted in it.
    order.sort_by_key(|&i| {
        let target = input.op.mounts[i].target.as_deref().unwrap_or_default();
        target.split('/').count()
    });
    for index in order {
        let mount = &input.op.mounts[index];
        let layers = input.sources.get(index).and_then(Option::as_deref);
        if let Err(message) = ready.add(input, mount, layers)? {
            return Ok(Err(message));
        }
    }
    Ok(Ok(ready))
}

type Told = Result<Result<(), String>, BuildError>;

impl Ready {
    /// Lets everything go; an error is why the step had not all that it was promised.
    pub(crate) fn end(self) -> Result<(), String> {
        let mut ended = Ok(());
        for agent in self.agents {
            if let Err(error) = agent.end() {
                ended = Err(format!(
                    "the SSH agent was not passed on: {}",
                    reason(&error)
                ));
            }
        }
        ended
    }

    /// A place for what hooks are shown, which goes with the mounts; nowhere if there are none.
    pub(crate) fn bundle(&mut self, store: &Store, spec: &Spec) -> Result<PathBuf, BuildError> {
        if spec.hooks().is_none() {
            return Ok(PathBuf::new());
        }
        let dir = store.tmp_dir("bundle")?;
        let place = dir.path().join("bundle");
        self.dirs.push(dir);
        Ok(place)
    }

    /// Where everything goes.
    pub(crate) fn points(&self) -> Vec<Point> {
        self.mounts
            .iter()
            .map(|(mount, fd)| {
                let kind = fd.as_ref().map(rustix::fs::fstat);
                let is_dir = |stat: &rustix::fs::Stat| {
                    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
                };
                Point {
                    path: mount.destination().clone(),
                    directory: kind.is_none_or(|stat| stat.as_ref().is_ok_and(is_dir)),
                }
            })
            .collect()
    }

    fn add(&mut self, input: &RunInput<'_>, mount: &RunMount, layers: Option<&[DiffId]>) -> Told {
        match &mount.what {
            Mounted::Bind { from, source } => self.files(input, mount, from, source, layers),
            Mounted::Cache { .. } => self.cache(input, mount, layers),
            Mounted::Tmpfs { size } => {
                let mut options = vec!["nosuid".to_owned(), "nodev".to_owned()];
                options.extend(size.map(|size| format!("size={size}")));
                if mount.read_only {
                    options.push("ro".to_owned());
                }
                let options: Vec<&str> = options.iter().map(String::as_str).collect();
                let target = mount.target.as_deref().unwrap_or_default();
                let entry = defaults::mount(target, "tmpfs", "tmpfs", &options);
                self.mounts.push((entry, None));
                Ok(Ok(()))
            }
            Mounted::Secret {
                id,
                env,
                required,
                owner,
                mode,
            } => {
                let Some(secret) = input.secrets.get(id) else {
                    return Ok(if *required {
                        Err(format!("secret {id}: not found"))
                    } else {
                        Ok(())
                    });
                };
                if let Some(name) = env {
                    let name = if name.is_empty() { id } else { name };
                    let Some(value) = secret.text() else {
                        let message = format!("secret {id}: its value cannot be a variable's");
                        return Ok(Err(message));
                    };
                    self.env.push(format!("{name}={value}"));
                }
                if mount.target.is_some() {
                    let file = self.secret(secret.bytes(), *owner, *mode)?;
                    self.bind(mount, file);
                }
                Ok(Ok(()))
            }
            Mounted::Ssh {
                id,
                required,
                owner,
                mode,
            } => self.ssh(input, mount, id, *required, *owner, *mode),
        }
    }

    fn bind(&mut self, mount: &RunMount, file: OwnedFd) {
        let access = if mount.read_only { "ro" } else { "rw" };
        let options = ["bind", access, "rprivate"];
        let target = mount.target.as_deref().unwrap_or_default();
        // The source is only a name: the descriptor is what is bound.
        let entry = defaults::mount(target, "bind", target, &options);
        self.mounts.push((entry, Some(file)));
    }

    fn files(
        &mut self,
        input: &RunInput<'_>,
        mount: &RunMount,
        from: &MountFrom,
        source: &str,
        layers: Option<&[DiffId]>,
    ) -> Told {
        let source = match from {
            MountFrom::Files(CopyFrom::Context | CopyFrom::Named(_)) => context_mounts::at(source),
            _ => source,
        };
        let (root, path) = match (from, layers) {
            (MountFrom::Nothing, _) => {
                let dir = input.store.tmp_dir("mount")?;
                let path = open(dir.path())?;
                self.dirs.push(dir);
                (path, source)
            }
            (_, Some(layers)) if mount.read_only => {
                let fd = input.store.layers().mount(layers, Upper::ReadOnly)?;
                (fd, source)
            }
            (_, Some(layers)) => {
                let (work, root) = crate::ops::writable(input.store, layers)?;
                self.works.push(work);
                let fd = root.as_fd().try_clone_to_owned();
                (fd.map_err(BuildError::io("open a mount"))?, source)
            }
            (_, None) => {
                return Err(BuildError::Internal(
                    "a mount without its source".to_owned(),
                ));
            }
        };
        if path.is_empty() {
            self.bind(mount, root);
            return Ok(Ok(()));
        }
        let root = RootFd::from(root);
        let below = match root.open_in_root(Path::new(path), OFlags::PATH, Mode::empty()) {
            Ok(below) => below,
            Err(error) => {
                let message = format!("failed to mount \"/{path}\": {}", reason(&error));
                return Ok(Err(message));
            }
        };
        match detached(&below) {
            Ok(fd) => {
                self.bind(mount, fd);
                Ok(Ok(()))
            }
            // Kernels before 6.15 do not copy a part of a mount that is nowhere.
            Err(rustix::io::Errno::INVAL) => {
                match self.copied(input, &Tree::of_image(root), path)? {
                    Ok(copied) => self.bind(mount, copied),
                    Err(message) => return Ok(Err(message)),
                }
                Ok(Ok(()))
            }
            Err(errno) => Err(BuildError::io(format!("mount /{path}"))(errno.into())),
        }
    }

    /// A copy of a file or directory, for this step alone.
    fn copied(
        &mut self,
        input: &RunInput<'_>,
        tree: &Tree,
        source: &str,
    ) -> Result<Result<OwnedFd, String>, BuildError> {
        let dir = input.store.tmp_dir("mount")?;
        let copied = match copy(input, tree, source, dir.path()) {
            Ok(copied) => copied,
            Err(Failure::Told(message)) => return Ok(Err(message)),
            Err(Failure::Build(error)) => return Err(error),
        };
        let fd = open(&copied)?;
        self.dirs.push(dir);
        Ok(Ok(fd))
    }

    fn cache(&mut self, input: &RunInput<'_>, mount: &RunMount, layers: Option<&[DiffId]>) -> Told {
        let held = cache_name(&mount.what, layers).and_then(|name| input.caches.0.get(&name));
        let held = held.ok_or_else(|| BuildError::Internal("a cache was not taken".to_owned()))?;
        let fd = open(&held.data())?;
        self.bind(mount, fd);
        Ok(Ok(()))
    }

    /// A file of a file system in memory that is mounted nowhere.
    fn secret(&self, bytes: &[u8], owner: (u32, u32), mode: u32) -> Result<OwnedFd, BuildError> {
        let failed = |what: &str| BuildError::io(format!("make a secret ready: {what}"));
        let root = memory().map_err(|e| failed("tmpfs")(e.into()))?;
        let path = write_secret(&root, bytes, owner, mode).map_err(failed("write"))?;
        match detached(&path) {
            Ok(fd) => Ok(fd),
            // Kernels before 6.15 do not copy a part of a mount that is nowhere. A secret is
            // never written to a disk instead.
            Err(rustix::io::Errno::INVAL) => {
                corten_store::part_of_mount(root.as_fd(), path.as_fd()).map_err(failed("mount"))
            }
            Err(errno) => Err(failed("mount")(errno.into())),
        }
    }

    fn ssh(
        &mut self,
        input: &RunInput<'_>,
        mount: &RunMount,
        id: &str,
        required: bool,
        owner: (u32, u32),
        mode: u32,
    ) -> Told {
        let Some(agent) = input.agents.get(id) else {
            return Ok(if required {
                Err(format!(
                    "no SSH key {id:?} forwarded from the client: build with --ssh {id}"
                ))
            } else {
                Ok(())
            });
        };
        let dir = input.store.tmp_dir("agent")?;
        let served = match Agent::serve(agent, dir.path(), owner, mode) {
            Ok(served) => served,
            Err(error) => {
                let agent = agent.display();
                return Ok(Err(format!("SSH agent {agent}: {}", reason(&error))));
            }
        };
        let fd = open(served.path())?;
        self.agents.push(served);
        self.dirs.push(dir);
        self.bind(mount, fd);
        if !self.env.iter().any(|e| e.starts_with("SSH_AUTH_SOCK=")) {
            let target = mount.target.as_deref().unwrap_or_default();
            self.env.push(format!("SSH_AUTH_SOCK={target}"));
        }
        Ok(Ok(()))
    }
}

/// Takes those of a step's caches that are not in `caches` yet, in one order for all steps: two
/// steps that want the same two never wait for each other. Tells the id of one that another has;
/// who waits for it must hold nothing else that others need to go on, no thread either.
pub(crate) fn take_caches(
    wanted: &CachesInput<'_>,
    caches: &mut Caches,
) -> Result<Result<Option<String>, String>, BuildError> {
    let mut names = BTreeMap::new();
    for (index, mount) in wanted.op.mounts.iter().enumerate() {
        let layers = wanted.sources.get(index).and_then(Option::as_deref);
        if let Some(name) = cache_name(&mount.what, layers) {
            names.entry(name).or_insert((&mount.what, layers));
        }
    }
    for (name, (what, layers)) in names {
        if caches.0.contains_key(&name) {
            continue;
        }
        let Mounted::Cache {
            id,
            sharing,
            from,
            source,
            owner,
            mode,
        } = what
        else {
            continue;
        };
        if matches!(
            from,
            MountFrom::Files(CopyFrom::Context | CopyFrom::Named(_))
        ) {
            let message = "a cache mount cannot begin with files of a context";
            return Ok(Err(message.to_owned()));
        }
        let fill = |path: &Path| -> io::Result<()> {
            if let (MountFrom::Files(_), Some(layers)) = (from, layers) {
                fill(wanted, layers, source, path)?;
            }
            std::os::unix::fs::chown(path, Some(owner.0), Some(owner.1))?;
            std::fs::set_permissions(path, PermissionsExt::from_mode(*mode))
        };
        let mounts = wanted.sandboxing.cache_mounts();
        let held = match mounts.try_take(&name, id, *sharing, wanted.cancel, &fill) {
            Ok(Some(held)) => held,
            Ok(None) => return Ok(Ok(Some(id.clone()))),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                return Err(BuildError::Cancelled);
            }
            Err(error) => return Ok(Err(format!("cache mount {id}: {}", reason(&error)))),
        };
        caches.0.insert(name, held);
    }
    Ok(Ok(None))
}

/// What the directory of a cache is called; `None`: it is no cache.
fn cache_name(what: &Mounted, layers: Option<&[DiffId]>) -> Option<String> {
    let Mounted::Cache {
        id,
        source,
        owner,
        mode,
        ..
    } = what
    else {
        return None;
    };
    let base = layers.map_or(String::new(), |layers| keys::state(layers).to_string());
    let mut key = KeyBuilder::new("cache mount");
    key.add(id)
        .add(&base)
        .add(source)
        .add(format!("{owner:?} {mode:o}"));
    let key = key.finish().to_string();
    let name = key.rsplit(':').next().unwrap_or_default();
    Some(name.get(..32).unwrap_or(name).to_owned())
}

fn open(path: &Path) -> Result<OwnedFd, BuildError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|e| BuildError::io(format!("open {}", path.display()))(e.into()))
}

/// A mount of what a descriptor leads to.
fn detached(fd: &OwnedFd) -> Result<OwnedFd, rustix::io::Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(fd, "", flags)
}

fn memory() -> Result<OwnedFd, rustix::io::Errno> {
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&fs, "mode", "0700")?;
    fsconfig_create(&fs)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Writes the file; it as a place.
fn write_secret(
    root: &OwnedFd,
    bytes: &[u8],
    (uid, gid): (u32, u32),
    mode: u32,
) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(root, "secret", flags, Mode::from_raw_mode(0o600))?;
    let mut file = std::fs::File::from(file);
    file.write_all(bytes)?;
    rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777))?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(root, "secret", flags, Mode::empty())?)
}

/// Why a copy failed.
enum Failure {
    Told(String),
    Build(BuildError),
}

/// Copies what a path of a tree leads to into a directory of ours; where it is.
fn copy(input: &RunInput<'_>, tree: &Tree, source: &str, dir: &Path) -> Result<PathBuf, Failure> {
    let source = source.to_owned();
    let entries = tree
        .select(&Selection::of(&source, false))
        .map_err(|e| Failure::Told(format!("failed to compute cache key: {e}")))?;
    let root = RootFd::open(dir).map_err(|e| Failure::Build(BuildError::io("open")(e)))?;
    let single = matches!(entries.as_slice(), [one] if one.named);
    let place = Path::new("copy");
    if !single {
        write::make_directory(&root, place, None, 0o755)
            .map_err(|e| Failure::Build(BuildError::io("make a directory")(e)))?;
    }
    let writer = Writer::plain(&root, input.cancel);
    let failed = |(path, e): (PathBuf, io::Error)| {
        if e.kind() == io::ErrorKind::Interrupted {
            return Failure::Build(BuildError::Cancelled);
        }
        Failure::Told(format!(
            "failed to copy files: /{}: {}",
            path.display(),
            reason(&e)
        ))
    };
    writer.shown(tree, &entries, place).map_err(failed)?;
    Ok(dir.join(place))
}

/// What a cache begins with.
fn fill(input: &CachesInput<'_>, layers: &[DiffId], source: &str, path: &Path) -> io::Result<()> {
    let mount = input
        .store
        .layers()
        .mount(layers, Upper::ReadOnly)
        .map_err(io::Error::other)?;
    let tree = Tree::of_image(RootFd::from(mount));
    let source = source.to_owned();
    let selection = Selection::of(&source, true);
    let entries = tree.select(&selection).map_err(io::Error::other)?;
    let root = RootFd::open(path)?;
    Writer::plain(&root, input.cancel)
        .entries(&tree, &entries, Path::new("/"))
        .map_err(|(_, error)| error)
}
