//! The registries of these tests are in one bucket. A folder's path, which is what the tests
//! know a registry by, becomes its prefix there.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use corten_oci::Digest;
use corten_registryd::{Config, StoreConfig};
use http::Method;

use crate::s3::{BUCKET, GCS_BUCKET, Gate, KEY, S3, SECRET, When};

/// The one store of this process.
pub(crate) fn store() -> &'static S3 {
    static STORE: OnceLock<S3> = OnceLock::new();
    STORE.get_or_init(S3::start)
}

fn prefix(root: &Path) -> String {
    Digest::of(root.as_os_str().as_encoded_bytes()).hex()[..16].to_owned()
}

/// The store's URL, with all that a server has to know.
pub(crate) fn url(root: &Path) -> String {
    let endpoint = store().url();
    format!(
        "s3://{BUCKET}/{}?region=us-east-1&endpoint={endpoint}&access_key_id={KEY}&secret_access_key={SECRET}",
        prefix(root)
    )
}

/// One that is GCS's, at another prefix.
pub(crate) fn gcs_url() -> String {
    // What stands in it for emulators: they give no tokens.
    let account = format!(
        r#"{{"gcs_base_url":"{}","disable_oauth":true,"client_email":"","private_key":"","private_key_id":""}}"#,
        store().url()
    );
    let account = url::form_urlencoded::byte_serialize(account.as_bytes()).collect::<String>();
    format!("gs://{GCS_BUCKET}/gcs?service_account_key={account}")
}

pub(crate) fn adapt(mut config: Config) -> Config {
    if config.storage.is_none() {
        config.storage = Some(StoreConfig {
            url: url(&config.root),
            ..StoreConfig::default()
        });
    }
    config
}

/// What tells a command where a registry is.
pub(crate) fn flags(root: &Path) -> [OsString; 2] {
    ["--storage".into(), url(root).into()]
}

/// Makes everything of a registry look a week old.
pub(crate) fn age(root: &Path) {
    store().age(&prefix(root), Duration::from_secs(7 * 24 * 60 * 60));
}

/// Puts an empty object there.
pub(crate) fn put(root: &Path, key: &str) {
    store().put(&format!("{}/{key}", prefix(root)));
}

/// Removes what is there below a key; how much that was.
pub(crate) fn remove(root: &Path, below: &str) -> usize {
    store().remove(&format!("{}/{below}", prefix(root)))
}

/// Holds the next request of a registry to something below a key.
pub(crate) fn hold(root: &Path, method: Method, below: &str, when: When) -> Arc<Gate> {
    store().hold(method, format!("{}/{below}", prefix(root)), when)
}

/// The pages of a registry's lists that were asked for.
pub(crate) fn listed(root: &Path) -> usize {
    store().listed(&format!("{}/", prefix(root)))
}

/// The keys of a registry.
pub(crate) fn keys(root: &Path) -> Vec<String> {
    store().keys(&format!("{}/", prefix(root)))
}

pub(crate) fn blobs(root: &Path) -> usize {
    let keys = keys(root);
    keys.iter().filter(|key| key.starts_with("blobs/")).count()
}

pub(crate) fn leftovers(root: &Path, repo: &str) -> usize {
    let keys = keys(root);
    let uploads = format!("repositories/{repo}/_uploads/");
    let uploads = keys.iter().filter(|key| key.starts_with(&uploads)).count();
    // Parts that are no blob's.
    let lists: HashSet<&str> = keys
        .iter()
        .filter_map(|key| key.strip_prefix("blobs/")?.rsplit('/').next())
        .filter_map(|name| name.strip_prefix("parts.")?.split('.').next())
        .collect();
    let parts = keys
        .iter()
        .filter_map(|key| key.strip_prefix("parts/")?.split('/').next());
    let parts = parts.filter(|upload| !lists.contains(upload)).count();
    let others = |key: &&String| key.starts_with("marks/") || key.starts_with("locks/");
    uploads + parts + keys.iter().filter(others).count()
}
