//! Who a container's users are on the host, by the setting `userns-remap`: the ranges of
//! `/etc/subuid` and `/etc/subgid` that belong to a user and a group, one after the other
//! (subuid(5)).

use bollard_stubs::models::HostConfig;
use corten_oci::runtime_spec::{LinuxIdMapping, LinuxIdMappingBuilder};

use super::bad;
use super::modes::{Modes, NetworkMode, Sharing};
use super::users::{GroupEntry, group_entries, passwd_entries};
use crate::error::EngineError;

type Result<T> = std::result::Result<T, EngineError>;

/// Whose ranges `default` means (Docker's).
const DEFAULT: &str = "dockremap";
/// Ranges that a mapping may have (`UID_GID_MAP_MAX_EXTENTS`).
const MAX_RANGES: usize = 340;
/// How long a mapping's text may be: the kernel takes it in one piece, less than a page of the
/// smallest kind (user_namespaces(7)).
const MAX_TEXT: usize = 4095;

/// The mappings of a container's users and groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remap {
    pub(crate) uids: Vec<LinuxIdMapping>,
    pub(crate) gids: Vec<LinuxIdMapping>,
}

/// The texts of the files concerned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Accounts<'a> {
    pub(crate) passwd: &'a str,
    pub(crate) group: &'a str,
    pub(crate) subuid: &'a str,
    pub(crate) subgid: &'a str,
}

impl Remap {
    /// That of a namespace which is there: the first ids inside and outside, and how many.
    pub(crate) fn of(users: &[(u32, u32, u32)], groups: &[(u32, u32, u32)]) -> Option<Self> {
        let list = |ranges: &[(u32, u32, u32)]| {
            let mapping = |(inside, outside, size): &(u32, u32, u32)| {
                LinuxIdMappingBuilder::default()
                    .container_id(*inside)
                    .host_id(*outside)
                    .size(*size)
                    .build()
                    .ok()
            };
            let list: Option<Vec<_>> = ranges.iter().map(mapping).collect();
            // Without a root nothing can be made in it.
            list.filter(|list| list.first().is_some_and(|first| first.container_id() == 0))
        };
        Some(Self {
            uids: list(users)?,
            gids: list(groups)?,
        })
    }

    /// Who its root is.
    pub(crate) fn root(&self) -> (u32, u32) {
        let first = |list: &[LinuxIdMapping]| list.first().map_or(0, LinuxIdMapping::host_id);
        (first(&self.uids), first(&self.gids))
    }
}

/// Reads `default`, `user[:group]` or `uid[:gid]`.
pub(crate) fn read(text: &str, accounts: &Accounts<'_>) -> Result<Remap> {
    let text = if text == "default" { DEFAULT } else { text };
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    if user.is_empty() || group.is_some_and(|group| group.is_empty() || group.contains(':')) {
        return Err(bad(format!(
            "userns-remap: \"{text}\" is neither default nor user[:group]"
        )));
    }
    let number = user.parse::<u32>().ok();
    let known = passwd_entries(accounts.passwd)
        .find(|entry| entry.name == user || Some(entry.uid) == number);
    let (name, uid) = match &known {
        Some(entry) => (entry.name, Some(entry.uid)),
        None => (user, number),
    };
    let (group_name, gid) = match group {
        // As Docker has it: the group that is called as the user.
        None => (name, named_group(accounts.group, name).map(|g| g.gid)),
        Some(group) => match named_group(accounts.group, group) {
            Some(entry) => (entry.name, Some(entry.gid)),
            None => (group, group.parse().ok()),
        },
    };
    Ok(Remap {
        uids: mappings("/etc/subuid", accounts.subuid, name, uid)?,
        gids: mappings("/etc/subgid", accounts.subgid, group_name, gid)?,
    })
}

fn named_group<'a>(text: &'a str, wanted: &str) -> Option<GroupEntry<'a>> {
    let number = wanted.parse::<u32>().ok();
    group_entries(text).find(|group| group.name == wanted || Some(group.gid) == number)
}

