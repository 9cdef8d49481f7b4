//! `linux.intelRdt` (runtime-spec, config-linux "IntelRdt"): a group of the resctrl file
//! system, which gives the container's processes shares of cache and memory bandwidth.
//! Processes are put into it by the child itself, like into a v1 control group.
//!
//! A group that was made for one container goes with it; one that is named by `closID`
//! stays, because others may be using it.

mod report;

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use corten_oci::runtime_spec::{LinuxIntelRdt, Spec};

use crate::error::{RuntimeError, Step, os};
use crate::mountinfo;
use crate::procfs;

pub(crate) use report::report;

const FIELD: &str = "linux.intelRdt";

/// A container's group. Dropping it removes what was made, unless it has been kept.
#[derive(Debug)]
pub(crate) struct Group {
    dir: PathBuf,
    monitor: Option<PathBuf>,
    /// Innermost first.
    made: Vec<PathBuf>,
}

/// The group of the container `id`, if its spec asks for one.
pub(crate) fn create(spec: &Spec, id: &str) -> Result<Option<Group>, RuntimeError> {
    let Some(rdt) = wanted(spec) else {
        return Ok(None);
    };
    Group::create(&mounted()?, rdt, id).map(Some)
}

/// Removes what [`create`] made for a container that has ended. Says nothing if it is
/// gone already: with the mount go all groups.
pub(crate) fn remove(spec: &Spec, id: &str) -> Result<(), RuntimeError> {
    let Some(rdt) = wanted(spec) else {
        return Ok(());
    };
    mount_point()?.map_or(Ok(()), |root| remove_in(&root, rdt, id))
}

/// New lines in the `schemata` of a container's group. What is not given stays. Returns the
/// configuration with the change; nothing for a container without a group.
pub(crate) fn update(
    spec: &Spec,
    id: &str,
    l3_cache: Option<&str>,
    bandwidth: Option<&str>,
) -> Result<Option<LinuxIntelRdt>, RuntimeError> {
    let Some(rdt) = wanted(spec) else {
        return Ok(None);
    };
    update_in(&mounted()?, rdt, id, l3_cache, bandwidth).map(Some)
}

fn update_in(
    root: &Path,
    rdt: &LinuxIntelRdt,
    id: &str,
    l3_cache: Option<&str>,
    bandwidth: Option<&str>,
) -> Result<LinuxIntelRdt, RuntimeError> {
    let mut given = LinuxIntelRdt::default();
    let mut after = rdt.clone();
    if let Some(line) = l3_cache {
        given.set_l3_cache_schema(Some(line.to_owned()));
        after.set_l3_cache_schema(Some(line.to_owned()));
    }
    if let Some(line) = bandwidth {
        given.set_mem_bw_schema(Some(line.to_owned()));
        after.set_mem_bw_schema(Some(line.to_owned()));
    }
    write(root, &directory(root, rdt, id)?, &schemata(&given)?)?;
    Ok(after)
}

/// The `tasks` files of the groups that the process behind `pidfd` is in.
pub(crate) fn join_files_of(
    spec: &Spec,
    pidfd: BorrowedFd<'_>,
) -> Result<Vec<OwnedFd>, RuntimeError> {
    if wanted(spec).is_none() {
        return Ok(Vec::new());
    }
    let root = mounted()?;
    const GROUPS: &str = "cpu_resctrl_groups";
    let text = procfs::read_of(pidfd, GROUPS)
        .map_err(|errno| RuntimeError::setup(Step::Resctrl, GROUPS, errno))?;
    let (dir, monitor) = groups(&root, &text);
    tasks(&dir, monitor.as_deref())
}

fn wanted(spec: &Spec) -> Option<&LinuxIntelRdt> {
    spec.linux().as_ref()?.intel_rdt().as_ref()
}

/// Where resctrl is mounted, as it must be for a new group.
fn mounted() -> Result<PathBuf, RuntimeError> {
    mount_point()?.ok_or_else(|| {
        let reason = "no resctrl file system is mounted (mount -t resctrl resctrl /sys/fs/resctrl)";
        RuntimeError::spec(FIELD, reason)
    })
}

fn mount_point() -> Result<Option<PathBuf>, RuntimeError> {
    let path = Path::new(mountinfo::OF_PROCESS);
    let text = mountinfo::read(mountinfo::OF_PROCESS).map_err(|error| io(path, &error))?;
    Ok(find_mount(&text))
}

