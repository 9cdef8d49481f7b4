//! Names of the host's users, for people to read.

use std::fs;

/// The name of `uid` in the host's `/etc/passwd`.
pub(super) fn name(uid: u32) -> Option<String> {
    find(&fs::read_to_string("/etc/passwd").unwrap_or_default(), uid)
}

/// passwd(5): `name:password:uid:…`.
fn find(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let found = fields.nth(1)?.parse() == Ok(uid);
        found.then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let passwd = "root:x:0:0::/root:/bin/sh\nbroken\nu:x:1000:1000::/:/bin/sh\n";
        assert_eq!(find(passwd, 0).as_deref(), Some("root"));
        assert_eq!(find(passwd, 1000).as_deref(), Some("u"));
        assert_eq!(find(passwd, 7), None);
    }
}
