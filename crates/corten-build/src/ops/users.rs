//! Users and groups by name, from the image's own `/etc/passwd` and `/etc/group`.

use std::path::Path;

use corten_store::rooted::RootFd;

/// Largest file that is read.
const LIMIT: u64 = 1 << 20;

/// Who a process or file belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

fn read(root: &RootFd, path: &str) -> String {
    // Missing, or not readable: no names are known then, and that is said.
    let bytes = root.read(Path::new(path), LIMIT).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Lines of a colon-separated file as fields.
fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.split(':').collect())
}

/// `user[:group]` of USER: names or numbers; an unknown number has group 0.
pub(crate) fn process(root: &RootFd, word: &str) -> Result<Identity, String> {
    if word.is_empty() {
        return process(root, "0");
    }
    let (user, group) = match word.split_once(':') {
        Some(("", group)) => ("0", Some(group).filter(|g| !g.is_empty())),
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (word, None),
    };
    let passwd = read(root, "etc/passwd");
    let groups = read(root, "etc/group");
    let number: Option<u32> = user.parse().ok();
    let entry = lines(&passwd).find(|fields| {
        fields.len() >= 4
            && (fields[0] == user || number.is_some_and(|n| fields[2].parse() == Ok(n)))
    });
    let mut identity = match (&entry, number) {
        (Some(fields), _) => Identity {
            uid: fields[2].parse().map_err(|_| damaged(user))?,
            gid: fields[3].parse().map_err(|_| damaged(user))?,
            groups: Vec::new(),
        },
        (None, Some(uid)) => Identity {
            uid,
            ..Identity::default()
        },
        (None, None) => {
            return Err(format!(
                "unable to find user {user}: no matching entries in passwd file"
            ));
        }
    };
    if let Some(group) = group {
        identity.gid = group_id(&groups, group)?;
    } else if let Some(fields) = &entry {
        let name = fields[0];
        identity.groups = lines(&groups)
            .filter(|fields| fields.len() >= 4 && fields[3].split(',').any(|member| member == name))
            .filter_map(|fields| fields[2].parse().ok())
            .collect();
    }
    Ok(identity)
}

/// The owner that `--chown` means by numbers alone, for which no file has to be read.
pub(crate) fn numbers(word: &str) -> Option<(u32, u32)> {
    let (user, group) = match word.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (word, None),
    };
    let uid = match user {
        "" => 0,
        user => user.parse().ok()?,
    };
    let gid = match group {
        None => uid,
        Some(group) => group.parse().ok()?,
    };
    Some((uid, gid))
}

/// `user[:group]` of `--chown`: where no group is given, a name has the group of its entry and
/// a number itself.
pub(crate) fn owner(root: &RootFd, word: &str) -> Result<(u32, u32), String> {
    let (user, group) = match word.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (word, None),
    };
    let (uid, own) = if user.is_empty() {
        (0, 0)
    } else {
        match user.parse() {
            Ok(uid) => (uid, uid),
            Err(_) => {
                let identity = process(root, user)?;
                (identity.uid, identity.gid)
            }
        }
    };
    let gid = match group {
        None => own,
        Some(group) => group_id(&read(root, "etc/group"), group)?,
    };
    Ok((uid, gid))
}

fn group_id(text: &str, group: &str) -> Result<u32, String> {
    if let Ok(gid) = group.parse() {
        return Ok(gid);
    }
    lines(text)
        .find(|fields| fields.len() >= 3 && fields[0] == group)
        .ok_or_else(|| format!("unable to find group {group}: no matching entries in group file"))?
        [2]
    .parse()
    .map_err(|_| damaged(group))
}

fn damaged(name: &str) -> String {
    format!("the entry of {name} has no number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        let passwd = "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/:/bin/sh\n";
        std::fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
        std::fs::write(
            dir.path().join("etc/group"),
            "wheel:x:10:app,root\nweb:x:33:\n",
        )
        .unwrap();
        let root = RootFd::open(dir.path()).unwrap();
        let app = process(&root, "app").unwrap();
        assert_eq!((app.uid, app.gid, app.groups), (1000, 1001, vec![10]));
        assert_eq!(process(&root, "1000").unwrap().gid, 1001);
        assert_eq!(process(&root, "app:web").unwrap().gid, 33);
        let group = process(&root, ":web").unwrap();
        assert_eq!((group.uid, group.gid), (0, 33));
        assert_eq!(
            process(&root, "77").unwrap(),
            Identity {
                uid: 77,
                ..Identity::default()
            }
        );
        assert!(
            process(&root, "nobody")
                .unwrap_err()
                .contains("no matching entries in passwd")
        );
        assert_eq!(owner(&root, "app").unwrap(), (1000, 1001));
        for word in ["7", "1:2", ":3", "4:", "", ":", "99999999999"] {
            let read = owner(&root, word);
            assert_eq!(numbers(word), read.ok(), "{word}");
        }
        for word in ["app", "7:web", "app:7"] {
            assert_eq!(numbers(word), None, "{word}");
        }
        assert_eq!(owner(&root, "7").unwrap(), (7, 7));
        assert_eq!(owner(&root, "1:web").unwrap(), (1, 33));
        assert_eq!(owner(&root, ":web").unwrap(), (0, 33));
        assert!(owner(&root, "1:x").is_err());
    }
}
