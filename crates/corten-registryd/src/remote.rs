//! `corten registry catalog`, `tags`, `referrers` and `rm`: what any registry has, with the
//! settings and credentials that `corten pull` uses.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use corten_oci::{Digest, ImageRef, Printable};
use corten_registry::{
    Client, Credential, DockerConfig, RegistriesConfig, RegistryError, Remote, auth_key, domain_of,
};
use serde_json::Value;

use crate::cli::complain;
use crate::error::{IoContext as _, RegistrydError};

/// The engine's root where nothing else is said.
const ROOT: &str = "/var/lib/corten";

/// Where the files of the user's commands are that speak to registries, as the command line
/// says; absent where it says nothing.
#[derive(Debug, Clone, Default)]
pub struct ClientFiles {
    /// The engine's root, which has `registries.toml`.
    pub root: Option<PathBuf>,
    /// The directory of Docker's `config.json`.
    pub config: Option<PathBuf>,
}

/// Which registry.
#[derive(Debug, Args)]
pub(crate) struct CatalogArgs {
    /// The registry (HOST or HOST:PORT)
    #[arg(value_name = "REGISTRY")]
    registry: String,
}

/// Which repository.
#[derive(Debug, Args)]
pub(crate) struct TagsArgs {
    /// The repository
    #[arg(value_name = "REPOSITORY")]
    repository: String,
}

/// Of what.
#[derive(Debug, Args)]
pub(crate) struct ReferrersArgs {
    /// What is referred to
    #[arg(value_name = "NAME[:TAG|@DIGEST]")]
    name: String,
    /// Only artifacts of this type
    #[arg(long, value_name = "TYPE")]
    artifact_type: Option<String>,
}

/// What goes.
#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// Tags, or manifests with all their tags
    #[arg(value_name = "NAME:TAG|NAME@DIGEST", required = true)]
    names: Vec<String>,
}

pub(crate) fn catalog(args: &CatalogArgs, files: &ClientFiles) -> Result<(), RegistrydError> {
    let domain = domain_of(&args.registry);
    print(block(async { connect(files, &domain)?.catalog().await })?)
}

pub(crate) fn tags(args: &TagsArgs, files: &ClientFiles) -> Result<(), RegistrydError> {
    let name = parse(&args.repository)?;
    print(block(async {
        connect(files, name.domain())?.tags(name.path()).await
    })?)
}

pub(crate) fn referrers(args: &ReferrersArgs, files: &ClientFiles) -> Result<(), RegistrydError> {
    let name = parse(&args.name)?.or_latest();
    let found = block(async {
        let remote = connect(files, name.domain())?;
        let subject: Digest = match name.digest() {
            Some(digest) => digest.clone(),
            None => {
                remote
                    .resolve(name.path(), name.manifest_reference())
                    .await?
            }
        };
        let wanted = args.artifact_type.as_deref();
        remote.referrers(name.path(), &subject, wanted).await
    })?;
    let text =
        |descriptor: &Value, field: &str| descriptor[field].as_str().unwrap_or_default().to_owned();
    let line = |descriptor: &Value| {
        let kind = text(descriptor, "artifactType");
        format!("{} {kind}", text(descriptor, "digest"))
            .trim_end()
            .to_owned()
    };
    print(found.iter().map(line).collect())
}

pub(crate) fn remove(args: &RemoveArgs, files: &ClientFiles) -> Result<(), RegistrydError> {
    let names: Vec<ImageRef> = args
        .names
        .iter()
        .map(|name| parse(name))
        .collect::<Result<_, _>>()?;
    // All of a mistyped list or nothing.
    if let Some(name) = names
        .iter()
        .find(|name| name.digest().is_none() && name.tag().is_none())
    {
        return Err(RegistrydError::Remote(format!(
            "\"{}\" names a whole repository: add a tag or a digest",
            name.familiar()
        )));
    }
    for name in &names {
        block(async {
            let remote = connect(files, name.domain())?;
            remote
                .delete_manifest(name.path(), name.manifest_reference())
                .await
        })?;
        print(vec![format!("Deleted: {}", name.familiar())])?;
    }
    Ok(())
}

fn parse(text: &str) -> Result<ImageRef, RegistrydError> {
    text.parse()
        .map_err(|error| RegistrydError::Remote(format!("invalid name \"{text}\": {error}")))
}

/// The registry as `corten pull` would reach it.
fn connect(files: &ClientFiles, domain: &str) -> Result<Remote, RegistryError> {
    let named = std::env::var_os("CORTEN_ROOT").filter(|root| !root.is_empty());
    let root = files.root.clone().or(named.map(PathBuf::from));
    let root = root.unwrap_or_else(|| PathBuf::from(ROOT));
    let config = RegistriesConfig::load(&root.join("registries.toml"))?;
    let credential = credential(files, domain).unwrap_or_else(|error| {
        complain(&format!(
            "WARNING: going on without credentials for {domain}: {error}"
        ));
        None
    });
    Client::new(config)?.remote(domain, credential.as_ref())
}

fn credential(files: &ClientFiles, domain: &str) -> Result<Option<Credential>, RegistryError> {
    let named = std::env::var_os("DOCKER_CONFIG").filter(|path| !path.is_empty());
    let home = || Some(Path::new(&std::env::var_os("HOME")?).join(".docker"));
    let directory = files.config.clone().or(named.map(PathBuf::from));
    match directory.or_else(home) {
        Some(directory) => DockerConfig::load(&directory)?.get(&auth_key(domain)),
        None => Ok(None),
    }
}

fn block<T>(work: impl Future<Output = Result<T, RegistryError>>) -> Result<T, RegistrydError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start", Path::new("corten registry"))?;
    runtime
        .block_on(work)
        .map_err(|error| RegistrydError::Remote(error.to_string()))
}

fn print(lines: Vec<String>) -> Result<(), RegistrydError> {
    io::stdout()
        .write_all(text(lines).as_bytes())
        .context("write to", Path::new("standard output"))
}

/// Lines of what a registry says: none of them does more than stand there.
fn text(lines: Vec<String>) -> String {
    let lines = lines.into_iter().map(Printable);
    lines.map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_of_strangers_give_no_orders() {
        let lines = ["a\u{1b}[2J\nb", "c"].map(str::to_owned);
        assert_eq!(super::text(lines.into()), "a\\u{1b}[2J\\nb\nc\n");
        assert_eq!(super::text(Vec::new()), "");
    }
}