fn find_mount(text: &[u8]) -> Option<PathBuf> {
    let mut mounts = mountinfo::mounts(text);
    let found = mounts.find(|mount| mount.kind == b"resctrl")?;
    Some(found.point().into_owned())
}

/// `cpu_resctrl_groups`: `res:` and `mon:` with the groups' names.
fn groups(root: &Path, text: &str) -> (PathBuf, Option<PathBuf>) {
    let named = |prefix: &str| {
        let name = text.lines().find_map(|line| line.strip_prefix(prefix))?;
        Some(name.trim_matches('/')).filter(|name| !name.is_empty())
    };
    let dir = named("res:").map_or_else(|| root.to_owned(), |name| root.join(name));
    let monitor = named("mon:").map(|name| dir.join("mon_groups").join(name));
    (dir, monitor)
}

impl Group {
    fn create(root: &Path, rdt: &LinuxIntelRdt, id: &str) -> Result<Self, RuntimeError> {
        let dir = directory(root, rdt, id)?;
        let lines = schemata(rdt)?;
        let mut group = Self {
            dir,
            monitor: None,
            made: Vec::new(),
        };
        let named = clos(rdt).is_some();
        if group.dir.is_dir() {
            if named {
                compare(&group.dir, &lines)?;
            } else {
                write(root, &group.dir, &lines)?;
            }
        } else if named && lines.is_empty() {
            let reason = format!("group {} does not exist", group.dir.display());
            return Err(RuntimeError::spec("linux.intelRdt.closID", reason));
        } else {
            group.make(root, group.dir.clone())?;
            write(root, &group.dir, &lines)?;
        }
        if monitoring(rdt) {
            let monitor = group.dir.join("mon_groups").join(id);
            if !monitor.is_dir() {
                group.make(root, monitor.clone())?;
            }
            group.monitor = Some(monitor);
        }
        Ok(group)
    }

    fn make(&mut self, root: &Path, dir: PathBuf) -> Result<(), RuntimeError> {
        fs::create_dir(&dir).map_err(|error| said(root, &dir, &error))?;
        self.made.insert(0, dir);
        Ok(())
    }

    /// For the child to write itself into.
    pub(crate) fn join_files(&self) -> Result<Vec<OwnedFd>, RuntimeError> {
        tasks(&self.dir, self.monitor.as_deref())
    }

    /// It lives as long as the container.
    pub(crate) fn keep(mut self) {
        self.made.clear();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for dir in &self.made {
            if let Err(error) = fs::remove_dir(dir) {
                tracing::warn!(dir = %dir.display(), %error, "could not remove resctrl group");
            }
        }
    }
}

fn remove_in(root: &Path, rdt: &LinuxIntelRdt, id: &str) -> Result<(), RuntimeError> {
    let dir = directory(root, rdt, id)?;
    let mut result = Ok(());
    let monitor = monitoring(rdt).then(|| dir.join("mon_groups").join(id));
    let own = clos(rdt).is_none().then_some(dir);
    for dir in monitor.into_iter().chain(own) {
        match fs::remove_dir(&dir) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => result = result.and(Err(io(&dir, &error))),
        }
    }
    result
}

fn clos(rdt: &LinuxIntelRdt) -> Option<&str> {
    rdt.clos_id().as_deref().filter(|clos| !clos.is_empty())
}

/// `enableCMT` and `enableMBM` are what older specifications called parts of it.
#[allow(deprecated)]
fn monitoring(rdt: &LinuxIntelRdt) -> bool {
    [rdt.enable_monitoring(), rdt.enable_cmt(), rdt.enable_mbm()]
        .iter()
        .any(|enabled| enabled.unwrap_or(false))
}

fn directory(root: &Path, rdt: &LinuxIntelRdt, id: &str) -> Result<PathBuf, RuntimeError> {
    let name = match clos(rdt) {
        Some("/") => return Ok(root.to_owned()),
        Some(name) => name,
        None => id,
    };
    let taken = matches!(name, "." | ".." | "info" | "mon_groups" | "mon_data");
    if taken || name.contains('/') {
        let reason = format!("{name:?} cannot be the name of a group");
        return Err(RuntimeError::spec("linux.intelRdt.closID", reason));
    }
    Ok(root.join(name))
}

