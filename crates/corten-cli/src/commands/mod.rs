//! Every command.

mod build;
mod checkpoint;
pub(crate) mod container;
mod image;
mod inspect;
mod login;
mod manifest;
mod network;
mod serve;
mod shapes;
pub(crate) mod shared;
mod system;
mod version;
mod volume;

use crate::command::{Command, Face};
use crate::generate;

/// The command line itself.
pub(crate) static ROOT: Command = Command::group(
    "corten",
    "Containers without a daemon",
    &[
        &container::ATTACH,
        &build::BUILD,
        &build::GROUP,
        &build::BUILDX,
        &checkpoint::GROUP,
        &container::COMMIT,
        &generate::COMPLETION,
        &container::GROUP,
        &container::CP,
        &container::CREATE,
        &container::DIFF,
        &system::EVENTS,
        &container::EXEC,
        &container::EXPORT,
        &image::HISTORY,
        &image::GROUP,
        &image::IMAGES,
        &image::IMPORT,
        &system::INFO,
        &inspect::INSPECT,
        &container::KILL,
        &image::LOAD,
        &login::LOGIN,
        &login::LOGOUT,
        &container::LOGS,
        &generate::MAN,
        &manifest::GROUP,
        &network::GROUP,
        &container::PAUSE,
        &container::PORT,
        &container::PS,
        &image::PULL,
        &image::PUSH,
        &REGISTRY,
        &container::RENAME,
        &container::RESTART,
        &container::RM,
        &image::RMI,
        &container::RUN,
        &RUNTIME,
        &image::SAVE,
        &serve::SERVE,
        &container::START,
        &container::STATS,
        &container::STOP,
        &system::GROUP,
        &image::TAG,
        &container::TOP,
        &container::UNPAUSE,
        &container::UPDATE,
        &version::VERSION,
        &volume::GROUP,
        &container::WAIT,
        &container::WHY,
    ],
);

static REGISTRY: Command = Command::face(
    "registry",
    "Run a registry (distribution-spec)",
    Face::Registry,
);

static RUNTIME: Command = Command::face(
    "runtime",
    "OCI runtime with runc's command line",
    Face::Runtime,
);
