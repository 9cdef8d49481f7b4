//! A container's first process, from its birth to its program: the child's side of
//! [`create`](crate::create()). Everything it needs was prepared by the caller; it only
//! carries out, in this order: signals, session, control groups, namespaces, mounts, hooks,
//! root file system, terminal, names, sysctls (hooks may have made the interfaces they are
//! about), and then what every process does ([`become_process`]).

use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use corten_oci::runtime_spec::Hook;
use rustix::io::Errno;

use crate::cgroup;
use crate::channel;
use crate::error::{RuntimeError, Step};
use crate::hidden::{hide, shown};
use crate::hooks::{self, HookState};
use crate::keyring;
use crate::namespaces::Namespaces;
use crate::process::{Creator, ProcessPlan, become_process, wire_stdio};
use crate::procfs::Proc;
use crate::rootfs::{Console, RootfsPlan};
use crate::sandbox::TerminalSize;
use crate::sys;

/// Standard streams as the child gets them.
#[derive(Debug)]
pub(crate) enum ChildStdio {
    /// Already in place.
    Inherit,
    /// To be wired.
    Fds([OwnedFd; 3]),
    /// A terminal to be made.
    Terminal(Option<TerminalSize>),
}

/// Everything the child needs.
#[derive(Debug)]
pub(crate) struct InitPlan {
    pub(crate) namespaces: Namespaces,
    /// `tasks` files of the v1 groups.
    pub(crate) cgroups: Vec<OwnedFd>,
    /// Wait after the namespaces have been made.
    pub(crate) sync: bool,
    /// Wait after the mounts have been made: the caller has hooks to run.
    pub(crate) runtime_hooks: bool,
    /// Be open to hooks of an ordinary user meanwhile, who cannot enter the namespaces of a
    /// hidden process. Nobody else is there yet who could look.
    pub(crate) shown_to_hooks: bool,
    pub(crate) hostname: Option<String>,
    pub(crate) domainname: Option<String>,
    /// Path below `/proc` and value.
    pub(crate) sysctls: Vec<(String, String)>,
    /// Session keyring's name; `None` keeps the caller's.
    pub(crate) keyring: Option<std::ffi::CString>,
    /// The caller lets go of it when the child has been born.
    pub(crate) rootfs: Option<RootfsPlan>,
    pub(crate) stdio: ChildStdio,
    pub(crate) process: ProcessPlan,
    pub(crate) proc: Proc,
    /// Descriptors from 3 on that stay open.
    pub(crate) keep_fds: u32,
    pub(crate) create_container: Vec<Hook>,
    pub(crate) start_container: Vec<Hook>,
    pub(crate) hook_state: HookState,
    /// Where to wait for the start instead of the channel: read end, report end.
    pub(crate) gate: Option<(OwnedFd, OwnedFd)>,
}

/// Runs in the child. Never returns: it becomes the program, or reports and exits.
pub(crate) fn run(plan: &mut InitPlan, channel: OwnedFd) -> ! {
    let announced = Cell::new(false);
    let error = match set_up(plan, channel.as_fd()) {
        Ok(console) => go(plan, channel.as_fd(), console, &announced),
        Err(error) => error,
    };
    // Before the start the creator listens, afterwards whoever started.
    match &plan.gate {
        Some((_, report)) if announced.get() => channel::failed(report.as_fd(), &error),
        _ => channel::failed(channel.as_fd(), &error),
    }
    sys::exit_now(i32::from(error.exit_code()))
}

fn set_up(plan: &InitPlan, channel: BorrowedFd<'_>) -> Result<Option<Console>, RuntimeError> {
    sys::reset_signals();
    if plan.namespaces.joined_user().is_none() {
        plan.process.adjust_oom(&plan.proc)?;
    }
    rustix::process::setsid().map_err(|errno| RuntimeError::setup(Step::Stdio, "setsid", errno))?;
    cgroup::join(&plan.cgroups)
        .map_err(|errno| RuntimeError::setup(Step::CgroupJoin, "", errno))?;
    plan.namespaces.join()?;
    if plan.sync {
        channel::namespaces_made(channel)?;
    }
    // Before it is a user to whom the way there may be closed.
    let place = match &plan.rootfs {
        Some(rootfs) => rootfs.place()?,
        None => None,
    };
    if plan.namespaces.new_user {
        become_namespace_root()?;
    }
    plan.namespaces.settle(&plan.proc)?;
    if plan.namespaces.new_cgroup {
        sys::unshare(libc::CLONE_NEWCGROUP)
            .map_err(|errno| RuntimeError::setup(Step::Namespace, "cgroup", errno))?;
    }
    if plan.namespaces.new_network {
        sys::link_up(c"lo").map_err(|errno| RuntimeError::setup(Step::Loopback, "lo", errno))?;
    }
    if let Some(name) = &plan.keyring {
        keyring::join(Some(name))?;
    }
    let console = enter_root(plan, place, channel)?;
    set_names(plan)?;
    for (file, value) in &plan.sysctls {
        plan.proc
            .write(file, value)
            .map_err(|errno| RuntimeError::setup(Step::Sysctl, file.clone(), errno))?;
    }
    match (&console, &plan.stdio) {
        (Some(console), _) => {
            wire_stdio(console.stdio())?;
            sys::set_controlling_terminal()
                .map_err(|errno| RuntimeError::setup(Step::Console, "", errno))?;
        }
        (None, ChildStdio::Fds([stdin, stdout, stderr])) => {
            wire_stdio([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])?;
        }
        (None, ChildStdio::Inherit | ChildStdio::Terminal(_)) => {}
    }
    if let Some(rootfs) = &plan.rootfs {
        rootfs.reopen_null()?;
    }
    Ok(console)
}

