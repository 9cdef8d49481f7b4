//! Mounts: `Binds` (`-v`), `Mounts` (`--mount`), `Volumes` (anonymous), `Tmpfs`.
//!
//! Docker's rules: a source that begins with `/` is a directory of the host (made when a
//! bind names one that is absent, an error when a mount does), anything else is a volume's
//! name, none is an anonymous volume. The result is stored with the container, so a start
//! never reads these texts again.

use std::collections::HashMap;

use bollard_stubs::models::{self, MountBindOptionsPropagationEnum as Propagated, MountType};
use corten_oci::DiffId;
use serde::{Deserialize, Serialize};

use super::idmap::{self, IdMap};
use super::names::volume_name;
use super::{bad, paths};
use crate::error::EngineError;

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Source {
    /// A file or directory of the host.
    Bind {
        path: String,
        /// Make it (a directory) when it is absent.
        create: bool,
        /// Include the mounts below it.
        recursive: bool,
        /// `rprivate` and so on.
        propagation: String,
        /// With a read-only mount: leave the mounts below it writable.
        read_only_top: bool,
        /// Whose its files are.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        idmap: Option<IdMap>,
    },
    /// A volume.
    Volume {
        name: String,
        /// It was made for this container and goes with it.
        anonymous: bool,
        /// Do not fill it with what the image has there.
        no_copy: bool,
        /// Only this directory of it.
        subpath: Option<String>,
        /// How it is made if there is none.
        #[serde(default, skip_serializing_if = "NewVolume::is_plain")]
        new: NewVolume,
    },
    /// Memory.
    Tmpfs { options: Vec<String> },
    /// An image's files, which nobody can write to.
    Image {
        /// As the user named it.
        name: String,
        /// What that stood for when the container was made; empty until it is looked up.
        id: String,
        layers: Vec<DiffId>,
        /// Only this directory or file of it.
        subpath: Option<String>,
    },
}

/// What a volume is made with that a container is the first to use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NewVolume {
    /// Empty: the default one.
    pub(crate) driver: String,
    pub(crate) labels: HashMap<String, String>,
    pub(crate) options: HashMap<String, String>,
}

impl NewVolume {
    fn is_plain(&self) -> bool {
        *self == Self::default()
    }

    fn of_driver(name: Option<&str>) -> Self {
        Self {
            driver: name.unwrap_or_default().to_owned(),
            ..Self::default()
        }
    }
}

/// One mount of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountEntry {
    /// Clean absolute path in the container.
    pub(crate) destination: String,
    pub(crate) source: Source,
    pub(crate) read_only: bool,
    /// The options as the user wrote them.
    pub(crate) mode: String,
}

/// Every mount that a create request asks for. Volumes without name get an empty one.
pub(crate) fn requested(
    config_volumes: &[String],
    host: &models::HostConfig,
) -> Result<Vec<MountEntry>, EngineError> {
    let mut mounts: Vec<MountEntry> = Vec::new();
    for text in host.binds.iter().flatten() {
        let entry = bind(text, host.volume_driver.as_deref()).map_err(|error| {
            let message = error.to_string();
            match message.starts_with("invalid mount config") {
                true => bad(format!("invalid volume specification: '{text}': {message}")),
                false => error,
            }
        })?;
        push(&mut mounts, entry)?;
    }
    for mount in host.mounts.iter().flatten() {
        push(&mut mounts, from_mount(mount)?)?;
    }
    for (path, options) in host.tmpfs.iter().flatten() {
        push(&mut mounts, tmpfs(path, options)?)?;
    }
    map_ids(&mut mounts, host)?;
    for path in config_volumes {
        let destination = destination("volume", path)?;
        // A bind or mount at the same place takes precedence over an image's VOLUME.
        if !mounts.iter().any(|m| m.destination == destination) {
            mounts.push(MountEntry {
                destination,
                source: anonymous(),
                read_only: false,
                mode: String::new(),
            });
        }
    }
    Ok(mounts)
}

