//! Files of URLs.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use corten_registry::{Client, RegistriesConfig, RegistryError};
use sha2::{Digest as _, Sha256};
use url::Url;

use super::masked;
use crate::cancel::Cancel;

/// A file that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Downloaded {
    pub(crate) path: PathBuf,
    /// `sha256:…`
    pub(crate) digest: String,
    /// When it was last changed, as the server says.
    pub(crate) modified: Option<SystemTime>,
    /// What the server calls this state of it.
    pub(crate) etag: Option<String>,
}

/// What the server, or the way there, has against it. The address is told elsewhere, without
/// its password.
fn reason(error: &RegistryError) -> String {
    match error {
        RegistryError::Download { reason, .. } => reason.clone(),
        RegistryError::DownloadRefused { status, .. } => {
            format!("invalid response status {}", status.as_u16())
        }
        other => other.to_string(),
    }
}

/// Downloads to `dir/name`. The file has mode 0600, and the time that the server says it is of.
pub(crate) async fn download(
    url: &Url,
    dir: &Path,
    name: &str,
    cancel: &Cancel,
) -> Result<Downloaded, String> {
    let found = download_unless(url, None, (dir, name), cancel).await?;
    found.ok_or_else(|| {
        masked(&format!(
            "failed to load {url}: invalid response status 304"
        ))
    })
}

/// The same, unless the file is in the state that is known by a name.
pub(crate) async fn download_unless(
    url: &Url,
    known: Option<&str>,
    (dir, name): (&Path, &str),
    cancel: &Cancel,
) -> Result<Option<Downloaded>, String> {
    let told = |what: String| masked(&format!("failed to load {url}: {what}"));
    let transfer = async {
        let client = Client::new(RegistriesConfig::default()).map_err(|error| reason(&error))?;
        let found = client.download_unless(url.as_str(), known).await;
        let Some(mut found) = found.map_err(|error| reason(&error))? else {
            return Ok(None);
        };
        let path = dir.join(name);
        let failed = |error: std::io::Error| error.to_string();
        let mut file = create(&path).map_err(failed)?;
        let mut hasher = Sha256::new();
        while let Some(bytes) = found.piece().await.map_err(failed)? {
            hasher.update(&bytes);
            file.write_all(&bytes).map_err(failed)?;
        }
        let time = found.modified.unwrap_or(UNIX_EPOCH);
        file.set_modified(time).map_err(failed)?;
        let digest = format!("sha256:{}", hex::encode(hasher.finalize()));
        Ok(Some(Downloaded {
            path,
            digest,
            modified: found.modified,
            etag: found.etag,
        }))
    };
    tokio::select! {
        done = transfer => done.map_err(told),
        () = cancel.cancelled() => Err(told("the build was cancelled".to_owned())),
    }
}

fn create(path: &Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let file = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.set_permissions(PermissionsExt::from_mode(0o600))?;
    Ok(file)
}