/// The root file system and, with it, the terminal.
fn enter_root(
    plan: &InitPlan,
    place: Option<OwnedFd>,
    channel: BorrowedFd<'_>,
) -> Result<Option<Console>, RuntimeError> {
    let size = match plan.stdio {
        ChildStdio::Terminal(size) => Some(size),
        _ => None,
    };
    let Some(rootfs) = &plan.rootfs else {
        return Ok(None);
    };
    let (root, attached) = rootfs.build(place)?;
    if plan.runtime_hooks {
        let wait = || channel::mounted(channel);
        if plan.shown_to_hooks {
            shown(wait)?;
        } else {
            wait()?;
        }
    }
    hooks::run(
        &plan.create_container,
        "createContainer",
        &plan.hook_state.json("creating", Some(own_pid())),
    )?;
    let console = size.map(|size| rootfs.console(&root, size)).transpose()?;
    rootfs.enter(&root)?;
    rootfs.finish(&root, &attached)?;
    Ok(console)
}

/// The last part; returns only on failure. `announced` is set when the creator has been
/// told that all is ready.
fn go(
    plan: &mut InitPlan,
    channel: BorrowedFd<'_>,
    console: Option<Console>,
    announced: &Cell<bool>,
) -> RuntimeError {
    let InitPlan {
        process,
        proc,
        keep_fds,
        start_container,
        hook_state,
        gate,
        ..
    } = plan;
    let master = console.map(|console| console.master);
    let wait = match &*gate {
        Some((wait, _)) => wait.as_fd(),
        None => channel,
    };
    let mut stay = vec![channel.as_raw_fd()];
    stay.extend(master.as_ref().map(|master| master.as_raw_fd()));
    if let Some((wait, report)) = &*gate {
        stay.extend([wait.as_raw_fd(), report.as_raw_fd()]);
    }
    // Somebody may want to get rid of it again before its program runs.
    if gate.is_some() && own_pid() == 1 {
        sys::end_when_asked();
    }
    let ready = || {
        let result = channel::ready(channel, master.as_ref().map(AsFd::as_fd));
        announced.set(true);
        drop(master);
        result
    };
    let last = || {
        hooks::run(
            start_container,
            "startContainer",
            &hook_state.json("created", Some(own_pid())),
        )
    };
    let creator = Creator {
        channel,
        gate: Some(wait),
    };
    become_process(process, proc, *keep_fds, &stay, creator, ready, last)
}

/// As the container sees it, which is how hooks inside know it (runtime-spec, "State").
fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_pid()
}

/// Ids 0 of the user namespace, which the caller has mapped by now. Where they are not
/// mapped, the capabilities that come with the namespace must do.
pub(crate) fn become_namespace_root() -> Result<(), RuntimeError> {
    match set_root_ids() {
        Ok(()) | Err(Errno::INVAL) => hide(),
        Err(errno) => {
            let target = "0:0 in the user namespace";
            Err(RuntimeError::setup(Step::User, target, errno))
        }
    }
}

fn set_root_ids() -> Result<(), Errno> {
    let gid = rustix::fs::Gid::ROOT;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    let uid = rustix::fs::Uid::ROOT;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

fn set_names(plan: &InitPlan) -> Result<(), RuntimeError> {
    if let Some(name) = &plan.hostname {
        rustix::system::sethostname(name.as_bytes())
            .map_err(|errno| RuntimeError::setup(Step::Hostname, name.clone(), errno))?;
    }
    if let Some(name) = &plan.domainname {
        rustix::system::setdomainname(name.as_bytes())
            .map_err(|errno| RuntimeError::setup(Step::Hostname, name.clone(), errno))?;
    }
    Ok(())
}
