//! Hooks of a container that an engine makes (devices bring them along). Hooks of vendors read
//! `config.json` of the bundle that the state names, and look at the root where that says; an
//! engine's containers have neither on the host. So a directory is made for them, in which the
//! container's own mount namespace shows the root.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use corten_oci::runtime_spec::{Hook, Root, Spec};

use crate::create::{Created, Extras, create_with, hook_state};
use crate::error::{RuntimeError, Step};
use crate::hooks::{self, HookState};
use crate::sandbox::Sandbox;

/// The directory, and the hooks for the end: when it is dropped, after everything else of the
/// container is gone, those are called (`poststop`), and the directory is removed.
#[derive(Debug)]
pub struct HookGuard {
    dir: PathBuf,
    state: HookState,
    poststop: Vec<Hook>,
}

impl HookGuard {
    /// Of the container with this id and document; none where it has no hooks. `dir`: a place
    /// for the directory, which is not there yet.
    pub fn new(id: &str, spec: &Spec, dir: &Path) -> Result<Option<Self>, RuntimeError> {
        let Some(all) = spec.hooks() else {
            return Ok(None);
        };
        hooks::check(all)?;
        let fail = |error: std::io::Error| {
            let errno = rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO);
            RuntimeError::setup(Step::Rootfs, dir.display().to_string(), errno)
        };
        let mut guard = Self {
            dir: dir.to_owned(),
            state: hook_state(id, spec, dir),
            poststop: Vec::new(),
        };
        let root = Self::root(dir);
        let mut builder = DirBuilder::new();
        builder.mode(0o700).create(dir).map_err(fail)?;
        builder.create(&root).map_err(fail)?;
        let mut document = spec.clone();
        let mut described = Root::default();
        described.set_path(root);
        let readonly = spec.root().as_ref().and_then(Root::readonly);
        described.set_readonly(readonly);
        document.set_root(Some(described));
        let text = serde_json::to_vec(&document).map_err(|error| fail(error.into()))?;
        fs::write(dir.join("config.json"), text).map_err(fail)?;
        guard.poststop = all.poststop().clone().unwrap_or_default();
        Ok(Some(guard))
    }

    /// What whoever made it was killed with: none where there were no hooks.
    #[must_use]
    pub fn left(id: &str, dir: &Path) -> Option<Self> {
        let text = fs::read(dir.join("config.json")).ok()?;
        let spec: Spec = serde_json::from_slice(&text).ok()?;
        let poststop = spec.hooks().as_ref()?.poststop().clone();
        Some(Self {
            dir: dir.to_owned(),
            state: hook_state(id, &spec, dir),
            poststop: poststop.unwrap_or_default(),
        })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where hooks see the root.
    pub(crate) fn root(dir: &Path) -> PathBuf {
        dir.join("rootfs")
    }
}

/// As [`crate::create()`], for a container that may have hooks. `meanwhile` is called when the
/// process lives, while it sets itself up; `false` gives it up ([`RuntimeError::GivenUp`]).
pub fn create_hooked(
    sandbox: Sandbox<'_>,
    hooks: Option<&HookGuard>,
    meanwhile: &mut dyn FnMut() -> bool,
) -> Result<Created, RuntimeError> {
    let extras = Extras {
        bundle: hooks.map(|hooks| hooks.dir.clone()).unwrap_or_default(),
        ..Extras::default()
    };
    create_with(sandbox, extras, &mut |_| match meanwhile() {
        true => Ok(()),
        false => Err(RuntimeError::GivenUp),
    })
}

impl Drop for HookGuard {
    fn drop(&mut self) {
        let state = self.state.json("stopped", None);
        for error in hooks::run_all(&self.poststop, "poststop", &state) {
            tracing::warn!(%error, "a hook failed");
        }
        if let Err(error) = fs::remove_dir_all(&self.dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(dir = %self.dir.display(), %error, "what hooks were shown is left");
        }
    }
}
