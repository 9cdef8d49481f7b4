//! Collecting, checking and repairing.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use super::*;

pub(super) fn collection_keeps_what_is_needed(form: LayerForm) {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), form);
    let layer = |content: &str| {
        store
            .layers()
            .apply(None, archive(&[("f", Regular, content)]).as_slice())
            .unwrap()
            .diff_id
    };
    let (imaged, held, loose) = (layer("imaged"), layer("held"), layer("loose"));
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{imaged}"]}}}}"#
    );
    let id = store.images().put(config.as_bytes(), None).unwrap();
    let name: corten_oci::ImageRef = "app:1".parse().unwrap();
    store.images().tag(&name, &id).unwrap();
    store
        .leases()
        .hold("container:x", std::slice::from_ref(&held), &[])
        .unwrap();
    let lease = store.leases().acquire().unwrap();
    assert!(store.gc().unwrap().busy);
    assert!(store.layers().peek(&loose).unwrap().is_some());
    // The end of another lease is no reason to collect anything.
    let epoch = || store.database().read(condemned::epoch).unwrap();
    let before = epoch();
    drop(store.leases().acquire().unwrap());
    assert_eq!(epoch(), before);
    // Who held it off collects what waited.
    drop(lease);
    assert!(epoch() > before);
    assert!(store.layers().peek(&loose).unwrap().is_none());
    assert!(store.gc().unwrap().layers.is_empty());
    for kept in [&imaged, &held] {
        assert!(store.layers().has(kept).unwrap());
    }
    for text in ["app:1", id.as_str(), id.hex(), id.short()] {
        assert_eq!(store.images().resolve(text).unwrap(), id, "{text}");
    }
    assert!(store.check(false).unwrap().is_empty());
    store.leases().release("container:x").unwrap();
    store.images().delete(&id).unwrap();
    assert!(
        matches!(store.images().resolve("app:1"), Err(StoreError::NoSuchImage(n)) if n == "app:1")
    );
    let report = store.gc().unwrap();
    assert_eq!((report.layers.len(), report.blobs.len()), (2, 1));
}

pub(super) fn collection_runs_beside_leases(form: LayerForm) {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), form);
    let tar = |content: &str| archive(&[("f", Regular, content)]);
    let layer = |content: &str| {
        store
            .layers()
            .apply(None, &tar(content)[..])
            .unwrap()
            .diff_id
    };
    let there = |id: &DiffId| store.layers().peek(id).unwrap().is_some();
    let (old, seen) = (layer("old"), layer("seen"));
    let blob = store.blobs().put_bytes(b"blob").unwrap();
    // A lease that is older than what nothing needs was found to be keeps it.
    let first = store.leases().acquire().unwrap();
    let report = store.gc().unwrap();
    assert!(report.busy && report.layers.is_empty() && report.blobs.is_empty());
    // A younger one does not, but for what it looks at.
    let second = store.leases().acquire().unwrap();
    assert!(store.layers().has(&seen).unwrap());
    let made = layer("made");
    drop(first);
    assert!(!there(&old) && there(&seen) && there(&made));
    assert!(!store.blobs().has(&blob));
    // One whose process died keeps nothing.
    fs::write(dir.path().join("leases/0-dead"), "").unwrap();
    let report = store.gc().unwrap();
    assert!(report.busy && report.layers.is_empty());
    // What is needed by the time it could go stays, also where no look spared it.
    let image = image_of(&store, &[&made]);
    drop(second);
    assert!(!there(&seen) && there(&made));
    assert_eq!(fs::read_dir(dir.path().join("leases")).unwrap().count(), 0);
    // A lease is had at once while another process collects.
    let collector = store.leases().collector().unwrap().unwrap();
    drop(store.leases().acquire().unwrap());
    assert!(store.gc().unwrap().busy);
    store.images().delete(&image).unwrap();
    drop(collector);
    assert_eq!(store.gc().unwrap().layers, [made]);
    assert!(store.sweep(false).unwrap().is_empty());
}