fn push(mounts: &mut Vec<MountEntry>, entry: MountEntry) -> Result<(), EngineError> {
    if mounts.iter().any(|m| m.destination == entry.destination) {
        return Err(bad(format!("Duplicate mount point: {}", entry.destination)));
    }
    mounts.push(entry);
    Ok(())
}

fn anonymous() -> Source {
    Source::Volume {
        name: String::new(),
        anonymous: true,
        no_copy: false,
        subpath: None,
        new: NewVolume::default(),
    }
}

fn destination(kind: &str, path: &str) -> Result<String, EngineError> {
    if path.is_empty() {
        return Err(bad(format!(
            "invalid mount config for type \"{kind}\": field Target must not be empty"
        )));
    }
    match paths::clean_absolute(path) {
        None => Err(bad(format!(
            "invalid mount config for type \"{kind}\": invalid mount path: '{path}' mount path must be absolute"
        ))),
        Some(clean) if clean == "/" => Err(bad(format!(
            "invalid mount config for type \"{kind}\": invalid specification: destination can't be '/'"
        ))),
        Some(clean) => Ok(clean),
    }
}

/// Reads one `-v` value: `[source:]destination[:options]`. `driver`: of volumes that it names.
pub(crate) fn bind(text: &str, driver: Option<&str>) -> Result<MountEntry, EngineError> {
    let invalid = || bad(format!("invalid volume specification: '{text}'"));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, mode) = match parts.as_slice() {
        [target] => (None, *target, ""),
        [source, target] => (Some(*source), *target, ""),
        [source, target, mode] if !mode.is_empty() => (Some(*source), *target, *mode),
        _ => return Err(invalid()),
    };
    if source == Some("") || target.is_empty() {
        return Err(invalid());
    }
    // A volume that nobody names has no mode, and the second part is a path.
    if parts.len() == 2 && BindOptions::read(target).is_ok() {
        return Err(invalid());
    }
    let options = BindOptions::read(mode)?;
    let mapped = options.idmap.is_some();
    let (kind, source) = match source {
        None => ("volume", anonymous()),
        Some(path) if path.starts_with('/') => (
            "bind",
            Source::Bind {
                path: paths::clean_absolute(path).ok_or_else(invalid)?,
                create: true,
                recursive: true,
                propagation: options.propagation.unwrap_or("rprivate").to_owned(),
                read_only_top: false,
                idmap: options.idmap,
            },
        ),
        Some(name) => {
            volume_name(name)?;
            let source = Source::Volume {
                name: name.to_owned(),
                anonymous: false,
                no_copy: options.no_copy,
                subpath: None,
                new: NewVolume::of_driver(driver),
            };
            ("volume", source)
        }
    };
    let extra = match &source {
        Source::Bind { .. } if options.no_copy => Some("VolumeOptions"),
        Source::Volume { .. } if options.propagation.is_some() || mapped => Some("BindOptions"),
        _ => None,
    };
    if let Some(field) = extra {
        return Err(bad(format!(
            "invalid mount config for type \"{kind}\": field {field} must not be specified"
        )));
    }
    Ok(MountEntry {
        destination: destination(kind, target)?,
        source,
        read_only: options.read_only,
        mode: mode.to_owned(),
    })
}

#[derive(Debug, Default)]
struct BindOptions<'a> {
    read_only: bool,
    no_copy: bool,
    propagation: Option<&'a str>,
    idmap: Option<IdMap>,
}

