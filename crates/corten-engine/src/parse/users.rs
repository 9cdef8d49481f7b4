//! Users and groups by name or number, looked up in a root's own `passwd` and `group`.
//!
//! The semantics are those of Docker (`USER`, `--user`, `--group-add`): numbers need no
//! entry; a user's groups count only when no group was named.

use super::bad;
use crate::error::EngineError;

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups, the primary one first.
    pub(crate) groups: Vec<u32>,
    /// The home directory, `/` when unknown.
    pub(crate) home: String,
}

/// Resolves `user[:group]` (empty: root) and additional groups against the texts of the
/// root's `/etc/passwd` and `/etc/group` (empty when absent).
pub(crate) fn resolve(
    spec: &str,
    additional: &[String],
    passwd: &str,
    group: &str,
) -> Result<Identity, EngineError> {
    let (user, wanted_group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let entry = passwd_entries(passwd).find(|e| e.name == user).or_else(|| {
        let number: u32 = user.parse().ok()?;
        passwd_entries(passwd).find(|e| e.uid == number)
    });
    let (uid, mut gid, home, name) = match entry {
        Some(e) => (e.uid, e.gid, e.home.to_owned(), Some(e.name)),
        None => {
            let uid = id_number(user).ok_or_else(|| {
                bad(format!(
                    "unable to find user {user}: no matching entries in passwd file"
                ))
            })?;
            (uid, 0, "/".to_owned(), None)
        }
    };
    let mut groups = Vec::new();
    match wanted_group {
        Some(wanted) => gid = group_id(wanted, group, "unable to find")?,
        None => {
            if let Some(name) = name {
                groups.extend(
                    group_entries(group)
                        .filter(|g| g.members.split(',').any(|m| m == name))
                        .map(|g| g.gid),
                );
            }
        }
    }
    groups.insert(0, gid);
    for wanted in additional {
        groups.push(group_id(wanted, group, "Unable to find")?);
    }
    let mut seen = std::collections::BTreeSet::new();
    groups.retain(|g| seen.insert(*g));
    let home = if home.is_empty() {
        "/".to_owned()
    } else {
        home
    };
    Ok(Identity {
        uid,
        gid,
        groups,
        home,
    })
}

/// The largest id Linux accepts from Docker's users: 2³¹−1.
fn id_number(text: &str) -> Option<u32> {
    text.parse::<u32>()
        .ok()
        .filter(|n| i32::try_from(*n).is_ok())
}

/// `find`: Docker's words for what failed differ in their first letter.
fn group_id(wanted: &str, group: &str, find: &str) -> Result<u32, EngineError> {
    group_entries(group)
        .find(|g| g.name == wanted)
        .map(|g| g.gid)
        .or_else(|| id_number(wanted))
        .ok_or_else(|| {
            bad(format!(
                "{find} group {wanted}: no matching entries in group file"
            ))
        })
}

pub(super) struct PasswdEntry<'a> {
    pub(super) name: &'a str,
    pub(super) uid: u32,
    gid: u32,
    home: &'a str,
}

pub(super) fn passwd_entries(text: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let (_gecos, home) = (fields.next(), fields.next().unwrap_or("/"));
        Some(PasswdEntry {
            name,
            uid,
            gid,
            home,
        })
    })
}

pub(super) struct GroupEntry<'a> {
    pub(super) name: &'a str,
    pub(super) gid: u32,
    members: &'a str,
}

pub(super) fn group_entries(text: &str) -> impl Iterator<Item = GroupEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let gid = fields.next()?.parse().ok()?;
        Some(GroupEntry {
            name,
            gid,
            members: fields.next().unwrap_or(""),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        # comment\n\
        app:x:1000:1001:App:/home/app:/bin/sh\n\
        broken\n\
        www-data:x:33:33::/var/www:/sbin/nologin\n";
    const GROUP: &str = "root:x:0:root\nwheel:x:10:root,app\napp:x:1001:\nstaff:x:50:app\n";

    fn show(spec: &str, additional: &[&str]) -> String {
        let additional: Vec<String> = additional.iter().map(|a| (*a).to_owned()).collect();
        match resolve(spec, &additional, PASSWD, GROUP) {
            Ok(i) => format!("{}:{} {:?} {}", i.uid, i.gid, i.groups, i.home),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn users_and_groups() {
        assert_eq!(show("", &[]), "0:0 [0, 10] /root");
        assert_eq!(show("app", &[]), "1000:1001 [1001, 10, 50] /home/app");
        assert_eq!(show("1000", &[]), "1000:1001 [1001, 10, 50] /home/app");
        assert_eq!(show("app:staff", &[]), "1000:50 [50] /home/app");
        assert_eq!(show("app:7", &[]), "1000:7 [7] /home/app");
        assert_eq!(show("4242", &[]), "4242:0 [0] /");
        assert_eq!(
            show("4242:4243", &["wheel", "9"]),
            "4242:4243 [4243, 10, 9] /"
        );
        assert_eq!(show(":staff", &[]), "0:50 [50] /root");
        assert_eq!(
            show("nobody", &[]),
            "unable to find user nobody: no matching entries in passwd file"
        );
        assert!(show("app:nope", &[]).contains("unable to find group nope"));
        assert!(show("-1", &[]).contains("unable to find user"));
        assert!(show("4294967295", &[]).contains("unable to find user"));
    }
}
