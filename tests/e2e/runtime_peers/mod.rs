//! Other people's engines with our runtime: Podman, Docker's engine and containerd run
//! containers through a link named `corten-runtime`, configured as their users would do
//! it. Where one is not installed or cannot run, its test says so on standard error. The same
//! engines move images through our registry.

mod containerd;
mod docker;
mod engine_commands;
mod peer;
mod podman;
mod registry;

/// A service that says that it is up, and ends with 3 when it is asked to.
const SERVICE: &str = "echo started; trap \"exit 3\" TERM; while :; do sleep 0.1; done";