impl<'a> BindOptions<'a> {
    fn read(mode: &'a str) -> Result<Self, EngineError> {
        let invalid = || bad(format!("invalid mode: {mode}"));
        let mut options = Self::default();
        let (mut access, mut label, mut consistency) = (false, false, false);
        for option in mode.split(',').filter(|_| !mode.is_empty()) {
            let twice = match option {
                "ro" | "rw" => {
                    options.read_only = option == "ro";
                    std::mem::replace(&mut access, true)
                }
                "nocopy" => std::mem::replace(&mut options.no_copy, true),
                "z" | "Z" => std::mem::replace(&mut label, true),
                "consistent" | "cached" | "delegated" => std::mem::replace(&mut consistency, true),
                "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" => {
                    options.propagation.replace(option).is_some()
                }
                _ => match option.strip_prefix("idmap") {
                    Some(value) if value.is_empty() || value.starts_with('=') => {
                        let map = idmap::read(value.trim_start_matches('='))?;
                        options.idmap.replace(map).is_some()
                    }
                    _ => return Err(invalid()),
                },
            };
            if twice {
                return Err(invalid());
            }
        }
        Ok(options)
    }
}

/// Reads the mode of a `VolumesFrom` value; whether it is read-only.
pub(crate) fn inherited_mode(mode: &str) -> Result<bool, EngineError> {
    let options = BindOptions::read(mode)?;
    match options {
        // They are as in the other container.
        BindOptions {
            no_copy: false,
            propagation: None,
            idmap: None,
            read_only,
        } => Ok(read_only),
        _ => Err(bad(format!("invalid mode: {mode}"))),
    }
}

/// The annotation that says whose the files of the bind mount at a path are, before that path: of
/// `--mount`, whose object in the API has no place for it.
const IDMAP: &str = "corten.idmap.";

/// Applies annotations to mounts.
fn map_ids(mounts: &mut [MountEntry], host: &models::HostConfig) -> Result<(), EngineError> {
    for (key, value) in host.annotations.iter().flatten() {
        let Some(place) = key.strip_prefix(IDMAP) else {
            continue;
        };
        let clean = paths::clean_absolute(place);
        let mount = mounts
            .iter_mut()
            .find(|mount| Some(&mount.destination) == clean.as_ref());
        match mount.map(|mount| &mut mount.source) {
            Some(Source::Bind { idmap, .. }) => *idmap = Some(idmap::read(value)?),
            Some(_) => {
                return Err(bad(format!(
                    "only bind mounts can have an idmap: {place} is none"
                )));
            }
            None => return Err(bad(format!("{key}: nothing is mounted at {place}"))),
        }
    }
    Ok(())
}

/// Reads one `--mount` value.
fn from_mount(mount: &models::Mount) -> Result<MountEntry, EngineError> {
    let target = mount.target.as_deref().unwrap_or("");
    let source = mount.source.as_deref().unwrap_or("");
    let read_only = mount.read_only.unwrap_or(false);
    let Some(kind) = mount.typ else {
        return Err(bad(
            "invalid mount config for type \"\": mount type unknown",
        ));
    };
    let wrong = |what: &str| {
        bad(format!(
            "invalid mount config for type \"{kind}\": field {what} must not be specified"
        ))
    };
    if mount.bind_options.is_some() && kind != MountType::BIND {
        return Err(wrong("BindOptions"));
    }
    if mount.volume_options.is_some() && kind != MountType::VOLUME {
        return Err(wrong("VolumeOptions"));
    }
    if mount.tmpfs_options.is_some() && kind != MountType::TMPFS {
        return Err(wrong("TmpfsOptions"));
    }
    if mount.image_options.is_some() && kind != MountType::IMAGE {
        return Err(wrong("ImageOptions"));
    }
    let destination = destination(&kind.to_string(), target)?;
    let parsed = match kind {
        MountType::BIND => bind_mount(mount, source)?,
        MountType::VOLUME => volume_mount(mount, source)?,
        MountType::TMPFS => {
            if !source.is_empty() {
                return Err(wrong("Source"));
            }
            Source::Tmpfs {
                options: tmpfs_mount_options(mount.tmpfs_options.as_ref())?,
            }
        }
        MountType::IMAGE => image_mount(mount, source)?,
        other => {
            return Err(bad(format!(
                "invalid mount config for type \"{other}\": mount type unknown"
            )));
        }
    };
    Ok(MountEntry {
        destination,
        source: parsed,
        read_only: read_only || kind == MountType::IMAGE,
        mode: String::new(),
    })
}

