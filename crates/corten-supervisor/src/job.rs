//! What a supervisor is to run, and whom it tells.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use corten_network::resolv::Upstream;
use corten_network::{BridgeSpec, EndpointSpec, PortMapping, PortRequest};
use corten_oci::runtime_spec::Spec;

use crate::external::ExternalRuntime;
use crate::health::{HealthJob, HealthState};
use crate::logs::LogConfig;
use crate::protocol::{Exit, Size};

/// An error of the host's making.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Everything one run of a container needs. Made anew for every (re)start.
#[derive(Debug)]
pub struct Job {
    /// The runtime-spec document.
    pub spec: Spec,
    /// The root, as a detached mount.
    pub rootfs: OwnedFd,
    /// Already opened mount sources, by index into the spec's mounts.
    pub mounts: BTreeMap<usize, OwnedFd>,
    /// The namespaces of its users, if they are others on the host; the document names the first.
    pub users: Option<Users>,
    /// The network.
    pub network: NetworkJob,
    /// Its name server, if it is to have one; in a namespace of its own only.
    pub names: Option<NameServerJob>,
    /// Where output is logged.
    pub log: LogConfig,
    /// Whether the process has a terminal.
    pub tty: bool,
    /// Initial size of the terminal.
    pub size: Option<Size>,
    /// Whether standard input stays open for clients to attach to.
    pub open_stdin: bool,
    /// Whether standard input ends when the first attached client's does.
    pub stdin_once: bool,
    /// Signal that asks the process to end.
    pub stop_signal: i32,
    /// Seconds it then has; negative: for ever.
    pub stop_timeout: i64,
    /// What happens after its end.
    pub restart: RestartPolicy,
    /// How its health is checked, if it is.
    pub health: Option<HealthJob>,
    /// Who makes it, if it is not our own runtime.
    pub runtime: Option<ExternalRuntime>,
    /// Its control group (see [`corten_runtime::CgroupSpec`]).
    pub cgroup: String,
}

/// A user namespace that is there before its container.
#[derive(Debug)]
pub struct Users {
    /// Named by the document for as long as this is open.
    pub namespace: OwnedFd,
    /// One that belongs to it, for a network of the container's own.
    pub network: Option<OwnedFd>,
}

/// A container's network.
#[derive(Debug)]
pub enum NetworkJob {
    /// A namespace with nothing but loopback.
    None,
    /// The host's.
    Host,
    /// One of its own, with places on networks.
    Own(Box<Places>),
    /// Another container's namespace.
    Join(OwnedFd),
}

/// What a namespace of its own has.
#[derive(Debug, Default)]
pub struct Places {
    /// The places. Their own `ports` are filled in from what was got of the requests.
    pub endpoints: Vec<Place>,
    /// Ports to publish.
    pub requests: Vec<PortRequest>,
}

/// A place on a network.
#[derive(Debug)]
pub struct Place {
    /// Which network: there is one place on each at the most.
    pub network: String,
    /// What it is.
    pub spec: EndpointSpec,
}

/// The name server of a container on user-defined networks.
#[derive(Debug)]
pub struct NameServerJob {
    /// Where it forwards to.
    pub upstreams: Vec<Upstream>,
    /// Names without a dot are not forwarded.
    pub dotted_only: bool,
}

/// Docker's restart policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// After every end that the user did not ask for.
    Always,
    /// Likewise (they differ at boot only).
    UnlessStopped,
    /// After a failure, so many times at the most (0: any number).
    OnFailure(u32),
}

impl RestartPolicy {
    /// Whether to start again after an exit with `code`, having restarted `restarts` times.
    #[must_use]
    pub fn wants(self, code: u8, restarts: u32) -> bool {
        match self {
            Self::No => false,
            Self::Always | Self::UnlessStopped => true,
            Self::OnFailure(most) => code != 0 && (most == 0 || restarts < most),
        }
    }
}

/// The side of the engine: where the supervisor gets its work and reports. Calls block the
/// event loop, so they are short.
pub trait Host {
    /// Whether the next run can be prepared now; if not, it is asked again a moment later, for as
    /// long as somebody may well take.
    fn ready(&mut self) -> bool;

    /// Everything for the next run.
    ///
    /// # Errors
    /// What is missing or refused; the run then fails with it.
    fn prepare(&mut self) -> Result<Job, BoxError>;

    /// How often the policy has started it again already, when this supervisor begins.
    fn restarts(&mut self) -> u32;

    /// The policy in force now, at an end: it may have been changed since [`Self::prepare`]
    /// told it. `None` when it cannot be known.
    fn restart_policy(&mut self) -> Option<RestartPolicy>;

    /// The places a running container is to have on networks by now and the ports to publish, in the
    /// same way as [`Self::prepare`] told them. What is new among the places is reserved for it.
    ///
    /// # Errors
    /// A network that is no more, or has no address left; nothing is reserved then.
    fn places(&mut self) -> Result<Places, BoxError>;

    /// Whether somebody has joined its network namespace in this run, which may outlive it then.
    fn joined(&mut self) -> bool;

