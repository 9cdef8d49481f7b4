//! The driver `local`: a directory of the engine's, or whatever `mount(2)` can put there: a tmpfs,
//! a block device, an NFS export, another directory of the host (`type`, `device`, `o`). What the
//! options mean, and the words for what is wrong with them, are Docker's.

use std::collections::HashMap;
use std::ffi::CString;
use std::fmt::Write as _;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::Path;

use bollard_stubs::models::VolumeScopeEnum;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use super::driver::{Driver, Options};
use super::quota;
use crate::error::EngineError;
use crate::parse::{bad, logs};

type Result<T> = std::result::Result<T, EngineError>;

/// The driver.
#[derive(Debug)]
pub(super) struct Local;

impl Driver for Local {
    fn name(&self) -> &'static str {
        super::driver::DEFAULT
    }

    fn scope(&self) -> VolumeScopeEnum {
        VolumeScopeEnum::LOCAL
    }

    fn check(&self, volumes: &Path, options: &Options) -> Result<()> {
        check_names(options)?;
        if size(options)?.is_some() {
            quota::check(volumes)?;
        }
        let has = |key: &str| options.contains_key(key);
        for (option, required) in [
            ("device", &["type"][..]),
            ("type", &["device"]),
            ("o", &["device", "type"]),
        ] {
            if has(option)
                && let Some(missing) = required.iter().find(|key| !has(key))
            {
                return Err(bad(format!("missing required option: \"{missing}\"")));
            }
        }
        Ok(())
    }

    fn is_mounted(&self, options: &Options) -> bool {
        let given = |key: &str| options.get(key).is_some_and(|value| !value.is_empty());
        given("device") || given("type")
    }

    fn look_up(&self, options: &Options) -> Result<Options> {
        let mut found = options.clone();
        let kind = options.get("type").map(String::as_str);
        if !matches!(kind, Some("nfs" | "cifs")) {
            return Ok(found);
        }
        if let Some(data) = found.get_mut("o") {
            let options = list(kind.unwrap_or_default(), data);
            let mut list: Vec<String> = options.into_iter().map(str::to_owned).collect();
            let named = |option: &String| {
                let host = option.strip_prefix("addr=")?;
                (!host.is_empty() && host.parse::<IpAddr>().is_err()).then(|| host.to_owned())
            };
            if let Some((at, host)) = list
                .iter()
                .enumerate()
                .find_map(|(n, o)| Some((n, named(o)?)))
            {
                list[at] = format!("addr={}", address(&host)?);
                *data = list.join(",");
                return Ok(found);
            }
        }
        if kind == Some("cifs")
            && let Some(device) = found.get_mut("device")
            && let Some(host) = cifs_host(device)
            && host.trim_matches(['[', ']']).parse::<IpAddr>().is_err()
        {
            *device = format!("//{}{}", address(host)?, &device[2 + host.len()..]);
        }
        Ok(found)
    }

    fn mount(&self, data: &Path, options: &Options) -> Result<()> {
        let mount = Wanted::read(options)?;
        mount.attach(data).map_err(|(flags, error)| {
            let mut text = format!(
                "error while mounting volume '{}': failed to mount local volume: mount {}:{}",
                data.display(),
                mount.device,
                data.display()
            );
            if !flags.is_empty() {
                // A String takes whatever is written to it.
                write!(text, ", flags: {:#x}", flags.bits()).ok();
            }
            if !mount.data.is_empty() {
                write!(text, ", data: {}", mount.shown_data()).ok();
            }
            EngineError::Other {
                context: text,
                source: Box::new(error),
            }
        })
    }

    fn unmount(&self, data: &Path) -> Result<()> {
        // Lazily, as Docker does: who looks at it on the host holds nothing up.
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        match rustix::mount::unmount(data, flags) {
            // It is not mounted any more.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(EngineError::Io {
                action: "unmount volume",
                path: data.to_owned(),
                source: error.into(),
            }),
        }
    }

    fn is_apart(&self, options: &Options) -> bool {
        // Another project's files cannot be renamed into a project.
        matches!(size(options), Ok(Some(_)))
    }

    fn prepare(&self, data: &Path, options: &Options) -> Result<()> {
        match size(options)? {
            Some(size) => quota::set(data, size),
            None => Ok(()),
        }
    }
}