fn image_mount(mount: &models::Mount, source: &str) -> Result<Source, EngineError> {
    if source.is_empty() {
        return Err(bad(
            "invalid mount config for type \"image\": field Source must not be empty",
        ));
    }
    let subpath = mount.image_options.as_ref().and_then(|o| o.subpath.clone());
    let subpath = subpath.filter(|path| !path.is_empty());
    if let Some(path) = &subpath
        && !is_local(path)
    {
        return Err(bad(format!(
            "invalid mount config for type \"image\": subpath must be a relative path within the image: {path}"
        )));
    }
    Ok(Source::Image {
        name: source.to_owned(),
        id: String::new(),
        layers: Vec::new(),
        subpath,
    })
}

/// Whether a path leads nowhere above where it starts, as it is written.
fn is_local(path: &str) -> bool {
    let mut depth = 0_usize;
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return false,
            },
            _ => depth += 1,
        }
    }
    !path.starts_with('/')
}

fn bind_mount(mount: &models::Mount, source: &str) -> Result<Source, EngineError> {
    if source.is_empty() {
        return Err(bad(
            "invalid mount config for type \"bind\": field Source must not be empty",
        ));
    }
    let path = paths::clean_absolute(source).ok_or_else(|| {
        bad(format!(
            "invalid mount config for type \"bind\": invalid mount path: '{source}' mount path must be absolute"
        ))
    })?;
    let options = mount.bind_options.clone().unwrap_or_default();
    let create = options.create_mountpoint.unwrap_or(false);
    if !create && !std::path::Path::new(&path).exists() {
        return Err(bad(format!(
            "invalid mount config for type \"bind\": bind source path does not exist: {path}"
        )));
    }
    if options.read_only_non_recursive == Some(true)
        && options.read_only_force_recursive == Some(true)
    {
        return Err(bad(
            "invalid mount config for type \"bind\": mount ReadOnlyNonRecursive conflicts with ReadOnlyForceRecursive",
        ));
    }
    let propagation = match options.propagation {
        None | Some(Propagated::EMPTY) => "rprivate".to_owned(),
        Some(other) => other.to_string(),
    };
    Ok(Source::Bind {
        path,
        create,
        recursive: !options.non_recursive.unwrap_or(false),
        propagation,
        read_only_top: options.read_only_non_recursive.unwrap_or(false),
        idmap: None,
    })
}

fn volume_mount(mount: &models::Mount, source: &str) -> Result<Source, EngineError> {
    let options = mount.volume_options.clone().unwrap_or_default();
    let driver = options.driver_config.unwrap_or_default();
    if let Some(subpath) = options.subpath.as_deref().filter(|s| !s.is_empty()) {
        let wrong = |what: &str| bad(format!("invalid mount config for type \"volume\": {what}"));
        if source.is_empty() {
            return Err(wrong("must not set Subpath when using anonymous volumes"));
        }
        if !is_local(subpath) {
            return Err(wrong("subpath must be a relative path within the volume"));
        }
    }
    if !source.is_empty() {
        volume_name(source)?;
    }
    Ok(Source::Volume {
        name: source.to_owned(),
        anonymous: source.is_empty(),
        no_copy: options.no_copy.unwrap_or(false),
        subpath: options.subpath.filter(|s| !s.is_empty()),
        new: NewVolume {
            driver: driver.name.unwrap_or_default(),
            labels: options.labels.unwrap_or_default(),
            options: driver.options.unwrap_or_default(),
        },
    })
}

/// Reads one entry of `Tmpfs`: a path and its options.
pub(crate) fn tmpfs(path: &str, options: &str) -> Result<MountEntry, EngineError> {
    let mut list = Vec::new();
    let mut read_only = false;
    for option in options.split(',').filter(|o| !o.is_empty()) {
        check_tmpfs_option(option)?;
        match option {
            "ro" => read_only = true,
            "rw" => read_only = false,
            other => list.push(other.to_owned()),
        }
    }
    if paths::clean_absolute(path).is_none() {
        return Err(bad(format!(
            "invalid mount path: '{path}' mount path must be absolute"
        )));
    }
    Ok(MountEntry {
        destination: destination("tmpfs", path)?,
        source: Source::Tmpfs { options: list },
        read_only,
        mode: options.to_owned(),
    })
}

