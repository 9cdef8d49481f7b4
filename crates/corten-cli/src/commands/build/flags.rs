//! The flags of `build`: those we have, and those that are refused in one line because going
//! on without them would make something else than was asked for.

use crate::error::{CliError, Result};
use crate::flags::{Flag, Parsed};
use crate::opts::{check, env, hosts};

/// What `build` does.
pub(super) const FLAGS: &[Flag] = &[
    Flag::list("add-host", "Add a custom host-to-IP mapping (\"host:ip\")")
        .typed("list", |text| check(hosts::add_host(text))),
    Flag::list(
        "allow",
        "Allow what is not allowed by itself: \"security.insecure\", \"device\", \"device=NAME\" (\"network.host\" is)",
    )
    .typed("list", check_allowed),
    Flag::list(
        "annotation",
        "Add annotation to the image: \"[manifest|index|manifest-descriptor|index-descriptor:]KEY=VALUE\"",
    ),
    Flag::list(
        "attest",
        "Attestation parameters: \"type=provenance,mode=min|max\" or \"type=sbom\"",
    ),
    Flag::list(
        "build-arg",
        "Set build-time variables; NAME alone takes the value of the environment",
    )
    .typed("list", env::check),
    Flag::list(
        "build-context",
        "Additional build context: \"NAME=DIRECTORY|URL|docker-image://IMAGE|oci-layout://DIRECTORY\"",
    ),
    Flag::text(
        "call",
        "What to do: \"build\", \"check\", \"outline\" or \"targets\", with \",format=json\" for JSON",
    )
    .default("build"),
    Flag::list(
        "cache-from",
        "External cache to use: an image, or \"type=local,src=DIRECTORY|type=registry,ref=NAME\"",
    ),
    Flag::list(
        "cache-to",
        "Where to write the cache: \"type=local,dest=DIRECTORY|type=registry,ref=NAME|type=inline[,mode=max]\"",
    ),
    Flag::text("cgroup-parent", "Parent cgroup of build steps"),
    Flag::switch("check", "Shorthand for \"--call=check\""),
    Flag::switch(
        "compress",
        "Compress the build context using gzip, where it is sent",
    ),
    Flag::int("cpu-period", "Limit the CPU CFS period of build steps"),
    Flag::int("cpu-quota", "Limit the CPU CFS quota of build steps"),
    Flag::int("cpu-shares", "CPU shares of build steps (relative weight)").short('c'),
    Flag::text("cpuset-cpus", "CPUs in which build steps run (0-3, 0,1)"),
    Flag::text("cpuset-mems", "MEMs in which build steps run (0-3, 0,1)"),
    Flag::switch(
        "debug",
        "Open a shell in the first step that fails (on a terminal)",
    ),
    Flag::text(
        "file",
        "Name of the Dockerfile, or - for standard input (default \"PATH/Dockerfile\")",
    )
    .short('f'),
    Flag::text("iidfile", "Write the image ID to the file"),
    Flag::list("label", "Set metadata for an image").typed("list", env::check_label),
    Flag::bytes("memory", "Memory limit of build steps").short('m'),
    Flag::bytes(
        "memory-swap",
        "Swap limit of build steps equal to memory plus swap: -1 to enable unlimited swap",
    ),
    Flag::text(
        "network",
        "Network of the RUN instructions: \"default\", \"none\" or \"host\"",
    )
    .default("default"),
    Flag::switch(
        "load",
        "Shorthand for \"--output=type=docker\": the image is kept, as it is without",
    ),
    Flag::text("metadata-file", "Write build result metadata to a file"),
    Flag::switch("no-cache", "Do not use cache when building the image"),
    Flag::list("no-cache-filter", "Do not cache specified stages"),
    Flag::list(
        "output",
        "What becomes of the result: a directory, or \"type=local|tar|oci|docker|image|registry,…\"",
    )
    .short('o'),
    Flag::list(
        "platform",
        "Target platform of the build: \"linux/arm64\", or several with commas",
    ),
    Flag::text(
        "progress",
        "How to show progress: \"auto\", \"none\", \"plain\", \"tty\", \"quiet\" or \"rawjson\"",
    )
    .default("auto"),
    Flag::text(
        "provenance",
        "Shorthand for \"--attest=type=provenance\": true, false or \"mode=min|max\"",
    ),
    Flag::switch(
        "pull",
        "Always attempt to pull a newer version of the image",
    ),
    Flag::switch("push", "Shorthand for \"--output=type=registry\""),
    Flag::switch(
        "quiet",
        "Suppress the build output and print image ID on success",
    )
    .short('q'),
    Flag::text("sbom", "Shorthand for \"--attest=type=sbom\": true or false"),
    Flag::list(
        "secret",
        "Secret to expose to the build: \"id=ID,src=FILE\" or \"id=ID,env=NAME\"",
    ),
    Flag::bytes("shm-size", "Size of /dev/shm of build steps"),
    Flag::list(
        "ssh",
        "SSH agent to expose to the build: \"default\" or \"ID=SOCKET\"",
    ),
    Flag::list(
        "tag",
        "Name and optionally a tag in the \"name:tag\" format",
    )
    .short('t')
    .typed("list", check_tag),
    Flag::text("target", "Set the target build stage to build"),
    Flag::list("ulimit", "Ulimit options of build steps").typed("ulimit", check_ulimit),
];

