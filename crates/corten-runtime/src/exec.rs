//! Executing a further process inside a running container.
//!
//! The caller lets a child be born into the container's pid namespace and v2 group; the
//! child joins all other namespaces in one `setns` by pidfd and then does what a first
//! process does last ([`become_process`]).

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use corten_oci::runtime_spec::{LinuxNamespaceType, Process, Spec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::cgroup::{self, Cgroup};
use crate::channel::{self, Message};
use crate::create::{ChildGuard, child_stdio, give_streams, hook_state};
use crate::error::{RuntimeError, Step};
use crate::hidden::{Hidden, hide};
use crate::init::{self, ChildStdio};
use crate::keyring;
use crate::namespaces::{PidGuard, relay, unprivileged};
use crate::process::{Affinity, Creator, ProcessPlan, become_process, wire_stdio};
use crate::procfs::{self, Proc};
use crate::resctrl;
use crate::root::RootFd;
use crate::rootfs::{Console, open_console};
use crate::sandbox::Stdio;
use crate::seccomp::{Listener, notify};
use crate::sys::{self, Cloned};

/// The running container to execute in.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The container's id, which a seccomp listener is told.
    pub id: &'a str,
    /// pidfd of a process inside, normally the first; all its namespaces are joined.
    pub pidfd: BorrowedFd<'a>,
    /// The container's spec: its seccomp profile applies to the new process too.
    pub spec: &'a Spec,
    /// The container's control group, which the process joins.
    pub cgroup: &'a Cgroup,
}

/// A process executed inside a container. Dropping it leaves the process alone.
#[derive(Debug)]
pub struct ExecProcess {
    /// In the caller's pid namespace.
    pub pid: i32,
    /// Its pidfd; the process is a child of the caller.
    pub pidfd: OwnedFd,
    /// Master side of the terminal, if one was asked for.
    pub console: Option<OwnedFd>,
}

/// What the child needs.
struct ExecPlan<'a> {
    target: BorrowedFd<'a>,
    namespaces: i32,
    /// Those the container does not share with its creator.
    own: i32,
    user_namespace: bool,
    /// Of a container without a mount namespace of its own, where joining its namespaces
    /// leads to the host's root.
    root: Option<OwnedFd>,
    cgroups: Vec<OwnedFd>,
    stdio: ChildStdio,
    process: ProcessPlan,
    affinity: Affinity,
    proc: Proc,
    keep_fds: u32,
}

/// Executes `process` inside `target`; returns once `execve` has happened (or failed).
/// A process without capabilities or security labels of its own gets those of the
/// container. The caller must be single-threaded.
pub fn exec(
    target: &Target<'_>,
    process: &Process,
    stdio: Stdio,
) -> Result<ExecProcess, RuntimeError> {
    exec_with(target, process, stdio, Extras::default())
}

/// As [`exec`], for a caller who has other things to do until `execve` has happened: in a group that
/// somebody freezes meanwhile it does not happen. An ordinary user's is cloned by another process inside
/// the container, which is waited for here.
pub fn begin_exec(
    target: &Target<'_>,
    process: &Process,
    stdio: Stdio,
) -> Result<Executing, RuntimeError> {
    begin_with(target, process, stdio, Extras::default())
}

/// A process on its way to its program; see [`begin_exec`]. Dropping it kills it, and waits for its end.
#[derive(Debug)]
pub struct Executing {
    child: ChildGuard,
    channel: OwnedFd,
    listener: Option<Listener>,
    bundle: PathBuf,
    console: Option<OwnedFd>,
}

/// Readable when there is something to [heed](Executing::heed).
impl AsFd for Executing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl Executing {
    /// In the caller's pid namespace.
    pub fn pid(&self) -> i32 {
        self.child.pid
    }

