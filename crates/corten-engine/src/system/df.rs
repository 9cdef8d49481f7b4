//! Disk usage.

use bollard_stubs::models::{BuildPruneResponse, VolumeUsageData};

use super::{DiskUsage, usage};
use crate::Filters;
use crate::containers::ListOptions;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::images::ImageListOptions;
use crate::parse::filters;
use crate::volumes;

type Result<T> = std::result::Result<T, EngineError>;

/// `docker system df`.
pub(super) async fn df(engine: &Engine) -> Result<DiskUsage> {
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
            for row in engine.database().read(volumes::store::all)? {
                let data = engine.layout().volume_data(&row.name);
                let used = VolumeUsageData {
                    size: usage::directory(&data),
                    ref_count: i64::try_from(row.users.len()).unwrap_or(i64::MAX),
                };
                let mut volume = volumes::model(engine, row);
                volume.usage_data = Some(used);
                volumes.push(volume);
            }
            let layers_size = usage::directory(&engine.layout().root().join("layers"));
            Ok(DiskUsage {
                layers_size,
                images,
                containers,
                volumes,
                build_cache: Vec::new(),
                builder_size: 0,
            })
        })
        .await
}

/// Removes build cache records. Blocks.
pub(super) fn prune_build_cache(
    engine: &Engine,
    all: bool,
    wanted: &Filters,
) -> Result<BuildPruneResponse> {
    filters::check(
        wanted,
        &[
            "until",
            "id",
            "parent",
            "type",
            "description",
            "inuse",
            "shared",
            "private",
        ],
    )?;
    let _ = (engine, all);
    Ok(BuildPruneResponse {
        caches_deleted: Some(Vec::new()),
        space_reclaimed: Some(0),
    })
}