/// The ranges of a file that belong to somebody, as consecutive ids of a container.
fn mappings(file: &str, text: &str, name: &str, id: Option<u32>) -> Result<Vec<LinuxIdMapping>> {
    let owner = |field: &str| field == name || (id.is_some() && field.parse().ok() == id);
    let mut next = 0_u32;
    let mut list = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [who, start, count] = fields[..] else {
            continue;
        };
        if !owner(who) {
            continue;
        }
        let wrong = || bad(format!("userns-remap: {file} has no range in \"{line}\""));
        let (start, count): (u32, u32) = match (start.parse(), count.parse()) {
            (Ok(start), Ok(count)) if count > 0 => (start, count),
            _ => return Err(wrong()),
        };
        let end = next.checked_add(count).ok_or_else(wrong)?;
        start.checked_add(count).ok_or_else(wrong)?;
        if start == 0 {
            return Err(bad(format!(
                "userns-remap: \"{line}\" of {file} gives away root's own id"
            )));
        }
        let mapping = LinuxIdMappingBuilder::default()
            .container_id(next)
            .host_id(start)
            .size(count)
            .build();
        list.push(mapping.map_err(|_| wrong())?);
        next = end;
    }
    let text: usize = list.iter().map(length).sum();
    match list.len() {
        0 => Err(bad(format!(
            "userns-remap: {file} has no ids for {name}: add a line such as {name}:100000:65536"
        ))),
        n if n > MAX_RANGES || text > MAX_TEXT => Err(bad(format!(
            "userns-remap: {file} has {n} ranges for {name}, more than the kernel takes"
        ))),
        _ => Ok(list),
    }
}

/// How long a mapping's line is for the kernel.
fn length(mapping: &LinuxIdMapping) -> usize {
    let digits = |number: u32| number.checked_ilog10().unwrap_or(0) as usize + 1;
    // Two spaces, the end of the line.
    digits(mapping.container_id()) + digits(mapping.host_id()) + digits(mapping.size()) + 3
}

/// Refuses, in Docker's words, what only the host's own root can have.
pub(crate) fn check(host: &HostConfig, modes: &Modes) -> Result<()> {
    if host.privileged == Some(true) {
        return Err(bad(
            "privileged mode is incompatible with user namespaces.  You must run the container in \
             the host namespace when running privileged mode",
        ));
    }
    if modes.network == NetworkMode::Host {
        return Err(bad(
            "cannot share the host's network namespace when user namespaces are enabled",
        ));
    }
    if modes.pid == Sharing::Host {
        return Err(bad(
            "cannot share the host PID namespace when user namespaces are enabled",
        ));
    }
    Ok(())
}

