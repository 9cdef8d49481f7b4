//! All cases.

pub mod attacks;
mod attributes;
mod cli_checkpoint;
mod cli_crash;
mod cli_crash_criu;
mod cli_exec;
mod cli_hooks;
mod cli_lifecycle;
mod cli_manage;
mod cli_notify;
mod cli_races;
mod cli_run;
mod cli_told;
mod isolation;
mod limits;
mod mounts;
mod namespaces;
mod process;
mod rootless;
mod seccomp;
mod systemd;
mod updates;

use crate::Case;

pub fn all() -> Vec<Case> {
    [
        attributes::CASES,
        mounts::CASES,
        namespaces::CASES,
        rootless::CASES,
        process::CASES,
        isolation::CASES,
        limits::CASES,
        seccomp::CASES,
        updates::CASES,
        systemd::CASES,
        cli_lifecycle::CASES,
        cli_run::CASES,
        cli_told::CASES,
        cli_notify::CASES,
        cli_manage::CASES,
        cli_exec::CASES,
        cli_hooks::CASES,
        cli_races::CASES,
        cli_crash::CASES,
        cli_crash_criu::CASES,
        cli_checkpoint::CASES,
    ]
    .concat()
    .into_iter()
    .chain(attacks::all())
    .collect()
}
