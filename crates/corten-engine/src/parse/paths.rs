//! Paths inside containers, cleaned lexically.

/// Cleans an absolute path as Go's `path.Clean` does: no empty, `.` or `..` components.
/// `None` when it is not absolute.
pub(crate) fn clean_absolute(path: &str) -> Option<String> {
    if !path.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            other => parts.push(other),
        }
    }
    Some(format!("/{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleans_like_go() {
        for (path, clean) in [
            ("/", "/"),
            ("/a/./b//c/", "/a/b/c"),
            ("/a/../../b", "/b"),
            ("/..", "/"),
        ] {
            assert_eq!(clean_absolute(path).as_deref(), Some(clean), "{path}");
        }
        assert_eq!(clean_absolute("a/b"), None);
        assert_eq!(clean_absolute(""), None);
    }

    proptest::proptest! {
        #[test]
        fn cleaning_is_idempotent_and_contained(path in "/[a-z./]{0,40}") {
            let clean = clean_absolute(&path).unwrap();
            proptest::prop_assert!(clean.split('/').all(|p| p != ".." && p != "."));
            proptest::prop_assert_eq!(clean_absolute(&clean), Some(clean.clone()));
        }
    }
}