fn check_names(options: &Options) -> Result<()> {
    let mut names: Vec<&String> = options.keys().collect();
    names.sort();
    for name in names {
        if !matches!(name.as_str(), "type" | "o" | "device" | "size") {
            return Err(bad(format!("invalid option: \"{name}\"")));
        }
    }
    if options.get("type").is_some_and(|kind| kind == "cifs")
        && let Some(device) = options.get("device")
        && cifs_host(device).is_some_and(|host| port_of(host).is_some())
    {
        return Err(bad(
            "port not allowed in CIFS device URL, include 'port' in 'o='",
        ));
    }
    Ok(())
}

/// The option `size`; none when it bounds nothing.
fn size(options: &HashMap<String, String>) -> Result<Option<u64>> {
    let Some(text) = options.get("size") else {
        return Ok(None);
    };
    match logs::size(text) {
        Some(0) => Ok(None),
        Some(size) => Ok(Some(size)),
        None => Err(bad(format!("invalid size: '{text}'"))),
    }
}

/// The host of `//host[:port]/share`.
fn cifs_host(device: &str) -> Option<&str> {
    let rest = device.strip_prefix("//")?;
    let host = rest.split('/').next().unwrap_or_default();
    Some(host).filter(|host| !host.is_empty())
}

fn port_of(host: &str) -> Option<&str> {
    // Not within the brackets of an IPv6 address.
    let after = host.rsplit_once(']').map_or(host, |(_, after)| after);
    after.split_once(':').map(|(_, port)| port)
}

/// What is to be mounted.
struct Wanted {
    device: String,
    kind: String,
    flags: MountFlags,
    propagation: MountPropagationFlags,
    /// For the file system.
    data: String,
}

impl Wanted {
    fn read(options: &Options) -> Result<Self> {
        let get = |key: &str| options.get(key).cloned().unwrap_or_default();
        let mut wanted = Self {
            device: get("device"),
            kind: get("type"),
            flags: MountFlags::empty(),
            propagation: MountPropagationFlags::empty(),
            data: String::new(),
        };
        if wanted.device.is_empty() {
            return Err(bad("missing device in volume options"));
        }
        let options = get("o");
        let mut data = Vec::new();
        for option in list(&wanted.kind, &options) {
            if !wanted.flag(option) {
                data.push(option);
            }
        }
        wanted.data = data.join(",");
        Ok(wanted)
    }

    /// Takes an option that is a flag of the mount.
    fn flag(&mut self, option: &str) -> bool {
        use MountFlags as F;
        use MountPropagationFlags as P;
        let (set, flag) = match option {
            "defaults" => return true,
            "ro" => (true, F::RDONLY),
            "rw" => (false, F::RDONLY),
            "nosuid" => (true, F::NOSUID),
            "suid" => (false, F::NOSUID),
            "nodev" => (true, F::NODEV),
            "dev" => (false, F::NODEV),
            "noexec" => (true, F::NOEXEC),
            "exec" => (false, F::NOEXEC),
            "sync" => (true, F::SYNCHRONOUS),
            "async" => (false, F::SYNCHRONOUS),
            "dirsync" => (true, F::DIRSYNC),
            "mand" => (true, F::PERMIT_MANDATORY_FILE_LOCKING),
            "nomand" => (false, F::PERMIT_MANDATORY_FILE_LOCKING),
            "noatime" => (true, F::NOATIME),
            "atime" => (false, F::NOATIME),
            "nodiratime" => (true, F::NODIRATIME),
            "diratime" => (false, F::NODIRATIME),
            "relatime" => (true, F::RELATIME),
            "norelatime" => (false, F::RELATIME),
            "strictatime" => (true, F::STRICTATIME),
            "nostrictatime" => (false, F::STRICTATIME),
            "bind" => (true, F::BIND),
            "rbind" => (true, F::BIND | F::REC),
            _ => {
                let propagation = match option {
                    "private" => P::PRIVATE,
                    "rprivate" => P::PRIVATE | P::REC,
                    "shared" => P::SHARED,
                    "rshared" => P::SHARED | P::REC,
                    "slave" => P::DOWNSTREAM,
                    "rslave" => P::DOWNSTREAM | P::REC,
                    "unbindable" => P::UNBINDABLE,
                    "runbindable" => P::UNBINDABLE | P::REC,
                    _ => return false,
                };
                self.propagation |= propagation;
                return true;
            }
        };
        self.flags.set(flag, set);
        true
    }

