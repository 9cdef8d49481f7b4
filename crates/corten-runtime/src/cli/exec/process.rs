//! The process an `exec` is about.

use corten_oci::runtime_spec::{Capabilities, Capability, LinuxCapabilities, Process, Spec, User};

use super::ExecArgs;
use crate::cli::{CliError, files};
use crate::document;

/// The process document: given whole, or the container's own with the flags applied.
pub(super) fn process(config: &Spec, args: &ExecArgs) -> Result<Process, CliError> {
    if let Some(path) = &args.process {
        let text = files::read(path).map_err(|error| {
            CliError::io(format_args!("read process {}", path.display()), error)
        })?;
        let mut process =
            document::process(&text).map_err(|error| CliError::document(path.display(), error))?;
        if args.tty {
            process.set_terminal(Some(true));
        }
        return Ok(process);
    }
    let command = args.command();
    if command.is_empty() {
        return Err(CliError::refused("exec needs a command or --process"));
    }
    let base = config.process().clone();
    let mut process =
        base.ok_or_else(|| CliError::Refused("the container has no process".into()))?;
    process
        .set_args(Some(command.to_vec()))
        .set_terminal(Some(args.tty));
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.clone());
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(args.env.iter().cloned());
    process.set_env(Some(env));
    if let Some(user) = &args.user {
        change_user(process.user_mut(), user)?;
    }
    if !args.additional_gids.is_empty() {
        let mut groups = process.user().additional_gids().clone().unwrap_or_default();
        groups.extend(&args.additional_gids);
        process.user_mut().set_additional_gids(Some(groups));
    }
    if let Some(no_new_privs) = args.no_new_privs {
        process.set_no_new_privileges(Some(no_new_privs));
    }
    if args.apparmor.is_some() {
        process.set_apparmor_profile(args.apparmor.clone());
    }
    if args.process_label.is_some() {
        process.set_selinux_label(args.process_label.clone());
    }
    add_capabilities(&mut process, &args.cap);
    Ok(process)
}

/// Whether anything on the command line says what only a process document says, if one is given.
pub(super) fn flags_describe_it(args: &ExecArgs) -> bool {
    !args.command().is_empty()
        || args.cwd.is_some()
        || args.user.is_some()
        || args.no_new_privs.is_some()
        || args.apparmor.is_some()
        || args.process_label.is_some()
        || !(args.env.is_empty() && args.cap.is_empty() && args.additional_gids.is_empty())
}

/// `UID[:GID]`; a group that is not given stays as it is.
fn change_user(user: &mut User, text: &str) -> Result<(), CliError> {
    let invalid = || CliError::Refused(format!("--user {text:?} is not UID[:GID]"));
    let (uid, gid) = match text.split_once(':') {
        Some((uid, gid)) => (uid, Some(gid)),
        None => (text, None),
    };
    user.set_uid(uid.parse().map_err(|_| invalid())?);
    if let Some(gid) = gid {
        user.set_gid(gid.parse().map_err(|_| invalid())?);
    }
    Ok(())
}

/// runc adds them to the bounding, effective and permitted sets, and to the ambient set
/// only where the process already has inheritable ones.
fn add_capabilities(process: &mut Process, names: &[String]) {
    if names.is_empty() {
        return;
    }
    let mut sets = process.capabilities().clone().unwrap_or_else(|| {
        let mut sets = LinuxCapabilities::default();
        sets.set_bounding(None)
            .set_effective(None)
            .set_permitted(None);
        sets.set_inheritable(None).set_ambient(None);
        sets
    });
    for name in names {
        // As one of a document that is not known.
        let Ok(capability) = serde_json::from_value::<Capability>(name.as_str().into()) else {
            tracing::warn!(name, "ignoring a capability that is not known");
            continue;
        };
        let with = |set: &Option<Capabilities>| {
            let mut set = set.clone().unwrap_or_default();
            set.insert(capability);
            Some(set)
        };
        let (bounding, effective, permitted) = (
            with(sets.bounding()),
            with(sets.effective()),
            with(sets.permitted()),
        );
        if sets.inheritable().is_some() {
            let ambient = with(sets.ambient());
            sets.set_ambient(ambient);
        }
        sets.set_bounding(bounding)
            .set_effective(effective)
            .set_permitted(permitted);
    }
    process.set_capabilities(Some(sets));
}
