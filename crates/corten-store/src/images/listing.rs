//! Lists of images. What a list shows of an image's config is in columns of its row, and an
//! index has all of them: a list reads neither configs nor blobs.
//!
//! Images that were stored by versions without these columns have NULL there; the first list
//! reads their configs and fills the columns.

use std::collections::HashMap;

use corten_db::Durability;
use corten_oci::{DiffId, Digest, ImageRef};
use rusqlite::{Connection, OptionalExtension};
use serde::Deserialize;

use super::{ImageId, Images, damaged};
use crate::error::StoreError;

/// An image as lists show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedImage {
    /// Digest of its config.
    pub id: ImageId,
    /// Bytes of file content of all its layers.
    pub size: u64,
    /// What its config says.
    pub summary: ImageSummary,
    /// Its names with tags.
    pub repo_tags: Vec<ImageRef>,
    /// The names and manifest digests it was pulled or pushed by.
    pub repo_digests: Vec<ImageRef>,
    /// The manifest it came or went with.
    pub manifest: Option<Digest>,
    /// That manifest's media type.
    pub manifest_type: Option<String>,
}

/// What a list shows of an image's config (image-spec, config.md).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageSummary {
    /// When it was made, in nanoseconds since the epoch; 0 where it does not say.
    pub created: i64,
    /// Size of the config in bytes.
    pub config_size: u64,
    /// Operating system.
    pub os: String,
    /// Architecture.
    pub architecture: String,
    /// Variant of the architecture.
    pub variant: Option<String>,
    /// Labels.
    pub labels: HashMap<String, String>,
}

/// RFC 3339 text to nanoseconds since the epoch; 0 when absent or wrong.
pub fn created_nanos(text: Option<&str>) -> i64 {
    text.and_then(|t| t.parse::<jiff::Timestamp>().ok())
        .and_then(|t| i64::try_from(t.as_nanosecond()).ok())
        .unwrap_or(0)
}

impl ImageSummary {
    /// Reads it from a config. History and layers, most of it, are passed over.
    pub(super) fn read(raw_config: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Config {
            #[serde(default)]
            architecture: String,
            #[serde(default)]
            os: String,
            variant: Option<String>,
            created: Option<String>,
            config: Option<Inner>,
        }
        #[derive(Deserialize)]
        struct Inner {
            #[serde(rename = "Labels")]
            labels: Option<HashMap<String, String>>,
        }
        let config: Config = serde_json::from_slice(raw_config)?;
        Ok(Self {
            created: created_nanos(config.created.as_deref()),
            config_size: raw_config.len() as u64,
            os: config.os,
            architecture: config.architecture,
            variant: config.variant.filter(|v| !v.is_empty()),
            labels: config.config.and_then(|c| c.labels).unwrap_or_default(),
        })
    }

    /// Fills the columns of an image's row.
    pub(super) fn store(&self, db: &Connection, id: &ImageId) -> Result<(), StoreError> {
        let labels = (!self.labels.is_empty())
            .then(|| serde_json::to_string(&self.labels))
            .transpose()
            .map_err(|e| damaged("labels", id, e))?;
        db.prepare_cached(
            "UPDATE image SET created = ?2, config_size = ?3, os = ?4, architecture = ?5,
             variant = ?6, labels = ?7 WHERE id = ?1",
        )?
        .execute(rusqlite::params![
            id.as_str(),
            self.created,
            i64::try_from(self.config_size).unwrap_or(i64::MAX),
            self.os,
            self.architecture,
            self.variant,
            labels,
        ])?;
        Ok(())
    }
}

impl Images {
    /// Every image, newest first. One whose config cannot be read is left out, and logged.
    ///
    /// # Errors
    /// The database cannot be read, or a row is damaged.
    pub fn listed(&self) -> Result<Vec<ListedImage>, StoreError> {
        let (mut images, unread) = self.database.read(rows)?;
        if !unread.is_empty() {
            images.extend(self.fill(unread)?);
        }
        images.sort_by(|a, b| {
            let newest_first = b.summary.created.cmp(&a.summary.created);
            newest_first.then_with(|| a.id.cmp(&b.id))
        });
        Ok(images)
    }

