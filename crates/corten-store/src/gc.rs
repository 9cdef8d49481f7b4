//! Garbage collection and checking.
//!
//! Mark and sweep: kept are the layers of images and of holders' rows, a blob of each kept
//! layer, and configs and manifests of images with the blobs these name. It runs beside pulls
//! and builds: what somebody who holds a [`Lease`](crate::Lease) may count on is left for the
//! end of that lease. Rows of layers go before their bytes, and the locks of the layers are held
//! until the bytes have followed; blobs, which have no rows that tell whether they are here, are
//! moved away in the transaction. Everything is deleted after that, so that nothing half-removed
//! is ever used and nobody waits.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use corten_db::Durability;
use corten_oci::{DiffId, Digest, Digester};
use rusqlite::Connection;

use crate::Store;
use crate::condemned::{self, Kind};
use crate::error::{StoreError, at};
use crate::layers::Layers;
use crate::leases::Collector;
use crate::tmp::{self, Remove};
use crate::trash::Trash;

/// How long another collection is waited for, and how often.
const PATIENCE: (Duration, u32) = (Duration::from_millis(20), 50);

/// How a finding about a layer begins that was read and is not what it was.
const CORRUPT: &str = "it is corrupt: ";

/// Layers that are locked at a time, each with an open file.
const AT_ONCE: usize = 100;

/// What a collection removed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct GcReport {
    /// Layers removed.
    pub layers: Vec<DiffId>,
    /// Blobs removed.
    pub blobs: Vec<Digest>,
    /// Bytes that came free, as far as known.
    pub bytes: u64,
    /// Something was left because a pull or build may count on it, or another collection is
    /// going on.
    pub busy: bool,
}

/// What a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FindingKind {
    /// Work in progress whose process is gone.
    Temporary,
    /// A layer nothing needs, or that is not believed.
    Layer,
    /// A blob nothing needs, or that is corrupt.
    Blob,
    /// An image that lacks a layer.
    Image,
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Temporary => "temporary",
            Self::Layer => "layer",
            Self::Blob => "blob",
            Self::Image => "image",
        })
    }
}

/// Something a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is about.
    pub kind: FindingKind,
    /// Which one.
    pub object: String,
    /// What is wrong.
    pub detail: String,
    /// Whether it has been put right.
    pub repaired: bool,
    /// What is gone for good here; a registry may have it still.
    pub lost: Option<Lost>,
}

/// Something that an image needs and that only a registry can bring again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lost {
    /// A layer, of which no blob is left.
    Layer(DiffId),
    /// A blob.
    Blob(Digest),
}

struct Kept {
    layers: HashSet<DiffId>,
    blobs: HashSet<Digest>,
}

impl Store {
    /// Removes every layer and blob that nothing needs, and that nobody who works right now can
    /// count on; the rest goes when they are done (module `condemned`).
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub fn gc(&self) -> Result<GcReport, StoreError> {
        self.sweep_directories();
        self.collect(self.collector()?)
    }

    /// As [`gc`](Self::gc), but another collection is not waited for.
    pub(crate) fn gc_at_once(&self) -> Result<GcReport, StoreError> {
        self.collect(self.leases().collector()?)
    }

    fn collect(&self, collector: Option<Collector>) -> Result<GcReport, StoreError> {
        let mut report = GcReport::default();
        let Some(collector) = collector else {
            report.busy = true;
            return Ok(report);
        };
        self.condemn()?;
        // Whoever takes a lease from here on spares what it looks at.
        let oldest = self.leases().oldest()?;
        let mut trash = Trash::new(&self.tmp_path());
        loop {
            match self.carry_off_layers(oldest, &mut trash, &mut report) {
                Ok(AT_ONCE) => {}
                Ok(_) => break,
                Err(error) => {
                    self.dispose(trash);
                    return Err(error);
                }
            }
        }
        trash.keep();
        let removed = self.database().write(Durability::Relaxed, |db| {
            self.carry_off_blobs(db, oldest, &mut trash, &mut report)
        });
        if let Err(error) = removed {
            // No row was changed, so everything must be where it was.
            trash.put_back();
            self.dispose(trash);
            return Err(error);
        }
        // Not by need: a build may have mounted what is for layers that nothing names yet.
        let unsettled = self.layers().drop_unsettled(
            |diff_id| !matches!(self.layers().peek(diff_id), Ok(None)),
            &mut trash,
        );
        // The bytes go when nobody can be waiting for anything any more.
        drop(collector);
        self.dispose(trash);
        unsettled.map(|()| report)
    }

