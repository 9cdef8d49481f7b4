//! What an image contains, as an SPDX 2.3 document: the packages of dpkg and apk. Images of rpm
//! are refused, as a list without their packages would say that there are none.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use corten_oci::{DiffId, Digest};
use corten_store::rooted::RootFd;
use corten_store::{Store, Upper};
use rustix::fs::{Dir, OFlags};
use serde_json::{Value, json};

use super::Claim;
use super::packages::{self, Distribution, Package};
use super::provenance::encoded;
use crate::error::{BuildError, reason};

/// As much as is read of all lists, bytes.
const LIMIT: u64 = 64 << 20;
/// As many parts of a list are looked at.
const MAX_PARTS: usize = 100_000;

const DPKG: &str = "var/lib/dpkg/status";
/// Parts of it, a file each.
const DPKG_PARTS: &str = "var/lib/dpkg/status.d";
const APK: [&str; 2] = ["lib/apk/db/installed", "usr/lib/apk/db/installed"];
const OS_RELEASE: [&str; 2] = ["etc/os-release", "usr/lib/os-release"];
/// Databases of rpm, old and new.
const RPM: [&str; 7] = [
    "var/lib/rpm/Packages",
    "var/lib/rpm/Packages.db",
    "var/lib/rpm/rpmdb.sqlite",
    "usr/lib/sysimage/rpm/Packages",
    "usr/lib/sysimage/rpm/Packages.db",
    "usr/lib/sysimage/rpm/rpmdb.sqlite",
    "usr/share/rpm/rpmdb.sqlite",
];

/// The claim of what an image contains. Blocks.
pub(crate) fn scan(
    store: &Store,
    layers: &[DiffId],
    name: &str,
    created: &str,
) -> Result<Claim, BuildError> {
    let (distribution, packages) = if layers.is_empty() {
        (Distribution::default(), Vec::new())
    } else {
        look(&RootFd::from(
            store.layers().mount(layers, Upper::ReadOnly)?,
        ))?
    };
    Ok(Claim {
        kind: "https://spdx.dev/Document",
        predicate: document(name, created, &distribution, &packages),
    })
}

fn look(root: &RootFd) -> Result<(Distribution, Vec<Package>), BuildError> {
    for path in RPM {
        if root.stat(Path::new(path)).is_ok() {
            return Err(BuildError::Invalid(format!(
                "--sbom: the image has packages of rpm (/{path}), which cannot be listed"
            )));
        }
    }
    let (mut found, mut left) = (Vec::new(), LIMIT);
    if let Some(text) = read(root, Path::new(DPKG), &mut left)? {
        found.extend(packages::dpkg(&text));
    }
    for name in parts(root).map_err(|e| unreadable(Path::new(DPKG_PARTS), &e))? {
        if let Some(text) = read(root, &Path::new(DPKG_PARTS).join(name), &mut left)? {
            found.extend(packages::dpkg(&text));
        }
    }
    let mut lists = BTreeSet::new();
    for path in APK {
        // One may be a link to the other.
        if let Some(text) = read(root, Path::new(path), &mut left)?
            && lists.insert(Digest::of(text.as_bytes()))
        {
            found.extend(packages::apk(&text));
        }
    }
    let mut distribution = Distribution::default();
    for path in OS_RELEASE {
        if let Some(text) = read(root, Path::new(path), &mut left)? {
            distribution = Distribution::read(&text);
            break;
        }
    }
    found.sort_by(|a, b| {
        let key = |p: &Package| {
            (
                p.kind,
                p.name.clone(),
                p.version.clone(),
                p.architecture.clone(),
            )
        };
        key(a).cmp(&key(b))
    });
    Ok((distribution, found))
}

/// The files of [`DPKG_PARTS`].
fn parts(root: &RootFd) -> io::Result<Vec<PathBuf>> {
    use std::os::unix::ffi::OsStrExt as _;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = match root.open_in_root(Path::new(DPKG_PARTS), flags, rustix::fs::Mode::empty()) {
        Ok(dir) => dir,
        Err(error) if absent(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in Dir::new(dir)? {
        let entry = entry?;
        let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes());
        // Beside the parts there are lists of their files' digests.
        if !matches!(name.as_bytes(), b"." | b"..") && !name.as_bytes().ends_with(b".md5sums") {
            names.push(PathBuf::from(name));
        }
        if names.len() > MAX_PARTS {
            return Err(io::Error::other("it has too many files"));
        }
    }
    names.sort();
    Ok(names)
}

fn absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn unreadable(path: &Path, error: &io::Error) -> BuildError {
    BuildError::Invalid(format!(
        "--sbom: cannot read /{}: {}",
        path.display(),
        reason(error)
    ))
}

/// A list, if it is there, of at most the bytes that are left.
fn read(root: &RootFd, path: &Path, left: &mut u64) -> Result<Option<String>, BuildError> {
    match root.stat(path) {
        Ok(stat) if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() => return Ok(None),
        Err(error) if absent(&error) => return Ok(None),
        _ => {}
    }
    let bytes = root.read(path, *left).map_err(|e| unreadable(path, &e))?;
    *left -= bytes.len() as u64;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// The document (SPDX 2.3).
fn document(name: &str, created: &str, distribution: &Distribution, packages: &[Package]) -> Value {
    let mut listed = vec![json!({
        "SPDXID": "SPDXRef-Image",
        "name": name,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "primaryPackagePurpose": "CONTAINER",
    })];
    let mut relationships = vec![relation("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-Image")];
    for (number, package) in packages.iter().enumerate() {
        let id = format!("SPDXRef-Package-{}", number + 1);
        relationships.push(relation("SPDXRef-Image", "CONTAINS", &id));
        listed.push(one(&id, distribution, package));
    }
    let mut document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "comment": "Packages that dpkg and apk know of; nothing else was looked for.",
        "creationInfo": {
            "created": created,
            "creators": [format!("Tool: corten-{}", env!("CARGO_PKG_VERSION"))],
        },
        "packages": listed,
        "relationships": relationships,
    });
    // A name for exactly this document.
    let digest = Digest::of(document.to_string().as_bytes());
    document["documentNamespace"] =
        json!(format!("https://spdx.org/spdxdocs/corten-{}", digest.hex()));
    document
}

