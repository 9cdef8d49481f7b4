//! The home directory, from the container's own `/etc/passwd`.

use std::ffi::CString;
use std::io::Read as _;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

/// Largest `/etc/passwd` read.
const MAX_PASSWD: u64 = 1 << 20;

/// `HOME=…` for `uid`: field six of its line, else `/`, as runc does. Called inside the
/// container's root.
pub(super) fn home(uid: u32) -> CString {
    let home = lookup(uid).unwrap_or_else(|| "/".to_owned());
    CString::new(format!("HOME={home}")).unwrap_or_else(|_| c"HOME=/".to_owned())
}

fn lookup(uid: u32) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = openat2(
        CWD,
        "/etc/passwd",
        flags,
        Mode::empty(),
        ResolveFlags::NO_MAGICLINKS,
    );
    let mut text = Vec::new();
    std::fs::File::from(file.ok()?)
        .take(MAX_PASSWD)
        .read_to_end(&mut text)
        .ok()?;
    String::from_utf8_lossy(&text).lines().find_map(|line| {
        let mut fields = line.split(':');
        let number = fields.nth(2)?;
        if number.parse() != Ok(uid) {
            return None;
        }
        fields
            .nth(2)
            .filter(|home| !home.is_empty())
            .map(str::to_owned)
    })
}
