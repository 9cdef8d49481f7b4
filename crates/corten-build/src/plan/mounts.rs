//! `RUN --mount`, from the flags to what is mounted where.

use corten_dockerfile::{Mount, MountKind, Sharing, Span};

use super::evaluate::Stage;
use super::{CopyFrom, values};
use crate::error::BuildError;
use crate::special_args::CACHE_MOUNT_NS;

/// Where a secret is seen that says nothing else.
const SECRETS: &str = "/run/secrets";
/// Where the socket of an agent is seen that says nothing else; a number follows.
const AGENT: &str = "/run/buildkit/ssh_agent.";

/// One mount of a RUN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunMount {
    /// Absolute; `None` for a secret that is only a variable.
    pub(crate) target: Option<String>,
    pub(crate) read_only: bool,
    pub(crate) what: Mounted,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mounted {
    /// Files of the context, a stage or an image.
    Bind {
        from: MountFrom,
        /// A path in it, without a slash at its beginning; empty: all of it.
        source: String,
    },
    /// A directory that is kept.
    Cache {
        id: String,
        sharing: Sharing,
        /// What it holds at first.
        from: MountFrom,
        source: String,
        owner: (u32, u32),
        mode: u32,
    },
    /// A file system in memory.
    Tmpfs { size: Option<u64> },
    /// A secret, as a file, a variable or both.
    Secret {
        id: String,
        env: Option<String>,
        required: bool,
        owner: (u32, u32),
        mode: u32,
    },
    /// The socket of an agent.
    Ssh {
        id: String,
        required: bool,
        owner: (u32, u32),
        mode: u32,
    },
}

/// Where files come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MountFrom {
    /// Nowhere: an empty directory.
    Nothing,
    /// As with COPY.
    Files(CopyFrom),
}

impl RunMount {
    /// The stage, image or context whose files it needs.
    pub(crate) fn files(&self) -> Option<&CopyFrom> {
        match &self.what {
            Mounted::Bind { from, .. } | Mounted::Cache { from, .. } => match from {
                MountFrom::Nothing => None,
                MountFrom::Files(from) => Some(from),
            },
            _ => None,
        }
    }
}

/// Begins ids of caches in a namespace, before the length of its name.
const NAMESPACE: &str = "ns:";

impl Stage<'_> {
    /// The mounts of a RUN.
    pub(super) fn mounts(&self, flags: &[String], span: Span) -> Result<Vec<RunMount>, BuildError> {
        let mut agents = 0;
        flags
            .iter()
            .map(|flag| {
                let mount = Mount::parse(flag, &mut |word| {
                    self.lexer().word(word, &|name| self.scope.lookup(name))
                })
                .map_err(|message| self.error(span, message))?;
                self.mount(mount, &mut agents, span)
            })
            .collect()
    }

    /// The id of a cache where the build has a namespace for them. No id that a Dockerfile gives
    /// is that of another namespace's cache: what would look like one is told from it.
    fn in_namespace(&self, id: String) -> String {
        let arguments = &self.outline.settings.build_args;
        match arguments.get(CACHE_MOUNT_NS).and_then(Option::as_deref) {
            None | Some("") if id.starts_with(NAMESPACE) => format!("{NAMESPACE}:{id}"),
            None | Some("") => id,
            Some(namespace) => format!("{NAMESPACE}{}:{namespace}/{id}", namespace.len()),
        }
    }

    fn mount(&self, mount: Mount, agents: &mut usize, span: Span) -> Result<RunMount, BuildError> {
        let owner = (mount.uid.unwrap_or(0), mount.gid.unwrap_or(0));
        let source = mount.source.as_deref().unwrap_or_default();
        let source = values::join("/", source).trim_start_matches('/').to_owned();
        let from = || match mount.from.as_deref() {
            Some("scratch") => Ok(MountFrom::Nothing),
            None if mount.kind == MountKind::Cache => Ok(MountFrom::Nothing),
            from => {
                let files = self.outline.copy_from(self.index, from, span)?;
                if self.outline.is_too_late(&files, self.index) {
                    let message = format!(
                        "cannot mount from stage {:?} to {:?}, stage needs to be defined before \
                         current command",
                        from.unwrap_or_default(),
                        mount.target.as_deref().unwrap_or_default()
                    );
                    return Err(self.error(span, message));
                }
                Ok(MountFrom::Files(files))
            }
        };
        let mut target = mount.target.clone();
        let what = match mount.kind {
            MountKind::Bind => Mounted::Bind {
                from: from()?,
                source,
            },
            MountKind::Cache => Mounted::Cache {
                id: self.in_namespace(
                    mount
                        .id
                        .clone()
                        .or_else(|| target.as_deref().map(cleaned))
                        .unwrap_or_default(),
                ),
                sharing: mount.sharing,
                from: from()?,
                source,
                owner,
                mode: mount.mode.unwrap_or(0o755),
            },
            MountKind::Tmpfs => Mounted::Tmpfs { size: mount.size },
            MountKind::Secret => {
                let id = mount.secret_id();
                if target.is_none() && mount.env.is_none() {
                    let name = id.rsplit('/').next().unwrap_or_default();
                    target = Some(format!("{SECRETS}/{name}"));
                }
                Mounted::Secret {
                    id,
                    // An empty name: the id itself.
                    env: mount.env.clone(),
                    required: mount.required,
                    owner,
                    mode: mount.mode.unwrap_or(0o400),
                }
            }
            MountKind::Ssh => {
                if target.is_none() {
                    target = Some(format!("{AGENT}{agents}"));
                }
                *agents += 1;
                Mounted::Ssh {
                    id: mount.ssh_id(),
                    required: mount.required,
                    owner,
                    mode: mount.mode.unwrap_or(0o600),
                }
            }
        };
        let target = match target {
            None if matches!(what, Mounted::Secret { .. }) => None,
            target => {
                let written = target.unwrap_or_default();
                let target = values::join(&self.workdir(), &written);
                if target == "/" {
                    return Err(self.error(span, "invalid mount target \"/\""));
                }
                Some(target)
            }
        };
        Ok(RunMount {
            target,
            read_only: mount.read_only,
            what,
        })
    }
}

/// Go's `path.Clean`, for the id of a cache that has none.
fn cleaned(path: &str) -> String {
    let joined = values::join("/", path);
    if path.starts_with('/') {
        joined
    } else {
        joined.trim_start_matches('/').to_owned()
    }
}
