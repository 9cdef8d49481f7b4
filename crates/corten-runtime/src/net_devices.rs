//! `linux.netDevices` (runtime-spec, config-linux "Network Devices"): moves links of the
//! caller's network namespace into the container's, with their permanent global
//! addresses, and brings them up there. A link that cannot be moved fails the creation;
//! what happens to it later is the business of whoever owns the namespace.

mod netlink;

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use corten_oci::runtime_spec::{LinuxNamespaceType, Spec};
use rustix::io::Errno;

use crate::error::{RuntimeError, Step};
use crate::procfs::open_namespace;
use crate::sandbox::NetNs;
use crate::sys;
use crate::validate::has_namespace;
use netlink::Socket;

/// Names outside and inside.
#[derive(Debug, Default)]
pub(crate) struct NetDevices(Vec<(String, String)>);

impl NetDevices {
    pub(crate) fn plan(spec: &Spec, network: &NetNs) -> Result<Self, RuntimeError> {
        let linux = spec.linux().as_ref();
        let given = linux.and_then(|linux| linux.net_devices().as_ref());
        let Some(given) = given.filter(|given| !given.is_empty()) else {
            return Ok(Self::default());
        };
        let own = match network {
            NetNs::New | NetNs::Join(_) => true,
            NetNs::Host => false,
            NetNs::Spec => has_namespace(spec, LinuxNamespaceType::Network),
        };
        if !own {
            let reason = "needs a network namespace in linux.namespaces";
            return Err(RuntimeError::spec("linux.netDevices", reason));
        }
        let mut devices = Vec::new();
        for (outside, device) in given {
            let inside = device.name().as_ref().filter(|name| !name.is_empty());
            let inside = inside.unwrap_or(outside);
            for name in [outside, inside] {
                if !valid(name) {
                    let field = format!("linux.netDevices.{outside}");
                    let reason = format!("{name:?} is not a name of a network device");
                    return Err(RuntimeError::spec(field, reason));
                }
            }
            devices.push((outside.clone(), inside.clone()));
        }
        devices.sort();
        Ok(Self(devices))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Caller: moves all of them into the namespace of the process `pid`.
    pub(crate) fn move_into(&self, pid: i32) -> Result<(), RuntimeError> {
        if self.is_empty() {
            return Ok(());
        }
        let fail = |errno| RuntimeError::setup(Step::NetDevice, "", errno);
        let ours = Socket::open().map_err(fail)?;
        let namespace = open_namespace(&PathBuf::from(format!("/proc/{pid}/ns/net")));
        let namespace = namespace.map_err(fail)?;
        let theirs = socket_in(&namespace).map_err(fail)?;
        for (outside, inside) in &self.0 {
            move_one(&ours, &theirs, &namespace, outside, inside).map_err(|errno| {
                let target = if outside == inside {
                    outside.clone()
                } else {
                    format!("{outside} as {inside}")
                };
                RuntimeError::setup(Step::NetDevice, target, errno)
            })?;
        }
        Ok(())
    }
}

/// As the kernel has it; a `%d` is a template for it to fill in.
fn valid(name: &str) -> bool {
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c == '\0';
    !name.is_empty() && name.len() < 16 && name != "." && name != ".." && !name.contains(bad)
}

/// A socket stays in the namespace it was made in.
fn socket_in(namespace: &OwnedFd) -> Result<Socket, Errno> {
    let own = open_namespace("/proc/self/ns/net".as_ref())?;
    sys::setns(namespace.as_fd(), libc::CLONE_NEWNET)?;
    let socket = Socket::open();
    // Back in any case; nothing later would be right in another namespace.
    sys::setns(own.as_fd(), libc::CLONE_NEWNET)?;
    socket
}

fn move_one(
    ours: &Socket,
    theirs: &Socket,
    namespace: &OwnedFd,
    outside: &str,
    inside: &str,
) -> Result<(), Errno> {
    let template = inside.contains("%d");
    let link = ours.link(outside)?;
    let addresses = ours.permanent_addresses(link)?;
    let before = if template {
        theirs.links()?
    } else {
        Vec::new()
    };
    ours.move_link(link, inside, namespace.as_fd())?;
    let link = if template {
        let mut now = theirs.links()?;
        now.retain(|link| !before.contains(link));
        now.first().copied().ok_or(Errno::NODEV)?
    } else {
        theirs.link(inside)?
    };
    for address in &addresses {
        theirs.add_address(link, address)?;
    }
    theirs.set_up(link)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn plans() {
        let plan = |devices: serde_json::Value, network: NetNs| {
            let spec = json!({"ociVersion": "1.3.0", "linux": {"netDevices": devices}});
            let spec: Spec = serde_json::from_value(spec).unwrap();
            NetDevices::plan(&spec, &network).map_err(|error| error.to_string())
        };
        let devices = plan(json!({"b": {"name": "eth%d"}, "a": {}}), NetNs::New).unwrap();
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(devices.0, [pair("a", "a"), pair("b", "eth%d")]);
        assert!(
            plan(json!({"a": {}}), NetNs::Spec)
                .unwrap_err()
                .contains("network namespace")
        );
        assert!(plan(json!({"a": {}}), NetNs::Host).is_err());
        for wrong in ["", ".", "a/b", "sixteencharacter", "a b", "a:1"] {
            let error = plan(json!({wrong: {}}), NetNs::New).unwrap_err();
            assert!(error.contains("linux.netDevices"), "{error}");
        }
        assert!(plan(json!({}), NetNs::Host).unwrap().is_empty());
    }
}
