//! The "systemd" driver: the group is made by a systemd instance, as that of a transient
//! scope unit, so that systemd knows of it and does not take it for something to clean up
//! (systemd.io/CONTROL_GROUP_INTERFACE). Limits are given as the unit's properties and also
//! written into the group, which is delegated to us.
//!
//! A scope must begin with a process. The container's is born into its group and cannot be
//! there before it, so a [`Placeholder`] is, until the container's first process has come.

mod annotations;
mod bus;
mod gvariant;
mod placeholder;
mod properties;
#[cfg(test)]
mod tests;
mod unit;
mod wire;

use corten_oci::runtime_spec::LinuxResources;

use super::Hosts;
use super::devices::Filter;
use super::limits::Current;
use crate::error::RuntimeError;
pub(super) use annotations::properties as annotated;
use bus::Bus;
pub(super) use placeholder::Placeholder;
use properties::Target;
pub use unit::Unit;
use wire::Malformed;
pub(in crate::cgroup) use wire::Value;

/// What goes wrong with systemd.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// No socket of it takes a connection.
    #[error("systemd cannot be reached ({0}): is it running here? Else use the cgroupfs driver")]
    Unreachable(String),
    /// It says no.
    #[error("{call}: {text} ({name})")]
    Refused {
        /// The method.
        call: &'static str,
        /// The error's name.
        name: String,
        /// The error's text.
        text: String,
    },
    /// A unit did not start or stop.
    #[error("systemd's job for {unit} ended with {result:?}")]
    Job {
        /// The unit.
        unit: String,
        /// `failed`, `timeout`, `canceled`, ….
        result: String,
    },
    /// It takes too long.
    #[error("systemd does not answer in time")]
    Timeout,
    /// It hung up.
    #[error("systemd has closed the connection")]
    Closed,
    /// An answer of another kind than asked for.
    #[error("systemd's answer to {0} is not understood")]
    Unexpected(&'static str),
    /// Not D-Bus.
    #[error("systemd's answer is not understood: {0}")]
    Malformed(String),
    /// The socket.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl From<Malformed> for SystemdError {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed.to_string())
    }
}

impl SystemdError {
    fn of(self, unit: &str) -> RuntimeError {
        RuntimeError::Systemd {
            unit: unit.to_owned(),
            source: self,
        }
    }

    fn is(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { name, .. } if name.ends_with(wanted))
    }
}

impl Unit {
    /// Starts the scope around a placeholder, with `further` properties; its group is at
    /// `path` then.
    pub(super) fn start(
        &self,
        path: &str,
        resources: &LinuxResources,
        filter: &Filter,
        further: &[(String, Value)],
    ) -> Result<Placeholder, RuntimeError> {
        let fail = |error: SystemdError| error.of(&self.name);
        let mut bus = Bus::connect(self.user).map_err(fail)?;
        let target = target(&mut bus).map_err(fail)?;
        let placeholder = Placeholder::new()?;
        let io = if target.legacy {
            "BlockIOAccounting"
        } else {
            "IOAccounting"
        };
        let mut all = vec![
            (
                "Description",
                Value::Str(format!("Container {}", self.name)),
            ),
            ("Slice", Value::Str(self.slice.clone())),
            ("Delegate", Value::Bool(true)),
            ("PIDs", Value::U32s(vec![placeholder.pid()])),
            ("DefaultDependencies", Value::Bool(false)),
            ("MemoryAccounting", Value::Bool(true)),
            ("CPUAccounting", Value::Bool(true)),
            (io, Value::Bool(true)),
            ("TasksAccounting", Value::Bool(true)),
        ];
        let unified = resources.unified().as_ref();
        if let Some(group) = unified.and_then(|map| map.get("memory.oom.group"))
            && target.version >= 253
        {
            // Only while the unit is new.
            let policy = if group.trim() == "1" {
                "kill"
            } else {
                "continue"
            };
            all.push(("OOMPolicy", Value::Str(policy.to_owned())));
        }
        all.extend(properties::limits(resources, target, &|_| None)?);
        all.extend(properties::devices(filter, target));
        // Last, so that they win over ours, as with runc.
        let further = further.iter();
        all.extend(further.map(|(name, value)| (name.as_str(), value.clone())));
        let mut started = bus.start_transient_unit(&self.name, &all);
        if started.as_ref().is_err_and(|error| error.is(".UnitExists")) {
            // One that failed stays until somebody has taken note.
            bus.reset_failed(&self.name).ok();
            started = bus.start_transient_unit(&self.name, &all);
        }
        match started {
            Ok(()) => {}
            // It came to a job of ours, so the unit is ours as well.
            Err(error @ SystemdError::Job { .. }) => {
                self.stop().ok();
                return Err(fail(error));
            }
            Err(error) => return Err(fail(error)),
        }
        if let Err(error) = placeholder.check_group(path) {
            drop(placeholder);
            self.stop().ok();
            return Err(error);
        }
        Ok(placeholder)
    }

    /// Gives systemd new limits and, if there are any, new device rules.
    pub(super) fn update(
        &self,
        resources: &LinuxResources,
        filter: Option<&Filter>,
        current: Current<'_>,
    ) -> Result<(), RuntimeError> {
        let fail = |error: SystemdError| error.of(&self.name);
        let mut bus = Bus::connect(self.user).map_err(fail)?;
        let target = target(&mut bus).map_err(fail)?;
        let mut all = properties::limits(resources, target, current)?;
        all.extend(
            filter
                .into_iter()
                .flat_map(|filter| properties::devices(filter, target)),
        );
        if all.is_empty() {
            return Ok(());
        }
        bus.set_properties(&self.name, &all).map_err(fail)
    }

    /// Stops the scope, killing what is left in it. One that is gone is fine: it goes by
    /// itself when its last process has ended.
    pub(super) fn stop(&self) -> Result<(), RuntimeError> {
        let fail = |error: SystemdError| error.of(&self.name);
        let mut bus = Bus::connect(self.user).map_err(fail)?;
        let stopped = match bus.stop_unit(&self.name) {
            Err(error) if error.is(".NoSuchUnit") => return Ok(()),
            Err(SystemdError::Job { .. }) | Ok(()) => Ok(()),
            Err(error) => Err(fail(error)),
        };
        match bus.reset_failed(&self.name) {
            Err(error) if !error.is(".NoSuchUnit") => {
                tracing::debug!(unit = self.name, %error, "reset");
            }
            _ => {}
        }
        stopped
    }
}

/// Reads a message of any kind, as `fuzz/` does.
pub(crate) fn fuzz_dbus_message(bytes: &[u8]) {
    if let Ok(message) = wire::parse(bytes) {
        std::hint::black_box(message);
    }
}

fn target(bus: &mut Bus) -> Result<Target, SystemdError> {
    let hosts = Hosts::get();
    let legacy = ["memory", "cpu"]
        .iter()
        .any(|name| hosts.controller(name).is_some());
    let version = version(&bus.manager_property("Version")?);
    Ok(Target { version, legacy })
}

/// `252.38-1~deb12u1`, `v245.4-1.fc32` and the like.
fn version(text: &str) -> u32 {
    let text = text.trim_start_matches(['"', 'v']);
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text.get(..end)
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}