    /// Does what it has asked for, without waiting; whether it has become its program (or has been
    /// killed). `target` is the one it was begun with.
    pub fn heed(&mut self, target: &Target<'_>) -> Result<bool, RuntimeError> {
        while let Some(message) = channel::received(self.channel.as_fd())? {
            if self.obey(target, message)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn obey(&mut self, target: &Target<'_>, message: Message) -> Result<bool, RuntimeError> {
        match message {
            Message::Listener(number) => {
                let state = hook_state(target.id, target.spec, &self.bundle);
                let state = state.value("running", procfs::pid_of(target.pidfd).ok());
                let (listener, child) = (self.listener.as_ref(), &self.child);
                notify::hand_over(listener, child.pidfd(), child.pid, number, &state)?;
                channel::go(self.channel.as_fd())?;
            }
            Message::Ready(fd) => self.console = fd,
            Message::Closed => return Ok(true),
            Message::Failed(error) => return Err(error),
            Message::Namespaces | Message::Mounted | Message::Born(..) => {
                channel::go(self.channel.as_fd())?;
            }
        }
        Ok(false)
    }

    /// Once it has become its program.
    pub fn finish(self) -> ExecProcess {
        ExecProcess {
            pid: self.child.pid,
            pidfd: self.child.disarm(),
            console: self.console,
        }
    }

    /// Kills it, and leaves waiting for its end to the caller: with v1's freezer a frozen process ends
    /// when it is thawed.
    pub fn kill(self) -> OwnedFd {
        let pidfd = self.child.disarm();
        // It may have ended.
        rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).ok();
        pidfd
    }
}

/// What only the command line needs.
#[derive(Debug, Default)]
pub(crate) struct Extras {
    /// Descriptors from 3 on that the program keeps.
    pub(crate) keep_fds: u32,
    /// The v2 group to be born in instead of the container's.
    pub(crate) born_in: Option<OwnedFd>,
    /// `tasks` files of v1 groups to join after the container's.
    pub(crate) groups: Vec<OwnedFd>,
    /// The container's bundle, for a seccomp listener.
    pub(crate) bundle: PathBuf,
}

pub(crate) fn exec_with(
    target: &Target<'_>,
    process: &Process,
    stdio: Stdio,
    extras: Extras,
) -> Result<ExecProcess, RuntimeError> {
    let mut executing = begin_with(target, process, stdio, extras)?;
    loop {
        let message = channel::receive(executing.channel.as_fd())?;
        if executing.obey(target, message)? {
            return Ok(executing.finish());
        }
    }
}

fn begin_with(
    target: &Target<'_>,
    process: &Process,
    stdio: Stdio,
    extras: Extras,
) -> Result<Executing, RuntimeError> {
    let mut plan = plan(target, process, stdio, extras.keep_fds)?;
    plan.cgroups.extend(extras.groups);
    let (ours, theirs) = channel::pair()?;
    let group = match extras.born_in {
        Some(group) => Some(group),
        None => target.cgroup.clone_target()?,
    };
    let child = if plan.user_namespace && unprivileged() {
        // Only inside its user namespace has an ordinary user any rights over the rest.
        let _restore = plan.affinity.begin()?;
        let cloned = relay::clone_within(group.as_ref().map(AsFd::as_fd), || {
            plan.enter_rootless()?;
            Ok(0)
        });
        match cloned? {
            Cloned::Child => {
                drop(ours);
                plan.namespaces = 0;
                run(&mut plan, theirs)
            }
            Cloned::Parent { pid, pidfd } => ChildGuard::new(pid, pidfd),
        }
    } else {
        let _born_into = PidGuard::enter(target.pidfd)?;
        // The child is visible inside from its first moment, while it still has the
        // host's descriptors and executable: it must be born unreachable.
        let _hidden = Hidden::now()?;
        let _restore = plan.affinity.begin()?;
        let cloned = sys::clone3(0, group.as_ref().map(AsFd::as_fd));
        let cloned = match cloned {
            // A container that has made groups of its own (systemd, Docker in it).
            Err(Errno::BUSY | Errno::OPNOTSUPP) => {
                let group = target.cgroup.clone_target_of(target.pidfd)?;
                sys::clone3(0, group.as_ref().map(AsFd::as_fd))
            }
            cloned => cloned,
        };
        match cloned.map_err(|errno| RuntimeError::setup(Step::Clone, "", errno))? {
            Cloned::Child => {
                drop(ours);
                run(&mut plan, theirs)
            }
            Cloned::Parent { pid, pidfd } => ChildGuard::new(pid, pidfd),
        }
    };
    drop(theirs);
    Ok(Executing {
        child,
        channel: ours,
        listener: plan.process.listener().cloned(),
        bundle: extras.bundle,
        console: None,
    })
}

fn plan<'a>(
    target: &Target<'a>,
    process: &Process,
    stdio: Stdio,
    keep_fds: u32,
) -> Result<ExecPlan<'a>, RuntimeError> {
    let oom_inherited = process.oom_score_adj().is_none();
    let process = &confined(process, target.spec.process().as_ref());
    let affinity = Affinity::plan(process, target.spec.process().as_ref())?;
    let mut process = ProcessPlan::beside(process, target.spec)?;
    process.oom_inherited = oom_inherited;
    process.check_mappings_of(target.spec)?;
    let linux = target.spec.linux().as_ref();
    let listed = linux
        .and_then(|linux| linux.namespaces().as_deref())
        .unwrap_or_default();
    let has = |typ| listed.iter().any(|namespace| namespace.typ() == typ);
    let user_namespace = has(LinuxNamespaceType::User);
    // Joining a namespace one is in already is allowed, except for the user namespace.
    let mut namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    if user_namespace {
        namespaces |= libc::CLONE_NEWUSER;
    }
    if has(LinuxNamespaceType::Time) {
        namespaces |= sys::CLONE_NEWTIME;
    }
    let own = listed.iter().fold(0, |all, namespace| {
        all | i32::try_from(namespace.typ() as u32).unwrap_or(0)
    });
    let proc = Proc::open()?;
    let root = if has(LinuxNamespaceType::Mount) {
        None
    } else {
        Some(proc.root_of(target.pidfd).map_err(|errno| {
            RuntimeError::setup(Step::Rootfs, "of the container's first process", errno)
        })?)
    };
    let mut cgroups = target.cgroup.join_files()?;
    cgroups.extend(resctrl::join_files_of(target.spec, target.pidfd)?);
    let stdio = child_stdio(stdio, &mut process);
    give_streams(&stdio, &process, target.spec);
    Ok(ExecPlan {
        target: target.pidfd,
        namespaces,
        own,
        user_namespace,
        root,
        cgroups,
        stdio,
        process,
        affinity,
        proc,
        keep_fds,
    })
}

