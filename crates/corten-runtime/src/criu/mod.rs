//! CRIU, which saves and restores processes: its service protocol (criu's `images/rpc.proto`)
//! over a socket to `criu swrk`, as far as `checkpoint` and `restore` need it.

mod around;
mod options;
mod session;
mod wire;

use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::CliError;

pub use around::DESCRIPTORS;
pub(crate) use around::{adopt, descriptors, make_places, remember_descriptors, run_hooks};
pub(crate) use options::{Dump, Restore, external_descriptors};
pub(crate) use session::{Kind, Notice, call};

/// Flags of both commands.
#[derive(Debug, Default, Args)]
pub(crate) struct CriuArgs {
    /// Directory of the image files
    #[arg(long, default_value = "checkpoint", value_name = "DIR")]
    image_path: PathBuf,
    /// Directory for logs and other working files; else that of the images
    #[arg(long, value_name = "DIR")]
    work_path: Option<PathBuf>,
    /// Allow open TCP connections
    #[arg(long)]
    tcp_established: bool,
    /// Allow Unix sockets whose other end is outside
    #[arg(long)]
    ext_unix_sk: bool,
    /// Allow a session and terminal from outside
    #[arg(long)]
    shell_job: bool,
    /// Handle file locks
    #[arg(long)]
    file_locks: bool,
    /// What of the control groups is kept: soft, full, strict or ignore
    #[arg(long, value_name = "MODE", value_parser = manage_cgroups)]
    manage_cgroups_mode: Option<u64>,
    /// Make this namespace anew and empty (only "network", which always is)
    #[arg(long, value_name = "NAMESPACE", value_parser = ["network"])]
    empty_ns: Vec<String>,
    /// Drop memory pages from older images that newer ones have
    #[arg(long)]
    auto_dedup: bool,
    /// Restore memory pages when they are used (userfaultfd)
    #[arg(long)]
    lazy_pages: bool,
}

/// `CriuCgMode` of rpc.proto.
fn manage_cgroups(mode: &str) -> Result<u64, String> {
    match mode {
        "ignore" => Ok(0),
        "soft" => Ok(3),
        "full" => Ok(4),
        "strict" => Ok(5),
        _ => Err("use soft, full, strict or ignore".to_owned()),
    }
}

impl CriuArgs {
    /// Where CRIU works.
    pub(crate) fn work_path(&self) -> &Path {
        self.work_path.as_deref().unwrap_or(&self.image_path)
    }

    /// The log of that name.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.work_path().join(name)
    }

    pub(crate) fn image_path(&self) -> &Path {
        &self.image_path
    }

    /// What an engine asks for: images here, and locks of files kept.
    pub(crate) fn of_engine(images: &Path, work: Option<&Path>) -> Self {
        Self {
            image_path: images.to_owned(),
            work_path: work.map(Path::to_owned),
            file_locks: true,
            ..Self::default()
        }
    }

    /// Seen from the caller's working directory.
    pub(crate) fn make_absolute(&mut self) -> Result<(), CliError> {
        let absolute = |path: PathBuf| {
            std::path::absolute(&path)
                .map_err(|error| CliError::io(format_args!("find {}", path.display()), error))
        };
        self.image_path = absolute(std::mem::take(&mut self.image_path))?;
        self.work_path = self.work_path.take().map(absolute).transpose()?;
        Ok(())
    }
}

/// Errors of its log that it survives: of finding out what the kernel can, from within the
/// container's control group.
const HARMLESS: [&str; 2] = ["Unable to create tun", "Can't setup RLIMIT_NOFILE for self"];

fn is_harmless(error: &str) -> bool {
    HARMLESS.iter().any(|harmless| error.contains(harmless))
}

/// A failure, with the first error of CRIU's log and where that is.
pub(crate) fn explain(error: CliError, args: &CriuArgs, log: &str) -> CliError {
    let path = args.log(log);
    match said(&path) {
        Some(said) => CliError::Refused(format!("{error}: {said} (log: {})", path.display())),
        None => error,
    }
}

/// The same, for who does not keep the log.
pub(crate) fn explain_briefly(error: CliError, args: &CriuArgs, log: &str) -> CliError {
    match said(&args.log(log)) {
        Some(said) => CliError::Refused(format!("{error}: {said}")),
        None => error,
    }
}

/// The first error of a log.
fn said(log: &Path) -> Option<String> {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().find_map(|line| {
        let at = line.find("Error (")?;
        let said = line.get(at..).filter(|_| !is_harmless(line))?;
        Some(said.to_owned())
    })
}