/// The lines for the `schemata` file, in the order the spec wants them written.
fn schemata(rdt: &LinuxIntelRdt) -> Result<Vec<String>, RuntimeError> {
    let mut lines = Vec::new();
    for (field, prefix, line) in [
        ("l3CacheSchema", "L3", rdt.l3_cache_schema()),
        ("memBwSchema", "MB:", rdt.mem_bw_schema()),
    ] {
        let Some(line) = line.as_ref().filter(|line| !line.is_empty()) else {
            continue;
        };
        if !line.starts_with(prefix) {
            let field = format!("{FIELD}.{field}");
            return Err(RuntimeError::spec(
                field,
                format!("{line:?} does not begin with {prefix}"),
            ));
        }
        lines.push(line.clone());
    }
    lines.extend(rdt.schemata().iter().flatten().cloned());
    match lines.iter().find(|line| line.contains('\n')) {
        Some(line) => Err(RuntimeError::spec(
            FIELD,
            format!("{line:?} contains a newline"),
        )),
        None => Ok(lines),
    }
}

fn write(root: &Path, dir: &Path, lines: &[String]) -> Result<(), RuntimeError> {
    if lines.is_empty() {
        return Ok(());
    }
    let path = dir.join("schemata");
    let mut text = lines.join("\n");
    text.push('\n');
    let written = File::options()
        .write(true)
        .open(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| said(root, &path, &error))
}

/// A group that exists already must be what was asked for.
fn compare(dir: &Path, lines: &[String]) -> Result<(), RuntimeError> {
    if lines.is_empty() {
        return Ok(());
    }
    let path = dir.join("schemata");
    let text = fs::read_to_string(&path).map_err(|error| io(&path, &error))?;
    let there: Vec<_> = text.lines().filter_map(parse).collect();
    for line in lines {
        let same = parse(line).is_some_and(|(kind, wanted)| {
            there.iter().any(|(other, values)| {
                *other == kind && wanted.iter().all(|value| values.contains(value))
            })
        });
        if !same {
            let reason = format!(
                "group {} exists with other values than {line:?}",
                dir.display()
            );
            return Err(RuntimeError::spec("linux.intelRdt.closID", reason));
        }
    }
    Ok(())
}

/// `L3:0=7f;1=1f`: the kind, and pairs of cache and value. All but bandwidths are
/// hexadecimal.
fn parse(line: &str) -> Option<(&str, Vec<(u32, u64)>)> {
    let (kind, values) = line.trim().split_once(':')?;
    let radix = if kind.starts_with("MB") { 10 } else { 16 };
    let one = |pair: &str| {
        let (cache, value) = pair.split_once('=')?;
        let cache = cache.trim().parse().ok()?;
        Some((cache, u64::from_str_radix(value.trim(), radix).ok()?))
    };
    let values: Option<Vec<_>> = values.split(';').map(one).collect();
    Some((kind, values?))
}

fn tasks(dir: &Path, monitor: Option<&Path>) -> Result<Vec<OwnedFd>, RuntimeError> {
    let open = |dir: &Path| {
        let path = dir.join("tasks");
        let file = File::options().write(true).open(&path);
        file.map(OwnedFd::from).map_err(|error| io(&path, &error))
    };
    // The monitoring group belongs to the other and must be joined after it.
    std::iter::once(dir).chain(monitor).map(open).collect()
}

fn io(path: &Path, error: &std::io::Error) -> RuntimeError {
    RuntimeError::setup(Step::Resctrl, path.display().to_string(), os(error))
}

