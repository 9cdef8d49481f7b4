//! Stores with images, registries to talk to, and a record of what a user was told.

use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use corten_db::Database;
use corten_oci::{DiffId, ImageRef, Platform};
use corten_registry::{
    Client, Credential, Naming, Progress, ProgressEvent, PullRequest, Pulled, Pushed,
    RegistriesConfig, RegistryError,
};
use corten_registryd::{Config, Server};
use corten_store::{ImageId, Store};
use serde_json::json;

/// A store in a folder of its own.
pub(crate) struct TestStore {
    pub(crate) store: Store,
    pub(crate) folder: tempfile::TempDir,
}

impl TestStore {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(&folder.path().join("db"), &[corten_store::SCHEMA]).unwrap();
        let store = Store::open(folder.path(), database);
        Self { store, folder }
    }

    /// An image with a layer for each of these contents.
    pub(crate) fn image(&self, name: &str, contents: &[&[u8]]) -> ImageId {
        let layers: Vec<DiffId> = contents
            .iter()
            .enumerate()
            .map(|(n, content)| self.layer(&format!("file{n}"), content))
            .collect();
        let config = json!({
            "architecture": Platform::host().architecture,
            "os": "linux",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": layers },
        });
        let images = self.store.images();
        let id = images.put(config.to_string().as_bytes(), None).unwrap();
        images.tag(&reference(name), &id).unwrap();
        id
    }

    /// A layer of one file, as a build step makes it.
    fn layer(&self, name: &str, content: &[u8]) -> DiffId {
        let work = self.store.layers().begin().unwrap();
        let mut file = std::fs::File::create(work.upper().join(name)).unwrap();
        file.write_all(content).unwrap();
        // Always the same layer.
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        file.set_modified(then).unwrap();
        self.store.layers().commit(work).unwrap().diff_id
    }

    /// What a layer's file has in it, for each layer of an image.
    pub(crate) fn tars(&self, id: &ImageId) -> Vec<Vec<u8>> {
        let layers = self.store.images().get(id).unwrap().layers;
        let tar = |layer: &DiffId| {
            let mut bytes = Vec::new();
            self.store.layers().tar(layer, &mut bytes).unwrap();
            bytes
        };
        layers.iter().map(tar).collect()
    }

    /// Partial downloads that are lying about.
    pub(crate) fn partials(&self) -> usize {
        let Ok(entries) = std::fs::read_dir(self.folder.path().join("tmp")) else {
            return 0;
        };
        entries
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().starts_with("ingest-"))
            .count()
    }

    pub(crate) async fn pull(
        &self,
        client: &Client,
        name: &str,
        credential: Option<&Credential>,
    ) -> Result<(Pulled, Vec<String>), RegistryError> {
        let told = Record::default();
        let request = PullRequest {
            store: &self.store,
            image: &reference(name),
            platform: &Platform::host(),
            naming: Naming::Names,
            credential,
            progress: &told,
        };
        let pulled = client.pull(&request).await?;
        Ok((pulled, told.lines()))
    }

    pub(crate) async fn push(
        &self,
        client: &Client,
        name: &str,
        credential: Option<&Credential>,
    ) -> Result<(Pushed, Vec<String>), RegistryError> {
        let told = Record::default();
        let name = reference(name);
        let id = self.store.images().named(&name).unwrap().unwrap();
        let pushed = client
            .push(&self.store, &name, &id, credential, &told)
            .await?;
        Ok((pushed, told.lines()))
    }
}

/// Bytes that do not compress, always the same ones.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        u8::try_from(state >> 56).unwrap()
    };
    std::iter::repeat_with(next).take(length).collect()
}

pub(crate) fn reference(name: &str) -> ImageRef {
    name.parse::<ImageRef>().unwrap().or_latest()
}

pub(crate) fn credential(username: &str, password: &str) -> Credential {
    Credential {
        username: username.into(),
        password: password.into(),
        ..Credential::default()
    }
}

/// A client with these settings (`registries.toml`).
pub(crate) fn client(settings: &str) -> Client {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registries.toml");
    std::fs::write(&path, settings).unwrap();
    Client::new(RegistriesConfig::load(&path).unwrap()).unwrap()
}

/// Our own registry on a free port; it ends with the test's runtime.
pub(crate) async fn registry(root: &Path, htpasswd: Option<&Path>) -> String {
    let config = Config {
        root: root.join("registry"),
        htpasswd: htpasswd.map(Path::to_owned),
        ..Config::default()
    };
    let server = Server::bind("127.0.0.1:0", config).await.unwrap();
    let address = server.address().to_string();
    tokio::spawn(server.serve(std::future::pending()));
    address
}

/// Everything a user was told.
#[derive(Default)]
struct Record(Mutex<Vec<ProgressEvent>>);

impl Progress for Record {
    fn event(&self, event: ProgressEvent) {
        self.0.lock().unwrap().push(event);
    }
}

impl Record {
    /// `id: status`, as `docker` writes them.
    fn lines(&self) -> Vec<String> {
        let events = self.0.lock().unwrap();
        let line = |event: &ProgressEvent| match &event.id {
            Some(id) => format!("{id}: {}", event.status),
            None => event.status.clone(),
        };
        events.iter().map(line).collect()
    }
}

/// How many of these lines end so.
pub(crate) fn count(lines: &[String], end: &str) -> usize {
    lines.iter().filter(|line| line.ends_with(end)).count()
}
