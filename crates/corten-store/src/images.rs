//! Images: configs, the names they go by, and what is needed to push them.

mod docker_manifest;
mod index;
mod listing;
mod origin;
mod sent;

use std::sync::Arc;

use corten_db::{Database, Durability};
use corten_oci::image_spec::ImageConfiguration;
use corten_oci::{DiffId, Digest, ImageRef};
use rusqlite::{Connection, OptionalExtension};

use crate::blobs::Blobs;
use crate::error::StoreError;
use crate::layers::Layers;

use docker_manifest::Manifest;

pub use index::{Attached, ImageIndex, Made};
pub use listing::{ImageSummary, ListedImage, created_nanos};
pub use origin::NamedPlan;
pub use sent::PushPlan;

/// An image's id: the digest of its config.
pub type ImageId = Digest;

/// Largest manifest that is read (distribution-spec: registries may limit them to 4 MiB).
const MAX_MANIFEST: usize = 4 << 20;
/// Shortest id prefix that is taken as one.
const MIN_PREFIX: usize = 1;

/// An image that is here.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of its config.
    pub id: ImageId,
    /// The config, parsed.
    pub config: Arc<ImageConfiguration>,
    /// The config, byte for byte.
    pub raw_config: Vec<u8>,
    /// Bytes of file content of all its layers.
    pub size: u64,
    /// Its layers, bottom first.
    pub layers: Vec<DiffId>,
    /// Its names with tags.
    pub repo_tags: Vec<ImageRef>,
    /// The names and manifest digests it was pulled or pushed by.
    pub repo_digests: Vec<ImageRef>,
    /// The manifest it was pulled or pushed with.
    pub manifest: Option<Digest>,
    /// When it came here, in seconds since the epoch.
    pub stored_at: i64,
    /// When it was last given a name with a tag, in nanoseconds since the epoch.
    pub tagged_at: Option<i64>,
}

/// The images of a store.
#[derive(Debug, Clone)]
pub struct Images {
    database: Database,
    blobs: Blobs,
    layers: Layers,
}

fn damaged(what: &'static str, object: impl ToString, reason: impl ToString) -> StoreError {
    StoreError::Damaged {
        what,
        object: object.to_string(),
        reason: reason.to_string(),
    }
}

fn delete_rows(db: &Connection, id: &ImageId) -> Result<(), StoreError> {
    for statement in [
        "DELETE FROM image_tag WHERE image = ?",
        "DELETE FROM image_digest WHERE image = ?",
        "DELETE FROM image_layer WHERE image = ?",
        "DELETE FROM image_index WHERE image = ?",
        "DELETE FROM image_attached WHERE image = ?",
        "DELETE FROM image WHERE id = ?",
    ] {
        db.execute(statement, [id.as_str()])?;
    }
    Ok(())
}

fn set_tag(db: &Connection, name: &str, id: &ImageId) -> Result<(), StoreError> {
    db.execute(
        "INSERT INTO image_tag (name, image) VALUES (?1, ?2)
         ON CONFLICT (name) DO UPDATE SET image = excluded.image",
        [name, id.as_str()],
    )?;
    origin::forget_others(db, name, id)?;
    let now = i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
    db.execute(
        "UPDATE image SET tagged_at = ?2 WHERE id = ?1",
        rusqlite::params![id.as_str(), now],
    )?;
    Ok(())
}

fn set_manifest(
    db: &Connection,
    id: &ImageId,
    manifest: Option<(&Digest, &str)>,
) -> Result<(), StoreError> {
    let (digest, media_type) = manifest.unzip();
    db.execute(
        "UPDATE image SET manifest = ?2, manifest_type = ?3 WHERE id = ?1",
        rusqlite::params![id.as_str(), digest.map(Digest::as_str), media_type],
    )?;
    Ok(())
}

