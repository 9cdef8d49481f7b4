//! CRIU, which saves and restores processes: its service protocol (criu's `images/rpc.proto`)
//! over a socket to `criu swrk`, as far as `checkpoint` and `restore` need it.

mod options;
mod session;
mod wire;
pub(super) mod witness;

use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::CliError;

pub(super) use options::{Dump, Restore, external_descriptors};
pub(super) use session::{Kind, Notice, call};

/// Flags of both commands.
#[derive(Debug, Args)]
pub(super) struct CriuArgs {
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
    pub(super) fn work_path(&self) -> &Path {
        self.work_path.as_deref().unwrap_or(&self.image_path)
    }

    /// The log of that name.
    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.work_path().join(name)
    }

    pub(super) fn image_path(&self) -> &Path {
        &self.image_path
    }

    /// Seen from the caller's working directory.
    pub(super) fn make_absolute(&mut self) -> Result<(), CliError> {
        self.image_path = crate::cli::bundle::absolute(std::mem::take(&mut self.image_path))?;
        if let Some(work) = self.work_path.take() {
            self.work_path = Some(crate::cli::bundle::absolute(work)?);
        }
        Ok(())
    }
}

/// A failure, with the first error of CRIU's log.
pub(super) fn explain(error: CliError, args: &CriuArgs, log: &str) -> CliError {
    let path = args.log(log);
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let said = text.lines().find_map(|line| {
        let at = line.find("Error (")?;
        line.get(at..)
    });
    match said {
        Some(said) => CliError::Refused(format!("{error}: {said} (log: {})", path.display())),
        None => error,
    }
}
