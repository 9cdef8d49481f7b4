//! PAX records, which say how long they are: what they say may have a newline in it (a
//! capability's bytes, an attribute of any program's, a name). The `tar` crate takes every newline
//! for a record's end, so it is shown others in their place, and what was there is kept. It also
//! takes the first of several records of a key, where the last one counts (POSIX); so it is shown
//! no others. Nor is it shown sizes, which it believes also of what has no content.

use std::io;

use super::invalid;

/// What newlines inside of records are replaced with for who takes them for a record's end.
const STAND_IN: u8 = b'?';

/// Keys of which the `tar` crate is to see one record.
const ONCE: [&[u8]; 2] = [b"path", b"linkpath"];

/// The key of which it is to see none: the header is made to say what counts.
const SIZE: &[u8] = b"size";

/// The records before one entry.
#[derive(Debug, Default)]
pub struct Pax {
    data: Vec<u8>,
    /// Something in them was replaced for the `tar` crate.
    masked: bool,
}

impl Pax {
    /// Keeps records, and has none of them look like several, no name be there twice, and no size at
    /// all.
    pub(super) fn take(data: &mut [u8]) -> Self {
        let kept = data.to_vec();
        let mut masked = false;
        let mut last = [None; ONCE.len()];
        let mut at = 0;
        while let Ok(Some((start, end))) = next(&data[at..]) {
            let (start, end) = (at + start, at + end);
            let record = &data[start..end];
            let is_of = |key: &&[u8]| {
                record
                    .strip_prefix(*key)
                    .is_some_and(|r| r.starts_with(b"="))
            };
            if is_of(&SIZE) {
                data[start] = STAND_IN;
            } else if let Some(which) = ONCE.iter().position(is_of)
                && let Some(before) = last[which].replace(start)
            {
                data[before] = STAND_IN;
            }
            at = (end + 1).min(data.len());
        }
        let mut rest = &mut *data;
        while let Ok(Some((start, end))) = next(rest) {
            for byte in &mut rest[start..end] {
                if *byte == b'\n' {
                    *byte = STAND_IN;
                    masked = true;
                }
            }
            let after = (end + 1).min(rest.len());
            rest = &mut rest[after..];
        }
        Self { data: kept, masked }
    }

    /// Each record's key and value.
    pub fn records(&self) -> Records<'_> {
        Records(&self.data)
    }

    /// Whether there is a record of a key.
    pub(super) fn has(&self, key: &[u8]) -> bool {
        self.records()
            .any(|record| record.is_ok_and(|(of, _)| of == key))
    }

    /// What the last record of a size says, if it is a number.
    pub(super) fn size(&self) -> Option<u64> {
        let records = self.records().filter_map(Result::ok);
        let (_, value) = records.filter(|(of, _)| *of == SIZE).last()?;
        std::str::from_utf8(value).ok()?.parse().ok()
    }

    /// What was there, of what the `tar` crate found in the last record of a key.
    pub(super) fn restored<'a>(&'a self, key: &[u8], found: &[u8]) -> Option<&'a [u8]> {
        if !self.masked {
            return None;
        }
        let records = self.records().filter_map(Result::ok);
        let (_, value) = records.filter(|(of, _)| *of == key).last()?;
        let is_newline = |(was, is): (&u8, &u8)| was == is || (*was == b'\n' && *is == STAND_IN);
        let same = value.len() == found.len() && value.iter().zip(found).all(is_newline);
        same.then_some(value)
    }
}

/// Where the first record's key begins and its value ends; `None`: there are no more.
fn next(data: &[u8]) -> io::Result<Option<(usize, usize)>> {
    if data.first().is_none_or(|first| *first == b'\n') {
        return Ok(None);
    }
    let found = || {
        let space = data.iter().position(|byte| *byte == b' ')?;
        let length = std::str::from_utf8(&data[..space]).ok()?;
        let end = length.parse::<usize>().ok()?.checked_sub(1)?;
        // Some leave the last newline out.
        let whole = data
            .get(end)
            .map_or(end == data.len(), |last| *last == b'\n');
        (whole && space < end).then_some((space + 1, end))
    };
    found()
        .map(Some)
        .ok_or_else(|| invalid("a PAX record is malformed"))
}

/// Keys and values.
#[derive(Debug)]
pub struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = io::Result<(&'a [u8], &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        let data = std::mem::take(&mut self.0);
        let (start, end) = match next(data) {
            Ok(record) => record?,
            Err(error) => return Some(Err(error)),
        };
        self.0 = data.get(end + 1..).unwrap_or_default();
        let record = &data[start..end];
        let Some(equals) = record.iter().position(|byte| *byte == b'=') else {
            return Some(Err(invalid("a PAX record is malformed")));
        };
        Some(Ok((&record[..equals], &record[equals + 1..])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(data: &[u8]) -> Vec<Option<(Vec<u8>, Vec<u8>)>> {
        let pax = Pax {
            data: data.to_vec(),
            masked: false,
        };
        let owned = |(key, value): (&[u8], &[u8])| (key.to_vec(), value.to_vec());
        pax.records().map(|record| record.ok().map(owned)).collect()
    }

    #[test]
    fn records_are_as_long_as_they_say() {
        let pair = |key: &str, value: &str| Some((key.into(), value.into()));
        let data = b"13 user.a=1\n\n9 uid=\n1\n9 gid=12\n";
        let expected = [pair("user.a", "1\n"), pair("uid", "\n1"), pair("gid", "12")];
        assert_eq!(read(data), expected);
        let mut shown = data.to_vec();
        let pax = Pax::take(&mut shown);
        assert_eq!(shown, b"13 user.a=1?\n9 uid=?1\n9 gid=12\n");
        assert_eq!(pax.restored(b"uid", b"?1"), Some(&b"\n1"[..]));
        assert_eq!(pax.restored(b"uid", b"1"), None);
        assert_eq!(pax.restored(b"gid", b"12"), Some(&b"12"[..]));
        let mut twice = b"9 size=1\n9 path=a\n9 size=2\n9 path=b\n11 sizes=3\n".to_vec();
        let pax = Pax::take(&mut twice);
        assert_eq!(
            twice,
            b"9 ?ize=1\n9 ?ath=a\n9 ?ize=2\n9 path=b\n11 sizes=3\n"
        );
        assert_eq!(pax.size(), Some(2));
        assert_eq!(pax.records().count(), 5);
        for malformed in [
            &b"7 uid=1\n"[..],
            b"x uid=1\n",
            b"0 uid=1\n",
            b"2 uid=1\n",
            b"8 uid 1\n",
            b"99999999999999999999 uid=1\n",
            b"8",
        ] {
            assert_eq!(read(malformed), [None], "{malformed:?}");
            let mut same = malformed.to_vec();
            Pax::take(&mut same);
            assert_eq!(same, malformed);
        }
        assert_eq!(read(b"8 uid=1"), [pair("uid", "1")]);
        assert_eq!(read(b"8 uid=1\n\n8 gid=1\n"), [pair("uid", "1")]);
    }
}
