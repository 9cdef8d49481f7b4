//! Base images of other platforms. A name stands for one image, as a rule for one that runs here;
//! what it stands for elsewhere is noted beside it, and believed as long as the name stays with the
//! image it had here then.

use corten_db::Durability;
use corten_oci::{Digest, ImageRef, Platform};
use rusqlite::OptionalExtension;

use super::Cache;
use crate::error::BuildError;

impl Cache {
    /// The image that a name stands for on a platform, if that is known.
    pub(crate) fn foreign_base(
        &self,
        name: &ImageRef,
        platform: &Platform,
        beside: Option<&Digest>,
    ) -> Result<Option<Digest>, BuildError> {
        let row: Option<String> = self.database.read(|db| {
            let sql = "SELECT image FROM build_base WHERE name = ? AND platform = ? AND beside = ?";
            let mut statement = db.prepare_cached(sql)?;
            let found = statement.query_row(row(name, platform, beside), |row| row.get(0));
            Ok::<_, BuildError>(found.optional()?)
        })?;
        Ok(row.and_then(|text| text.parse().ok()))
    }

    /// Notes what a name stands for on a platform.
    pub(crate) fn note_foreign_base(
        &self,
        name: &ImageRef,
        platform: &Platform,
        beside: Option<&Digest>,
        image: &Digest,
    ) -> Result<(), BuildError> {
        self.database.write(Durability::Relaxed, |db| {
            db.execute(
                "INSERT OR REPLACE INTO build_base (name, platform, beside, image)
                 VALUES (?1, ?2, ?3, ?4)",
                rusqlite::params_from_iter(
                    row(name, platform, beside)
                        .into_iter()
                        .chain([image.to_string()]),
                ),
            )?;
            Ok::<_, BuildError>(())
        })
    }
}

/// `beside`: the image that the name stands for here, if there is one.
fn row(name: &ImageRef, platform: &Platform, beside: Option<&Digest>) -> [String; 3] {
    let beside = beside.map(ToString::to_string).unwrap_or_default();
    [name.to_string(), platform.to_string(), beside]
}
