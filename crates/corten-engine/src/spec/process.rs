//! The process part of the document: arguments, environment, user, capabilities.

use std::path::PathBuf;

use bollard_stubs::models::{ContainerConfig, ExecConfig, HostConfig};
use corten_oci::runtime_spec::{
    Box as Size, BoxBuilder as SizeBuilder, Capabilities, Process, User,
};
use corten_runtime::defaults;

use super::{Input, Result};
use crate::parse::security::SecurityOptions;
use crate::parse::users::Identity;
use crate::parse::{bad, env, limits, paths};

/// The program and its arguments: entry point, then command.
pub(crate) fn arguments(config: &ContainerConfig) -> Result<Vec<String>> {
    let entrypoint = config.entrypoint.as_deref().unwrap_or_default();
    let command = config.cmd.as_deref().unwrap_or_default();
    // A single empty entry point is how clients say "none, not even the image's".
    let entrypoint = if entrypoint == [""] { &[] } else { entrypoint };
    let arguments: Vec<String> = entrypoint.iter().chain(command).cloned().collect();
    match arguments.first() {
        None => Err(bad("no command specified")),
        Some(_) => Ok(arguments),
    }
}

/// The container's first process.
pub(super) fn first(
    input: &Input<'_>,
    capabilities: &Capabilities,
    options: &SecurityOptions,
) -> Result<Process> {
    let config = input.config;
    let tty = config.tty.unwrap_or(false);
    let mut process = Process::default();
    let mut args = arguments(config)?;
    if input.files.init.is_some() {
        args.splice(0..0, [corten_init::PATH.to_owned(), "--".to_owned()]);
    }
    process
        .set_args(Some(args))
        .set_terminal(Some(tty))
        .set_cwd(PathBuf::from(working_dir(config.working_dir.as_deref())?))
        .set_env(Some(environment(config, input.linked, input.identity)))
        .set_user(user(input.identity))
        .set_capabilities(Some(capability_sets(capabilities, input.identity)))
        .set_no_new_privileges(Some(options.no_new_privileges))
        .set_apparmor_profile(options.apparmor.clone())
        .set_oom_score_adj(oom_score(input.host)?);
    let rlimits = limits::ulimits(input.host.ulimits.as_deref().unwrap_or_default())?;
    process.set_rlimits((!rlimits.is_empty()).then_some(rlimits));
    if let (true, Some([height, width])) = (tty, input.host.console_size.as_deref()) {
        process.set_console_size(size(*height, *width));
    } else {
        process.set_console_size(None);
    }
    Ok(process)
}

/// A terminal's size; none when a side is zero.
fn size(height: usize, width: usize) -> Option<Size> {
    if height == 0 || width == 0 {
        return None;
    }
    SizeBuilder::default()
        .height(height as u64)
        .width(width as u64)
        .build()
        .ok()
}

/// Docker gives the effective sets to root only; others keep the bounding set, so that
/// set-user-id programs work.
fn capability_sets(
    capabilities: &Capabilities,
    identity: &Identity,
) -> corten_oci::runtime_spec::LinuxCapabilities {
    let mut sets = defaults::capability_sets(capabilities);
    if identity.uid != 0 {
        sets.set_effective(Some(Capabilities::new()))
            .set_permitted(Some(Capabilities::new()));
    }
    sets
}

/// `OomScoreAdj`, checked.
pub(super) fn oom_score(host: &HostConfig) -> Result<Option<i32>> {
    match host.oom_score_adj {
        None => Ok(None),
        Some(score) if (-1000..=1000).contains(&score) => Ok(i32::try_from(score).ok()),
        Some(score) => Err(bad(format!(
            "Invalid value {score}, range for oom score adj is [-1000, 1000]"
        ))),
    }
}

fn working_dir(text: Option<&str>) -> Result<String> {
    match text.filter(|t| !t.is_empty()) {
        None => Ok("/".to_owned()),
        Some(text) => paths::clean_absolute(text).ok_or_else(|| {
            bad(format!(
                "the working directory '{text}' is invalid, it needs to be an absolute path"
            ))
        }),
    }
}

fn environment(config: &ContainerConfig, linked: &[String], identity: &Identity) -> Vec<String> {
    let mut base = vec![
        format!("PATH={}", env::DEFAULT_PATH),
        format!("HOSTNAME={}", config.hostname.as_deref().unwrap_or("")),
    ];
    if config.tty.unwrap_or(false) {
        base.push("TERM=xterm".to_owned());
    }
    base.extend_from_slice(linked);
    with_home(
        env::merge(&base, config.env.as_deref().unwrap_or_default()),
        identity,
    )
}

fn with_home(mut environment: Vec<String>, identity: &Identity) -> Vec<String> {
    if env::get(&environment, "HOME").is_none_or(str::is_empty) {
        environment.retain(|e| !e.starts_with("HOME="));
        environment.push(format!("HOME={}", identity.home));
    }
    environment
}

fn user(identity: &Identity) -> User {
    let mut user = User::default();
    user.set_uid(identity.uid);
    user.set_gid(identity.gid);
    user.set_additional_gids(Some(identity.groups.clone()));
    user
}

/// A further process in a container whose first process is `base`.
pub(crate) fn exec_process(
    config: &ContainerConfig,
    exec: &ExecConfig,
    base: &Process,
    linked: &[String],
    identity: &Identity,
    privileged_container: bool,
    known_capabilities: usize,
) -> Result<Process> {
    let command = exec.cmd.clone().unwrap_or_default();
    if command.is_empty() {
        return Err(bad("No exec command specified"));
    }
    let tty = exec.tty.unwrap_or(false);
    let mut container = config.clone();
    container.tty = Some(tty);
    let environment = env::merge(
        &environment(&container, linked, identity),
        exec.env.as_deref().unwrap_or_default(),
    );
    let cwd = match exec.working_dir.as_deref().filter(|d| !d.is_empty()) {
        Some(dir) => working_dir(Some(dir))?,
        None => working_dir(config.working_dir.as_deref())?,
    };
    let privileged = exec.privileged.unwrap_or(false) || privileged_container;
    let capabilities = if privileged {
        let host = HostConfig {
            privileged: Some(true),
            ..Default::default()
        };
        super::capability_set(&host, known_capabilities)?
    } else {
        base.capabilities()
            .as_ref()
            .and_then(|sets| sets.bounding().clone())
            .unwrap_or_default()
    };
    let mut process = base.clone();
    process
        .set_args(Some(command))
        .set_terminal(Some(tty))
        .set_cwd(PathBuf::from(cwd))
        .set_env(Some(environment))
        .set_user(user(identity))
        .set_capabilities(Some(capability_sets(&capabilities, identity)))
        .set_console_size(None);
    if let (true, Some([height, width])) = (tty, exec.console_size.as_deref()) {
        process.set_console_size(size(*height, *width));
    }
    Ok(process)
}
