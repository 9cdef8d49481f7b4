//! Everything about a container that can be prepared and checked before there is a process.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;

use corten_oci::runtime_spec::{Hook, Spec};

use super::Extras;
use crate::cgroup::Cgroup;
use crate::error::RuntimeError;
use crate::hooks::HookState;
use crate::init::{ChildStdio, InitPlan};
use crate::mounts;
use crate::namespaces::{Namespaces, unprivileged};
use crate::process::ProcessPlan;
use crate::procfs::Proc;
use crate::rootfs::{RootfsPlan, Way};
use crate::sandbox::{CgroupSpec, NetNs, Rootfs, Sandbox, Stdio};
use crate::validate;

/// All checks and preparations for a container, without making anything: what `fuzz/` and
/// the tests throw documents at. Nothing is left behind.
pub(crate) fn rehearse(spec: &Spec, rootfs: &Path) -> Result<(), RuntimeError> {
    validate::check(spec, &NetNs::Spec)?;
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
        netns: NetNs::Spec,
        stdio: Stdio::Inherit,
        cgroup: group,
    };
    let state = hook_state("rehearsal", spec, rootfs);
    plan(sandbox, Extras::default(), &cgroup, state).map(drop)
}

/// What the child will carry out.
pub(super) fn plan(
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
    let mut process = ProcessPlan::new(process, spec)?;
    let (uids, gids) = namespaces.mappings();
    if namespaces.new_user {
        process.check_mappings(uids, gids)?;
    } else if namespaces.in_user_namespace() {
        process.check_mappings_of(spec)?;
    }
    let hooks = spec.hooks().as_ref();
    let some = |hooks: &Option<Vec<Hook>>| hooks.as_ref().is_some_and(|hooks| !hooks.is_empty());
    let runtime_hooks =
        hooks.is_some_and(|hooks| some(hooks.prestart()) || some(hooks.create_runtime()));
    let looked_at = runtime_hooks || hooks.is_some_and(|hooks| some(hooks.create_container()));
    let rootfs = root_plan(
        spec,
        rootfs,
        &mut opened,
        cgroup,
        &namespaces,
        Way {
            no_pivot: extras.no_pivot,
            looked_at,
            place: &extras.bundle,
        },
    )?;
    let list = |hooks: Option<&Vec<Hook>>| hooks.cloned().unwrap_or_default();
    let stdio = child_stdio(stdio, &mut process);
    give_streams(&stdio, &process, spec);
    Ok(InitPlan {
        sync: namespaces.need_caller(),
        runtime_hooks,
        shown_to_hooks: unprivileged() && namespaces.new_user && !namespaces.joins_pid(),
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
        stdio,
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
    way: Way<'_>,
) -> Result<RootfsPlan, RuntimeError> {
    let mounts = mounts::plan(spec, opened, cgroup, namespaces)?;
    RootfsPlan::new(spec, rootfs, mounts, namespaces, way)
}

/// Streams of its own, if it gets any, are its user's.
pub(crate) fn give_streams(stdio: &ChildStdio, process: &ProcessPlan, spec: &Spec) {
    if let ChildStdio::Fds(streams) = stdio {
        crate::outside::give_streams(streams, process.user(), spec);
    }
}

pub(crate) fn child_stdio(stdio: Stdio, process: &mut ProcessPlan) -> ChildStdio {
    process.own_terminal = matches!(stdio, Stdio::Terminal { .. });
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

pub(crate) fn hook_state(id: &str, spec: &Spec, bundle: &Path) -> HookState {
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
