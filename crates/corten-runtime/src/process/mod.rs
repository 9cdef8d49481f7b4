//! What a process becomes on its way to `execve`, the same for a container's first
//! process and for one executed beside it: computed by the caller before the clone
//! ([`ProcessPlan`]), carried out by the child ([`become_process`]).
//!
//! Order matters: whatever needs privileges comes before they are dropped; the seccomp
//! filter comes as late as it can (before the capabilities go if `no_new_privs` is off,
//! because loading it needs `CAP_SYS_ADMIN` then; otherwise right before `execve`).

mod affinity;
mod apply;
mod attributes;
mod io_priority;
mod lookup;
mod memory_policy;
mod personality;
mod scheduler;
mod user;

use std::ffi::CString;

use attributes::Attributes;
use corten_oci::runtime_spec::{
    LinuxCapabilities, LinuxIdMapping, LinuxNamespaceType, LinuxSeccomp, Process, Spec,
};
use rustix::io::Errno;

use crate::caps::{CapSets, last_capability};
use crate::error::{ExecErrno, RuntimeError, Step};
use crate::exe::Own;
use crate::procfs::Proc;
use crate::sandbox::TerminalSize;
use crate::seccomp::{self, Filter};
use crate::sys::{self, CStringList};
use crate::validate;

pub(crate) use affinity::Affinity;
pub(crate) use apply::{Creator, become_process, wire_stdio};

/// A process, ready to be carried out.
#[derive(Debug)]
pub(crate) struct ProcessPlan {
    program: String,
    argv: CStringList,
    envp: CStringList,
    path_variable: Option<String>,
    home_missing: bool,
    cwd: CString,
    /// The spec's own spelling, for messages.
    cwd_text: String,
    uid: u32,
    gid: u32,
    groups: Option<Vec<u32>>,
    umask: Option<u32>,
    /// None at all where the document does not speak of them.
    caps: CapSets,
    last_capability: u8,
    rlimits: Vec<Rlimit>,
    no_new_privs: bool,
    filter: Option<Filter>,
    oom_score_adj: Option<i32>,
    /// It is the container's, not this process's own: without the right to set it, it stays.
    pub(crate) oom_inherited: bool,
    /// What is written to `attr/…/exec`, and where.
    labels: Vec<Label>,
    attributes: Attributes,
    /// What must not be executed.
    own: Option<Own>,
    pub(crate) console_size: Option<TerminalSize>,
    /// Its streams are a terminal that was made for it.
    pub(crate) own_terminal: bool,
}

/// A resource limit.
#[derive(Debug, Clone, Copy)]
struct Rlimit {
    name: &'static str,
    resource: u32,
    soft: u64,
    hard: u64,
}

/// A label for the next `execve`.
#[derive(Debug)]
struct Label {
    /// Files to try in order, relative to `/proc`.
    files: &'static [&'static str],
    value: String,
}

impl ProcessPlan {
    /// Checks and compiles the first process of the container that `spec` describes.
    pub(crate) fn new(process: &Process, spec: &Spec) -> Result<Self, RuntimeError> {
        Self::compile(process, spec, None)
    }

    /// Who it is to be.
    pub(crate) fn user(&self) -> u32 {
        self.uid
    }

    /// Child, while it has the caller's rights: lets hard limits be what they are to be. In a user
    /// namespace they can only be lowered; what cannot be had here is said when they are set.
    pub(crate) fn raise_limits(&self) {
        for limit in &self.rlimits {
            if let Some(hard) = sys::hard_limit(limit.resource).filter(|hard| *hard < limit.hard) {
                sys::setrlimit(limit.resource, hard, limit.hard).ok();
            }
        }
    }

    /// Checks and compiles one that is executed beside the first. Of capabilities that were
    /// asked for the first one, too, it was said then if they could not be given.
    pub(crate) fn beside(process: &Process, spec: &Spec) -> Result<Self, RuntimeError> {
        let first = spec.process().as_ref();
        Self::compile(
            process,
            spec,
            first.and_then(|first| first.capabilities().as_ref()),
        )
    }

