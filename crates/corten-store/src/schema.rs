//! The store's tables.

use corten_db::Schema;

/// Tables of blobs, layers, images and leases.
pub const SCHEMA: Schema = Schema {
    name: "store",
    migrations: &[V1, V2, V3, V4, V5, V6],
};

const V1: &str = "
-- A layer directory. boot: made in that boot and not yet synced (NULL: durable).
-- pending: JSON of what only the layers below can settle.
CREATE TABLE layer (
    diff_id TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    boot TEXT,
    pending TEXT
) STRICT, WITHOUT ROWID;

-- Blobs that are known to be a layer, in the order they became known.
CREATE TABLE layer_blob (
    diff_id TEXT NOT NULL,
    blob TEXT NOT NULL,
    size INTEGER NOT NULL,
    media_type TEXT NOT NULL,
    UNIQUE (diff_id, blob)
) STRICT;
CREATE INDEX layer_blob_blob ON layer_blob (blob);

CREATE TABLE image (
    id TEXT PRIMARY KEY,
    config BLOB NOT NULL,
    size INTEGER NOT NULL,
    manifest TEXT,
    manifest_type TEXT,
    stored_at INTEGER NOT NULL
) STRICT;

CREATE TABLE image_layer (
    image TEXT NOT NULL,
    position INTEGER NOT NULL,
    diff_id TEXT NOT NULL,
    PRIMARY KEY (image, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX image_layer_diff_id ON image_layer (diff_id);

-- domain/path:tag
CREATE TABLE image_tag (
    name TEXT PRIMARY KEY,
    image TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX image_tag_image ON image_tag (image);

-- domain/path@digest of a manifest
CREATE TABLE image_digest (
    name TEXT PRIMARY KEY,
    image TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX image_digest_image ON image_digest (image);

-- Who else keeps layers and images from being collected.
CREATE TABLE hold (
    owner TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('layer', 'image')),
    object TEXT NOT NULL,
    PRIMARY KEY (owner, kind, object)
) STRICT, WITHOUT ROWID;
CREATE INDEX hold_object ON hold (kind, object);
";

/// What lists show of an image's config. NULL in `created`: not read from it yet. The index has
/// all that lists need, so that the pages of the configs are not read for them.
const V2: &str = "
ALTER TABLE image ADD COLUMN created INTEGER;
ALTER TABLE image ADD COLUMN config_size INTEGER;
ALTER TABLE image ADD COLUMN os TEXT;
ALTER TABLE image ADD COLUMN architecture TEXT;
ALTER TABLE image ADD COLUMN variant TEXT;
ALTER TABLE image ADD COLUMN labels TEXT;
CREATE INDEX image_listed ON image (created, id, size, manifest, manifest_type, config_size, os,
    architecture, variant, labels);
";

/// What layers were settled to: for each layer and the chain id of what is below it (whose diff
/// ids are in `below`, bottom first), whether there is anything.
const V3: &str = "
CREATE TABLE settled (
    diff_id TEXT NOT NULL,
    base TEXT NOT NULL,
    below TEXT NOT NULL,
    any INTEGER NOT NULL,
    PRIMARY KEY (diff_id, base)
) STRICT, WITHOUT ROWID;
-- The layer is what a build step wrote, so that the tar written of it has its digest.
ALTER TABLE layer ADD COLUMN made_here INTEGER;
-- When it was last given a name with a tag, in nanoseconds since the epoch.
ALTER TABLE image ADD COLUMN tagged_at INTEGER;

-- Collections are counted; what one found unneeded goes when nobody can count on it any more.
CREATE TABLE collection (
    id INTEGER PRIMARY KEY CHECK (id = 0),
    epoch INTEGER NOT NULL
) STRICT;
INSERT INTO collection (id, epoch) VALUES (0, 1);
CREATE TABLE condemned (
    kind TEXT NOT NULL CHECK (kind IN ('layer', 'blob')),
    object TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    PRIMARY KEY (kind, object)
) STRICT, WITHOUT ROWID;
";

/// What images were built with beside their manifests: an index (NULL: none), the blobs it leads
/// to, and the annotations of a layout's list as JSON. An image of which there is a row has a
/// manifest of its own making.
const V4: &str = "
CREATE TABLE image_index (
    image TEXT PRIMARY KEY,
    digest TEXT,
    annotations TEXT
) STRICT, WITHOUT ROWID;
CREATE TABLE image_attached (
    image TEXT NOT NULL,
    blob TEXT NOT NULL,
    PRIMARY KEY (image, blob)
) STRICT, WITHOUT ROWID;
";

/// Whether that is what the image was pulled with: a build without such things leaves it alone.
const V5: &str = "
ALTER TABLE image_index ADD COLUMN pulled INTEGER NOT NULL DEFAULT 0;
";

/// What a name with a tag came with: two names may be one image, and yet have a manifest each.
const V6: &str = "
CREATE TABLE tag_origin (
    name TEXT PRIMARY KEY REFERENCES image_tag (name) ON DELETE CASCADE,
    image TEXT NOT NULL,
    manifest TEXT NOT NULL,
    list TEXT
) STRICT, WITHOUT ROWID;
CREATE TABLE tag_origin_blob (
    name TEXT NOT NULL REFERENCES tag_origin (name) ON DELETE CASCADE,
    blob TEXT NOT NULL,
    PRIMARY KEY (name, blob)
) STRICT, WITHOUT ROWID;
";