const fn refused(flag: Flag) -> Flag {
    flag.hidden()
}

/// Known and not offered, or known and without a meaning here.
pub(super) const UNSUPPORTED: &[Flag] = &[
    // There are no intermediate containers to remove; the image is always in the store.
    refused(Flag::switch("rm", "").default("true")),
    refused(Flag::switch("force-rm", "")),
    refused(Flag::switch("disable-content-trust", "").default("true")),
    refused(Flag::text("builder", "")),
    refused(Flag::text("isolation", "")),
    refused(Flag::list("security-opt", "")),
    refused(Flag::switch("squash", "")),
];

/// Flags of [`UNSUPPORTED`] that change nothing, or do not with this value.
const HARMLESS: &[(&str, &[&str])] = &[
    ("rm", &["*"]),
    ("force-rm", &["*"]),
    ("disable-content-trust", &["true", "1"]),
    ("builder", &["", "default"]),
    ("isolation", &["", "default"]),
    ("squash", &["false", "0"]),
];

/// The first flag that was given and cannot be honoured.
pub(super) fn refuse_unsupported(flags: &Parsed) -> Result {
    for flag in UNSUPPORTED.iter().filter(|flag| flags.given(flag.long)) {
        let harmless = HARMLESS.iter().find(|(name, _)| *name == flag.long);
        let fine = |value: &str| {
            harmless.is_some_and(|(_, values)| values.contains(&"*") || values.contains(&value))
        };
        if !flags.list(flag.long).into_iter().all(fine) {
            return Err(CliError::message(format!(
                "--{} is not supported by this builder",
                flag.long
            )));
        }
    }
    Ok(())
}

fn check_allowed(text: &str) -> std::result::Result<(), String> {
    match text {
        "security.insecure" | "network.host" | "device" => Ok(()),
        _ if let Some(device) = text.strip_prefix("device=") => {
            corten_build::AllowedDevice::parse(device).map(drop)
        }
        _ => Err(format!("unknown entitlement: {text}")),
    }
}

fn check_ulimit(text: &str) -> std::result::Result<(), String> {
    check(crate::opts::ulimit::parse(text))
}

fn check_tag(text: &str) -> std::result::Result<(), String> {
    let reference: corten_oci::ImageRef = text
        .parse()
        .map_err(|error: corten_oci::ReferenceError| error.to_string())?;
    if reference.digest().is_some() {
        return Err("refusing to create a tag with a digest reference".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::{Outcome, parse};

    fn flags(args: &str) -> Parsed {
        let args = args.split(' ').map(String::from);
        match parse(&[FLAGS, UNSUPPORTED], true, args).unwrap() {
            Outcome::Parsed(parsed) => parsed,
            Outcome::Help => panic!("help"),
        }
    }

    #[test]
    fn what_is_not_offered_is_refused() {
        for fine in ["--rm=false .", "--squash=false .", "-m 1g ."] {
            assert!(refuse_unsupported(&flags(fine)).is_ok(), "{fine}");
        }
        for bad in ["--squash .", "--isolation hyperv .", "--security-opt a=b ."] {
            assert!(refuse_unsupported(&flags(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn devices_may_have_other_names() {
        for fine in [
            "device",
            "device=",
            "device=v.com/k=a,alias=b",
            "network.host",
        ] {
            assert_eq!(check_allowed(fine), Ok(()), "{fine}");
        }
        for (wrong, why) in [
            (
                "device=v.com/k=a,color=b",
                "unknown device config key \"color\"",
            ),
            ("device=v.com/k=a,alias", "invalid device config \"alias\""),
        ] {
            assert_eq!(check_allowed(wrong).unwrap_err(), why);
        }
        assert!(check_allowed("devices").is_err());
    }

    #[test]
    fn tags() {
        assert!(check_tag("app:1").is_ok());
        assert!(
            check_tag("UPPER")
                .unwrap_err()
                .contains("must be lowercase")
        );
    }
}
