//! Whose the files of a bind mount are: `idmap`.
//!
//! `owner=UID-GID`: files that the container's user makes belong to that user of the host, and the
//! other way round; everybody else is who he is, but for the host's root. `uids=A-B-N#…;gids=…`, as
//! Podman and crun write it: N ids from A on in the file system are ids from B on in the container.

use corten_oci::runtime_spec::{LinuxIdMapping, LinuxIdMappingBuilder};
use serde::{Deserialize, Serialize};

use super::bad;
use crate::error::EngineError;

type Result<T> = std::result::Result<T, EngineError>;

/// One more than the last id; that one is nobody's (`(uid_t) -1`).
const END: u32 = u32::MAX;
/// Ranges that a mapping may have (`UID_GID_MAP_MAX_EXTENTS`).
const MAX_RANGES: usize = 340;

/// What an `idmap` option says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum IdMap {
    /// The container's user is this user of the host.
    Owner { uid: u32, gid: u32 },
    /// As it is written.
    Given { uids: Vec<Range>, gids: Vec<Range> },
}

/// Ids of the file system, and what they are in the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Range {
    pub(crate) stored: u32,
    pub(crate) shown: u32,
    pub(crate) count: u32,
}

/// Reads the value of an option.
///
/// # Errors
/// It is none.
pub(crate) fn read(text: &str) -> Result<IdMap> {
    let invalid = |why: &str| bad(format!("invalid idmap '{text}': {why}"));
    if text.is_empty() {
        return Err(invalid(
            "it does not say whose the files are (the corten command does): idmap=owner=UID-GID",
        ));
    }
    let number = |text: &str| text.parse::<u32>().ok().filter(|id| *id != END);
    if let Some(owner) = text.strip_prefix("owner=") {
        let ids = owner.split_once('-');
        let ids = ids.and_then(|(uid, gid)| Some((number(uid)?, number(gid)?)));
        let (uid, gid) = ids.ok_or_else(|| invalid("must be owner=UID-GID"))?;
        return Ok(IdMap::Owner { uid, gid });
    }
    let ranges = |text: &str| -> Result<Vec<Range>> {
        let range = |text: &str| {
            let numbers: Option<Vec<u32>> = text.split('-').map(number).collect();
            match numbers?.as_slice() {
                [stored, shown, count] if *count > 0 => {
                    (*stored).checked_add(*count)?;
                    (*shown).checked_add(*count)?;
                    Some(Range {
                        stored: *stored,
                        shown: *shown,
                        count: *count,
                    })
                }
                _ => None,
            }
        };
        let ranges: Option<Vec<Range>> = text.split('#').map(range).collect();
        let ranges = ranges.ok_or_else(|| invalid("ranges must be STORED-SHOWN-COUNT"))?;
        check(&ranges).map_err(invalid)?;
        Ok(ranges)
    };
    let (mut uids, mut gids) = (None, None);
    for part in text.split(';') {
        let (kind, list) = part.split_once('=').unwrap_or((part, ""));
        let slot = match kind {
            "uids" => &mut uids,
            "gids" => &mut gids,
            _ => return Err(invalid("must be owner=UID-GID, or uids=… and gids=…")),
        };
        if slot.replace(ranges(list)?).is_some() {
            return Err(invalid("the same ids are mapped twice"));
        }
    }
    match (uids, gids) {
        (Some(uids), Some(gids)) => Ok(IdMap::Given { uids, gids }),
        _ => Err(invalid("uids and gids must both be given")),
    }
}

/// What the kernel would refuse without saying why.
fn check(ranges: &[Range]) -> std::result::Result<(), &'static str> {
    if ranges.len() > MAX_RANGES {
        return Err("more than 340 ranges");
    }
    let overlap = |a: (u32, u32), b: (u32, u32)| a.0 < b.0 + b.1 && b.0 < a.0 + a.1;
    for (at, one) in ranges.iter().enumerate() {
        for other in &ranges[..at] {
            if overlap((one.stored, one.count), (other.stored, other.count))
                || overlap((one.shown, one.count), (other.shown, other.count))
            {
                return Err("ranges overlap");
            }
        }
    }
    Ok(())
}