/// What says nothing of its capabilities, labels, limits or its place among the OOM killer's
/// victims gets those of the container's process: it must not run with less confinement than
/// that by an oversight.
fn confined(process: &Process, first: Option<&Process>) -> Process {
    let mut process = process.clone();
    let Some(first) = first else { return process };
    let given = |label: &Option<String>| label.as_ref().is_some_and(|label| !label.is_empty());
    if process.capabilities().is_none() {
        process.set_capabilities(first.capabilities().clone());
    }
    if !given(process.apparmor_profile()) {
        process.set_apparmor_profile(first.apparmor_profile().clone());
    }
    if !given(process.selinux_label()) {
        process.set_selinux_label(first.selinux_label().clone());
    }
    if process.rlimits().as_ref().is_none_or(Vec::is_empty) {
        process.set_rlimits(first.rlimits().clone());
    }
    if process.oom_score_adj().is_none() {
        process.set_oom_score_adj(first.oom_score_adj());
    }
    process
}

impl ExecPlan<'_> {
    /// Process in between, for an ordinary user: everything is joined by way of the user
    /// namespace; the child is born into the pid namespace.
    fn enter_rootless(&self) -> Result<(), RuntimeError> {
        self.process.adjust_oom(&self.proc)?;
        let fail = |errno| RuntimeError::setup(Step::Namespace, "of the container", errno);
        // Whoever is in the user namespace may look into what enters it.
        hide()?;
        sys::setns(self.target, libc::CLONE_NEWUSER).map_err(fail)?;
        init::become_namespace_root()?;
        let rest = self.namespaces & !libc::CLONE_NEWUSER | libc::CLONE_NEWPID;
        for flag in [
            libc::CLONE_NEWPID,
            libc::CLONE_NEWIPC,
            libc::CLONE_NEWUTS,
            libc::CLONE_NEWNET,
            libc::CLONE_NEWCGROUP,
            sys::CLONE_NEWTIME,
            libc::CLONE_NEWNS,
        ] {
            if rest & flag == 0 {
                continue;
            }
            match sys::setns(self.target, flag) {
                // The host's, in which the user is already.
                Err(Errno::PERM) if self.own & flag == 0 => {}
                result => result.map_err(fail)?,
            }
        }
        Ok(())
    }
}

