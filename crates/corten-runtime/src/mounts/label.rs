//! `linux.mountLabel` (runtime-spec, config-linux "Mount Label"): the SELinux label of the
//! files in the file systems that are made for a container.

use std::os::fd::BorrowedFd;

use corten_oci::runtime_spec::Spec;
use rustix::fs::{XattrFlags, fsetxattr};
use rustix::io::Errno;

use super::options::Options;
use crate::error::RuntimeError;

/// The label of a container's mounts.
#[derive(Debug)]
pub(super) struct Context(String);

/// The spec's label. Without SELinux there is nothing that could honour it.
pub(super) fn context(spec: &Spec) -> Result<Option<Context>, RuntimeError> {
    let linux = spec.linux().as_ref();
    let label = linux.and_then(|linux| linux.mount_label().as_ref());
    let Some(label) = label.filter(|label| !label.is_empty()) else {
        return Ok(None);
    };
    if !std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        let reason = "SELinux is not enabled on this host";
        return Err(RuntimeError::spec("linux.mountLabel", reason));
    }
    Ok(Some(Context(label.clone())))
}

impl Context {
    /// As an option, as far as the file system takes it: procfs and sysfs have labels of
    /// their own, and a mqueue's root is labelled afterwards.
    pub(super) fn add_to(&self, kind: &str, options: &mut Options) {
        match kind {
            "proc" | "sysfs" => {}
            "mqueue" => options.label = Some(self.0.clone()),
            _ => options
                .data
                .push(("context".to_owned(), Some(self.0.clone()))),
        }
    }
}

/// Labels the root of a mount.
pub(super) fn set(mount: BorrowedFd<'_>, label: &str) -> Result<(), Errno> {
    let root = rustix::fs::openat(
        mount,
        ".",
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    fsetxattr(
        root,
        "security.selinux",
        label.as_bytes(),
        XattrFlags::empty(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_file_system() {
        let context = Context("a:b:c:s0:c1,c2".to_owned());
        let with = |kind: &str| {
            let mut options = Options::default();
            context.add_to(kind, &mut options);
            (options.data.len(), options.label.is_some())
        };
        assert_eq!(with("tmpfs"), (1, false));
        assert_eq!(with("devpts"), (1, false));
        assert_eq!(with("mqueue"), (0, true));
        assert_eq!(with("proc"), (0, false));
    }
}
