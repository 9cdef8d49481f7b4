//! What is to be built, and with what.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use corten_network::EndpointSpec;
use corten_oci::runtime_spec::LinuxResources;
use corten_oci::{DiffId, Digest, ImageRef, Platform};
use corten_store::LayerBlob;

use crate::BoxError;
use crate::attest::Attest;
use crate::cache_mounts::CacheMounts;

/// One build.
#[derive(Debug, Default)]
pub struct BuildRequest {
    /// The files COPY and ADD see.
    pub context: Context,
    /// Which Dockerfile.
    pub dockerfile: DockerfileSource,
    /// Names for the image.
    pub tags: Vec<ImageRef>,
    /// The stage to build (name or number); the last when absent.
    pub target: Option<String>,
    /// `--build-arg`; `None` as value: unset (the variable was not set where it was asked for).
    pub build_args: BTreeMap<String, Option<String>>,
    /// `--label`, on top of the Dockerfile's.
    pub labels: BTreeMap<String, String>,
    /// Take nothing from the cache (results are still recorded).
    pub no_cache: bool,
    /// `--cache-from`
    pub cache_from: Vec<CacheImport>,
    /// `--cache-to`
    pub cache_to: Vec<CacheExport>,
    /// Stages that take nothing from the cache.
    pub no_cache_stages: Vec<String>,
    /// Ask the registry for newer base images even if there is one here.
    pub pull: bool,
    /// Platforms of the result; the host's when there are none. Of several the result is an index
    /// of images. Steps that run programs of a platform need a kernel that can execute them.
    pub platforms: Vec<Platform>,
    /// The result is an index, and directories for platforms, of one platform, too.
    pub multi_platform: bool,
    /// Network of RUN steps that do not say themselves.
    pub network: StepNetworkMode,
    /// `--add-host`: name and address, for RUN steps.
    pub extra_hosts: Vec<(String, String)>,
    /// `--build-context`, by name.
    pub contexts: BTreeMap<String, NamedContext>,
    /// Outputs that are no image.
    pub files: Vec<FilesOutput>,
    /// Make no image: only the files are wanted.
    pub no_image: bool,
    /// `--secret`, by id.
    pub secrets: BTreeMap<String, Secret>,
    /// `--ssh`: the socket of an agent of this machine, by id.
    pub agents: BTreeMap<String, PathBuf>,
    /// `--allow security.insecure`.
    pub allow_insecure: bool,
    /// `--allow device`: devices that RUN may ask for. Others only where their descriptions allow
    /// it.
    pub allow_devices: AllowedDevices,
    /// What RUN steps are limited by.
    pub limits: StepLimits,
    /// Memory and CPUs of RUN steps. As with BuildKit they are in no key: what a step makes does
    /// not depend on them.
    pub resources: Option<LinuxResources>,
    /// What is to be said of the image beside it.
    pub attest: Attest,
    /// Whether no file of a layer is to be later than SOURCE_DATE_EPOCH; if nothing is said, it
    /// is so.
    pub rewrite_times: Option<bool>,
    /// Opens a shell in the first RUN step that fails; the build fails when it has ended.
    pub shell: Option<ShellOffer>,
}

impl BuildRequest {
    /// Whether it takes a moment where all steps are known: there is nothing to be fetched,
    /// unpacked or written but an image.
    pub(crate) fn is_brief(&self) -> bool {
        let at_hand = matches!(self.context, Context::Empty | Context::Dir(_))
            && !matches!(self.dockerfile, DockerfileSource::File(_))
            && self.contexts.is_empty();
        let plain = self.files.is_empty() && self.attest.is_empty() && self.platforms.len() < 2;
        let ours = self.cache_from.is_empty() && self.cache_to.is_empty();
        at_hand && plain && ours && !(self.no_cache || self.pull || self.no_image)
    }
}

/// What `--allow device=NAME[,alias=OTHER]` lets a build use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedDevice {
    /// Stands for devices as it does in RUN.
    pub name: String,
    /// What RUN calls them instead.
    pub alias: Option<String>,
}

