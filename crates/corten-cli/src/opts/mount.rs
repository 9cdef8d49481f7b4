//! `--mount type=bind,src=…,dst=…` and `-v`.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use bollard_stubs::models::{
    Mount, MountBindOptions, MountBindOptionsPropagationEnum, MountImageOptions, MountTmpfsOptions,
    MountType, MountVolumeOptions, MountVolumeOptionsDriverConfig,
};

use super::{OptError, Result, size};

/// The annotation that says whose the files of the bind mount at a path are, before that path: the
/// API's mounts have no place for it.
const IDMAP: &str = "corten.idmap.";

/// Parses one `--mount` value. Relative sources that begin with `.` are taken from `cwd`.
///
/// # Errors
/// In Docker's words: a missing target, an unknown key, a value that does not fit its key,
/// options of another type of mount.
pub fn parse(text: &str, cwd: &Path) -> Result<Mount> {
    whole(text, cwd).map(|(mount, _)| mount)
}

/// The annotations that `--mount` values take.
///
/// # Errors
/// As for [`parse`].
pub fn annotations(texts: &[&str], cwd: &Path) -> Result<HashMap<String, String>> {
    let mut map = HashMap::new();
    for text in texts {
        if let (mount, Some(value)) = whole(text, cwd)? {
            let target = mount.target.unwrap_or_default();
            map.insert(format!("{IDMAP}{target}"), value);
        }
    }
    Ok(map)
}

/// The user that the files of a mount with a plain `idmap` belong to: whoever called, also
/// through sudo.
fn caller() -> String {
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let said = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    let (uid, gid) = match (said("SUDO_UID"), said("SUDO_GID")) {
        (Some(user), Some(group)) if uid.is_root() => (user, group),
        _ => (uid.as_raw(), gid.as_raw()),
    };
    format!("owner={uid}-{gid}")
}

fn whole(text: &str, cwd: &Path) -> Result<(Mount, Option<String>)> {
    let mut mount = Mount {
        typ: Some(MountType::VOLUME),
        ..Mount::default()
    };
    let mut propagation_given = false;
    let mut idmap = None;
    for field in fields(text)? {
        if let Some(value) = field.strip_prefix("idmap")
            && (value.is_empty() || value.starts_with('='))
        {
            let value = value.trim_start_matches('=');
            idmap = Some(match value {
                "" => caller(),
                value => value.to_owned(),
            });
            continue;
        }
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_ascii_lowercase(), value.to_owned()),
            None => {
                let key = field.to_ascii_lowercase();
                if !matches!(
                    key.as_str(),
                    "readonly" | "ro" | "volume-nocopy" | "bind-nonrecursive" | "bind-create-src"
                ) {
                    return Err(OptError::new(format!(
                        "invalid field '{field}' must be a key=value pair"
                    )));
                }
                (key, "true".into())
            }
        };
        propagation_given |= key == "bind-propagation";
        set(&mut mount, &field, &key, &value, cwd)?;
    }
    validate(&mount, propagation_given)?;
    if idmap.is_some() && mount.typ != Some(MountType::BIND) {
        return Err(OptError::new("option 'idmap' is for mounts of type 'bind'"));
    }
    Ok((mount, idmap))
}

fn set(mount: &mut Mount, field: &str, key: &str, value: &str, cwd: &Path) -> Result<()> {
    let invalid = || OptError::new(format!("invalid value for {key}: {value}"));
    let boolean = || crate::flags::parse_bool(value).ok_or_else(invalid);
    match key {
        "type" => {
            let lower = value.to_ascii_lowercase();
            mount.typ = Some(lower.parse().map_err(|_| {
                OptError::new(format!(
                    "invalid mount config for type \"{lower}\": mount type unknown"
                ))
            })?);
        }
        "source" | "src" => mount.source = Some(absolute(value, cwd)),
        "target" | "dst" | "destination" => mount.target = Some(value.into()),
        "readonly" | "ro" => mount.read_only = Some(boolean()?),
        "consistency" => mount.consistency = Some(value.to_ascii_lowercase()),
        "bind-propagation" => {
            let propagation: MountBindOptionsPropagationEnum =
                value
                    .to_ascii_lowercase()
                    .parse()
                    .map_err(|_| OptError::new(format!("invalid propagation value: {value:?}")))?;
            bind(mount).propagation = Some(propagation);
        }
        "bind-nonrecursive" => bind(mount).non_recursive = Some(boolean()?),
        "bind-create-src" => bind(mount).create_mountpoint = Some(boolean()?),
        "bind-recursive" => match value {
            "enabled" => {}
            "disabled" => bind(mount).non_recursive = Some(true),
            "writable" => bind(mount).read_only_non_recursive = Some(true),
            "readonly" => bind(mount).read_only_force_recursive = Some(true),
            _ => {
                return Err(OptError::new(format!(
                    "invalid value for {key}: {value} (must be \"enabled\", \"disabled\", \
                     \"writable\", or \"readonly\")"
                )));
            }
        },
        "volume-subpath" => volume(mount).subpath = Some(value.into()),
        "volume-nocopy" => {
            volume(mount).no_copy = Some(match value {
                "true" | "1" => true,
                "false" | "0" => false,
                _ => {
                    return Err(OptError::new(format!(
                        "invalid value for volume-nocopy: {value}"
                    )));
                }
            });
        }
        "volume-label" => insert(&mut volume(mount).labels, value),
        "volume-driver" => driver(mount).name = Some(value.into()),
        "volume-opt" => insert(&mut driver(mount).options, value),
        "image-subpath" => {
            mount
                .image_options
                .get_or_insert_with(MountImageOptions::default)
                .subpath = Some(value.into());
        }
        "tmpfs-size" => {
            let size = size::parse(value).ok().filter(|size| *size >= 0);
            tmpfs(mount).size_bytes = Some(size.ok_or_else(invalid)?);
        }
        "tmpfs-mode" => {
            tmpfs(mount).mode = Some(i64::from(
                u32::from_str_radix(value, 8).map_err(|_| invalid())?,
            ));
        }
        _ => {
            return Err(OptError::new(format!(
                "unexpected key '{key}' in '{field}'"
            )));
        }
    }
    Ok(())
}

