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

/// How long a hook may take, in seconds, that somebody calls for whoever was killed before.
const PATIENCE: i64 = 10;
/// The file in the directory that says that the last hooks have been called: they are once at most.
const CALLED: &str = "called";

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

    /// What whoever made it was killed with: none where there were no hooks. None of them may take for ever,
    /// whatever it says itself: it may be why that was killed, and somebody waits.
    #[must_use]
    pub fn left(id: &str, dir: &Path) -> Option<Self> {
        if !dir.exists() {
            return None;
        }
        let text = fs::read(dir.join("config.json")).unwrap_or_default();
        // Killed before it was written: nothing has been called either.
        let spec: Spec = serde_json::from_slice(&text).unwrap_or_default();
        let hooks = spec.hooks().as_ref();
        let mut poststop = hooks.and_then(|all| all.poststop().clone());
        for hook in poststop.iter_mut().flatten() {
            let own = hook.timeout().unwrap_or(PATIENCE);
            hook.set_timeout(Some(own.min(PATIENCE)));
        }
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
        let said = fs::File::create_new(self.dir.join(CALLED));
        let called = said.is_err_and(|error| error.kind() == std::io::ErrorKind::AlreadyExists);
        if !called {
            let state = self.state.json("stopped", None);
            for error in hooks::run_all(&self.poststop, "poststop", &state) {
                tracing::warn!(%error, "a hook failed");
            }
        }
        if let Err(error) = fs::remove_dir_all(&self.dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(dir = %self.dir.display(), %error, "what hooks were shown is left");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_called_once_and_not_for_ever() {
        let base = tempfile::tempdir().unwrap();
        let (dir, called) = (base.path().join("bundle"), base.path().join("called"));
        let count = format!("echo x >> {}", called.display());
        let hook = |timeout: Option<i64>| serde_json::json!({ "path": "/bin/sh", "args": ["sh", "-c", count], "timeout": timeout });
        let text = serde_json::json!({
            "ociVersion": "1.0.0",
            "hooks": { "poststop": [hook(None), hook(Some(1)), hook(Some(1000))] }
        });
        let left = || HookGuard::left("box", &dir);
        assert!(left().is_none());
        // The second time somebody was killed after he had called them.
        for again in [false, true] {
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("config.json"), text.to_string()).unwrap();
            if again {
                fs::write(dir.join(CALLED), "").unwrap();
            }
            let guard = left().unwrap();
            let bounds = guard.poststop.iter().map(Hook::timeout);
            assert_eq!(bounds.collect::<Vec<_>>(), [Some(10), Some(1), Some(10)]);
            drop(guard);
            assert_eq!(fs::read_to_string(&called).unwrap(), "x\nx\nx\n");
            assert!(!dir.exists());
        }
        // Killed before there was a document: only the directory goes.
        fs::create_dir(&dir).unwrap();
        drop(left());
        assert!(!dir.exists() && called.exists());
    }
}
