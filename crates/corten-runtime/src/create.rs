//! Creating and starting a container's first process: the caller's side.
//!
//! Story: check and prepare everything (the plan), make the control group, clone, wait
//! until the child says that only its `execve` is left. Each thing made has a guard, so
//! that a failure anywhere leaves no process and no group behind.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use corten_oci::runtime_spec::{Hook, LinuxResources, Spec};
use rustix::io::Errno;

use crate::cgroup::{Cgroup, CgroupGuard};
use crate::channel::{self, Message};
use crate::error::{RuntimeError, Step};
use crate::hidden::{Hidden, hide};
use crate::hooks::{self, HookState};
use crate::init::{self, ChildStdio, InitPlan};
use crate::mounts;
use crate::namespaces::{Namespaces, relay, unprivileged};
use crate::net_devices::NetDevices;
use crate::process::ProcessPlan;
use crate::procfs::Proc;
use crate::resctrl;
use crate::rootfs::RootfsPlan;
use crate::sandbox::{CgroupSpec, Rootfs, Sandbox, Stdio};
use crate::seccomp::notify;
use crate::status::{ExitStatus, wait_pidfd};
use crate::sys::{self, Cloned};
use crate::validate;

/// A container whose first process is set up and waits, one `execve` away from its
/// program. Dropping it kills the process and removes the control group.
#[derive(Debug)]
pub struct Created {
    // Order of fields is order of dropping: first the process, then its group.
    child: ChildGuard,
    resctrl: Option<resctrl::Group>,
    cgroup: CgroupGuard,
    channel: OwnedFd,
    console: Option<OwnedFd>,
    poststart: Vec<Hook>,
    hook_state: HookState,
}

/// A container whose program has been executed. Dropping it leaves the container alone.
#[derive(Debug)]
pub struct Running {
    /// The first process, in the caller's pid namespace.
    pub pid: i32,
    /// Its pidfd; the process is a child of the caller.
    pub pidfd: OwnedFd,
    /// Its control group.
    pub cgroup: Cgroup,
}

/// What only the command line needs.
#[derive(Debug, Default)]
pub(crate) struct Extras {
    /// For the hooks' state.
    pub(crate) bundle: PathBuf,
    pub(crate) no_pivot: bool,
    pub(crate) no_new_keyring: bool,
    /// Whether to go on without a control group if the caller may not make any; by
    /// default only others than root do.
    pub(crate) rootless: Option<bool>,
    /// Descriptors from 3 on that the program keeps.
    pub(crate) keep_fds: u32,
    /// Read and report ends of a gate that outlives the caller.
    pub(crate) gate: Option<(OwnedFd, OwnedFd)>,
}

/// Creates a container up to, but not including, the execution of its program. The
/// caller must be single-threaded.
///
/// Besides [`RuntimeError::Setup`] this may already return [`RuntimeError::Exec`]: the
/// program is looked up now.
pub fn create(sandbox: Sandbox<'_>) -> Result<Created, RuntimeError> {
    create_with(sandbox, Extras::default(), &mut |_| Ok(()))
}