    /// Waits for another collection, which is short, but not for leases of older versions.
    fn collector(&self) -> Result<Option<Collector>, StoreError> {
        for _ in 0..PATIENCE.1 {
            if let Some(collector) = self.leases().collector()? {
                return Ok(Some(collector));
            }
            std::thread::sleep(PATIENCE.0);
        }
        Ok(None)
    }

    /// Notes what nothing needs, and that what is needed is. Rows of layers whose bytes are gone
    /// are forgotten: older versions could leave such when they were killed.
    fn condemn(&self) -> Result<(), StoreError> {
        let layers = self.layers().all()?;
        let blobs = self.blobs().all()?;
        self.database().write(Durability::Relaxed, |db| {
            let epoch = condemned::advance(db)?;
            // A row is written when the layer has its name, so none is early.
            for diff_id in Layers::rows_in(db)? {
                if !self.layers().is_on_disk(&diff_id) {
                    tracing::warn!(%diff_id, "a layer is gone; it is not believed any more");
                    Layers::forget_in(db, &diff_id)?;
                }
            }
            let kept = self.kept(db)?;
            let mut here = HashSet::new();
            for diff_id in &layers {
                let object = diff_id.digest().as_str();
                if kept.layers.contains(diff_id) && Layers::peek_in(db, diff_id)?.is_some() {
                    condemned::spare_in(db, Kind::Layer, object)?;
                } else {
                    condemned::condemn(db, Kind::Layer, object, epoch)?;
                    here.insert((Kind::Layer, object));
                }
            }
            for digest in &blobs {
                if kept.blobs.contains(digest) {
                    condemned::spare_in(db, Kind::Blob, digest.as_str())?;
                } else {
                    condemned::condemn(db, Kind::Blob, digest.as_str(), epoch)?;
                    here.insert((Kind::Blob, digest.as_str()));
                }
            }
            // What has gone in another way.
            for kind in [Kind::Layer, Kind::Blob] {
                for (object, since) in condemned::all(db, kind)? {
                    if since < epoch && !here.contains(&(kind, object.as_str())) {
                        condemned::spare_in(db, kind, &object)?;
                    }
                }
            }
            Ok(())
        })
    }

    /// Forgets layers that are condemned, were so before the oldest lease began, and are still
    /// not needed, and then moves them into `trash`; how many. Whoever wants to make one of
    /// them anew waits for that. One whose row is gone when this process dies is not believed,
    /// and condemned again.
    fn carry_off_layers(
        &self,
        oldest: Option<u64>,
        trash: &mut Trash,
        report: &mut GcReport,
    ) -> Result<usize, StoreError> {
        let locked = self.database().write(Durability::Relaxed, |db| {
            let kept = self.kept(db)?;
            let mut locked = Vec::new();
            for (object, since) in condemned::all(db, Kind::Layer)? {
                let Ok(diff_id) = object.parse::<DiffId>() else {
                    continue;
                };
                let row = Layers::peek_in(db, &diff_id)?;
                if row.is_some() && kept.layers.contains(&diff_id) {
                    condemned::spare_in(db, Kind::Layer, &object)?;
                    continue;
                }
                if !condemned::may_go(since, oldest) {
                    report.busy = true;
                    continue;
                }
                let Some(lock) = self.layers().try_lock(&diff_id)? else {
                    report.busy = true; // somebody makes it right now
                    continue;
                };
                Layers::forget_in(db, &diff_id)?;
                condemned::spare_in(db, Kind::Layer, &object)?;
                report.bytes += row.map_or(0, |row| row.size);
                locked.push((diff_id, lock));
                if locked.len() == AT_ONCE {
                    break;
                }
            }
            Ok::<_, StoreError>(locked)
        })?;
        let count = locked.len();
        for (diff_id, _lock) in locked {
            self.layers().carry_off(&diff_id, trash)?;
            report.layers.push(diff_id);
        }
        Ok(count)
    }

    /// Moves blobs into `trash` that are condemned, were so before the oldest lease began, and
    /// are still not needed.
    fn carry_off_blobs(
        &self,
        db: &Connection,
        oldest: Option<u64>,
        trash: &mut Trash,
        report: &mut GcReport,
    ) -> Result<(), StoreError> {
        let kept = self.kept(db)?;
        let waiting = self.waiting(db, &kept)?;
        for (object, since) in condemned::all(db, Kind::Blob)? {
            let Ok(digest) = object.parse::<Digest>() else {
                continue;
            };
            if kept.blobs.contains(&digest) {
                condemned::spare_in(db, Kind::Blob, &object)?;
                continue;
            }
            if waiting.contains(&digest) || !condemned::may_go(since, oldest) {
                report.busy = true;
                continue;
            }
            condemned::spare_in(db, Kind::Blob, &object)?;
            let path = self.blobs().path(&digest);
            let size = fs::metadata(&path).map_or(0, |metadata| metadata.len());
            if !trash.take(&path)? {
                continue;
            }
            report.bytes += size;
            report.blobs.push(digest);
        }
        Ok(())
    }

