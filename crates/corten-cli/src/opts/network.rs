//! `--network NAME` and `--network name=NAME,alias=A,ip=…`.

use bollard_stubs::models::{EndpointIpamConfig, EndpointSettings};

use super::{OptError, Result, hosts, mount};

/// One `--network` value.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Attachment {
    /// Network name, or a mode (`host`, `none`, `container:x`).
    pub target: String,
    /// Settings of the endpoint there.
    pub settings: EndpointSettings,
}

/// Parses one value.
///
/// # Errors
/// No name, an unknown key, an address that is none.
pub fn parse(text: &str) -> Result<Attachment> {
    if !text.contains('=') {
        return Ok(Attachment {
            target: text.into(),
            ..Attachment::default()
        });
    }
    let mut out = Attachment::default();
    for field in mount::fields(text)? {
        let (key, value) = field
            .split_once('=')
            .ok_or_else(|| OptError::new(format!("invalid field {field}")))?;
        let value = value.trim();
        match key.trim().to_ascii_lowercase().as_str() {
            "name" => out.target = value.into(),
            "alias" => out
                .settings
                .aliases
                .get_or_insert_with(Vec::new)
                .push(value.into()),
            "ip" => ipam(&mut out.settings).ipv4_address = Some(hosts::address(value)?),
            "ip6" => ipam(&mut out.settings).ipv6_address = Some(hosts::address(value)?),
            "link-local-ip" => ipam(&mut out.settings)
                .link_local_ips
                .get_or_insert_with(Vec::new)
                .push(hosts::address(value)?),
            "mac-address" => out.settings.mac_address = Some(hosts::mac(value)?),
            "driver-opt" => {
                let (key, value) = value.split_once('=').ok_or_else(|| {
                    OptError::new("invalid key/value pair format in driver options")
                })?;
                out.settings
                    .driver_opts
                    .get_or_insert_with(Default::default)
                    .insert(key.to_ascii_lowercase(), value.into());
            }
            "gw-priority" => {
                out.settings.gw_priority = Some(value.parse().map_err(|_| {
                    OptError::new(format!("invalid gw-priority ({value}): invalid syntax"))
                })?);
            }
            key => return Err(OptError::new(format!("invalid field key {key}"))),
        }
    }
    if out.target.is_empty() {
        return Err(OptError::new("network name/id is not specified"));
    }
    Ok(out)
}

/// The address settings of an endpoint, made if there are none.
pub fn ipam(settings: &mut EndpointSettings) -> &mut EndpointIpamConfig {
    settings
        .ipam_config
        .get_or_insert_with(EndpointIpamConfig::default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long() {
        assert_eq!(parse("host").unwrap().target, "host");
        assert_eq!(parse("container:x").unwrap().target, "container:x");
        let long = parse("name=n,alias=a,alias=b,ip=10.0.0.2,driver-opt=k=v").unwrap();
        assert_eq!(long.target, "n");
        assert_eq!(long.settings.aliases.unwrap(), ["a", "b"]);
        assert_eq!(
            long.settings.ipam_config.unwrap().ipv4_address.unwrap(),
            "10.0.0.2"
        );
        for (text, error) in [
            ("alias=x", "network name/id is not specified"),
            ("name=x,foo=1", "invalid field key foo"),
            ("name=x,foo", "invalid field foo"),
        ] {
            assert_eq!(parse(text).unwrap_err().0, error);
        }
    }
}
