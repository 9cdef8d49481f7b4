//! Creating and starting a container's first process: the caller's side.
//!
//! Story: check and prepare everything (the plan), make the control group, clone, wait
//! until the child says that only its `execve` is left. Each thing made has a guard, so
//! that a failure anywhere leaves no process and no group behind.

mod child;
mod plan;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use corten_oci::runtime_spec::{Hook, LinuxNamespaceType, LinuxResources, Spec};
use rustix::io::Errno;

use crate::cgroup::{Cgroup, CgroupGuard};
use crate::channel::{self, Message};
use crate::error::{RuntimeError, Step};
use crate::hooks::{self, HookState};
use crate::namespaces::unprivileged;
use crate::namespaces::userns::in_user_namespace;
use crate::net_devices::NetDevices;
use crate::resctrl;
use crate::sandbox::Sandbox;
use crate::seccomp::notify;
use crate::validate::{self, has_new_namespace};
pub(crate) use child::ChildGuard;
use child::clone;
use plan::plan;
pub(crate) use plan::{child_stdio, give_streams, hook_state, rehearse, sysctls};

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
    /// default only others than the host's root do.
    pub(crate) rootless: Option<bool>,
    /// Descriptors from 3 on that the program keeps.
    pub(crate) keep_fds: u32,
    /// Read and report ends of a gate that outlives the caller.
    pub(crate) gate: Option<(OwnedFd, OwnedFd)>,
    /// The place of the control group has been cleared.
    pub(crate) cleared: bool,
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
    if unprivileged() && !validate::has_namespace(spec, LinuxNamespaceType::User) {
        // runc's words.
        let reason = "has no user: rootless container requires user namespaces";
        return Err(RuntimeError::spec("linux.namespaces", reason));
    }
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
    if !extras.cleared {
        Cgroup::clear(&sandbox.cgroup)?;
    }
    let mut cgroup = match Cgroup::create(&sandbox.cgroup, resources, spec.annotations()) {
        Err(denied @ RuntimeError::CgroupDenied { .. })
            if extras.rootless.unwrap_or_else(rootless) =>
        {
            without_group(resources, denied)?
        }
        result => result?,
    };
    tracing::debug!(
        cgroup = cgroup.get().path(),
        "control group made, limits set"
    );
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
    tracing::debug!(pid = child.pid, "process cloned into its namespaces");
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
                tracing::debug!(pid = child.pid, "ids mapped, network devices moved");
                channel::go(channel.as_fd())?;
            }
            Message::Mounted => {
                for (kind, hooks) in &runtime_hooks {
                    // The validation suite and crun hold that the environment is there
                    // when prestart hooks are called (lifecycle, steps 2 and 3).
                    let status = if *kind == "prestart" {
                        "created"
                    } else {
                        "creating"
                    };
                    let state = hook_state.json(status, Some(child.pid));
                    let hooks = hooks.as_deref().unwrap_or_default();
                    tracing::debug!(kind, count = hooks.len(), "calling hooks");
                    hooks::run(hooks, kind, &state)?;
                }
                channel::go(channel.as_fd())?;
            }
            Message::Listener(number) => {
                let state = hook_state.value("creating", Some(child.pid));
                let listener = plan.process.listener();
                notify::hand_over(listener, child.pidfd(), child.pid, number, &state)?;
                channel::go(channel.as_fd())?;
            }
            Message::Ready(console) => {
                tracing::debug!(
                    pid = child.pid,
                    "mounts made, root entered, waiting for start"
                );
                break console;
            }
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
            Message::Ready(_)
            | Message::Namespaces
            | Message::Mounted
            | Message::Born(..)
            | Message::Listener(_) => {
                return Err(RuntimeError::setup(Step::Sync, "", Errno::PROTO));
            }
        }
        tracing::debug!(pid = self.child.pid, "program executed");
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

/// Whether the caller is not the host's root, as runc decides it.
fn rootless() -> bool {
    unprivileged() || in_user_namespace()
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

/// The user of the host who gets the control group: the one the container's user is, if
/// the container has a user and a cgroup namespace of its own and mounts its groups
/// writable (runtime-spec, config-linux "Cgroup ownership").
fn cgroup_owner(spec: &Spec) -> Option<u32> {
    use corten_oci::runtime_spec::LinuxNamespaceType as Type;
    let linux = spec.linux().as_ref()?;
    let writable = spec.mounts().iter().flatten().any(|mount| {
        mount.typ().as_deref() == Some("cgroup")
            && mount.destination().as_os_str() == "/sys/fs/cgroup"
            && !mount
                .options()
                .iter()
                .flatten()
                .any(|option| option == "ro")
    });
    if !writable || !has_new_namespace(spec, Type::Cgroup) || !has_new_namespace(spec, Type::User) {
        return None;
    }
    let uid = spec.process().as_ref()?.user().uid();
    let mut mappings = linux.uid_mappings().iter().flatten();
    mappings.find_map(|map| {
        let offset = uid.checked_sub(map.container_id())?;
        (offset < map.size()).then(|| map.host_id().checked_add(offset))?
    })
}
