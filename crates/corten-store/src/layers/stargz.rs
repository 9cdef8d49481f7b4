//! Layers as eStargz (containerd/stargz-snapshotter, `docs/estargz.md`): a tar in gzip of which
//! each file can be had by itself. The content of every file is a gzip member of its own, or
//! several; the last entry of the archive is a table that says where each begins, with digests,
//! and a footer of fixed size says where the table begins.
//!
//! The table and a landmark are entries of the archive, so it is another layer than the one it is
//! made of. The same bytes come of the same layer every time.

mod found;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use corten_oci::{DiffId, Digest, Digester, media_type};
use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};
use serde::Serialize;
use tar::EntryType;

use super::entry::{self, Attributes};
use super::{LayerBlob, Layers, decode, tar_header};
use crate::archive::{self, Metered};
use crate::error::{StoreError, at};
use crate::tmp::TmpDir;

/// The table.
const TABLE: &str = "stargz.index.json";
/// Says that no file is to be fetched before it is asked for.
const NO_PREFETCH: &str = ".no.prefetch.landmark";
/// Says up to where they are; of a layer that came as eStargz.
const PREFETCH: &str = ".prefetch.landmark";
const LANDMARK: &[u8] = &[0xf];
/// Bytes of content that are compressed together.
const CHUNK: usize = 4 << 20;
/// What the landmark and the table may be: read.
const MODE: u32 = 0o444;

/// A layer that was made eStargz.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stargz {
    /// The layer it is: that of before, with a table and a landmark.
    pub diff_id: DiffId,
    /// The archive.
    pub blob: LayerBlob,
    /// The table's digest, for the annotation `containerd.io/snapshot/stargz/toc.digest`.
    pub table: Digest,
    /// Bytes of the archive when it is unpacked.
    pub uncompressed: u64,
}

#[derive(Serialize)]
struct Table {
    version: u32,
    entries: Vec<Row>,
}

/// One entry of the archive, or one more piece of a file.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    name: String,
    r#type: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    size: u64,
    #[serde(rename = "modtime", skip_serializing_if = "String::is_empty")]
    time: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    link_name: String,
    mode: u32,
    uid: u32,
    gid: u32,
    #[serde(skip_serializing_if = "is_zero")]
    offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_minor: u64,
    /// In base 64.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    digest: String,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_size: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    chunk_digest: String,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde wants it so
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Layers {
    /// Makes a layer eStargz; what comes of it is a layer of the store, too.
    ///
    /// # Errors
    /// The layer cannot be read, or the store cannot be written; names that are not UTF-8, which a
    /// table cannot have.
    pub fn stargz(&self, diff_id: &DiffId, level: Option<u32>) -> Result<Stargz, StoreError> {
        let tmp = TmpDir::create(&self.tmp, "compress")?;
        let path = tmp.path().join("blob");
        let file = File::create(&path).map_err(at("create", &path))?;
        let level = level.map_or_else(Compression::default, |level| Compression::new(level.min(9)));
        let mut writer = Writer::new(decode::Hashing::new(file), level);
        let (reader, mut plain) = io::pipe().map_err(at("make a pipe for", &path))?;
        std::thread::scope(|scope| {
            let feed = scope.spawn(move || self.tar(diff_id, &mut plain));
            let written = writer
                .landmark()
                .map_err(at("write", &path))
                .and_then(|()| {
                    entry::each(&reader, |path, entry, own| writer.entry(path, entry, &own))
                });
            drop(reader);
            match feed.join() {
                Ok(Err(error)) if written.is_ok() => Err(error),
                _ => written,
            }
        })?;
        let (file, table, plain, uncompressed) = writer.finish().map_err(at("write", &path))?;
        let (_, digest, size) = file.finish();
        self.blobs.adopt(&digest, &path)?;
        let blob = LayerBlob {
            digest,
            size,
            media_type: media_type::DOCKER_LAYER_GZIP.to_owned(),
        };
        let diff_id = DiffId(plain);
        self.apply_blob(&blob, &diff_id)?;
        Ok(Stargz {
            diff_id,
            blob,
            table,
            uncompressed,
        })
    }
}

/// Writes the archive.
struct Writer<W: Write> {
    /// `None` only while a member ends.
    member: Option<GzEncoder<Counting<W>>>,
    level: Compression,
    plain: Digester,
    uncompressed: u64,
    rows: Vec<Row>,
}

impl<W: Write> Writer<W> {
    fn new(out: W, level: Compression) -> Self {
        Self {
            member: Some(begin(Counting(out, 0), level)),
            level,
            plain: Digester::sha256(),
            uncompressed: 0,
            rows: Vec::new(),
        }
    }

