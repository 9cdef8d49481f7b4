//! Where things are: paths below the root of a folder, or keys in an object store. Made of
//! checked types only ([`crate::names`], [`Digest`]), so none leaves its place.

use corten_oci::Digest;

use super::manifests::ReferrersPage;
use crate::names::{RepoName, Tag, UploadId};

/// Above all repositories.
pub(super) const REPOSITORIES: &str = "repositories";
/// Its time is that of the last collection that a server began by itself and ended.
pub(super) const COLLECTED: &str = "locks/collected";
/// Above all blobs.
pub(super) const BLOBS: &str = "blobs";
/// The algorithms digests are of, as parts of a key.
pub(super) const ALGORITHMS: [&str; 2] = ["sha256", "sha512"];

pub(super) fn repo(repo: &RepoName) -> String {
    format!("{REPOSITORIES}/{repo}")
}

/// All links of a repository, below a part for the algorithm.
pub(super) fn layers(repo: &RepoName) -> String {
    format!("{REPOSITORIES}/{repo}/_layers")
}

/// Says that a repository holds a blob.
pub(super) fn link(repo: &RepoName, digest: &Digest) -> String {
    below(layers(repo), digest)
}

pub(super) fn revisions(repo: &RepoName) -> String {
    format!("{REPOSITORIES}/{repo}/_manifests/revisions")
}

/// Says that a blob is a manifest of a repository.
pub(super) fn revision(repo: &RepoName, digest: &Digest) -> String {
    below(revisions(repo), digest)
}

pub(super) fn tags(repo: &RepoName) -> String {
    format!("{REPOSITORIES}/{repo}/_manifests/tags")
}

pub(super) fn tag(repo: &RepoName, tag: &Tag) -> String {
    format!("{}/{}", tags(repo), tag.as_str())
}

/// What refers to `subject`.
pub(super) fn referrers(repo: &RepoName, subject: &Digest) -> String {
    below(
        format!("{REPOSITORIES}/{repo}/_manifests/referrers"),
        subject,
    )
}

pub(super) fn referrer(repo: &RepoName, subject: &Digest, digest: &Digest) -> String {
    format!(
        "{}/{}",
        referrers(repo, subject),
        ReferrersPage::name(digest)
    )
}

/// All uploads of a repository.
pub(super) fn uploads(repo: &RepoName) -> String {
    format!("{REPOSITORIES}/{repo}/_uploads")
}

pub(super) fn upload(repo: &RepoName, id: &UploadId) -> String {
    format!("{}/{}", uploads(repo), id.as_str())
}

/// The folder of a blob's bytes.
pub(super) fn blob(digest: &Digest) -> String {
    format!(
        "{BLOBS}/{}/{}/{}",
        digest.algorithm().as_str(),
        &digest.hex()[..2],
        digest.hex()
    )
}

fn below(folder: String, digest: &Digest) -> String {
    format!("{folder}/{}/{}", digest.algorithm().as_str(), digest.hex())
}
