//! Writing and rotating logs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{Line, MAX_LINE, Stream};

/// This moment, RFC 3339 with nanoseconds, in UTC.
pub(crate) fn now() -> String {
    format!("{:.9}", jiff::Timestamp::now())
}

/// Appends records; one system call per chunk of output.
#[derive(Debug)]
pub(crate) struct LogWriter {
    path: PathBuf,
    file: File,
    size: u64,
    max_size: Option<u64>,
    max_file: u32,
    /// Unfinished last lines of both streams.
    partial: [Vec<u8>; 2],
    out: Vec<u8>,
}

impl LogWriter {
    pub(crate) fn open(path: &Path, max_size: Option<u64>, max_file: u32) -> io::Result<Self> {
        let file = open(path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path: path.into(),
            file,
            size,
            max_size,
            max_file: max_file.max(1),
            partial: [Vec::new(), Vec::new()],
            out: Vec::new(),
        })
    }

    /// Logs output; a line that has not ended yet waits for its end.
    pub(crate) fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let mut partial = std::mem::take(&mut self.partial[stream as usize]);
        let time = now();
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = MAX_LINE - partial.len();
            let window = &rest[..rest.len().min(room)];
            match window.iter().position(|b| *b == b'\n') {
                Some(end) => {
                    partial.extend_from_slice(&window[..=end]);
                    rest = &rest[end + 1..];
                }
                None => {
                    partial.extend_from_slice(window);
                    rest = &rest[window.len()..];
                    if partial.len() < MAX_LINE {
                        break;
                    }
                }
            }
            self.record(stream, &partial, &time)?;
            partial.clear();
        }
        self.partial[stream as usize] = partial;
        self.flush()
    }

    /// Logs what has no newline at its end: the stream is over.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let partial = std::mem::take(&mut self.partial[stream as usize]);
            if !partial.is_empty() {
                self.record(stream, &partial, &now())?;
            }
        }
        self.flush()
    }

    fn record(&mut self, stream: Stream, text: &[u8], time: &str) -> io::Result<()> {
        let line = Line {
            log: String::from_utf8_lossy(text),
            stream,
            time: time.into(),
        };
        serde_json::to_writer(&mut self.out, &line)?;
        self.out.push(b'\n');
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        if let Some(max) = self.max_size
            && self.size > 0
            && self.size + self.out.len() as u64 > max
        {
            self.rotate()?;
        }
        let written = self.file.write_all(&self.out);
        self.size += self.out.len() as u64;
        self.out.clear();
        // A burst must not keep its memory for ever.
        self.out.shrink_to(MAX_LINE);
        written
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.max_file).rev() {
            let from = if number == 1 {
                self.path.clone()
            } else {
                numbered(&self.path, number - 1)
            };
            match fs::rename(&from, numbered(&self.path, number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.max_file == 1 {
            fs::remove_file(&self.path)?;
        }
        self.file = open(&self.path)?;
        self.size = 0;
        Ok(())
    }
}

pub(super) fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::{LogReader, ReadOptions};

    fn read(path: &Path) -> Vec<String> {
        let mut reader = LogReader::open(path, ReadOptions::default(), Box::new(|| false)).unwrap();
        let mut found = Vec::new();
        while let Some(record) = reader.next().unwrap() {
            found.push(format!(
                "{:?} {:?}",
                record.stream,
                String::from_utf8_lossy(&record.text)
            ));
        }
        found
    }

    #[test]
    fn lines_wait_for_their_end_and_long_ones_are_split() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogWriter::open(&path, None, 1).unwrap();
        log.write(Stream::Stdout, b"one\ntw").unwrap();
        log.write(Stream::Stderr, b"err\n").unwrap();
        assert_eq!(read(&path), ["Stdout \"one\\n\"", "Stderr \"err\\n\""]);
        log.write(Stream::Stdout, b"o\nlast").unwrap();
        log.finish().unwrap();
        assert_eq!(read(&path)[2..], ["Stdout \"two\\n\"", "Stdout \"last\""]);
        log.write(Stream::Stdout, &vec![b'x'; MAX_LINE + 5])
            .unwrap();
        log.write(Stream::Stdout, b"\n").unwrap();
        let lengths: Vec<usize> = read(&path)[4..].iter().map(String::len).collect();
        assert_eq!(lengths[0] - lengths[1], MAX_LINE - 7);
    }

    #[test]
    fn rotation_keeps_so_many_files_and_reads_across_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogWriter::open(&path, Some(300), 3).unwrap();
        for n in 0..20 {
            log.write(Stream::Stdout, format!("line {n}\n").as_bytes())
                .unwrap();
        }
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["log", "log.1", "log.2"]);
        let lines = read(&path);
        assert_eq!(lines.last().unwrap(), "Stdout \"line 19\\n\"");
        assert!(lines.len() > 6, "older files are read too: {lines:?}");
    }
}