/// Runs in the child. Never returns.
fn run(plan: &mut ExecPlan<'_>, channel: OwnedFd) -> ! {
    let error = match set_up(plan) {
        Ok(console) => {
            let master = console.map(|console| console.master);
            let mut stay = vec![channel.as_raw_fd()];
            stay.extend(master.as_ref().map(|master| master.as_raw_fd()));
            let creator = Creator {
                channel: channel.as_fd(),
                gate: None,
            };
            // That it has executed is told by the channel's end. Only the terminal needs
            // words: each wakes the caller, which a virtual machine makes dear.
            let ready = || match &master {
                Some(master) => channel::ready(channel.as_fd(), Some(master.as_fd())),
                None => Ok(()),
            };
            become_process(
                &mut plan.process,
                &plan.proc,
                plan.keep_fds,
                &stay,
                creator,
                ready,
                || Ok(()),
            )
        }
        Err(error) => error,
    };
    channel::failed(channel.as_fd(), &error);
    sys::exit_now(i32::from(error.exit_code()))
}

fn set_up(plan: &ExecPlan<'_>) -> Result<Option<Console>, RuntimeError> {
    sys::reset_signals();
    if plan.namespaces != 0 {
        plan.process.adjust_oom(&plan.proc)?;
    }
    rustix::process::setsid().map_err(|errno| RuntimeError::setup(Step::Stdio, "setsid", errno))?;
    cgroup::join(&plan.cgroups)
        .map_err(|errno| RuntimeError::setup(Step::CgroupJoin, "", errno))?;
    plan.affinity.finish()?;
    // What the caller has in its session keyring is nothing for the container. Still with
    // the caller's ids: those of a user namespace may have few keys.
    keyring::join(None)?;
    if plan.namespaces != 0 {
        if plan.user_namespace {
            plan.process.raise_limits();
        }
        sys::setns(plan.target, plan.namespaces)
            .map_err(|errno| RuntimeError::setup(Step::Namespace, "of the container", errno))?;
        if plan.user_namespace {
            init::become_namespace_root()?;
        }
    }
    if let Some(root) = &plan.root {
        let enter = || {
            rustix::process::fchdir(root)?;
            rustix::process::chroot(".")
        };
        enter().map_err(|errno| RuntimeError::setup(Step::Rootfs, "of the container", errno))?;
    }
    match &plan.stdio {
        ChildStdio::Inherit => Ok(None),
        ChildStdio::Fds([stdin, stdout, stderr]) => {
            wire_stdio([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])?;
            Ok(None)
        }
        ChildStdio::Terminal(size) => {
            // Joining the mount namespace (or what comes after it) has made its root ours.
            let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                .map_err(|errno| RuntimeError::setup(Step::Console, "/", errno))?;
            let console = open_console(&RootFd::new(root), *size)?;
            wire_stdio(console.stdio())?;
            sys::set_controlling_terminal()
                .map_err(|errno| RuntimeError::setup(Step::Console, "", errno))?;
            Ok(Some(console))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn confinement_is_inherited() {
        let process = |more: serde_json::Value| -> Process {
            let mut json = json!({"args": ["true"], "cwd": "/", "user": {"uid": 0, "gid": 0}});
            json.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            serde_json::from_value(json).unwrap()
        };
        let first = process(json!({"apparmorProfile": "a", "selinuxLabel": "s:s:s:s",
                                   "capabilities": {"bounding": ["CAP_CHOWN"]},
                                   "oomScoreAdj": 500,
                                   "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 9, "hard": 9}]}));
        let all = confined(&process(json!({"selinuxLabel": ""})), Some(&first));
        assert_eq!(all.apparmor_profile().as_deref(), Some("a"));
        assert_eq!(all.selinux_label().as_deref(), Some("s:s:s:s"));
        assert_eq!(all.capabilities(), first.capabilities());
        assert_eq!(all.oom_score_adj(), Some(500));
        assert_eq!(all.rlimits(), first.rlimits());
        let own = process(
            json!({"apparmorProfile": "b", "capabilities": {}, "oomScoreAdj": 0,
                                 "rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]}),
        );
        let own = confined(&own, Some(&first));
        assert_eq!(own.apparmor_profile().as_deref(), Some("b"));
        assert_ne!(own.capabilities(), first.capabilities());
        assert_eq!(own.oom_score_adj(), Some(0));
        assert_ne!(own.rlimits(), first.rlimits());
    }
}