    fn compile(
        process: &Process,
        spec: &Spec,
        told: Option<&LinuxCapabilities>,
    ) -> Result<Self, RuntimeError> {
        let args = process.args().as_deref().unwrap_or_default();
        let program = match args.first() {
            None => return Err(RuntimeError::spec("process.args", "is empty")),
            // Nothing is called so, wherever it is looked for.
            Some(name) if name.is_empty() => {
                return Err(RuntimeError::Exec {
                    path: name.clone(),
                    reason: ExecErrno::NotInPath,
                });
            }
            Some(program) => program,
        };
        let cwd_text = process.cwd().to_string_lossy().into_owned();
        if cwd_text.is_empty() {
            return Err(RuntimeError::spec("process.cwd", "must not be empty"));
        }
        if !cwd_text.starts_with('/') {
            return Err(RuntimeError::spec("process.cwd", "is not an absolute path"));
        }
        let env = process.env().as_deref().unwrap_or_default();
        check_environment(env)?;
        let variable = |name: &str| {
            env.iter()
                .rev()
                .find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
        };
        let user = process.user();
        // In a user namespace a process begins with all of them, whatever the caller has.
        let available = if validate::has_namespace(spec, LinuxNamespaceType::User) {
            u64::MAX >> (63 - last_capability().min(63))
        } else {
            sys::permitted_capabilities()
        };
        Ok(Self {
            program: program.clone(),
            argv: c_strings("process.args", args)?,
            envp: c_strings("process.env", env)?,
            path_variable: variable("PATH").map(str::to_owned),
            home_missing: variable("HOME").is_none_or(str::is_empty),
            cwd: c_string("process.cwd", &cwd_text)?,
            cwd_text,
            uid: user.uid(),
            gid: user.gid(),
            groups: user.additional_gids().clone(),
            umask: user.umask(),
            caps: process
                .capabilities()
                .as_ref()
                .map(CapSets::from_spec)
                .unwrap_or_default()
                .restrict_to(available, told),
            last_capability: last_capability(),
            rlimits: rlimits(process),
            no_new_privs: process.no_new_privileges().unwrap_or(false),
            filter: profile(spec).map(seccomp::compile).transpose()?,
            oom_score_adj: process.oom_score_adj(),
            oom_inherited: false,
            labels: labels(process, enabled)?,
            attributes: Attributes::plan(process, spec)?,
            own: Own::new(),
            console_size: console_size(process)?,
            own_terminal: false,
        })
    }

    /// Child, before it enters a user namespace: there it would not own the file.
    pub(crate) fn adjust_oom(&self, proc: &Proc) -> Result<(), RuntimeError> {
        let Some(adjustment) = self.oom_score_adj else {
            return Ok(());
        };
        match proc.write("self/oom_score_adj", &adjustment.to_string()) {
            Ok(()) => Ok(()),
            Err(Errno::ACCESS | Errno::PERM) if self.oom_inherited => Ok(()),
            Err(errno) => Err(RuntimeError::setup(Step::Procfs, "oom_score_adj", errno)),
        }
    }

    /// Whom a notifying filter's descriptor goes to.
    pub(crate) fn listener(&self) -> Option<&seccomp::Listener> {
        self.filter.as_ref()?.listener.as_ref()
    }

    /// As [`Self::check_mappings`], with those that a document tells.
    pub(crate) fn check_mappings_of(&self, spec: &Spec) -> Result<(), RuntimeError> {
        let Some(linux) = spec.linux() else {
            return Ok(());
        };
        let [uids, gids] = [linux.uid_mappings(), linux.gid_mappings()]
            .map(|mappings| mappings.as_deref().unwrap_or_default());
        self.check_mappings(uids, gids)
    }