    /// Ends the member, and begins the next; where that is.
    fn next(&mut self) -> io::Result<u64> {
        let member = self.member.take().ok_or_else(ended)?;
        let out = member.finish()?;
        let offset = out.1;
        self.member = Some(begin(out, self.level));
        Ok(offset)
    }

    fn landmark(&mut self) -> io::Result<()> {
        let own = Attributes {
            mode: MODE,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            xattrs: Vec::new(),
            sparse: None,
        };
        let row = row(NO_PREFETCH.to_owned(), "reg", &own);
        self.file(row, &own, LANDMARK.len() as u64, LANDMARK)
    }

    fn entry<R: Read>(
        &mut self,
        path: &Path,
        entry: &mut archive::Entry<'_, '_, Metered<R>>,
        own: &Attributes,
    ) -> io::Result<()> {
        // Of a layer that is eStargz already.
        if [TABLE, NO_PREFETCH, PREFETCH]
            .iter()
            .any(|name| path == Path::new(name))
        {
            return Ok(());
        }
        let name = path.to_str();
        let mut name = name
            .ok_or_else(|| entry::invalid("its name is not UTF-8"))?
            .to_owned();
        let kind = entry.header().entry_type();
        let (kind, word) = match kind {
            EntryType::Directory => (b'5', "dir"),
            EntryType::Symlink => (b'2', "symlink"),
            EntryType::Link => (b'1', "hardlink"),
            EntryType::Char => (b'3', "char"),
            EntryType::Block => (b'4', "block"),
            EntryType::Fifo => (b'6', "fifo"),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let row = row(name, "reg", own);
                let (size, content) = entry::content(entry, own);
                return self.file(row, own, size, content);
            }
            other => return Err(entry::unknown(other)),
        };
        if kind == b'5' {
            name.push_str(if name.is_empty() { "./" } else { "/" });
        }
        let mut row = row(name, word, own);
        if matches!(kind, b'1' | b'2') {
            let link = entry::link_name(entry)?;
            let link = String::from_utf8(link);
            row.link_name = link.map_err(|_| entry::invalid("its target is not UTF-8"))?;
        }
        let device = match kind {
            b'3' | b'4' => entry::device(entry)?,
            _ => (0, 0),
        };
        (row.dev_major, row.dev_minor) = (device.0.into(), device.1.into());
        let described = tar_header::Entry {
            kind,
            device,
            link: row.link_name.as_bytes(),
            ..described(own)
        };
        tar_header::write(self, row.name.as_bytes(), &described)?;
        self.rows.push(row);
        Ok(())
    }

    fn file(
        &mut self,
        row: Row,
        own: &Attributes,
        size: u64,
        mut content: impl Read,
    ) -> io::Result<()> {
        let described = tar_header::Entry {
            kind: b'0',
            size,
            ..described(own)
        };
        tar_header::write(self, row.name.as_bytes(), &described)?;
        let (first, name) = (self.rows.len(), row.name.clone());
        self.rows.push(Row { size, ..row });
        if size == 0 {
            return Ok(());
        }
        let mut whole = Digester::sha256();
        let (mut at, mut piece) = (0, Vec::new());
        while at < size {
            let length = (size - at).min(CHUNK as u64);
            piece.resize(usize::try_from(length).map_err(io::Error::other)?, 0);
            content.read_exact(&mut piece)?;
            let offset = self.next()?;
            self.write_all(&piece)?;
            whole.update(&piece);
            if at > 0 {
                self.rows.push(Row {
                    name: name.clone(),
                    r#type: "chunk",
                    chunk_offset: at,
                    ..Row::default()
                });
            }
            let is_last = at + length == size;
            if let Some(row) = self.rows.last_mut() {
                row.offset = offset;
                // The last one of a file ends with it.
                row.chunk_size = if is_last { 0 } else { length };
                row.chunk_digest = Digest::of(&piece).to_string();
            }
            at += length;
        }
        if let Some(row) = self.rows.get_mut(first) {
            row.digest = whole.finish().to_string();
        }
        self.next()?;
        tar_header::pad(self, size)
    }

    /// The table, and the footer: what was written to, the table's digest, that of the archive
    /// when it is unpacked, and its size.
    fn finish(mut self) -> io::Result<(W, Digest, Digest, u64)> {
        let table = Table {
            version: 1,
            entries: std::mem::take(&mut self.rows),
        };
        let table = serde_json::to_vec(&table)?;
        let offset = self.next()?;
        let entry = tar_header::Entry {
            kind: b'0',
            mode: MODE,
            size: table.len() as u64,
            ..tar_header::Entry::default()
        };
        tar_header::write(&mut self, TABLE.as_bytes(), &entry)?;
        self.write_all(&table)?;
        tar_header::pad(&mut self, table.len() as u64)?;
        tar_header::end(&mut self)?;
        let member = self.member.take().ok_or_else(ended)?;
        let mut out = member.finish()?;
        out.write_all(&footer(offset))?;
        let plain = self.plain.finish();
        Ok((out.0, Digest::of(&table), plain, self.uncompressed))
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let member = self.member.as_mut().ok_or_else(ended)?;
        let n = member.write(bytes)?;
        self.plain.update(&bytes[..n]);
        self.uncompressed += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn begin<W: Write>(out: Counting<W>, level: Compression) -> GzEncoder<Counting<W>> {
    GzBuilder::new().mtime(0).write(out, level)
}

fn ended() -> io::Error {
    io::Error::other("the archive has ended")
}

/// An empty gzip member whose extra field says where the table is.
fn footer(table: u64) -> [u8; 51] {
    let mut footer = [0; 51];
    // Deflate, with an extra field; no time, no level, of an unknown system.
    footer[..10].copy_from_slice(&[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff]);
    footer[10..16].copy_from_slice(&[26, 0, b'S', b'G', 22, 0]);
    footer[16..38].copy_from_slice(format!("{table:016x}STARGZ").as_bytes());
    // One block, the last, of nothing; then the checksum and the size of nothing.
    footer[38..43].copy_from_slice(&[1, 0, 0, 0xff, 0xff]);
    footer
}

fn described(own: &Attributes) -> tar_header::Entry<'_> {
    tar_header::Entry {
        mode: own.mode,
        uid: own.uid,
        gid: own.gid,
        mtime: own.mtime,
        xattrs: &own.xattrs,
        ..tar_header::Entry::default()
    }
}