impl AllowedDevice {
    /// What stands behind `device=`.
    ///
    /// # Errors
    /// In BuildKit's words: a field that is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut fields = text.split(',');
        let name = fields.next().unwrap_or_default().to_owned();
        let mut alias = None;
        for field in fields {
            match field.split_once('=') {
                Some(("alias", other)) if !other.is_empty() => alias = Some(other.to_owned()),
                Some(("alias", _)) | None => {
                    return Err(format!("invalid device config {field:?}"));
                }
                Some((key, _)) => return Err(format!("unknown device config key {key:?}")),
            }
        }
        Ok(Self { name, alias })
    }
}

/// Devices that a build may use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedDevices {
    /// All there are.
    pub all: bool,
    /// These, by these names.
    pub some: Vec<AllowedDevice>,
}

/// Is given the terminal of a shell in a failed step, once, and told which shell it is and, in
/// several lines, what has failed.
pub struct ShellOffer(Box<TakeShell>);

type TakeShell = dyn FnOnce(OwnedFd, &str, &str) + Send;

impl ShellOffer {
    /// Of what is to be done with the terminal.
    pub fn new(take: impl FnOnce(OwnedFd, &str, &str) + Send + 'static) -> Self {
        Self(Box::new(take))
    }

    /// Gives it away.
    pub fn give(self, terminal: OwnedFd, shell: &str, report: &str) {
        (self.0)(terminal, shell, report);
    }
}

impl fmt::Debug for ShellOffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShellOffer(…)")
    }
}

/// What a name stands for in FROM, COPY and RUN.
#[derive(Debug)]
pub enum NamedContext {
    /// These files. A repository or a URL is only fetched when something needs it; of a URL
    /// the one file is called `context`, as with BuildKit, and never unpacked.
    Files(Context),
    /// This image.
    Image(ImageRef),
    /// An image of an OCI layout in a directory of this machine.
    Layout {
        /// The directory.
        dir: PathBuf,
        /// The image's name in its index; `latest`, or the only one, when absent.
        tag: Option<String>,
        /// The digest of its manifest or index.
        digest: Option<Digest>,
    },
}

/// A cache to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheImport {
    /// A directory.
    Directory(PathBuf),
    /// What a registry has under this name: a cache, or an image that carries its own.
    Registry(ImageRef),
}

/// A cache to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheExport {
    /// Where to.
    pub to: CacheTarget,
    /// All stages' steps (`mode=max`), not only those of the result.
    pub all: bool,
    /// Whether the build goes on when it cannot be written.
    pub ignore_error: bool,
}

/// Where a cache is written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheTarget {
    /// A directory.
    Directory(PathBuf),
    /// A registry, under this name.
    Registry(ImageRef),
    /// The image itself.
    Inline,
}

/// Where the files of the result go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilesOutput {
    /// Into a directory of this machine.
    Directory(PathBuf),
    /// Into one file, as a tar.
    Tar(PathBuf),
    /// To this process's standard output, as a tar.
    Stdout,
}

/// Limits and surroundings of RUN steps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepLimits {
    /// `--ulimit`: name (`nofile`), soft and hard limit.
    pub ulimits: Vec<(String, u64, u64)>,
    /// `--shm-size` in bytes.
    pub shm_size: Option<u64>,
    /// What the machine is called (`buildkitsandbox` when absent).
    pub hostname: Option<String>,
    /// `--cgroup-parent`, relative to each hierarchy's root; the engine's own when absent.
    pub cgroup_parent: Option<String>,
}

/// Something that must not be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Of these bytes.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// As the value of a variable, where it can be one.
    pub(crate) fn text(&self) -> Option<&str> {
        let text = std::str::from_utf8(&self.0).ok()?;
        (!text.contains('\0')).then_some(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Where the files come from. Only what is used is read.
#[derive(Default)]
pub enum Context {
    /// Nothing (`docker build - < Dockerfile`).
    #[default]
    Empty,
    /// A directory of this machine.
    Dir(PathBuf),
    /// A tar stream, plain or compressed (gzip, bzip2, xz, zstd). It is unpacked to a temporary directory.
    Tar(Box<dyn Read + Send>),
    /// A Git repository, or the URL of a tar or of a Dockerfile alone.
    Remote(String),
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("Empty"),
            Self::Dir(path) => f.debug_tuple("Dir").field(path).finish(),
            Self::Tar(_) => f.write_str("Tar"),
            Self::Remote(url) => f
                .debug_tuple("Remote")
                .field(&crate::remote::masked(url))
                .finish(),
        }
    }
}