fn set_repo_digest(db: &Connection, name: &ImageRef, id: &ImageId) -> Result<(), StoreError> {
    db.execute(
        "INSERT INTO image_digest (name, image) VALUES (?1, ?2)
         ON CONFLICT (name) DO UPDATE SET image = excluded.image",
        [&name.to_string(), id.as_str()],
    )?;
    Ok(())
}

impl Images {
    pub(crate) fn new(database: Database, blobs: Blobs, layers: Layers) -> Self {
        Self {
            database,
            blobs,
            layers,
        }
    }

    /// Stores an image whose layers are here, durably. `manifest`: digest and media type of
    /// the manifest it was pulled with, a blob of this store.
    ///
    /// # Errors
    /// The config cannot be parsed, a layer is missing, or the store cannot be written.
    pub fn put(
        &self,
        raw_config: &[u8],
        manifest: Option<(&Digest, &str)>,
    ) -> Result<ImageId, StoreError> {
        self.put_named(raw_config, manifest, &[])
    }

    /// As [`put`](Self::put), and names it in the same transaction: whoever prunes images
    /// without a name never sees it without. Names with digests are those that a registry
    /// knows it by.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn put_named(
        &self,
        raw_config: &[u8],
        manifest: Option<(&Digest, &str)>,
        names: &[ImageRef],
    ) -> Result<ImageId, StoreError> {
        let with = manifest.map(|(digest, media_type)| Made {
            manifest: Some((digest.clone(), media_type.to_owned())),
            ..Made::default()
        });
        self.put_noting(raw_config, names, |db, id| {
            if let Some(with) = &with {
                set_manifest(db, id, with.manifest())?;
                index::set_pulled(db, id)?;
            }
            Ok(with.as_ref())
        })
    }

    /// As [`put_named`](Self::put_named), of an image that was made here: what it was made with
    /// takes the place of what was known before. One made with nothing keeps what it was pulled
    /// with: that came from elsewhere, and a build that says nothing does not speak against it.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn put_made(
        &self,
        raw_config: &[u8],
        made: &Made,
        names: &[ImageRef],
    ) -> Result<ImageId, StoreError> {
        if *made == Made::default()
            && let Some(id) = self.made_before(raw_config, names)?
        {
            return Ok(id);
        }
        self.put_noting(raw_config, names, |db, id| {
            let told = index::is_of_a_build(db, id)?;
            if *made == Made::default() && !told {
                return Ok(None);
            }
            // A manifest that it was merely pushed with is as good as any.
            if made.manifest.is_some() || told {
                set_manifest(db, id, made.manifest())?;
            }
            index::note(db, id, made)?;
            Ok(Some(made))
        })
    }

    /// As [`put_made`](Self::put_made), of an image that was pulled with its index.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn put_pulled(
        &self,
        raw_config: &[u8],
        with: &Made,
        names: &[ImageRef],
    ) -> Result<ImageId, StoreError> {
        self.put_noting(raw_config, names, |db, id| {
            set_manifest(db, id, with.manifest())?;
            index::note(db, id, with)?;
            index::set_pulled(db, id)?;
            Ok(Some(with))
        })
    }

    /// The id of an image that was made with nothing, if it is here as it is to be, names and all: an
    /// unchanged build has nothing to write, and so nothing to wait for but what was lost and made
    /// again since.
    ///
    /// # Errors
    /// The database cannot be read, or what was made again cannot be synced.
    pub fn made_before(
        &self,
        raw_config: &[u8],
        names: &[ImageRef],
    ) -> Result<Option<ImageId>, StoreError> {
        let id = Digest::of(raw_config);
        Ok(self.is_stored(&id, names)?.then_some(id))
    }

    fn is_stored(&self, id: &ImageId, names: &[ImageRef]) -> Result<bool, StoreError> {
        let found = self.database.read(|db| {
            if index::is_of_a_build(db, id)? {
                return Ok(None);
            }
            let mut statement = db.prepare_cached("SELECT stored_at FROM image WHERE id = ?")?;
            let stored: Option<i64> = statement
                .query_row([id.as_str()], |row| row.get(0))
                .optional()?;
            let Some(stored) = stored else {
                return Ok(None);
            };
            for name in names {
                let text = name.to_string();
                let has = if name.digest().is_some() {
                    digest_holder(db, &text)?
                } else {
                    holder(db, &name.clone().or_latest().to_string())?
                };
                if has.as_ref() != Some(id) {
                    return Ok(None);
                }
            }
            let mut statement =
                db.prepare_cached("SELECT diff_id FROM image_layer WHERE image = ?")?;
            let rows = statement.query_map([id.as_str()], |row| row.get::<_, String>(0))?;
            let layers = rows.collect::<Result<Vec<_>, _>>()?;
            Ok::<_, StoreError>(Some((stored, layers)))
        })?;
        let Some((stored, layers)) = found else {
            return Ok(false);
        };
        let mut stack = Vec::new();
        for layer in layers {
            let layer: DiffId = layer.parse().map_err(|e| damaged("layer", &layer, e))?;
            if !self.layers.has(&layer)? {
                return Ok(false);
            }
            stack.push(layer);
        }
        if !self.blobs.has(id) {
            return Ok(false);
        }
        // What was lost may have been made again since the image was stored, when all of it was
        // synced.
        self.layers.make_durable(&stack)?;
        if !self.blobs.was_named_by(id, stored) {
            self.blobs.sync_names()?;
        }
        Ok(true)
    }

    /// `note` tells what the names come with, if that is anything new.
    fn put_noting<'a>(
        &self,
        raw_config: &[u8],
        names: &[ImageRef],
        note: impl FnOnce(&Connection, &ImageId) -> Result<Option<&'a Made>, StoreError>,
    ) -> Result<ImageId, StoreError> {
        let id = Digest::of(raw_config);
        let config = parse(raw_config).map_err(|e| damaged("image config", &id, e))?;
        let summary =
            ImageSummary::read(raw_config).map_err(|e| damaged("image config", &id, e))?;
        let layers = diff_ids(&config, &id)?;
        let mut size = 0;
        for diff_id in &layers {
            let info = self.layers.info(diff_id)?;
            size += info
                .ok_or_else(|| StoreError::NoSuchLayer(diff_id.clone()))?
                .size;
        }
        self.layers.check_links(&layers)?;
        self.blobs.put_bytes(raw_config)?;
        self.layers.make_durable(&layers)?;
        self.blobs.sync_names()?;
        self.database.write(Durability::Synced, |db| {
            db.execute(
                "INSERT INTO image (id, config, size, stored_at) VALUES (?1, ?2, ?3, unixepoch())
                 ON CONFLICT (id) DO NOTHING",
                rusqlite::params![
                    id.as_str(),
                    raw_config,
                    i64::try_from(size).unwrap_or(i64::MAX)
                ],
            )?;
            summary.store(db, &id)?;
            let with = note(db, &id)?;
            for (position, diff_id) in layers.iter().enumerate() {
                db.execute(
                    "INSERT OR IGNORE INTO image_layer (image, position, diff_id) VALUES (?, ?, ?)",
                    rusqlite::params![
                        id.as_str(),
                        i64::try_from(position).unwrap_or(i64::MAX),
                        diff_id.digest().as_str()
                    ],
                )?;
            }
            for name in names {
                if name.digest().is_some() {
                    set_repo_digest(db, name, &id)?;
                } else {
                    let name = name.clone().or_latest().to_string();
                    set_tag(db, &name, &id)?;
                    if let Some(with) = with {
                        origin::note(db, &name, &id, with)?;
                    }
                }
            }
            Ok::<_, StoreError>(())
        })?;
        Ok(id)
    }

    /// Gives an image a name; tells which other image had it.
    ///
    /// # Errors
    /// The image is not here, or the database cannot be written.
    pub fn tag(&self, name: &ImageRef, id: &ImageId) -> Result<Option<ImageId>, StoreError> {
        self.tag_like(name, id, None)
    }

    /// As [`tag`](Self::tag); what the name `like` of the image came with, is the new one's as
    /// well.
    ///
    /// # Errors
    /// As [`tag`](Self::tag).
    pub fn tag_like(
        &self,
        name: &ImageRef,
        id: &ImageId,
        like: Option<&ImageRef>,
    ) -> Result<Option<ImageId>, StoreError> {
        let name = name.clone().or_latest().to_string();
        let like = like.map(|like| like.clone().or_latest().to_string());
        self.database.write(Durability::Synced, |db| {
            if !Self::has_in(db, id)? {
                return Err(StoreError::NoSuchImage(id.to_string()));
            }
            let previous = holder(db, &name)?;
            set_tag(db, &name, id)?;
            if let Some(like) = &like
                && holder(db, like)?.as_ref() == Some(id)
            {
                origin::copy(db, like, &name)?;
            }
            Ok(previous.filter(|previous| previous != id))
        })
    }

    /// Takes a name away; tells which image had it.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn untag(&self, name: &ImageRef) -> Result<Option<ImageId>, StoreError> {
        let text = name.to_string();
        self.database.write(Durability::Synced, |db| {
            if name.digest().is_some() {
                let id = digest_holder(db, &text)?;
                db.execute("DELETE FROM image_digest WHERE name = ?", [&text])?;
                return Ok(id);
            }
            let text = name.clone().or_latest().to_string();
            let id = holder(db, &text)?;
            db.execute("DELETE FROM image_tag WHERE name = ?", [&text])?;
            Ok(id)
        })
    }

    /// Remembers that an image is known in a registry by a manifest's digest.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn add_repo_digest(&self, name: &ImageRef, id: &ImageId) -> Result<(), StoreError> {
        self.database
            .write(Durability::Synced, |db| set_repo_digest(db, name, id))
    }

    /// One image.
    ///
    /// # Errors
    /// [`StoreError::NoSuchImage`], or the row is damaged.
    pub fn get(&self, id: &ImageId) -> Result<Image, StoreError> {
        let found = self.select(Some(id))?.pop();
        found.ok_or_else(|| StoreError::NoSuchImage(id.to_string()))
    }

    /// Every image, newest first.
    ///
    /// # Errors
    /// A row is damaged.
    pub fn list(&self) -> Result<Vec<Image>, StoreError> {
        let mut images = self.select(None)?;
        images.sort_by(|a, b| {
            b.config
                .created()
                .cmp(a.config.created())
                .then_with(|| a.id.cmp(&b.id))
        });
        Ok(images)
    }

    /// The image a name, id or unambiguous id prefix stands for.
    ///
    /// # Errors
    /// [`StoreError::NoSuchImage`] or [`StoreError::AmbiguousId`].
    pub fn resolve(&self, text: &str) -> Result<ImageId, StoreError> {
        if let Ok(name) = text.parse::<ImageRef>()
            && let Some(id) = self.named(&name)?
        {
            return Ok(id);
        }
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        let is_prefix = prefix.len() >= MIN_PREFIX
            && prefix.len() <= 64
            && prefix
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if is_prefix {
            let matching: Vec<String> = self.database.read(|db| {
                let mut statement =
                    db.prepare_cached("SELECT id FROM image WHERE id GLOB ? LIMIT 2")?;
                let rows = statement.query_map([format!("sha256:{prefix}*")], |row| row.get(0))?;
                Ok::<_, StoreError>(rows.collect::<Result<_, _>>()?)
            })?;
            match matching.as_slice() {
                [id] => return id.parse().map_err(|e| damaged("image id", id, e)),
                [_, _] => return Err(StoreError::AmbiguousId(prefix.into())),
                _ => {}
            }
        }
        Err(StoreError::NoSuchImage(shown(text)))
    }

    /// The names in a repository: those with tags, and those with digests, each sorted.
    ///
    /// # Errors
    /// The database cannot be read, or a name is damaged.
    pub fn names_in(
        &self,
        repository: &ImageRef,
    ) -> Result<(Vec<ImageRef>, Vec<ImageRef>), StoreError> {
        let name = repository.name();
        self.database.read(|db| {
            // The characters after `:` and `@` bound what begins with the name and them.
            let tagged = "SELECT name FROM image_tag WHERE name > ?1 || ':' AND name < ?1 || ';'
                          ORDER BY name";
            let by_digest = "SELECT name FROM image_digest
                             WHERE name > ?1 || '@' AND name < ?1 || 'A' ORDER BY name";
            let names = |sql: &str| -> Result<Vec<ImageRef>, StoreError> {
                let mut statement = db.prepare_cached(sql)?;
                let mut rows = statement.query([&name])?;
                let mut found = Vec::new();
                while let Some(row) = rows.next()? {
                    let text: String = row.get(0)?;
                    found.push(text.parse().map_err(|e| damaged("name", &text, e))?);
                }
                Ok(found)
            };
            Ok((names(tagged)?, names(by_digest)?))
        })
    }

    /// The image that has exactly this name (`:latest` where it has neither tag nor digest).
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn named(&self, name: &ImageRef) -> Result<Option<ImageId>, StoreError> {
        self.database.read(|db| match name.digest() {
            None => holder(db, &name.clone().or_latest().to_string()),
            Some(digest) => {
                let by_digest = name.with_digest(digest.clone()).to_string();
                match digest_holder(db, &by_digest)? {
                    Some(id) => Ok(Some(id)),
                    // `name@ID` names an image of this machine by its own id.
                    None => Ok(Self::has_in(db, digest)?.then(|| digest.clone())),
                }
            }
        })
    }

    /// Whether an image is here, within a transaction of the caller's on the same database.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn has_in(db: &Connection, id: &ImageId) -> Result<bool, StoreError> {
        Ok(db
            .prepare_cached("SELECT 1 FROM image WHERE id = ?")?
            .exists([id.as_str()])?)
    }

    /// The images that have a layer.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn with_layer(&self, diff_id: &DiffId) -> Result<Vec<ImageId>, StoreError> {
        self.database.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT DISTINCT image FROM image_layer WHERE diff_id = ? ORDER BY image",
            )?;
            let mut rows = statement.query([diff_id.digest().as_str()])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                let text: String = row.get(0)?;
                found.push(text.parse().map_err(|e| damaged("image id", &text, e))?);
            }
            Ok(found)
        })
    }

    /// The repositories that images came from which have this blob for their configuration,
    /// manifest or index, or for something that their index leads to.
    ///
    /// # Errors
    /// The database cannot be read, or a name is damaged.
    pub fn repositories_of(&self, blob: &Digest) -> Result<Vec<ImageRef>, StoreError> {
        self.database.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT name FROM image_digest WHERE image IN (
                     SELECT id FROM image WHERE id = ?1 OR manifest = ?1
                     UNION SELECT image FROM image_index WHERE digest = ?1
                     UNION SELECT image FROM image_attached WHERE blob = ?1
                     UNION SELECT image FROM tag_origin WHERE manifest = ?1 OR list = ?1
                     UNION SELECT image FROM tag_origin JOIN tag_origin_blob USING (name)
                         WHERE blob = ?1)
                 ORDER BY name",
            )?;
            let mut rows = statement.query([blob.as_str()])?;
            let mut found: Vec<ImageRef> = Vec::new();
            while let Some(row) = rows.next()? {
                let text: String = row.get(0)?;
                let name: ImageRef = text.parse().map_err(|e| damaged("name", &text, e))?;
                if found.iter().all(|other| other.name() != name.name()) {
                    found.push(name);
                }
            }
            Ok(found)
        })
    }

    /// The blobs that a manifest names; `None`: it is not here, or none. Reads the file only: a
    /// collection asks within its transaction.
    pub(crate) fn named_by(&self, manifest: &Digest) -> Result<Option<Vec<Digest>>, StoreError> {
        let bytes = match self.blobs.open(manifest) {
            Ok(file) => {
                let mut bytes = Vec::new();
                std::io::Read::read_to_end(
                    &mut std::io::Read::take(file, MAX_MANIFEST as u64),
                    &mut bytes,
                )
                .map_err(crate::error::at("read", self.blobs.path(manifest)))?;
                bytes
            }
            Err(StoreError::NoSuchBlob(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) else {
            return Ok(None);
        };
        let layers = manifest.layers.into_iter().map(|layer| layer.digest);
        Ok(Some(layers.chain([manifest.config.digest]).collect()))
    }

    /// Writes the blob of an image's config again, if it is one; its row has it whole.
    pub(crate) fn rewrite_config(&self, digest: &Digest) -> Result<bool, StoreError> {
        match self.get(digest) {
            Ok(image) => Ok(self.blobs.put_bytes(&image.raw_config)? == *digest),
            Err(StoreError::NoSuchImage(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes an image's rows and names. Its bytes go with the next garbage collection.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn delete(&self, id: &ImageId) -> Result<(), StoreError> {
        self.database
            .write(Durability::Synced, |db| delete_rows(db, id))
    }

    /// As [`delete`](Self::delete), unless the image has meanwhile been given a name that is
    /// not among `known`, or `needed`, asked in the same transaction, says so. Tells whether
    /// it is deleted; if not, nothing is changed.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn delete_unless(
        &self,
        id: &ImageId,
        known: &[&ImageRef],
        needed: impl FnOnce(&Connection) -> Result<bool, StoreError>,
    ) -> Result<bool, StoreError> {
        let known: Vec<String> = known.iter().map(ToString::to_string).collect();
        self.database.write(Durability::Synced, |db| {
            let mut statement = db.prepare_cached(
                "SELECT name FROM image_tag WHERE image = ?1
                 UNION ALL SELECT name FROM image_digest WHERE image = ?1",
            )?;
            let names = statement.query_map([id.as_str()], |row| row.get::<_, String>(0))?;
            for name in names {
                if !known.contains(&name?) {
                    return Ok(false);
                }
            }
            if needed(db)? {
                return Ok(false);
            }
            delete_rows(db, id)?;
            Ok(true)
        })
    }

    /// One image, or all of them, in no order.
    fn select(&self, only: Option<&ImageId>) -> Result<Vec<Image>, StoreError> {
        self.database.read(|db| {
            let mut tags = listing::names(db, "image_tag", only)?;
            let mut digests = listing::names(db, "image_digest", only)?;
            let mut sql =
                "SELECT id, config, size, manifest, stored_at, tagged_at FROM image".to_owned();
            if only.is_some() {
                sql.push_str(" WHERE id = ?");
            }
            let mut statement = db.prepare_cached(&sql)?;
            let mut rows = statement.query(rusqlite::params_from_iter(only.map(Digest::as_str)))?;
            let mut images = Vec::new();
            while let Some(row) = rows.next()? {
                let text: String = row.get(0)?;
                let id: ImageId = text.parse().map_err(|e| damaged("image id", &text, e))?;
                let raw_config: Vec<u8> = row.get(1)?;
                let config = parse(&raw_config).map_err(|e| damaged("image config", &id, e))?;
                let manifest: Option<String> = row.get(3)?;
                images.push(Image {
                    layers: diff_ids(&config, &id)?,
                    config: Arc::new(config),
                    raw_config,
                    size: u64::try_from(row.get::<_, i64>(2)?).unwrap_or_default(),
                    repo_tags: tags.remove(&text).unwrap_or_default(),
                    repo_digests: digests.remove(&text).unwrap_or_default(),
                    manifest: manifest.and_then(|m| m.parse().ok()),
                    stored_at: row.get(4)?,
                    tagged_at: row.get(5)?,
                    id,
                });
            }
            Ok(images)
        })
    }
}

/// A name as Docker repeats it in "No such image": with `:latest` where it has no tag.
fn shown(text: &str) -> String {
    text.parse::<ImageRef>()
        .map_or_else(|_| text.to_owned(), |name| name.or_latest().familiar())
}

fn holder(db: &Connection, name: &str) -> Result<Option<ImageId>, StoreError> {
    one_id(db, "SELECT image FROM image_tag WHERE name = ?", name)
}

fn digest_holder(db: &Connection, name: &str) -> Result<Option<ImageId>, StoreError> {
    one_id(db, "SELECT image FROM image_digest WHERE name = ?", name)
}

fn one_id(db: &Connection, sql: &str, name: &str) -> Result<Option<ImageId>, StoreError> {
    let id: Option<String> = db
        .prepare_cached(sql)?
        .query_row([name], |row| row.get(0))
        .optional()?;
    id.map(|id| id.parse().map_err(|e| damaged("image id", &id, e)))
        .transpose()
}

fn parse(raw: &[u8]) -> Result<ImageConfiguration, serde_json::Error> {
    let strict = serde_json::from_slice(raw);
    if strict.is_ok() {
        return strict;
    }
    // An image without layers: Docker leaves the list out, and Go programs write `null` for it.
    let mut document: serde_json::Value = serde_json::from_slice(raw)?;
    match document.get_mut("rootfs").and_then(|r| r.as_object_mut()) {
        Some(rootfs)
            if rootfs
                .get("diff_ids")
                .is_none_or(serde_json::Value::is_null) =>
        {
            rootfs.insert("diff_ids".to_owned(), serde_json::Value::Array(Vec::new()));
            serde_json::from_value(document)
        }
        _ => strict,
    }
}

fn diff_ids(config: &ImageConfiguration, id: &Digest) -> Result<Vec<DiffId>, StoreError> {
    config
        .rootfs()
        .diff_ids()
        .iter()
        .map(|text| text.parse().map_err(|e| damaged("image config", id, e)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;

    fn store(dir: &std::path::Path) -> Store {
        let database = Database::open(&dir.join("db"), &[crate::SCHEMA]).unwrap();
        Store::open(dir, database)
    }

    #[test]
    fn an_image_without_layers_need_not_list_none() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        for rootfs in [
            r#"{"type":"layers"}"#,
            r#"{"type":"layers","diff_ids":null}"#,
        ] {
            let config = format!(
                r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{rootfs}}}"#
            );
            let id = store.images().put(config.as_bytes(), None).unwrap();
            let image = store.images().get(&id).unwrap();
            assert_eq!((image.layers.len(), image.raw_config), (0, config.into()));
        }
        let wrong = br#"{"architecture":"amd64","os":"linux","rootfs":{"diff_ids":5}}"#;
        store.images().put(wrong, None).unwrap_err();
    }

    #[test]
    fn an_image_named_meanwhile_is_not_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let images = store.images();
        let config =
            br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        let old: ImageRef = "app:old".parse().unwrap();
        let id = images
            .put_named(config, None, std::slice::from_ref(&old))
            .unwrap();
        let seen = images.get(&id).unwrap();
        let known: Vec<&ImageRef> = seen.repo_tags.iter().collect();
        // Between the look and the deletion.
        let new: ImageRef = "app:new".parse().unwrap();
        images.tag(&new, &id).unwrap();
        assert!(!images.delete_unless(&id, &known, |_| Ok(false)).unwrap());
        let now = images.get(&id).unwrap();
        assert_eq!(now.repo_tags.len(), 2);
        assert!(now.tagged_at > seen.tagged_at && seen.tagged_at.is_some());
        images.untag(&new).unwrap();
        assert!(!images.delete_unless(&id, &known, |_| Ok(true)).unwrap());
        assert_eq!(images.named(&old).unwrap(), Some(id.clone()));
        assert!(images.delete_unless(&id, &known, |_| Ok(false)).unwrap());
        assert!(images.get(&id).is_err() && images.named(&old).unwrap().is_none());
    }
}