fn check_tmpfs_option(option: &str) -> Result<(), EngineError> {
    const FLAGS: &[&str] = &[
        "ro",
        "rw",
        "exec",
        "noexec",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "sync",
        "async",
        "dirsync",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "mand",
        "nomand",
        "private",
        "rprivate",
        "shared",
        "rshared",
        "slave",
        "rslave",
        "unbindable",
        "runbindable",
        "bind",
        "rbind",
        "remount",
        "defaults",
        "noswap",
    ];
    const VALUES: &[&str] = &[
        "size",
        "nr_blocks",
        "nr_inodes",
        "mode",
        "uid",
        "gid",
        "huge",
        "mpol",
    ];
    let fine = match option.split_once('=') {
        None => FLAGS.contains(&option),
        Some((key, value)) => VALUES.contains(&key) && !value.is_empty(),
    };
    if fine {
        Ok(())
    } else {
        let parts: Vec<&str> = option.splitn(2, '=').collect();
        let parts = parts.iter().map(|part| format!("{part:?}"));
        let parts = parts.collect::<Vec<_>>().join(" ");
        Err(bad(format!("invalid tmpfs option [{parts}]")))
    }
}

fn tmpfs_mount_options(
    options: Option<&models::MountTmpfsOptions>,
) -> Result<Vec<String>, EngineError> {
    let Some(options) = options else {
        return Ok(Vec::new());
    };
    let mut list = Vec::new();
    for pair in options.options.iter().flatten() {
        let option = pair.join("=");
        check_tmpfs_option(&option)?;
        list.push(option);
    }
    match options.size_bytes {
        None | Some(0) => {}
        Some(size) if size > 0 => list.push(format!("size={size}")),
        Some(size) => return Err(bad(format!("invalid tmpfs size: {size}"))),
    }
    if let Some(mode) = options.mode.filter(|m| *m != 0) {
        if !(0..=0o7777).contains(&mode) {
            return Err(bad(format!("invalid tmpfs mode: {mode:o}")));
        }
        list.push(format!("mode={mode:o}"));
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(text: &str) -> String {
        match bind(text, None) {
            Err(error) => format!("error: {error}"),
            Ok(m) => {
                let source = match m.source {
                    Source::Bind {
                        path, propagation, ..
                    } => format!("bind {path} {propagation}"),
                    Source::Volume {
                        name,
                        anonymous: false,
                        no_copy,
                        ..
                    } => {
                        format!("volume {name}{}", if no_copy { " nocopy" } else { "" })
                    }
                    Source::Volume { .. } => "anonymous".to_owned(),
                    Source::Tmpfs { .. } => "tmpfs".to_owned(),
                    Source::Image { name, .. } => name,
                };
                format!(
                    "{source} -> {} {}",
                    m.destination,
                    if m.read_only { "ro" } else { "rw" }
                )
            }
        }
    }

    #[test]
    fn v_rules() {
        for (text, shown) in [
            ("/data", "anonymous -> /data rw"),
            ("data:/data", "volume data -> /data rw"),
            ("data:/data:ro", "volume data -> /data ro"),
            ("data:/data:nocopy", "volume data nocopy -> /data rw"),
            ("/host/./dir/:/data/", "bind /host/dir rprivate -> /data rw"),
            ("/h:/d:ro,z", "bind /h rprivate -> /d ro"),
            ("/h:/d:rslave", "bind /h rslave -> /d rw"),
            ("/h:/d:rw,cached", "bind /h rprivate -> /d rw"),
        ] {
            assert_eq!(show(text), shown, "{text}");
        }
        for (text, part) in [
            ("", "invalid volume specification"),
            (":/data", "invalid volume specification"),
            ("data:", "invalid volume specification"),
            ("a:b:c:d", "invalid volume specification"),
            ("/h:/d:", "invalid volume specification"),
            ("/h:/", "destination can't be '/'"),
            ("/h:/x/..", "destination can't be '/'"),
            ("data:data", "mount path must be absolute"),
            (
                "./rel:/data",
                "includes invalid characters for a local volume name",
            ),
            ("/h:/d:sideways", "invalid mode: sideways"),
            ("/h:/d:ro,rw", "invalid mode"),
            ("/h:/d:nocopy", "field VolumeOptions must not be specified"),
            ("vol:/d:rshared", "field BindOptions must not be specified"),
            (
                "vol:/d:idmap=owner=1-1",
                "field BindOptions must not be specified",
            ),
            ("/h:/d:idmap", "whose the files are"),
            ("/h:/d:idmap=owner=1-1,idmap=owner=1-1", "invalid mode"),
            ("/data:rw", "invalid volume specification: '/data:rw'"),
        ] {
            let shown = show(text);
            assert!(
                shown.starts_with("error: ") && shown.contains(part),
                "{text}: {shown}"
            );
        }
    }

    #[test]
    fn binds_win_over_image_volumes_and_duplicates_are_refused() {
        let host = models::HostConfig {
            binds: Some(vec!["data:/data".to_owned()]),
            ..Default::default()
        };
        let mounts = requested(&["/data/".to_owned(), "/other".to_owned()], &host).unwrap();
        assert_eq!(mounts.len(), 2);
        let twice = models::HostConfig {
            binds: Some(vec!["a1:/data".to_owned(), "b1:/data/".to_owned()]),
            ..Default::default()
        };
        let error = requested(&[], &twice).unwrap_err();
        assert_eq!(error.to_string(), "Duplicate mount point: /data");
    }

    #[test]
    fn mount_objects() {
        let mount = |typ, source: &str, target: &str| models::Mount {
            typ: Some(typ),
            source: Some(source.to_owned()),
            target: Some(target.to_owned()),
            ..Default::default()
        };
        assert!(from_mount(&mount(MountType::BIND, "/", "/data")).is_ok());
        let missing = from_mount(&mount(MountType::BIND, "/no/such/dir", "/data")).unwrap_err();
        assert!(
            missing
                .to_string()
                .contains("bind source path does not exist"),
            "{missing}"
        );
        assert!(from_mount(&mount(MountType::TMPFS, "x", "/data")).is_err());
        assert!(from_mount(&mount(MountType::NPIPE, "", "/data")).is_err());
        let tmp = models::Mount {
            tmpfs_options: Some(models::MountTmpfsOptions {
                size_bytes: Some(65536),
                mode: Some(0o1770),
                ..Default::default()
            }),
            ..mount(MountType::TMPFS, "", "/t")
        };
        assert_eq!(
            from_mount(&tmp).unwrap().source,
            Source::Tmpfs {
                options: vec!["size=65536".to_owned(), "mode=1770".to_owned()]
            }
        );
    }

    #[test]
    fn tmpfs_options_are_checked() {
        let entry = tmpfs("/run", "rw,size=64m,mode=1777,exec").unwrap();
        assert_eq!(
            entry.source,
            Source::Tmpfs {
                options: vec![
                    "size=64m".to_owned(),
                    "mode=1777".to_owned(),
                    "exec".to_owned()
                ]
            }
        );
        assert!(tmpfs("/run", "nonsense").is_err());
        assert!(tmpfs("run", "").is_err());
    }

    proptest::proptest! {
        #[test]
        fn never_panics_and_destinations_are_absolute(text in "[a-z/:.,]{0,30}") {
            if let Ok(mount) = bind(&text, None) {
                proptest::prop_assert!(mount.destination.len() > 1);
                proptest::prop_assert!(mount.destination.starts_with('/'));
            }
        }
    }
}