/// Where the Dockerfile is.
#[derive(Debug, Clone)]
pub enum DockerfileSource {
    /// A path inside the context.
    InContext(String),
    /// A file of this machine, outside the context (only for callers that may name such).
    File(PathBuf),
    /// Its text.
    Inline(String),
}

impl Default for DockerfileSource {
    fn default() -> Self {
        Self::InContext("Dockerfile".to_owned())
    }
}

/// The network of a RUN step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StepNetworkMode {
    /// The engine's bridge.
    #[default]
    Default,
    /// Only loopback.
    None,
    /// The host's.
    Host,
}

impl StepNetworkMode {
    /// From the values of `--network`: `default`, `bridge` and the empty word are one.
    ///
    /// # Errors
    /// The word, when it is none of these.
    pub fn parse(word: &str) -> Result<Self, String> {
        match word {
            "" | "default" | "bridge" => Ok(Self::Default),
            "none" => Ok(Self::None),
            "host" => Ok(Self::Host),
            other => Err(other.to_owned()),
        }
    }

    /// The word of `--network`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::None => "none",
            Self::Host => "host",
        }
    }
}

/// Gives RUN steps a place on the engine's bridge. The engine implements it, so that addresses
/// never clash with containers'.
pub trait StepNetwork: Send + Sync {
    /// A place for the step `id` (`build-` and 16 hex digits, unique). Blocks.
    ///
    /// # Errors
    /// No address is free, or the bridge cannot be brought up.
    fn allocate(&self, id: &str) -> Result<StepEndpoint, BoxError>;

    /// The `resolv.conf` for steps on the bridge and on the host's network.
    ///
    /// # Errors
    /// The host's cannot be read.
    fn resolv_conf(&self, mode: StepNetworkMode) -> Result<String, BoxError>;
}

/// A place on the bridge, given back when dropped.
pub struct StepEndpoint {
    /// What to connect.
    pub endpoint: EndpointSpec,
    /// Whoever holds this holds the address.
    pub lease: Box<dyn Send>,
}

impl fmt::Debug for StepEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepEndpoint")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

/// What a pull tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullProgress {
    /// For example `a1b2c3d4e5f6 Downloading`.
    pub text: String,
    /// Bytes so far.
    pub current: Option<u64>,
    /// Bytes in all.
    pub total: Option<u64>,
}

/// Receives the progress of a pull.
pub type PullSink = Arc<dyn Fn(PullProgress) + Send + Sync>;

/// A transfer in flight.
pub type PullFuture<'a, T = Digest> =
    std::pin::Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send + 'a>>;

/// A document that a registry has under a name.
#[derive(Debug, Clone)]
pub struct RegistryDocument {
    /// Its manifest, byte for byte.
    pub manifest: Vec<u8>,
    /// The manifest's config, byte for byte.
    pub config: Vec<u8>,
}

/// A blob to be published.
#[derive(Debug, Clone)]
pub struct CachedBlob {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Its bytes.
    pub file: PathBuf,
}