pub(super) fn a_layer_goes_with_the_blob_of_its_name(form: LayerForm) {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), form);
    let tar = archive(&[("f", Regular, "content")]);
    let diff_id = DiffId(Digest::of(&tar));
    let blob = store.blobs().put_bytes(&tar).unwrap();
    assert_eq!(blob, *diff_id.digest());
    store.layers().apply(Some(&diff_id), &tar[..]).unwrap();
    let report = store.gc().unwrap();
    assert_eq!(report.layers, [diff_id]);
    assert_eq!(report.blobs, [blob]);
    assert!(store.check(false).unwrap().is_empty());
}

pub(super) fn a_layer_that_was_looked_at_keeps_its_blob(form: LayerForm) {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), form);
    let tar = archive(&[("f", Regular, "content")]);
    let diff_id = DiffId(Digest::of(&tar));
    let blob = LayerBlob {
        digest: store.blobs().put_bytes(&tar).unwrap(),
        size: tar.len() as u64,
        media_type: String::new(),
    };
    store.layers().apply_blob(&blob, &diff_id).unwrap();
    let first = store.leases().acquire().unwrap();
    assert!(store.gc().unwrap().busy);
    // A pull or load finds the layer here, and takes it for one that needs not be fetched.
    let second = store.leases().acquire().unwrap();
    assert!(store.layers().has(&diff_id).unwrap());
    drop(first);
    assert!(store.gc().unwrap().busy);
    assert!(store.layers().has_to_send(&diff_id).unwrap());
    let image = image_of(&store, &[&diff_id]);
    drop(second);
    store.gc().unwrap();
    assert!(store.layers().has_to_send(&diff_id).unwrap());
    // With the layer its blob goes, at once.
    store.images().delete(&image).unwrap();
    let report = store.gc().unwrap();
    assert_eq!(report.layers, [diff_id]);
    assert!(report.blobs.contains(&blob.digest), "{report:?}");
}

/// A pull or build that goes on hides no damage, but what it may be about to need is no orphan.
pub(super) fn damage_is_found_beside_leases(form: LayerForm) {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), form);
    let tar = archive(&[("f", Regular, "content")]);
    let diff_id = DiffId(Digest::of(&tar));
    let blob = LayerBlob {
        digest: store.blobs().put_bytes(&tar).unwrap(),
        size: tar.len() as u64,
        media_type: String::new(),
    };
    store.layers().apply_blob(&blob, &diff_id).unwrap();
    let image = image_of(&store, &[&diff_id]);
    let _lease = store.leases().acquire().unwrap();
    store.blobs().put_bytes(b"loose").unwrap();
    let loose = archive(&[("f", Regular, "loose")]);
    store.layers().apply(None, &loose[..]).unwrap();
    let told = |repair| {
        let findings = store.check(repair).unwrap();
        let told = findings.iter().map(|f| (f.object.clone(), f.repaired));
        told.collect::<Vec<_>>()
    };
    assert_eq!(told(true), []);
    let config = image.to_string();
    fs::write(store.blobs().path(&image), "rotten").unwrap();
    assert_eq!(told(false), [(config.clone(), false)]);
    assert_eq!(told(true), [(config, true)]);
    let path = store.layers().path(&diff_id);
    if path.is_dir() {
        fs::remove_dir_all(&path).unwrap();
    } else {
        fs::write(&path, "rotten").unwrap();
    }
    assert!(told(false).contains(&(diff_id.to_string(), false)));
    assert!(told(true).contains(&(diff_id.to_string(), true)));
    assert_eq!(told(true), []);
    fs::write(store.blobs().path(&blob.digest), "rotten").unwrap();
    assert_eq!(told(false), [(blob.digest.to_string(), false)]);
    assert!(store.blobs().is_there(&Digest::of(b"loose")));
}