fn validate(mount: &Mount, propagation_given: bool) -> Result<()> {
    if mount.target.as_deref().unwrap_or_default().is_empty() {
        return Err(OptError::new("target is required"));
    }
    let typ = mount.typ.unwrap_or(MountType::VOLUME);
    let mixed = |name: &str, given: bool, wanted: MountType| {
        if given && typ != wanted {
            return Err(OptError::new(format!(
                "cannot mix '{name}-*' options with mount type '{typ}'"
            )));
        }
        Ok(())
    };
    mixed("volume", mount.volume_options.is_some(), MountType::VOLUME)?;
    mixed("bind", mount.bind_options.is_some(), MountType::BIND)?;
    mixed("image", mount.image_options.is_some(), MountType::IMAGE)?;
    mixed("tmpfs", mount.tmpfs_options.is_some(), MountType::TMPFS)?;
    let Some(options) = &mount.bind_options else {
        return Ok(());
    };
    if options.read_only_non_recursive == Some(true) && mount.read_only != Some(true) {
        return Err(OptError::new(
            "option 'bind-recursive=writable' requires 'readonly' to be specified in conjunction",
        ));
    }
    if options.read_only_force_recursive == Some(true) {
        if mount.read_only != Some(true) {
            return Err(OptError::new(
                "option 'bind-recursive=readonly' requires 'readonly' to be specified in conjunction",
            ));
        }
        if !propagation_given
            || options.propagation != Some(MountBindOptionsPropagationEnum::RPRIVATE)
        {
            return Err(OptError::new(
                "option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be specified in conjunction",
            ));
        }
    }
    Ok(())
}

fn bind(mount: &mut Mount) -> &mut MountBindOptions {
    mount
        .bind_options
        .get_or_insert_with(MountBindOptions::default)
}

fn volume(mount: &mut Mount) -> &mut MountVolumeOptions {
    mount
        .volume_options
        .get_or_insert_with(MountVolumeOptions::default)
}

fn driver(mount: &mut Mount) -> &mut MountVolumeOptionsDriverConfig {
    volume(mount)
        .driver_config
        .get_or_insert_with(MountVolumeOptionsDriverConfig::default)
}

fn tmpfs(mount: &mut Mount) -> &mut MountTmpfsOptions {
    mount
        .tmpfs_options
        .get_or_insert_with(MountTmpfsOptions::default)
}

fn insert(map: &mut Option<HashMap<String, String>>, pair: &str) {
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    map.get_or_insert_with(HashMap::new)
        .insert(key.into(), value.into());
}

/// Comma-separated fields as in a CSV line: a field may be quoted.
pub(crate) fn fields(text: &str) -> Result<Vec<String>> {
    let unbalanced = || OptError::new(format!("parse error on line 1: bare \" in {text:?}"));
    let mut out = Vec::new();
    let mut field = String::new();
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' if quoted => {
                quoted = false;
                if chars.peek().is_some_and(|c| *c != ',') {
                    return Err(unbalanced());
                }
            }
            '"' if field.is_empty() => quoted = true,
            '"' => return Err(unbalanced()),
            ',' if !quoted => out.push(std::mem::take(&mut field)),
            c => field.push(c),
        }
    }
    if quoted {
        return Err(unbalanced());
    }
    out.push(field);
    Ok(out)
}

/// Whether a `-v` value has no empty section. What its sections mean is the engine's to say.
///
/// # Errors
/// In Docker's words.
pub fn check_bind(text: &str) -> Result<()> {
    if text.is_empty() {
        return Err(OptError::new("invalid empty volume spec"));
    }
    // Docker takes so short a text for a path.
    if text.chars().count() > 2 && text.split(':').any(str::is_empty) {
        return Err(OptError::new(format!(
            "invalid spec: {text}: empty section between colons"
        )));
    }
    Ok(())
}

