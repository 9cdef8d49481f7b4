//! Garbage collection and checking.
//!
//! Mark and sweep: kept are the layers of images and of holders' rows, the blobs of kept
//! layers, and manifests and configs of images. It runs only while nobody holds a
//! [`Lease`](crate::Lease) (else it leaves everything for the next time) and removes rows
//! before bytes, so that nothing half-removed is ever used.

use std::collections::HashSet;
use std::fmt;

use corten_oci::{DiffId, Digest, Digester};

use crate::Store;
use crate::error::{StoreError, at};
use crate::tmp::{self, Remove};

/// What a collection removed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct GcReport {
    /// Layers removed.
    pub layers: Vec<DiffId>,
    /// Blobs removed.
    pub blobs: Vec<Digest>,
    /// Bytes that came free, as far as known.
    pub bytes: u64,
    /// Nothing was done because a pull or build is going on.
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
    /// Removes every layer and blob that nothing needs.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub fn gc(&self) -> Result<GcReport, StoreError> {
        let Some(_alone) = self.leases().exclusive()? else {
            return Ok(GcReport {
                busy: true,
                ..GcReport::default()
            });
        };
        self.sweep_directories();
        let kept = self.kept()?;
        let mut report = GcReport::default();
        for (diff_id, believed) in self.layers().all()? {
            if believed && kept.layers.contains(&diff_id) {
                continue;
            }
            report.bytes += self.layers().info(&diff_id)?.map_or(0, |info| info.size);
            self.layers().remove(&diff_id)?;
            report.layers.push(diff_id);
        }
        self.layers()
            .drop_unsettled(|diff_id| kept.layers.contains(diff_id))?;
        for digest in self.blobs().all()? {
            if kept.blobs.contains(&digest) {
                continue;
            }
            report.bytes += self.blobs().size(&digest)?.unwrap_or_default();
            self.blobs().remove(&digest)?;
            report.blobs.push(digest);
        }
        Ok(report)
    }

    fn kept(&self) -> Result<Kept, StoreError> {
        let texts = |sql: &str| -> Result<Vec<String>, StoreError> {
            self.database().read(|db| {
                let mut statement = db.prepare(sql)?;
                let rows = statement.query_map([], |row| row.get(0))?;
                Ok(rows.collect::<Result<_, _>>()?)
            })
        };
        let layers: HashSet<DiffId> = texts(
            "SELECT diff_id FROM image_layer
             UNION SELECT object FROM hold WHERE kind = 'layer'",
        )?
        .iter()
        .filter_map(|text| text.parse().ok())
        .collect();
        let mut blobs: HashSet<Digest> = texts(
            "SELECT id FROM image
             UNION SELECT manifest FROM image WHERE manifest IS NOT NULL",
        )?
        .iter()
        .filter_map(|text| text.parse().ok())
        .collect();
        for diff_id in &layers {
            if let Some(blob) = self.layers().blob_for(diff_id)? {
                blobs.insert(blob.digest);
            }
        }
        Ok(Kept { layers, blobs })
    }

    /// Looks for everything that is orphaned, missing or corrupt; every blob is read and
    /// verified. With `repair`, orphans are removed, corrupt blobs thrown away, and damaged
    /// layers unpacked again from their blobs. What cannot be made again here is told
    /// ([`Finding::lost`]).
    ///
    /// # Errors
    /// The store cannot be read, or cannot be written while repairing.
    pub fn check(&self, repair: bool) -> Result<Vec<Finding>, StoreError> {
        let mut findings = self.sweep(repair)?;
        let Some(_alone) = self.leases().exclusive()? else {
            return Ok(findings); // a pull or build is going on: nothing is orphaned for sure
        };
        let kept = self.kept()?;
        let mut here = HashSet::new();
        for (diff_id, believed) in self.layers().all()? {
            here.insert(diff_id.clone());
            let needed = kept.layers.contains(&diff_id);
            let detail = match (believed, needed) {
                (true, true) => match self.layers().verify(&diff_id)? {
                    None => continue,
                    Some(reason) => format!("it is corrupt: {reason}"),
                },
                (true, false) => "no image or container needs it".to_owned(),
                (false, _) => "it was not finished before a crash".to_owned(),
            };
            if needed {
                self.mend(&diff_id, &detail, repair, &mut findings)?;
                continue;
            }
            if repair {
                self.layers().remove(&diff_id)?;
            }
            findings.push(finding(FindingKind::Layer, &diff_id, &detail, repair));
        }
        let mut missing: Vec<&DiffId> = kept.layers.difference(&here).collect();
        missing.sort_by_key(|diff_id| diff_id.digest().hex());
        for diff_id in missing {
            self.mend(diff_id, "it is missing", repair, &mut findings)?;
        }
        for digest in self.blobs().all()? {
            if !kept.blobs.contains(&digest) {
                if repair {
                    self.blobs().remove(&digest)?;
                }
                findings.push(finding(
                    FindingKind::Blob,
                    &digest,
                    "nothing needs it",
                    repair,
                ));
            } else if self.rotten(&digest)? {
                let mut found =
                    finding(FindingKind::Blob, &digest, "its content is corrupt", repair);
                if repair {
                    self.blobs().remove(&digest)?;
                    if !self.images().rewrite_config(&digest)? {
                        found.repaired = false;
                        found.lost = Some(Lost::Blob(digest));
                    }
                }
                findings.push(found);
            }
        }
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
            self.layers().remove(diff_id)?;
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

    /// Removes the directories that dead processes left under `tmp/`. Cheap where there are
    /// none. What cannot be removed is left to [`check`](Self::check).
    pub fn sweep_directories(&self) {
        if let Err(error) = tmp::orphans(&self.tmp_path(), Remove::Directories) {
            tracing::warn!(%error, "temporary directories are left");
        }
    }

    fn rotten(&self, digest: &Digest) -> Result<bool, StoreError> {
        let mut file = self.blobs().open(digest)?;
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