/// What a lease's holder was told is here stays here, whenever a collection is at it.
pub(super) fn what_was_told_to_be_here_is_here(form: LayerForm) {
    let dir = tempfile::tempdir().unwrap();
    let tar = archive(&[("f", Regular, "content")]);
    let diff_id = DiffId(Digest::of(&tar));
    let blob = Digest::of(b"blob");
    let begun = std::time::Instant::now();
    // What lookers were told of both: that it is here, and that it is not.
    let told: [[AtomicUsize; 2]; 2] = Default::default();
    let goes_on = || {
        let lacks = told.iter().flatten().any(|n| n.load(Relaxed) == 0);
        begun.elapsed().as_secs() < if lacks { 60 } else { 2 }
    };
    // As two processes: each has a connection of its own.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let store = store(dir.path(), form);
            while goes_on() {
                store.blobs().put_bytes(b"blob").unwrap();
                store.layers().apply(Some(&diff_id), &tar[..]).unwrap();
                store.gc().unwrap();
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                let store = store(dir.path(), form);
                while goes_on() {
                    let _lease = store.leases().acquire().unwrap();
                    let is_here = store.blobs().has(&blob);
                    if is_here {
                        store.blobs().open(&blob).unwrap();
                    }
                    told[0][usize::from(is_here)].fetch_add(1, Relaxed);
                    let is_here = store.layers().has(&diff_id).unwrap();
                    if is_here {
                        assert!(store.layers().peek(&diff_id).unwrap().is_some());
                    }
                    told[1][usize::from(is_here)].fetch_add(1, Relaxed);
                }
            });
        }
    });
    assert!(
        told.iter().flatten().all(|n| n.load(Relaxed) > 0),
        "{told:?}"
    );
}

pub(super) fn a_layer_whose_bytes_are_gone_is_made_again(form: LayerForm) {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), form);
    let tar = archive(&[("f", Regular, "content")]);
    let diff_id = store.layers().apply(None, &tar[..]).unwrap().diff_id;
    let image = image_of(&store, &[&diff_id]);
    let path = store.layers().path(&diff_id);
    if path.is_dir() {
        fs::remove_dir_all(&path).unwrap();
    } else {
        fs::remove_file(&path).unwrap();
    }
    let report = store.gc().unwrap();
    assert!(report.layers.is_empty() && !report.busy);
    assert!(!store.layers().has(&diff_id).unwrap());
    store.layers().apply(Some(&diff_id), &tar[..]).unwrap();
    let stack = std::slice::from_ref(&diff_id);
    store.layers().mount(stack, Upper::ReadOnly).unwrap();
    // What it can be made of stays known while somebody holds it.
    let blob = LayerBlob {
        digest: diff_id.digest().clone(),
        size: tar.len() as u64,
        media_type: String::new(),
    };
    store.layers().record_blob(&diff_id, &blob).unwrap();
    store.leases().hold("container:x", stack, &[]).unwrap();
    store.images().delete(&image).unwrap();
    store
        .database()
        .write(Durability::Relaxed, |db| Layers::forget_in(db, &diff_id))
        .unwrap();
    assert_eq!(store.layers().blobs_of(&diff_id).unwrap(), [blob]);
    store.leases().release("container:x").unwrap();
    // One that a collector had forgotten, but not moved away, when it was killed.
    store
        .database()
        .write(Durability::Relaxed, |db| Layers::forget_in(db, &diff_id))
        .unwrap();
    assert!(store.layers().is_on_disk(&diff_id));
    assert_eq!(store.gc().unwrap().layers, stack);
    assert!(!store.layers().is_on_disk(&diff_id));
}

pub(super) fn a_check_leaves_what_is_being_made(form: LayerForm) {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), form);
    let needed = DiffId(Digest::of(b"needed"));
    let loose = DiffId(Digest::of(b"loose"));
    fs::create_dir_all(dir.path().join("layers")).unwrap();
    for diff_id in [&needed, &loose] {
        fs::create_dir(store.layers().path(diff_id)).unwrap();
    }
    store
        .leases()
        .hold("container:x", std::slice::from_ref(&needed), &[])
        .unwrap();
    let locks = [&needed, &loose].map(|id| store.layers().try_lock(id).unwrap().unwrap());
    assert!(store.check(true).unwrap().is_empty());
    assert!(store.layers().is_on_disk(&needed) && store.layers().is_on_disk(&loose));
    drop(locks);
    // Nor does a check tell of orphans while anybody may count on them.
    assert_eq!(store.check(false).unwrap().len(), 2);
    let lease = store.leases().acquire().unwrap();
    assert!(store.check(false).unwrap().is_empty());
    drop(lease);
    let findings = store.check(true).unwrap();
    assert_eq!(findings.len(), 2, "{findings:?}");
    assert!(findings[0].lost.is_some() && findings[1].repaired);
    assert!(!store.layers().is_on_disk(&needed) && !store.layers().is_on_disk(&loose));
}

