//! `--device /dev/sda:/dev/xvda:rwm` and `--gpus`.

use bollard_stubs::models::{DeviceMapping, DeviceRequest};

use super::{OptError, Result, mount};

/// A device of `--device`: a node, or a name for a device plug-in (CDI).
#[derive(Debug, Clone, PartialEq)]
pub enum Device {
    /// A device node.
    Node(DeviceMapping),
    /// `vendor.com/class=name`.
    Named(String),
}

/// Parses one `--device` value.
///
/// # Errors
/// In Docker's words.
pub fn parse(text: &str) -> Result<Device> {
    if is_named(text) {
        return Ok(Device::Named(text.into()));
    }
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, permissions) = match parts.as_slice() {
        [source] => (*source, *source, "rwm"),
        [source, mode] if is_mode(mode) => (*source, *source, *mode),
        [source, target] => (*source, *target, "rwm"),
        [source, target, mode] => (*source, *target, *mode),
        _ => {
            return Err(OptError::new(format!(
                "invalid device specification: {text}"
            )));
        }
    };
    if !is_mode(permissions) {
        return Err(OptError::new(format!("bad mode specified: {permissions}")));
    }
    for path in [source, target] {
        if !path.starts_with('/') {
            return Err(OptError::new(format!("{path} is not an absolute path")));
        }
    }
    Ok(Device::Node(DeviceMapping {
        path_on_host: Some(source.into()),
        path_in_container: Some(target.into()),
        cgroup_permissions: Some(permissions.into()),
    }))
}

fn is_mode(text: &str) -> bool {
    !text.is_empty()
        && text.chars().all(|c| matches!(c, 'r' | 'w' | 'm'))
        && ['r', 'w', 'm']
            .iter()
            .all(|c| text.matches(*c).count() <= 1)
}

fn is_named(text: &str) -> bool {
    !text.starts_with('/')
        && text.split_once('=').is_some_and(|(kind, name)| {
            !name.is_empty()
                && kind
                    .split_once('/')
                    .is_some_and(|(v, c)| !v.is_empty() && !c.is_empty())
        })
}

/// Rules like `c 1:3 mr`.
pub(crate) fn check_rule(text: &str) -> std::result::Result<(), String> {
    let mut parts = text.split(' ');
    let number = |n: &str| n == "*" || (!n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    let fits = matches!(parts.next(), Some("a" | "b" | "c"))
        && parts
            .next()
            .and_then(|p| p.split_once(':'))
            .is_some_and(|(a, b)| number(a) && number(b))
        && parts.next().is_some_and(is_mode)
        && parts.next().is_none();
    if fits {
        Ok(())
    } else {
        Err(format!("invalid device cgroup format '{text}'"))
    }
}

/// `--gpus all`, `--gpus 2`, `--gpus device=0,1`.
///
/// # Errors
/// In Docker's words.
pub fn gpus(text: &str) -> Result<DeviceRequest> {
    let mut request = DeviceRequest::default();
    let mut capabilities = vec!["gpu".to_owned()];
    for field in mount::fields(text)? {
        let (key, value) = field.split_once('=').unwrap_or(("count", field.as_str()));
        match key {
            "driver" => request.driver = Some(value.into()),
            "count" if value == "all" => request.count = Some(-1),
            "count" => {
                request.count = Some(value.parse().map_err(|_| {
                    OptError::new(format!(
                        "invalid count ({value}): value must be either \"all\" or an integer"
                    ))
                })?);
            }
            "device" => request.device_ids = Some(value.split(',').map(Into::into).collect()),
            "capabilities" => capabilities.extend(value.split(',').map(Into::into)),
            "options" => {
                request.options = Some(super::env::map(&value.split(',').collect::<Vec<_>>()));
            }
            _ => {
                return Err(OptError::new(format!(
                    "unexpected key '{key}' in '{field}'"
                )));
            }
        }
    }
    if request.count.is_none() && request.device_ids.is_none() {
        request.count = Some(1);
    }
    request.capabilities = Some(vec![capabilities]);
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices() {
        let show = |text: &str| match parse(text) {
            Ok(Device::Node(d)) => format!(
                "{} {} {}",
                d.path_on_host.unwrap(),
                d.path_in_container.unwrap(),
                d.cgroup_permissions.unwrap()
            ),
            Ok(Device::Named(name)) => name,
            Err(error) => error.0,
        };
        for (text, expected) in [
            ("/dev/null", "/dev/null /dev/null rwm"),
            ("/dev/a:/dev/b", "/dev/a /dev/b rwm"),
            ("/dev/a:r", "/dev/a /dev/a r"),
            ("/dev/a:/dev/b:rw", "/dev/a /dev/b rw"),
            ("vendor.com/class=x", "vendor.com/class=x"),
            ("a:b:c:d", "invalid device specification: a:b:c:d"),
            ("/dev/a:/dev/b:x", "bad mode specified: x"),
            ("dev", "dev is not an absolute path"),
        ] {
            assert_eq!(show(text), expected, "{text}");
        }
        assert!(check_rule("c 1:* rwm").is_ok() && check_rule("c 1:3").is_err());
    }
}
