//! The process beside each container.
//!
//! A supervisor is the parent of one container's first process and owns everything that goes
//! on while it lives: streams and log, attached clients, further processes, exit status,
//! restart policy, health check, published ports on loopback, name server. It holds a lock for as long as it lives, so
//! the kernel answers "is it running?".
//!
//! Mechanism only: what to run and whom to tell is the [`Host`]'s business. Single-threaded:
//! one event loop, because processes are cloned from it. What is undone at the end (network,
//! control group, run directory) is undone even if one part of it fails.

mod children;
pub mod client;
mod execs;
mod executing;
mod external;
mod health;
mod hub;
mod idle;
mod job;
mod launch;
mod limits;
pub mod logs;
pub mod look_up;
pub mod lower;
mod names;
mod network;
mod oom;
pub mod protocol;
mod published;
mod run;
mod server;
mod supervise;
mod sys;

pub use execs::cannot_start;
pub use external::ExternalRuntime;
pub use health::{HealthJob, HealthState, HealthStatus, Probe};
pub use job::{
    BoxError, Host, Job, NameServerJob, NetworkJob, Place, Places, RestartPolicy, Users,
};
pub use launch::{Launch, LaunchError, Launcher, Summoned, Summons};
pub use protocol::{Exit, Forced, Size, Streams};
pub use run::BUNDLE;
pub use supervise::supervise;
pub use sys::detach;
