//! The packages that an image's package managers say are installed: dpkg's status, whole or in
//! parts (distroless images), and apk's list.

/// An installed package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Package {
    /// The type of package URL: `deb`, `apk`.
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) architecture: String,
    /// Whoever looks after it.
    pub(super) maintainer: String,
    pub(super) homepage: String,
    /// As the package says.
    pub(super) license: String,
}

/// What `os-release` says: id and version.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Distribution {
    pub(super) id: String,
    pub(super) version: String,
}

impl Distribution {
    /// Reads `os-release` (os-release(5)).
    pub(super) fn read(text: &str) -> Self {
        let value = |name: &str| {
            let line = text.lines().find_map(|line| {
                let (key, value) = line.split_once('=')?;
                (key.trim() == name).then_some(value.trim())
            });
            line.unwrap_or_default()
                .trim_matches(['"', '\''])
                .to_owned()
        };
        Self {
            id: value("ID"),
            version: value("VERSION_ID"),
        }
    }
}

/// The packages of a file in the form of dpkg's status (deb822(5)). Those of a file without
/// `Status` fields are all installed.
pub(super) fn dpkg(text: &str) -> Vec<Package> {
    paragraphs(text, ": ")
        .into_iter()
        .filter(|fields| {
            let status = find(fields, "Status");
            status.is_empty() || status.ends_with(" installed")
        })
        .filter_map(|fields| package(&fields, &DPKG))
        .collect()
}

/// The packages of apk's list of what is installed.
pub(super) fn apk(text: &str) -> Vec<Package> {
    paragraphs(text, ":")
        .into_iter()
        .filter_map(|fields| package(&fields, &APK))
        .collect()
}

/// What the fields of a list are called.
struct Names {
    kind: &'static str,
    name: &'static str,
    version: &'static str,
    architecture: &'static str,
    maintainer: &'static str,
    homepage: &'static str,
    /// Not every list tells.
    license: Option<&'static str>,
}

const DPKG: Names = Names {
    kind: "deb",
    name: "Package",
    version: "Version",
    architecture: "Architecture",
    maintainer: "Maintainer",
    homepage: "Homepage",
    license: None,
};

const APK: Names = Names {
    kind: "apk",
    name: "P",
    version: "V",
    architecture: "A",
    maintainer: "m",
    homepage: "U",
    license: Some("L"),
};

fn package(fields: &Fields<'_>, names: &Names) -> Option<Package> {
    let package = Package {
        kind: names.kind,
        name: find(fields, names.name),
        version: find(fields, names.version),
        architecture: find(fields, names.architecture),
        maintainer: find(fields, names.maintainer),
        homepage: find(fields, names.homepage),
        license: names
            .license
            .map(|name| find(fields, name))
            .unwrap_or_default(),
    };
    (!package.name.is_empty()).then_some(package)
}

type Fields<'a> = Vec<(&'a str, &'a str)>;

/// Fields of paragraphs, without those that go on over several lines.
fn paragraphs<'a>(text: &'a str, separator: &str) -> Vec<Fields<'a>> {
    let mut found = vec![Fields::new()];
    for line in text.lines() {
        if line.trim().is_empty() {
            found.push(Fields::new());
        } else if !line.starts_with([' ', '\t'])
            && let Some(field) = line.split_once(separator)
            && let Some(last) = found.last_mut()
        {
            last.push(field);
        }
    }
    found
}

/// The first field of a name: what follows in apk's list is of files.
fn find(fields: &Fields<'_>, name: &str) -> String {
    let found = fields.iter().find(|(key, _)| *key == name);
    found.map_or("", |(_, value)| value.trim()).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(packages: &[Package]) -> Vec<String> {
        packages
            .iter()
            .map(|p| format!("{} {} {} {}", p.name, p.version, p.architecture, p.license))
            .collect()
    }

    #[test]
    fn status_of_dpkg() {
        let text = "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\n\
                    Version: 2.36-9+deb12u10\nDescription: a library\n Package: no field\n\n\
                    Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\
                    Package: half\nStatus: install ok half-installed\nVersion: 1\n";
        assert_eq!(shown(&dpkg(text)), ["libc6 2.36-9+deb12u10 amd64 "]);
        let part = "Package: tzdata\nVersion: 2024a\nArchitecture: all\n";
        assert_eq!(shown(&dpkg(part)), ["tzdata 2024a all "]);
        assert!(dpkg("").is_empty());
    }

    #[test]
    fn list_of_apk() {
        let text = "C:Q1abc=\nP:musl\nV:1.2.5-r0\nA:x86_64\nL:MIT\nm:A <a@example.org>\nF:lib\nR:ld\n\
                    a:0:0:755\n\nP:busybox\nV:1.36\nA:x86_64\nL:GPL-2.0-only\n";
        assert_eq!(
            shown(&apk(text)),
            [
                "musl 1.2.5-r0 x86_64 MIT",
                "busybox 1.36 x86_64 GPL-2.0-only"
            ]
        );
        assert_eq!(apk(text)[0].maintainer, "A <a@example.org>");
    }

    #[test]
    fn distributions() {
        let text = "NAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\nID=debian\nID_LIKE=x\n";
        let expected = Distribution {
            id: "debian".to_owned(),
            version: "12".to_owned(),
        };
        assert_eq!(Distribution::read(text), expected);
        assert_eq!(Distribution::read(""), Distribution::default());
    }
}
