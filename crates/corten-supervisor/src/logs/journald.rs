//! The journal's native protocol: a datagram of fields an entry.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use super::Stream;

pub(super) fn connect(socket: &Path) -> io::Result<UnixDatagram> {
    let journal = UnixDatagram::unbound()?;
    journal.connect(socket).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!(
                "journald is not enabled on this host: {}: {error}",
                socket.display()
            ),
        )
    })?;
    journal.set_nonblocking(true)?;
    Ok(journal)
}

/// One entry.
pub(super) fn entry(fields: &[(String, String)], stream: Stream, line: &[u8]) -> Vec<u8> {
    let mut entry = Vec::with_capacity(line.len() + 256);
    let (text, whole) = match line.strip_suffix(b"\n") {
        Some(text) => (text, true),
        None => (line, false),
    };
    field(&mut entry, "MESSAGE", text);
    let priority = match stream {
        Stream::Stdout => b"6",
        Stream::Stderr => b"3",
    };
    field(&mut entry, "PRIORITY", priority);
    if !whole {
        field(&mut entry, "CONTAINER_PARTIAL_MESSAGE", b"true");
    }
    for (name, value) in fields {
        field(&mut entry, name, value.as_bytes());
    }
    entry
}

/// `NAME=value`, or with its length where the value has lines of its own.
fn field(entry: &mut Vec<u8>, name: &str, value: &[u8]) {
    entry.extend_from_slice(name.as_bytes());
    if value.contains(&b'\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries() {
        let fields = [
            ("CONTAINER_NAME".to_owned(), "web".to_owned()),
            ("NOTE".to_owned(), "two\nlines".to_owned()),
        ];
        assert_eq!(
            entry(&fields, Stream::Stderr, b"failed\n"),
            b"MESSAGE=failed\nPRIORITY=3\nCONTAINER_NAME=web\nNOTE\n\x09\0\0\0\0\0\0\0two\nlines\n"
        );
        let partial = entry(&[], Stream::Stdout, b"half");
        assert_eq!(
            partial,
            b"MESSAGE=half\nPRIORITY=6\nCONTAINER_PARTIAL_MESSAGE=true\n"
        );
    }

    #[test]
    fn no_journal_is_said() {
        let error = connect(Path::new("/nowhere/journal"))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("journald is not enabled on this host"),
            "{error}"
        );
    }
}