pub(super) fn many_layers_are_collected_at_once(form: LayerForm) {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), form);
    // No layer is needed to be whole for that.
    fs::create_dir_all(dir.path().join("layers")).unwrap();
    for n in 0..230 {
        let diff_id = DiffId(Digest::of(format!("{n}").as_bytes()));
        let path = store.layers().path(&diff_id);
        fs::create_dir(path).unwrap();
    }
    assert_eq!(store.gc().unwrap().layers.len(), 230);
    assert!(store.layers().all().unwrap().is_empty());
    assert!(store.sweep(false).unwrap().is_empty());
}

/// An image of these layers.
pub(super) fn image_of(store: &Store, layers: &[&DiffId]) -> crate::ImageId {
    let ids: Vec<String> = layers.iter().map(|id| format!("\"{id}\"")).collect();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        ids.join(",")
    );
    store.images().put(config.as_bytes(), None).unwrap()
}

pub(super) fn a_damaged_layer_is_unpacked_again(form: LayerForm) {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), form);
    let tar = archive(&[("f", Regular, "content")]);
    let diff_id = DiffId(Digest::of(&tar));
    let blob = LayerBlob {
        digest: store.blobs().put_bytes(&tar).unwrap(),
        size: tar.len() as u64,
        media_type: String::new(),
    };
    store.layers().apply_blob(&blob, &diff_id).unwrap();
    let image = image_of(&store, &[&diff_id]);
    store
        .images()
        .tag(&"app:1".parse().unwrap(), &image)
        .unwrap();
    let path = store.layers().path(&diff_id);
    let damage = || {
        if path.is_dir() {
            fs::remove_dir_all(&path).unwrap();
        } else {
            fs::write(&path, "rotten").unwrap();
        }
    };
    let whole = || {
        let stack = std::slice::from_ref(&diff_id);
        let root = RootFd::from(store.layers().mount(stack, Upper::ReadOnly).unwrap());
        assert_eq!(root.read(Path::new("f"), 99).unwrap(), b"content");
    };
    damage();
    let findings = store.check(true).unwrap();
    assert!(findings.len() == 1 && findings[0].repaired, "{findings:?}");
    whole();
    // Looked at only, nothing is thrown away, and collection leaves what it can be made of.
    damage();
    assert!(!store.check(false).unwrap()[0].repaired);
    store.gc().unwrap();
    assert!(store.check(true).unwrap()[0].repaired);
    whole();
    // Of a blob that has rotten, too, nothing can be made: the image is told.
    damage();
    fs::write(store.blobs().path(&blob.digest), "rotten").unwrap();
    let findings = store.check(true).unwrap();
    assert_eq!(findings[0].lost, Some(crate::Lost::Layer(diff_id.clone())));
    let told = findings
        .iter()
        .find(|found| found.kind == crate::FindingKind::Image);
    assert_eq!(told.unwrap().object, image.to_string());
    // What it was made of is still known, for whoever fetches it.
    let known = store.layers().blobs_of(&diff_id).unwrap();
    assert_eq!(known, std::slice::from_ref(&blob));
    store.blobs().put_bytes(&tar).unwrap();
    store.layers().apply_blob(&blob, &diff_id).unwrap();
    whole();
    // The blob of the config is in its row.
    fs::write(store.blobs().path(&image), "rotten").unwrap();
    let findings = store.check(true).unwrap();
    assert!(findings.len() == 1 && findings[0].repaired, "{findings:?}");
    assert!(store.check(false).unwrap().is_empty());
}

