//! `RUN --device`: which devices a build asks for, and may have. What they are and change is
//! `corten_cdi`'s; names of classes and what is allowed by itself are BuildKit's annotations.

use std::collections::BTreeSet;
use std::path::PathBuf;

use corten_cdi::Registry;

use crate::request::AllowedDevices;

/// BuildKit's annotations.
const CLASS: &str = "org.mobyproject.buildkit.device.class";
const AUTO_ALLOW: &str = "org.mobyproject.buildkit.device.autoallow";

/// The whole names of the devices that a build asks for, with whether each must be there, in some
/// directories; later ones count for more. Of what need not be there nothing is told. An error is
/// the Dockerfile's, or of whoever builds.
pub(crate) fn resolve(
    dirs: &[PathBuf],
    wanted: &[(String, bool)],
    allowed: &AllowedDevices,
) -> Result<Vec<String>, String> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let registry = Registry::read(dirs);
    // What is allowed is meant as what is asked for is.
    let some = allowed.some.iter();
    let granted: BTreeSet<&str> = some
        .flat_map(|device| find(&registry, &device.name))
        .collect();
    let mut names = BTreeSet::new();
    for (wish, required) in wanted {
        let mut some = allowed.some.iter();
        let aliased = some.find(|device| device.alias.as_deref() == Some(wish));
        let found = find(&registry, aliased.map_or(wish, |device| &device.name));
        if found.is_empty() && *required {
            return Err(registry.missing(wish).to_string());
        }
        for name in &found {
            let automatic = registry.annotation(name, AUTO_ALLOW);
            let automatic = automatic.and_then(crate::special_args::truth) == Some(true);
            if !allowed.all && !granted.contains(name) && !automatic {
                return Err(format!(
                    "device {name} is not allowed: build with --allow device, or --allow \
                     device={wish}"
                ));
            }
        }
        names.extend(found);
    }
    Ok(names.into_iter().map(str::to_owned).collect())
}

/// The devices a name stands for: as CDI has it, or those of a class of BuildKit's.
fn find<'a>(registry: &'a Registry, name: &str) -> Vec<&'a str> {
    let found = registry.find(name);
    if !found.is_empty() {
        return found;
    }
    registry
        .names()
        .filter(|known| registry.annotation(known, CLASS) == Some(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::AllowedDevice;

    const YAML: &str = "\
cdiVersion: \"0.6.0\"
kind: \"vendor1.com/device\"
annotations:
  org.mobyproject.buildkit.device.autoallow: true
devices:
- name: foo
  annotations:
    org.mobyproject.buildkit.device.class: class1
- name: bar
  annotations: {org.mobyproject.buildkit.device.class: class1}
";

    fn some(names: &[&str]) -> AllowedDevices {
        let parse = |name: &&str| AllowedDevice::parse(name).unwrap();
        AllowedDevices {
            all: false,
            some: names.iter().map(parse).collect(),
        }
    }

    #[test]
    fn names_are_of_devices_kinds_and_classes() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("vendor1.yaml"), YAML).unwrap();
        let dirs = [dir.path().to_owned(), dir.path().join("none")];
        let asked = |name: &str, allowed: &AllowedDevices| {
            resolve(&dirs, &[(name.to_owned(), true)], allowed)
        };
        let none = AllowedDevices::default();
        let (foo, bar) = ("vendor1.com/device=foo", "vendor1.com/device=bar");
        assert_eq!(asked(foo, &none).unwrap(), [foo]);
        assert_eq!(asked("vendor1.com/device", &none).unwrap(), [bar]);
        assert_eq!(asked("vendor1.com/device=*", &none).unwrap(), [bar, foo]);
        assert_eq!(asked("class1", &none).unwrap(), [bar, foo]);
        let error = asked("vendor1.com/device=baz", &none).unwrap_err();
        assert!(error.contains("is not registered"), "{error}");
        let optional = [("class2".to_owned(), false)];
        assert_eq!(resolve(&dirs, &optional, &none).unwrap(), [""; 0]);
        // What is not allowed by itself has to be.
        let json =
            r#"{"cdiVersion":"0.6.0","kind":"v.com/k","devices":[{"name":"a"},{"name":"b"}]}"#;
        std::fs::write(dir.path().join("v.json"), json).unwrap();
        assert!(
            asked("v.com/k=a", &none)
                .unwrap_err()
                .contains("is not allowed")
        );
        let all = AllowedDevices {
            all: true,
            ..some(&["v.com/k=a,alias=card"])
        };
        assert!(asked("v.com/k=a", &all).is_ok());
        assert_eq!(asked("card", &all).unwrap(), ["v.com/k=a"]);
        // What is allowed is looked up as what is asked for is.
        for (allowed, name, expected) in [
            ("v.com/k=a", "v.com/k=a", true),
            ("v.com/k=a", "v.com/k", true),
            ("v.com/k", "v.com/k=a", true),
            ("v.com/k", "v.com/k=b", false),
            ("v.com/k=*", "v.com/k=b", true),
            ("v.com/k=a", "v.com/k=*", false),
            ("v.com/other", "v.com/k=a", false),
            ("v.com/k=a,alias=card", "card", true),
            ("v.com/k=a,alias=card", "v.com/k=a", true),
            ("v.com/k=a,alias=card", "other", false),
            ("v.com/none,alias=card", "card", false),
        ] {
            let found = asked(name, &some(&[allowed]));
            assert_eq!(found.is_ok(), expected, "{allowed} for {name}: {found:?}");
        }
    }
}