/// `born` is told of the process as soon as it lives, while it sets itself up.
pub(crate) fn create_with(
    sandbox: Sandbox<'_>,
    extras: Extras,
    born: &mut dyn FnMut(i32) -> Result<(), RuntimeError>,
) -> Result<Created, RuntimeError> {
    let spec = sandbox.spec;
    validate::check(spec, &sandbox.netns)?;
    if let Some(hooks) = spec.hooks() {
        hooks::check(hooks)?;
    }
    let hook_state = hook_state(sandbox.id, spec, &extras.bundle);
    let resources = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().clone());
    let no_resources = LinuxResources::default();
    let devices = NetDevices::plan(spec, &sandbox.netns)?;
    let resources = resources.as_ref().unwrap_or(&no_resources);
    let mut cgroup = match Cgroup::create(&sandbox.cgroup, resources) {
        Err(denied @ RuntimeError::CgroupDenied { .. })
            if extras.rootless.unwrap_or_else(unprivileged) =>
        {
            without_group(resources, denied)?
        }
        result => result?,
    };
    let resctrl = resctrl::create(spec, sandbox.id)?;
    if let Some(owner) = cgroup_owner(spec) {
        cgroup.get().delegate_to(owner)?;
    }
    let mut plan = plan(sandbox, extras, cgroup.get(), hook_state.clone())?;
    plan.sync |= !devices.is_empty();
    if let Some(group) = &resctrl {
        plan.cgroups.extend(group.join_files()?);
    }
    let (channel, child) = clone(&mut plan, cgroup.get())?;
    born(child.pid)?;
    let hooks = spec.hooks().as_ref();
    let runtime_hooks = [
        ("prestart", hooks.and_then(|hooks| hooks.prestart().clone())),
        (
            "createRuntime",
            hooks.and_then(|hooks| hooks.create_runtime().clone()),
        ),
    ];
    let console = loop {
        match channel::receive(channel.as_fd())? {
            Message::Namespaces => {
                plan.namespaces.provide(child.pid)?;
                devices.move_into(child.pid)?;
                for (kind, hooks) in &runtime_hooks {
                    // The validation suite and crun hold that the environment is there
                    // when prestart hooks are called (lifecycle, steps 2 and 3).
                    let status = if *kind == "prestart" {
                        "created"
                    } else {
                        "creating"
                    };
                    let state = hook_state.json(status, Some(child.pid));
                    hooks::run(hooks.as_deref().unwrap_or_default(), kind, &state)?;
                }
                channel::go(channel.as_fd())?;
            }
            Message::Listener(number) => {
                let state = hook_state.value("creating", Some(child.pid));
                let listener = plan.process.listener();
                notify::hand_over(listener, child.pidfd(), child.pid, number, &state)?;
                channel::go(channel.as_fd())?;
            }
            Message::Ready(console) => break console,
            Message::Failed(error) => return Err(error),
            Message::Closed | Message::Born(..) => {
                return Err(RuntimeError::Died {
                    step: Step::Prepare,
                    status: child.reap()?,
                });
            }
        }
    };
    cgroup.occupied();
    let poststart = hooks
        .and_then(|hooks| hooks.poststart().clone())
        .unwrap_or_default();
    Ok(Created {
        child,
        resctrl,
        cgroup,
        channel,
        console,
        poststart,
        hook_state,
    })
}

impl Created {
    /// The first process, in the caller's pid namespace.
    pub fn pid(&self) -> i32 {
        self.child.pid
    }

    /// Its pidfd.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.pidfd()
    }

    /// The master side of the terminal, once, if one was asked for.
    pub fn console(&mut self) -> Option<OwnedFd> {
        self.console.take()
    }

    /// The control group.
    pub fn cgroup(&self) -> &Cgroup {
        self.cgroup.get()
    }

    /// Executes the program; returns once `execve` has happened and the poststart hooks have
    /// run. If any of that fails, nothing is left of the container.
    ///
    /// A process that was killed while it waited is a container that could not be started
    /// ([`RuntimeError::Died`]); once let go, its end is the container's.
    pub fn start(self) -> Result<Running, RuntimeError> {
        match channel::go(self.channel.as_fd()) {
            Err(error) if matches!(error.errno(), Some(Errno::PIPE | Errno::CONNRESET)) => {
                return Err(RuntimeError::Died {
                    step: Step::Sync,
                    status: self.child.reap()?,
                });
            }
            result => result?,
        }
        match channel::receive(self.channel.as_fd())? {
            Message::Closed => {}
            Message::Failed(error) => return Err(error),
            Message::Ready(_) | Message::Namespaces | Message::Born(..) | Message::Listener(_) => {
                return Err(RuntimeError::setup(Step::Sync, "", Errno::PROTO));
            }
        }
        let state = self.hook_state.json("running", Some(self.child.pid));
        // runtime-spec, lifecycle step 9: a failure stops the container.
        hooks::run(&self.poststart, "poststart", &state)?;
        Ok(self.detach())
    }

    /// Disarms the guards without starting: somebody else will (the command line).
    pub(crate) fn detach(self) -> Running {
        let pid = self.child.pid;
        let pidfd = self.child.disarm();
        if let Some(group) = self.resctrl {
            group.keep();
        }
        Running {
            pid,
            pidfd,
            cgroup: self.cgroup.disarm(),
        }
    }
}