fn row(name: String, kind: &'static str, own: &Attributes) -> Row {
    let time = jiff::Timestamp::from_second(own.mtime.0);
    let xattrs = own.xattrs.iter().map(|(key, value)| {
        let key = String::from_utf8_lossy(key.as_bytes()).into_owned();
        (key, BASE64_STANDARD.encode(value))
    });
    Row {
        name,
        r#type: kind,
        time: time.map_or_else(|_| String::new(), |time| time.to_string()),
        mode: own.mode,
        uid: own.uid,
        gid: own.gid,
        xattrs: xattrs.collect(),
        ..Row::default()
    }
}

/// Counts what is written.
struct Counting<W>(W, u64);

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.0.write(bytes)?;
        self.1 += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use corten_db::Database;
    use flate2::read::{GzDecoder, MultiGzDecoder};
    use serde_json::Value;

    use super::*;
    use crate::{LayerForm, Store};

    fn digest(bytes: &[u8]) -> String {
        Digest::of(bytes).to_string()
    }

    #[test]
    fn every_file_can_be_had_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("db"), &[crate::SCHEMA]).unwrap();
        let store = Store::open_with(dir.path(), database, LayerForm::Directory);
        let layers = store.layers();
        let work = layers.begin().unwrap();
        let upper = work.upper();
        let large: Vec<u8> = (0..2 * CHUNK + 100).map(|n| (n * n / 255) as u8).collect();
        let files = [
            ("d/a", &b"of a"[..]),
            ("d/empty", b""),
            ("large", &large),
            ("z", &[7; 512]),
        ];
        fs::create_dir(upper.join("d")).unwrap();
        for (name, content) in files {
            fs::write(upper.join(name), content).unwrap();
        }
        symlink("d/a", upper.join("link")).unwrap();
        fs::hard_link(upper.join("d/a"), upper.join("d/b")).unwrap();
        fs::set_permissions(upper.join("z"), fs::Permissions::from_mode(0o4711)).unwrap();
        let plain = layers.commit(work).unwrap().diff_id;
        let made = layers.stargz(&plain, None).unwrap();

        let mut blob = Vec::new();
        let mut file = store.blobs().open(&made.blob.digest).unwrap();
        file.read_to_end(&mut blob).unwrap();
        assert_eq!(blob.len() as u64, made.blob.size);
        // The footer, as it is documented.
        let footer = &blob[blob.len() - 51..];
        assert_eq!(footer[32..38], *b"STARGZ");
        let offset = std::str::from_utf8(&footer[16..32]).unwrap();
        let offset = usize::from_str_radix(offset, 16).unwrap();
        let mut nothing = Vec::new();
        GzDecoder::new(footer).read_to_end(&mut nothing).unwrap();
        assert!(nothing.is_empty());
        // The table, without anything else of the archive.
        let mut table = tar::Archive::new(GzDecoder::new(&blob[offset..]));
        let mut table = table.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(table.path_bytes(), TABLE.as_bytes());
        let mut text = Vec::new();
        table.read_to_end(&mut text).unwrap();
        assert_eq!(digest(&text), made.table.to_string());
        let table: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(table["version"], 1);
        let rows = table["entries"].as_array().unwrap();
        let row = |name: &str| rows.iter().find(|row| row["name"] == name).unwrap();
        assert_eq!(rows[0]["name"], NO_PREFETCH);
        // Each piece by itself.
        let piece = |row: &Value| {
            let offset = usize::try_from(row["offset"].as_u64().unwrap()).unwrap();
            let mut piece = Vec::new();
            GzDecoder::new(&blob[offset..])
                .read_to_end(&mut piece)
                .unwrap();
            assert_eq!(row["chunkDigest"], digest(&piece));
            piece
        };
        for (name, content) in files.into_iter().filter(|(_, content)| !content.is_empty()) {
            let of = |row: &&Value| row["name"] == name;
            let mut whole = Vec::new();
            for row in rows.iter().filter(of) {
                assert_eq!(row["chunkOffset"].as_u64().unwrap_or(0), whole.len() as u64);
                let piece = piece(row);
                let said = row["chunkSize"].as_u64();
                assert!(said.is_none_or(|said| said == piece.len() as u64));
                whole.extend(piece);
            }
            assert!(whole == content, "{name}");
            let row = row(name);
            assert_eq!(row["digest"], digest(content));
            assert_eq!(row["size"], content.len());
        }
        assert_eq!(rows.iter().filter(|row| row["type"] == "chunk").count(), 2);
        assert_eq!(row("z")["mode"], 0o4711);
        assert_eq!(row("d/")["type"], "dir");
        let time = row("z")["modtime"].as_str().unwrap();
        assert!(
            time.parse::<jiff::Timestamp>().is_ok() && time.len() == 20,
            "{time}"
        );
        for (name, kind, link) in [("link", "symlink", "d/a"), ("d/b", "hardlink", "d/a")] {
            assert_eq!(row(name)["type"], kind);
            assert_eq!(row(name)["linkName"], link);
        }
        assert!(row("d/empty").get("offset").is_none());

        // To whoever knows nothing of all that, it is a layer like others.
        let mut tar = Vec::new();
        MultiGzDecoder::new(&blob[..])
            .read_to_end(&mut tar)
            .unwrap();
        assert_eq!(DiffId(Digest::of(&tar)), made.diff_id);
        assert_eq!(tar.len() as u64, made.uncompressed);
        let path = layers.path(&made.diff_id);
        assert!(fs::read(path.join("large")).unwrap() == large);
        assert!(path.join(TABLE).exists());
        let mut names: Vec<String> = Vec::new();
        for entry in tar::Archive::new(&tar[..]).entries().unwrap() {
            names.push(entry.unwrap().path().unwrap().display().to_string());
        }
        assert_eq!(names.last().map(String::as_str), Some(TABLE));
        // The same comes of it again, and of itself.
        assert_eq!(layers.stargz(&plain, None).unwrap(), made);
        assert_eq!(layers.stargz(&made.diff_id, None).unwrap(), made);

        // It is found again, as long as its archive is what it was.
        assert_eq!(layers.made_stargz(&plain).unwrap(), None);
        assert_eq!(
            layers.made_stargz(&made.diff_id).unwrap().as_ref(),
            Some(&made)
        );
        let path = store.blobs().path(&made.blob.digest);
        for at in [blob.len() / 2, blob.len() - 40] {
            let mut rotten = blob.clone();
            rotten[at] ^= 1;
            fs::write(&path, rotten).unwrap();
            assert_eq!(layers.made_stargz(&made.diff_id).unwrap(), None, "{at}");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(layers.made_stargz(&made.diff_id).unwrap(), None);
    }

    #[test]
    fn names_that_no_table_has_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("db"), &[crate::SCHEMA]).unwrap();
        let store = Store::open_with(dir.path(), database, LayerForm::Directory);
        let work = store.layers().begin().unwrap();
        let name = std::ffi::OsStr::from_bytes(b"\xff");
        fs::write(work.upper().join(name), "").unwrap();
        let layer = store.layers().commit(work).unwrap().diff_id;
        let error = store.layers().stargz(&layer, None).unwrap_err();
        assert!(error.to_string().contains("not UTF-8"), "{error}");
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    }
}