impl IdMap {
    /// The mappings of users and groups, for a container whose user is `user` and `group`.
    pub(crate) fn mappings(&self, (user, group): (u32, u32)) -> [Vec<LinuxIdMapping>; 2] {
        let ranges = match self {
            Self::Owner { uid, gid } => [swapped(*uid, user), swapped(*gid, group)],
            Self::Given { uids, gids } => [uids.clone(), gids.clone()],
        };
        ranges.map(|ranges| ranges.into_iter().filter_map(mapping).collect())
    }
}

fn mapping(range: Range) -> Option<LinuxIdMapping> {
    LinuxIdMappingBuilder::default()
        .container_id(range.stored)
        .host_id(range.shown)
        .size(range.count)
        .build()
        .ok()
}

/// One id of the file system is another in the container, and all others are themselves: but for
/// those two, of which there are none on the other side, and for the host's root, whose files
/// nobody in the container should come to make.
fn swapped(stored: u32, shown: u32) -> Vec<Range> {
    let mut left_out = vec![stored, shown];
    if stored != 0 {
        left_out.push(0);
    }
    left_out.sort_unstable();
    left_out.dedup();
    let mut ranges = vec![Range {
        stored,
        shown,
        count: 1,
    }];
    let mut start = 0;
    for id in left_out.into_iter().chain([END]) {
        if id > start {
            ranges.push(Range {
                stored: start,
                shown: start,
                count: id - start,
            });
        }
        start = id.saturating_add(1);
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(ranges: &[Range]) -> Vec<(u32, u32, u32)> {
        let tuple = |range: &Range| (range.stored, range.shown, range.count);
        ranges.iter().map(tuple).collect()
    }

    #[test]
    fn values_are_read() {
        let owner = IdMap::Owner { uid: 7, gid: 8 };
        assert_eq!(read("owner=7-8").unwrap(), owner);
        let IdMap::Given { uids, gids } = read("uids=1000-0-1#2000-5-10;gids=0-0-1").unwrap()
        else {
            panic!("ranges");
        };
        assert_eq!(shown(&uids), [(1000, 0, 1), (2000, 5, 10)]);
        assert_eq!(shown(&gids), [(0, 0, 1)]);
        for (wrong, words) in [
            ("", "whose"),
            ("owner=7", "UID-GID"),
            ("owner=-1-2", "UID-GID"),
            ("owner=4294967295-2", "UID-GID"),
            ("uids=0-0-1", "both"),
            ("uids=0-0-0;gids=0-0-1", "STORED-SHOWN-COUNT"),
            ("uids=0-0-1;gids=0-4294967290-100", "STORED-SHOWN-COUNT"),
            ("uids=0-0-5#4-9-1;gids=0-0-1", "overlap"),
            ("uids=0-0-5#8-4-1;gids=0-0-1", "overlap"),
            ("uids=0-0-1;uids=0-0-1", "twice"),
            ("all", "must be"),
        ] {
            let told = read(wrong).unwrap_err().to_string();
            assert!(told.contains(words), "{wrong}: {told}");
        }
    }

    #[test]
    fn the_owner_is_the_containers_user_and_others_are_themselves() {
        let last = END - 1001;
        let expected = [(1000, 0, 1), (1, 1, 999), (1001, 1001, last)];
        assert_eq!(shown(&swapped(1000, 0)), expected);
        assert_eq!(shown(&swapped(0, 0)), [(0, 0, 1), (1, 1, END - 1)]);
        let expected = [(5, 7, 1), (1, 1, 4), (6, 6, 1), (8, 8, END - 8)];
        assert_eq!(shown(&swapped(5, 7)), expected);
        for (stored, inside) in [(0, 0), (1000, 0), (0, 1000), (5, 7), (END - 1, 0)] {
            let ranges = swapped(stored, inside);
            assert_eq!(check(&ranges), Ok(()), "{stored} {inside}");
        }
    }
}