/// What a build wants of registries: images that are not here, and caches. The engine
/// implements it over corten-registry, with its client's credentials.
pub trait ImageSource: Send + Sync {
    /// Pulls an image into the store and tells its id (of the config). It is tagged there, unless
    /// it is of another platform than the host's.
    fn pull<'a>(
        &'a self,
        image: &'a ImageRef,
        platform: &'a Platform,
        progress: PullSink,
    ) -> PullFuture<'a>;

    /// What a name stands for; of an index, the manifest of the platform.
    fn document<'a>(
        &'a self,
        image: &'a ImageRef,
        platform: &'a Platform,
    ) -> PullFuture<'a, RegistryDocument>;

    /// Brings one layer of a document into the store.
    fn layer<'a>(
        &'a self,
        image: &'a ImageRef,
        diff_id: &'a DiffId,
        blob: &'a LayerBlob,
    ) -> PullFuture<'a, ()>;

    /// Publishes a manifest under a name, after its blobs.
    fn publish<'a>(
        &'a self,
        image: &'a ImageRef,
        blobs: Vec<CachedBlob>,
        manifest: &'a [u8],
        media_type: &'a str,
    ) -> PullFuture<'a, ()>;
}

/// What the builder must know of its engine.
#[derive(Clone)]
pub struct Sandboxing {
    /// Parent of the steps' cgroups, relative to each hierarchy's root.
    pub cgroup_parent: String,
    /// The program whose `build-step` face executes a RUN step; `/proc/self/exe` as a rule.
    pub exe: PathBuf,
    /// The words that choose that face, before its own arguments: `["build-step"]`.
    pub exe_args: Vec<String>,
    /// The bridge.
    pub network: Arc<dyn StepNetwork>,
    /// Steps that run at once; 0: two for each core, and no fewer than four, as steps often wait
    /// for a network.
    pub parallelism: usize,
    /// Where the directories of `RUN --mount=type=cache` are kept.
    pub cache_mounts: PathBuf,
    /// Where builds are recorded.
    pub history: PathBuf,
    /// Where devices are described (CDI); later directories count for more.
    pub cdi: Vec<PathBuf>,
}

impl Sandboxing {
    pub(crate) fn cache_mounts(&self) -> CacheMounts {
        CacheMounts::new(self.cache_mounts.clone())
    }
}

impl fmt::Debug for Sandboxing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandboxing")
            .field("cgroup_parent", &self.cgroup_parent)
            .field("exe", &self.exe)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::{Annotation, AnnotationKind};

    type Change = fn(&mut BuildRequest);

    fn after(change: Change) -> BuildRequest {
        let mut request = BuildRequest::default();
        change(&mut request);
        request
    }

    #[test]
    fn what_takes_a_moment() {
        let brief: [Change; 6] = [
            |_| {},
            |r| r.context = Context::Dir("/c".into()),
            |r| r.dockerfile = DockerfileSource::Inline("FROM a".to_owned()),
            |r| r.platforms = vec![Platform::host()],
            |r| r.tags = vec!["t".parse().unwrap()],
            |r| _ = r.secrets.insert("s".to_owned(), Secret::new(Vec::new())),
        ];
        for (number, change) in brief.into_iter().enumerate() {
            assert!(after(change).is_brief(), "{number}");
        }
        let long: [Change; 14] = [
            |r| r.context = Context::Tar(Box::new(std::io::empty())),
            |r| r.context = Context::Remote("https://e.example/c.git".to_owned()),
            // A pipe, as it may be.
            |r| r.dockerfile = DockerfileSource::File("/d".into()),
            |r| {
                let files = NamedContext::Files(Context::Dir("/n".into()));
                r.contexts.insert("n".to_owned(), files);
            },
            |r| r.files = vec![FilesOutput::Stdout],
            |r| r.attest.sbom = true,
            |r| r.attest.oci = Some(true),
            |r| {
                r.attest.annotations = vec![Annotation {
                    kind: AnnotationKind::Manifest,
                    platform: None,
                    key: "k".to_owned(),
                    value: "v".to_owned(),
                }];
            },
            |r| r.platforms = vec![Platform::host(), Platform::host()],
            |r| r.cache_from = vec![CacheImport::Directory("/i".into())],
            |r| {
                r.cache_to = vec![CacheExport {
                    to: CacheTarget::Inline,
                    all: false,
                    ignore_error: false,
                }];
            },
            |r| r.no_cache = true,
            |r| r.pull = true,
            |r| r.no_image = true,
        ];
        for (number, change) in long.into_iter().enumerate() {
            assert!(!after(change).is_brief(), "{number}");
        }
    }
}