/// Kills and reaps the child unless disarmed.
#[derive(Debug)]
pub(crate) struct ChildGuard {
    pub(crate) pid: i32,
    pidfd: Option<OwnedFd>,
}

impl ChildGuard {
    pub(crate) fn new(pid: i32, pidfd: OwnedFd) -> Self {
        Self {
            pid,
            pidfd: Some(pidfd),
        }
    }

    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        // Only `disarm` and `reap` take it, and they consume the guard.
        self.pidfd
            .as_ref()
            .map_or(rustix::stdio::stdin(), AsFd::as_fd)
    }

    /// Leaves the child alone.
    #[allow(clippy::expect_used)] // taken nowhere else before
    pub(crate) fn disarm(mut self) -> OwnedFd {
        self.pidfd
            .take()
            .expect("a guard has its pidfd until it is consumed")
    }

    /// Waits for a child that is ending by itself.
    pub(crate) fn reap(self) -> Result<ExitStatus, RuntimeError> {
        wait_pidfd(self.disarm())
    }
}

impl Drop for ChildGuard {
    fn drop(&mut self) {
        if let Some(pidfd) = self.pidfd.take() {
            rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).ok();
            wait_pidfd(&pidfd).ok();
        }
    }
}

/// All checks and preparations for a container, without making anything: what `fuzz/` and
/// the tests throw documents at. Nothing is left behind.
pub(crate) fn rehearse(spec: &Spec, rootfs: &std::path::Path) -> Result<(), RuntimeError> {
    validate::check(spec, &crate::sandbox::NetNs::Spec)?;
    let given = spec.linux().as_ref();
    let given = given.and_then(|linux| linux.cgroups_path().as_ref());
    let given = given.map(|path| path.to_string_lossy());
    let group = CgroupSpec::from_config(given.as_deref(), "rehearsal", false)?;
    Cgroup::open(&group.path)?;
    if let Some(resources) = spec.linux().as_ref().and_then(|l| l.resources().as_ref()) {
        crate::cgroup::rehearse(resources)?;
    }
    // A group of a name no container has: nothing is joined.
    let cgroup = Cgroup::open("corten-rehearsal/none")?;
    let sandbox = Sandbox {
        id: "rehearsal",
        spec,
        rootfs: Rootfs::Path(rootfs.to_owned()),
        mounts: BTreeMap::new(),
        netns: crate::sandbox::NetNs::Spec,
        stdio: Stdio::Inherit,
        cgroup: group,
    };
    let state = hook_state("rehearsal", spec, rootfs);
    plan(sandbox, Extras::default(), &cgroup, state).map(drop)
}

