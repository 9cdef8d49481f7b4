//! The little formats of control group files. Whatever does not look as expected is
//! left out: a kernel newer than this code is no reason to tell nothing.

use super::{IoEntry, Pressure, Stall};
use crate::number_list;

/// v1's name of the table of bytes read and written.
pub(super) const IO_BYTES: &str = "ioServiceBytesRecursive";
/// v1's name of the table of requests.
pub(super) const IO_REQUESTS: &str = "ioServicedRecursive";

/// The number after `name` in a file of `name number` lines.
pub(crate) fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        if key == name {
            value.trim().parse().ok()
        } else {
            None
        }
    })
}

/// All of them.
pub(super) fn fields(text: &str) -> Vec<(String, u64)> {
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

/// A list such as `0-2,4`.
pub(super) fn list(text: &str) -> Vec<u16> {
    number_list::parse(text).unwrap_or_default()
}

/// Numbers separated by blanks.
pub(super) fn numbers(text: &str) -> Vec<u64> {
    text.split_ascii_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}

/// v1 blkio: lines `8:0 Read 4096` or `8:0 4096`; sums over all devices are left out.
pub(super) fn legacy_io(text: &str) -> Vec<IoEntry> {
    let entry = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let (word, value) = (words.next()?, words.next());
        let (op, value) = value.map_or(("", word), |value| (word, value));
        Some(IoEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            op: op.to_owned(),
            value: value.parse().ok()?,
        })
    };
    text.lines().filter_map(entry).collect()
}

/// v2 io.stat: lines `8:0 rbytes=1 wbytes=2 rios=…`, as the v1 tables of bytes and of
/// requests.
pub(super) fn unified_io(text: &str) -> [Vec<IoEntry>; 2] {
    let mut tables = [Vec::new(), Vec::new()];
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let device = words.next().and_then(|word| word.split_once(':'));
        let Some((Ok(major), Ok(minor))) =
            device.map(|(major, minor)| (major.parse(), minor.parse()))
        else {
            continue;
        };
        for word in words {
            let Some((key, Ok(value))) = word
                .split_once('=')
                .map(|(key, value)| (key, value.parse()))
            else {
                continue;
            };
            let [bytes, requests] = &mut tables;
            let (table, op) = match key {
                "rbytes" => (bytes, "Read"),
                "wbytes" => (bytes, "Write"),
                "rios" => (requests, "Read"),
                "wios" => (requests, "Write"),
                _ => continue,
            };
            table.push(IoEntry {
                major,
                minor,
                op: op.to_owned(),
                value,
            });
        }
    }
    tables
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` and `full …`.
pub(super) fn pressure(text: &str) -> Option<Pressure> {
    let mut pressure = Pressure::default();
    let mut found = false;
    for line in text.lines() {
        let (kind, rest) = line.split_once(' ')?;
        let stall = match kind {
            "some" => &mut pressure.some,
            "full" => &mut pressure.full,
            _ => continue,
        };
        *stall = stall_line(rest);
        found = true;
    }
    found.then_some(pressure)
}

fn stall_line(text: &str) -> Stall {
    let mut stall = Stall::default();
    for (key, value) in text.split(' ').filter_map(|word| word.split_once('=')) {
        let [ten, sixty, long] = &mut stall.averages;
        let average = match key {
            "avg10" => ten,
            "avg60" => sixty,
            "avg300" => long,
            "total" => {
                stall.total = value.trim().parse().unwrap_or(0);
                continue;
            }
            _ => continue,
        };
        *average = value.parse().unwrap_or(0.0);
    }
    stall
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        assert_eq!(field("low 0\noom_kill 3\n", "oom_kill"), Some(3));
        assert_eq!(field("oom_kill_disable 0\n", "oom_kill"), None);
        assert_eq!(
            fields("a 1\nb 2\nodd x\n"),
            [("a".to_owned(), 1), ("b".to_owned(), 2)]
        );
        assert_eq!(list("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(list("\n"), [0u16; 0]);
        assert_eq!(numbers("1 2  3\n"), [1, 2, 3]);
    }

    fn entry(minor: u64, op: &str, value: u64) -> IoEntry {
        let op = op.to_owned();
        IoEntry {
            major: 8,
            minor,
            op,
            value,
        }
    }

    #[test]
    fn input_and_output() {
        assert_eq!(
            legacy_io("8:0 Read 5\n8:0 Write 7\n8:16 Read 2\n8:16 9\nTotal 14\n"),
            [
                entry(0, "Read", 5),
                entry(0, "Write", 7),
                entry(16, "Read", 2),
                entry(16, "", 9)
            ]
        );
        let [bytes, requests] =
            unified_io("8:0 rbytes=5 wbytes=1 rios=3 wios=0 cost.usage=4\n8:1 rbytes=2\n8:2\n");
        assert_eq!(
            bytes,
            [
                entry(0, "Read", 5),
                entry(0, "Write", 1),
                entry(1, "Read", 2)
            ]
        );
        assert_eq!(requests, [entry(0, "Read", 3), entry(0, "Write", 0)]);
    }

    #[test]
    fn pressure_lines() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\n\
                    full avg10=0.00 avg60=0.00 avg300=0.00 total=3\n";
        let pressure = pressure(text).unwrap();
        assert_eq!(pressure.some.averages, [1.5, 0.25, 0.0]);
        assert_eq!((pressure.some.total, pressure.full.total), (77, 3));
        assert_eq!(super::pressure(""), None);
    }
}