    /// Completes images from their configs, and keeps what was found for the next list.
    fn fill(&self, unread: Vec<ListedImage>) -> Result<Vec<ListedImage>, StoreError> {
        let mut images = Vec::new();
        for mut image in unread {
            let raw: Option<Vec<u8>> = self.database.read(|db| {
                Ok::<_, StoreError>(
                    db.prepare_cached("SELECT config FROM image WHERE id = ?")?
                        .query_row([image.id.as_str()], |row| row.get(0))
                        .optional()?,
                )
            })?;
            let Some(raw) = raw else {
                continue; // removed meanwhile
            };
            match ImageSummary::read(&raw) {
                Ok(summary) => {
                    image.summary = summary;
                    images.push(image);
                }
                Err(error) => tracing::error!(image = %image.id, %error, "an image cannot be read"),
            }
        }
        let kept = self.database.write(Durability::Relaxed, |db| {
            images
                .iter()
                .try_for_each(|image| image.summary.store(db, &image.id))
        });
        if let Err(error) = kept {
            tracing::warn!(%error, "the next list of images reads their configs again");
        }
        Ok(images)
    }

    /// The layers of every image, bottom first.
    ///
    /// # Errors
    /// The database cannot be read, or a row is damaged.
    pub fn layers(&self) -> Result<HashMap<ImageId, Vec<DiffId>>, StoreError> {
        self.database.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT image, diff_id FROM image_layer ORDER BY image, position",
            )?;
            let mut rows = statement.query([])?;
            let mut found: HashMap<ImageId, Vec<DiffId>> = HashMap::new();
            while let Some(row) = rows.next()? {
                let (image, layer): (String, String) = (row.get(0)?, row.get(1)?);
                let image: ImageId = image.parse().map_err(|e| damaged("image id", &image, e))?;
                let layer = layer.parse().map_err(|e| damaged("layer", &image, e))?;
                found.entry(image).or_default().push(layer);
            }
            Ok(found)
        })
    }

    /// How many images there are.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn count(&self) -> Result<usize, StoreError> {
        let count: i64 = self.database.read(|db| {
            let count = db.query_row("SELECT count(*) FROM image", [], |row| row.get(0))?;
            Ok::<_, StoreError>(count)
        })?;
        Ok(usize::try_from(count).unwrap_or_default())
    }
}

/// What the index `image_listed` has, and nothing that it has not.
const LISTED: &str = "SELECT id, size, manifest, manifest_type, created, config_size, os,
     architecture, variant, labels FROM image";

/// The images that need no more reading, and those that do.
fn rows(db: &Connection) -> Result<(Vec<ListedImage>, Vec<ListedImage>), StoreError> {
    let mut tags = names(db, "image_tag", None)?;
    let mut digests = names(db, "image_digest", None)?;
    let mut statement = db.prepare_cached(LISTED)?;
    let mut rows = statement.query([])?;
    let (mut images, mut unread) = (Vec::new(), Vec::new());
    while let Some(row) = rows.next()? {
        let text: String = row.get(0)?;
        let id: ImageId = text.parse().map_err(|e| damaged("image id", &text, e))?;
        let manifest: Option<String> = row.get(2)?;
        let created: Option<i64> = row.get(4)?;
        let unsigned = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok()).unwrap_or_default();
        let labels: Option<String> = row.get(9)?;
        let labels = match labels {
            Some(text) => serde_json::from_str(&text).map_err(|e| damaged("labels", &id, e))?,
            None => HashMap::new(),
        };
        let image = ListedImage {
            size: unsigned(row.get(1)?),
            summary: ImageSummary {
                created: created.unwrap_or_default(),
                config_size: unsigned(row.get(5)?),
                os: row.get::<_, Option<_>>(6)?.unwrap_or_default(),
                architecture: row.get::<_, Option<_>>(7)?.unwrap_or_default(),
                variant: row.get(8)?,
                labels,
            },
            repo_tags: tags.remove(&text).unwrap_or_default(),
            repo_digests: digests.remove(&text).unwrap_or_default(),
            manifest: manifest.and_then(|m| m.parse().ok()),
            manifest_type: row.get(3)?,
            id,
        };
        let list = if created.is_some() {
            &mut images
        } else {
            &mut unread
        };
        list.push(image);
    }
    Ok((images, unread))
}