    /// Checks the ids against a user namespace's mappings, so that the message names them.
    pub(crate) fn check_mappings(
        &self,
        uids: &[LinuxIdMapping],
        gids: &[LinuxIdMapping],
    ) -> Result<(), RuntimeError> {
        let further = self.groups.iter().flatten();
        let further = further.map(|gid| ("process.user.additionalGids", *gid, gids));
        let own = [
            ("process.user.uid", self.uid, uids),
            ("process.user.gid", self.gid, gids),
        ];
        for (field, id, mappings) in own.into_iter().chain(further) {
            let mapped = mappings.iter().any(|mapping| {
                id >= mapping.container_id() && id - mapping.container_id() < mapping.size()
            });
            if !mapped && !mappings.is_empty() {
                return Err(RuntimeError::spec(field, format!("{id} is not mapped")));
            }
        }
        Ok(())
    }
}

/// The container's seccomp profile.
fn profile(spec: &Spec) -> Option<&LinuxSeccomp> {
    spec.linux().as_ref()?.seccomp().as_ref()
}

/// Means nothing without a terminal.
fn console_size(process: &Process) -> Result<Option<TerminalSize>, RuntimeError> {
    let Some(size) = process
        .console_size()
        .filter(|_| process.terminal() == Some(true))
    else {
        return Ok(None);
    };
    match (u16::try_from(size.height()), u16::try_from(size.width())) {
        (Ok(rows), Ok(cols)) => Ok(Some(TerminalSize { rows, cols })),
        _ => {
            let reason = format!("{}x{} is too large", size.width(), size.height());
            Err(RuntimeError::spec("process.consoleSize", reason))
        }
    }
}

/// config, "Process": as `environ` has them. A name may be anything else.
fn check_environment(env: &[String]) -> Result<(), RuntimeError> {
    match env
        .iter()
        .position(|entry| matches!(entry.find('='), None | Some(0)))
    {
        None => Ok(()),
        Some(index) => {
            let entry = env.get(index).map_or("", String::as_str);
            let reason = format!("invalid environment variable: {entry:?} is not NAME=VALUE");
            Err(RuntimeError::spec(format!("process.env[{index}]"), reason))
        }
    }
}

fn c_string(field: &str, text: &str) -> Result<CString, RuntimeError> {
    CString::new(text).map_err(|_| RuntimeError::spec(field, "contains a NUL byte"))
}

fn c_strings(field: &str, texts: &[String]) -> Result<CStringList, RuntimeError> {
    let strings = texts.iter().map(|text| c_string(field, text));
    Ok(CStringList::new(strings.collect::<Result<_, _>>()?))
}

fn rlimits(process: &Process) -> Vec<Rlimit> {
    use corten_oci::runtime_spec::PosixRlimitType as T;
    let one = |limit: &corten_oci::runtime_spec::PosixRlimit| {
        let (name, resource) = match limit.typ() {
            T::RlimitCpu => ("RLIMIT_CPU", libc::RLIMIT_CPU),
            T::RlimitFsize => ("RLIMIT_FSIZE", libc::RLIMIT_FSIZE),
            T::RlimitData => ("RLIMIT_DATA", libc::RLIMIT_DATA),
            T::RlimitStack => ("RLIMIT_STACK", libc::RLIMIT_STACK),
            T::RlimitCore => ("RLIMIT_CORE", libc::RLIMIT_CORE),
            T::RlimitRss => ("RLIMIT_RSS", libc::RLIMIT_RSS),
            T::RlimitNproc => ("RLIMIT_NPROC", libc::RLIMIT_NPROC),
            T::RlimitNofile => ("RLIMIT_NOFILE", libc::RLIMIT_NOFILE),
            T::RlimitMemlock => ("RLIMIT_MEMLOCK", libc::RLIMIT_MEMLOCK),
            T::RlimitAs => ("RLIMIT_AS", libc::RLIMIT_AS),
            T::RlimitLocks => ("RLIMIT_LOCKS", libc::RLIMIT_LOCKS),
            T::RlimitSigpending => ("RLIMIT_SIGPENDING", libc::RLIMIT_SIGPENDING),
            T::RlimitMsgqueue => ("RLIMIT_MSGQUEUE", libc::RLIMIT_MSGQUEUE),
            T::RlimitNice => ("RLIMIT_NICE", libc::RLIMIT_NICE),
            T::RlimitRtprio => ("RLIMIT_RTPRIO", libc::RLIMIT_RTPRIO),
            T::RlimitRttime => ("RLIMIT_RTTIME", libc::RLIMIT_RTTIME),
        };
        Rlimit {
            name,
            resource,
            soft: limit.soft(),
            hard: limit.hard(),
        }
    };
    process.rlimits().iter().flatten().map(one).collect()
}

