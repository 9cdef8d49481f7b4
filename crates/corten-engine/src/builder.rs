//! The engine's side of building: addresses on its bridge, and images from registries.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bollard_stubs::models::HostConfig;
use corten_build::{
    BoxError, Builder, CachedBlob, History, ImageSource, PullFuture, PullProgress, PullSink,
    RegistryDocument, Sandboxing, StepEndpoint, StepNetwork, StepNetworkMode,
};
use corten_db::Durability;
use corten_network::resolv::{self, DnsOptions};
use corten_network::{Driver, EndpointSpec, IpNet};
use corten_oci::runtime_spec::LinuxResources;
use corten_oci::{DiffId, ImageRef, Platform};
use corten_registry::{
    Credential, LocalBlob, Naming, Progress, ProgressEvent, PullRequest, Silent,
};
use corten_store::LayerBlob;

use crate::engine::Engine;
use crate::error::EngineError;
use crate::networks::{bridge, row as networks};
use crate::parse::limits;
use crate::sweep::NetworkLock;

/// Names the program to be executed for the engine's own processes, instead of the running
/// one (tests: the test's own program has no such faces).
pub(crate) const EXE_VARIABLE: &str = "CORTEN_EXE";

/// The program whose faces are the engine's own processes.
pub(crate) fn own_program() -> PathBuf {
    std::env::var_os(EXE_VARIABLE)
        .filter(|v| !v.is_empty())
        .map_or_else(|| PathBuf::from("/proc/self/exe"), PathBuf::from)
}

/// Other directories than the usual ones with descriptions of devices, colons between them.
const CDI_VARIABLE: &str = "CORTEN_CDI_DIRS";

/// Where descriptions of devices are.
pub(crate) fn cdi_directories() -> Vec<PathBuf> {
    match std::env::var_os(CDI_VARIABLE).filter(|dirs| !dirs.is_empty()) {
        Some(dirs) => std::env::split_paths(&dirs).collect(),
        None => corten_cdi::usual_directories(),
    }
}

impl Engine {
    /// Its image builder. `credentials`: for pulls of base images, by registry as in
    /// Docker's config (`https://index.docker.io/v1/`, `127.0.0.1:5000`).
    #[must_use]
    pub fn builder(&self, credentials: BTreeMap<String, Credential>) -> Builder {
        Builder::new(
            self.store().clone(),
            self.database().clone(),
            Arc::new(Registries {
                engine: self.clone(),
                credentials,
            }),
            Sandboxing {
                cgroup_parent: self.layout().cgroup_parent(),
                exe: own_program(),
                exe_args: vec!["build-step".to_owned()],
                network: Arc::new(Steps(self.clone())),
                parallelism: 0,
                cache_mounts: self.layout().root().join("cache-mounts"),
                history: self.layout().root().join("builds"),
                cdi: cdi_directories(),
            },
        )
    }
}

/// Memory and CPUs of build steps, of the fields of a `HostConfig`; the checks are those of
/// containers.
///
/// # Errors
/// A value is not possible.
pub fn step_resources(mut host: HostConfig) -> Result<Option<LinuxResources>, EngineError> {
    if host == HostConfig::default() {
        return Ok(None);
    }
    limits::adapt(&mut host);
    limits::resources(&host, crate::containers::cpus()).map(Some)
}

impl Engine {
    /// Looks into the builds that have been.
    ///
    /// # Errors
    /// They cannot be read.
    pub async fn build_history<T: Send + 'static>(
        &self,
        look: impl FnOnce(&History) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, EngineError> {
        let history = self.builder(BTreeMap::new()).history();
        self.blocking(move |_| {
            look(&history).map_err(|source| EngineError::Other {
                context: "read the builds' history".to_owned(),
                source: Box::new(source),
            })
        })
        .await
    }
}

/// Places on the bridge for RUN steps.
struct Steps(Engine);

/// An address in use by a step of this process.
struct Lease {
    engine: Engine,
    owner: String,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let released = self
            .engine
            .write(Durability::Relaxed, |c| networks::release(c, &self.owner));
        if let Err(error) = released {
            tracing::warn!(owner = %self.owner, %error, "an address is left to be swept");
        }
    }
}

/// The owner of a step's address: its id and the process that runs it, so that sweeping can
/// tell whether it is alive.
fn step_owner(id: &str) -> String {
    format!("{id}@{}", crate::sweep::this_process())
}

