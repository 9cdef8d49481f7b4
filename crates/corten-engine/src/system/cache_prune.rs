//! Which records of the build cache a prune removes: `filters` and bounds of space, as
//! `POST /build/prune` has them.

use std::collections::{BTreeMap, HashSet};

use bollard_stubs::models::BuildPruneResponse;
use corten_build::CacheRecord;

use super::cache_filters::Chosen;
use super::df::{NANOS, build_error};
use crate::Filters;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::parse::time;

type Result<T> = std::result::Result<T, EngineError>;

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
    let chosen = Chosen::by(wanted)?;
    let builder = engine.builder(BTreeMap::new());
    let pruned = if wanted.is_empty() && space == CacheSpace::default() {
        builder.prune(all)
    } else {
        let records = builder.usage().map_err(build_error)?;
        let free = Disk::of(engine).free;
        let total = records.iter().filter(|r| !r.shared).map(|r| r.size).sum();
        let matching = records.into_iter().filter(|record| chosen.takes(record));
        let ids = within(matching.collect(), space.keep(total, free), total);
        builder.prune_only(all, &ids)
    };
    let pruned = pruned.map_err(build_error)?;
    Ok(BuildPruneResponse {
        caches_deleted: Some(pruned.ids),
        space_reclaimed: Some(i64::try_from(pruned.bytes).unwrap_or(i64::MAX)),
    })
}

/// How much of the build cache stays by itself, instead of a fraction of the disk.
const MAX_VARIABLE: &str = "CORTEN_BUILD_CACHE_MAX";
/// How often the cache is looked through for what is too old, in seconds.
const DAY: i64 = 24 * 3600;
/// What no build has used for so long goes, in seconds: as with BuildKit.
const OLD: i64 = 60 * DAY;

/// The disk that the engine's files are on, in bytes.
#[derive(Debug, Clone, Copy)]
struct Disk {
    size: u64,
    free: u64,
}

impl Disk {
    /// One that cannot be asked bounds nothing.
    fn of(engine: &Engine) -> Self {
        let asked = rustix::fs::statvfs(engine.layout().root());
        asked.map_or(
            Self {
                size: u64::MAX,
                free: u64::MAX,
            },
            |disk| Self {
                size: disk.f_blocks.saturating_mul(disk.f_frsize),
                free: disk.f_bavail.saturating_mul(disk.f_frsize),
            },
        )
    }

    /// What is left to the cache without anybody asking, as BuildKit's default policy has it: a
    /// tenth of the disk always, six tenths at most, and less where not a fifth is free. `max`: as
    /// its user wants it.
    fn policy(self, max: Option<u64>) -> CacheSpace {
        let max_used = max.unwrap_or(self.size / 10 * 6);
        CacheSpace {
            // A bound of nothing would be none.
            max_used: max_used.max(1),
            reserved: (self.size / 10).min(max_used),
            min_free: self.size / 5,
        }
    }
}

/// Why the cache is to be looked through.
#[derive(Debug)]
pub(super) struct Untidy {
    /// Perhaps for what is too old.
    may_be_due: bool,
    /// For being too much.
    exceeds: bool,
    space: CacheSpace,
    free: u64,
}

/// Whether there may be something that the policy does not keep; to be asked after each build, when
/// it is rarely so: some queries. Blocks.
pub(super) fn untidy(engine: &Engine) -> Result<Option<Untidy>> {
    let max = match std::env::var(MAX_VARIABLE) {
        Ok(text) if !text.is_empty() => Some(crate::parse::logs::size(&text).ok_or_else(|| {
            EngineError::BadParameter(format!("{MAX_VARIABLE}: invalid size: '{text}'"))
        })?),
        _ => None,
    };
    let (builder, disk) = (engine.builder(BTreeMap::new()), Disk::of(engine));
    let space = disk.policy(max);
    let exceeds = |used| space.keep(used, disk.free).is_some_and(|keep| used > keep);
    let may_be_due = builder.tidying_may_be_due(DAY).map_err(build_error)?;
    let exceeds = exceeds(builder.unshared().map_err(build_error)?);
    Ok((may_be_due || exceeds).then_some(Untidy {
        may_be_due,
        exceeds,
        space,
        free: disk.free,
    }))
}

/// Collects what the policy does not keep. Blocks.
pub(super) fn tidy(engine: &Engine, untidy: &Untidy) -> Result<()> {
    let builder = engine.builder(BTreeMap::new());
    let due = untidy.may_be_due && builder.tidying_is_due(DAY).map_err(build_error)?;
    if !due && !untidy.exceeds {
        return Ok(()); // somebody else does it, or there is nothing yet
    }
    if due {
        builder.forget_files(OLD).map_err(build_error)?;
    }
    let records = builder.usage().map_err(build_error)?;
    let before = time::now_nanos() - OLD * NANOS;
    let ids = unwanted(records, before, untidy.space, untidy.free);
    if !ids.is_empty() {
        let pruned = builder.prune_only(false, &ids).map_err(build_error)?;
        tracing::info!(
            records = pruned.ids.len(),
            bytes = pruned.bytes,
            "build cache collected"
        );
    }
    Ok(())
}

/// The records that a policy does not keep: those used last before a time, and the least recently
/// used ones of the rest, as long as they are too much.
fn unwanted(
    records: Vec<CacheRecord>,
    before: i64,
    space: CacheSpace,
    free: u64,
) -> HashSet<String> {
    let own = records
        .into_iter()
        .filter(|record| !record.shared && !record.in_use);
    let (old, rest): (Vec<_>, Vec<_>) = own.partition(|record| record.last_used < before);
    let freed: u64 = old.iter().map(|record| record.size).sum();
    let total = rest.iter().map(|record| record.size).sum();
    let mut ids = within(rest, space.keep(total, free.saturating_add(freed)), total);
    ids.extend(old.into_iter().map(|record| record.id));
    ids
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
    fn a_policy_keeps_what_is_young_and_fits() {
        let disk = Disk {
            size: 1000,
            free: 300,
        };
        let space = disk.policy(None);
        let expected = CacheSpace {
            reserved: 100,
            max_used: 600,
            min_free: 200,
        };
        assert_eq!(space, expected);
        assert_eq!(disk.policy(Some(40)).reserved, 40);
        assert_eq!(disk.policy(Some(0)).keep(5, 300), Some(1));
        let mut records = vec![
            record("ancient", 1, 5),
            record("old", 400, 20),
            record("new", 400, 30),
            record("image", 400, 1),
            record("used", 400, 1),
        ];
        records[3].shared = true;
        records[4].in_use = true;
        let gone = |space, free| {
            let ids = unwanted(records.clone(), 10, space, free);
            let mut ids: Vec<String> = ids.into_iter().collect();
            ids.sort();
            ids
        };
        assert_eq!(gone(space, 300), ["ancient", "old"]);
        assert_eq!(gone(disk.policy(Some(900)), 300), ["ancient"]);
        assert_eq!(gone(disk.policy(Some(900)), 0), ["ancient", "old"]);
        assert_eq!(gone(disk.policy(Some(10)), 300), ["ancient", "new", "old"]);
    }
}