    /// What [`Self::places`] told is so (`done`), or could not be made, and is as before. `ports`:
    /// what is published now.
    ///
    /// # Errors
    /// It could not be written down, which [`Self::places`] does then before all else.
    fn placed(&mut self, done: bool, ports: &[PortMapping]) -> Result<(), BoxError>;

    /// The name server that it is to have by now, with what [`Self::places`] told.
    ///
    /// # Errors
    /// What of it is not known; it then has none.
    fn name_server(&mut self) -> Result<Option<NameServerJob>, BoxError>;

    /// The running container has got one: its `resolv.conf` may name it.
    fn names_served(&mut self);

    /// It runs.
    fn started(&mut self, pid: i32, ports: &[PortMapping]);

    /// It has run for a while: what its start needed and nothing else will can go.
    fn steady(&mut self);

    /// A health check has been judged. `changed`: the state is another one by it.
    fn health(&mut self, health: &HealthState, changed: bool);

    /// The out-of-memory killer has come.
    fn oom(&mut self);

    /// A process that was to be executed inside has not become its program; what Docker derives from
    /// why not.
    fn exec_failed(&mut self, id: &str, code: u8);

    /// It has ended. `restarting`: the policy will start it again.
    fn exited(&mut self, exit: &Exit, restarting: bool);

    /// It was to be started again, and a user wants it down instead.
    fn given_up(&mut self);

    /// It was frozen (`true`) or thawed.
    fn paused(&mut self, paused: bool);

    /// The first start failed; what it had is undone already.
    fn start_failed(&mut self, code: u8, message: &str);

    /// The supervisor is about to leave; removal of a `--rm` container happens here, but for what
    /// takes long and nobody sees.
    fn finished(&mut self);

    /// Everybody knows of the end by now: what [`Self::finished`] has left.
    fn left(&mut self);

    /// The addresses that a name has on the networks of this container; `None`: it is nobody's.
    ///
    /// # Errors
    /// It cannot be known now.
    fn addresses(&mut self, name: &str) -> Result<Option<Vec<IpAddr>>, BoxError>;

    /// The name of whoever has an address on one of its networks.
    ///
    /// # Errors
    /// It cannot be known now.
    fn name_of(&mut self, address: IpAddr) -> Result<Option<String>, BoxError>;

    /// Whether its questions about other names may leave: one of its networks is not internal.
    ///
    /// # Errors
    /// It cannot be known now.
    fn may_forward(&mut self) -> Result<bool, BoxError>;

    /// The bridges of all networks that may have to be brought back after somebody flushed the rules.
    ///
    /// # Errors
    /// They cannot be known now.
    fn bridges(&mut self) -> Result<Vec<BridgeSpec>, BoxError>;

    /// Something worth an event: `kill` and `exec_…` with attributes; `command` and `pid` are no
    /// attributes of it.
    fn event(&mut self, action: &str, attributes: &[(&str, String)]);
}

/// Why a container could not be started.
#[derive(Debug)]
pub(crate) struct StartError {
    pub(crate) code: u8,
    pub(crate) message: String,
}

impl StartError {
    /// A failure that has no exit code of its own.
    pub(crate) fn other(error: impl fmt::Display) -> Self {
        Self {
            code: 128,
            message: error.to_string(),
        }
    }

    /// The same, and why.
    pub(crate) fn because(error: &dyn std::error::Error) -> Self {
        Self::other(with_causes(error))
    }
}

/// An error in words, with its causes as far as they are not in its own words.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let why = error.to_string();
        if !words.ends_with(&why) {
            words += &format!(": {why}");
        }
        cause = error.source();
    }
    words
}

impl From<corten_runtime::RuntimeError> for StartError {
    fn from(error: corten_runtime::RuntimeError) -> Self {
        Self {
            code: exec_code(&error).unwrap_or(128),
            message: error.to_string(),
        }
    }
}

/// 127: the program does not exist; 126: it cannot be executed; `None`: another failure.
pub(crate) fn exec_code(error: &corten_runtime::RuntimeError) -> Option<u8> {
    Some(error.exit_code()).filter(|code| matches!(code, 126 | 127))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        #[derive(Debug, thiserror::Error)]
        enum Told {
            #[error("write f: {0}")]
            Within(#[source] std::io::Error),
            #[error("write f")]
            Apart(#[source] std::io::Error),
        }
        let why = || std::io::Error::other("no room");
        for error in [Told::Within(why()), Told::Apart(why())] {
            assert_eq!(with_causes(&error), "write f: no room");
        }
    }

    #[test]
    fn policies() {
        use RestartPolicy::{Always, No, OnFailure};
        for (policy, code, restarts, wanted) in [
            (No, 1, 0, false),
            (Always, 0, 99, true),
            (OnFailure(0), 1, 99, true),
            (OnFailure(0), 0, 0, false),
            (OnFailure(2), 1, 1, true),
            (OnFailure(2), 1, 2, false),
        ] {
            assert_eq!(
                policy.wants(code, restarts),
                wanted,
                "{policy:?} {code} {restarts}"
            );
        }
    }
}