/// A `-v` value for `Binds`, or `None` for an anonymous volume (`-v /data`).
#[must_use]
pub fn bind_spec(text: &str, cwd: &Path) -> Option<String> {
    let (host, rest) = text.split_once(':')?;
    let rest = match rest.split_once(':') {
        Some((target, mode)) => {
            let caller = caller();
            let options = mode.split(',').map(|option| match option {
                "idmap" => format!("idmap={caller}"),
                other => other.to_owned(),
            });
            format!("{target}:{}", options.collect::<Vec<_>>().join(","))
        }
        None => rest.to_owned(),
    };
    Some(format!("{}:{rest}", absolute(host, cwd)))
}

/// Makes a path that begins with `.` absolute; leaves names and absolute paths alone.
fn absolute(path: &str, cwd: &Path) -> String {
    if !path.starts_with('.') {
        return path.into();
    }
    let mut out = PathBuf::new();
    for component in cwd.join(path).components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> String {
        match parse(text, Path::new("/here/now")) {
            Ok(mount) => serde_json::to_string(&mount).unwrap(),
            Err(error) => error.0,
        }
    }

    #[test]
    fn mounts() {
        for (text, expected) in [
            (
                "type=bind,src=/a,dst=/b,ro",
                r#"{"Target":"/b","Source":"/a","Type":"bind","ReadOnly":true}"#,
            ),
            (
                "type=bind,source=./a,target=/b,readonly=false",
                r#"{"Target":"/b","Source":"/here/now/a","Type":"bind","ReadOnly":false}"#,
            ),
            (
                "src=data,dst=/b,volume-nocopy",
                r#"{"Target":"/b","Source":"data","Type":"volume","VolumeOptions":{"NoCopy":true}}"#,
            ),
            (
                "type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1777",
                r#"{"Target":"/t","Type":"tmpfs","TmpfsOptions":{"SizeBytes":1048576,"Mode":1023}}"#,
            ),
            (
                "dst=/v,volume-driver=local,volume-opt=type=nfs",
                r#"{"Target":"/v","Type":"volume","VolumeOptions":{"DriverConfig":{"Name":"local","Options":{"type":"nfs"}}}}"#,
            ),
            (
                "\"src=a,b\",dst=/c",
                r#"{"Target":"/c","Source":"a,b","Type":"volume"}"#,
            ),
            ("type=bind,src=/a", "target is required"),
            (
                "type=foo,dst=/x",
                "invalid mount config for type \"foo\": mount type unknown",
            ),
            (
                "type=bind,src=/a,dst=/b,bind-recursive=writable",
                "option 'bind-recursive=writable' requires 'readonly' to be specified in conjunction",
            ),
            (
                "src=a1,dst=/b,idmap",
                "option 'idmap' is for mounts of type 'bind'",
            ),
            (
                "dst=/x,bogus",
                "invalid field 'bogus' must be a key=value pair",
            ),
            ("dst=/x,bogus=1", "unexpected key 'bogus' in 'bogus=1'"),
            ("dst=/x,ro=perhaps", "invalid value for ro: perhaps"),
            (
                "type=bind,dst=/x,volume-nocopy",
                "cannot mix 'volume-*' options with mount type 'bind'",
            ),
            (
                "type=tmpfs,dst=/x,tmpfs-size=lots",
                "invalid value for tmpfs-size: lots",
            ),
        ] {
            assert_eq!(json(text), expected, "{text}");
        }
    }

    #[test]
    fn id_maps_are_annotations_and_modes() {
        let cwd = Path::new("/here");
        let given = "type=bind,src=/a,dst=/b,idmap=uids=7-0-1;gids=7-0-1";
        let found = annotations(&[given, "dst=/v", "type=bind,src=/a,dst=/c,idmap"], cwd).unwrap();
        assert_eq!(found["corten.idmap./b"], "uids=7-0-1;gids=7-0-1");
        assert_eq!(found["corten.idmap./c"], caller());
        assert_eq!(found.len(), 2);
        let expected = format!("/a:/b:ro,idmap={}", caller());
        assert_eq!(bind_spec("/a:/b:ro,idmap", cwd).unwrap(), expected);
        let given = "/a:/b:idmap=owner=1-2";
        assert_eq!(bind_spec(given, cwd).unwrap(), given);
    }

    #[test]
    fn binds() {
        let cwd = Path::new("/here/now");
        assert_eq!(bind_spec("/data", cwd), None);
        assert_eq!(bind_spec("name:/d:ro", cwd).unwrap(), "name:/d:ro");
        assert_eq!(bind_spec("./x:/d", cwd).unwrap(), "/here/now/x:/d");
        assert_eq!(bind_spec("../x:/d", cwd).unwrap(), "/here/x:/d");
        assert_eq!(bind_spec(".:/d", cwd).unwrap(), "/here/now:/d");
        assert_eq!(bind_spec(".x:/d", cwd).unwrap(), "/here/now/.x:/d");
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "[a-z=,\"./-]{0,24}") { drop(parse(&text, Path::new("/"))); }
    }
}
