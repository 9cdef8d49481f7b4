//! Disk usage.

use std::collections::BTreeMap;

use bollard_stubs::models::{BuildCache, BuildCacheTypeEnum, VolumeUsageData};
use corten_build::RecordKind;

use super::cache_filters::Chosen;
use super::{DiskUsage, usage};
use crate::Filters;
use crate::containers::ListOptions;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::images::ImageListOptions;
use crate::parse::time;
use crate::volumes;

/// In a second.
pub(super) const NANOS: i64 = 1_000_000_000;

type Result<T> = std::result::Result<T, EngineError>;

/// `docker system df`.
pub(super) async fn df(engine: &Engine, cache: Filters) -> Result<DiskUsage> {
    let containers = engine
        .containers()
        .list(ListOptions {
            all: true,
            size: true,
            ..Default::default()
        })
        .await?;
    let mut images = engine
        .images()
        .list(ImageListOptions {
            all: true,
            shared_size: true,
            ..Default::default()
        })
        .await?;
    for image in &mut images {
        let using = containers
            .iter()
            .filter(|c| c.image_id.as_deref() == Some(image.id.as_str()));
        image.containers = i64::try_from(using.count()).unwrap_or(i64::MAX);
    }
    engine
        .blocking(move |engine| {
            let mut volumes = Vec::new();
            let rows = engine.database().read(volumes::store::all)?;
            // What has options is elsewhere, mostly: Docker leaves it out.
            for row in rows.into_iter().filter(|row| row.options.is_empty()) {
                let data = engine.layout().volume_data(&row.name);
                let used = VolumeUsageData {
                    size: usage::directory(&data),
                    ref_count: i64::try_from(row.users.len()).unwrap_or(i64::MAX),
                };
                let mut volume = volumes::model(engine, row);
                volume.usage_data = Some(used);
                volumes.push(volume);
            }
            let (build_cache, builder_size) = build_cache(engine, &cache)?;
            // Layers, their blobs, what has come of blobs that are not whole, and what is being
            // deleted.
            let root = engine.layout().root();
            let mut directories = engine.store().rubbish();
            directories.extend(["layers", "blobs"].map(|name| root.join(name)));
            let partial = i64::try_from(engine.store().partial_size()).unwrap_or(i64::MAX);
            let sizes = directories.iter().map(|path| usage::directory(path));
            let layers_size = sizes.fold(partial, i64::saturating_add);
            Ok(DiskUsage {
                layers_size,
                images,
                containers,
                volumes,
                build_cache,
                builder_size,
            })
        })
        .await
}

/// The build cache's records, and their bytes. Blocks.
fn build_cache(engine: &Engine, wanted: &Filters) -> Result<(Vec<BuildCache>, i64)> {
    let chosen = Chosen::by(wanted)?;
    let records = engine
        .builder(BTreeMap::new())
        .usage()
        .map_err(build_error)?;
    let mut total = 0;
    let mut list = Vec::new();
    for record in records.into_iter().filter(|record| chosen.takes(record)) {
        let size = i64::try_from(record.size).unwrap_or(i64::MAX);
        if !record.shared {
            total += size;
        }
        list.push(BuildCache {
            id: Some(record.id),
            typ: Some(kind(record.kind)),
            description: Some(record.description),
            in_use: Some(record.in_use),
            shared: Some(record.shared),
            size: Some(size),
            created_at: Some(time::rfc3339(record.created)),
            last_used_at: Some(time::rfc3339(record.last_used)),
            usage_count: i64::try_from(record.uses).ok(),
            ..Default::default()
        });
    }
    Ok((list, total))
}

/// A record's type, in the API's words.
pub(super) fn kind(kind: RecordKind) -> BuildCacheTypeEnum {
    match kind {
        RecordKind::Step => BuildCacheTypeEnum::REGULAR,
        RecordKind::CacheMount => BuildCacheTypeEnum::EXEC_CACHEMOUNT,
    }
}

pub(super) fn build_error(error: corten_build::BuildError) -> EngineError {
    EngineError::Other {
        context: "build cache".to_owned(),
        source: Box::new(error),
    }
}
