//! The child's side: from a process inside the container's namespaces to the program.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, RawFd};

use rustix::fs::{FileType, Gid, Mode, Uid};
use rustix::io::Errno;

use super::{ProcessPlan, lookup, user};
use crate::channel;
use crate::error::{ExecErrno, RuntimeError, Step};
use crate::hidden::hide;
use crate::procfs::Proc;
use crate::seccomp::Filter;
use crate::sys;

/// Linux's own default bound of descriptor numbers (`fs.nr_open`).
const MAX_DESCRIPTORS: u32 = 1 << 20;

/// Whoever made this process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Creator<'a> {
    /// Where it is told what happens.
    pub(crate) channel: BorrowedFd<'a>,
    /// Where it, or somebody later, lets the process go on.
    pub(crate) gate: Option<BorrowedFd<'a>>,
}

/// Becomes the program. The descriptors 0, 1, 2 are in place, the root is the
/// container's. `ready` is called when nothing but the `execve` is left to do, then the
/// gate is waited for (one byte lets the child go on, the end of file makes it give up);
/// `last` runs after it. `stay` are the descriptors that are needed until the `execve`;
/// all others but the preserved ones are closed long before it.
///
/// Returns only on failure.
pub(crate) fn become_process(
    plan: &mut ProcessPlan,
    proc: &Proc,
    keep_fds: u32,
    stay: &[RawFd],
    creator: Creator<'_>,
    ready: impl FnOnce() -> Result<(), RuntimeError>,
    last: impl FnOnce() -> Result<(), RuntimeError>,
) -> RuntimeError {
    match prepare(plan, proc, keep_fds, stay, creator, ready, last) {
        Ok(program) => execute(plan, &program),
        Err(error) => error,
    }
}

fn prepare(
    plan: &mut ProcessPlan,
    proc: &Proc,
    keep_fds: u32,
    stay: &[RawFd],
    creator: Creator<'_>,
    ready: impl FnOnce() -> Result<(), RuntimeError>,
    last: impl FnOnce() -> Result<(), RuntimeError>,
) -> Result<std::ffi::CString, RuntimeError> {
    let fail = |step, target: &str| {
        let target = target.to_owned();
        move |errno| RuntimeError::setup(step, target, errno)
    };
    for label in &plan.labels {
        set_label(proc, label).map_err(fail(Step::Label, &label.value))?;
    }
    if plan.home_missing {
        let home = user::home(plan.uid);
        plan.envp.push(home);
    }
    own_stdio(plan.uid, plan.own_terminal);
    if let Some(umask) = plan.umask {
        rustix::process::umask(Mode::from_raw_mode(umask & 0o777));
    } else {
        rustix::process::umask(Mode::from_raw_mode(0o022));
    }
    plan.attributes.apply()?;
    set_rlimits(plan)?;
    // Close-on-exec would be too late: working directory, program and interpreters are
    // looked up before the execve closes anything, and any of them may be named
    // `/proc/self/fd/N/…` (CVE-2024-21626). Preserved descriptors are the caller's
    // explicit wish, but only those it passed: not ours that happen to have such numbers.
    // Before the seccomp filter, which need not allow this.
    let first = keep_fds.saturating_add(3).min(MAX_DESCRIPTORS);
    sys::close_own(3..first, stay);
    sys::close_all_but(first, stay).map_err(fail(Step::CloseFds, ""))?;

    // As root first: the directory may be closed to the user, as it is in the shell's `su`.
    let entered = rustix::process::chdir(&plan.cwd);
    change_user(plan)?;
    match entered {
        Ok(()) => {}
        Err(Errno::ACCESS | Errno::PERM) => {
            rustix::process::chdir(&plan.cwd).map_err(fail(Step::Cwd, &plan.cwd_text))?;
        }
        Err(errno) => return Err(RuntimeError::setup(Step::Cwd, &plan.cwd_text, errno)),
    }
    verify_cwd(plan)?;

    if plan.no_new_privs {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map_err(fail(Step::NoNewPrivs, ""))?;
    } else {
        load_filter(plan, creator.channel)?;
    }
    plan.caps.apply().map_err(fail(Step::Capabilities, ""))?;
    let program =
        lookup::find(&plan.program, plan.path_variable.as_deref(), plan.own).map_err(|reason| {
            RuntimeError::Exec {
                path: plan.program.clone(),
                reason,
            }
        })?;

    // A notifying filter needs the creator, who may be gone after the gate.
    let notifies = plan.filter.as_ref().is_some_and(Filter::notifies);
    if plan.no_new_privs && notifies {
        load_filter(plan, creator.channel)?;
    }
    ready()?;
    if let Some(gate) = creator.gate {
        wait(gate)?;
    }
    last()?;
    if plan.no_new_privs && !notifies {
        load_filter(plan, creator.channel)?;
    }
    Ok(program)
}

/// The last step. A script whose interpreter is missing gives ENOENT like a missing
/// program does; the message names what the spec named.
fn execute(plan: &ProcessPlan, program: &std::ffi::CStr) -> RuntimeError {
    let errno = sys::execve(program, &plan.argv, &plan.envp);
    RuntimeError::Exec {
        path: plan.program.clone(),
        reason: ExecErrno::Errno(errno),
    }
}