    /// Its data, without passwords.
    fn shown_data(&self) -> String {
        let shown = |option: &str| match option.split_once('=') {
            Some((name @ ("password" | "pass" | "password2"), _)) => format!("{name}=********"),
            _ => option.to_owned(),
        };
        let options = list(&self.kind, &self.data).into_iter().map(shown);
        options.collect::<Vec<_>>().join(",")
    }

    fn attach(&self, target: &Path) -> std::result::Result<(), (MountFlags, rustix::io::Errno)> {
        let failed = |error| (self.flags, error);
        let data =
            CString::new(self.data.as_str()).map_err(|_| failed(rustix::io::Errno::INVAL))?;
        let data = Some(data.as_c_str()).filter(|data| !data.is_empty());
        rustix::mount::mount(
            self.device.as_str(),
            target,
            self.kind.as_str(),
            self.flags,
            data,
        )
        .map_err(failed)?;
        let finished = self.finish(target);
        if finished.is_err() {
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            if let Err(error) = rustix::mount::unmount(target, flags) {
                tracing::warn!(path = %target.display(), %error, "a volume stays mounted");
            }
        }
        finished.map_err(failed)
    }

    /// What takes calls of their own.
    fn finish(&self, target: &Path) -> rustix::io::Result<()> {
        if !self.propagation.is_empty() {
            rustix::mount::mount_change(target, self.propagation)?;
        }
        let more = self.flags & !(MountFlags::BIND | MountFlags::REC);
        if self.flags.contains(MountFlags::BIND) && !more.is_empty() {
            rustix::mount::mount_remount(target, self.flags, c"")?;
        }
        Ok(())
    }
}

/// The options in a list of them. For CIFS (which has two names) two commas are one that is in a value, a password
/// above all; the kernel is given both.
fn list<'a>(kind: &str, text: &'a str) -> Vec<&'a str> {
    if !matches!(kind, "cifs" | "smb3") {
        return text
            .split(',')
            .filter(|option| !option.is_empty())
            .collect();
    }
    let mut options = Vec::new();
    let (mut begin, mut at) = (0, 0);
    while let Some(comma) = text[at..].find(',').map(|comma| at + comma) {
        // Nothing that begins with a comma is an option.
        if comma > begin && text[comma + 1..].starts_with(',') {
            at = comma + 2;
            continue;
        }
        options.push(&text[begin..comma]);
        begin = comma + 1;
        at = begin;
    }
    options.push(&text[begin..]);
    options.retain(|option| !option.is_empty());
    options
}

/// The address of a host that is named: of those of IPv4, if it has any, as Docker does it.
fn address(host: &str) -> Result<IpAddr> {
    let failed = |why: String| EngineError::Other {
        context: "error resolving passed in network volume address".to_owned(),
        source: format!("lookup {host}: {why}").into(),
    };
    let found = (host, 0)
        .to_socket_addrs()
        .map_err(|error| failed(error.to_string()))?;
    preferred(found.map(|address| address.ip())).ok_or_else(|| failed("no such host".to_owned()))
}

