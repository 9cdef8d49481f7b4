//! Which records of the build cache a prune removes: `filters` and bounds of space, as
//! `POST /build/prune` has them.

use std::collections::{BTreeMap, HashSet};

use bollard_stubs::models::BuildPruneResponse;
use corten_build::CacheRecord;

use super::df::{NANOS, build_error, kind};
use crate::Filters;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::{filters, time};

type Result<T> = std::result::Result<T, EngineError>;

const FILTERS: &[&str] = &[
    "until",
    "id",
    "parent",
    "type",
    "description",
    "inuse",
    "shared",
    "private",
];

/// How much of the build cache a prune leaves, in bytes; 0: no such bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheSpace {
    /// What is always left to the cache.
    pub reserved: u64,
    /// The most the cache may keep.
    pub max_used: u64,
    /// What should be free on the disk afterwards.
    pub min_free: u64,
}

impl CacheSpace {
    /// Bytes the cache may keep; `None`: nothing bounds it, so that nothing need be kept.
    fn keep(self, total: u64, free: u64) -> Option<u64> {
        if self == Self::default() {
            return None;
        }
        let mut keep = if self.max_used > 0 {
            self.max_used
        } else if self.min_free > 0 {
            total
        } else {
            0
        };
        keep = keep.min(total.saturating_sub(self.min_free.saturating_sub(free)));
        Some(keep.max(self.reserved))
    }
}

/// Removes build cache records. Blocks.
pub(super) fn prune(
    engine: &Engine,
    all: bool,
    wanted: &Filters,
    space: CacheSpace,
) -> Result<BuildPruneResponse> {
    filters::check(wanted, FILTERS)?;
    let until = filters::until(wanted, time::now_nanos())?;
    let flags = ["inuse", "shared", "private"]
        .map(|field| presence(wanted, field).map(|wish| (field, wish)));
    let flags: Vec<_> = flags.into_iter().collect::<Result<_>>()?;
    let builder = engine.builder(BTreeMap::new());
    let pruned = if wanted.is_empty() && space == CacheSpace::default() {
        builder.prune(all)
    } else {
        let records = builder.usage().map_err(build_error)?;
        let free = rustix::fs::statvfs(engine.layout().root())
            .map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        let total = records.iter().filter(|r| !r.shared).map(|r| r.size).sum();
        let matching = records.into_iter().filter(|record| {
            until.is_none_or(|until| record.last_used.saturating_mul(NANOS) < until)
                && matches(wanted, record)
                && flags.iter().all(|(field, wish)| {
                    wish.is_none_or(|wish| {
                        wish == match *field {
                            "inuse" => record.in_use,
                            "shared" => record.shared,
                            _ => !record.shared,
                        }
                    })
                })
        });
        let ids = within(matching.collect(), space.keep(total, free), total);
        builder.prune_only(all, &ids)
    };
    let pruned = pruned.map_err(build_error)?;
    Ok(BuildPruneResponse {
        caches_deleted: Some(pruned.ids),
        space_reclaimed: Some(i64::try_from(pruned.bytes).unwrap_or(i64::MAX)),
    })
}

/// The records to be removed: all of them, or the least recently used ones, until no more than
/// `keep` bytes of `total` are left.
fn within(mut records: Vec<CacheRecord>, keep: Option<u64>, mut total: u64) -> HashSet<String> {
    records.sort_by_key(|record| (record.last_used, record.uses));
    let mut ids = HashSet::new();
    for record in records {
        if keep.is_some_and(|keep| total <= keep) {
            break;
        }
        if !record.shared {
            total = total.saturating_sub(record.size);
        }
        ids.insert(record.id);
    }
    ids
}

/// A field that says yes by being there (`inuse`), or has a boolean.
fn presence(wanted: &Filters, field: &str) -> Result<Option<bool>> {
    match filters::values(wanted, field) {
        [value] if value.is_empty() => Ok(Some(true)),
        _ => filters::flag(wanted, field),
    }
}

fn matches(wanted: &Filters, record: &CacheRecord) -> bool {
    filters::any(wanted, "id", |id| record.id.starts_with(id.as_str()))
        // Records here are keyed by all that went in; none names a parent.
        && filters::values(wanted, "parent").is_empty()
        && filters::any(wanted, "type", |text| *text == kind(record.kind).to_string())
        && filters::any(wanted, "description", |text| {
            record.description.contains(text.as_str())
        })
}

#[cfg(test)]
mod tests {
    use corten_build::RecordKind;

    use super::*;

    fn record(id: &str, size: u64, last_used: i64) -> CacheRecord {
        CacheRecord {
            id: id.to_owned(),
            kind: RecordKind::Step,
            description: format!("RUN {id}"),
            size,
            shared: false,
            in_use: false,
            created: 0,
            last_used,
            uses: 0,
        }
    }

    fn filter(field: &str, value: &str) -> Filters {
        [(field.to_owned(), vec![value.to_owned()])].into()
    }

    #[test]
    fn the_oldest_go_until_the_rest_fits() {
        let records = || {
            vec![
                record("new", 5, 30),
                record("old", 5, 10),
                record("mid", 5, 20),
            ]
        };
        let gone = |keep| {
            let mut ids: Vec<String> = within(records(), keep, 15).into_iter().collect();
            ids.sort();
            ids
        };
        assert_eq!(gone(None), ["mid", "new", "old"]);
        assert_eq!(gone(Some(10)), ["old"]);
        assert_eq!(gone(Some(9)), ["mid", "old"]);
        assert!(gone(Some(15)).is_empty());
    }

    #[test]
    fn bounds_of_space() {
        let space = |reserved, max_used, min_free| CacheSpace {
            reserved,
            max_used,
            min_free,
        };
        for (bounds, keep) in [
            (space(0, 0, 0), None),
            (space(10, 0, 0), Some(10)),
            (space(0, 40, 0), Some(40)),
            (space(50, 40, 0), Some(50)),
            (space(0, 0, 30), Some(80)),
            (space(0, 0, 5), Some(100)),
            (space(90, 0, 30), Some(90)),
            (space(0, 60, 70), Some(40)),
        ] {
            assert_eq!(bounds.keep(100, 10), keep, "{bounds:?}");
        }
    }

    #[test]
    fn filters_select() {
        let record = record("abc", 1, 1);
        for (field, value, expected) in [
            ("id", "ab", true),
            ("id", "b", false),
            ("type", "regular", true),
            ("type", "exec.cachemount", false),
            ("description", "RUN", true),
            ("parent", "abc", false),
        ] {
            assert_eq!(
                matches(&filter(field, value), &record),
                expected,
                "{field}={value}"
            );
        }
        assert_eq!(presence(&filter("inuse", ""), "inuse").unwrap(), Some(true));
        assert_eq!(
            presence(&filter("inuse", "0"), "inuse").unwrap(),
            Some(false)
        );
        assert!(presence(&filter("inuse", "x"), "inuse").is_err());
    }
}