/// Everything that can be prepared and checked before there is a process.
fn plan(
    sandbox: Sandbox<'_>,
    extras: Extras,
    cgroup: &Cgroup,
    hook_state: HookState,
) -> Result<InitPlan, RuntimeError> {
    let Sandbox {
        id,
        spec,
        rootfs,
        mounts: mut opened,
        netns,
        stdio,
        ..
    } = sandbox;
    let process = spec.process().as_ref();
    let process = process.ok_or_else(|| RuntimeError::spec("process", "is missing"))?;
    let namespaces = Namespaces::plan(spec, netns)?;
    let process = ProcessPlan::new(process, spec)?;
    let (uids, gids) = namespaces.mappings();
    if namespaces.new_user {
        process.check_mappings(uids, gids)?;
    }
    let rootfs = root_plan(
        spec,
        rootfs,
        &mut opened,
        cgroup,
        &namespaces,
        extras.no_pivot,
    )?;
    let hooks = spec.hooks().as_ref();
    let some = |hooks: &Option<Vec<Hook>>| hooks.as_ref().is_some_and(|hooks| !hooks.is_empty());
    let runtime_hooks =
        hooks.is_some_and(|hooks| some(hooks.prestart()) || some(hooks.create_runtime()));
    let list = |hooks: Option<&Vec<Hook>>| hooks.cloned().unwrap_or_default();
    Ok(InitPlan {
        sync: namespaces.need_caller() || runtime_hooks,
        cgroups: cgroup.join_files()?,
        hostname: spec.hostname().clone().filter(|name| !name.is_empty()),
        domainname: spec.domainname().clone().filter(|name| !name.is_empty()),
        sysctls: sysctls(spec),
        keyring: if extras.no_new_keyring {
            None
        } else {
            CString::new(format!("_ses.{id}")).ok()
        },
        rootfs: Some(rootfs),
        stdio: child_stdio(stdio, &process),
        process,
        proc: Proc::open()?,
        keep_fds: extras.keep_fds,
        create_container: list(hooks.and_then(|hooks| hooks.create_container().as_ref())),
        start_container: list(hooks.and_then(|hooks| hooks.start_container().as_ref())),
        hook_state,
        gate: extras.gate,
        namespaces,
    })
}

fn root_plan(
    spec: &Spec,
    rootfs: Rootfs,
    opened: &mut BTreeMap<usize, OwnedFd>,
    cgroup: &Cgroup,
    namespaces: &Namespaces,
    no_pivot: bool,
) -> Result<RootfsPlan, RuntimeError> {
    let mounts = mounts::plan(spec, opened, cgroup, namespaces)?;
    RootfsPlan::new(spec, rootfs, mounts, namespaces, no_pivot)
}

/// An ordinary user often may not make groups. What only groups can do must not be lost
/// silently; device rules change nothing for somebody who cannot make devices.
fn without_group(
    resources: &LinuxResources,
    denied: RuntimeError,
) -> Result<CgroupGuard, RuntimeError> {
    let mut limits = resources.clone();
    limits.set_devices(None);
    let asked = serde_json::to_value(&limits).is_ok_and(|value| {
        let empty = |value: &serde_json::Value| match value {
            serde_json::Value::Object(fields) => fields.is_empty(),
            serde_json::Value::Array(items) => items.is_empty(),
            value => value.is_null(),
        };
        value
            .as_object()
            .is_some_and(|fields| !fields.values().all(empty))
    });
    if asked {
        return Err(denied);
    }
    tracing::warn!(%denied, "running without a control group");
    Ok(CgroupGuard::nowhere())
}

pub(crate) fn child_stdio(stdio: Stdio, process: &ProcessPlan) -> ChildStdio {
    match stdio {
        Stdio::Inherit => ChildStdio::Inherit,
        Stdio::Pipes {
            stdin,
            stdout,
            stderr,
        } => ChildStdio::Fds([stdin, stdout, stderr]),
        Stdio::Terminal { size } => ChildStdio::Terminal(size.or(process.console_size)),
    }
}