/// With the kernel's own words, which say more than the errno.
fn said(root: &Path, path: &Path, error: &std::io::Error) -> RuntimeError {
    let words = fs::read_to_string(root.join("info/last_cmd_status")).unwrap_or_default();
    match words.trim() {
        "" | "ok" => io(path, error),
        words => RuntimeError::spec(FIELD, format!("{}: {words}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rdt(json: serde_json::Value) -> LinuxIntelRdt {
        serde_json::from_value(json).unwrap()
    }

    /// What the kernel makes by itself in a real one.
    fn files(dir: &Path) {
        fs::create_dir_all(dir.join("mon_groups")).unwrap();
        fs::write(dir.join("schemata"), "    L3:0=00ff;1=000f\n    MB:0=100\n").unwrap();
        fs::write(dir.join("tasks"), "").unwrap();
    }

    #[test]
    fn named_groups() {
        let root = tempfile::tempdir().unwrap();
        let create = |json| Group::create(root.path(), &rdt(json), "box");
        let error = create(json!({"closID": "gold"})).unwrap_err().to_string();
        assert!(error.contains("does not exist"), "{error}");
        files(&root.path().join("gold"));
        create(json!({"closID": "gold"})).unwrap().keep();
        create(json!({"closID": "gold", "l3CacheSchema": "L3:0=ff;1=f"})).unwrap();
        create(json!({"closID": "gold", "schemata": ["MB:0=100"]})).unwrap();
        for other in [
            json!({"closID": "gold", "l3CacheSchema": "L3:0=f"}),
            json!({"closID": "gold", "memBwSchema": "MB:0=50"}),
            json!({"closID": "a/b"}),
            json!({"closID": ".."}),
            json!({"l3CacheSchema": "L3:0=f\nMB:0=1"}),
            json!({"memBwSchema": "L3:0=f"}),
        ] {
            assert!(create(other.clone()).is_err(), "{other}");
        }
        assert!(root.path().join("gold").is_dir());
        files(root.path());
        let group = create(json!({"closID": "/", "enableMonitoring": true})).unwrap();
        assert_eq!(group.dir, root.path());
        let monitor = root.path().join("mon_groups/box");
        assert!(monitor.is_dir());
        drop(group);
        assert!(!monitor.exists());
    }

    #[test]
    fn own_groups_come_and_go() {
        let root = tempfile::tempdir().unwrap();
        // The kernel makes the files in a new directory; here there are none.
        let error = Group::create(root.path(), &rdt(json!({"l3CacheSchema": "L3:0=f"})), "box");
        assert!(error.unwrap_err().to_string().contains("schemata"));
        assert!(!root.path().join("box").exists());
        let plain = rdt(json!({}));
        Group::create(root.path(), &plain, "box").unwrap().keep();
        assert!(root.path().join("box").is_dir());
        remove_in(root.path(), &plain, "box").unwrap();
        assert!(!root.path().join("box").exists());
        remove_in(root.path(), &plain, "box").unwrap();
    }

    #[test]
    fn order_and_tasks() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("box");
        files(&dir);
        fs::create_dir(dir.join("mon_groups/box")).unwrap();
        fs::write(dir.join("mon_groups/box/tasks"), "").unwrap();
        let asked = rdt(json!({"memBwSchema": "MB:0=20", "l3CacheSchema": "L3:0=f",
                               "schemata": ["L2:0=f"], "enableMonitoring": true}));
        fs::write(dir.join("schemata"), "").unwrap();
        let group = Group::create(root.path(), &asked, "box").unwrap();
        let text = fs::read_to_string(dir.join("schemata")).unwrap();
        assert_eq!(text, "L3:0=f\nMB:0=20\nL2:0=f\n");
        assert_eq!(group.join_files().unwrap().len(), 2);
    }

    #[test]
    fn updates() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("box");
        files(&dir);
        let before = rdt(json!({"l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=20"}));
        let update = |l3, mb| update_in(root.path(), &before, "box", l3, mb);
        fs::write(dir.join("schemata"), "").unwrap();
        let after = update(None, Some("MB:0=50")).unwrap();
        assert_eq!(
            fs::read_to_string(dir.join("schemata")).unwrap(),
            "MB:0=50\n"
        );
        assert_eq!(after.mem_bw_schema().as_deref(), Some("MB:0=50"));
        assert_eq!(after.l3_cache_schema().as_deref(), Some("L3:0=f"));
        let wrong = update(Some("MB:0=50"), None).unwrap_err().to_string();
        assert!(wrong.contains("l3CacheSchema"), "{wrong}");
        fs::remove_dir_all(&dir).unwrap();
        assert!(update(Some("L3:0=f"), None).is_err());
    }

    #[test]
    fn texts() {
        let mountinfo = b"25 1 0:22 / /sys rw - sysfs sysfs rw\n\
                         40 25 0:40 / /sys/fs/res\\040ctrl rw shared:9 - resctrl resctrl rw\n";
        assert_eq!(
            find_mount(mountinfo).unwrap(),
            Path::new("/sys/fs/res ctrl")
        );
        assert_eq!(find_mount(b"25 1 0:22 / /sys rw - sysfs sysfs rw\n"), None);
        let root = Path::new("/r");
        assert_eq!(groups(root, "res:\nmon:\n"), (root.to_owned(), None));
        assert_eq!(
            groups(root, "res:p1\nmon:m1\n"),
            (root.join("p1"), Some(root.join("p1/mon_groups/m1")))
        );
    }
}