/// A security module that labels processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Module {
    AppArmor,
    SeLinux,
}

/// Whether the host's kernel has it switched on.
fn enabled(module: Module) -> bool {
    match module {
        Module::AppArmor => std::fs::read("/sys/module/apparmor/parameters/enabled")
            .is_ok_and(|text| text.first() == Some(&b'Y')),
        Module::SeLinux => std::path::Path::new("/sys/fs/selinux/enforce").exists(),
    }
}

/// The labels the spec asks for: with both modules (kernels that stack them) both, as in
/// runc. A host without one that is asked for is an error, because the container would run
/// with less confinement than asked for.
fn labels(process: &Process, enabled: fn(Module) -> bool) -> Result<Vec<Label>, RuntimeError> {
    let given = |label: &Option<String>| label.clone().filter(|label| !label.is_empty());
    let mut labels = Vec::new();
    if let Some(value) = given(process.selinux_label()) {
        check_enabled(Module::SeLinux, "selinuxLabel", "SELinux", &value, enabled)?;
        labels.push(Label {
            files: &["self/attr/exec"],
            value,
        });
    }
    if let Some(profile) = given(process.apparmor_profile()) {
        check_enabled(
            Module::AppArmor,
            "apparmorProfile",
            "AppArmor",
            &profile,
            enabled,
        )?;
        labels.push(Label {
            // The second is for kernels before 5.1, which stack no modules.
            files: &["self/attr/apparmor/exec", "self/attr/exec"],
            value: format!("exec {profile}"),
        });
    }
    Ok(labels)
}

fn check_enabled(
    module: Module,
    field: &str,
    name: &str,
    label: &str,
    enabled: fn(Module) -> bool,
) -> Result<(), RuntimeError> {
    if enabled(module) {
        return Ok(());
    }
    let reason = format!("{name} {label} cannot be had: {name} is not enabled on this host");
    Err(RuntimeError::spec(format!("process.{field}"), reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_label_is_lost() {
        let process: Process = serde_json::from_value(serde_json::json!({
            "args": ["true"], "cwd": "/", "user": {"uid": 0, "gid": 0},
            "apparmorProfile": "docker-default", "selinuxLabel": "a:b:c:s0",
        }))
        .unwrap();
        let both = labels(&process, |_| true).unwrap();
        let values: Vec<&str> = both.iter().map(|label| label.value.as_str()).collect();
        assert_eq!(values, ["a:b:c:s0", "exec docker-default"]);
        for (only, missing) in [
            (
                (|module| module == Module::AppArmor) as fn(Module) -> bool,
                "SELinux a:b:c:s0",
            ),
            (
                |module| module == Module::SeLinux,
                "AppArmor docker-default",
            ),
        ] {
            let error = labels(&process, only).unwrap_err().to_string();
            assert!(error.contains(missing), "{error}");
        }
    }

    #[test]
    fn what_no_process_can_have_is_refused() {
        let plan = |cwd: &str, env: &[&str]| {
            let process = serde_json::from_value(serde_json::json!({
                "args": ["true"], "cwd": cwd, "env": env, "user": {"uid": 0, "gid": 0},
            }));
            let spec = crate::defaults::spec(Vec::new());
            let plan = ProcessPlan::new(&process.unwrap(), &spec);
            plan.map(drop).map_err(|error| error.to_string())
        };
        plan("/", &["A=1", "B=", "C==", "a b=c"]).unwrap();
        let error = plan("", &[]).unwrap_err();
        assert!(error.contains("process.cwd: must not be empty"), "{error}");
        for wrong in ["FOO", "", "=x"] {
            let error = plan("/", &["A=1", wrong]).unwrap_err();
            let words = format!("process.env[1]: invalid environment variable: {wrong:?}");
            assert!(error.contains(&words), "{error}");
        }
    }
}