/// The user of the host who gets the control group: the one the container's user is, if
/// the container has a user and a cgroup namespace of its own and mounts its groups
/// writable (runtime-spec, config-linux "Cgroup ownership").
fn cgroup_owner(spec: &Spec) -> Option<u32> {
    use corten_oci::runtime_spec::LinuxNamespaceType as Type;
    let linux = spec.linux().as_ref()?;
    let new = |typ| {
        let mut listed = linux.namespaces().iter().flatten();
        listed.any(|namespace| {
            let path = namespace.path().as_ref();
            namespace.typ() == typ && path.is_none_or(|path| path.as_os_str().is_empty())
        })
    };
    let writable = spec.mounts().iter().flatten().any(|mount| {
        mount.typ().as_deref() == Some("cgroup")
            && mount.destination().as_os_str() == "/sys/fs/cgroup"
            && !mount
                .options()
                .iter()
                .flatten()
                .any(|option| option == "ro")
    });
    if !writable || !new(Type::Cgroup) || !new(Type::User) {
        return None;
    }
    let uid = spec.process().as_ref()?.user().uid();
    let mut mappings = linux.uid_mappings().iter().flatten();
    mappings.find_map(|map| {
        let offset = uid.checked_sub(map.container_id())?;
        (offset < map.size()).then(|| map.host_id().checked_add(offset))?
    })
}

/// Clones, and runs the plan in the child. In the caller, what was for the child only is
/// closed again.
fn clone(plan: &mut InitPlan, cgroup: &Cgroup) -> Result<(OwnedFd, ChildGuard), RuntimeError> {
    let (ours, theirs) = channel::pair()?;
    let target = cgroup.clone_target()?;
    if plan.namespaces.joined_user().is_some() {
        let target = target.as_ref().map(AsFd::as_fd);
        let cloned = relay::clone_within(target, || {
            plan.process.adjust_oom(&plan.proc)?;
            // Whoever is in the user namespace may look into what enters it.
            hide()?;
            plan.namespaces.enter_user()?;
            init::become_namespace_root()?;
            Ok(plan.namespaces.clone_flags())
        });
        return Ok(match cloned? {
            Cloned::Child => {
                drop(ours);
                init::run(plan, theirs)
            }
            Cloned::Parent { pid, pidfd } => (ours, born(plan, pid, pidfd)),
        });
    }
    let born_into = plan.namespaces.enter_pid()?;
    // Whoever shares the process namespace sees the child at once. An unprivileged caller
    // has to leave it dumpable, or could not write its id mappings.
    let privileged = rustix::process::geteuid().is_root() || !plan.namespaces.new_user;
    let hidden = privileged.then(Hidden::now).transpose()?;
    let try_clone = || {
        sys::clone3(
            plan.namespaces.clone_flags(),
            target.as_ref().map(AsFd::as_fd),
        )
    };
    let cloned = match try_clone() {
        Err(Errno::OPNOTSUPP) if cgroup.make_threaded() => try_clone(),
        cloned => cloned,
    };
    match cloned.map_err(|errno| RuntimeError::setup(Step::Clone, "", errno))? {
        Cloned::Child => {
            drop(ours);
            init::run(plan, theirs)
        }
        Cloned::Parent { pid, pidfd } => {
            drop((hidden, born_into));
            Ok((ours, born(plan, pid, pidfd)))
        }
    }
}

/// Caller: closes what was for the child only.
fn born(plan: &mut InitPlan, pid: i32, pidfd: OwnedFd) -> ChildGuard {
    plan.rootfs = None;
    plan.stdio = ChildStdio::Inherit;
    plan.gate = None;
    ChildGuard::new(pid, pidfd)
}

pub(crate) fn hook_state(id: &str, spec: &Spec, bundle: &std::path::Path) -> HookState {
    let annotations = spec.annotations().iter().flatten();
    HookState {
        version: spec.version().clone(),
        id: id.to_owned(),
        bundle: bundle.to_owned(),
        annotations: annotations.map(|(k, v)| (k.clone(), v.clone())).collect(),
    }
}

/// Paths below `/proc` and values; [`validate`] has checked them.
pub(crate) fn sysctls(spec: &Spec) -> Vec<(String, String)> {
    let linux = spec.linux().as_ref();
    let given = linux.and_then(|linux| linux.sysctl().as_ref());
    let path = |(name, value): (&String, &String)| {
        (
            format!("sys/{}", validate::sysctl_path(name)),
            value.clone(),
        )
    };
    given.into_iter().flatten().map(path).collect()
}