/// What a manifest alone keeps is kept until the manifest has been fetched again.
pub(super) fn blobs_of_a_lost_manifest_are_kept(form: LayerForm) {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), form);
    let tar = archive(&[("f", Regular, "content")]);
    let diff_id = DiffId(Digest::of(&tar));
    let zipped = |level| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
        std::io::Write::write_all(&mut gzip, &tar).unwrap();
        gzip.finish().unwrap()
    };
    let blobs = [zipped(0), zipped(9)].map(|bytes| LayerBlob {
        digest: store.blobs().put_bytes(&bytes).unwrap(),
        size: bytes.len() as u64,
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
    });
    assert_ne!(blobs[0], blobs[1]);
    for blob in &blobs {
        store.layers().apply_blob(blob, &diff_id).unwrap();
        store.layers().record_blob(&diff_id, blob).unwrap();
    }
    // Two registries have the image, in two forms.
    let id = image_of(&store, &[&diff_id]);
    let raw = store.images().get(&id).unwrap().raw_config;
    let manifests = blobs.each_ref().map(|blob| {
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json",
            "digest":"{id}","size":{}}},"layers":[{{"mediaType":"{}","digest":"{}","size":{}}}]}}"#,
            raw.len(),
            blob.media_type,
            blob.digest,
            blob.size
        );
        store.blobs().put_bytes(manifest.as_bytes()).unwrap()
    });
    for (manifest, name) in manifests.iter().zip(["one.test/app:1", "two.test/app:1"]) {
        let with = (manifest, "application/vnd.oci.image.manifest.v1+json");
        let names = [name.parse().unwrap()];
        let put = store.images().put_named(&raw, Some(with), &names);
        assert_eq!(put.unwrap(), id);
    }
    let is_there = |blob: &LayerBlob| store.blobs().is_there(&blob.digest);
    store.gc().unwrap();
    assert!(blobs.iter().all(is_there));
    for manifest in &manifests {
        let path = store.blobs().path(manifest);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, "rotten").unwrap();
        store.gc().unwrap();
        assert!(blobs.iter().all(is_there), "{manifest}");
        let findings = store.check(true).unwrap();
        assert_eq!(
            findings[0].lost,
            Some(crate::Lost::Blob(manifest.clone())),
            "{findings:?}"
        );
        assert!(findings.len() == 1 && !path.exists());
        store.gc().unwrap();
        assert!(blobs.iter().all(is_there), "{manifest}");
        fs::write(&path, bytes).unwrap();
    }
    assert!(store.check(false).unwrap().is_empty());
    store.images().delete(&id).unwrap();
    assert_eq!(store.gc().unwrap().blobs.len(), 5);
}

pub(super) fn what_a_check_cannot_mend_it_tells_again(form: LayerForm) {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), form);
    let tar = archive(&[("f", Regular, "content")]);
    let diff_id = DiffId(Digest::of(&tar));
    let blob = LayerBlob {
        digest: store.blobs().put_bytes(&tar).unwrap(),
        size: tar.len() as u64,
        media_type: String::new(),
    };
    store.layers().apply_blob(&blob, &diff_id).unwrap();
    let image = image_of(&store, &[&diff_id]);
    // The archive is not one of ours: nobody can write it again.
    let path = store.blobs().path(&blob.digest);
    let rotten = |path: &Path| fs::write(path, "rotten").unwrap();
    let lost = |digest: &Digest| {
        for _ in 0..2 {
            let findings = store.check(true).unwrap();
            let told: Vec<_> = findings.iter().filter_map(|f| f.lost.clone()).collect();
            assert_eq!(told, [crate::Lost::Blob(digest.clone())], "{findings:?}");
        }
        assert_eq!(store.check(false).unwrap().len(), 1);
    };
    rotten(&path);
    lost(&blob.digest);
    // With another blob it is not needed.
    store.blobs().put_bytes(&tar).unwrap();
    let plan = store.images().manifest_for_push(&image).unwrap();
    rotten(&path);
    let findings = store.check(true).unwrap();
    assert!(findings.len() == 1 && findings[0].repaired, "{findings:?}");
    assert!(store.check(false).unwrap().is_empty());
    // The manifest that it went with names this.
    store.images().set_manifest(&image, &plan).unwrap();
    let path = store.blobs().path(&plan.layers[0].digest);
    let bytes = fs::read(&path).unwrap();
    rotten(&path);
    lost(&plan.layers[0].digest);
    fs::write(&path, &bytes).unwrap();
    assert!(store.check(false).unwrap().is_empty());
    fs::remove_file(store.blobs().path(&plan.digest)).unwrap();
    lost(&plan.digest);
}