/// The names in one of the two tables of them, by image: of one image, or of all.
pub(super) fn names(
    db: &Connection,
    table: &'static str,
    only: Option<&ImageId>,
) -> Result<HashMap<String, Vec<ImageRef>>, StoreError> {
    let mut sql = format!("SELECT image, name FROM {table}");
    if only.is_some() {
        sql.push_str(" WHERE image = ?");
    }
    let mut statement = db.prepare_cached(&(sql + " ORDER BY name"))?;
    let mut rows = statement.query(rusqlite::params_from_iter(only.map(Digest::as_str)))?;
    let mut found: HashMap<String, Vec<ImageRef>> = HashMap::new();
    while let Some(row) = rows.next()? {
        let (image, name): (String, String) = (row.get(0)?, row.get(1)?);
        let name = name.parse().map_err(|e| damaged("name", &name, e))?;
        found.entry(image).or_default().push(name);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use corten_db::Database;

    use super::*;
    use crate::Store;

    fn config(n: u32) -> Vec<u8> {
        format!(
            r#"{{"architecture":"arm64","os":"linux","variant":"v8",
                "created":"2024-01-02T03:04:0{n}.6Z",
                "config":{{"Labels":{{"n":"{n}"}}}},
                "rootfs":{{"type":"layers","diff_ids":[]}},
                "history":[{{"created_by":"{}"}}]}}"#,
            "long ".repeat(2000)
        )
        .into_bytes()
    }

    fn store(schema: corten_db::Schema, path: &std::path::Path) -> Store {
        let database = Database::open(&path.join("db"), &[schema]).unwrap();
        Store::open(path, database)
    }

    #[test]
    fn lists_read_no_config() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(crate::SCHEMA, dir.path());
        let names = [["b:1", "a:1"], ["c:1", "d:1"]].map(|n| n.map(|n| n.parse().unwrap()));
        let first = store
            .images()
            .put_named(&config(1), None, &names[0])
            .unwrap();
        let second = store
            .images()
            .put_named(&config(2), None, &names[1])
            .unwrap();
        let listed = store.images().listed().unwrap();
        let ids: Vec<_> = listed.iter().map(|image| image.id.clone()).collect();
        assert_eq!(ids, [second, first], "newest first");
        assert_eq!(
            listed[1].repo_tags,
            [names[0][1].clone(), names[0][0].clone()]
        );
        assert_eq!(
            listed[0].summary,
            ImageSummary {
                created: 1_704_164_642_600_000_000,
                config_size: config(2).len() as u64,
                os: "linux".into(),
                architecture: "arm64".into(),
                variant: Some("v8".into()),
                labels: [("n".into(), "2".into())].into(),
            }
        );
        let plan: String = store
            .database()
            .read(|db| {
                let sql = format!("EXPLAIN QUERY PLAN {LISTED}");
                Ok::<_, StoreError>(db.query_row(&sql, [], |row| row.get("detail"))?)
            })
            .unwrap();
        assert!(plan.contains("COVERING INDEX image_listed"), "{plan}");
        assert_eq!(store.images().count().unwrap(), 2);
    }

    #[test]
    fn images_of_older_versions_are_completed_once() {
        let dir = tempfile::tempdir().unwrap();
        let older = corten_db::Schema {
            migrations: &crate::SCHEMA.migrations[..1],
            ..crate::SCHEMA
        };
        let (good, bad) = (Digest::of(&config(3)), Digest::of(b"{"));
        let database = Database::open(&dir.path().join("db"), &[older]).unwrap();
        database
            .write(Durability::Synced, |db| {
                for (id, raw) in [(&good, config(3)), (&bad, b"{".to_vec())] {
                    db.execute(
                        "INSERT INTO image (id, config, size, stored_at) VALUES (?, ?, 7, 0)",
                        rusqlite::params![id.as_str(), raw],
                    )?;
                }
                Ok::<_, StoreError>(())
            })
            .unwrap();
        drop(database);
        let store = store(crate::SCHEMA, dir.path());
        let listed = store.images().listed().unwrap();
        assert_eq!(listed.len(), 1, "the damaged one is left out");
        assert_eq!((&listed[0].id, listed[0].size), (&good, 7));
        assert_eq!(listed[0].summary, ImageSummary::read(&config(3)).unwrap());
        // From now on without the config.
        store
            .database()
            .write(Durability::Relaxed, |db| {
                db.execute("UPDATE image SET config = x'00'", [])?;
                Ok::<_, StoreError>(())
            })
            .unwrap();
        assert_eq!(store.images().listed().unwrap(), listed);
    }
}