/// A mapping of what is on disk to a container's ids, as one to the host's ids that those are.
pub(crate) fn composed(
    shown: &[LinuxIdMapping],
    container: &[LinuxIdMapping],
) -> Vec<LinuxIdMapping> {
    let mut list = Vec::new();
    for (one, other) in shown
        .iter()
        .flat_map(|one| container.iter().map(move |other| (one, other)))
    {
        let end = |start: u32, size: u32| u64::from(start) + u64::from(size);
        let low = one.host_id().max(other.container_id());
        let high = end(one.host_id(), one.size()).min(end(other.container_id(), other.size()));
        let Some(size) = high.checked_sub(u64::from(low)).filter(|size| *size > 0) else {
            continue;
        };
        let moved = |start: u32, from: u32| start.checked_add(low.checked_sub(from)?);
        // What is beyond the last id there is not.
        let (Some(inside), Some(outside)) = (
            moved(one.container_id(), one.host_id()),
            moved(other.host_id(), other.container_id()),
        ) else {
            continue;
        };
        let mapping = LinuxIdMappingBuilder::default()
            .container_id(inside)
            .host_id(outside)
            .size(u32::try_from(size).unwrap_or(u32::MAX))
            .build();
        list.extend(mapping.ok());
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nmap:x:77:78::/:/bin/false\n";
    const GROUP: &str = "root:x:0:\nmap:x:88:\nothers:x:99:\n";

    fn tuples(list: &[LinuxIdMapping]) -> Vec<(u32, u32, u32)> {
        list.iter()
            .map(|m| (m.container_id(), m.host_id(), m.size()))
            .collect()
    }

    fn remap(text: &str, subuid: &str, subgid: &str) -> Result<[Vec<(u32, u32, u32)>; 2]> {
        let accounts = Accounts {
            passwd: PASSWD,
            group: GROUP,
            subuid,
            subgid,
        };
        read(text, &accounts).map(|r| [tuples(&r.uids), tuples(&r.gids)])
    }

    #[test]
    fn ranges_of_a_user_and_a_group_follow_each_other() {
        let subuid = "other:1:2\nmap:100000:10\n77:200000:5\n";
        let subgid = "map:300000:7\n99:400000:8\ndockremap:500000:9\n";
        let expected = [
            vec![(0, 100_000, 10), (10, 200_000, 5)],
            vec![(0, 300_000, 7)],
        ];
        for text in ["map", "77", "map:map", "77:88"] {
            assert_eq!(remap(text, subuid, subgid).unwrap(), expected, "{text}");
        }
        assert_eq!(
            remap("map:others", subuid, subgid).unwrap()[1],
            [(0, 400_000, 8)]
        );
        // Need not be an account: what counts are the ranges.
        let both = "dockremap:500000:9\n";
        assert_eq!(remap("default", both, both).unwrap()[0], [(0, 500_000, 9)]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, subuid, words) in [
            ("nobody", "", "/etc/subuid has no ids for nobody"),
            ("map", "map:x:1\n", "has no range in \"map:x:1\""),
            ("map", "map:5:0\n", "has no range"),
            ("map", "map:0:65536\n", "root's own id"),
            ("map", "map:4294967290:100\n", "has no range"),
            (":x", "", "neither"),
            ("map:", "", "neither"),
            ("a:b:c", "", "neither"),
        ] {
            let told = remap(text, subuid, "map:1:1\n").unwrap_err().to_string();
            assert!(told.contains(words), "{text}: {told}");
        }
    }

    #[test]
    fn no_more_ranges_are_taken_than_the_kernel_takes() {
        // Lines such as "1000000 1000000000 10000" have 25 bytes: 163 of them at the most.
        let line = |number: u32| format!("map:{}:10000\n", 1_000_000_000 + number * 20_000);
        let ranges = |count: u32| (0..count).map(line).collect::<String>();
        let few = remap("map", &ranges(160), "map:1:1\n").unwrap();
        let text: usize = few[0]
            .iter()
            .map(|(inside, outside, size)| format!("{inside} {outside} {size}\n").len())
            .sum();
        assert!(text <= MAX_TEXT && text > MAX_TEXT - 300, "{text}");
        let told = remap("map", &ranges(180), "map:1:1\n").unwrap_err();
        assert!(told.to_string().contains("180 ranges"), "{told}");
    }

    #[test]
    fn mappings_are_composed() {
        let mapping = |list: &[(u32, u32, u32)]| -> Vec<LinuxIdMapping> {
            list.iter()
                .map(|(inside, outside, size)| {
                    LinuxIdMappingBuilder::default()
                        .container_id(*inside)
                        .host_id(*outside)
                        .size(*size)
                        .build()
                        .unwrap()
                })
                .collect()
        };
        // On disk 1000 is the container's root, 1 to 9 are themselves.
        let shown = mapping(&[(1000, 0, 1), (1, 1, 9)]);
        let container = mapping(&[(0, 100_000, 5), (5, 200_000, 2)]);
        assert_eq!(
            tuples(&composed(&shown, &container)),
            [(1000, 100_000, 1), (1, 100_001, 4), (5, 200_000, 2)]
        );
        // A client may say what it will.
        let end = mapping(&[(u32::MAX, 0, 10)]);
        let second = mapping(&[(1, 100_000, 5)]);
        assert_eq!(tuples(&composed(&end, &second)), []);
    }
}
