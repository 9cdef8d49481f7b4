//! Lowering a limit of memory below what is in use. The kernel has the writer free memory until there is
//! no more than that (always on cgroup v1, on v2 before Linux 6.16), which may take minutes: streams,
//! stops and execs must not wait for it, and where processes are cloned there is no second thread to wait
//! in. A process of our own program writes it, also when whoever asked for it has left; it ends with the
//! supervisor at the latest.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use corten_oci::runtime_spec::LinuxResources;
use corten_runtime::{Cgroup, Lowering};

use crate::children::Busy;

/// The face that writes a limit: `FILE VALUE`.
pub const FACE: &str = "lower-limit";

/// Writes its second argument into the file that its first one names; if that fails, prints the number
/// of the error.
#[must_use]
pub fn main(args: &[OsString]) -> ExitCode {
    let [path, value] = args else {
        eprintln!("{FACE}: expected FILE VALUE");
        return ExitCode::FAILURE;
    };
    match corten_runtime::write_limit(Path::new(path), &value.to_string_lossy()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{}", error.raw_os_error().unwrap_or(libc::EIO));
            ExitCode::FAILURE
        }
    }
}

/// Limits that have been lowered, ahead of the update they belong to.
#[derive(Debug, Default)]
pub(crate) struct Lowered(Vec<Lowering>);

impl Lowered {
    /// Lowers what takes long of an update of a container's limits. What was lowered is put back if
    /// the rest is refused, or nobody waits for it any more.
    ///
    /// # Errors
    /// Why not, in words.
    pub(crate) async fn by(group: &Cgroup, resources: &LinuxResources) -> Result<Self, String> {
        let mut lowered = Self::default();
        for lowering in group.lowerings(resources) {
            let written = write(Path::new("/proc/self/exe"), &lowering).await;
            lowered.0.push(lowering);
            written?;
        }
        Ok(lowered)
    }

    /// The update they belong to is done.
    pub(crate) fn stay(mut self) {
        self.0.clear();
    }
}

impl Drop for Lowered {
    fn drop(&mut self) {
        self.0.iter().rev().for_each(Lowering::put_back);
    }
}

async fn write(program: &Path, lowering: &Lowering) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| {
        let path = lowering.path();
        format!("write {}: {error}", path.display())
    };
    let told = run(program, lowering.path(), lowering.value()).await;
    let told = told.map_err(|error| failed(&error))?;
    if told.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&told.stdout);
    Err(match text.trim().parse() {
        Ok(errno) => lowering.refused(errno).to_string(),
        Err(_) => failed(&told.status),
    })
}

async fn run(program: &Path, path: PathBuf, value: &str) -> io::Result<std::process::Output> {
    let _busy = Busy::begin();
    let mut command = std::process::Command::new(program);
    command.arg(FACE).arg(path).arg(value).stdin(Stdio::null());
    crate::sys::end_with_us(&mut command);
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true).output().await
}