    /// Blobs of layers that nothing needs and that stay for now: who has looked at such a layer
    /// counts on what it can leave as, too.
    fn waiting(&self, db: &Connection, kept: &Kept) -> Result<HashSet<Digest>, StoreError> {
        let mut statement = db.prepare_cached(
            "SELECT diff_id, blob FROM layer_blob WHERE diff_id IN (SELECT diff_id FROM layer)",
        )?;
        let mut rows = statement.query([])?;
        let mut waiting = HashSet::new();
        while let Some(row) = rows.next()? {
            let (layer, blob): (String, String) = (row.get(0)?, row.get(1)?);
            if let (Ok(layer), Ok(blob)) = (layer.parse::<DiffId>(), blob.parse())
                && !kept.layers.contains(&layer)
            {
                waiting.insert(blob);
            }
        }
        Ok(waiting)
    }

    fn kept(&self, db: &Connection) -> Result<Kept, StoreError> {
        let texts = |sql: &str| -> Result<Vec<String>, StoreError> {
            let mut statement = db.prepare_cached(sql)?;
            let rows = statement.query_map([], |row| row.get(0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        };
        let layers: HashSet<DiffId> = texts(
            "SELECT diff_id FROM image_layer
             UNION SELECT object FROM hold WHERE kind = 'layer'",
        )?
        .iter()
        .filter_map(|text| text.parse().ok())
        .collect();
        let parsed = |texts: Vec<String>| -> HashSet<Digest> {
            texts.iter().filter_map(|text| text.parse().ok()).collect()
        };
        let manifests = parsed(texts(
            "SELECT manifest FROM image WHERE manifest IS NOT NULL
             UNION SELECT manifest FROM tag_origin",
        )?);
        let mut blobs = parsed(texts("SELECT id FROM image")?);
        // A push sends these very blobs, whichever else the layers have.
        for manifest in &manifests {
            match self.images().named_by(manifest)? {
                Some(named) => blobs.extend(named),
                // Until it is fetched again, any blob may be one that it names.
                None => blobs.extend(Self::of_layers_with(db, manifest)?),
            }
        }
        blobs.extend(manifests);
        // The index an image was built with, and what it leads to.
        blobs.extend(parsed(texts(
            "SELECT digest FROM image_index WHERE digest IS NOT NULL
             UNION SELECT blob FROM image_attached
             UNION SELECT list FROM tag_origin WHERE list IS NOT NULL
             UNION SELECT blob FROM tag_origin_blob",
        )?));
        let mut statement = db.prepare_cached(
            "SELECT diff_id, blob FROM layer_blob ORDER BY diff_id, blob = diff_id, rowid",
        )?;
        let mut rows = statement.query([])?;
        let mut provided = HashSet::new();
        while let Some(row) = rows.next()? {
            let (diff_id, blob): (String, String) = (row.get(0)?, row.get(1)?);
            let (Ok(diff_id), Ok(blob)) = (diff_id.parse::<DiffId>(), blob.parse::<Digest>())
            else {
                continue;
            };
            if layers.contains(&diff_id)
                && !provided.contains(&diff_id)
                && self.blobs().is_there(&blob)
            {
                provided.insert(diff_id);
                blobs.insert(blob);
            }
        }
        Ok(Kept { layers, blobs })
    }

    /// Every blob that is known to be a layer of an image that came with a manifest.
    fn of_layers_with(db: &Connection, manifest: &Digest) -> Result<Vec<Digest>, StoreError> {
        let mut statement = db.prepare_cached(
            "SELECT blob FROM layer_blob WHERE diff_id IN (
                SELECT diff_id FROM image_layer WHERE image IN (
                    SELECT id FROM image WHERE manifest = ?1
                    UNION SELECT image FROM tag_origin WHERE manifest = ?1))",
        )?;
        let rows = statement.query_map([manifest.as_str()], |row| row.get::<_, String>(0))?;
        let blobs = rows.collect::<Result<Vec<_>, _>>()?;
        Ok(blobs.iter().filter_map(|text| text.parse().ok()).collect())
    }

    /// Looks for everything that is orphaned, missing or corrupt; every blob is read and
    /// verified. With `repair`, orphans are removed, corrupt blobs thrown away, and damaged
    /// layers unpacked again from their blobs. What cannot be made again here is told
    /// ([`Finding::lost`]). Nobody collects meanwhile: that is to be done after it.
    ///
    /// # Errors
    /// The store cannot be read, or cannot be written while repairing.
    pub fn check(&self, repair: bool) -> Result<Vec<Finding>, StoreError> {
        let mut findings = self.sweep(repair)?;
        // Nothing is collected while this looks.
        let collector = self.collector()?;
        if collector.is_none() {
            return Ok(findings);
        }
        // Where a pull or build is going on, nothing is orphaned for sure, and what no image has
        // may be in the making.
        let quiet = self.leases().oldest()?.is_none();
        let may_be_told = |diff_id: &DiffId| -> Result<bool, StoreError> {
            Ok(quiet || !self.images().with_layer(diff_id)?.is_empty())
        };
        let kept = self.database().read(|db| self.kept(db))?;
        // Pulls and builds may begin while all this is read, so nothing is removed by what is
        // known here: a collection does that.
        let (mut layers, mut blobs) = (Vec::new(), Vec::new());
        let mut here = HashSet::new();
        for diff_id in self.layers().all()? {
            let Some(believed) = self.layers().look(&diff_id)? else {
                here.insert(diff_id);
                continue; // somebody makes it right now
            };
            here.insert(diff_id.clone());
            let needed = kept.layers.contains(&diff_id);
            let detail = match (believed, needed) {
                (true, true) => match self.layers().verify(&diff_id)? {
                    None => continue,
                    Some(reason) => format!("{CORRUPT}{reason}"),
                },
                _ if !may_be_told(&diff_id)? => continue,
                (true, false) => "no image or container needs it".to_owned(),
                (false, _) => "it was not finished before a crash".to_owned(),
            };
            if needed {
                self.mend(&diff_id, &detail, repair, &mut findings)?;
                continue;
            }
            layers.push((diff_id, detail));
        }
        let mut missing: Vec<&DiffId> = kept.layers.difference(&here).collect();
        missing.sort_by_key(|diff_id| diff_id.digest().hex());
        for diff_id in missing {
            if self.layers().look(diff_id)? == Some(true) && self.layers().is_on_disk(diff_id) {
                continue; // it has been made since
            }
            if !may_be_told(diff_id)? {
                continue;
            }
            self.mend(diff_id, "it is missing", repair, &mut findings)?;
        }
        let kept = self.database().read(|db| self.kept(db))?;
        let mut corrupt = Vec::new();
        for digest in self.blobs().all()? {
            if !kept.blobs.contains(&digest) {
                blobs.push(digest);
            } else if self.rotten(&digest)? {
                if repair {
                    self.blobs().remove(&digest)?;
                }
                corrupt.push(digest);
            }
        }
        let mut lacking = self.lacking()?;
        for digest in corrupt {
            // Where nothing lacks it, what it was for is whole without it.
            let is_lost = lacking.contains(&digest);
            lacking.retain(|other| *other != digest);
            findings.push(self.mend_blob(&digest, "its content is corrupt", repair, is_lost)?);
        }
        for digest in lacking {
            findings.push(self.mend_blob(&digest, "it is missing", repair, true)?);
        }
        if !quiet {
            return Ok(findings);
        }
        if repair && !(layers.is_empty() && blobs.is_empty()) {
            drop(collector);
            self.gc()?;
            // What somebody may count on by now is none of ours.
            layers.retain(|(diff_id, _)| !self.layers().is_on_disk(diff_id));
            blobs.retain(|digest| !self.blobs().is_there(digest));
        } else if self.leases().oldest()?.is_some() {
            return Ok(findings);
        }
        findings.extend(
            layers
                .iter()
                .map(|(diff_id, detail)| finding(FindingKind::Layer, diff_id, detail, repair)),
        );
        findings.extend(
            blobs
                .iter()
                .map(|digest| finding(FindingKind::Blob, digest, "nothing needs it", repair)),
        );
        Ok(findings)
    }

    /// A layer that is needed and damaged or missing is made again from its blob. Where that
    /// cannot be, the images that lack it are told.
    fn mend(
        &self,
        diff_id: &DiffId,
        detail: &str,
        repair: bool,
        findings: &mut Vec<Finding>,
    ) -> Result<(), StoreError> {
        let mut found = finding(FindingKind::Layer, diff_id, detail, false);
        if repair {
            found.repaired = self.layers().unpack_again(diff_id)?;
        }
        if repair && !found.repaired {
            // Not believed any more, it is made by the next pull or build that brings it.
            let corrupt = detail.starts_with(CORRUPT);
            if !self
                .layers()
                .remove_if(diff_id, |believed| corrupt || !believed)?
            {
                return Ok(()); // somebody has just made it
            }
            found.lost = Some(Lost::Layer(diff_id.clone()));
        }
        let lost = found.lost.is_some() || detail == "it is missing";
        let repaired = found.repaired;
        findings.push(found);
        if lost && !repaired {
            for image in self.images().with_layer(diff_id)? {
                let detail = format!("it lacks layer {diff_id}");
                findings.push(finding(FindingKind::Image, &image, &detail, false));
            }
        }
        Ok(())
    }

    /// A config's blob is made again from its row; what became of another.
    fn mend_blob(
        &self,
        digest: &Digest,
        detail: &str,
        repair: bool,
        is_lost: bool,
    ) -> Result<Finding, StoreError> {
        let mut found = finding(FindingKind::Blob, digest, detail, repair);
        if repair && is_lost && !self.images().rewrite_config(digest)? {
            found.repaired = false;
            found.lost = Some(Lost::Blob(digest.clone()));
        }
        Ok(found)
    }

    /// The cheap part of [`check`](Self::check): what dead processes left under `tmp/`.
    ///
    /// # Errors
    /// The directory cannot be read or written.
    pub fn sweep(&self, repair: bool) -> Result<Vec<Finding>, StoreError> {
        let remove = if repair {
            Remove::Everything
        } else {
            Remove::Nothing
        };
        Ok(tmp::orphans(&self.tmp_path(), remove)?
            .into_iter()
            .map(|path| {
                finding(
                    FindingKind::Temporary,
                    &path.display(),
                    "its process is gone",
                    repair,
                )
            })
            .collect())
    }

    /// Removes everything that dead processes left under `tmp/`, also partial downloads that
    /// could be resumed; the bytes that come free.
    ///
    /// # Errors
    /// The directory cannot be read or written.
    pub fn discard_partial(&self) -> Result<u64, StoreError> {
        let before = self.partial_size();
        tmp::orphans(&self.tmp_path(), Remove::Everything)?;
        Ok(before.saturating_sub(self.partial_size()))
    }

    /// Bytes of partial downloads.
    #[must_use]
    pub fn partial_size(&self) -> u64 {
        let Ok(entries) = fs::read_dir(self.tmp_path()) else {
            return 0;
        };
        let files = entries.flatten().filter_map(|entry| entry.metadata().ok());
        files
            .filter(fs::Metadata::is_file)
            .map(|file| file.len())
            .sum()
    }

    /// Removes the directories that dead processes left under `tmp/`, and partial downloads that
    /// have not been resumed for a week. Cheap where there are
    /// none. What cannot be removed is left to [`check`](Self::check).
    pub fn sweep_directories(&self) {
        let path = self.tmp_path();
        let mut trash = None;
        let mut take = |orphan: &Path| {
            let trash = trash.get_or_insert_with(|| Trash::new(&path));
            trash.take(orphan).map(drop)
        };
        if let Err(error) = tmp::orphans(&path, Remove::Directories(&mut take)) {
            tracing::warn!(%error, "temporary directories are left");
        }
        if let Some(trash) = trash {
            self.dispose(trash);
        }
    }

    fn dispose(&self, trash: Trash) {
        if let Some(rubbish) = trash.rubbish() {
            self.disposal().of(rubbish);
        }
    }

    fn rotten(&self, digest: &Digest) -> Result<bool, StoreError> {
        let mut file = match self.blobs().open(digest) {
            Ok(file) => file,
            Err(StoreError::NoSuchBlob(_)) => return Ok(false), // it has gone since
            Err(error) => return Err(error),
        };
        let mut digester = Digester::new(digest.algorithm());
        std::io::copy(&mut file, &mut digester).map_err(at("read", self.blobs().path(digest)))?;
        Ok(digester.finish() != *digest)
    }
}

fn finding(kind: FindingKind, object: &dyn fmt::Display, detail: &str, repaired: bool) -> Finding {
    Finding {
        kind,
        object: object.to_string(),
        detail: detail.to_owned(),
        repaired,
        lost: None,
    }
}
