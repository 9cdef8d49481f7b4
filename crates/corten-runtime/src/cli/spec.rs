//! `spec`: a config.json to start from, with Docker's defaults.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use corten_oci::runtime_spec::{LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceType, Spec};

use super::{CliError, SPEC_VERSION};
use crate::defaults;

#[derive(Debug, Args)]
pub(super) struct SpecArgs {
    /// Directory to write config.json to
    #[arg(short, long, default_value = ".", value_name = "DIR")]
    bundle: PathBuf,
    /// For a container of a user without privileges
    #[arg(long)]
    rootless: bool,
}

/// `spec`: a shell in a terminal, in `rootfs`.
pub(super) fn spec(args: &SpecArgs) -> Result<ExitCode, CliError> {
    let path = args.bundle.join("config.json");
    let mut spec = example();
    if args.rootless {
        make_rootless(&mut spec);
    }
    let text = serde_json::to_string_pretty(&spec)
        .map_err(|error| CliError::json(path.display(), error))?;
    // An existing configuration is somebody's work.
    let file = fs::File::options().write(true).create_new(true).open(&path);
    file.and_then(|mut file| std::io::Write::write_all(&mut file, format!("{text}\n").as_bytes()))
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => CliError::Refused(format!(
                "{} exists already: remove it first",
                path.display()
            )),
            _ => CliError::io(format_args!("write {}", path.display()), error),
        })?;
    Ok(ExitCode::SUCCESS)
}

fn example() -> Spec {
    let mut spec = defaults::spec(vec!["sh".to_owned()]);
    spec.set_version(SPEC_VERSION.to_owned());
    spec.set_hostname(Some("corten".to_owned()));
    if let Some(process) = spec.process_mut() {
        let files = serde_json::json!([{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}]);
        process
            .set_terminal(Some(true))
            .set_no_new_privileges(Some(true))
            .set_rlimits(serde_json::from_value(files).ok());
    }
    spec
}

/// What a user alone may do: the user mapped to root in a user namespace, the host's
/// network, no file systems only root may mount, no control group.
fn make_rootless(spec: &mut Spec) {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for mount in &mut mounts {
        if mount.destination().as_os_str() == "/sys" {
            let options = ["rbind", "nosuid", "noexec", "nodev", "ro"];
            *mount = defaults::mount("/sys", "none", "/sys", &options);
        } else if let Some(options) = mount.options().clone() {
            // Only the user's own ids are mapped.
            let foreign =
                |option: &String| option.starts_with("gid=") || option.starts_with("uid=");
            let kept = options.into_iter().filter(|option| !foreign(option));
            mount.set_options(Some(kept.collect()));
        }
    }
    spec.set_mounts(Some(mounts));
    let Some(linux) = spec.linux_mut() else {
        return;
    };
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    namespaces.retain(|namespace| {
        !matches!(
            namespace.typ(),
            LinuxNamespaceType::Network | LinuxNamespaceType::User
        )
    });
    let mut user = LinuxNamespace::default();
    user.set_typ(LinuxNamespaceType::User);
    namespaces.push(user);
    let mapping = |id: u32| {
        let mapping = LinuxIdMappingBuilder::default();
        let mapping = mapping.container_id(0u32).host_id(id).size(1u32);
        mapping.build().ok().map(|mapping| vec![mapping])
    };
    linux
        .set_namespaces(Some(namespaces))
        .set_uid_mappings(mapping(rustix::process::geteuid().as_raw()))
        .set_gid_mappings(mapping(rustix::process::getegid().as_raw()))
        .set_resources(None);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rootless() {
        let mut spec = example();
        make_rootless(&mut spec);
        let json = serde_json::to_value(&spec).unwrap();
        let text = json.to_string();
        assert!(!text.contains("gid="), "{text}");
        assert!(!text.contains(r#""type":"network""#), "{text}");
        assert!(text.contains(r#""type":"user""#), "{text}");
        assert_eq!(json["linux"]["uidMappings"][0]["size"], 1);
        assert!(json["linux"]["resources"].is_null());
    }
}