impl StepNetwork for Steps {
    fn allocate(&self, id: &str) -> Result<StepEndpoint, BoxError> {
        let engine = &self.0;
        let owner = step_owner(id);
        crate::sweep::builders(engine)?;
        let (spec, address) = {
            let _lock = NetworkLock::shared(engine)?;
            let (network, spec) = bridge::default_bridge(engine)?;
            let address = engine.write(Durability::Relaxed, |c| {
                networks::allocate(c, &network.id, &owner, false, None)
            })?;
            (spec, address)
        };
        let address = match address {
            IpNet::V4(address) => Some(address),
            IpNet::V6(_) => None,
        };
        let host_ifname = engine
            .layout()
            .veth(id.strip_prefix("build-").unwrap_or(id));
        let endpoint = EndpointSpec::new(Driver::Bridge(spec), host_ifname, address, None);
        let lease = Box::new(Lease {
            engine: engine.clone(),
            owner,
        });
        Ok(StepEndpoint { endpoint, lease })
    }

    fn resolv_conf(&self, mode: StepNetworkMode) -> Result<String, BoxError> {
        if mode == StepNetworkMode::Host {
            let text = std::fs::read("/etc/resolv.conf").unwrap_or_default();
            return Ok(String::from_utf8_lossy(&text).into_owned());
        }
        Ok(resolv::resolv_conf(
            &resolv::host_resolv_conf()?,
            &DnsOptions::default(),
        ))
    }
}

/// Pulls base images.
struct Registries {
    engine: Engine,
    credentials: BTreeMap<String, Credential>,
}

/// Turns a pull's events into a build's.
struct Told(PullSink);

impl Progress for Told {
    fn event(&self, event: ProgressEvent) {
        let text = match &event.id {
            Some(id) => format!("{id} {}", event.status),
            None => event.status.clone(),
        };
        (self.0)(PullProgress {
            text,
            current: event.current,
            total: event.total,
        });
    }
}

impl Registries {
    fn credential(&self, image: &ImageRef) -> Option<&Credential> {
        self.credentials
            .get(&corten_registry::server_key(image))
            .or_else(|| self.credentials.get(image.domain()))
    }
}

impl ImageSource for Registries {
    fn pull<'a>(
        &'a self,
        image: &'a ImageRef,
        platform: &'a Platform,
        progress: PullSink,
    ) -> PullFuture<'a> {
        Box::pin(async move {
            let credential = self.credential(image);
            if !Platform::host().satisfies(platform) {
                // Names go on standing for what runs here.
                let request = PullRequest {
                    store: self.engine.store(),
                    image,
                    platform,
                    naming: Naming::None,
                    credential,
                    progress: &Told(progress),
                };
                return Ok(self.engine.registry()?.pull(&request).await?.id);
            }
            let pulled = self
                .engine
                .images()
                .pull(image, Some(platform), credential, Arc::new(Told(progress)))
                .await
                .map_err(|error: EngineError| Box::new(error) as BoxError)?;
            Ok(pulled.id)
        })
    }

    fn document<'a>(
        &'a self,
        image: &'a ImageRef,
        platform: &'a Platform,
    ) -> PullFuture<'a, RegistryDocument> {
        Box::pin(async move {
            let client = self.engine.registry()?;
            let found = client
                .document(image, platform, self.credential(image))
                .await?;
            Ok(RegistryDocument {
                manifest: found.manifest,
                config: found.config,
            })
        })
    }

    fn layer<'a>(
        &'a self,
        image: &'a ImageRef,
        diff_id: &'a DiffId,
        blob: &'a LayerBlob,
    ) -> PullFuture<'a, ()> {
        Box::pin(async move {
            let (client, store) = (self.engine.registry()?, self.engine.store());
            let credential = self.credential(image);
            client
                .layer(store, image, diff_id, blob, credential, &Silent)
                .await?;
            Ok(())
        })
    }

    fn publish<'a>(
        &'a self,
        image: &'a ImageRef,
        blobs: Vec<CachedBlob>,
        manifest: &'a [u8],
        media_type: &'a str,
    ) -> PullFuture<'a, ()> {
        Box::pin(async move {
            let client = self.engine.registry()?;
            let blobs = blobs.into_iter().map(|blob| LocalBlob {
                digest: blob.digest,
                size: blob.size,
                file: blob.file,
            });
            let document = (manifest, media_type);
            client
                .publish(
                    image,
                    blobs.collect(),
                    document,
                    self.credential(image),
                    &Silent,
                )
                .await?;
            Ok(())
        })
    }
}
