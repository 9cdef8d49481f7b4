//! Base images of other platforms. A name stands for one image, as a rule for one that runs here;
//! what it stands for elsewhere is noted beside it.

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
    ) -> Result<Option<Digest>, BuildError> {
        let row: Option<String> = self.database.read(|db| {
            let sql = "SELECT image FROM build_base WHERE name = ? AND platform = ?";
            let mut statement = db.prepare_cached(sql)?;
            let found =
                statement.query_row([name.to_string(), platform.to_string()], |row| row.get(0));
            Ok::<_, BuildError>(found.optional()?)
        })?;
        Ok(row.and_then(|text| text.parse().ok()))
    }

    /// Notes what a name stands for on a platform.
    pub(crate) fn note_foreign_base(
        &self,
        name: &ImageRef,
        platform: &Platform,
        image: &Digest,
    ) -> Result<(), BuildError> {
        self.database.write(Durability::Relaxed, |db| {
            db.execute(
                "INSERT OR REPLACE INTO build_base (name, platform, image) VALUES (?, ?, ?)",
                [name.to_string(), platform.to_string(), image.to_string()],
            )?;
            Ok::<_, BuildError>(())
        })
    }
}