fn preferred(mut addresses: impl Iterator<Item = IpAddr>) -> Option<IpAddr> {
    let first = addresses.next()?;
    Some(match first {
        IpAddr::V4(_) => first,
        IpAddr::V6(_) => addresses.find(IpAddr::is_ipv4).unwrap_or(first),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Options {
        text.split_whitespace()
            .map(|pair| pair.split_once('=').unwrap())
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    #[test]
    fn options_are_checked_in_dockers_words() {
        let check = |text: &str| Local.check(Path::new("/proc"), &options(text));
        for fine in [
            "",
            "type=tmpfs device=tmpfs o=size=1m",
            "type=none device=/srv o=bind",
            "type=nfs device=:/export o=addr=10.0.0.1,rw",
            "type=cifs device=//host/share",
            "size=0",
        ] {
            assert!(check(fine).is_ok(), "{fine}");
        }
        for (wrong, words) in [
            ("wrong=1", "invalid option: \"wrong\""),
            ("type=tmpfs", "missing required option: \"device\""),
            ("device=/dev/x", "missing required option: \"type\""),
            ("o=ro", "missing required option: \"device\""),
            ("type=cifs device=//host:1/share", "port not allowed"),
            ("size=lots", "invalid size: 'lots'"),
            ("size=10m", "quota size requested but no quota support"),
        ] {
            let told = check(wrong).unwrap_err().to_string();
            assert!(told.contains(words), "{wrong}: {told}");
        }
    }

    #[test]
    fn flags_are_told_from_data() {
        let text = "type=nfs device=:/e o=addr=10.0.0.1,ro,noatime,exec,rslave,vers=4";
        let wanted = Wanted::read(&options(text)).unwrap();
        assert_eq!(wanted.data, "addr=10.0.0.1,vers=4");
        assert_eq!(wanted.flags, MountFlags::RDONLY | MountFlags::NOATIME);
        let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        assert_eq!(wanted.propagation, slave);
    }

    #[test]
    fn commas_in_passwords_are_doubled() {
        let wanted = |text: &str| Wanted::read(&options(text)).unwrap();
        let smb = "type=cifs device=//192.0.2.1/share o=";
        // What the kernel is given, and what is told of it.
        for (text, data, shown) in [
            (
                "username=me,password=a,,ro,,,,b,vers=3.0,ro",
                "username=me,password=a,,ro,,,,b,vers=3.0",
                "username=me,password=********,vers=3.0",
            ),
            (",,vers=3.0,,", "vers=3.0,,", "vers=3.0,,"),
            ("pass=,,x,ro", "pass=,,x", "pass=********"),
            ("password2=x,y", "password2=x,y", "password2=********,y"),
            ("ro,", "", ""),
        ] {
            let wanted = wanted(&format!("{smb}{text}"));
            assert_eq!(
                (wanted.data.as_str(), wanted.shown_data().as_str()),
                (data, shown)
            );
        }
        // By its other name.
        let smb3 = wanted("type=smb3 device=//192.0.2.1/share o=password=a,,b,ro");
        assert_eq!(smb3.data, "password=a,,b");
        assert_eq!(smb3.shown_data(), "password=********");
        // Only there.
        let nfs = wanted("type=nfs device=:/e o=addr=10.0.0.1,,ro,vers=4,");
        assert_eq!(nfs.data, "addr=10.0.0.1,vers=4");
    }

    #[test]
    fn ipv4_comes_first() {
        let all = |list: &[&str]| {
            let addresses: Vec<IpAddr> = list.iter().map(|a| a.parse().unwrap()).collect();
            preferred(addresses.into_iter()).map(|address| address.to_string())
        };
        assert_eq!(all(&["::1", "fd00::1", "127.0.0.1"]).unwrap(), "127.0.0.1");
        assert_eq!(all(&["fd00::1", "::1"]).unwrap(), "fd00::1");
        assert_eq!(all(&["10.0.0.1", "::1"]).unwrap(), "10.0.0.1");
        assert_eq!(all(&[]), None);
    }

    #[test]
    fn hosts_get_addresses_and_passwords_are_not_told() {
        let text = "type=cifs device=//localhost/share o=username=me,password=secret";
        let wanted = Wanted::read(&Local.look_up(&options(text)).unwrap()).unwrap();
        let host = cifs_host(&wanted.device).unwrap();
        assert!(host.parse::<IpAddr>().unwrap().is_loopback(), "{host}");
        assert_eq!(wanted.shown_data(), "username=me,password=********");
        // Part of a password.
        let text = "type=cifs device=//192.0.2.1/share o=password=x,,addr=localhost,ro";
        let looked_up = Local.look_up(&options(text)).unwrap();
        assert_eq!(looked_up, options(text));
        let text = "type=nfs device=:/e o=addr=localhost,ro";
        let wanted = Wanted::read(&Local.look_up(&options(text)).unwrap()).unwrap();
        let host = wanted.data.strip_prefix("addr=").unwrap();
        assert!(host.parse::<IpAddr>().unwrap().is_loopback(), "{host}");
    }
}
