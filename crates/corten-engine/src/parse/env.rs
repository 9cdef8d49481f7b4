//! Environments: merging an image's with a container's.

/// The `PATH` of a container whose image has none (Docker's default for Linux).
pub(crate) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn key(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(k, _)| k)
}

/// `base` with `overrides` on top: same keys are replaced in place, new ones appended; an
/// override without `=` removes the variable.
pub(crate) fn merge(base: &[String], overrides: &[String]) -> Vec<String> {
    let mut merged: Vec<String> = base.to_vec();
    for entry in overrides {
        let position = merged.iter().position(|e| key(e) == key(entry));
        match (position, entry.contains('=')) {
            (Some(at), true) => merged[at].clone_from(entry),
            (Some(at), false) => {
                merged.remove(at);
            }
            (None, true) => merged.push(entry.clone()),
            (None, false) => {}
        }
    }
    merged
}

/// The value of a variable.
pub(crate) fn get<'a>(env: &'a [String], name: &str) -> Option<&'a str> {
    env.iter().find_map(|e| {
        e.split_once('=')
            .filter(|(k, _)| *k == name)
            .map(|(_, v)| v)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_entries_win() {
        let s = |list: &[&str]| list.iter().map(|e| (*e).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            merge(&s(&["A=1", "B=2", "C=3"]), &s(&["B=x=y", "D=4", "C", "E"])),
            s(&["A=1", "B=x=y", "D=4"])
        );
        assert_eq!(get(&s(&["A=1", "B=x=y"]), "B"), Some("x=y"));
    }
}