fn relation(from: &str, kind: &str, to: &str) -> Value {
    json!({
        "spdxElementId": from,
        "relationshipType": kind,
        "relatedSpdxElement": to,
    })
}

fn one(id: &str, distribution: &Distribution, package: &Package) -> Value {
    let or_unknown = |text: String| match text.is_empty() {
        true => "NOASSERTION".to_owned(),
        false => text,
    };
    let supplier = match package.maintainer.as_str() {
        "" => String::new(),
        name => format!("Organization: {name}"),
    };
    let mut value = json!({
        "SPDXID": id,
        "name": package.name,
        "supplier": or_unknown(supplier),
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": package_url(distribution, package),
        }],
    });
    if !package.version.is_empty() {
        value["versionInfo"] = json!(package.version);
    }
    // It must be a URI.
    if url::Url::parse(&package.homepage).is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
    {
        value["homepage"] = json!(package.homepage);
    }
    // It need not be an expression of SPDX's.
    if !package.license.is_empty() {
        value["licenseComments"] = json!(format!("The package says: {}", package.license));
    }
    value
}

/// purl-spec, "deb" and "apk".
fn package_url(distribution: &Distribution, package: &Package) -> String {
    let mut url = format!("pkg:{}", package.kind);
    if !distribution.id.is_empty() {
        url.push_str(&format!("/{}", encoded(&distribution.id)));
    }
    url.push_str(&format!("/{}", encoded(&package.name)));
    if !package.version.is_empty() {
        url.push_str(&format!("@{}", encoded(&package.version)));
    }
    let mut qualifiers = Vec::new();
    if !package.architecture.is_empty() {
        qualifiers.push(format!("arch={}", encoded(&package.architecture)));
    }
    if !distribution.id.is_empty() && !distribution.version.is_empty() {
        let distro = format!("{}-{}", distribution.id, distribution.version);
        qualifiers.push(format!("distro={}", encoded(&distro)));
    }
    if !qualifiers.is_empty() {
        url.push_str(&format!("?{}", qualifiers.join("&")));
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn looked(files: &[(&str, &str)]) -> Result<(Distribution, Vec<Package>), String> {
        let dir = root(files);
        look(&RootFd::open(dir.path()).unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn all_lists_together_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let parts = dir.path().join(DPKG_PARTS);
        std::fs::create_dir_all(&parts).unwrap();
        let list = std::fs::File::create(parts.join("a")).unwrap();
        list.set_len(LIMIT / 2 + 1).unwrap();
        let root = RootFd::open(dir.path()).unwrap();
        assert!(look(&root).is_ok());
        std::fs::hard_link(parts.join("a"), parts.join("b")).unwrap();
        let error = look(&root).unwrap_err().to_string();
        assert!(error.contains("status.d/b: too large"), "{error}");
    }

    #[test]
    fn all_lists_are_read() {
        let (distribution, packages) = looked(&[
            (DPKG, "Package: b\nVersion: 1\n"),
            ("var/lib/dpkg/status.d/a", "Package: a\nVersion: 2\n"),
            ("var/lib/dpkg/status.d/a.md5sums", "Package: no\n"),
            ("lib/apk/db/installed", "P:musl\nV:3\n"),
            ("usr/lib/apk/db/installed", "P:musl\nV:3\n"),
            ("etc/os-release", "ID=debian\nVERSION_ID=12\n"),
        ])
        .unwrap();
        let names: Vec<_> = packages.iter().map(|p| (p.kind, p.name.as_str())).collect();
        assert_eq!(names, [("apk", "musl"), ("deb", "a"), ("deb", "b")]);
        assert_eq!(
            package_url(&distribution, &packages[2]),
            "pkg:deb/debian/b@1?distro=debian-12"
        );
        assert_eq!(looked(&[]).unwrap().1, []);
        let error = looked(&[("var/lib/rpm/rpmdb.sqlite", "")]).unwrap_err();
        assert!(error.contains("packages of rpm"), "{error}");
    }

    #[test]
    fn paths_stay_in_the_image() {
        let dir = root(&[]);
        fs::create_dir_all(dir.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/usr/lib/os-release", dir.path().join("etc/os-release"))
            .unwrap();
        let (distribution, _) = look(&RootFd::open(dir.path()).unwrap()).unwrap();
        // Not the host's.
        assert_eq!(distribution, Distribution::default());
    }

    #[test]
    fn documents_are_the_same_for_the_same() {
        let package = Package {
            kind: "apk",
            name: "musl".to_owned(),
            version: "1".to_owned(),
            architecture: "x86_64".to_owned(),
            maintainer: String::new(),
            homepage: "https://musl.libc.org".to_owned(),
            license: "MIT".to_owned(),
        };
        let make = |name: &str| {
            document(
                name,
                "t",
                &Distribution::default(),
                std::slice::from_ref(&package),
            )
        };
        let one = make("a");
        assert_eq!(one, make("a"));
        assert_ne!(one["documentNamespace"], make("b")["documentNamespace"]);
        assert_eq!(one["packages"][1]["supplier"], "NOASSERTION");
        assert_eq!(
            one["relationships"][1]["relatedSpdxElement"],
            "SPDXRef-Package-1"
        );
    }
}
