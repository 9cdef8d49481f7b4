//! Files of URLs.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest as _, Sha256};
use url::Url;

use super::masked;
use crate::cancel::Cancel;

/// How long to wait for a connection, and for the next bytes.
const PATIENCE: Duration = Duration::from_secs(30);
/// Redirects that are followed.
const REDIRECTS: usize = 10;

/// A file that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Downloaded {
    pub(crate) path: PathBuf,
    /// `sha256:…`
    pub(crate) digest: String,
}

fn client() -> Result<reqwest::Client, String> {
    // Another part of the process may have installed one already: either will do.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .connect_timeout(PATIENCE)
        .read_timeout(PATIENCE)
        .redirect(reqwest::redirect::Policy::limited(REDIRECTS))
        .user_agent(concat!("corten/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| innermost(&error))
}

/// The cause that says most.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Downloads to `dir/name`. The file has mode 0600, and the time that the server says it is of.
pub(crate) async fn download(
    url: &Url,
    dir: &Path,
    name: &str,
    cancel: &Cancel,
) -> Result<Downloaded, String> {
    let told = |what: String| masked(&format!("failed to load {url}: {what}"));
    let transfer = async {
        let mut response = client()?
            .get(url.clone())
            .send()
            .await
            .map_err(|error| innermost(&error))?;
        if !response.status().is_success() {
            let status = response.status().as_u16();
            return Err(format!("invalid response status {status}"));
        }
        let modified = response
            .headers()
            .get("last-modified")
            .and_then(|value| httpdate::parse_http_date(value.to_str().ok()?).ok());
        let path = dir.join(name);
        let failed = |error: std::io::Error| error.to_string();
        let mut file = create(&path).map_err(failed)?;
        let mut hasher = Sha256::new();
        while let Some(bytes) = response.chunk().await.map_err(|error| innermost(&error))? {
            hasher.update(&bytes);
            file.write_all(&bytes).map_err(failed)?;
        }
        let time: SystemTime = modified.unwrap_or(UNIX_EPOCH);
        file.set_modified(time).map_err(failed)?;
        let digest = format!("sha256:{}", hex::encode(hasher.finalize()));
        Ok(Downloaded { path, digest })
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