fn wait(gate: BorrowedFd<'_>) -> Result<(), RuntimeError> {
    match channel::read_byte(gate) {
        Ok(Some(_)) => Ok(()),
        // Nobody is left to start us.
        Ok(None) => sys::exit_now(0),
        Err(errno) => Err(RuntimeError::setup(Step::Sync, "", errno)),
    }
}

fn load_filter(plan: &ProcessPlan, channel: BorrowedFd<'_>) -> Result<(), RuntimeError> {
    let Some(filter) = &plan.filter else {
        return Ok(());
    };
    let listener = sys::seccomp_load(&filter.program, filter.flags)
        .map_err(|errno| RuntimeError::setup(Step::Seccomp, "", errno))?;
    match listener {
        Some(listener) => channel::listener(channel, listener.as_raw_fd()),
        None => Ok(()),
    }
}

fn set_label(proc: &Proc, label: &super::Label) -> Result<(), Errno> {
    let mut result = Err(Errno::NOENT);
    for file in label.files {
        result = proc.write(file, &label.value);
        if result != Err(Errno::NOENT) {
            break;
        }
    }
    result
}

/// Gives the standard streams to the user, so that `/dev/stdout` can be opened by it
/// (runc does the same). Only what was made for the process: its own terminal, pipes and
/// sockets (what engines pass). The caller's terminal and files stay the caller's.
fn own_stdio(uid: u32, own_terminal: bool) {
    for fd in [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ] {
        let Ok(stat) = rustix::fs::fstat(fd) else {
            continue;
        };
        let given = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Fifo | FileType::Socket => true,
            FileType::CharacterDevice => own_terminal && rustix::termios::isatty(fd),
            _ => false,
        };
        if stat.st_uid != uid && given {
            rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), None).ok();
        }
    }
}

fn set_rlimits(plan: &ProcessPlan) -> Result<(), RuntimeError> {
    for limit in &plan.rlimits {
        sys::setrlimit(limit.resource, limit.soft, limit.hard).map_err(|errno| {
            let mut target = format!("{} to {}:{}", limit.name, limit.soft, limit.hard);
            if errno == Errno::PERM
                && let Some(hard) = sys::hard_limit(limit.resource)
            {
                target.push_str(&format!(
                    " (above this host's hard limit {hard}, which needs CAP_SYS_RESOURCE)"
                ));
            }
            RuntimeError::setup(Step::Rlimit, target, errno)
        })?;
    }
    Ok(())
}

/// Bounding set, groups, ids; keeps the permitted capabilities across the change and
/// makes them effective again, for what is left to do.
fn change_user(plan: &ProcessPlan) -> Result<(), RuntimeError> {
    let fail = |errno| RuntimeError::setup(Step::User, format!("{}:{}", plan.uid, plan.gid), errno);
    let caps_fail = |errno| RuntimeError::setup(Step::Capabilities, "", errno);
    let held = rustix::thread::capabilities(None)
        .map_err(caps_fail)?
        .permitted
        .bits();
    plan.caps
        .apply_bounding(plan.last_capability)
        .map_err(caps_fail)?;
    sys::prctl(libc::PR_SET_KEEPCAPS, 1, 0).map_err(caps_fail)?;
    // Without additional groups the list is emptied: the caller's groups must not leak
    // in. A user namespace may forbid setgroups, and then there is nothing to inherit.
    let groups = plan.groups.as_deref().unwrap_or_default();
    let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    match rustix::thread::set_thread_groups(&groups) {
        Err(Errno::PERM) if groups.is_empty() => {}
        result => result.map_err(fail)?,
    }
    let gid = Gid::from_raw(plan.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(fail)?;
    let uid = Uid::from_raw(plan.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(fail)?;
    sys::prctl(libc::PR_SET_KEEPCAPS, 0, 0).map_err(caps_fail)?;
    if plan.uid != 0 {
        sys::capset(held, held, 0).map_err(caps_fail)?;
    }
    hide()
}

/// The directory entered must be below the root. `/proc/self/fd/N` and friends can name
/// one that is not (CVE-2024-21626); the kernel then has no path from the root to tell.
fn verify_cwd(plan: &ProcessPlan) -> Result<(), RuntimeError> {
    let inside = rustix::process::getcwd(Vec::with_capacity(256))
        .is_ok_and(|path| path.to_bytes().first() == Some(&b'/'));
    if inside {
        Ok(())
    } else {
        Err(RuntimeError::CwdOutsideRoot {
            path: plan.cwd_text.clone(),
        })
    }
}

/// Wires the three descriptors to 0, 1 and 2.
pub(crate) fn wire_stdio(fds: [BorrowedFd<'_>; 3]) -> Result<(), RuntimeError> {
    // Descriptors that happen to be 0, 1 or 2 already must not be overwritten before
    // they have been copied.
    let fail = |errno| RuntimeError::setup(Step::Stdio, "", errno);
    let mut copies = Vec::new();
    for fd in fds {
        copies.push(rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(fail)?);
    }
    for (target, copy) in (0..).zip(&copies) {
        sys::dup_to(copy.as_fd(), target).map_err(fail)?;
    }
    Ok(())
}
